//! The file system tree of an image, in memory.
//!
//! One arena: inodes, folder entries, attributes and the bytes of names and values lie in four vectors, and refer to
//! each other by number. A folder's entries are one sorted run. Several entries may name one inode (hard links);
//! exactly one of them, the *original*, is where the inode stands in an image.
//!
//! Invariant: every name is 1..=255 bytes without `/` and NUL and is neither `.` nor `..`; folders form a tree under
//! the root. Nothing here touches a file system, so a hostile name can do no harm before it was refused.

mod build;
mod merge;
mod scan;
mod selinux;
mod transform;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::layers::Mtime;

pub(crate) use build::{Builder, EMPTY_DIRECTORY, Leaf, Links, check_name, hex_digit, path_error};
pub use merge::Merge;
pub use scan::{ScanOptions, scan};

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

/// A run of bytes in the tree's arena.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    start: usize,
    len: u32,
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
        Inode { tree: self, id }
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
        Walk {
            tree: self,
            path: Vec::new(),
            stack: Vec::new(),
            started: false,
        }
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
        self.entries()
            .filter(|(_, entry)| !entry.link)
            .filter_map(|(_, entry)| match self.inode(entry.node).kind() {
                Kind::Regular(Regular::External { id, .. }) => id,
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
        &self.bytes[span.start..span.start + span.len as usize]
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }
}

pub(crate) fn push_bytes(arena: &mut Vec<u8>, bytes: &[u8]) -> Result<Span> {
    let span = Span {
        start: arena.len(),
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

/// An inode, with its tree.
#[derive(Clone, Copy)]
pub struct Inode<'t> {
    tree: &'t Tree,
    id: NodeId,
}

impl std::fmt::Debug for Inode<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inode")
            .field("id", &self.id)
            .field("kind", &self.kind())
            .finish()
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'t> {
    /// Folder.
    Directory,
    /// Regular file.
    Regular(Regular<'t>),
    /// Symbolic link to this target.
    Symlink(&'t [u8]),
    /// Character device with the kernel's 32-bit number; 0 is overlayfs' whiteout.
    CharDevice(u32),
    /// Block device with the kernel's 32-bit number.
    BlockDevice(u32),
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Where a regular file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regular<'t> {
    /// In the image; may be empty.
    Inline(&'t [u8]),
    /// In an object.
    External {
        /// Bytes, more than 0.
        size: u64,
        /// The fs-verity digest that overlayfs checks; `None` where the image has none.
        id: Option<ObjectId>,
        /// The path below the object store; `None` where the image names none: such a file reads as zeros. Borrowed
        /// only where it differs from the object's own path.
        payload: Option<ObjectPath<'t>>,
    },
}

/// Where below the object store a file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectPath<'t> {
    /// At the path that the digest gives: `ab/cdef…`.
    OfDigest,
    /// Elsewhere, as a dump or image said.
    Text(&'t [u8]),
}

impl<'t> Inode<'t> {
    /// Its number.
    pub fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn node(&self) -> &'t Node {
        self.tree.node(self.id)
    }

    /// Type and permission bits, as in `st_mode`.
    pub fn mode(&self) -> u32 {
        self.node().mode.into()
    }

    /// Permission bits, 07777.
    pub fn permissions(&self) -> u32 {
        self.mode() & 0o7777
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.node().uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.node().gid
    }

    /// Modification time.
    pub fn mtime(&self) -> Mtime {
        self.node().mtime
    }

    /// Hard links; for a folder 2 and one for each folder in it.
    pub fn nlink(&self) -> u32 {
        if self.node().is_dir() {
            let folders = self.children().filter(|c| c.inode.is_dir()).count();
            return u32::try_from(folders).unwrap_or(u32::MAX).saturating_add(2);
        }
        self.node().nlink
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        self.node().is_dir()
    }

    /// Bytes of a regular file, length of a symbolic link's target, 0 otherwise.
    pub fn size(&self) -> u64 {
        match self.kind() {
            Kind::Regular(Regular::Inline(content)) => content.len() as u64,
            Kind::Regular(Regular::External { size, .. }) => size,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind<'t> {
        let node = self.node();
        match node.data {
            Data::Directory { .. } => Kind::Directory,
            Data::Inline(span) => Kind::Regular(Regular::Inline(self.tree.get(span))),
            Data::External { payload, digest } => Kind::Regular(Regular::External {
                size: node.size,
                id: object_id(self.tree.get(digest)),
                payload: match payload {
                    Payload::None => None,
                    Payload::Object => Some(ObjectPath::OfDigest),
                    Payload::Text(span) => Some(ObjectPath::Text(self.tree.get(span))),
                },
            }),
            Data::Symlink(span) => Kind::Symlink(self.tree.get(span)),
            Data::Device(number) if node.mode & kind::MASK == kind::CHAR => Kind::CharDevice(number),
            Data::Device(number) => Kind::BlockDevice(number),
            Data::Nothing if node.mode & kind::MASK == kind::FIFO => Kind::Fifo,
            Data::Nothing => Kind::Socket,
        }
    }

    /// A folder's entries in byte order of their names; none for other inodes.
    pub fn children(&self) -> impl Iterator<Item = Child<'t>> + use<'t> {
        let tree = self.tree;
        tree.entries[tree.run(self.id)].iter().map(move |entry| Child {
            name: tree.get(entry.name),
            inode: tree.inode(entry.node),
            link: entry.link,
        })
    }

    /// A folder's entry of that name; a symbolic link itself, not its target.
    pub fn child(&self, name: &[u8]) -> Option<Self> {
        let run = &self.tree.entries[self.tree.run(self.id)];
        let at = run.binary_search_by(|e| self.tree.get(e.name).cmp(name)).ok()?;
        Some(self.tree.inode(run[at].node))
    }

    /// Extended attributes, key and value, in byte order of the keys.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'t [u8], &'t [u8])> + use<'t> {
        let tree = self.tree;
        let (first, end) = self.node().xattrs;
        tree.xattrs[first as usize..end as usize]
            .iter()
            .map(move |x| (tree.get(x.key), tree.get(x.value)))
    }

    /// One extended attribute.
    pub fn xattr(&self, key: &[u8]) -> Option<&'t [u8]> {
        self.xattrs().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// A regular file's bytes, objects by `read`; `None` for other inodes. What names no object is an error.
    pub fn content(&self, read: &dyn Fn(&ObjectId) -> Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        match self.kind() {
            Kind::Regular(Regular::Inline(content)) => Ok(Some(content.to_vec())),
            Kind::Regular(Regular::External { id: Some(id), .. }) => read(&id).map(Some),
            Kind::Regular(Regular::External { id: None, .. }) => Err(Error::Object {
                id: "none".into(),
                why: "a file of this image names no object; its content cannot be found".into(),
            }),
            _ => Ok(None),
        }
    }
}

/// A folder's entry.
#[derive(Clone, Copy, Debug)]
pub struct Child<'t> {
    /// Its name.
    pub name: &'t [u8],
    /// What it names.
    pub inode: Inode<'t>,
    /// A further hard link: the inode's original is another entry.
    pub link: bool,
}

/// An entry met on a [`Tree::walk`].
#[derive(Clone, Debug)]
pub struct Found<'t> {
    /// Absolute path; `/` for the root.
    pub path: Vec<u8>,
    /// What is there.
    pub inode: Inode<'t>,
    /// A further hard link: the inode's original is another entry.
    pub link: bool,
}

