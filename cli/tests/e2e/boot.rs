//! What is on `$BOOT`: kernels that were damaged, settings of the boot loader, no room.

use std::fs;
use std::path::{Path, PathBuf};

use crate::commands::{publish, updated};
use crate::common::disk::Tmpfs;
use crate::common::{Cfs, Entry, is_root, kernels, list, name, scratch, tool};

/// What is done to a file.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 3] = [
    ("cut", |path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(100).unwrap();
    }),
    ("flipped", |path| {
        let mut content = fs::read(path).unwrap();
        content[7] ^= 1;
        fs::write(path, content).unwrap();
    }),
    ("gone", |path| fs::remove_file(path).unwrap()),
];

/// A file on `$BOOT` that an entry names.
fn file(cfs: &Cfs, entry: &Entry, key: &str) -> PathBuf {
    let path = entry.get(key).unwrap().trim_start_matches('/').to_owned();
    cfs.sysroot().join("boot").join(path)
}

/// The newest entry and the one before it.
fn two(cfs: &Cfs) -> [Entry; 2] {
    cfs.entries().try_into().unwrap()
}

/// The id of what boots next.
fn next(cfs: &Cfs) -> String {
    cfs.status()["status"]["staged"]["cfsUpdate"]["deployment"]
        .as_str()
        .unwrap()
        .to_owned()
}

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

#[test]
fn the_last_deployment_whose_kernel_is_whole_is_not_deleted() {
    for (how, damage) in &DAMAGES[..2] {
        let dir = scratch();
        let cfs = updated(dir.path());
        let [newest, older] = two(&cfs);
        damage(&file(&cfs, &newest, "initrd"));
        let said = cfs.run(["delete", older.digest()]).expect(1).stderr;
        assert!(
            said.contains("the only one left that boots") && said.contains("fsck --repair"),
            "{how}: {said}"
        );
        assert_eq!(cfs.entries().len(), 2);
        cfs.run(["fsck", "--repair"]).expect(0);
        cfs.run(["delete", older.digest()]).expect(0);
        cfs.fsck();
    }
}

#[test]
fn one_whose_kernel_is_damaged_may_be_deleted() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let [_, older] = two(&cfs);
    DAMAGES[0].1(&file(&cfs, &older, "linux"));
    cfs.run(["delete", older.digest()]).expect(0);
    cfs.fsck();
}

#[test]
fn whatever_kernel_on_boot_is_damaged_fsck_says_so_and_does_what_it_says() {
    for (how, damage) in DAMAGES {
        for (which, key) in [(0, "linux"), (0, "initrd"), (1, "linux"), (1, "initrd")] {
            let dir = scratch();
            let cfs = updated(dir.path());
            let boots = next(&cfs);
            let path = file(&cfs, &two(&cfs)[which], key);
            let content = fs::read(&path).unwrap();
            damage(&path);
            let said = cfs.run(["fsck"]).expect(1).stdout;
            assert!(
                said.contains("`cfs-update fsck --repair`"),
                "{how} {which} {key}: {said}"
            );
            assert!(!said.contains("remove this folder"), "{said}");
            let mended = cfs.run(["fsck", "--repair"]).expect(0).stdout;
            assert!(mended.contains("Mended kernel of cfs-00000"), "{mended}");
            assert_eq!(fs::read(&path).unwrap(), content, "{how} {which} {key}");
            cfs.fsck();
            assert_eq!(next(&cfs), boots);
        }
    }
}

#[test]
fn a_kernel_that_was_damaged_when_it_was_copied_is_found_and_the_right_one_entered_and_what_boots_next_stays() {
    for which in [0, 1] {
        let dir = scratch();
        let cfs = updated(dir.path());
        let boots = next(&cfs);
        let entry = &two(&cfs)[which];
        let right = entry.get("linux").unwrap().to_owned();
        kernels::copied_damaged(cfs.sysroot(), entry.digest());
        let said = cfs.run(["fsck"]).expect(1).stdout;
        assert!(
            said.contains(&name(&entry.path)) && said.contains("none of its image") && said.contains("fsck --repair"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 2, "one finding: {said}");
        cfs.run(["fsck", "--repair"]).expect(0);
        cfs.fsck();
        assert_eq!(next(&cfs), boots);
        let entries = cfs.entries();
        let mended = entries.iter().find(|e| e.digest() == entry.digest()).unwrap();
        assert_eq!((mended.get("linux").unwrap(), entries.len()), (right.as_str(), 2));
        let folders = list(&cfs.sysroot().join("boot/cfs-update"));
        assert_eq!(folders.len(), 2, "the wrong one is gone: {folders:?}");
    }
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
