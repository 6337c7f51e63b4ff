//! The images that have to be whole: what deployments are made of, what was downloaded, what they bind, what was
//! pulled.
//!
//! Invariant: nothing is changed here, and no object is hashed: that is the store's own check.

use std::collections::{BTreeMap, BTreeSet};

use crate::activate;
use crate::bound;
use crate::deployment::Downloaded;
use crate::download;
use crate::error::{Error, Result};
use crate::ids::{DeploymentId, ManifestDigest, ObjectId};
use crate::image::reader;
use crate::pull::{IMAGE_LIMIT, Variant};
use crate::reference::Reference;
use crate::store::{Store, StoredConfig};
use crate::sysroot::{Known, Remade, Sysroot};

/// An image that has to be whole.
pub(crate) struct Wanted {
    /// The name that keeps it.
    pub tag: String,
    pub reference: Reference,
    pub manifest: ManifestDigest,
    /// The deployment that it is, or will be.
    pub deployment: Option<DeploymentId>,
    /// The name of its image.
    pub image_name: Option<String>,
}

/// Deployments and images that are not whole, by name, each with what it lacks and what to do.
///
/// # Errors
/// What listing gives.
pub(crate) fn lacking(sysroot: &Sysroot) -> Result<Vec<(String, String)>> {
    let store = sysroot.store();
    let (tags, images) = (store.tags()?, store.image_names()?);
    let mends = |why: &str| Some(format!("{why}; `cfs-update fsck --repair` mends it"));
    let why = |wanted: &Wanted| match (wanted.remade(store), wanted.is_whole(store)) {
        (Some(remade), _) => Some(remade.to_string()),
        (None, false) => {
            mends("its manifest, config, layers or image are not all here, or a file of the image is another one")
        }
        (None, true) if wanted.is_named(store, &tags, &images) => None,
        (None, true) => mends("the name that keeps it in the repository is missing or leads elsewhere"),
    };
    let found = all(sysroot)?.into_iter();
    Ok(found
        .filter_map(|wanted| Some((wanted.name(), why(&wanted)?)))
        .collect())
}

/// Deployments, what was downloaded, what they bind, and pulled images.
pub(crate) fn all(sysroot: &Sysroot) -> Result<Vec<Wanted>> {
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
    pub fn name(&self) -> String {
        format!("{}@{}", self.reference, self.manifest)
    }

    /// Whether the names that keep it lead to it. That of a deployment may lead to another manifest of which the same
    /// image is made: an update to that one may have been interrupted, and the record keeps its own.
    pub fn is_named(
        &self,
        store: &Store,
        tags: &BTreeMap<String, ManifestDigest>,
        images: &BTreeMap<String, ObjectId>,
    ) -> bool {
        let image = self.image_name.as_ref().zip(self.deployment);
        let named = |manifest: &ManifestDigest| *manifest == self.manifest || self.is_made_of(store, manifest);
        tags.get(&self.tag).is_some_and(named) && image.is_none_or(|(name, id)| images.get(name) == Some(&id))
    }

    fn is_made_of(&self, store: &Store, manifest: &ManifestDigest) -> bool {
        let config = store.config_of(manifest).ok().flatten();
        let made = config
            .as_ref()
            .and_then(|config| config.images.get(Variant::Boot.reference()));
        made.is_some() && made == self.deployment.as_ref()
    }

    /// Whether its manifest, config and layers are here with all objects, and the images that were made of it.
    pub fn is_whole(&self, store: &Store) -> bool {
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

    /// What is to be said where it is another image than its manifest gives. No repair makes it that.
    pub fn remade(&self, store: &Store) -> Option<Error> {
        let id = self.deployment?;
        let made = self.config(store)?.remade(&id)?;
        Some(Error::Deployment {
            id: id.short(),
            why: Remade(made).to_string(),
        })
    }

    pub fn config(&self, store: &Store) -> Option<StoredConfig> {
        store.config_of(&self.manifest).ok().flatten()
    }

    /// What is made of it: what it is kept for, and what else its config, where that can be read, leads to.
    pub fn variants(&self, config: Option<&StoredConfig>) -> impl Iterator<Item = Variant> {
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
}

fn image_is_whole(store: &Store, id: &ObjectId) -> bool {
    let tree = store
        .read_object(id, IMAGE_LIMIT)
        .and_then(|image| reader::read(&image));
    let is_here = |(id, size)| store.has_object(&id) && !store.is_other_file(&id, size);
    tree.is_ok_and(|tree| tree.files().all(is_here))
}

/// The objects that an image needs.
pub(crate) fn objects_of(image: &[u8]) -> Result<Vec<ObjectId>> {
    Ok(reader::read(image)?.objects().collect())
}
