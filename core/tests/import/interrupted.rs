//! Runs that end before their time: without publishing, by a power cut, on a full disk.

use std::sync::Arc;

use cfs_core::testing::CrashFs;

use super::*;

#[test]
fn one_sync_comes_before_the_first_link_and_the_mark_outlives_the_links() {
    let folder = tempfile::tempdir().unwrap();
    let (base, stash) = (folder.path().join("base"), folder.path().join("stash"));
    std::fs::create_dir(&base).unwrap();
    std::fs::create_dir(&stash).unwrap();
    let fs = Arc::new(CrashFs::new(&base, &stash));
    let store = Store::create_with(fs.clone(), &base.join("composefs"), Algorithm::Sha256).unwrap();
    let made = fs.log().len();
    let tar = Tar::new().file("f", &[1; 100]).finish();
    let diff_id = import(&store, &tar).unwrap();
    let image = store.put_image(&[5; 5000]).unwrap();
    store.name_image("name", &image).unwrap();
    store.publish().unwrap();
    let log = fs.log().split_off(made);
    let at = |what: &str| {
        log.iter()
            .position(|line| line.contains(what))
            .unwrap_or_else(|| panic!("{what}: {log:#?}"))
    };
    let syncs: Vec<_> = log.iter().filter(|line| line.starts_with("sync-all")).collect();
    assert_eq!(syncs.len(), 1, "{log:#?}");
    let order = [
        at("cfs-update/unsynced"),
        at("sync-all"),
        at(&format!("streams/oci-layer-{diff_id}")),
        at("sync-dir composefs/streams"),
        at(&format!("images/{image}")),
        at("images/refs/cfs-update/name"),
        at("sync-dir composefs/images/refs/cfs-update"),
        log.iter()
            .rposition(|line| line.contains("cfs-update/unsynced"))
            .unwrap(),
    ];
    assert!(order.is_sorted(), "{order:?} {log:#?}");
    let before = fs.log().len();
    store.publish().unwrap();
    assert_eq!(fs.log().len(), before, "publishing nothing does something");
}

/// A store whose run ended without publishing.
fn interrupted(folder: &Path, tars: &[&[u8]]) {
    let store = store(folder, Algorithm::Sha256);
    for tar in tars {
        import(&store, tar).unwrap();
    }
}

#[test]
fn layers_of_an_interrupted_run_are_taken_over_after_every_object_was_checked() {
    let tar = Tar::new().file("a", &[1; 100]).file("b", &[2; 9000]).finish();
    let other = Tar::new().file("a", &[1; 100]).finish();
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path(), &[&tar, &other]);
    let store = store(folder.path(), Algorithm::Sha256);
    assert!(store.is_suspect() && names(&store, "streams") == ["refs"]);
    assert!(store.has_layer(&diff_id(&tar)));
    store.publish().unwrap();
    drop(store);
    let store = Store::open(&folder.path().join("composefs")).unwrap();
    assert!(store.has_layer(&diff_id(&tar)) && !store.has_layer(&diff_id(&other)));
    assert!(rebuilt(&store, &diff_id(&tar)) == tar);
    assert!(store.is_suspect(), "objects of the other layer may still be broken");
    let roots = gc::Roots {
        streams: vec![format!("oci-layer-{}", diff_id(&tar))],
        ..Default::default()
    };
    gc::run(&store, &roots, &no_objects).unwrap();
    assert!(!store.is_suspect() && !store.path().join("cfs-update/unsynced").exists());
    assert_eq!(findings(&store), []);
}

#[test]
fn objects_that_a_power_cut_emptied_or_filled_with_zeros_are_written_again() {
    let tar = Tar::new()
        .file("a", &[1; 100])
        .file("b", &[2; 9000])
        .file("c", &vec![3; 2 << 20])
        .finish();
    let damage: [fn(usize) -> Vec<u8>; 3] = [|_| Vec::new(), |size| vec![0; size], |size| vec![0; size / 2]];
    for damage in damage {
        let folder = tempfile::tempdir().unwrap();
        interrupted(folder.path(), &[&tar]);
        let store = store(folder.path(), Algorithm::Sha256);
        for entry in entries_of_pending(&tar) {
            let path = store.object_path(&verity::hash(Algorithm::Sha256, &entry));
            std::fs::write(path, damage(entry.len())).unwrap();
        }
        assert!(!store.has_layer(&diff_id(&tar)));
        import(&store, &tar).unwrap();
        store.publish().unwrap();
        assert!(rebuilt(&store, &diff_id(&tar)) == tar);
        assert_eq!(findings(&store), []);
    }
}

fn entries_of_pending(_: &[u8]) -> [Vec<u8>; 3] {
    [vec![1; 100], vec![2; 9000], vec![3; 2 << 20]]
}

/// A small file system, unmounted when dropped; `None` without the right to mount.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, Some(options.as_c_str())) {
            Ok(()) => Some(Self(folder)),
            Err(e) => {
                println!("not tested: mounting a tmpfs needs root ({e})");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_what_was_there() {
    let noise = |n: u64| {
        (0..600_000_u64)
            .map(|i| ((i + n).wrapping_mul(i + 7).wrapping_mul(0x9e37_79b9) >> 11).to_le_bytes()[0])
            .collect::<Vec<_>>()
    };
    let small = Tar::new().file("fits", &noise(1)[..100_000]).finish();
    let large = (0..9)
        .fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), &noise(n)))
        .finish();
    let files = (0..400_u16)
        .fold(Tar::new(), |tar, n| {
            tar.file(&format!("f{n}"), &[&[1; 90][..], &n.to_le_bytes()].concat())
        })
        .finish();
    for (options, tar) in [("size=3m", large), ("size=30m,nr_inodes=500", files)] {
        let Some(disk) = Small::mount(options) else {
            return;
        };
        let store = store(disk.0.path(), Algorithm::Sha256);
        let kept = import(&store, &small).unwrap();
        store.publish().unwrap();
        let error = import(&store, &tar).unwrap_err();
        assert_eq!(error.kind(), Kind::Space, "{error}");
        assert!(!store.has_layer(&diff_id(&tar)));
        store.publish().unwrap();
        assert!(rebuilt(&store, &kept) == small);
        assert_eq!(findings(&store), []);
        let roots = gc::Roots {
            streams: vec![format!("oci-layer-{kept}")],
            ..Default::default()
        };
        assert!(!gc::run(&store, &roots, &no_objects).unwrap().is_empty());
        assert!(rebuilt(&store, &kept) == small);
    }
}
