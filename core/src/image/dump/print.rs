//! Prints a tree as composefs-dump text.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use crate::image::format;
use crate::tree::{Found, HEX, Inode, Kind, NodeId, ObjectPath, Regular, Tree};

/// Prints a tree as `composefs-info dump` does: depth first, names sorted, links with their target's metadata.
pub fn write(tree: &Tree, out: &mut dyn Write) -> io::Result<()> {
    let mut originals = HashMap::new();
    let linked: HashSet<NodeId> = tree.entries().filter(|(_, e)| e.link).map(|(_, e)| e.node).collect();
    if !linked.is_empty() {
        for Found { path, inode, link } in tree.walk() {
            if !link && linked.contains(&inode.id()) {
                originals.insert(inode.id(), path);
            }
        }
    }
    let mut line = Vec::new();
    for found in tree.walk() {
        line.clear();
        let target = originals.get(&found.inode.id()).filter(|_| found.link);
        write_line(&mut line, &found, target.map(|t| &**t));
        out.write_all(&line)?;
    }
    Ok(())
}

fn write_line(line: &mut Vec<u8>, found: &Found<'_>, target: Option<&[u8]>) {
    let inode = found.inode;
    escape(line, &found.path, false);
    let mtime = inode.mtime();
    let at = if target.is_some() { "@" } else { "" };
    let (rdev, size) = match inode.kind() {
        Kind::CharDevice(number) | Kind::BlockDevice(number) => (number, inode.node().size),
        Kind::Directory => (0, format::directory_size(inode)),
        Kind::Fifo | Kind::Socket => (0, inode.node().size),
        _ => (0, inode.size()),
    };
    let numbers = format!(
        " {size} {at}{:o} {} {} {} {rdev} {}.{} ",
        inode.mode(),
        inode.nlink(),
        inode.uid(),
        inode.gid(),
        mtime.sec,
        mtime.nsec
    );
    line.extend_from_slice(numbers.as_bytes());
    write_content(line, inode, target);
    for (key, value) in inode.xattrs() {
        line.push(b' ');
        escape(line, key, true);
        line.push(b'=');
        escape(line, value, true);
    }
    line.push(b'\n');
}

/// PAYLOAD CONTENT DIGEST.
fn write_content(line: &mut Vec<u8>, inode: Inode<'_>, target: Option<&[u8]>) {
    let (mut payload, mut content, mut digest) = (None, None, None);
    match inode.kind() {
        Kind::Symlink(to) => payload = Some(Cow::Borrowed(to)),
        Kind::Regular(Regular::Inline(bytes)) => content = Some(bytes).filter(|b| !b.is_empty()),
        Kind::Regular(Regular::External { id, payload: path, .. }) => {
            payload = match path {
                Some(ObjectPath::Text(text)) => Some(Cow::Borrowed(text)),
                Some(ObjectPath::OfDigest) => id.map(|id| Cow::Owned(id.object_path().into_bytes())),
                None => None,
            };
            digest = id;
        }
        _ => {}
    }
    if let Some(target) = target {
        payload = Some(Cow::Borrowed(target));
    }
    escape_optional(line, payload.as_deref());
    line.push(b' ');
    escape_optional(line, content);
    line.push(b' ');
    match digest {
        Some(id) => line.extend_from_slice(id.to_hex().as_bytes()),
        None => line.push(b'-'),
    }
}

fn escape_optional(line: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => line.push(b'-'),
        Some(b"-") => line.extend_from_slice(b"\\x2d"),
        Some(field) => escape(line, field, false),
    }
}

fn escape(line: &mut Vec<u8>, bytes: &[u8], equals: bool) {
    for byte in bytes {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            b'=' if !equals => line.push(b'='),
            0x21..=0x7e if *byte != b'=' => line.push(*byte),
            _ => {
                line.extend_from_slice(b"\\x");
                line.extend_from_slice(&HEX[usize::from(*byte)]);
            }
        }
    }
}
