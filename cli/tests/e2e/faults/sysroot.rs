//! A sysroot that somebody else works on, that is full, or that cannot be written.

use super::*;
use crate::common::disk::Tmpfs;
use crate::common::{is_root, tool};

#[test]
fn a_second_run_is_told_who_holds_the_lock() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let sound = small(1, "a", 2, 2000).finish().layout(&dir.path().join("oci"), "os");
    cfs.run(["switch", &sound]).expect(0);

    let silent = Silent::start();
    let mut first = cfs.spawn(["switch", &silent.reference("os:1")]);
    let held = silent.asked();
    let second = cfs.run(["switch", &sound]).expect(6);
    says(&second, &[&first.id().to_string()]);
    cfs.run(["status"]).expect(0);
    first.kill().unwrap();
    first.wait().unwrap();
    drop(held);
    // A lock dies with its holder.
    assert_ne!(cfs.run(["switch", &sound]).code, 6);
}

#[test]
fn a_full_disk_is_exit_code_4_and_leaves_nothing_half_done() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = small(1, "a", 40, 500_000)
        .finish()
        .layout(&dir.path().join("oci"), "os");
    for megabytes in [1, 4, 12] {
        let disk = Tmpfs::mount(cfs.sysroot(), megabytes);
        let ran = cfs.run(["switch", &reference]).expect(4);
        // Found out beforehand, or by the kernel on the way: both name the place.
        says(&ran, &[cfs.sysroot().to_str().unwrap()]);
        nothing_half_done(&cfs);
        disk.resize(200);
        cfs.run(["switch", &reference]).expect(0);
        assert_eq!(cfs.entries().len(), 1);
        cfs.fsck();
    }
}

#[test]
fn a_full_boot_partition_is_exit_code_4_and_the_old_entry_stays() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let boot = Tmpfs::mount(&cfs.sysroot().join("boot"), 1);
    let layout = dir.path().join("oci");
    cfs.run(["switch", &small(1, "a", 2, 2000).finish().layout(&layout, "os")])
        .expect(0);
    let old = cfs.entries().remove(0);
    // A kernel that does not fit beside the first.
    let mut kernel = base("2", "b");
    kernel = kernel.file("usr/lib/modules/6.1.0/vmlinuz", noise(3, 2_000_000));
    Image::new("2").layer(kernel, How::Gzip).finish().layout(&layout, "os");
    let ran = cfs.run(["upgrade"]).expect(4);
    says(&ran, &["free"]);
    let entries = cfs.entries();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].path, &entries[0].text), (&old.path, &old.text));
    assert_eq!(
        list(&cfs.sysroot().join("boot/cfs-update")).len(),
        1,
        "nothing is left of the kernel that did not fit"
    );
    boot.resize(16);
    cfs.run(["upgrade"]).expect(0);
    assert_eq!(cfs.entries().len(), 2);
    cfs.fsck();
}

#[test]
fn a_read_only_or_foreign_sysroot_is_named() {
    let dir = scratch();
    let cfs = Cfs::unprivileged(dir.path());
    let reference = small(1, "a", 1, 1000).finish().layout(&dir.path().join("oci"), "os");
    tool("chmod", ["-R", "a+rX", dir.path().join("oci").to_str().unwrap()]);
    fs::set_permissions(cfs.sysroot(), fs::Permissions::from_mode(0o555)).unwrap();
    let ran = cfs.run(["switch", &reference]).expect(1);
    says(&ran, &[cfs.sysroot().to_str().unwrap()]);
}
