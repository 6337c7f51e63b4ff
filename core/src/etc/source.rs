//! Where the files of a listing come from: an image's tree, or a folder on disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::listing::{Item, Listing, MAX_DEPTH, Node};
use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::layers::{Meta, Mtime};
use crate::sys::checked::Checked;
use crate::sys::dir::{Dir, Stat};
use crate::sys::verity::{self, Hasher};
use crate::tree::{Inode, Kind, Regular, Tree};

/// A listing and the bytes of its files.
pub trait Source {
    /// What there is.
    fn listing(&self) -> &Listing;
    /// The bytes of a regular file of the listing; reading fails at the end where they are not those of its digest
    /// (for an image).
    fn open(&self, path: &Path) -> Result<Box<dyn Read + '_>>;
}

/// Opens an object of the store.
pub type OpenObject<'a> = dyn Fn(&ObjectId) -> Result<Box<dyn Read>> + 'a;

/// A folder of an image.
pub struct TreeSource<'a> {
    listing: Listing,
    tree: &'a Tree,
    base: PathBuf,
    open: &'a OpenObject<'a>,
}

impl std::fmt::Debug for TreeSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeSource")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl<'a> TreeSource<'a> {
    /// The folder `base` (`etc`, `var`) of an image; an empty one (0755, root's) where the image has none.
    ///
    /// # Errors
    /// [`Error::Tree`] where it is no folder, is nested too deeply, or holds a file without a digest.
    pub fn new(tree: &'a Tree, base: &str, algorithm: Algorithm, open: &'a OpenObject<'a>) -> Result<Self> {
        let mut listing = Listing::empty();
        if let Some(top) = tree.lookup(base) {
            if !top.is_dir() {
                return Err(refuse(Path::new(base), "it is not a folder"));
            }
            let mut links = HashMap::new();
            list_tree(&mut listing, top, PathBuf::new(), algorithm, &mut links)?;
        }
        Ok(Self {
            listing,
            tree,
            base: base.into(),
            open,
        })
    }
}

fn refuse(path: &Path, why: &str) -> Error {
    Error::Tree {
        path: path.to_path_buf(),
        why: why.into(),
    }
}

fn list_tree(
    listing: &mut Listing,
    inode: Inode<'_>,
    path: PathBuf,
    algorithm: Algorithm,
    links: &mut HashMap<crate::tree::NodeId, u64>,
) -> Result<()> {
    if path.components().count() > MAX_DEPTH {
        return Err(refuse(&path, "nested too deeply"));
    }
    let item = match inode.kind() {
        Kind::Directory => Item::Directory,
        Kind::Regular(Regular::Inline(content)) => Item::Regular(verity::hash(algorithm, content)),
        Kind::Regular(Regular::External { id: Some(id), .. }) => Item::Regular(id),
        Kind::Regular(Regular::External { id: None, .. }) => {
            return Err(refuse(&path, "the image names no object for its content"));
        }
        Kind::Symlink(target) => Item::Symlink(target.into()),
        Kind::CharDevice(number) => Item::CharDevice(number),
        Kind::BlockDevice(number) => Item::BlockDevice(number),
        Kind::Fifo => Item::Fifo,
        Kind::Socket => Item::Socket,
    };
    let shared = !inode.is_dir() && inode.nlink() > 1;
    let next = links.len() as u64;
    let node = Node {
        item,
        meta: Meta {
            mode: inode.permissions(),
            uid: inode.uid(),
            gid: inode.gid(),
            mtime: inode.mtime(),
            xattrs: inode.xattrs().map(|(key, value)| (key.into(), value.into())).collect(),
        },
        group: shared.then(|| *links.entry(inode.id()).or_insert(next)),
    };
    listing.insert(path.clone(), node);
    for child in inode.children() {
        list_tree(
            listing,
            child.inode,
            path.join(OsStr::from_bytes(child.name)),
            algorithm,
            links,
        )?;
    }
    Ok(())
}

