//! A tree rewritten for an image: inodes in image order, with the attributes that overlayfs will read.
//!
//! Invariant: everything here follows from the tree and the version alone; hash tables only find equal things and
//! never decide an order. An inode is made of its node each time it is asked for, and only what takes a search is
//! kept: millions of them shall fit into the memory of a small machine.

use super::Versions;
use super::attributes::{Attributes, Marks, Value};
use super::format::{
    self, ACL_ACCESS, ACL_DEFAULT, MAX_CHUNKS, MAX_SHARED, Packing, chunk_count, merge_names, stub_names,
};
use super::inode::{Body, EMPTY, Inode};
use super::pool::{Bytes, Pool, prefix};
use crate::error::{Error, Result};
use crate::layers::Mtime;
use crate::tree::{Data, Node, NodeId, Tree, count, kind, path_error};

const SELINUX: &[u8] = b"security.selinux";

/// All inodes in image order, with their attributes.
pub struct Inodes<'t> {
    tree: &'t Tree,
    pub version: u32,
    pub has_acl: bool,
    /// The oldest modification time, which inodes need not repeat.
    pub min_mtime: Mtime,
    list: Vec<Kept>,
    /// The inode's number of a node of the tree.
    numbers: Vec<u32>,
    /// The inode's number of the folder that an inode is in.
    parents: Vec<u32>,
    /// Names and inode numbers of what the root has.
    root: Vec<(&'t [u8], u32)>,
    /// Attributes in the shared table, in its order.
    pub shared: Vec<u32>,
    lists: Vec<u32>,
    pool: Pool<'t>,
}

/// What is kept of an inode.
#[derive(Clone, Copy)]
struct Kept {
    source: Source,
    /// Where its attributes begin in [`Inodes::lists`]; they end where those of the next inode begin.
    attributes: u32,
    attributes_size: u32,
    blocks: u32,
    tail: u32,
    shared: u8,
}

/// Where an inode comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Source(u32);

impl Source {
    /// One of the names `00` to `ff` in the root.
    const STUB: Self = Self(u32::MAX);

    fn node(self) -> Option<NodeId> {
        (self != Self::STUB).then_some(NodeId(self.0))
    }
}

