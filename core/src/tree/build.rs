//! A tree that still grows: entries in any order, replaced and removed, found by one hash table for all folders.
//!
//! Invariant: an entry in the table is alive and the only one of its name in its folder. What was removed, with all
//! below it, is only forgotten: [`Builder::finish`] keeps what can still be reached from the root.

use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{Data, Entry, NAME_MAX, Node, NodeId, ObjectPath, Payload, Span, Tree, Xattr, count, kind, push_bytes};
use crate::error::{Error, Result};
use crate::layers::Mtime;
use crate::sys::memory::prefer_huge_pages;

/// No entry.
const NONE: u32 = u32::MAX;

/// An entry while the tree grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    parent: NodeId,
    name: Span,
    pub node: NodeId,
    pub link: bool,
    dead: bool,
    /// The layer that put it here, or confirmed it.
    pub layer: u32,
    /// The last layer that has something below it.
    pub touched: u32,
    /// The next one in the folder, in the order of adding.
    next: u32,
}

/// What an inode that is no folder holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leaf<'a> {
    Inline(&'a [u8]),
    /// A raw digest of 0, 32 or 64 bytes.
    External {
        payload: Option<ObjectPath<'a>>,
        digest: &'a [u8],
    },
    Symlink(&'a [u8]),
    Device(u32),
    Nothing,
}

/// Which entry of several is an inode's original, and what its link count is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// As the entries and inodes say.
    Given,
    /// The first in depth-first order of names; the count is that of the entries.
    Counted,
}

