//! What every boot loader has to keep, whichever it is and whatever file system `$BOOT` is.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod others;
mod publish;
mod refused;
mod removal;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_core::boot::Bootloader;
use cfs_core::sys::fs::RealFs;
use common::{FatLike, KINDS, delete, id, install, kernel, new_entry, open, roll_back, snapshot, stage};

/// Runs a test for every loader, on a plain file system and on one as poor as FAT.
fn each(test: impl Fn(&dyn Bootloader)) {
    for kind in KINDS {
        let folder = common::folder();
        test(&*open(kind, &folder.path().join("boot"), Arc::new(RealFs)));
        let fat = Arc::new(FatLike::default());
        let folder = common::folder();
        test(&*open(kind, &folder.path().join("boot"), fat.clone()));
        let refused = fat.refused.lock().unwrap();
        assert!(refused.is_empty(), "FAT cannot do: {refused:?}");
    }
}

fn entry_path(loader: &dyn Bootloader, file: &str) -> PathBuf {
    loader.boot_dir().join("loader/entries").join(file)
}

/// Writes a file among the entries.
fn write(loader: &dyn Bootloader, file: &str, content: impl AsRef<[u8]>) {
    std::fs::create_dir_all(entry_path(loader, "")).unwrap();
    std::fs::write(entry_path(loader, file), content).unwrap();
}

fn kernel_folders(loader: &dyn Bootloader) -> usize {
    std::fs::read_dir(loader.boot_dir().join("cfs-update")).map_or(0, Iterator::count)
}

fn next(loader: &dyn Bootloader) -> String {
    loader.entries().unwrap().next.unwrap()
}

fn findings(loader: &dyn Bootloader) -> String {
    let found = loader.check().unwrap();
    found
        .into_iter()
        .map(|f| format!("{}{}: {}\n", if f.damage { "! " } else { "" }, f.what, f.why))
        .collect()
}
