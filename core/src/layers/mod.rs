//! The entries of a layer's tar stream.
//!
//! [`tar::Parser`] turns bytes, as they come, into the heads of entries; what an entry means for a tree is decided in
//! `tree`, and nothing here touches a file system: names and links are data. Memory is bounded by the largest
//! extended header ([`tar::MAX_EXTENDED`]), never by a file.

mod head;
mod header;
mod pax;
mod sparse;
pub mod tar;

use crate::ids::ObjectId;

pub use head::{Fault, Head, Kind};
pub(crate) use header::{BLOCK, begins_tar};
pub use sparse::Sparse;
pub use tar::{Parser, Step};

/// Regular files of at most this many bytes are kept in the image itself and are no objects.
pub const INLINE_MAX: u64 = 64;

/// A time stamp: seconds since 1970 (negative before) and nanoseconds 0..1e9 added to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mtime {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: u32,
}

/// Extended attributes, key (with its prefix, such as `security.`) and value, in the order of the archive.
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

/// Metadata of an entry; ownership as numbers, as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Mtime,
    /// From `SCHILY.xattr.*`.
    pub xattrs: Xattrs,
}

/// The bytes of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// At most 64 bytes, kept in the image itself.
    Inline(Box<[u8]>),
    /// An object of the store.
    Object {
        /// Its fs-verity digest.
        id: ObjectId,
        /// Its size in bytes, more than 64.
        size: u64,
    },
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Folder.
    Directory,
    /// Regular file; sparse ones are expanded.
    Regular(Content),
    /// Symbolic link to this target, 1..4095 bytes.
    Symlink(Box<[u8]>),
    /// Hard link to an entry of this or an earlier layer, named by its path as in the archive.
    Hardlink(Box<[u8]>),
    /// Character device with the kernel's 32-bit device number; 0 is overlayfs' whiteout.
    CharDevice(u32),
    /// Block device with the kernel's 32-bit device number.
    BlockDevice(u32),
    /// Named pipe.
    Fifo,
}

/// One entry, in the order of the archive. OCI whiteouts (`.wh.NAME`) are ordinary entries here; the merge reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in the archive, after PAX and GNU long names; neither normalised nor trusted.
    pub path: Box<[u8]>,
    /// Metadata; ignored for hard links.
    pub meta: Meta,
    /// What it is.
    pub item: Item,
}
