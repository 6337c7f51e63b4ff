//! A folder on disk as a tree, by mkcomposefs' rules (format document, 3.2).
//!
//! Metadata is taken as it stands; files of up to 64 bytes go into the tree, larger ones are handed to the caller, who
//! says which object they are. Links are never followed, and nothing is changed. A folder that somebody changes
//! meanwhile gives an error or some state that each of its files had, never a wrong digest: what is hashed is what the
//! object has.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::build::{Builder, Leaf, Links, check_name};
use super::{Data, Node, NodeId, ObjectPath, Tree, kind};
use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::layers::{Mtime, Xattrs};
use crate::sys::dir::{Dir, Stat};

/// Files up to this many bytes are kept in the image.
const INLINE_MAX: u64 = 64;

/// What a scan takes over, and how.
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
    /// Several names of one inode become hard links (mkcomposefs does not do that).
    pub hard_links: bool,
}

/// Scans the folder `dir`. `sink` is given each file of more than 64 bytes, by path, opened at its start, and says
/// which object it is.
///
/// # Errors
/// [`Error::Io`] naming what cannot be read; [`Error::Tree`] for what no image can hold; those of `sink`.
pub fn scan(dir: &Path, options: ScanOptions, sink: &mut dyn FnMut(&Path, File) -> Result<ObjectId>) -> Result<Tree> {
    let top = Dir::open(dir)?;
    let mut scan = Scan {
        builder: Builder::new(),
        options,
        seen: HashMap::new(),
        folders: Vec::new(),
        sink,
    };
    let root = scan.node(&top.stat_self()?, top.own_xattrs()?, super::build::EMPTY_DIRECTORY)?;
    *scan.builder.node_mut(NodeId::ROOT) = root;
    scan.folders.push((dir.to_path_buf(), NodeId::ROOT));
    while let Some((path, folder)) = scan.folders.pop() {
        scan.folder(&path, folder)?;
    }
    let links = if options.hard_links {
        Links::Counted
    } else {
        Links::Given
    };
    scan.builder.finish(links)
}

struct Scan<'a> {
    builder: Builder,
    options: ScanOptions,
    /// Inodes with several names.
    seen: HashMap<(u64, u64), NodeId>,
    /// Still to be looked into.
    folders: Vec<(PathBuf, NodeId)>,
    sink: &'a mut dyn FnMut(&Path, File) -> Result<ObjectId>,
}

impl Scan<'_> {
    fn folder(&mut self, path: &Path, folder: NodeId) -> Result<()> {
        let dir = Dir::open(path)?;
        for name in dir.names()? {
            let at = path.join(&name);
            let stat = dir.stat(&name)?.ok_or_else(|| Error::Tree {
                path: at.clone(),
                why: "has gone while it was read; scan a folder that nobody changes".into(),
            })?;
            let device = matches!(stat.kind, FileType::CharacterDevice | FileType::BlockDevice);
            if device && self.options.skip_devices {
                continue;
            }
            check_name(name.as_bytes()).map_err(|why| Error::Tree {
                path: at.clone(),
                why: why.to_string(),
            })?;
            self.entry(&dir, folder, &name, &at, &stat)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: &Dir, folder: NodeId, name: &OsStr, at: &Path, stat: &Stat) -> Result<()> {
        let shared = self.options.hard_links && stat.nlink > 1 && stat.kind != FileType::Directory;
        if let Some(first) = shared.then(|| self.seen.get(&stat.inode)).flatten() {
            let first = *first;
            self.builder.insert(folder, name.as_bytes(), first, true, 0)?;
            return Ok(());
        }
        let (data, size) = self.data(dir, name, at, stat)?;
        let mut node = self.node(stat, dir.xattrs(name)?, data)?;
        node.size = size;
        let id = self.builder.push(node)?;
        self.builder.insert(folder, name.as_bytes(), id, false, 0)?;
        if stat.kind == FileType::Directory {
            self.folders.push((at.to_path_buf(), id));
        }
        if shared {
            self.seen.insert(stat.inode, id);
        }
        Ok(())
    }

    /// What the inode holds, and its size.
    fn data(&mut self, dir: &Dir, name: &OsStr, at: &Path, stat: &Stat) -> Result<(Data, u64)> {
        let data = match stat.kind {
            FileType::Directory => super::build::EMPTY_DIRECTORY,
            FileType::RegularFile => return self.content(dir, name, at),
            FileType::Symlink => {
                let target = dir.read_link(name)?;
                return Ok((self.builder.data(Leaf::Symlink(&target))?, target.len() as u64));
            }
            FileType::CharacterDevice | FileType::BlockDevice => Data::Device(stat.rdev),
            _ => Data::Nothing,
        };
        Ok((data, 0))
    }

    fn content(&mut self, dir: &Dir, name: &OsStr, at: &Path) -> Result<(Data, u64)> {
        let fail = |e| Error::io("read", at, e);
        let file = dir.open_file(name)?;
        let size = file.metadata().map_err(fail)?.len();
        if size > INLINE_MAX {
            let id = (self.sink)(at, file)?;
            let leaf = Leaf::External {
                payload: Some(ObjectPath::OfDigest),
                digest: id.as_bytes(),
            };
            return Ok((self.builder.data(leaf)?, size));
        }
        let mut content = Vec::new();
        file.take(INLINE_MAX + 1).read_to_end(&mut content).map_err(fail)?;
        if content.len() as u64 != size {
            return Err(fail(std::io::Error::other("its size changed while it was read")));
        }
        Ok((self.builder.data(Leaf::Inline(&content))?, size))
    }

    fn node(&mut self, stat: &Stat, xattrs: Xattrs, data: Data) -> Result<Node> {
        let kept = xattrs
            .iter()
            .filter(|(key, _)| !self.options.skip_xattrs && (!self.options.user_xattrs || key.starts_with(b"user.")));
        let xattrs = self.builder.xattrs(kept.map(|(key, value)| (&**key, &**value)))?;
        let permissions = u16::try_from(stat.mode & 0o7777).unwrap_or_default();
        let mtime = Mtime {
            sec: stat.mtime.0,
            nsec: stat.mtime.1,
        };
        Ok(Node {
            mode: permissions | type_bits(stat.kind),
            nlink: 1,
            uid: stat.uid,
            gid: stat.gid,
            mtime: if self.options.use_epoch {
                Mtime::default()
            } else {
                mtime
            },
            size: 0,
            xattrs,
            data,
        })
    }
}

