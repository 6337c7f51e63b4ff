//! A tree rewritten for an image: inodes in image order, with the attributes that overlayfs will read.
//!
//! Invariant: everything here follows from the tree and the version alone; hash tables only find equal things and
//! never decide an order.

use super::Versions;
use super::format::{
    self, ACL_ACCESS, ACL_DEFAULT, ESCAPED, ESCAPED_OPAQUE, MAX_CHUNKS, MAX_SHARED, METACOPY, OPAQUE, OVERLAY, Packing,
    REDIRECT, USER_OPAQUE, USER_WHITEOUT, USER_WHITEOUTS, WHITEOUT, WHITEOUTS, chunk_count, merge_names, stub_names,
};
use super::inode::{Body, EMPTY, Inode};
use super::pool::{Attributes, Key, Piece, Pool, prefix};
use crate::error::{Error, Result};
use crate::layers::Mtime;
use crate::tree::{Data, Node, NodeId, Payload, Tree, count, kind, path_error, push_object_path};

const SELINUX: &[u8] = b"security.selinux";

/// All inodes in image order, with their attributes.
pub struct Inodes<'t> {
    tree: &'t Tree,
    pub version: u32,
    pub has_acl: bool,
    /// The oldest modification time, which inodes need not repeat.
    pub min_mtime: Mtime,
    pub list: Vec<Inode<'t>>,
    /// The inode's number of a node of the tree.
    numbers: Vec<u32>,
    /// The inode's number of the folder that an inode is in.
    parents: Vec<u32>,
    /// Names and inode numbers of what the root has.
    root: Vec<(&'t [u8], u32)>,
    /// Attributes in the shared table, in its order.
    pub shared: Vec<u32>,
    lists: Vec<u32>,
    pool: Pool,
}

/// Where an inode comes from.
#[derive(Clone, Copy)]
enum Source {
    Node(NodeId),
    /// One of the names `00` to `ff` in the root.
    Stub,
}

impl<'t> Inodes<'t> {
    pub fn new(tree: &'t Tree, versions: Versions) -> Result<Self> {
        if versions.min > 1 || versions.max > 1 {
            return Err(Error::Usage(format!(
                "image format versions are 0 and 1, not {} to {}; give --min-version and --max-version accordingly",
                versions.min, versions.max
            )));
        }
        let mut inodes = Self {
            tree,
            version: versions.min,
            has_acl: false,
            min_mtime: tree.root().mtime(),
            list: Vec::new(),
            numbers: vec![0; tree.nodes.len()],
            parents: vec![0],
            root: Vec::new(),
            shared: Vec::new(),
            lists: Vec::new(),
            pool: Pool::default(),
        };
        let (order, hides) = inodes.order()?;
        if versions.max >= 1 && hides.contains(&true) {
            inodes.version = 1;
        }
        inodes.list.reserve_exact(order.len());
        inodes.lists.reserve(order.len() * 3);
        let external = |node: &&Node| matches!(node.data, Data::External { .. });
        inodes.pool.reserve(tree.nodes.iter().filter(external).count());
        let mut attributes = Attributes::default();
        for (source, hides) in order.iter().zip(hides) {
            attributes.pairs.clear();
            attributes.bytes.clear();
            let mut inode = inodes.inode(*source)?;
            inodes.attributes(*source, hides, &mut attributes)?;
            inode.attributes.0 = count(inodes.lists.len())?;
            for (key, value) in attributes.iter() {
                let attribute = inodes.pool.attribute(key, value)?;
                inodes.lists.push(attribute);
            }
            inode.attributes.1 = count(inodes.lists.len())?;
            inodes.list.push(inode);
        }
        inodes.share()?;
        inodes.measure(&order)?;
        Ok(inodes)
    }

    /// Breadth first from the root, names sorted, links left out; and which folders have a whiteout.
    fn order(&mut self) -> Result<(Vec<Source>, Vec<bool>)> {
        let tree = self.tree;
        let mut order = Vec::with_capacity(tree.entries.len() + 257);
        order.push(Source::Node(NodeId::ROOT));
        let mut hides = vec![false];
        let mut at = 0;
        while at < order.len() {
            let Source::Node(folder) = order[at] else {
                at += 1;
                continue;
            };
            let parent = count(at)?;
            let mut take = |source: Source| -> Result<u32> {
                let number = count(order.len())?;
                if let Source::Node(id) = source {
                    self.numbers[id.index()] = number;
                    hides[at] |= is_whiteout(tree, id);
                    let mtime = tree.node(id).mtime;
                    self.min_mtime = self.min_mtime.min(mtime);
                }
                order.push(source);
                hides.push(false);
                self.parents.push(parent);
                Ok(number)
            };
            if folder == NodeId::ROOT {
                let entries = tree.entries[tree.run(folder)].iter();
                let entries = entries.map(|e| (tree.get(e.name), Some((e.node, e.link))));
                let stubs = stub_names().iter().map(|name| (&name[..], None));
                for (name, entry) in merge_names(entries, stubs) {
                    let number = match entry {
                        None => take(Source::Stub)?,
                        Some((id, false)) => take(Source::Node(id))?,
                        // Known when all inodes have their numbers.
                        Some((_, true)) => u32::MAX,
                    };
                    self.root.push((name, number));
                }
            } else {
                for entry in &tree.entries[tree.run(folder)] {
                    if !entry.link {
                        take(Source::Node(entry.node))?;
                    }
                }
            }
            at += 1;
        }
        for (name, number) in &mut self.root {
            if let (u32::MAX, Some(inode)) = (*number, tree.root().child(name)) {
                *number = self.numbers[inode.id().index()];
            }
        }
        Ok((order, hides))
    }

