//! A folder on disk as a tree, by mkcomposefs' rules.
//!
//! Links are never followed, and every folder is reached by open handles from the first one, so what is changed
//! meanwhile cannot lead out of it. Files of at most 64 bytes are kept in the tree; of larger ones a sink says the
//! digest, and may store them.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::{Builder, EMPTY_DIRECTORY, Leaf, Links, Node, NodeId, ObjectPath, Tree, check_name, kind, path_error};
use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::layers::{INLINE_MAX, Mtime};
use crate::sys::dir::{Dir, Stat, Xattrs};

/// What a scan takes over, and how; all off is what mkcomposefs does.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanOptions {
    /// All modification times 0.
    pub use_epoch: bool,
    /// No extended attributes at all.
    pub skip_xattrs: bool,
    /// Only `user.` attributes.
    pub user_xattrs: bool,
    /// No character and block devices.
    pub skip_devices: bool,
    /// Several names of one inode become hard links, as for a mounted root; mkcomposefs makes a file of each.
    pub hard_links: bool,
}

/// The tree of a folder. `sink` gets every file of more than 64 bytes, with its path, open at its start; it returns the
/// digest, and stores the file where it wants to. Hard-linked files come once with [`ScanOptions::hard_links`].
///
/// # Errors
/// What cannot be read, and files that change meanwhile; what `sink` returns.
pub fn scan(dir: &Path, options: ScanOptions, sink: &mut dyn FnMut(&Path, File) -> Result<ObjectId>) -> Result<Tree> {
    let root = Dir::open(dir)?;
    let mut scan = Scan {
        options,
        sink,
        builder: Builder::new(),
        linked: HashMap::new(),
        folders: VecDeque::from([(PathBuf::new(), NodeId::ROOT)]),
    };
    let xattrs = scan.xattrs(|| root.own_xattrs())?;
    let node = scan.node(&root.stat_self()?, kind::DIRECTORY, &xattrs, None)?;
    *scan.builder.node_mut(NodeId::ROOT) = node;
    while let Some((path, folder)) = scan.folders.pop_front() {
        let open = root.walk(&path)?;
        for name in open.names()? {
            scan.entry(&open, &path, folder, &name)?;
        }
    }
    scan.builder.finish(Links::Counted)
}

struct Scan<'a> {
    options: ScanOptions,
    sink: &'a mut dyn FnMut(&Path, File) -> Result<ObjectId>,
    builder: Builder,
    /// Nodes of inodes with several names, by device and inode number.
    linked: HashMap<(u64, u64), NodeId>,
    /// Folders still to be read, with their path below the first.
    folders: VecDeque<(PathBuf, NodeId)>,
}

