//! What the layers hold, found without any of our code: GNU tar extracts them as root, one over the other, and the
//! rules of OCI for whiteouts and of composefs for a booted root are applied to that.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::tool;
use super::walk::{Seen, Tree};

/// Extracts layers, lowest first, into an empty folder. Needs root.
pub fn extract(layers: &[PathBuf], into: &Path) {
    for layer in layers {
        make_way(layer, into);
        let how = [
            "--extract",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--delay-directory-restore",
            "--exclude=.wh.*",
        ];
        let whence = [
            OsStr::new("--file"),
            layer.as_os_str(),
            OsStr::new("--directory"),
            into.as_os_str(),
        ];
        tool("tar", how.map(OsStr::new).into_iter().chain(whence));
    }
}

/// Removes what a layer's whiteouts hide, and what stands where it has something of another type.
fn make_way(layer: &Path, into: &Path) {
    let mut archive = tar::Archive::new(fs::File::open(layer).unwrap());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let path = into.join(entry.path().unwrap().strip_prefix(".").unwrap());
        let name = path.file_name().map_or(&b""[..], |n| n.as_bytes());
        if name == b".wh..wh..opq" {
            for child in super::list(path.parent().unwrap()) {
                remove(&child);
            }
        } else if let Some(hidden) = name.strip_prefix(b".wh.") {
            remove(&path.with_file_name(OsStr::from_bytes(hidden)));
        } else if let Ok(there) = fs::symlink_metadata(&path)
            && there.is_dir() != entry.header().entry_type().is_dir()
        {
            remove(&path);
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// What composefs makes of it for a container (`boot` false) or a deployment (`boot` true): the root takes /usr's
/// metadata, /run (and /boot, /sysroot) are empty and as old as /usr, of the attributes only capabilities stay.
pub fn transform(tree: &Tree, boot: bool) -> Tree {
    let usr = tree[Path::new("usr")].clone();
    let emptied: &[&str] = if boot { &["run", "boot", "sysroot"] } else { &["run"] };
    let mut out: Tree = BTreeMap::new();
    for (path, seen) in tree {
        let inside = emptied.iter().any(|e| path.starts_with(e) && path != Path::new(e));
        if inside {
            continue;
        }
        let mut seen: Seen = seen.clone();
        if path.as_os_str().is_empty() {
            seen = Seen {
                same_as: PathBuf::new(),
                ..usr.clone()
            };
        } else if emptied.iter().any(|e| path == Path::new(e)) {
            seen.mtime = usr.mtime;
        }
        seen.xattrs.retain(|name, _| name == "security.capability");
        out.insert(path.clone(), seen);
    }
    out
}
