//! What an update needs of memory: nothing for the size of files and layers, and little for each entry.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod chunks;
mod support;
mod tars;

use std::io::{self, BufReader, Read};
use std::sync::{Mutex, PoisonError};

use cfs_core::ids::{Algorithm, DiffId, ObjectId};
use cfs_core::image::{Versions, writer};
use cfs_core::layers::{Content, Entry, Item, Meta, Mtime};
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::pull;
use cfs_core::reference::Reference;
use cfs_core::registry::{Options, Registry};
use cfs_core::store::Store;
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::tree::Merge;
use peak_alloc::PeakAlloc;
use sha2::{Digest, Sha256};
use tars::{Header, Tar};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The peak is the process's: one measurement at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The most bytes that were allocated at a time during `run`, beyond those before it.
fn peak(run: impl FnOnce()) -> usize {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    run();
    MEMORY.peak_usage() - before
}

/// A file of its own object in one of many folders.
fn file(number: u32) -> Entry {
    let mut digest = [7; 32];
    digest[..4].copy_from_slice(&number.to_le_bytes());
    let id = ObjectId::from_bytes(Algorithm::Sha256, &digest).unwrap();
    Entry {
        path: format!("usr/share/package-{}/a-file-{number}.conf", number / 100)
            .into_bytes()
            .into(),
        meta: Meta {
            mode: 0o644,
            mtime: Mtime {
                sec: i64::from(number),
                nsec: 0,
            },
            ..Meta::default()
        },
        item: Item::Regular(Content::Object { id, size: 5000 }),
    }
}

#[test]
fn a_tree_and_its_image_take_at_most_360_bytes_for_each_entry() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |files: u32| {
        let mut length = 0;
        let peak = peak(|| {
            let mut merge = Merge::new();
            merge.layer((0..files).map(|number| Ok(file(number)))).unwrap();
            let tree = merge.finish().unwrap();
            let mut sink = |piece: &[u8]| {
                length += piece.len();
                Ok(())
            };
            writer::write(&tree, Versions::V1, &mut sink).unwrap();
        });
        assert!(length > files as usize * 200, "an image of {length} bytes");
        peak
    };
    // Below a power of two, so that it is not the reserve of doubled vectors that is counted.
    let (few, many) = (of(32_000), of(129_000));
    let each = (many - few) / 97_000;
    assert!(each <= 360, "{each} bytes for each entry ({few} and {many} in all)");
}

/// A tar of one file of `size` bytes (a multiple of 512), made while it is read.
fn big_file(size: u64) -> impl Read {
    let head = Tar::new().raw(&Header::new("usr/big", b'0', size).finish()).0;
    io::Cursor::new(head)
        .chain(io::repeat(0x5a).take(size))
        .chain(io::repeat(0).take(1024))
}

fn diff_id_of(mut tar: impl Read) -> DiffId {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match tar.read(&mut buffer).unwrap() {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    DiffId::from_hash(hash.finalize().into())
}

#[test]
fn importing_a_layer_takes_the_same_memory_whatever_its_size_and_however_many_layers_there_are() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |size: u64, layers: u64| {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&folder.path().join("composefs"), Algorithm::Sha256).unwrap();
        let sources = (0..layers).map(|layer| {
            let size = size + 512 * layer;
            LayerSource {
                partial: None,
                remote: None,
                diff_id: diff_id_of(big_file(size)),
                size,
                compression: Compression::None,
                open: Box::new(move || Ok(Box::new(BufReader::new(big_file(size))) as _)),
            }
        });
        let sources = sources.collect();
        peak(|| import::layers(&store, sources, 2, &Quiet).unwrap())
    };
    of(1 << 20, 2);
    // Whether small layers meet is the scheduler's affair; one alone always takes what one takes.
    let (one, big, many) = (of(1 << 20, 1), of(256 << 20, 2), of(1 << 20, 40));
    let two = 2 * one + (256 << 10);
    assert!(big < two, "{big} bytes for two large layers, {one} for a small one");
    assert!(many < two, "{many} bytes for 40 layers two at a time, {one} for one");
}

#[test]
fn putting_a_layer_together_from_what_is_here_takes_at_most_1300_bytes_for_each_file() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let version = |files: u32, version: u32| {
        // Every fiftieth is another one.
        let content = |n: u32| format!("{n} {} ", version * u32::from(n.is_multiple_of(50))).repeat(20);
        let files: Vec<_> = (0..files)
            .map(|n| (format!("usr/share/package-{}/f{n}", n / 100), content(n)))
            .collect();
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_bytes()))
            .collect();
        chunks::FAIR.make(&files)
    };
    let of = |files: u32| {
        let (v1, v2) = (version(files, 1), version(files, 2));
        let server = chunks::Registry::start(&[&v1]);
        let reference: Reference = format!("{}/org/os:1", server.server.host()).parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&folder.path().join("composefs"), Algorithm::Sha256).unwrap();
        let pull = || {
            let registry = Registry::open(&reference, &Options::default()).unwrap();
            pull::pull(&store, &registry, &Platform::host(), 0, &Quiet).unwrap()
        };
        pull();
        server.serve(&[&v2], chunks::Ranges::Several);
        let peak = peak(|| drop(pull()));
        assert!(!server.ranges().is_empty(), "parts were asked for");
        peak
    };
    // A little more than a power of two: where what doubles has the most to spare. On a slow machine a copy of the
    // index is written meanwhile.
    let (few, many) = (of(1100), of(8300));
    let each = many.saturating_sub(few) / 7200;
    assert!(each <= 1300, "{each} bytes for each file ({few} and {many} in all)");
}