impl Scan<'_> {
    fn entry(&mut self, open: &Dir, above: &Path, folder: NodeId, name: &OsStr) -> Result<()> {
        let gone = || Error::io("look at", open.path().join(name), std::io::ErrorKind::NotFound);
        let stat = open.stat(name)?.ok_or_else(gone)?;
        let is_device = matches!(stat.kind, FileType::BlockDevice | FileType::CharacterDevice);
        if self.options.skip_devices && is_device {
            return Ok(());
        }
        let bytes = name.as_bytes();
        check_name(bytes).map_err(|why| path_error(above.join(name).as_os_str().as_bytes(), why))?;
        let may_be_linked = self.options.hard_links && stat.nlink > 1 && stat.kind != FileType::Directory;
        if may_be_linked && let Some(node) = self.linked.get(&stat.inode) {
            self.builder.insert(folder, bytes, *node, true, 0)?;
            return Ok(());
        }
        let node = self.inode(open, name, &stat)?;
        let id = self.builder.push(node)?;
        self.builder.insert(folder, bytes, id, false, 0)?;
        if may_be_linked {
            self.linked.insert(stat.inode, id);
        }
        if stat.kind == FileType::Directory {
            self.folders.push_back((above.join(name), id));
        }
        Ok(())
    }

    fn inode(&mut self, open: &Dir, name: &OsStr, stat: &Stat) -> Result<Node> {
        let xattrs = self.xattrs(|| open.xattrs(name))?;
        match stat.kind {
            FileType::Directory => self.node(stat, kind::DIRECTORY, &xattrs, None),
            FileType::RegularFile => self.file(open, name, stat, &xattrs),
            FileType::Symlink => {
                let target = open.read_link(name)?;
                self.node(stat, kind::SYMLINK, &xattrs, Some(Leaf::Symlink(&target)))
            }
            FileType::CharacterDevice => self.node(stat, kind::CHAR, &xattrs, Some(Leaf::Device(stat.rdev))),
            FileType::BlockDevice => self.node(stat, kind::BLOCK, &xattrs, Some(Leaf::Device(stat.rdev))),
            FileType::Fifo => self.node(stat, kind::FIFO, &xattrs, Some(Leaf::Nothing)),
            FileType::Socket => self.node(stat, kind::SOCKET, &xattrs, Some(Leaf::Nothing)),
            FileType::Unknown => {
                let path = open.path().join(name);
                Err(path_error(
                    path.as_os_str().as_bytes(),
                    "it is of a type that no image can hold",
                ))
            }
        }
    }

    fn file(&mut self, open: &Dir, name: &OsStr, stat: &Stat, xattrs: &Xattrs) -> Result<Node> {
        let path = open.path().join(name);
        let changed = || {
            path_error(
                path.as_os_str().as_bytes(),
                "it changed while it was read; run this again",
            )
        };
        if stat.size == 0 {
            return self.node(stat, kind::REGULAR, xattrs, Some(Leaf::Inline(b"")));
        }
        let file = open.open_file(name)?;
        if stat.size <= INLINE_MAX {
            let mut content = Vec::new();
            let read = file.take(INLINE_MAX + 1).read_to_end(&mut content);
            read.map_err(|e| Error::io("read", &path, e))?;
            if content.len() as u64 != stat.size {
                return Err(changed());
            }
            return self.node(stat, kind::REGULAR, xattrs, Some(Leaf::Inline(&content)));
        }
        let id = (self.sink)(&path, file)?;
        let after = open.stat(name)?;
        if after.is_none_or(|after| (after.size, after.mtime, after.inode) != (stat.size, stat.mtime, stat.inode)) {
            return Err(changed());
        }
        let leaf = Leaf::External {
            payload: Some(ObjectPath::OfDigest),
            digest: id.as_bytes(),
        };
        self.node(stat, kind::REGULAR, xattrs, Some(leaf))
    }

    fn node(&mut self, stat: &Stat, kind: u16, xattrs: &Xattrs, leaf: Option<Leaf<'_>>) -> Result<Node> {
        let (sec, nsec) = if self.options.use_epoch { (0, 0) } else { stat.mtime };
        let is_dir = leaf.is_none();
        Ok(Node {
            mode: kind | u16::try_from(stat.mode & 0o7777).unwrap_or(0),
            nlink: 1,
            uid: stat.uid,
            gid: stat.gid,
            mtime: Mtime { sec, nsec },
            size: if is_dir { 0 } else { stat.size },
            xattrs: self.builder.xattrs(xattrs.iter().map(|(key, value)| (key, &**value)))?,
            data: match leaf {
                None => EMPTY_DIRECTORY,
                Some(leaf) => self.builder.data(leaf)?,
            },
        })
    }

    fn xattrs(&self, read: impl FnOnce() -> Result<Xattrs>) -> Result<Xattrs> {
        if self.options.skip_xattrs {
            return Ok(Vec::new());
        }
        let mut xattrs = read()?;
        xattrs.retain(|(key, _)| !self.options.user_xattrs || key.starts_with(b"user."));
        Ok(xattrs)
    }
}