impl Source for TreeSource<'_> {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + '_>> {
        let whole = self.base.join(path);
        let inode = self.tree.lookup(whole.as_os_str().as_bytes());
        match inode.map(|inode| inode.kind()) {
            Some(Kind::Regular(Regular::Inline(content))) => Ok(Box::new(content)),
            Some(Kind::Regular(Regular::External { id: Some(id), .. })) => {
                Ok(Box::new(Checked::new((self.open)(&id)?, id)))
            }
            _ => Err(refuse(&whole, "it is no regular file")),
        }
    }
}

/// A folder on disk, listed once; its files are read when they are asked for.
#[derive(Debug)]
pub struct FolderSource {
    listing: Listing,
    folder: Dir,
}

impl FolderSource {
    /// Lists a folder, which is no link, and hashes its files. Links in it are listed, never followed.
    ///
    /// # Errors
    /// [`Error::Io`] naming what cannot be read.
    pub fn scan(path: &Path, algorithm: Algorithm) -> Result<Self> {
        let folder = Dir::open(path)?;
        let mut listing = Listing::default();
        let meta = meta(&folder.stat_self()?, folder.own_xattrs()?);
        listing.insert(
            PathBuf::new(),
            Node {
                item: Item::Directory,
                meta,
                group: None,
            },
        );
        let mut scan = Scan {
            listing,
            hasher: Hasher::new(algorithm),
            links: HashMap::new(),
        };
        scan.folder(&folder, Path::new(""))?;
        Ok(Self {
            listing: scan.listing,
            folder,
        })
    }
}

impl Source for FolderSource {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + '_>> {
        let folder = self.folder.walk(path.parent().unwrap_or(Path::new("")))?;
        Ok(Box::new(folder.open_file(path.file_name().unwrap_or_default())?))
    }
}

/// Whether something failed since it disappeared while we looked, or made way for something else: then it is simply not
/// there.
pub(super) fn is_gone(error: &Error) -> bool {
    use rustix::io::Errno;
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
    matches!(error, Error::Io { source, .. } if gone.iter().any(|e| source.raw_os_error() == Some(e.raw_os_error())))
}

struct Scan {
    listing: Listing,
    hasher: Hasher,
    links: HashMap<(u64, u64), u64>,
}

impl Scan {
    fn folder(&mut self, folder: &Dir, path: &Path) -> Result<()> {
        if path.components().count() >= MAX_DEPTH {
            return Err(refuse(folder.path(), "nested too deeply"));
        }
        for name in folder.names()? {
            match self.name(folder, &name, path.join(&name)) {
                Err(error) if is_gone(&error) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn name(&mut self, folder: &Dir, name: &OsStr, at: PathBuf) -> Result<()> {
        let Some(stat) = folder.stat(name)? else {
            return Ok(());
        };
        let item = match stat.kind {
            FileType::Directory => Item::Directory,
            FileType::RegularFile => Item::Regular(self.hash(folder, name)?),
            FileType::Symlink => Item::Symlink(folder.read_link(name)?.into()),
            FileType::CharacterDevice => Item::CharDevice(stat.rdev),
            FileType::BlockDevice => Item::BlockDevice(stat.rdev),
            FileType::Fifo => Item::Fifo,
            _ => Item::Socket,
        };
        let is_dir = item == Item::Directory;
        let inner = if is_dir { Some(folder.open_dir(name)?) } else { None };
        let next = self.links.len() as u64;
        let group = (stat.nlink > 1 && !is_dir).then(|| *self.links.entry(stat.inode).or_insert(next));
        let meta = meta(&stat, folder.xattrs(name)?);
        self.listing.insert(at.clone(), Node { item, meta, group });
        match inner {
            Some(inner) => self.folder(&inner, &at),
            None => Ok(()),
        }
    }

    fn hash(&mut self, folder: &Dir, name: &OsStr) -> Result<ObjectId> {
        let mut file = folder.open_file(name)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(self.hasher.finish()),
                Ok(length) => self.hasher.update(&buffer[..length]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", folder.path().join(name), e)),
            }
        }
    }
}

fn meta(stat: &Stat, xattrs: crate::sys::dir::Xattrs) -> Meta {
    Meta {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: Mtime {
            sec: stat.mtime.0,
            nsec: stat.mtime.1,
        },
        xattrs,
    }
}