    fn inode(&self, source: Source) -> Result<Inode<'t>> {
        let root = self.tree.node(NodeId::ROOT);
        let Source::Node(id) = source else {
            return Ok(Inode {
                mode: kind::CHAR | 0o644,
                nlink: 1,
                uid: root.uid,
                gid: root.gid,
                mtime: root.mtime,
                size: 0,
                body: Body::Device(0),
                ..EMPTY
            });
        };
        let node = self.tree.node(id);
        let mut inode = Inode {
            mode: node.mode,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            size: node.size,
            ..EMPTY
        };
        inode.body = match node.data {
            Data::Directory { .. } => {
                inode.nlink = self.tree.inode(id).nlink();
                Body::Directory(id)
            }
            Data::Inline(content) => {
                let content = self.tree.get(content);
                inode.size = content.len() as u64;
                if content.is_empty() {
                    Body::Nothing
                } else {
                    Body::Content(content)
                }
            }
            Data::External { .. } if chunk_count(node.size) > MAX_CHUNKS => {
                return Err(self.too_much(source, "a file of more than 2^53 bytes"));
            }
            Data::External { .. } => Body::Chunks,
            Data::Symlink(target) => {
                let target = self.tree.get(target);
                inode.size = target.len() as u64;
                if target.is_empty() || target.len() > 4095 {
                    return Err(self.too_much(source, "a symbolic link whose target is not 1 to 4095 bytes long"));
                }
                Body::Symlink(target)
            }
            Data::Device(_) if is_whiteout(self.tree, id) => {
                inode.mode = kind::REGULAR | node.mode & !kind::MASK;
                inode.size = 0;
                Body::Nothing
            }
            Data::Device(number) => Body::Device(number),
            Data::Nothing => Body::Nothing,
        };
        Ok(inode)
    }

    /// An inode's attributes in the order of their keys.
    fn attributes(&mut self, source: Source, hides: bool, list: &mut Attributes<'t>) -> Result<()> {
        let tree = self.tree;
        let Source::Node(id) = source else {
            if let Some(label) = tree.root().xattr(SELINUX) {
                list.set(SELINUX, Piece::Of(label));
            }
            return Ok(());
        };
        let node = tree.node(id);
        for xattr in &tree.xattrs[node.xattrs.0 as usize..node.xattrs.1 as usize] {
            let (key, value) = (tree.get(xattr.key), tree.get(xattr.value));
            self.has_acl |= key == ACL_ACCESS || key == ACL_DEFAULT;
            let key = match key.strip_prefix(OVERLAY) {
                Some(rest) => list.own(&[ESCAPED, rest]),
                None => Piece::Of(key),
            };
            list.pairs.push((key, Piece::Of(value)));
        }
        if let Data::External { payload, digest } = node.data {
            let digest = tree.get(digest);
            let record = list.own(&metacopy(digest));
            list.set(METACOPY, record);
            match payload {
                Payload::None => {}
                Payload::Text(text) => {
                    let redirect = list.own(&[b"/", tree.get(text)]);
                    list.set(REDIRECT, redirect);
                }
                Payload::Object => {
                    let start = list.bytes.len();
                    list.bytes.push(b'/');
                    push_object_path(&mut list.bytes, digest);
                    list.set(REDIRECT, Piece::Own(start, list.bytes.len()));
                }
            }
        }
        if is_whiteout(tree, id) {
            list.set(WHITEOUT, Piece::Of(b""));
            list.set(USER_WHITEOUT, Piece::Of(b""));
        }
        if hides {
            list.set(WHITEOUTS, Piece::Of(b""));
            list.set(USER_WHITEOUTS, Piece::Of(b""));
            if self.version >= 1 {
                list.set(ESCAPED_OPAQUE, Piece::Of(b"x"));
                list.set(USER_OPAQUE, Piece::Of(b"x"));
            }
        }
        if id == NodeId::ROOT {
            list.set(OPAQUE, Piece::Of(b"y"));
        }
        list.sort();
        self.check_attributes(source, list)
    }

    fn check_attributes(&self, source: Source, list: &Attributes<'t>) -> Result<()> {
        for (key, value) in list.iter() {
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

    /// Which attributes go to the shared table, and where in it.
    fn share(&mut self) -> Result<()> {
        let pool = &mut self.pool;
        let used = pool.attributes.iter().enumerate().filter(|(_, a)| a.uses > 1);
        self.shared = used.map(|(number, _)| count(number)).collect::<Result<_>>()?;
        self.shared.sort_unstable_by(|a, b| {
            let ((key_a, value_a), (key_b, value_b)) = (pool.get(*a), pool.get(*b));
            let value = || value_b.len().cmp(&value_a.len()).then_with(|| value_b.cmp(value_a));
            key_b.cmp(key_a).then_with(value)
        });
        let mut offset = 0;
        for attribute in &self.shared {
            pool.attributes[*attribute as usize].offset = count(offset)?;
            offset += pool.size(*attribute);
        }
        Ok(())
    }

    /// Sizes that do not depend on the place: of attributes, entries and tails.
    fn measure(&mut self, order: &[Source]) -> Result<()> {
        for (number, source) in order.iter().enumerate() {
            let mut inode = self.list[number];
            let mut shared = 0;
            let mut size = 0;
            for attribute in self.attributes_of(&inode) {
                if self.pool.attributes[*attribute as usize].uses > 1 && usize::from(shared) < MAX_SHARED {
                    shared += 1;
                    size += 4;
                } else {
                    size += self.pool.size(*attribute);
                }
            }
            inode.shared = shared;
            inode.attributes_size = if size > 0 { count(12 + size)? } else { 0 };
            if size / 4 + 1 > usize::from(u16::MAX) {
                return Err(self.too_much(*source, "extended attributes of more than 262136 bytes"));
            }
            let (blocks, tail) = match inode.body {
                Body::Directory(_) => {
                    let packing = self.pack(&inode);
                    inode.size = packing.size();
                    (packing.blocks, packing.tail)
                }
                Body::Symlink(target) => (0, target.len() as u64),
                Body::Content(content) => match content.len() as u64 {
                    size if size % format::BLOCK > format::BLOCK / 2 => (size / format::BLOCK + 1, 0),
                    size => (size / format::BLOCK, size % format::BLOCK),
                },
                Body::Chunks => (0, 4 * chunk_count(inode.size)),
                Body::Device(_) | Body::Nothing => (0, 0),
            };
            inode.blocks = u32::try_from(blocks).map_err(|_| self.too_much(*source, "data of more than 16 TB"))?;
            inode.tail = u32::try_from(tail).map_err(|_| self.too_much(*source, "data of more than 16 TB"))?;
            let small = |n: u32| n <= u16::MAX.into();
            inode.compact = inode.mtime == self.min_mtime
                && small(inode.nlink)
                && small(inode.uid)
                && small(inode.gid)
                && inode.size <= u32::MAX.into();
            self.list[number] = inode;
        }
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

    pub fn attributes_of(&self, inode: &Inode<'_>) -> &[u32] {
        &self.lists[inode.attributes.0 as usize..inode.attributes.1 as usize]
    }

    /// Where in the shared table an attribute is; the first `left` shareable ones of an inode are references.
    pub fn shared_offset(&self, attribute: u32, left: &mut u8) -> Option<u32> {
        let attribute = &self.pool.attributes[attribute as usize];
        if attribute.uses < 2 || *left == 0 {
            return None;
        }
        *left -= 1;
        Some(attribute.offset)
    }

    /// Prefix index, rest of the name, value.
    pub fn attribute(&self, attribute: u32) -> (u8, &[u8], &[u8]) {
        let (key, value) = self.pool.get(attribute);
        let Key { prefix, prefix_len, .. } = self.pool.keys[self.pool.attributes[attribute as usize].key as usize];
        (prefix, &key[prefix_len..], value)
    }

    /// What the kernel asks before it looks for a name: a 0 bit says that a name with this hash is there.
    pub fn name_filter(&self, list: &[u32]) -> u32 {
        let bit = |attribute: &u32| self.pool.keys[self.pool.attributes[*attribute as usize].key as usize].filter;
        !list.iter().fold(0, |bits, attribute| bits | bit(attribute))
    }

    fn too_much(&self, source: Source, why: &str) -> Error {
        let id = match source {
            Source::Node(id) => id,
            Source::Stub => NodeId::ROOT,
        };
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

/// overlayfs' record of a digest (`struct ovl_metacopy`): version, length, flags, algorithm, digest.
fn metacopy(digest: &[u8]) -> [&[u8]; 2] {
    match digest.len() {
        0 => [b"", b""],
        64 => [&[0, 68, 0, 2], digest],
        _ => [&[0, 36, 0, 1], digest],
    }
}
