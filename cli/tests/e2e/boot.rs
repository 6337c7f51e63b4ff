//! What is on `$BOOT`: settings of the boot loader, no room.

use std::fs;
use std::path::Path;

use crate::commands::{publish, updated};
use crate::common::disk::Tmpfs;
use crate::common::{Cfs, is_root, list, scratch, tool};

#[test]
fn what_goes_before_the_newest_entry_is_in_status_and_fsck_and_told_when_an_entry_is_made() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let overrides = || cfs.status()["status"]["cfsUpdate"]["overrides"].clone();
    assert_eq!(overrides(), serde_json::json!([]));
    let conf = cfs.sysroot().join("boot/loader/loader.conf");
    fs::write(&conf, "default cfs-000001-*\n").unwrap();
    let what = "loader.conf: default cfs-000001-* keeps a new deployment from booting";
    assert!(overrides()[0].as_str().unwrap().starts_with(what), "{}", overrides());
    for command in ["status", "fsck"] {
        let shown = cfs.run([command]).expect(0).stdout;
        assert!(shown.contains(what), "{shown}");
    }
    cfs.run(["pin", "rollback"]).expect(0);
    let third = publish(dir.path(), 3);
    for args in [vec!["upgrade"], vec!["rollback"], vec!["switch", "--retry", &third]] {
        let told = cfs.run(&args).expect(0).stderr;
        assert_eq!(told.matches(what).count(), 1, "{args:?}: {told}");
    }
    let quiet = cfs.run(["upgrade", "--download-only"]).expect(77).stderr;
    assert!(!quiet.contains(what), "no entry is made: {quiet}");
    fs::write(&conf, "default cfs-*\n").unwrap();
    assert_eq!(overrides(), serde_json::json!([]));
    let told = cfs.run(["rollback"]).expect(0).stderr;
    assert!(!told.contains("loader.conf"), "{told}");
}

/// Lets no file more be made there than these.
fn inodes(boot: &Path, count: &str) {
    let option = format!("remount,nr_inodes={count}");
    tool("mount", ["-o", &option, boot.to_str().unwrap()]);
}

#[test]
fn an_update_that_gets_no_entry_leaves_no_record_but_keeps_the_one_that_it_found() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let boot = cfs.sysroot().join("boot");
    let _boot = Tmpfs::mount(&boot, 8);
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    let names = || {
        let folder = |path: &str| list(&cfs.sysroot().join("composefs").join(path));
        [folder("streams/refs/oci"), folder("images/refs/cfs-update")].concat()
    };
    let before = (cfs.deployments(), names());
    publish(dir.path(), 2);
    // Room for its folder, and for no kernel in it.
    let used = 1 + tool("find", [boot.to_str().unwrap()]).lines().count();
    inodes(&boot, &used.to_string());
    cfs.run(["upgrade"]).expect(4);
    assert_eq!((cfs.deployments(), names()), before);
    inodes(&boot, "100");
    cfs.run(["upgrade"]).expect(0);
    let after = (cfs.deployments(), names());
    assert_eq!(after.0.len(), 2);

    // A record that is there already, without an entry.
    fs::remove_file(&cfs.entries()[0].path).unwrap();
    let used = tool("find", [boot.to_str().unwrap()]).lines().count();
    inodes(&boot, &used.to_string());
    cfs.run(["upgrade"]).expect(4);
    assert_eq!((cfs.deployments(), names()), after);
    inodes(&boot, "100");
    cfs.run(["upgrade"]).expect(0);
    cfs.fsck();
}
