//! Whether the disk with the physical root has come. Text in, one look at /dev.

use std::path::{Path, PathBuf};

use cfs_core::boot::cmdline;
use cfs_core::sys::fs;

/// Where udev puts links, by what `root=` names a disk by.
const LINKS: [(&str, &str); 4] = [
    ("UUID=", "disk/by-uuid"),
    ("PARTUUID=", "disk/by-partuuid"),
    ("LABEL=", "disk/by-label"),
    ("PARTLABEL=", "disk/by-partlabel"),
];

/// Whether what `root=` names is surely not there. Of what is no disk, or named in a way that is not known here,
/// nothing is sure.
pub fn is_missing(arguments: &[String], dev: &Path) -> bool {
    name(arguments).is_some_and(|name| !fs::exists(&dev.join(name)))
}

/// Its name below /dev.
fn name(arguments: &[String]) -> Option<PathBuf> {
    let roots = cmdline::values(arguments, "root");
    // Without the argument systemd looks for a partition of the type.
    let root = roots.last().map_or("gpt-auto", String::as_str);
    if root == "gpt-auto" {
        return Some("gpt-auto-root".into());
    }
    let below = |folder: &str, name: &str| {
        // udev writes other characters in another way.
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        (plain && !name.is_empty() && !name.starts_with('.')).then(|| Path::new(folder).join(name))
    };
    if let Some(path) = root.strip_prefix("/dev/") {
        return path
            .split('/')
            .all(|part| below("", part).is_some())
            .then(|| path.into());
    }
    LINKS
        .iter()
        .find_map(|(prefix, folder)| below(folder, root.strip_prefix(prefix)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_missing_only_where_it_is_known_what_would_be_there() {
        let dev = tempfile::tempdir().unwrap();
        for path in ["disk/by-uuid/0a-1", "mapper/root"] {
            let path = dev.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let missing = |line: &str| is_missing(&cmdline::split(line), dev.path());
        for there in [
            "root=UUID=0a-1",
            "root=/dev/sda root=UUID=0a-1",
            "root=\"UUID=0a-1\"",
            "root=/dev/mapper/root",
        ] {
            assert!(!missing(there), "{there}");
        }
        for gone in [
            "root=UUID=0a-2",
            "root=UUID=0a-1 root=/dev/sda",
            "root=PARTLABEL=root",
            "root=gpt-auto",
            "quiet",
        ] {
            assert!(missing(gone), "{gone}");
        }
        for unknown in [
            "root=nfs:10.0.0.1:/",
            "root=LABEL=a\\x20b",
            "root=\"LABEL=a b\"",
            "root=/dev/../x",
            "root=tmpfs",
            "root=",
        ] {
            assert!(!missing(unknown), "{unknown}");
        }
    }
}
