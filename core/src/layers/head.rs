//! What a tar says of an entry before its content.

use crate::layers::{Content, Entry, Item, Meta, Sparse};

/// What is wrong with a tar stream, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Entry name where one is known, else `byte N` of the tar stream.
    pub entry: String,
    /// What is wrong.
    pub why: String,
}

/// What an entry is, before its content is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Folder.
    Directory,
    /// Regular file, contiguous file, sparse file.
    Regular,
    /// Symbolic link to this target.
    Symlink(Box<[u8]>),
    /// Hard link to the entry of this name.
    Hardlink(Box<[u8]>),
    /// Character device, the kernel's 32-bit number.
    CharDevice(u32),
    /// Block device, the kernel's 32-bit number.
    BlockDevice(u32),
    /// Named pipe.
    Fifo,
}

/// Everything of an entry but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// As in the archive, after PAX and GNU long names.
    pub path: Box<[u8]>,
    /// Metadata.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content that follow in the stream; 0 unless the entry is a regular file. The caller takes exactly these
    /// before the next [`crate::layers::Parser::step`]; the padding behind them is the parser's.
    pub stored: u64,
    /// Which parts of the file they are, where they are not all of it.
    pub sparse: Option<Sparse>,
}

impl Head {
    /// Size of the file in bytes, expanded.
    pub fn size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.stored, Sparse::size)
    }

    /// The entry, with the content of a regular file (ignored for everything else).
    pub fn into_entry(self, content: Content) -> Entry {
        let item = match self.kind {
            Kind::Directory => Item::Directory,
            Kind::Regular => Item::Regular(content),
            Kind::Symlink(target) => Item::Symlink(target),
            Kind::Hardlink(target) => Item::Hardlink(target),
            Kind::CharDevice(device) => Item::CharDevice(device),
            Kind::BlockDevice(device) => Item::BlockDevice(device),
            Kind::Fifo => Item::Fifo,
        };
        Entry {
            path: self.path,
            meta: self.meta,
            item,
        }
    }
}
