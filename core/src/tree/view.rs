//! Looking at a tree: inodes with what they hold, folders' entries, walks.

use super::{Data, Node, NodeId, Payload, Tree, kind, object_id};
use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::layers::Mtime;

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
    pub(super) const fn new(tree: &'t Tree, id: NodeId) -> Self {
        Self { tree, id }
    }

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

impl<'t> Walk<'t> {
    pub(super) const fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            path: Vec::new(),
            stack: Vec::new(),
            started: false,
        }
    }
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
