//! What an image's tree differs in from the merged layers (format document, 4): the two transformations that
//! composefs-rs makes, so that the digests agree with what bootc and image builders compute.
//!
//! Invariant: both follow from the tree alone (and the SELinux policy in it), never from the machine.

use super::selinux::Labels;
use super::{Data, Inode, Node, NodeId, Tree, path_error};
use crate::error::Result;
use crate::ids::ObjectId;
use crate::layers::Mtime;

/// The attributes of container files that an image keeps.
const KEPT: &[u8] = b"security.capability";

impl Tree {
    /// Makes a container's tree independent of how it was built: the root takes `/usr`'s metadata, `/run` is emptied
    /// and takes `/usr`'s time, and of the extended attributes only `security.capability` stays.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] without a folder `/usr`, and when `/run` is something other than a folder.
    pub fn transform_for_oci(&mut self) -> Result<()> {
        self.folder(b"usr", "the image has none: it is no root file system")?;
        if self.root().child(b"run").is_some() {
            self.folder(b"run", "it is no folder, but has to be one")?;
        }
        self.transform_for_container();
        Ok(())
    }

    /// The same for what may be no root file system: a program alone, say. Without `/usr` the root stays as the layers
    /// have it and `/run` takes its time; what is no folder stays.
    pub fn transform_for_container(&mut self) {
        if let Ok(usr) = self.folder(b"usr", "") {
            let usr = *usr.node();
            let root = self.node_mut(NodeId::ROOT);
            *root = Node { data: root.data, ..usr };
        }
        if let Ok(run) = self.folder(b"run", "") {
            self.empty(run.id(), self.root().mtime());
        }
        self.keep_xattrs(KEPT);
        self.count_links();
    }

    /// Makes it bootable: `/boot` and `/sysroot` are emptied and take `/usr`'s time, and everything gets the SELinux
    /// label that the policy in the tree says, or none where there is no policy. `read` gives the whole content of an
    /// object. Comes after [`Self::transform_for_oci`].
    ///
    /// # Errors
    /// [`crate::Error::Tree`] without the folders `/usr`, `/boot` and `/sysroot`, and for a policy that cannot be
    /// understood; what `read` returns.
    pub fn transform_for_boot(&mut self, read: &dyn Fn(&ObjectId) -> Result<Vec<u8>>) -> Result<()> {
        let mtime = self
            .folder(b"usr", "the image has none: it is no root file system")?
            .mtime();
        for name in [&b"boot"[..], b"sysroot"] {
            let why = "a bootable image must have this folder; make it when the image is built";
            let folder = self.folder(name, why)?.id();
            self.empty(folder, mtime);
        }
        self.count_links();
        let labels = Labels::of(self, read)?;
        self.relabel(labels)?;
        self.count_links();
        Ok(())
    }

    fn folder(&self, name: &[u8], why: &str) -> Result<Inode<'_>> {
        let folder = self.root().child(name).filter(Inode::is_dir);
        folder.ok_or_else(|| path_error(&[b"/", name].concat(), why))
    }

    fn empty(&mut self, folder: NodeId, mtime: Mtime) {
        let node = self.node_mut(folder);
        node.data = Data::Directory { first: 0, count: 0 };
        node.mtime = mtime;
    }

    fn keep_xattrs(&mut self, key: &[u8]) {
        for at in 0..self.nodes.len() {
            let (first, end) = self.nodes[at].xattrs;
            let kept = (first..end).find(|x| self.get(self.xattrs[*x as usize].key) == key);
            self.nodes[at].xattrs = kept.map_or((0, 0), |x| (x, x + 1));
        }
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }
}