/// Iterator of [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'t> {
    tree: &'t Tree,
    path: Vec<u8>,
    /// Entries still to come, and how long the path of their folder is.
    stack: Vec<(std::ops::Range<usize>, usize)>,
    started: bool,
}

impl<'t> Iterator for Walk<'t> {
    type Item = Found<'t>;

    fn next(&mut self) -> Option<Found<'t>> {
        if !self.started {
            self.started = true;
            self.stack.push((self.tree.run(NodeId::ROOT), 0));
            return Some(Found {
                path: b"/".to_vec(),
                inode: self.tree.root(),
                link: false,
            });
        }
        loop {
            let (run, len) = self.stack.last_mut()?;
            self.path.truncate(*len);
            let Some(at) = run.next() else {
                self.stack.pop();
                continue;
            };
            let entry = self.tree.entries[at];
            self.path.push(b'/');
            self.path.extend_from_slice(self.tree.get(entry.name));
            let inode = self.tree.inode(entry.node);
            if inode.is_dir() {
                self.stack.push((self.tree.run(entry.node), self.path.len()));
            }
            return Some(Found {
                path: self.path.clone(),
                inode,
                link: entry.link,
            });
        }
    }
}

/// An object's id from its raw digest; the length tells the algorithm.
pub(crate) fn object_id(raw: &[u8]) -> Option<ObjectId> {
    [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .find_map(|algorithm| ObjectId::from_bytes(algorithm, raw))
}
