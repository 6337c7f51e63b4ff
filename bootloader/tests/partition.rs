//! `$BOOT` as a file system of its own: small, full, read-only, in its usual places.
//!
//! Run again in a mount namespace, which root may make, and others where user namespaces are allowed; elsewhere it says
//! so.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cfs_bootloader::Kind;
use cfs_bootloader::esp::{self, Place};
use cfs_core::boot::{Bootloader, FileSource};
use cfs_core::error::{Error, Kind as Failure};
use cfs_core::sys::fs::RealFs;
use common::{install, kernel, new_entry, open, snapshot, stage};

const INSIDE: &str = "CFS_TEST_INSIDE_A_MOUNT_NAMESPACE";

/// Runs this test again where it may mount; `true` there.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let exe = std::env::current_exe().unwrap();
    let namespace = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg("--mount").args(arguments);
        command
    };
    if !namespace(&["true"]).status().is_ok_and(|status| status.success()) {
        println!("{test}: NOT RUN, it needs root or user namespaces");
        return false;
    }
    let again = namespace(&[exe.to_str().unwrap(), "--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout).into_owned() + &String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn mount(options: &str, at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "none"])
        .arg(at)
        .status()
        .unwrap();
    assert!(status.success(), "mount -o {options} {}", at.display());
}

fn open_at(boot: &Path) -> Box<dyn Bootloader> {
    open(Kind::SystemdBoot, boot, Arc::new(RealFs))
}

#[test]
fn a_small_partition_is_refused_with_true_numbers_and_a_read_only_one_with_what_to_do() {
    if !inside("a_small_partition_is_refused_with_true_numbers_and_a_read_only_one_with_what_to_do") {
        return;
    }
    let keep = tempfile::tempdir().unwrap();
    let boot = keep.path().join("boot");
    mount("size=200k", &boot);
    let loader = open_at(&boot);
    install(&*loader, 1, "6.1").unwrap();
    let before = snapshot(&boot);

    let mut new = new_entry(2, 2, "6.2");
    new.kernel.linux = FileSource::Bytes(vec![7; 180 << 10]);
    let error = stage(&*loader, 2, &new).unwrap_err();
    assert_eq!(error.kind(), Failure::Space);
    match error {
        Error::Space { needed, free, .. } => assert!(needed > free && free > 100 << 10, "{needed} {free}"),
        other => panic!("{other}"),
    }
    assert_eq!(snapshot(&boot), before);
    // What fits by the numbers does fit.
    let room = loader.room(&kernel("6.2")).unwrap();
    let most = room.free - room.needed + 4096;
    new.kernel.linux = FileSource::Bytes(vec![7; usize::try_from(most).unwrap()]);
    new.kernel = cfs_core::boot::KernelFiles::new("6.2", new.kernel.linux, new.kernel.initrd);
    loader.publish(stage(&*loader, 2, &new).unwrap()).unwrap();
    assert!(loader.check().unwrap().is_empty());

    let before = snapshot(&boot);
    mount_again("remount,ro", &boot);
    for error in [
        loader.check_writable().unwrap_err(),
        install(&*loader, 3, "6.1").unwrap_err(),
    ] {
        assert!(error.to_string().contains("mount -o remount,rw"), "{error}");
    }
    assert_eq!(loader.entries().unwrap().ours.len(), 2);
    assert!(loader.plan_cleanup().unwrap().is_empty());
    assert_eq!(snapshot(&boot), before);
    mount_again("remount,rw", &boot);
    loader.check_writable().unwrap();
}

fn mount_again(options: &str, at: &Path) {
    let status = Command::new("mount").args(["-o", options]).arg(at).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_partition_of_the_running_system_is_found_where_it_is_mounted() {
    if !inside("the_partition_of_the_running_system_is_found_where_it_is_mounted") {
        return;
    }
    let found = |root: &Path| -> Option<PathBuf> { esp::locate(Place::Host(root)).ok().map(|boot| boot.path) };
    let keep = tempfile::tempdir().unwrap();
    let root = keep.path();
    std::fs::create_dir_all(root.join("boot/efi")).unwrap();
    std::fs::create_dir_all(root.join("efi/EFI")).unwrap();
    assert_eq!(found(root), None);
    mount("size=100k", &root.join("boot/efi"));
    assert_eq!(found(root), Some(root.join("boot/efi")));
    mount("size=100k", &root.join("efi"));
    std::fs::create_dir_all(root.join("efi/EFI")).unwrap();
    assert_eq!(found(root), Some(root.join("efi")));
    // A /boot of its own that no boot loader reads yet is no reason to leave the one it reads.
    mount("size=100k", &root.join("boot"));
    assert_eq!(found(root), Some(root.join("efi")));
    std::fs::create_dir_all(root.join("boot/loader/entries")).unwrap();
    assert_eq!(found(root), Some(root.join("boot")));
}
