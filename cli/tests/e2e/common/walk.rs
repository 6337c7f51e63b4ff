//! A folder as a list of what a user of it can see: for comparing a mounted image with an extracted one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::sha256_file;

/// Everything about one file that an image keeps.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// `f`, `d`, `l`, `c`, `b`, `p`, `s`.
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub rdev: u64,
    pub nlink: u64,
    /// Content's sha256, or a link's target.
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path, in order, of those that are the same file.
    pub same_as: PathBuf,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:o} {}:{} {}.{:09} rdev {} nlink {} {} {:?} same as {}",
            self.kind,
            self.mode,
            self.uid,
            self.gid,
            self.mtime.0,
            self.mtime.1,
            self.rdev,
            self.nlink,
            self.content,
            self.xattrs,
            self.same_as.display()
        )
    }
}

pub type Tree = BTreeMap<PathBuf, Seen>;

/// Everything below `root`, which is the path "".
pub fn walk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        if fs::symlink_metadata(&full).unwrap().is_dir() {
            todo.extend(fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let seen = see(&root.join(&path), &path, &mut links);
        tree.insert(path, seen);
    }
    tree
}

fn see(full: &Path, path: &Path, links: &mut BTreeMap<u64, PathBuf>) -> Seen {
    let meta = fs::symlink_metadata(full).unwrap();
    let kind = meta.file_type();
    let (kind, content) = if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_symlink() {
        ('l', hex_if_odd(fs::read_link(full).unwrap().as_os_str().as_bytes()))
    } else if kind.is_char_device() {
        ('c', String::new())
    } else if kind.is_block_device() {
        ('b', String::new())
    } else if kind.is_fifo() {
        ('p', String::new())
    } else if kind.is_socket() {
        ('s', String::new())
    } else {
        ('f', sha256_file(full))
    };
    let dir = kind == 'd';
    let same_as = if dir || meta.nlink() == 1 {
        path.to_path_buf()
    } else {
        links.entry(meta.ino()).or_insert_with(|| path.to_path_buf()).clone()
    };
    Seen {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        rdev: if matches!(kind, 'c' | 'b') { meta.rdev() } else { 0 },
        // File systems disagree about a folder's.
        nlink: if dir { 0 } else { meta.nlink() },
        content,
        xattrs: xattrs(full),
        same_as,
    }
}

fn hex_if_odd(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| super::hex(bytes))
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let n = match rustix::fs::llistxattr(path, &mut names) {
        Ok(n) => n,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => panic!("{}: {e}", path.display()),
    };
    let mut found = BTreeMap::new();
    for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut value = vec![0_u8; 65536];
        let n = rustix::fs::lgetxattr(path, name.as_str(), &mut value).unwrap();
        value.truncate(n);
        found.insert(name, value);
    }
    found
}

/// What differs, a line each; empty where nothing does.
pub fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let mut all = Vec::new();
    for (path, seen) in left {
        match right.get(path) {
            None => all.push(format!("{}: only in the first: {seen:?}", path.display())),
            Some(other) if other != seen => all.push(format!("{}:\n  {seen:?}\n  {other:?}", path.display())),
            Some(_) => {}
        }
    }
    for (path, seen) in right {
        if !left.contains_key(path) {
            all.push(format!("{}: only in the second: {seen:?}", path.display()));
        }
    }
    all
}
