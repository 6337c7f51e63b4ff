//! Layers into the store and back: what goes in comes out, byte for byte and entry for entry.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod contents;
mod interrupted;
mod refused;
mod shared;
#[path = "../tars/mod.rs"]
mod tars;

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use cfs_core::ids::{Algorithm, DiffId, ObjectId};
use cfs_core::layers::{Entry, Item};
use cfs_core::monitor::Quiet;
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::store::{Store, fsck, gc};
use cfs_core::sys::verity;
use cfs_core::{Kind, Result};

use tars::{Tar, diff_id, gzip, source, zstd};

fn findings(store: &Store) -> Vec<fsck::Finding> {
    let mut findings = Vec::new();
    fsck::check(store, &no_objects, &mut |f| findings.push(f)).unwrap();
    findings
}

fn no_objects(_: &[u8]) -> Result<Vec<ObjectId>> {
    Ok(Vec::new())
}

fn store(folder: &Path, algorithm: Algorithm) -> Store {
    Store::open_or_create(&folder.join("composefs"), algorithm).unwrap()
}

fn import(store: &Store, tar: &[u8]) -> Result<DiffId> {
    let diff_id = diff_id(tar);
    import::layers(store, vec![source(diff_id, Compression::None, tar.to_vec())], 0, &Quiet)?;
    Ok(diff_id)
}

fn entries(store: &Store, diff_id: &DiffId) -> Vec<Entry> {
    store.entries(diff_id).unwrap().collect::<Result<_>>().unwrap()
}

fn rebuilt(store: &Store, diff_id: &DiffId) -> Vec<u8> {
    let mut out = Vec::new();
    store.rebuild(diff_id, &mut out).unwrap();
    out
}

fn names(store: &Store, folder: &str) -> Vec<String> {
    let names = std::fs::read_dir(store.path().join(folder)).unwrap();
    names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "is started and killed by another test"]
fn child_that_is_killed() {
    struct Forever;
    impl Read for Forever {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            println!("\nREADY");
            loop {
                std::thread::park();
            }
        }
    }
    let Some(folder) = std::env::var_os("CFS_TEST_KILL") else {
        return;
    };
    let store = store(Path::new(&folder), Algorithm::Sha256);
    let (whole, half) = (killed_layer(1), killed_layer(2));
    import(&store, &whole).unwrap();
    let source = LayerSource {
        partial: None,
        remote: None,
        diff_id: diff_id(&half),
        size: 1,
        compression: Compression::None,
        open: Box::new(move || {
            Ok(Box::new(io::Cursor::new(half[..1 << 20].to_vec()).chain(io::BufReader::new(Forever))) as _)
        }),
    };
    import::layers(&store, vec![source], 0, &Quiet).unwrap();
}

fn killed_layer(n: u8) -> Vec<u8> {
    (0..400_u16)
        .fold(Tar::new(), |tar, i| {
            tar.file(&format!("f{i}"), &[&[n; 4000][..], &i.to_le_bytes()].concat())
        })
        .finish()
}

#[test]
fn a_run_that_was_killed_succeeds_when_it_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--ignored", "--nocapture"])
        .env("CFS_TEST_KILL", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    while !seen.ends_with(b"READY") {
        out.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    assert!(store.is_suspect());
    let (whole, half) = (killed_layer(1), killed_layer(2));
    assert!(store.has_layer(&diff_id(&whole)) && !store.has_layer(&diff_id(&half)));
    import(&store, &half).unwrap();
    store.publish().unwrap();
    assert!(rebuilt(&store, &diff_id(&whole)) == whole && rebuilt(&store, &diff_id(&half)) == half);
    assert_eq!(findings(&store), []);
}
