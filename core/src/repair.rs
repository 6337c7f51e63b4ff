//! Mending: what is broken in the repository goes, what deployments and named images need is fetched again, and kernels
//! on `$BOOT` are made those of their images ([`crate::kernels`]).
//!
//! Invariant: only an object whose content is proven not to be what its name says is removed, or what is no file in the
//! place of one, and nothing can use such a one: with fs-verity reading it is an error; and the stream of a layer that
//! leads to another file than the layer's, though its image may be mounted: the objects stay. What comes in its place is
//! checked as in every import and made durable by one `syncfs`, and a deployment's image is made of it anew, which must
//! give the digest that is its name: where it does not, the deployment was made of a wrong layer and is left as it is,
//! since it may run, and its manifest's config leads to the right image, which is to be deployed. A power cut leaves
//! objects that are missing; the same command again, or any import that needs them, fetches those.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::kernels;
use crate::monitor::{Event, Monitor, Stage};
use crate::pull::{self, Imported, Variant};
use crate::registry::Registry;
use crate::store::Store;
use crate::store::fsck::Mend;
use crate::sysroot::{Remade, Sysroot};
use crate::wanted::{self, Wanted};

/// What was done.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Objects with another content than their name says, which were removed.
    pub removed: Vec<ObjectId>,
    /// Objects that were given the fs-verity that they lacked.
    pub sealed: Vec<ObjectId>,
    /// Images of which something was fetched or made anew, by reference and manifest; kernels on `$BOOT`, by entry.
    pub mended: Vec<String>,
    /// Images and objects that could not be mended, and why.
    pub failed: Vec<(String, Error)>,
}

/// Does what `fsck` found to be needed, and fetches what is missing from where it came from.
///
/// # Errors
/// What removing and listing give. An image that cannot be fetched is no failure of the others.
pub fn repair(sysroot: &Sysroot, needed: &[Mend], monitor: &dyn Monitor) -> Result<Repaired> {
    let store = sysroot.store();
    let mut done = Repaired::default();
    for mend in needed.iter().collect::<BTreeSet<_>>() {
        match mend {
            Mend::Content(id) => {
                store.remove_broken(id)?;
                done.removed.push(*id);
            }
            Mend::Folder(folder) => store.clear_folder(*folder)?,
            Mend::Layer(layer) => store.forget_layer(layer)?,
            Mend::Seal(id) => match store.seal(id) {
                Ok(()) => done.sealed.push(*id),
                Err(error) => done.failed.push((format!("object {id}"), error)),
            },
        }
    }
    let (tags, images) = (store.tags()?, store.image_names()?);
    for wanted in wanted::all(sysroot)? {
        let name = wanted.name();
        if let Some(remade) = wanted.remade(store) {
            done.failed.push((name, remade));
            continue;
        }
        let mended = match wanted.is_whole(store) {
            true if wanted.is_named(store, &tags, &images) => continue,
            true => wanted.give_name(store),
            false => wanted.mend(sysroot, monitor),
        };
        match mended {
            Ok(()) => done.mended.push(name),
            Err(error) => done.failed.push((name, error)),
        }
    }
    // From what is here now.
    let kernels = kernels::mend(sysroot)?;
    done.mended.extend(kernels.done);
    done.failed.extend(kernels.failed);
    Ok(done)
}

impl Wanted {
    /// Gives it the names that keep it.
    fn give_name(&self, store: &Store) -> Result<()> {
        store.tag(&self.tag, &self.manifest)?;
        if let (Some(name), Some(id)) = (&self.image_name, &self.deployment) {
            store.name_image(name, id)?;
        }
        store.publish()
    }

    fn mend(&self, sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<()> {
        let (store, options) = (sysroot.store(), &sysroot.options);
        let before = self.config(store);
        monitor.event(Event::Stage(Stage::Resolve));
        let registry = Registry::open(&self.reference.pinned(self.manifest), &options.registry)?;
        let source = registry.image(&options.platform, monitor)?;
        if source.digest != self.manifest {
            return Err(Error::Manifest {
                reference: self.reference.to_string(),
                why: format!(
                    "leads to {} now; the image that is broken here cannot be had there any more",
                    source.digest
                ),
            });
        }
        let imported = pull::import(store, &registry, source, options.threads, monitor)?;
        // The one that a deployment is comes last, and is the one that gets its name.
        let mut last = None;
        for variant in self.variants(before.as_ref()) {
            let imported = Imported::complete(imported.source().clone());
            let mut tree = imported.tree(store)?;
            let built = imported.build(store, &mut tree, variant, monitor)?;
            if let (Variant::Boot, Some(id)) = (variant, self.deployment)
                && built.id() != id
            {
                // From now on its config says so, and whoever deploys it again gets what is right.
                store.publish()?;
                return Err(Error::Deployment {
                    id: id.short(),
                    why: Remade(built.id()).to_string(),
                });
            }
            last = Some(built);
        }
        match last {
            Some(built) => built
                .sync(store, &self.tag, self.image_name.as_deref(), monitor)
                .map(drop),
            None => Ok(()),
        }
    }
}