impl<'t> Inodes<'t> {
    pub fn new(tree: &'t Tree, versions: Versions) -> Result<Self> {
        if versions.min > 1 || versions.max > 1 {
            return Err(Error::Usage(format!(
                "image format versions are 0 and 1, not {} to {}; give --min-version and --max-version accordingly",
                versions.min, versions.max
            )));
        }
        let external = |node: &&Node| matches!(node.data, Data::External { .. });
        let mut inodes = Self {
            tree,
            version: versions.min,
            has_acl: false,
            min_mtime: tree.root().mtime(),
            list: Vec::with_capacity(tree.entries.len() + 257),
            numbers: vec![0; tree.nodes.len()],
            parents: Vec::with_capacity(tree.entries.len() + 257),
            root: Vec::new(),
            shared: Vec::new(),
            lists: Vec::with_capacity(tree.entries.len() * 3),
            pool: Pool::new(tree, tree.nodes.iter().filter(external).count()),
        };
        let hides = inodes.order()?;
        if versions.max >= 1 && !hides.is_empty() {
            inodes.version = 1;
        }
        inodes.attributes(&hides)?;
        inodes.shared = inodes.pool.share()?;
        for number in 0..inodes.list.len() {
            inodes.measure(number)?;
        }
        Ok(inodes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Breadth first from the root, names sorted, links left out; gives the folders that have a whiteout, by number.
    fn order(&mut self) -> Result<Vec<u32>> {
        let tree = self.tree;
        let mut hides = Vec::new();
        self.take(Source(0), 0)?;
        let mut at = 0;
        while at < self.list.len() {
            let number = count(at)?;
            let before = self.list.len();
            match self.list[at].source.node() {
                Some(NodeId::ROOT) => self.order_root()?,
                Some(folder) => {
                    for entry in &tree.entries[tree.run(folder)] {
                        if !entry.link {
                            self.take(Source(entry.node.0), number)?;
                        }
                    }
                }
                None => {}
            }
            let added = self.list[before..].iter();
            if added
                .filter_map(|kept| kept.source.node())
                .any(|id| is_whiteout(tree, id))
            {
                hides.push(number);
            }
            at += 1;
        }
        for (name, number) in &mut self.root {
            if let (u32::MAX, Some(inode)) = (*number, tree.root().child(name)) {
                *number = self.numbers[inode.id().index()];
            }
        }
        Ok(hides)
    }

    fn order_root(&mut self) -> Result<()> {
        let tree = self.tree;
        let entries = tree.entries[tree.run(NodeId::ROOT)].iter();
        let entries = entries.map(|e| (tree.get(e.name), Some((e.node, e.link))));
        let stubs = stub_names().iter().map(|name| (&name[..], None));
        for (name, entry) in merge_names(entries, stubs) {
            let number = match entry {
                None => self.take(Source::STUB, 0)?,
                Some((id, false)) => self.take(Source(id.0), 0)?,
                // Known when all inodes have their numbers.
                Some((_, true)) => u32::MAX,
            };
            self.root.push((name, number));
        }
        Ok(())
    }

    fn take(&mut self, source: Source, parent: u32) -> Result<u32> {
        let number = count(self.list.len())?;
        if let Some(id) = source.node() {
            self.numbers[id.index()] = number;
            self.min_mtime = self.min_mtime.min(self.tree.node(id).mtime);
        }
        self.parents.push(parent);
        self.list.push(Kept {
            source,
            attributes: 0,
            attributes_size: 0,
            blocks: 0,
            tail: 0,
            shared: 0,
        });
        Ok(number)
    }

    /// An inode by its number.
    pub fn get(&self, number: usize) -> Inode<'t> {
        let kept = &self.list[number];
        let mut inode = self.describe(kept.source);
        inode.blocks = kept.blocks;
        inode.tail = kept.tail;
        inode.attributes_size = kept.attributes_size;
        inode.shared = kept.shared;
        if let Body::Directory(_) = inode.body {
            inode.size = u64::from(kept.blocks) * format::BLOCK + u64::from(kept.tail);
        }
        let small = |n: u32| n <= u16::MAX.into();
        inode.compact = inode.mtime == self.min_mtime
            && small(inode.nlink)
            && small(inode.uid)
            && small(inode.gid)
            && inode.size <= u32::MAX.into();
        inode
    }

    /// The type and permissions of an inode.
    pub fn mode(&self, number: u32) -> u16 {
        match self.list[number as usize].source.node() {
            Some(id) if is_whiteout(self.tree, id) => hidden_mode(self.tree.node(id).mode),
            Some(id) => self.tree.node(id).mode,
            None => STUB_MODE,
        }
    }

    /// What follows from its node alone.
    fn describe(&self, source: Source) -> Inode<'t> {
        let Some(id) = source.node() else {
            let root = self.tree.node(NodeId::ROOT);
            return Inode {
                mode: STUB_MODE,
                nlink: 1,
                uid: root.uid,
                gid: root.gid,
                mtime: root.mtime,
                body: Body::Device(0),
                ..EMPTY
            };
        };
        let node = self.tree.node(id);
        let (mut mode, mut nlink, mut size) = (node.mode, node.nlink, node.size);
        let body = match node.data {
            Data::Directory { .. } => {
                nlink = self.tree.inode(id).nlink();
                Body::Directory(id)
            }
            Data::Inline(content) => {
                size = content.len() as u64;
                match self.tree.get(content) {
                    b"" => Body::Nothing,
                    content => Body::Content(content),
                }
            }
            Data::External { .. } => Body::Chunks,
            Data::Symlink(target) => {
                size = target.len() as u64;
                Body::Symlink(self.tree.get(target))
            }
            Data::Device(_) if is_whiteout(self.tree, id) => {
                (mode, size) = (hidden_mode(mode), 0);
                Body::Nothing
            }
            Data::Device(number) => Body::Device(number),
            Data::Nothing => Body::Nothing,
        };
        Inode {
            mode,
            nlink,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            size,
            body,
            ..EMPTY
        }
    }

