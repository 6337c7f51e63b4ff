//! A directory on disk as a tree.
use std::fs::File;
use std::path::Path;

use super::Tree;
use crate::error::Result;
use crate::ids::ObjectId;

/// What a scan takes over, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanOptions {
    /// All modification times 0.
    pub use_epoch: bool,
    /// No extended attributes at all.
    pub skip_xattrs: bool,
    /// Only `user.` attributes.
    pub user_xattrs: bool,
    /// No character and block devices.
    pub skip_devices: bool,
    /// Several names of one inode become hard links (mkcomposefs does not do that).
    pub hard_links: bool,
}

/// Scans.
pub fn scan(dir: &Path, options: ScanOptions, sink: &mut dyn FnMut(&Path, File) -> Result<ObjectId>) -> Result<Tree> {
    let _ = (dir, options, sink);
    todo!()
}
