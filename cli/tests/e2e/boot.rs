//! What is on `$BOOT`: no room.

use std::fs;
use std::path::Path;

use crate::commands::publish;
use crate::common::disk::Tmpfs;
use crate::common::{Cfs, is_root, list, scratch, tool};

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