    /// Makes the attributes of every inode; `hides`: numbers of the folders with a whiteout, in order.
    fn attributes(&mut self, hides: &[u32]) -> Result<()> {
        let tree = self.tree;
        let mut list = Attributes::default();
        for at in 0..self.list.len() {
            let source = self.list[at].source;
            list.clear();
            match source.node() {
                None => {
                    if let Some(label) = tree.root().xattr(SELINUX) {
                        list.label(SELINUX, label);
                    }
                }
                Some(id) => {
                    let node = tree.node(id);
                    let xattrs = &tree.xattrs[node.xattrs.0 as usize..node.xattrs.1 as usize];
                    let is_acl = |key: &[u8]| key == ACL_ACCESS || key == ACL_DEFAULT;
                    self.has_acl |= xattrs.iter().any(|xattr| is_acl(tree.get(xattr.key)));
                    list.of_tree(tree, xattrs);
                    if let Data::External { payload, digest } = node.data {
                        list.of_content(tree, payload, digest);
                    }
                    list.of_marks(Marks {
                        root: id == NodeId::ROOT,
                        whiteout: is_whiteout(tree, id),
                        hides: hides.binary_search(&count(at)?).is_ok(),
                        escapes: self.version >= 1,
                    });
                    list.sort();
                    self.check_attributes(source, &list)?;
                }
            }
            self.list[at].attributes = count(self.lists.len())?;
            for (key, value) in list.iter() {
                let attribute = self.pool.attribute(key, value)?;
                self.lists.push(attribute);
            }
        }
        count(self.lists.len()).map(|_| ())
    }

    fn check_attributes(&self, source: Source, list: &Attributes<'t>) -> Result<()> {
        for (key, value) in list.iter() {
            // What we derive is never too long.
            let Value::Bytes(value) = value else { continue };
            let (_, prefix) = prefix(key);
            if key.is_empty() || key.len() - prefix > 255 || key.contains(&0) {
                return Err(self.too_much(source, "an attribute whose name is empty or has more than 255 bytes"));
            }
            if value.len() > 65535 {
                return Err(self.too_much(source, "an attribute of more than 65535 bytes"));
            }
        }
        Ok(())
    }

    /// Sizes that do not depend on the place: of attributes, entries and tails.
    fn measure(&mut self, number: usize) -> Result<()> {
        let source = self.list[number].source;
        let inode = self.describe(source);
        let mut shared = 0;
        let mut size = 0;
        for attribute in self.attributes_of(number) {
            if self.pool.is_shared(*attribute) && usize::from(shared) < MAX_SHARED {
                shared += 1;
                size += 4;
            } else {
                size += self.pool.size(*attribute);
            }
        }
        if size / 4 + 1 > usize::from(u16::MAX) {
            return Err(self.too_much(source, "extended attributes of more than 262136 bytes"));
        }
        let (blocks, tail) = match inode.body {
            Body::Directory(_) => {
                let packing = self.pack(&inode);
                (packing.blocks, packing.tail)
            }
            Body::Symlink(target) if target.is_empty() || target.len() > 4095 => {
                return Err(self.too_much(source, "a symbolic link whose target is not 1 to 4095 bytes long"));
            }
            Body::Symlink(target) => (0, target.len() as u64),
            Body::Content(content) => match content.len() as u64 {
                size if size % format::BLOCK > format::BLOCK / 2 => (size / format::BLOCK + 1, 0),
                size => (size / format::BLOCK, size % format::BLOCK),
            },
            Body::Chunks if chunk_count(inode.size) > MAX_CHUNKS => {
                return Err(self.too_much(source, "a file of more than 2^53 bytes"));
            }
            Body::Chunks => (0, 4 * chunk_count(inode.size)),
            Body::Device(_) | Body::Nothing => (0, 0),
        };
        let too_large = || self.too_much(source, "data of more than 16 TB");
        let (blocks, tail) = (
            u32::try_from(blocks).map_err(|_| too_large())?,
            u32::try_from(tail).map_err(|_| too_large())?,
        );
        self.list[number] = Kept {
            attributes_size: if size > 0 { count(12 + size)? } else { 0 },
            blocks,
            tail,
            shared,
            ..self.list[number]
        };
        Ok(())
    }

