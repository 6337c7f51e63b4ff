//! Layers into one tree.
//!
//! The rules are those of the OCI image specification (layer.md) and, where it is silent, of podman's overlay driver,
//! with one difference: no name is ever reached through a symbolic link.
//!
//! * A folder over a folder replaces its metadata and keeps what is in it; anything else over anything replaces it.
//! * `.wh.NAME` and `.wh..wh..opq` hide what earlier layers have, wherever in their layer they stand; what their own
//!   layer has stays. Whiteouts of what is not there do nothing. `.wh..wh.*` but for the opaque mark is AUFS's own
//!   bookkeeping and is skipped.
//! * A missing folder is made: 0755, root:root, mtime 0 (podman takes the time of the pull, which no digest could
//!   stand).
//! * An entry below something that is no folder: what an earlier layer put there gives way to a folder, as it does
//!   under overlayfs; in its own layer it is an error (podman follows links there).
//! * A hard link names what is at its target now, in this or an earlier layer, never a folder.
//!
//! Invariant: what the tree holds has valid names only; `..`, NUL and names over 255 bytes are refused, leading
//! slashes are dropped.

use std::collections::HashSet;

use super::{
    Builder, Data, EMPTY_DIRECTORY, Leaf, Links, NAME_MAX, Node, NodeId, ObjectPath, Tree, check_name, kind, path_error,
};
use crate::error::Result;
use crate::layers::{Content, Entry, Item, Meta, Mtime};

/// Merges layers in their order.
#[derive(Debug)]
pub struct Merge {
    builder: Builder,
    /// The number of the layer that is being applied, from 1.
    layer: u32,
    /// The folder of the entry before, and its path.
    folder: (Vec<u8>, NodeId),
    /// Folders from which this layer has hidden everything earlier.
    cleared: HashSet<NodeId>,
}

impl Default for Merge {
    fn default() -> Self {
        Self::new()
    }
}

impl Merge {
    /// An empty root: 0755, root:root, mtime 0.
    pub fn new() -> Self {
        let mut builder = Builder::new();
        *builder.node_mut(NodeId::ROOT) = implied();
        Self {
            builder,
            layer: 0,
            folder: (Vec::new(), NodeId::ROOT),
            cleared: HashSet::new(),
        }
    }

    /// Applies one layer on top of those before it.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] with the path of an entry that is refused; what comes out of `entries`, as it is.
    pub fn layer(&mut self, entries: impl IntoIterator<Item = Result<Entry>>) -> Result<()> {
        self.layer += 1;
        self.cleared.clear();
        self.folder = (Vec::new(), NodeId::ROOT);
        for entry in entries {
            self.entry(&entry?)?;
        }
        Ok(())
    }