fn type_bits(found: FileType) -> u16 {
    match found {
        FileType::Directory => kind::DIRECTORY,
        FileType::Symlink => kind::SYMLINK,
        FileType::CharacterDevice => kind::CHAR,
        FileType::BlockDevice => kind::BLOCK,
        FileType::Fifo => kind::FIFO,
        FileType::Socket => kind::SOCKET,
        _ => kind::REGULAR,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::image::dump;
    use crate::sys::verity;

    fn hash(_: &Path, mut file: File) -> Result<ObjectId> {
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        Ok(verity::hash(crate::ids::Algorithm::Sha256, &content))
    }

    fn dumped(options: ScanOptions) -> String {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/inline"), [b'i'; 64]).unwrap();
        std::fs::write(at("object"), [b'o'; 65]).unwrap();
        std::fs::hard_link(at("object"), at("d/second")).unwrap();
        std::fs::write(at("empty"), "").unwrap();
        symlink("d/inline", at("link")).unwrap();
        for (name, mode) in [
            ("", 0o755),
            ("d", 0o700),
            ("object", 0o4755),
            ("d/inline", 0o640),
            ("empty", 0o644),
        ] {
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let tree = scan(folder.path(), options, &mut hash).unwrap();
        let mut text = Vec::new();
        dump::write(&tree, &mut text).unwrap();
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        String::from_utf8(text)
            .unwrap()
            .replace(&format!(" {uid} {gid} "), " U G ")
    }

    #[test]
    fn small_files_are_inline_and_larger_ones_name_their_object() {
        let options = ScanOptions {
            use_epoch: true,
            skip_xattrs: true,
            ..ScanOptions::default()
        };
        let id = verity::hash(crate::ids::Algorithm::Sha256, &[b'o'; 65]);
        let (path, inline) = (id.object_path(), "i".repeat(64));
        let text = dumped(options);
        let without_root = text.split_once('\n').unwrap().1;
        let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = without_root.lines().map(fields).collect();
        let line = |name: &str| lines.iter().find(|fields| fields[0] == name).unwrap().join(" ");
        assert_eq!(
            line("/d/inline"),
            format!("/d/inline 64 100640 1 U G 0 0.0 - {inline} -")
        );
        assert_eq!(line("/object"), format!("/object 65 104755 1 U G 0 0.0 {path} - {id}"));
        assert_eq!(
            line("/d/second"),
            format!("/d/second 65 104755 1 U G 0 0.0 {path} - {id}")
        );
        assert_eq!(line("/empty"), "/empty 0 100644 1 U G 0 0.0 - - -");
        assert!(line("/link").ends_with("0.0 d/inline - -"), "{}", line("/link"));
    }

    #[test]
    fn hard_links_are_found_on_request_only() {
        let with = dumped(ScanOptions {
            hard_links: true,
            ..ScanOptions::default()
        });
        assert_eq!(with.matches(" @").count(), 1, "{with}");
        assert_eq!(dumped(ScanOptions::default()).matches(" @").count(), 0);
    }
}
