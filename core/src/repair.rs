//! Mending the repository: what is broken goes, and what deployments and named images need is fetched again.
//!
//! Invariant: only an object whose content is proven not to be what its name says is removed, or what is no file in the
//! place of one, and nothing can use such a one: with fs-verity reading it is an error. What comes in its place is
//! checked as in every import and made durable by one `syncfs`, and a deployment's image is made of it anew, which must
//! give the digest that is its name. A power cut leaves objects that are missing; the same command again, or any import
//! that needs them, fetches those.

use std::collections::BTreeSet;

use crate::activate;
use crate::bound;
use crate::deployment::Downloaded;
use crate::download;
use crate::error::{Error, Result};
use crate::ids::{DeploymentId, ManifestDigest, ObjectId};
use crate::monitor::{Event, Monitor, Stage};
use crate::pull::{self, IMAGE_LIMIT, Imported, Variant};
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::fsck::Mend;
use crate::store::{Store, StoredConfig};
use crate::sysroot::{Known, Sysroot};
use crate::upkeep::objects_of;

/// What was done.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Objects with another content than their name says, which were removed.
    pub removed: Vec<ObjectId>,
    /// Objects that were given the fs-verity that they lacked.
    pub sealed: Vec<ObjectId>,
    /// Images of which something was fetched or made anew, by reference and manifest.
    pub mended: Vec<String>,
    /// Images and objects that could not be mended, and why.
    pub failed: Vec<(String, Error)>,
}

/// An image that has to be whole.
struct Wanted {
    /// The name that keeps it.
    tag: String,
    reference: Reference,
    manifest: ManifestDigest,
    /// The deployment that it is, or will be.
    deployment: Option<DeploymentId>,
    /// The name of its image.
    image_name: Option<String>,
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
            Mend::Seal(id) => match store.seal(id) {
                Ok(()) => done.sealed.push(*id),
                Err(error) => done.failed.push((format!("object {id}"), error)),
            },
        }
    }
    for wanted in all(sysroot)? {
        if wanted.is_whole(store) {
            continue;
        }
        let name = format!("{}@{}", wanted.reference, wanted.manifest);
        match wanted.mend(sysroot, monitor) {
            Ok(()) => done.mended.push(name),
            Err(error) => done.failed.push((name, error)),
        }
    }
    Ok(done)
}

/// Deployments, what was downloaded, what they bind, and pulled images.
fn all(sysroot: &Sysroot) -> Result<Vec<Wanted>> {
    let deployed = |known: &Known| {
        let origin = known.origin()?;
        Some(Wanted {
            tag: activate::tag(&known.id),
            reference: origin.reference.parse().ok()?,
            manifest: origin.manifest,
            deployment: Some(known.id),
            image_name: Some(known.id.to_hex()),
        })
    };
    let named = |(tag, manifest): (String, ManifestDigest)| {
        let reference = bound::name(&tag).map_or(tag.as_str(), |(_, reference)| reference);
        Some(Wanted {
            reference: reference.parse().ok()?,
            manifest,
            deployment: None,
            image_name: None,
            tag,
        })
    };
    let known = sysroot.known()?;
    let downloaded = Downloaded::load(sysroot.layout()).ok().flatten();
    let downloaded = downloaded.and_then(|noted| {
        Some(Wanted {
            tag: download::tag(),
            reference: noted.reference.parse().ok()?,
            manifest: noted.manifest,
            deployment: Some(noted.id),
            image_name: Some(download::NAME.into()),
        })
    });
    let deployed: Vec<_> = known.iter().filter_map(deployed).chain(downloaded).collect();
    let deployments = known.iter().map(|k| activate::tag(&k.id));
    let own: BTreeSet<_> = deployments.chain([download::tag()]).collect();
    let tags = sysroot
        .store()
        .tags()?
        .into_iter()
        .filter(|(tag, _)| !own.contains(tag));
    Ok(deployed.into_iter().chain(tags.filter_map(named)).collect())
}

impl Wanted {
    /// Whether its manifest, config and layers are here with all objects, and the images that were made of it.
    fn is_whole(&self, store: &Store) -> bool {
        let Some(config) = self.config(store) else {
            return false;
        };
        let made: Vec<_> = self
            .variants(Some(&config))
            .map(|v| config.images.get(v.reference()))
            .collect();
        config.layers.iter().all(|layer| store.has_layer(layer))
            && made
                .into_iter()
                .all(|id| id.is_some_and(|id| image_is_whole(store, id)))
    }

    fn config(&self, store: &Store) -> Option<StoredConfig> {
        store.config_of(&self.manifest).ok().flatten()
    }

    /// What is made of it: what it is kept for, and what else its config, where that can be read, leads to.
    fn variants(&self, config: Option<&StoredConfig>) -> impl Iterator<Item = Variant> {
        let purpose = match self.deployment {
            Some(_) => Variant::Boot,
            None => Variant::Container,
        };
        let is_made = move |variant: &Variant| {
            *variant == purpose || config.is_some_and(|config| config.images.contains_key(variant.reference()))
        };
        [Variant::Whole, Variant::Container, Variant::Boot]
            .into_iter()
            .filter(is_made)
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
                return Err(Error::Deployment {
                    id: id.short(),
                    why: format!("its layers give image {} now; deploy it again", built.id()),
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

fn image_is_whole(store: &Store, id: &ObjectId) -> bool {
    let objects = store.read_object(id, IMAGE_LIMIT).and_then(|image| objects_of(&image));
    objects.is_ok_and(|objects| objects.iter().all(|id| store.has_object(id)))
}
