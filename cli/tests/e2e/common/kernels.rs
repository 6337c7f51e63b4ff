//! Kernels on `$BOOT` that are not what they should be.

use std::fs;
use std::path::{Path, PathBuf};

use super::{list, name, sha256_reader};

/// The entry of a deployment: its file and its text.
fn entry_of(sysroot: &Path, id: &str) -> (PathBuf, String) {
    let files = list(&sysroot.join("boot/loader/entries")).into_iter();
    let mut entries = files.map(|path| (path.clone(), fs::read_to_string(path).unwrap()));
    entries.find(|(_, text)| text.contains(id)).unwrap()
}

/// Kernel and initrd of a deployment.
pub fn files_of(sysroot: &Path, id: &str) -> [PathBuf; 2] {
    let (_, text) = entry_of(sysroot, id);
    ["linux /", "initrd /"].map(|key| {
        let path = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        sysroot.join("boot").join(path)
    })
}

/// As a version that did not check objects left it: the kernel is damaged, and its folder, the entry with its checksum
/// and the record are named by what it is.
pub fn copied_damaged(sysroot: &Path, id: &str) {
    let [linux, initrd] = files_of(sysroot, id);
    let mut content = fs::read(&linux).unwrap();
    content[7] ^= 1;
    fs::write(&linux, &content).unwrap();
    content.extend(fs::read(&initrd).unwrap());
    let folder = linux.parent().unwrap();
    let (old, new) = (name(folder), sha256_reader(&mut &content[..]));
    fs::rename(folder, folder.with_file_name(&new)).unwrap();
    let (path, text) = entry_of(sysroot, id);
    let text = text.replace(&old, &new);
    let (lines, _) = text.split_at(text.rfind('#').unwrap());
    let sum = sha256_reader(&mut lines.as_bytes());
    fs::write(path, format!("{lines}# sha256 of the lines above: {sum}\n")).unwrap();
    let origin = sysroot.join(format!("state/deploy/{id}/{id}.origin"));
    let text = fs::read_to_string(&origin).unwrap();
    assert!(text.contains(&old));
    fs::write(&origin, text.replace(&old, &new)).unwrap();
}
