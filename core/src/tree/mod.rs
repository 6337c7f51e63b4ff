//! The file system tree of an image, in memory.
//!
//! One arena: inodes, folder entries, attributes and the bytes of names and values lie in four vectors, and refer to
//! each other by number. A folder's entries are one sorted run. Several entries may name one inode (hard links);
//! exactly one of them, the *original*, is where the inode stands in an image.
//!
//! Invariant: every name is 1..=255 bytes without `/` and NUL and is neither `.` nor `..`; folders form a tree under
//! the root. Nothing here touches a file system, so a hostile name can do no harm before it was refused.

mod build;
mod compare;
mod merge;
mod scan;
mod selinux;
mod transform;
mod view;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::layers::Mtime;

pub(crate) use build::{Builder, EMPTY_DIRECTORY, HEX, Leaf, Links, check_name, object_path, path_error};
pub use compare::{Differences, compare};
pub use merge::Merge;
pub use scan::{ScanOptions, scan};
pub use view::{Child, Found, Inode, Kind, ObjectPath, Regular, Walk};

/// Type bits of `st_mode`, and the seven types.
pub(crate) mod kind {
    pub const MASK: u16 = 0o170_000;
    pub const REGULAR: u16 = 0o100_000;
    pub const DIRECTORY: u16 = 0o040_000;
    pub const SYMLINK: u16 = 0o120_000;
    pub const CHAR: u16 = 0o020_000;
    pub const BLOCK: u16 = 0o060_000;
    pub const FIFO: u16 = 0o010_000;
    pub const SOCKET: u16 = 0o140_000;
}

/// The longest name in a folder, in bytes.
pub const NAME_MAX: usize = 255;

/// The number of an inode in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A run of bytes in the tree's arena; of at most 4 GiB, since millions of these lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub(crate) const fn len(self) -> usize {
        self.len as usize
    }

    /// The run's bytes in the arena that it was made in.
    pub(crate) fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start as usize..self.start as usize + self.len()]
    }
}

/// Where overlayfs finds a regular file's content, when it is not in the image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload {
    /// Nowhere: reads as zeros.
    None,
    /// The object that the digest names, `ab/cdef…`.
    Object,
    /// This path, as a dump said.
    Text(Span),
}

/// What an inode holds, by type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Data {
    /// A run of [`Tree::entries`].
    Directory { first: u32, count: u32 },
    /// Content in the image.
    Inline(Span),
    /// Content elsewhere, more than 0 bytes; the digest's run is 0, 32 or 64 bytes.
    External { payload: Payload, digest: Span },
    /// Target.
    Symlink(Span),
    /// Character or block device number.
    Device(u32),
    /// Pipe or socket.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// Type and permissions.
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Bytes of a regular file or symbolic link; of other types whatever a dump said.
    pub size: u64,
    /// Run of [`Tree::xattrs`], sorted by key, each key once.
    pub xattrs: (u32, u32),
    pub data: Data,
}

impl Node {
    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.data, Data::Directory { .. })
    }
}

/// A folder's entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub name: Span,
    pub node: NodeId,
    /// Not the original: the inode's place in an image is at another entry.
    pub link: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Xattr {
    pub key: Span,
    pub value: Span,
}

/// A complete tree. Made by [`Merge`], [`scan`], [`crate::image::dump::parse`] or [`crate::image::reader::read`].
#[derive(Clone, Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) bytes: Vec<u8>,
}

impl Tree {
    /// The root folder.
    pub fn root(&self) -> Inode<'_> {
        self.inode(NodeId::ROOT)
    }

    /// An inode of this tree. Panics on a number of another tree that is out of range.
    pub fn inode(&self, id: NodeId) -> Inode<'_> {
        Inode::new(self, id)
    }

    /// What is at `path`, not following symbolic links, neither on the way nor at its end. Empty names and `.` are
    /// skipped; `..` is found nowhere.
    pub fn lookup(&self, path: impl AsRef<[u8]>) -> Option<Inode<'_>> {
        let mut at = self.root();
        for name in path.as_ref().split(|b| *b == b'/') {
            if !matches!(name, b"" | b".") {
                at = at.child(name)?;
            }
        }
        Some(at)
    }

    /// What is at `path`, following symbolic links inside the tree, where the root is the tree's. At most 40 links.
    pub fn resolve(&self, path: impl AsRef<[u8]>) -> Option<Inode<'_>> {
        let mut rest: Vec<&[u8]> = path.as_ref().split(|b| *b == b'/').rev().collect();
        let mut stack = vec![self.root()];
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    stack.truncate(stack.len().max(2) - 1);
                    continue;
                }
                _ => {}
            }
            let next = stack.last()?.child(name)?;
            if let Kind::Symlink(target) = next.kind() {
                links += 1;
                if links > 40 {
                    return None;
                }
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                rest.extend(target.split(|b| *b == b'/').rev());
            } else {
                stack.push(next);
            }
        }
        stack.pop()
    }

    /// Every entry with its path, a folder before what is in it, names in byte order; the root first.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    /// How many entries there are, the root included; hard links count each.
    pub fn len(&self) -> usize {
        self.entries().count() + 1
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.root().children().next().is_none()
    }

    /// The objects that files of this tree name, one for each inode; the same object may come more than once.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.files().map(|(id, _)| id)
    }

    /// As [`Self::objects`], each with the size that the file has here.
    pub fn files(&self) -> impl Iterator<Item = (ObjectId, u64)> + '_ {
        self.entries()
            .filter(|(_, entry)| !entry.link)
            .filter_map(|(_, entry)| match self.inode(entry.node).kind() {
                Kind::Regular(Regular::External { id, size, .. }) => Some((id?, size)),
                _ => None,
            })
    }

    /// Live entries with their folder, breadth first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (NodeId, Entry)> + '_ {
        let mut folders = std::collections::VecDeque::from([NodeId::ROOT]);
        let mut run = (NodeId::ROOT, 0..0);
        std::iter::from_fn(move || {
            loop {
                if let Some(at) = run.1.next() {
                    let entry = self.entries[at];
                    if self.nodes[entry.node.index()].is_dir() {
                        folders.push_back(entry.node);
                    }
                    return Some((run.0, entry));
                }
                let folder = folders.pop_front()?;
                run = (folder, self.run(folder));
            }
        })
    }

    /// The entries of a folder, as a range of `entries`; empty for other inodes.
    pub(crate) fn run(&self, folder: NodeId) -> std::ops::Range<usize> {
        match self.nodes[folder.index()].data {
            Data::Directory { first, count } => first as usize..first as usize + count as usize,
            _ => 0..0,
        }
    }

    pub(crate) fn get(&self, span: Span) -> &[u8] {
        span.of(&self.bytes)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }
}

pub(crate) fn push_bytes(arena: &mut Vec<u8>, bytes: &[u8]) -> Result<Span> {
    // The end is counted, so that no start and no length is beyond what a span can say.
    count(arena.len() + bytes.len())?;
    let span = Span {
        start: count(arena.len())?,
        len: count(bytes.len())?,
    };
    arena.extend_from_slice(bytes);
    Ok(span)
}

/// A number of things as the tree counts them.
pub(crate) fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Tree {
        path: "/".into(),
        why: format!("{n} is more than a tree can hold (4294967295)"),
    })
}

/// An object's id from its raw digest; the length tells the algorithm.
pub(crate) fn object_id(raw: &[u8]) -> Option<ObjectId> {
    [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .find_map(|algorithm| ObjectId::from_bytes(algorithm, raw))
}
