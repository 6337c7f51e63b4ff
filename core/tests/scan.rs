//! A folder on disk becomes the tree that mkcomposefs makes of it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::image::{self, Versions, dump, writer};
use cfs_core::sys::verity;
use cfs_core::tree::{ScanOptions, Tree, scan};

fn make(folder: &Path) {
    fs::create_dir(folder.join("sub")).unwrap();
    fs::write(folder.join("sub/empty"), b"").unwrap();
    fs::write(folder.join("inline"), [b'i'; 64]).unwrap();
    fs::write(folder.join("sub/large"), [b'l'; 65]).unwrap();
    fs::hard_link(folder.join("sub/large"), folder.join("again")).unwrap();
    symlink("../sub", folder.join("link")).unwrap();
    fs::set_permissions(folder.join("inline"), fs::Permissions::from_mode(0o4711)).unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1234, 567));
    File::open(folder.join("inline")).unwrap().set_times(times).unwrap();
}

fn digest(_: &Path, mut file: File) -> cfs_core::Result<ObjectId> {
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    Ok(verity::hash(Algorithm::Sha256, &content))
}

fn lines(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    dump::write(tree, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

fn scanned(folder: &Path, options: ScanOptions) -> Vec<String> {
    lines(&scan(folder, options, &mut digest).unwrap())
}

#[test]
fn a_folder_is_scanned_by_the_rules_of_mkcomposefs() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let options = ScanOptions {
        use_epoch: true,
        skip_xattrs: true,
        ..ScanOptions::default()
    };
    let lines = scanned(folder.path(), options);
    let id = verity::hash(Algorithm::Sha256, &[b'l'; 65]);
    let uid = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
    let owner = format!("{} {}", uid(&lines[0]), lines[0].split(' ').nth(5).unwrap());
    let wanted = [
        format!("/again 65 100644 1 {owner} 0 0.0 {} - {id}", id.object_path()),
        format!("/inline 64 104711 1 {owner} 0 0.0 - {} -", "i".repeat(64)),
        format!("/link 6 120777 1 {owner} 0 0.0 ../sub - -"),
    ];
    assert_eq!(lines[1..4], wanted);
    assert_eq!(lines[5], format!("/sub/empty 0 100644 1 {owner} 0 0.0 - - -"));
    assert!(lines[6].starts_with("/sub/large 65 100644 1 "), "{}", lines[6]);
    assert_eq!(lines.len(), 7);
}

#[test]
fn hard_links_and_times_to_the_nanosecond_are_kept_of_a_mounted_root() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let mut calls = 0;
    let options = ScanOptions {
        hard_links: true,
        skip_xattrs: true,
        ..ScanOptions::default()
    };
    let tree = scan(folder.path(), options, &mut |path, file| {
        calls += 1;
        digest(path, file)
    })
    .unwrap();
    assert_eq!(calls, 1, "a file with two names is read once");
    assert_eq!(
        tree.lookup("again").unwrap().id(),
        tree.lookup("sub/large").unwrap().id()
    );
    assert_eq!(tree.lookup("again").unwrap().nlink(), 2);
    let mtime = tree.lookup("inline").unwrap().mtime();
    assert_eq!((mtime.sec, mtime.nsec), (1234, 567));
}

/// The C program itself, where it is installed.
#[test]
fn the_image_of_a_folder_is_that_of_mkcomposefs_where_it_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let output = match std::process::Command::new("mkcomposefs")
        .arg("--print-digest-only")
        .arg(folder.path())
        .output()
    {
        Ok(output) => output,
        Err(_) => return println!("not run: no mkcomposefs on this machine"),
    };
    let tree = scan(folder.path(), ScanOptions::default(), &mut digest).unwrap();
    let image = writer::build(&tree, Versions::MKCOMPOSEFS).unwrap();
    let digest = image::digest(&image, Algorithm::Sha256).to_hex();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), digest);
}
