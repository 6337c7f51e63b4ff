//! composefs images: EROFS metadata whose regular files lie in an object store.
//!
//! The bytes are those of C mkcomposefs 1.0.8, for ever: the same tree gives the same image and so the same digest.
//! Nothing here does I/O or reads a clock. Format: `docs/formats.md`, "The image".

pub mod dump;
mod attributes;
mod format;
mod inode;
mod inodes;
mod output;
mod pool;
pub mod reader;
pub mod writer;

use crate::ids::{Algorithm, ObjectId};
use crate::sys::verity;

/// Which format versions an image may have; both are 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The one that is written unless a whiteout needs a higher one.
    pub min: u32,
    /// The highest that may be written.
    pub max: u32,
}

impl Versions {
    /// Format 1 ("V1" of composefs-rs): what this program boots, min = max = 1.
    pub const V1: Self = Self { min: 1, max: 1 };
    /// What mkcomposefs, ostree and podman use: 0, or 1 where the tree has a whiteout.
    pub const MKCOMPOSEFS: Self = Self { min: 0, max: 1 };
}

impl Default for Versions {
    fn default() -> Self {
        Self::V1
    }
}

/// The fs-verity digest of an image: its name in the store, and what signatures and kernel arguments say.
pub fn digest(image: &[u8], algorithm: Algorithm) -> ObjectId {
    verity::hash(algorithm, image)
}