    fn pack(&self, folder: &Inode<'t>) -> Packing {
        let mut packing = Packing::default();
        self.entries(folder, |name, _| _ = packing.add(name.len()));
        packing.done()
    }

    /// Entries of a folder with inode numbers, `.` and `..` among them, in byte order.
    fn entries(&self, folder: &Inode<'t>, mut each: impl FnMut(&'t [u8], u32)) {
        let Body::Directory(id) = folder.body else { return };
        let this = self.numbers[id.index()];
        let parent = self.parents[this as usize];
        let dots = [(&b"."[..], this), (&b".."[..], parent)].into_iter();
        if id == NodeId::ROOT {
            merge_names(self.root.iter().copied(), dots).for_each(|(name, number)| each(name, number));
            return;
        }
        let tree = self.tree;
        let entries = tree.entries[tree.run(id)].iter();
        let entries = entries.map(|e| (tree.get(e.name), self.numbers[e.node.index()]));
        merge_names(entries, dots).for_each(|(name, number)| each(name, number));
    }

    /// A folder's entries in runs that each fill a block; the last run may be the tail.
    pub fn chunks(&self, folder: &Inode<'t>, mut each: impl FnMut(&[(&'t [u8], u32)])) {
        let mut packing = Packing::default();
        let mut run = Vec::new();
        self.entries(folder, |name, number| {
            if packing.add(name.len()) {
                each(&run);
                run.clear();
            }
            run.push((name, number));
        });
        each(&run);
    }

    /// Numbers of an inode's attributes, in the order of their names.
    pub fn attributes_of(&self, number: usize) -> &[u32] {
        let end = self
            .list
            .get(number + 1)
            .map_or(self.lists.len(), |next| next.attributes as usize);
        &self.lists[self.list[number].attributes as usize..end]
    }

    /// Where in the shared table an attribute is; the first `left` shareable ones of an inode are references.
    pub fn shared_offset(&self, attribute: u32, left: &mut u8) -> Option<u32> {
        if !self.pool.is_shared(attribute) || *left == 0 {
            return None;
        }
        *left -= 1;
        Some(self.pool.offset(attribute))
    }

    /// Prefix index, rest of the name, value.
    pub fn attribute(&self, attribute: u32) -> (u8, &[u8], Bytes<'_>) {
        self.pool.get(attribute)
    }

    /// Bytes that an attribute takes.
    pub fn attribute_size(&self, attribute: u32) -> u64 {
        self.pool.size(attribute) as u64
    }

    /// What the kernel asks before it looks for a name: a 0 bit says that a name with this hash is there.
    pub fn name_filter(&self, list: &[u32]) -> u32 {
        !list
            .iter()
            .fold(0, |bits, attribute| bits | self.pool.filter(*attribute))
    }

    fn too_much(&self, source: Source, why: &str) -> Error {
        let id = source.node().unwrap_or(NodeId::ROOT);
        let found = self.tree.walk().find(|found| found.inode.id() == id);
        path_error(
            &found.map(|f| f.path).unwrap_or_default(),
            format!("{why} cannot be in an image"),
        )
    }
}

/// A character device 0:0, which overlayfs takes for a whiteout.
fn is_whiteout(tree: &Tree, id: NodeId) -> bool {
    let node = tree.node(id);
    matches!(node.data, Data::Device(0)) && node.mode & kind::MASK == kind::CHAR
}

/// What stands in the image in place of a whiteout: a regular file.
const fn hidden_mode(mode: u16) -> u16 {
    kind::REGULAR | mode & !kind::MASK
}

/// The names `00` to `ff` of the root are whiteouts.
const STUB_MODE: u16 = kind::CHAR | 0o644;