#[derive(Debug)]
pub(crate) struct Builder {
    nodes: Vec<Node>,
    xattrs: Vec<Xattr>,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Builder {
    /// With a root folder, all of whose metadata is 0.
    pub fn new() -> Self {
        let root = Node {
            mode: kind::DIRECTORY,
            nlink: 2,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            size: 0,
            xattrs: (0, 0),
            data: EMPTY_DIRECTORY,
        };
        Self {
            nodes: vec![root],
            xattrs: Vec::new(),
            bytes: Vec::new(),
            slots: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Makes room for about this many entries and bytes of names and values.
    pub fn reserve(&mut self, entries: usize, bytes: usize) {
        self.nodes.reserve(entries);
        self.slots.reserve(entries);
        self.bytes.reserve(bytes);
        prefer_huge_pages(&self.nodes);
        prefer_huge_pages(&self.slots);
        prefer_huge_pages(&self.bytes);
        let Self {
            index,
            hasher,
            slots,
            bytes,
            ..
        } = self;
        index.reserve(entries, |slot| hash_slot(hasher, slots, bytes, *slot));
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    pub fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    pub fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    /// The entry of that name in a folder.
    pub fn find(&self, folder: NodeId, name: &[u8]) -> Option<u32> {
        let hash = hash(&self.hasher, folder, name);
        let same = |slot: &u32| {
            let slot = &self.slots[*slot as usize];
            slot.parent == folder && get(&self.bytes, slot.name) == name
        };
        self.index.find(hash, same).copied()
    }

    /// Adds an entry. The name is valid; `None` where the folder has it already.
    pub fn add(&mut self, folder: NodeId, name: &[u8], node: NodeId, link: bool, layer: u32) -> Result<Option<u32>> {
        let slot = count(self.slots.len())?;
        let Self {
            index,
            hasher,
            slots,
            bytes,
            nodes,
            ..
        } = self;
        let same = |slot: &u32| {
            let slot = &slots[*slot as usize];
            slot.parent == folder && get(bytes, slot.name) == name
        };
        let rehash = |slot: &u32| hash_slot(hasher, slots, bytes, *slot);
        match index.entry(hash(hasher, folder, name), same, rehash) {
            hashbrown::hash_table::Entry::Occupied(_) => return Ok(None),
            hashbrown::hash_table::Entry::Vacant(place) => _ = place.insert(slot),
        }
        slots.push(Slot {
            parent: folder,
            name: push_bytes(bytes, name)?,
            node,
            link,
            dead: false,
            layer,
            touched: 0,
            next: NONE,
        });
        if let Data::Directory { first, count: last } = &mut nodes[folder.index()].data {
            if *first == NONE {
                *first = slot;
            } else {
                slots[*last as usize].next = slot;
            }
            *last = slot;
        }
        Ok(Some(slot))
    }

    /// Adds an entry whose name is not yet in the folder. The name is valid.
    pub fn insert(&mut self, folder: NodeId, name: &[u8], node: NodeId, link: bool, layer: u32) -> Result<u32> {
        let added = self.add(folder, name, node, link, layer)?;
        added.ok_or_else(|| path_error(name, "the folder has an entry of this name already"))
    }

    /// Takes an entry out, with all that only it leads to.
    pub fn remove(&mut self, slot: u32) {
        let Slot { parent, name, .. } = self.slots[slot as usize];
        let hash = hash(&self.hasher, parent, get(&self.bytes, name));
        if let Ok(found) = self.index.find_entry(hash, |at| *at == slot) {
            found.remove();
        }
        self.slots[slot as usize].dead = true;
    }

    /// The live entries of a folder, in the order of adding.
    pub fn children(&self, folder: NodeId) -> impl Iterator<Item = u32> + '_ {
        let mut next = match self.node(folder).data {
            Data::Directory { first, .. } => first,
            _ => NONE,
        };
        std::iter::from_fn(move || {
            loop {
                let at = (next != NONE).then_some(next)?;
                let slot = &self.slots[at as usize];
                next = slot.next;
                if !slot.dead {
                    return Some(at);
                }
            }
        })
    }

    /// Adds an inode, without an entry.
    pub fn push(&mut self, node: Node) -> Result<NodeId> {
        let id = count(self.nodes.len())?;
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    /// Keeps what a leaf holds; a text that is the digest's own object path is not kept.
    pub fn data(&mut self, leaf: Leaf<'_>) -> Result<Data> {
        Ok(match leaf {
            Leaf::Inline(content) => Data::Inline(push_bytes(&mut self.bytes, content)?),
            Leaf::Symlink(target) => Data::Symlink(push_bytes(&mut self.bytes, target)?),
            Leaf::Device(number) => Data::Device(number),
            Leaf::Nothing => Data::Nothing,
            Leaf::External { payload, digest } => Data::External {
                digest: push_bytes(&mut self.bytes, digest)?,
                payload: match payload {
                    None => Payload::None,
                    Some(ObjectPath::OfDigest) => Payload::Object,
                    Some(ObjectPath::Text(text)) if is_object_path(text, digest) => Payload::Object,
                    Some(ObjectPath::Text(text)) => Payload::Text(push_bytes(&mut self.bytes, text)?),
                },
            },
        })
    }

    /// Keeps extended attributes; of a repeated key the last value.
    pub fn xattrs<'a, K>(&mut self, xattrs: impl IntoIterator<Item = (K, &'a [u8])>) -> Result<(u32, u32)>
    where
        K: AsRef<[u8]>,
    {
        let first = self.xattrs.len();
        let mut last = first.checked_sub(1).map(|at| self.xattrs[at]);
        for (key, value) in xattrs {
            let xattr = Xattr {
                key: self.same_or_new(last.map(|x| x.key), key.as_ref())?,
                value: self.same_or_new(last.map(|x| x.value), value)?,
            };
            last = Some(xattr);
            self.xattrs.push(xattr);
        }
        self.sort_xattrs(first)
    }

    /// As [`Self::xattrs`], of names and values that are kept already.
    pub fn kept_xattrs(&mut self, xattrs: &[Xattr]) -> Result<(u32, u32)> {
        let first = self.xattrs.len();
        self.xattrs.extend_from_slice(xattrs);
        self.sort_xattrs(first)
    }

    /// Keeps bytes.
    pub fn keep(&mut self, bytes: &[u8]) -> Result<Span> {
        push_bytes(&mut self.bytes, bytes)
    }

    /// Bytes that are kept.
    pub fn kept(&self, span: Span) -> &[u8] {
        get(&self.bytes, span)
    }

    /// A run of attributes of an inode.
    pub fn xattr_run(&self, run: (u32, u32)) -> &[Xattr] {
        &self.xattrs[run.0 as usize..run.1 as usize]
    }

    fn sort_xattrs(&mut self, first: usize) -> Result<(u32, u32)> {
        if self.xattrs.len() > first + 1 {
            let bytes = &self.bytes;
            let added = &mut self.xattrs[first..];
            // Stable and reversed, so that of equal keys the one given last comes first and is kept.
            added.reverse();
            added.sort_by(|a, b| get(bytes, a.key).cmp(get(bytes, b.key)));
            let mut kept = first;
            for at in first..self.xattrs.len() {
                if kept == first || get(bytes, self.xattrs[kept - 1].key) != get(bytes, self.xattrs[at].key) {
                    self.xattrs[kept] = self.xattrs[at];
                    kept += 1;
                }
            }
            self.xattrs.truncate(kept);
        }
        Ok((count(first)?, count(self.xattrs.len())?))
    }

    fn same_or_new(&mut self, last: Option<Span>, bytes: &[u8]) -> Result<Span> {
        match last {
            Some(span) if get(&self.bytes, span) == bytes => Ok(span),
            _ => push_bytes(&mut self.bytes, bytes),
        }
    }

    /// The finished tree: what the root leads to.
    pub fn finish(self, links: Links) -> Result<Tree> {
        let Self {
            mut nodes,
            xattrs,
            bytes,
            slots,
            index,
            ..
        } = self;
        drop(index);
        let mut entries: Vec<Entry> = Vec::with_capacity(slots.len());
        let mut folders = vec![NodeId::ROOT];
        while let Some(folder) = folders.pop() {
            let first = entries.len();
            if let Data::Directory { first: mut at, .. } = nodes[folder.index()].data {
                while at != NONE {
                    let slot = &slots[at as usize];
                    at = slot.next;
                    if slot.dead {
                        continue;
                    }
                    entries.push(Entry {
                        name: slot.name,
                        node: slot.node,
                        link: slot.link,
                    });
                    if nodes[slot.node.index()].is_dir() {
                        folders.push(slot.node);
                    }
                }
            }
            let by_name = |a: &Entry, b: &Entry| get(&bytes, a.name).cmp(get(&bytes, b.name));
            if !entries[first..].is_sorted_by(|a, b| by_name(a, b).is_lt()) {
                entries[first..].sort_unstable_by(by_name);
            }
            nodes[folder.index()].data = Data::Directory {
                first: count(first)?,
                count: count(entries.len() - first)?,
            };
        }
        let mut tree = Tree {
            nodes,
            entries,
            xattrs,
            bytes,
        };
        if links == Links::Counted {
            tree.count_links();
        }
        Ok(tree)
    }
}

pub(crate) const EMPTY_DIRECTORY: Data = Data::Directory {
    first: NONE,
    count: NONE,
};

impl Tree {
    /// Chooses originals and counts links: the first entry of an inode in depth-first order of names is its original.
    pub(crate) fn count_links(&mut self) {
        for node in &mut self.nodes {
            if !node.is_dir() {
                node.nlink = 0;
            }
        }
        let mut stack = vec![self.run(NodeId::ROOT)];
        while let Some(run) = stack.last_mut() {
            let Some(at) = run.next() else {
                stack.pop();
                continue;
            };
            let id = self.entries[at].node;
            let node = &mut self.nodes[id.index()];
            if node.is_dir() {
                stack.push(self.run(id));
            } else {
                self.entries[at].link = node.nlink > 0;
                node.nlink += 1;
            }
        }
    }
}

fn get(bytes: &[u8], span: Span) -> &[u8] {
    span.of(bytes)
}

fn hash(hasher: &DefaultHashBuilder, folder: NodeId, name: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(folder.0);
    state.write(name);
    state.finish()
}

fn hash_slot(hasher: &DefaultHashBuilder, slots: &[Slot], bytes: &[u8], slot: u32) -> u64 {
    let slot = &slots[slot as usize];
    hash(hasher, slot.parent, get(bytes, slot.name))
}

/// Whether `text` is `ab/cdef…` of the raw digest.
fn is_object_path(text: &[u8], digest: &[u8]) -> bool {
    !digest.is_empty() && text == object_path(digest, &mut [0; 129])
}

/// `ab/cdef…` of a raw digest of at most 64 bytes; what is beyond them is left out.
pub(crate) fn object_path<'p>(digest: &[u8], path: &'p mut [u8; 129]) -> &'p [u8] {
    let Some((first, rest)) = digest[..digest.len().min(64)].split_first() else {
        return &[];
    };
    path[..2].copy_from_slice(&HEX[usize::from(*first)]);
    path[2] = b'/';
    for (digits, byte) in path[3..].as_chunks_mut::<2>().0.iter_mut().zip(rest) {
        *digits = HEX[usize::from(*byte)];
    }
    // Of one byte it has no slash.
    let len = if rest.is_empty() { 2 } else { 3 + 2 * rest.len() };
    &path[..len]
}

/// Every byte's two lower-case hex digits.
pub(crate) const HEX: [[u8; 2]; 256] = {
    let mut digits = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        digits[byte] = [b"0123456789abcdef"[byte >> 4], b"0123456789abcdef"[byte & 15]];
        byte += 1;
    }
    digits
};

/// Refuses what cannot be a name in a folder.
pub(crate) fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("an empty name"),
        b"." | b".." => Err("the name . or .."),
        _ if name.len() > NAME_MAX => Err("a name of more than 255 bytes"),
        _ if name.iter().any(|b| matches!(b, 0 | b'/')) => Err("a name with a NUL byte or slash"),
        _ => Ok(()),
    }
}

/// An error about a path inside the tree.
pub(crate) fn path_error(path: &[u8], why: impl Into<String>) -> Error {
    Error::Tree {
        path: OsStr::from_bytes(path).into(),
        why: why.into(),
    }
}
