//! Mounting composefs images (format document, 5).
use std::path::Path;

use crate::error::Result;
use crate::ids::ObjectId;

/// How much overlayfs checks the objects' fs-verity digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verity {
    /// Every object must have the digest that the image names.
    Require,
    /// As `Require` where kernel and file system can; unchecked otherwise.
    #[default]
    Try,
    /// Unchecked.
    Off,
}

/// What to mount.
#[derive(Clone, Debug)]
pub struct MountOptions<'a> {
    /// The image file.
    pub image: &'a Path,
    /// Object stores, searched in order.
    pub objects: &'a [&'a Path],
    /// The digest that the kernel must measure on the image file.
    pub digest: Option<ObjectId>,
    /// Whether objects are checked.
    pub verity: Verity,
    /// Shown as the mount's source: `composefs:NAME`.
    pub name: Option<&'a str>,
}

/// Mounts an image on `target`, read-only.
pub fn mount_composefs(options: &MountOptions<'_>, target: &Path) -> Result<()> {
    let _ = (options, target);
    todo!()
}

/// Takes the mount on `target` away.
pub fn unmount(target: &Path) -> Result<()> {
    let _ = target;
    todo!()
}
