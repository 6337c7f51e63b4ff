//! What is in the way in a repository: files and links in the place of folders, folders in the place of files, a
//! `meta.json` that is none. It is named with what to do, or goes where nothing can rest on it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod tars;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use cfs_core::Result;
use cfs_core::ids::Algorithm;
use cfs_core::monitor::Quiet;
use cfs_core::store::import::{self, Compression};
use cfs_core::store::{Store, fsck, gc};
use cfs_core::sys::fs::RealFs;
use cfs_core::sys::verity;

use tars::{Tar, diff_id, source};

fn open(folder: &Path) -> Store {
    Store::open_or_create(&folder.join("composefs"), Algorithm::Sha256).unwrap()
}

fn import(store: &Store) -> Result<()> {
    let tar = Tar::new().file("file", &[7; 1000]).finish();
    let source = source(diff_id(&tar), Compression::None, tar);
    import::layers(store, vec![source], 0, &Quiet).map(drop)
}

fn collect(store: &Store) -> Result<gc::Plan> {
    gc::run(store, &gc::Roots::default(), &|_| Ok(Vec::new()))
}

fn findings(store: &Store) -> Vec<fsck::Finding> {
    let mut found = Vec::new();
    fsck::check(store, &|_| Ok(Vec::new()), &mut |finding| found.push(finding)).unwrap();
    found
}

#[test]
fn what_is_in_the_place_of_the_folder_of_layers_is_named_and_gc_removes_it() {
    let folder = tempfile::tempdir().unwrap();
    let own = open(folder.path()).path().join("cfs-update");
    let (layers, outside) = (own.join("layers"), folder.path().join("outside"));
    fs::create_dir_all(&own).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "theirs").unwrap();
    let file = || fs::write(&layers, "").unwrap();
    let link = || symlink(&outside, &layers).unwrap();
    let obstacles: [&dyn Fn(); 2] = [&file, &link];
    for obstacle in obstacles {
        obstacle();
        let refusal = import(&open(folder.path())).unwrap_err().to_string();
        assert!(
            refusal.contains("cfs-update/layers") && refusal.contains("move it away"),
            "{refusal}"
        );
        let found = findings(&open(folder.path()));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].path, "cfs-update/layers");
        assert!(found[0].why.contains("`cfs-update gc` removes it"), "{found:?}");
        collect(&open(folder.path())).unwrap();
        assert!(fs::symlink_metadata(&layers).is_err());
        import(&open(folder.path())).unwrap();
        collect(&open(folder.path())).unwrap();
    }
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "theirs");
}

#[test]
fn a_file_in_the_place_of_the_stores_own_folder_is_named_and_gc_goes_on_without() {
    let folder = tempfile::tempdir().unwrap();
    let own = open(folder.path()).path().join("cfs-update");
    fs::write(&own, "").unwrap();
    let refusal = import(&open(folder.path())).unwrap_err().to_string();
    assert!(
        refusal.contains("cfs-update") && refusal.contains("move it away"),
        "{refusal}"
    );
    let found = findings(&open(folder.path()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].why.contains("move it away"), "{found:?}");
    collect(&open(folder.path())).unwrap();
    assert!(own.exists(), "it is not ours to remove");
}

#[test]
fn folders_in_the_place_of_files_that_nothing_rests_on_are_collected() {
    let folder = tempfile::tempdir().unwrap();
    let own = open(folder.path()).path().join("cfs-update");
    for name in ["index/0123", "layers/0123", "unsynced", "link"] {
        fs::create_dir_all(own.join(name).join("below")).unwrap();
    }
    collect(&open(folder.path())).unwrap();
    for name in ["index/0123", "layers", "unsynced"] {
        assert!(fs::symlink_metadata(own.join(name)).is_err(), "{name}");
    }
    fs::remove_dir_all(own.join("index")).unwrap();
    for name in ["index", "parts"] {
        fs::write(own.join(name), "").unwrap();
        assert_eq!(findings(&open(folder.path())).len(), 1, "{name}");
        collect(&open(folder.path())).unwrap();
        assert!(!own.join(name).exists(), "{name}");
    }
    import(&open(folder.path())).unwrap();
}

#[test]
fn a_file_in_the_place_of_a_folder_of_objects_is_named_with_what_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let obstacle = store.path().join("objects").join("ab");
    fs::write(&obstacle, "").unwrap();
    let found = findings(&store);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path, "objects/ab");
    assert_eq!(found[0].mend, Some(fsck::Mend::Folder(0xab)));
    let refusal = collect(&store).unwrap_err().to_string();
    assert!(
        refusal.contains("objects/ab") && refusal.contains("fsck --repair"),
        "{refusal}"
    );
}

#[test]
fn a_damaged_meta_json_is_written_anew_by_what_the_objects_are() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("composefs");
        let store = Store::create(&path, algorithm).unwrap();
        store.put(&[1; 5000]).unwrap();
        store.publish().unwrap();
        drop(store);
        let meta = path.join("meta.json");
        let whole = fs::read(&meta).unwrap();
        let sealed = || verity::measure(&fs::File::open(&meta).unwrap()).unwrap().is_some();
        let was_sealed = sealed();
        for damaged in [&b""[..], b"{", b"\0\0\0\0", b"\xff", b"[1]", &whole[..whole.len() / 2]] {
            fs::remove_file(&meta).unwrap();
            fs::write(&meta, damaged).unwrap();
            let refusal = Store::open(&path).unwrap_err().to_string();
            assert!(
                refusal.contains("meta.json") && refusal.contains("`cfs-update fsck --repair`"),
                "{refusal}"
            );
            Store::mend_meta(&RealFs, &path, Algorithm::Sha256).unwrap();
            assert_eq!(fs::read(&meta).unwrap(), whole);
            assert_eq!(
                (sealed(), Store::open(&path).unwrap().algorithm()),
                (was_sealed, algorithm)
            );
        }
    }
}

#[test]
fn a_meta_json_that_another_version_may_have_written_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("composefs");
    drop(open(folder.path()));
    for text in [
        "{}",
        r#"{"version":"3"}"#,
        r#"{"version":2,"algorithm":"fsverity-sha256-12"}"#,
    ] {
        fs::remove_file(path.join("meta.json")).unwrap();
        fs::write(path.join("meta.json"), text).unwrap();
        let refusal = Store::open(&path).unwrap_err().to_string();
        assert!(refusal.contains("update cfs-update"), "{refusal}");
        Store::mend_meta(&RealFs, &path, Algorithm::Sha256).unwrap();
        assert_eq!(fs::read_to_string(path.join("meta.json")).unwrap(), text);
    }
}
