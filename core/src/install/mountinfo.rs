//! `/proc/self/mountinfo` (proc(5)): what is mounted where, from what.
//!
//! [`parse`] is pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::sys::fs;

const LIMIT: u64 = 16 << 20;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `MAJOR:MINOR` of the file system; of btrfs one that no device has.
    pub device: String,
    /// The folder of the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub path: PathBuf,
    /// `ext4`, `vfat`, …
    pub kind: String,
    /// For file systems on a device: its node.
    pub source: PathBuf,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// Everything that is mounted now, later mounts last.
pub fn read() -> Result<Vec<Mount>> {
    let text = fs::read(Path::new("/proc/self/mountinfo"), LIMIT)?.unwrap_or_default();
    Ok(parse(&text))
}

/// What is mounted at exactly this path: the last mount counts.
pub fn at<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    mounts.iter().rev().find(|mount| mount.path == path)
}

/// The mounts of a text; lines that are none are passed over.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Mount {
        device: text(fields.get(2)?),
        root: path(fields.get(3)?),
        path: path(fields.get(4)?),
        kind: text(fields.get(separator + 1)?),
        source: path(fields.get(separator + 2)?),
        read_only: fields.get(5)?.split(|b| *b == b',').any(|option| option == b"ro"),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, escaped) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_devices_and_options_are_read_and_the_last_mount_counts() {
        let text = b"36 35 98:0 /sub /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            37 35 0:45 / /mnt/b ro - btrfs /dev/sdb2 ro\n\
            38 35 8:1 / /mnt/b rw shared:2 master:1 - vfat /dev/sda1 rw\n\
            nonsense\n\
            39 35 8:2 / /mnt/back\\134slash\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].path, Path::new("/mnt/a b"));
        assert_eq!(
            (mounts[0].root.as_path(), mounts[0].kind.as_str()),
            (Path::new("/sub"), "ext3")
        );
        assert_eq!((mounts[1].read_only, mounts[2].read_only), (true, false));
        assert_eq!(at(&mounts, Path::new("/mnt/b")).unwrap().source, Path::new("/dev/sda1"));
        assert_eq!(at(&mounts, Path::new("/mnt")), None);
        assert_eq!(path(b"a\\134b\\04"), Path::new("a\\b\\04"));
    }
}
