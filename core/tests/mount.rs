//! The kernel sees in a mounted image what the layers hold: every name, type, mode, owner, time, attribute and byte.
//!
//! Needs root; says so where there is none.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cfs_core::ids::Algorithm;
use cfs_core::image::{Versions, dump, writer};
use cfs_core::layers::{Content, Entry, Item, Meta, Mtime};
use cfs_core::store::Store;
use cfs_core::sys::mount::{MountOptions, Verity, mount_composefs, unmount};
use cfs_core::sys::verity::{self, Hasher};
use cfs_core::tree::{Merge, ScanOptions, Tree, scan};
use cfs_core::{Error, Kind};

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not run: mounting needs root");
    }
    root
}

/// Unmounts when dropped, so that a failed test leaves nothing.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0);
    }
}

fn entry(path: &str, item: Item, mode: u32, number: u32) -> Entry {
    // The kernel gives `user.` attributes of files and folders only.
    let prefix = if matches!(item, Item::Directory | Item::Regular(_)) {
        "user"
    } else {
        "trusted"
    };
    Entry {
        path: path.as_bytes().into(),
        meta: Meta {
            mode,
            uid: number * 1000,
            gid: number * 70_000,
            mtime: Mtime {
                sec: 1_600_000_000 - i64::from(number) * 1_000_000_000,
                nsec: number * 111_111_111,
            },
            xattrs: (0..number % 4)
                .map(|at| {
                    (
                        format!("{prefix}.key{at}").into_bytes().into(),
                        vec![b'v'; at as usize * 30].into(),
                    )
                })
                .collect(),
        },
        item,
    }
}

fn file(store: &Store, content: &[u8]) -> Item {
    Item::Regular(match content.len() {
        0..=64 => Content::Inline(content.into()),
        size => Content::Object {
            id: store.put(content).unwrap(),
            size: size as u64,
        },
    })
}

fn tree(store: &Store) -> Tree {
    let folder = || Item::Directory;
    let target = |len: usize| Item::Symlink(vec![b't'; len].into());
    let mut entries = vec![
        entry("", folder(), 0o751, 1),
        entry("usr", folder(), 0o755, 0),
        entry("usr/empty", file(store, b""), 0o644, 1),
        entry("usr/inline", file(store, &[b'i'; 64]), 0o4755, 2),
        entry("usr/object", file(store, &[b'o'; 65]), 0o600, 3),
        entry("usr/large", file(store, &vec![b'l'; 3_000_001]), 0o644, 4),
        entry("usr/hard", Item::Hardlink((*b"usr/large").into()), 0, 0),
        entry("short", target(1), 0o777, 1),
        entry("long", target(4000), 0o777, 1),
        entry("null", Item::CharDevice(0x103), 0o666, 2),
        entry("disk", Item::BlockDevice(0x810), 0o660, 3),
        entry("pipe", Item::Fifo, 0o600, 0),
        entry("sticky", folder(), 0o1777, 3),
        entry("many", folder(), 0o755, 0),
        entry(
            &format!("many/{}", "n".repeat(255)),
            file(store, b"longest name"),
            0o644,
            2,
        ),
        entry("ab", folder(), 0o700, 2),
        entry("\u{fc}n\u{ef}-\\ code", file(store, b"odd"), 0o644, 0),
    ];
    entries.extend((0..600).map(|at| entry(&format!("many/file-{at:04}"), file(store, &[b'm'; 70]), 0o644, at % 5)));
    entries[3].meta.xattrs.push((
        (*b"security.capability").into(),
        [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(),
    ));
    entries[4]
        .meta
        .xattrs
        .push(((*b"trusted.own").into(), (*b"yes").into()));
    let mut merge = Merge::new();
    merge.layer(entries.into_iter().map(Ok)).unwrap();
    merge.finish().unwrap()
}

fn lines(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    dump::write(tree, &mut out).unwrap();
    String::from_utf8_lossy(&out).lines().map(str::to_owned).collect()
}

fn scanned(folder: &Path, algorithm: Algorithm) -> Tree {
    let options = ScanOptions {
        hard_links: true,
        ..ScanOptions::default()
    };
    let sink = &mut |_: &Path, mut file: fs::File| {
        let mut hasher = Hasher::new(algorithm);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        hasher.update(&content);
        Ok(hasher.finish())
    };
    scan(folder, options, sink).unwrap()
}

#[test]
fn a_mounted_image_is_what_the_layers_hold() {
    if !root() {
        return;
    }
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("composefs"), algorithm).unwrap();
        let tree = tree(&store);
        for versions in [Versions::V1, Versions::MKCOMPOSEFS] {
            let image = folder.path().join("image");
            fs::write(&image, writer::build(&tree, versions).unwrap()).unwrap();
            let target = folder.path().join("root");
            fs::create_dir_all(&target).unwrap();
            let objects = store.objects();
            let options = MountOptions {
                image: &image,
                objects: &[&objects],
                digest: None,
                verity: Verity::Try,
                name: Some("test"),
            };
            mount_composefs(&options, &target).unwrap();
            let mounted = Mounted(target.clone());
            let seen = lines(&scanned(&target, algorithm));
            let wanted = lines(&tree);
            for (seen, wanted) in seen.iter().zip(&wanted) {
                assert_eq!(seen, wanted, "{algorithm:?} {versions:?}");
            }
            assert_eq!(seen.len(), wanted.len());
            let of = |name: &str| fs::metadata(target.join(name)).unwrap();
            assert_eq!(of("usr/hard").nlink(), 2);
            let written = fs::write(target.join("usr/new"), b"").unwrap_err();
            assert_eq!(written.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
            drop(mounted);
            assert!(fs::read_dir(&target).unwrap().next().is_none(), "unmounted");
        }
    }
}

#[test]
fn a_demanded_digest_that_the_kernel_cannot_prove_is_refused_and_nothing_is_mounted() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(&folder.path().join("composefs"), Algorithm::Sha256).unwrap();
    let image = folder.path().join("image");
    let bytes = writer::build(&tree(&store), Versions::V1).unwrap();
    fs::write(&image, &bytes).unwrap();
    let target = folder.path().join("root");
    fs::create_dir(&target).unwrap();
    let wrong = verity::hash(Algorithm::Sha256, b"another image");
    let objects = store.objects();
    let options = MountOptions {
        image: &image,
        objects: &[&objects],
        digest: Some(wrong),
        verity: Verity::Off,
        name: None,
    };
    let error: Error = mount_composefs(&options, &target).unwrap_err();
    assert_eq!(error.kind(), Kind::Trust, "{error}");
    assert!(fs::read_dir(&target).unwrap().next().is_none());
}
