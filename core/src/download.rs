//! An update that is here and that nothing boots yet: `--download-only` now, `upgrade --from-downloaded` when it suits.
//!
//! The image is made and kept by names of the store, with what it binds; [`Downloaded`] says which it is. Invariant:
//! the note is written when all of that is durable and goes before the names do, so what it says is here is here, and
//! names without it mean nothing and go with the next collection. No record and no boot entry is touched: what boots
//! next is what it was.

use crate::bound::{self, Bound};
use crate::deployment::Downloaded;
use crate::error::{Error, Result};
use crate::ids::ManifestDigest;
use crate::monitor::Monitor;
use crate::pull::{Imported, Variant};
use crate::registry;
use crate::store::{BOOT_IMAGE_V1, StoredImage};
use crate::sysroot::Sysroot;
use crate::tree::Tree;

/// For whom its images are kept.
pub const NAME: &str = "downloaded";

/// The name that keeps its manifest, config and layers.
pub(crate) fn tag() -> String {
    format!("cfs-update/{NAME}")
}

/// Makes the image of what was imported, and keeps it in the place of what was downloaded before.
pub(crate) fn keep(
    sysroot: &Sysroot,
    imported: Imported,
    mut tree: Tree,
    bound: &Bound,
    version: Option<String>,
    monitor: &dyn Monitor,
) -> Result<Downloaded> {
    let store = &sysroot.store;
    let built = imported.build(store, &mut tree, Variant::Boot, monitor)?;
    forget(sysroot)?;
    bound.keep(store, NAME)?;
    let image = built.sync(store, &tag(), Some(NAME), monitor)?;
    let source = &image.source;
    let noted = Downloaded::new(
        source.reference.with_transport(),
        source.top,
        source.digest,
        image.id,
        version,
    );
    noted.save(sysroot.fs(), sysroot.layout())?;
    Ok(noted)
}

/// What was downloaded, with all that it needs; `None` where nothing was.
///
/// # Errors
/// [`Error::Deployment`] where something of it is gone.
pub(crate) fn found(sysroot: &Sysroot) -> Result<Option<(registry::Image, Bound)>> {
    let noted = Downloaded::load(sysroot.layout())?;
    noted.map(|noted| whole(sysroot, &noted)).transpose()
}

fn whole(sysroot: &Sysroot, noted: &Downloaded) -> Result<(registry::Image, Bound)> {
    let store = &sysroot.store;
    let gone = |what: &str| Error::Deployment {
        id: NAME.into(),
        why: format!(
            "{what} of {} is not in the store any more; `upgrade` fetches it",
            noted.manifest
        ),
    };
    let StoredImage {
        manifest,
        config,
        images,
    } = store.stored_image(&noted.manifest)?;
    if images.get(BOOT_IMAGE_V1).is_some_and(|image| *image != noted.id) {
        return Err(gone("the image that was made"));
    }
    if let Some(layer) = config.diff_ids.iter().find(|layer| !store.has_layer(layer)) {
        return Err(gone(&format!("layer {layer}")));
    }
    let bound = Bound::kept(store, NAME)?;
    if !bound.is_complete(store)? {
        return Err(gone("a bound image"));
    }
    let source = registry::Image {
        reference: noted.reference.parse()?,
        top: noted.top,
        digest: noted.manifest,
        blobs: manifest.layers.clone(),
        manifest,
        config,
    };
    Ok((source, bound))
}

/// Whether this image was downloaded: what the reference leads to, or its manifest. What cannot be read was not.
pub(crate) fn noted(sysroot: &Sysroot, reference: &str, digest: &ManifestDigest) -> Option<Downloaded> {
    let noted = Downloaded::load(sysroot.layout()).ok().flatten()?;
    let same = noted.reference == reference && [noted.top, noted.manifest].contains(digest);
    Some(noted).filter(|noted| same && whole(sysroot, noted).is_ok())
}

/// Lets go of what was downloaded of this reference: it is deployed, or something newer is.
pub(crate) fn superseded(sysroot: &Sysroot, reference: &str) -> Result<()> {
    let noted = Downloaded::load(sysroot.layout()).ok().flatten();
    match noted.filter(|noted| noted.reference == reference) {
        Some(_) => forget(sysroot).map(drop),
        None => Ok(()),
    }
}

/// Lets go of what was downloaded: the note, then the names. Whether there was a note, be it one that cannot be read.
///
/// # Errors
/// What removing gives.
pub fn forget(sysroot: &Sysroot) -> Result<bool> {
    let store = &sysroot.store;
    let noted = !matches!(Downloaded::load(sysroot.layout()), Ok(None));
    Downloaded::clear(sysroot.fs(), sysroot.layout())?;
    store.untag(&tag())?;
    bound::let_go(store, NAME)?;
    store.unname_image(NAME)?;
    Ok(noted)
}
