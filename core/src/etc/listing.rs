//! What is in a folder, by path: enough to compare two of them and to make one again.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::ffi::OsString;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::ids::{Algorithm, ObjectId};
use crate::layers::Meta;
use crate::sys::verity;

/// Folders nested deeper than this many levels are refused.
pub const MAX_DEPTH: usize = 256;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Folder.
    Directory,
    /// Regular file with this fs-verity digest, in the same algorithm for all listings that are compared.
    Regular(ObjectId),
    /// Symbolic link to this target.
    Symlink(Box<[u8]>),
    /// Character device.
    CharDevice(u32),
    /// Block device.
    BlockDevice(u32),
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl Item {
    /// The letter of `ls -l`.
    fn kind(&self) -> u8 {
        match self {
            Self::Directory => b'd',
            Self::Regular(_) => b'-',
            Self::Symlink(_) => b'l',
            Self::CharDevice(_) => b'c',
            Self::BlockDevice(_) => b'b',
            Self::Fifo => b'p',
            Self::Socket => b's',
        }
    }
}

/// One path of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub item: Item,
    /// Owner, permissions, time, attributes.
    pub meta: Meta,
    /// The same number for all names of one file (hard links); `None` for a file with one name.
    pub group: Option<u64>,
}

impl Node {
    /// A folder.
    pub fn is_dir(&self) -> bool {
        self.item == Item::Directory
    }

    /// A socket.
    pub fn is_socket(&self) -> bool {
        self.item == Item::Socket
    }

    /// Whether it is made where an image has it: devices and sockets are not.
    pub fn is_made(&self) -> bool {
        !matches!(self.item, Item::CharDevice(_) | Item::BlockDevice(_) | Item::Socket)
    }
}

/// Paths relative to the listed folder, which is the empty path itself. Parents of a path are always listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Listing {
    /// A folder with nothing in it, 0755 and root's.
    pub fn empty() -> Self {
        let mut listing = Self::default();
        listing.insert(
            PathBuf::new(),
            Node {
                item: Item::Directory,
                meta: Meta {
                    mode: 0o755,
                    ..Meta::default()
                },
                group: None,
            },
        );
        listing
    }

    /// Adds or replaces a path, whose parent is listed already.
    pub fn insert(&mut self, path: PathBuf, node: Node) {
        self.nodes.insert(path, node);
    }

    /// What is at `path`.
    pub fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// All paths, a folder before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_path(), node))
    }

    /// How many paths there are, the folder itself included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether not even the folder itself is listed.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// `path` and everything below it.
    pub fn subtree<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a Path, &'a Node)> + 'a {
        from(&self.nodes, path)
            .take_while(move |(at, _)| at.starts_with(path))
            .map(|(at, node)| (at.as_path(), node))
    }

    /// The names directly in `path`.
    pub(super) fn names(&self, path: &Path, into: &mut BTreeSet<OsString>) {
        let depth = path.components().count();
        for (at, _) in self.subtree(path) {
            let mut components = at.components().skip(depth);
            if let (Some(name), None) = (components.next(), components.next()) {
                into.insert(name.as_os_str().to_owned());
            }
        }
    }
}

/// The part of a map of paths that begins at `path`.
pub(super) fn from<'a, T>(map: &'a BTreeMap<PathBuf, T>, path: &Path) -> btree_map::Range<'a, PathBuf, T> {
    map.range::<Path, _>((Bound::Included(path), Bound::Unbounded))
}

/// How an image's file is compared with what is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Owners and capabilities on disk are what was asked for. False for an /etc that was written without the right to
    /// set them ([`Report::complete`](super::Report::complete)).
    pub ownership: bool,
}

impl Rules {
    /// Everything is compared.
    pub const STRICT: Self = Self { ownership: true };

    /// Whether both are the same to an administrator: kind, content, permissions, owner and attributes. Not compared:
    /// times, hard links, and what the system sets by itself (SELinux, IMA and EVM attributes, `trusted.`).
    pub fn same(self, a: &Node, b: &Node) -> bool {
        a.item == b.item
            && self.mode(a) == self.mode(b)
            && self.owner(a) == self.owner(b)
            && self.attributes(a).eq(self.attributes(b))
    }

    fn mode(self, node: &Node) -> u32 {
        match node.item {
            // Links have no permissions of their own.
            Item::Symlink(_) => 0,
            _ if self.ownership => node.meta.mode,
            _ => readable_mode(node),
        }
    }

    fn owner(self, node: &Node) -> Option<(u32, u32)> {
        self.ownership.then_some((node.meta.uid, node.meta.gid))
    }

    /// One number for all of that: the same for two that are the same, and for no others.
    pub(super) fn digest(self, node: &Node) -> ObjectId {
        let mut text = Vec::new();
        let mut field = |bytes: &[u8]| {
            text.extend((bytes.len() as u64).to_le_bytes());
            text.extend(bytes);
        };
        field(&[node.item.kind()]);
        match &node.item {
            Item::Directory | Item::Fifo | Item::Socket => {}
            Item::Regular(id) => field(id.as_bytes()),
            Item::Symlink(target) => field(target),
            Item::CharDevice(number) | Item::BlockDevice(number) => field(&number.to_le_bytes()),
        }
        field(&self.mode(node).to_le_bytes());
        if let Some((uid, gid)) = self.owner(node) {
            field(&[uid.to_le_bytes(), gid.to_le_bytes()].concat());
        }
        for (key, value) in self.attributes(node) {
            field(key);
            field(value);
        }
        verity::hash(Algorithm::Sha256, &text)
    }

    fn attributes(self, node: &Node) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut list: Vec<(&[u8], &[u8])> = node.meta.xattrs.iter().map(|(k, v)| (&**k, &**v)).collect();
        list.retain(|(key, _)| match *key {
            b"security.capability" => self.ownership,
            _ => !key.starts_with(b"security.") && !key.starts_with(b"trusted."),
        });
        list.sort_unstable();
        list.into_iter()
    }
}

/// The permissions that a file gets where no privileges help to read it again: its owner may always read it, and
/// change what is in a folder.
pub(super) fn readable_mode(node: &Node) -> u32 {
    match node.item {
        Item::Directory => node.meta.mode | 0o700,
        Item::Regular(_) => node.meta.mode | 0o400,
        _ => node.meta.mode,
    }
}
