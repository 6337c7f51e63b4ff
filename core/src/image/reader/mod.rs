//! Reads an image back into the tree that it was made of: overlayfs' own attributes, escapes, hidden whiteouts and the
//! names `00` to `ff` are undone, as `composefs-info dump` does.
//!
//! Takes images of mkcomposefs (versions 0 and 1) and of composefs-rs (version 2, too).
//!
//! Invariant: hostile bytes cannot do more than be refused. Every offset is checked, every folder is read once, and
//! what folders, contents and attributes take together is bounded by the image's length, so that parts that overlap
//! cannot multiply. Nothing recurses.

mod bytes;
mod whiteouts;

use std::collections::{HashMap, HashSet, VecDeque};

use crate::image::format::{
    ESCAPED, LAYOUT_CHUNKS, LUSTRE, METACOPY, OVERLAY, PREFIXES, REDIRECT, WHITEOUT, stub_names,
};
use bytes::{Image, Inode, little};

use crate::error::Result;
use crate::tree::{
    Builder, Data, EMPTY_DIRECTORY, Leaf, Links, Node, NodeId, ObjectPath, Tree, Xattr, check_name, kind,
};

/// The tree of an image.
///
/// # Errors
/// [`crate::Error::Image`] for anything that no image writer makes.
pub fn read(image: &[u8]) -> Result<Tree> {
    let image = Image::open(image)?;
    Reader::new(image, None)?.run()
}

/// The tree of an image with nothing in its root but `name`. Inodes that have names elsewhere, too, keep their link
/// counts.
///
/// # Errors
/// As [`read`], for what was read.
pub fn read_part<'a>(image: &'a [u8], name: &'a [u8]) -> Result<Tree> {
    let image = Image::open(image)?;
    Reader::new(image, Some(name))?.run()
}

/// What an attribute is to composefs.
#[derive(Clone, Copy)]
enum Role<'a> {
    /// The file's own.
    Own(Xattr),
    Metacopy(&'a [u8]),
    Redirect(&'a [u8]),
    /// Says that a regular file stands for a whiteout.
    Whiteout(Xattr),
    /// overlayfs' own on the image, made again by the writer.
    Dropped,
}

/// An inode that was met.
struct Met {
    node: NodeId,
    /// Whether an entry was met where the inode would stand in an image of ours.
    claimed: bool,
    /// Entries that may be its original: such ones, or all while there is none.
    entries: Vec<u32>,
}

struct Reader<'a> {
    image: Image<'a>,
    /// What of the root is read; everything where unset.
    only: Option<&'a [u8]>,
    builder: Builder,
    nodes: HashMap<u64, Met>,
    /// Folders with a whiteout, and its entry.
    whiteouts: Vec<(NodeId, u32)>,
    /// Those of the inodes taken for whiteouts that are regular files in the image.
    hidden: HashSet<NodeId>,
    /// Attributes of the shared table, each kept once.
    shared: HashMap<u64, Role<'a>>,
    folders: VecDeque<(Inode, NodeId)>,
    /// The number that the next new inode has in an image of ours.
    next: u32,
    /// Bytes that folders, contents and attributes may still take.
    budget: u64,
}

impl<'a> Reader<'a> {
    fn new(image: Image<'a>, only: Option<&'a [u8]>) -> Result<Self> {
        let mut reader = Self {
            image,
            only,
            builder: Builder::new(),
            nodes: HashMap::new(),
            whiteouts: Vec::new(),
            hidden: HashSet::new(),
            shared: HashMap::new(),
            folders: VecDeque::new(),
            next: 1,
            budget: image.bytes.len() as u64,
        };
        let root = image.inode(image.root)?;
        if root.kind() != kind::DIRECTORY {
            return Err(root.error("the root is no folder"));
        }
        *reader.builder.node_mut(NodeId::ROOT) = reader.node(&root)?;
        let met = Met {
            node: NodeId::ROOT,
            claimed: true,
            entries: Vec::new(),
        };
        reader.nodes.insert(root.nid, met);
        reader.folders.push_back((root, NodeId::ROOT));
        Ok(reader)
    }