    /// The merged tree.
    pub fn finish(self) -> Result<Tree> {
        self.builder.finish(Links::Counted)
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let names = names(&entry.path).map_err(|why| path_error(&entry.path, why))?;
        let Some((name, parents)) = names.split_last() else {
            return self.root(entry);
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(entry, parents, hidden);
        }
        let node = match &entry.item {
            Item::Hardlink(target) => Some(self.target(entry, target)?),
            _ => None,
        };
        let folder = self.folder(entry, parents)?;
        self.put(entry, folder, name, node)
    }

    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.item != Item::Directory {
            return Err(path_error(
                b"/",
                "a layer has something that is no folder in place of the root",
            ));
        }
        let node = self.node(&entry.meta, kind::DIRECTORY, 0, self.builder.node(NodeId::ROOT).data)?;
        *self.builder.node_mut(NodeId::ROOT) = node;
        Ok(())
    }

    /// Puts an inode, given or made of the entry, at a name.
    fn put(&mut self, entry: &Entry, folder: NodeId, name: &[u8], node: Option<NodeId>) -> Result<()> {
        if let Some(slot) = self.builder.find(folder, name) {
            let there = self.builder.slot(slot).node;
            if entry.item == Item::Directory && self.builder.node(there).is_dir() {
                let node = self.node(&entry.meta, kind::DIRECTORY, 0, self.builder.node(there).data)?;
                *self.builder.node_mut(there) = node;
                self.builder.slot_mut(slot).layer = self.layer;
                return Ok(());
            }
            self.remove(slot);
        }
        let node = match node {
            Some(node) => node,
            None => {
                let node = self.inode(entry)?;
                self.builder.push(node)?
            }
        };
        self.builder.insert(folder, name, node, false, self.layer)?;
        Ok(())
    }

    fn inode(&mut self, entry: &Entry) -> Result<Node> {
        let refuse = |why: &str| Err(path_error(&entry.path, why));
        let (kind, size, leaf) = match &entry.item {
            Item::Directory => return self.node(&entry.meta, kind::DIRECTORY, 0, EMPTY_DIRECTORY),
            Item::Regular(Content::Inline(content)) => (kind::REGULAR, content.len() as u64, Leaf::Inline(content)),
            Item::Regular(Content::Object { size: 0, .. }) => (kind::REGULAR, 0, Leaf::Inline(b"")),
            Item::Regular(Content::Object { id, size }) => {
                let leaf = Leaf::External {
                    payload: Some(ObjectPath::OfDigest),
                    digest: id.as_bytes(),
                };
                (kind::REGULAR, *size, leaf)
            }
            Item::Symlink(target) if target.is_empty() || target.len() > 4095 || target.contains(&0) => {
                return refuse("a symbolic link whose target is empty, over 4095 bytes long or has a NUL byte");
            }
            Item::Symlink(target) => (kind::SYMLINK, target.len() as u64, Leaf::Symlink(target)),
            Item::Hardlink(_) => return refuse("a hard link without target"),
            Item::CharDevice(number) => (kind::CHAR, 0, Leaf::Device(*number)),
            Item::BlockDevice(number) => (kind::BLOCK, 0, Leaf::Device(*number)),
            Item::Fifo => (kind::FIFO, 0, Leaf::Nothing),
        };
        let data = self.builder.data(leaf)?;
        self.node(&entry.meta, kind, size, data)
    }

    fn node(&mut self, meta: &Meta, kind: u16, size: u64, data: Data) -> Result<Node> {
        let xattrs = meta.xattrs.iter().map(|(key, value)| (&**key, &**value));
        Ok(Node {
            mode: kind | u16::try_from(meta.mode & 0o7777).unwrap_or(0),
            nlink: 1,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            size,
            xattrs: self.builder.xattrs(xattrs)?,
            data,
        })
    }

    /// What a hard link names.
    fn target(&self, entry: &Entry, target: &[u8]) -> Result<NodeId> {
        let refuse = |why: &str| {
            let target = String::from_utf8_lossy(target);
            path_error(&entry.path, format!("a hard link to {target:?}, {why}"))
        };
        let mut at = NodeId::ROOT;
        for name in names(target).map_err(|why| refuse(&format!("which has {why}")))? {
            let slot = self.builder.find(at, name);
            at = slot
                .map(|slot| self.builder.slot(slot).node)
                .ok_or_else(|| refuse("which neither an earlier layer nor an earlier entry of this layer has there"))?;
        }
        if self.builder.node(at).is_dir() {
            return Err(refuse("which is a folder"));
        }
        Ok(at)
    }

    /// The folder at a path; made where it is missing.
    fn folder(&mut self, entry: &Entry, names: &[&[u8]]) -> Result<NodeId> {
        let path = names.join(&b'/');
        if self.folder.0 == path && !path.is_empty() {
            return Ok(self.folder.1);
        }
        let mut at = NodeId::ROOT;
        for name in names {
            if name.starts_with(b".wh.") {
                return Err(path_error(&entry.path, "an entry below a whiteout"));
            }
            let slot = match self.builder.find(at, name) {
                Some(slot) => self.as_folder(entry, at, name, slot)?,
                None => self.imply(at, name)?,
            };
            self.builder.slot_mut(slot).touched = self.layer;
            at = self.builder.slot(slot).node;
        }
        self.folder = (path, at);
        Ok(at)
    }

    fn as_folder(&mut self, entry: &Entry, parent: NodeId, name: &[u8], slot: u32) -> Result<u32> {
        let there = *self.builder.slot(slot);
        if self.builder.node(there.node).is_dir() {
            return Ok(slot);
        }
        if there.layer < self.layer {
            self.remove(slot);
            return self.imply(parent, name);
        }
        let name = String::from_utf8_lossy(name);
        Err(path_error(
            &entry.path,
            format!("{name:?} in this path is no folder in the same layer, and links are not followed"),
        ))
    }

    fn imply(&mut self, parent: NodeId, name: &[u8]) -> Result<u32> {
        let node = self.builder.push(implied())?;
        self.builder.insert(parent, name, node, false, self.layer)
    }

    /// `hidden` is the name after `.wh.`.
    fn whiteout(&mut self, entry: &Entry, parents: &[&[u8]], hidden: &[u8]) -> Result<()> {
        let mut folder = NodeId::ROOT;
        for name in parents {
            match self.builder.find(folder, name) {
                Some(slot) => folder = self.builder.slot(slot).node,
                None => return Ok(()),
            }
        }
        if hidden == b".wh..opq" {
            self.hide_in(folder);
            return Ok(());
        }
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        check_name(hidden).map_err(|why| path_error(&entry.path, format!("a whiteout of {why}")))?;
        if let Some(left) = self.builder.find(folder, hidden).and_then(|slot| self.hide(slot)) {
            self.hide_in(left);
        }
        Ok(())
    }

    /// Hides everything that earlier layers have in a folder, at any depth.
    fn hide_in(&mut self, folder: NodeId) {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            if self.builder.node(folder).is_dir() && self.cleared.insert(folder) {
                let slots: Vec<u32> = self.builder.children(folder).collect();
                folders.extend(slots.into_iter().filter_map(|slot| self.hide(slot)));
            }
        }
    }

    /// Hides what earlier layers have at an entry; what is left is this layer's own and may have earlier things in it.
    fn hide(&mut self, slot: u32) -> Option<NodeId> {
        let there = *self.builder.slot(slot);
        if there.layer == self.layer {
            return Some(there.node);
        }
        if there.touched == self.layer && self.builder.node(there.node).is_dir() {
            // This layer has entries in it, but not the folder itself: it becomes one that is only implied.
            let data = self.builder.node(there.node).data;
            *self.builder.node_mut(there.node) = Node { data, ..implied() };
            self.builder.slot_mut(slot).layer = self.layer;
            return Some(there.node);
        }
        self.remove(slot);
        None
    }

    fn remove(&mut self, slot: u32) {
        self.builder.remove(slot);
        self.folder = (Vec::new(), NodeId::ROOT);
    }
}

/// A folder that no layer describes.
fn implied() -> Node {
    Node {
        mode: kind::DIRECTORY | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        size: 0,
        xattrs: (0, 0),
        data: EMPTY_DIRECTORY,
    }
}

/// The names of a path as an archive has it; empty for the root.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        if !matches!(name, b"" | b".") {
            // A whiteout's own name is one in archives only.
            let hidden = name.strip_prefix(b".wh.").filter(|_| name.len() > NAME_MAX);
            check_name(hidden.unwrap_or(name))?;
            names.push(name);
        }
    }
    Ok(names)
}
