//! Which of an image's regular files stand for whiteouts.
//!
//! Invariant: what the writer makes of a whiteout is empty, has both attributes without a value, and stands in a
//! folder that says that it has whiteouts. Any other file with such attributes is somebody's file, and is given back
//! as it is: above all with its object, which garbage collection would take away otherwise.

use std::collections::HashSet;

use super::Reader;
use super::bytes::Inode;
use crate::error::Result;
use crate::image::format::{LAYOUT_CHUNKS, USER_OPAQUE, USER_WHITEOUT, USER_WHITEOUTS};
use crate::tree::{Data, Leaf, NodeId, Xattr, kind};

/// What the writer puts on a hidden whiteout, by the names that the tree has for it.
const MARKS: [&[u8]; 2] = [b"trusted.overlay.whiteout", USER_WHITEOUT];

/// Whether an attribute is one of those that say that a file stands for a whiteout.
pub fn is_mark(key: &[u8]) -> bool {
    MARKS.contains(&key)
}

impl Reader<'_> {
    /// Whether a regular file with these attributes looks as the writer makes it of a whiteout.
    pub(super) fn may_be_whiteout(&self, inode: &Inode, own: &[Xattr]) -> bool {
        let has = |mark: &[u8]| {
            own.iter()
                .any(|x| self.builder.kept(x.key) == mark && self.builder.kept(x.value).is_empty())
        };
        self.image.version < 2 && inode.size == 0 && inode.layout != LAYOUT_CHUNKS && MARKS.iter().all(|m| has(m))
    }

    pub(super) fn is_whiteout(&self, id: NodeId) -> bool {
        let node = self.builder.node(id);
        node.mode & kind::MASK == kind::CHAR && matches!(node.data, Data::Device(0))
    }

    /// What the writer puts on a folder with whiteouts.
    fn folder_marks(&self) -> impl Iterator<Item = (&'static [u8], &'static [u8])> + use<> {
        let newer = self.image.version >= 1;
        let made: [(&[u8], &[u8], bool); 4] = [
            (b"trusted.overlay.whiteouts", b"", true),
            (USER_WHITEOUTS, b"", true),
            (b"trusted.overlay.opaque", b"x", newer),
            (USER_OPAQUE, b"x", newer),
        ];
        made.into_iter()
            .filter(|(.., here)| *here)
            .map(|(key, value, _)| (key, value))
    }

    /// Entries of whiteouts in folders that do not say that they have any: links, or files that only look so.
    pub(super) fn bare_whiteouts(&self) -> HashSet<u32> {
        let says = |folder: NodeId| {
            let run = self.builder.xattr_run(self.builder.node(folder).xattrs);
            self.folder_marks().all(|(key, value)| {
                run.iter()
                    .any(|x| self.builder.kept(x.key) == key && self.builder.kept(x.value) == value)
            })
        };
        let bare = self.whiteouts.iter().filter(|(folder, _)| !says(*folder));
        bare.map(|(_, slot)| *slot).collect()
    }

    /// Takes off folders what the writer puts on those with whiteouts; what is none becomes the file that it was.
    pub(super) fn undo_whiteouts(&mut self, bare: &HashSet<u32>) -> Result<()> {
        let mut done = HashSet::new();
        for (folder, slot) in std::mem::take(&mut self.whiteouts) {
            let entry = *self.builder.slot(slot);
            if entry.link {
                continue;
            }
            // Of a part the original may be elsewhere.
            let alone = self.only.is_none() || self.builder.node(entry.node).nlink < 2;
            if alone && bare.contains(&slot) && self.hidden.contains(&entry.node) {
                self.restore(entry.node)?;
            } else if done.insert(folder) {
                self.undo_marks(folder)?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, id: NodeId) -> Result<()> {
        let mut run = self.builder.xattr_run(self.builder.node(id).xattrs).to_vec();
        for mark in MARKS {
            let (key, value) = (self.builder.keep(mark)?, self.builder.keep(b"")?);
            run.push(Xattr { key, value });
        }
        let data = self.builder.data(Leaf::Inline(b""))?;
        let xattrs = self.builder.kept_xattrs(&run)?;
        let node = self.builder.node_mut(id);
        (node.mode, node.data, node.xattrs) = (kind::REGULAR | node.mode & !kind::MASK, data, xattrs);
        Ok(())
    }

    fn undo_marks(&mut self, folder: NodeId) -> Result<()> {
        let builder = &self.builder;
        let is_own = |x: &&Xattr| {
            let (key, value) = (builder.kept(x.key), builder.kept(x.value));
            !self.folder_marks().any(|(k, v)| k == key && v == value)
        };
        let run = builder.xattr_run(builder.node(folder).xattrs);
        let kept: Vec<Xattr> = run.iter().filter(is_own).copied().collect();
        if kept.len() < run.len() {
            let run = self.builder.kept_xattrs(&kept)?;
            self.builder.node_mut(folder).xattrs = run;
        }
        Ok(())
    }
}