    fn run(mut self) -> Result<Tree> {
        while let Some((inode, folder)) = self.folders.pop_front() {
            let [blocks, tail] = self.image.data(&inode)?;
            self.spend(&inode, blocks.len() + tail.len())?;
            for block in blocks.chunks(4096).chain(Some(tail).filter(|t| !t.is_empty())) {
                self.block(&inode, folder, block)?;
            }
        }
        let bare = self.bare_whiteouts();
        self.choose_originals(&bare);
        self.undo_whiteouts(&bare)?;
        self.builder.finish(Links::Given)
    }

    fn spend(&mut self, inode: &Inode, len: usize) -> Result<()> {
        let left = self.budget.checked_sub(len as u64);
        self.budget = left.ok_or_else(|| inode.error("the image says that it holds more than its own length"))?;
        Ok(())
    }

    /// Entries of one block.
    fn block(&mut self, inode: &Inode, folder: NodeId, block: &'a [u8]) -> Result<()> {
        let refuse = |why: &str| inode.error(why);
        let offset = |at: usize| -> Result<usize> {
            let bytes = block.get(at * 12 + 8..at * 12 + 10);
            bytes
                .map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
                .ok_or_else(|| refuse("an entry is cut off"))
        };
        let names = offset(0)?;
        if names < 12 || names % 12 != 0 || names > block.len() {
            return Err(refuse("its entries do not say where their names are"));
        }
        for at in 0..names / 12 {
            let start = offset(at)?;
            let name = if (at + 1) * 12 < names {
                block.get(start..offset(at + 1)?)
            } else {
                block
                    .get(start..)
                    .map(|rest| rest.split(|b| *b == 0).next().unwrap_or_default())
            };
            let name = name
                .filter(|_| start >= names)
                .ok_or_else(|| refuse("the name of an entry is outside of it"))?;
            let skipped = folder == NodeId::ROOT && self.only.is_some_and(|only| only != name);
            if !skipped && !matches!(name, b"." | b"..") {
                check_name(name).map_err(|why| refuse(&format!("it has {why}")))?;
                self.entry(folder, name, little(&block[at * 12..at * 12 + 8]))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, folder: NodeId, name: &[u8], nid: u64) -> Result<()> {
        let inode = self.image.inode(nid)?;
        let is_next = inode.ino == self.next;
        if inode.kind() == kind::CHAR && inode.union == 0 && self.image.version < 2 {
            // Only the names 00 to ff are left as what overlayfs takes for whiteouts.
            if folder == NodeId::ROOT && stub_names().iter().any(|stub| *stub == *name) {
                self.next += u32::from(is_next);
                return Ok(());
            }
        }
        let node = match self.nodes.get(&nid) {
            Some(met) if self.builder.node(met.node).is_dir() => {
                return Err(inode.error("a folder has more than one name"));
            }
            Some(met) => met.node,
            None => {
                let node = self.node(&inode)?;
                let hidden = inode.kind() == kind::REGULAR && node.mode & kind::MASK == kind::CHAR;
                let id = self.builder.push(node)?;
                if hidden {
                    self.hidden.insert(id);
                }
                id
            }
        };
        let slot = self.builder.add(folder, name, node, true, 0)?;
        let slot = slot.ok_or_else(|| inode.error("two entries of one folder have the same name"))?;
        let met = self.nodes.entry(nid).or_insert_with(|| Met {
            node,
            claimed: false,
            entries: Vec::new(),
        });
        // While no other inode came in between, each further entry could be the original as well.
        let still = met.claimed && inode.ino.checked_add(1) == Some(self.next);
        if is_next && !met.claimed {
            met.claimed = true;
            met.entries.clear();
            self.next += 1;
        }
        if !met.claimed || is_next || still {
            met.entries.push(slot);
        }
        if self.builder.node(node).is_dir() {
            self.folders.push_back((inode, node));
        }
        if self.is_whiteout(node) {
            self.whiteouts.push((folder, slot));
        }
        Ok(())
    }

    /// Of the entries that may be an inode's original, the first in depth-first order is; of a whiteout's, one that
    /// its folder tells of.
    fn choose_originals(&mut self, bare: &HashSet<u32>) {
        let ranks = self.depth_first();
        for met in self.nodes.values() {
            let order = |slot: &&u32| (bare.contains(slot), ranks.get(slot));
            if let Some(first) = met.entries.iter().min_by_key(order) {
                self.builder.slot_mut(*first).link = false;
            }
        }
    }

    /// The place in depth-first order of every entry; none where no inode has two.
    fn depth_first(&self) -> HashMap<u32, usize> {
        let mut ranks = HashMap::new();
        if self.nodes.values().all(|met| met.entries.len() < 2) {
            return ranks;
        }
        let children = |folder| self.builder.children(folder).collect::<Vec<u32>>().into_iter();
        let mut stack = vec![children(NodeId::ROOT)];
        while let Some(run) = stack.last_mut() {
            match run.next() {
                None => _ = stack.pop(),
                Some(slot) => {
                    ranks.insert(slot, ranks.len());
                    stack.push(children(self.builder.slot(slot).node));
                }
            }
        }
        ranks
    }

    fn node(&mut self, inode: &Inode) -> Result<Node> {
        let mut own = Vec::new();
        let (mut metacopy, mut redirect, mut whiteout) = (&b""[..], &b""[..], false);
        for role in self.attributes(inode)? {
            match role {
                Role::Own(xattr) => own.push(xattr),
                Role::Metacopy(value) => metacopy = value,
                Role::Redirect(value) => redirect = value,
                Role::Whiteout(xattr) => {
                    whiteout = true;
                    own.push(xattr);
                }
                Role::Dropped => {}
            }
        }
        let mut mode = inode.mode;
        let mut size = 0;
        let data = match inode.kind() {
            kind::REGULAR if whiteout && self.may_be_whiteout(inode, &own) => {
                mode = kind::CHAR | mode & !kind::MASK;
                own.retain(|x| !whiteouts::is_mark(self.builder.kept(x.key)));
                Data::Device(0)
            }
            kind::DIRECTORY => EMPTY_DIRECTORY,
            kind::REGULAR if inode.layout == LAYOUT_CHUNKS => {
                size = inode.size;
                self.external(inode, metacopy, redirect)?
            }
            kind::REGULAR | kind::SYMLINK => {
                size = inode.size;
                self.content(inode)?
            }
            kind::CHAR | kind::BLOCK | kind::FIFO | kind::SOCKET => {
                size = self.size_of_special(inode);
                match inode.kind() {
                    kind::CHAR | kind::BLOCK => Data::Device(inode.union),
                    _ => Data::Nothing,
                }
            }
            _ => return Err(inode.error("its type is unknown")),
        };
        Ok(Node {
            mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            size,
            xattrs: self.builder.kept_xattrs(&own)?,
            data,
        })
    }

    /// A dump may say a size of a device, pipe or socket; of that an image keeps only whether it is too large for a
    /// short inode.
    fn size_of_special(&self, inode: &Inode) -> u64 {
        let small = [inode.uid, inode.gid, inode.nlink]
            .iter()
            .all(|n| *n <= u32::from(u16::MAX));
        let fits = small && inode.mtime == self.image.build_time;
        if inode.extended && fits && self.image.version < 2 {
            1 << 32
        } else {
            0
        }
    }

    fn content(&mut self, inode: &Inode) -> Result<Data> {
        let [blocks, tail] = self.image.data(inode)?;
        self.spend(inode, blocks.len() + tail.len())?;
        let content = [blocks, tail].concat();
        if inode.kind() == kind::REGULAR {
            return self.builder.data(Leaf::Inline(&content));
        }
        if content.is_empty() || content.len() > 4095 || content.contains(&0) {
            return Err(inode.error("a symbolic link's target is empty, over 4095 bytes long or has a NUL byte"));
        }
        self.builder.data(Leaf::Symlink(&content))
    }

    fn external(&mut self, inode: &Inode, metacopy: &[u8], redirect: &[u8]) -> Result<Data> {
        if inode.size == 0 {
            return self.builder.data(Leaf::Inline(b""));
        }
        let digest = match metacopy {
            [] => metacopy,
            [0, 36, 0, 1, digest @ ..] if digest.len() == 32 => digest,
            [0, 68, 0, 2, digest @ ..] if digest.len() == 64 => digest,
            _ => return Err(inode.error("its digest record is unknown")),
        };
        let payload = redirect.strip_prefix(b"/").unwrap_or(redirect);
        if payload.len() > 4095 || payload.contains(&0) {
            return Err(inode.error("the path of its content is over 4095 bytes long or has a NUL byte"));
        }
        self.builder.data(Leaf::External {
            payload: Some(payload).filter(|p| !p.is_empty()).map(ObjectPath::Text),
            digest,
        })
    }

    fn attributes(&mut self, inode: &Inode) -> Result<Vec<Role<'a>>> {
        if inode.attributes_len == 0 {
            return Ok(Vec::new());
        }
        let body = self.image.get(inode.attributes, inode.attributes_len)?;
        self.spend(inode, body.len())?;
        let count = usize::from(body[4]);
        let references = body.get(12..12 + 4 * count);
        let references = references.ok_or_else(|| inode.error("its attributes are cut off"))?;
        let mut found = Vec::new();
        for reference in references.chunks(4) {
            let offset = self.image.attributes + 4 * little(reference);
            let shared = match self.shared.get(&offset) {
                Some(shared) => *shared,
                None => {
                    let header = self.image.get(offset, 4)?;
                    let len = 4 + u64::from(header[0]) + little(&header[2..4]);
                    let bytes = self.image.get(offset, len)?;
                    self.spend(inode, bytes.len())?;
                    let (shared, _) = self.attribute(inode, bytes)?;
                    self.shared.insert(offset, shared);
                    shared
                }
            };
            found.push(shared);
        }
        let mut rest = &body[12 + 4 * count..];
        while rest.len() >= 4 {
            if rest[..4] == [0; 4] {
                rest = &rest[4..];
                continue;
            }
            let (attribute, len) = self.attribute(inode, rest)?;
            found.push(attribute);
            rest = &rest[len.min(rest.len())..];
        }
        Ok(found)
    }

    /// An attribute at the start of `bytes`, and how many of them it takes.
    fn attribute(&mut self, inode: &Inode, bytes: &'a [u8]) -> Result<(Role<'a>, usize)> {
        let value_at = 4 + usize::from(bytes[0]);
        let end = value_at + usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        let suffix = bytes.get(4..value_at).zip(bytes.get(value_at..end));
        let (suffix, value) = suffix.ok_or_else(|| inode.error("an attribute is cut off"))?;
        let prefix = match bytes[1] {
            0 => &b""[..],
            index => PREFIXES
                .iter()
                .chain(&[LUSTRE])
                .find(|(_, i)| *i == index)
                .map(|(prefix, _)| *prefix)
                .ok_or_else(|| inode.error("an attribute's prefix is unknown"))?,
        };
        let key = [prefix, suffix].concat();
        if key.is_empty() || key.contains(&0) {
            return Err(inode.error("an attribute's name is empty or has a NUL byte"));
        }
        let role = match &key[..] {
            METACOPY => Role::Metacopy(value),
            REDIRECT => Role::Redirect(value),
            WHITEOUT => Role::Whiteout(self.keep(&key, value)?),
            _ if key.starts_with(ESCAPED) => Role::Own(self.keep(&key, value)?),
            _ if key.starts_with(OVERLAY) => Role::Dropped,
            _ => Role::Own(self.keep(&key, value)?),
        };
        Ok((role, end.next_multiple_of(4)))
    }

    /// Keeps an attribute under the name that it has in the tree.
    fn keep(&mut self, key: &[u8], value: &[u8]) -> Result<Xattr> {
        let name = match key.strip_prefix(ESCAPED) {
            Some(rest) => [OVERLAY, rest].concat(),
            None => key.to_vec(),
        };
        Ok(Xattr {
            key: self.builder.keep(&name)?,
            value: self.builder.keep(value)?,
        })
    }
}
