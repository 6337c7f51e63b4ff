//! Layers into the store and back: what goes in comes out, byte for byte and entry for entry.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod tars;

use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use cfs_core::ids::{Algorithm, DiffId};
use cfs_core::layers::{Content, Entry, Item};
use cfs_core::monitor::{Event, Monitor, Quiet};
use cfs_core::store::Store;
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::sys::verity;
use cfs_core::{Error, Kind, Result};

use tars::{Tar, diff_id, gzip, zstd};

fn source(diff_id: DiffId, compression: Compression, blob: Vec<u8>) -> LayerSource<'static> {
    LayerSource {
        diff_id,
        size: blob.len() as u64,
        compression,
        open: Box::new(move || Ok(Box::new(std::io::Cursor::new(blob)) as Box<dyn Read + Send>)),
    }
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

/// Content of a regular file, read from the store where it is an object.
fn content(store: &Store, entry: &Entry) -> Vec<u8> {
    match &entry.item {
        Item::Regular(Content::Inline(bytes)) => bytes.to_vec(),
        Item::Regular(Content::Object { id, size }) => {
            let bytes = store.read_object(id, u64::MAX - 1).unwrap();
            assert_eq!(bytes.len() as u64, *size);
            assert_eq!(verity::hash(store.algorithm(), &bytes), *id);
            bytes
        }
        other => panic!("{other:?} is no file"),
    }
}

#[test]
fn a_layer_comes_back_entry_for_entry_and_byte_for_byte() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), algorithm);
        let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let tar = Tar::new()
            .directory("usr/")
            .file("usr/empty", b"")
            .file("usr/small", &[b's'; 64])
            .file("usr/medium", &[b'm'; 65])
            .file("usr/page", &[b'p'; 4096])
            .file("usr/big", &big)
            .file("usr/again", &[b'm'; 65])
            .finish();
        let diff_id = import(&store, &tar).unwrap();
        let entries = entries(&store, &diff_id);
        let sizes: Vec<_> = entries[1..].iter().map(|e| content(&store, e).len()).collect();
        assert_eq!(sizes, [0, 64, 65, 4096, big.len(), 65]);
        assert!(content(&store, &entries[5]) == big);
        assert_eq!(entries[3].item, entries[6].item);
        assert!(rebuilt(&store, &diff_id) == tar);
    }
}
