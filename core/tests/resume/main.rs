//! Downloads that are interrupted go on where they stopped, in another run as well, whatever became of what was kept;
//! and nothing goes faster than it may.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../chunks/mod.rs"]
mod chunks;
mod interrupted;
mod kept;
mod limits;
mod partial;
#[path = "../support/mod.rs"]
mod support;
#[path = "../tars/mod.rs"]
mod tars;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cfs_core::ids::Algorithm;
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::reference::Reference;
use cfs_core::registry::{self, Options, Retry};
use cfs_core::store::{Store, fsck};
use cfs_core::{Kind, Result, pull};
use rustix::fs::FlockOperation;

use chunks::{FAIR, Layer, Ranges, Registry, names};
use support::{Told, noise};
use tars::{Tar, diff_id, zstd};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Some 3 MB a second: what is kept begins after a quarter of a second.
const SLOW: Option<Duration> = Some(Duration::from_millis(5));
/// Before the network is known to be slow, and what was on its way when it ended.
const OVERHEAD: usize = 3 * MIB / 2;
const HEAD: usize = 64;

fn options(attempts: u32) -> Options {
    Options {
        retry: Retry {
            attempts,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(10),
            ..Retry::default()
        },
        ..Options::default()
    }
}

fn store(folder: &Path) -> Store {
    Store::open_or_create(&folder.join("composefs"), Algorithm::Sha256).unwrap()
}

fn name(registry: &Registry) -> Reference {
    format!("{}/org/os:1", registry.server.host()).parse().unwrap()
}

/// What was told meanwhile, and how it ended.
fn pull_with(store: &Store, registry: &Registry, options: &Options) -> (Vec<String>, Result<()>) {
    let told = Told::default();
    let open = registry::Registry::open(&name(registry), options).unwrap();
    let pulled = pull::pull(store, &open, &Platform::host(), 0, &told);
    (told.0.into_inner().unwrap(), pulled.map(drop))
}

/// A run of its own, as another process would have it.
fn run(folder: &Path, registry: &Registry, attempts: u32) -> (Vec<String>, Result<()>) {
    pull_with(&store(folder), registry, &options(attempts))
}

/// One that has to succeed, and leaves the layer and nothing else.
fn finish(folder: &Path, registry: &Registry, layer: &Layer) -> Vec<String> {
    registry.sent.store(0, std::sync::atomic::Ordering::Relaxed);
    let (told, pulled) = run(folder, registry, 4);
    pulled.unwrap_or_else(|error| panic!("{error}: {told:?}"));
    let store = store(folder);
    let mut out = Vec::new();
    store.rebuild(&diff_id(&layer.tar), &mut out).unwrap();
    assert!(out == layer.tar);
    assert!(parts(folder).is_empty(), "{:?}", parts(folder));
    fsck::check(&store, &|_| Ok(Vec::new()), &mut |finding| panic!("{finding:?}")).unwrap();
    told
}

fn parts(folder: &Path) -> Vec<PathBuf> {
    let folder = folder.join("composefs/cfs-update/parts");
    names(&folder).iter().map(|name| folder.join(name)).collect()
}

fn says(told: &[String], what: &str) -> bool {
    told.iter().any(|event| event.contains(what))
}

fn layer(size: usize, seed: u64) -> Layer {
    let tar = Tar::new()
        .directory("usr/")
        .file("usr/a", &noise(size / 2, seed))
        .file("usr/b", &noise(size / 2, seed + 1))
        .finish();
    Layer {
        blob: zstd(&tar),
        tar,
        annotations: Default::default(),
        places: Default::default(),
    }
}

fn slow(layer: &Layer) -> Registry {
    let registry = Registry::start(&[layer]);
    *registry.pace.lock().unwrap() = SLOW;
    registry
}

/// Interrupts a download after so many bytes; returns what of the blob was kept.
fn interrupt(folder: &Path, registry: &Registry, after: usize) -> std::ops::Range<usize> {
    *registry.ways.lock().unwrap() = Ranges::Cut(after);
    let (told, pulled) = run(folder, registry, 1);
    assert_eq!(pulled.unwrap_err().kind(), Kind::Network, "{told:?}");
    *registry.ways.lock().unwrap() = Ranges::Several;
    // A program that another test starts has the locks, too, until it runs.
    for part in parts(folder) {
        let part = fs::File::open(part).unwrap();
        rustix::fs::flock(&part, FlockOperation::LockExclusive).unwrap();
        rustix::fs::flock(&part, FlockOperation::Unlock).unwrap();
    }
    kept(folder)
}

fn kept(folder: &Path) -> std::ops::Range<usize> {
    let [part] = &parts(folder)[..] else {
        panic!("{:?}", parts(folder));
    };
    let name = part.file_name().unwrap().to_str().unwrap();
    let start = name.split('-').nth(1).unwrap().parse().unwrap();
    start..start + usize::try_from(fs::metadata(part).unwrap().len()).unwrap() - HEAD
}

/// The other side of [`a_run_that_is_killed_goes_on_where_it_was`].
#[test]
#[ignore = "killed by another test"]
fn child_that_is_killed() {
    let (Some(folder), Some(host)) = (std::env::var_os("CFS_TEST_FOLDER"), std::env::var_os("CFS_TEST_HOST")) else {
        return;
    };
    let reference = format!("{}/org/os:1", host.into_string().unwrap()).parse().unwrap();
    let open = registry::Registry::open(&reference, &options(4)).unwrap();
    pull::pull(&store(Path::new(&folder)), &open, &Platform::host(), 0, &Quiet).unwrap();
}

/// Kills a run when so many bytes were sent.
fn kill_after(folder: &Path, registry: &Registry, bytes: usize) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--ignored"])
        .env("CFS_TEST_FOLDER", folder)
        .env("CFS_TEST_HOST", registry.server.host())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (before, start) = (registry.server.written(), Instant::now());
    while registry.server.written() - before < bytes {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(8 * MIB, 11));
    let registry = slow(&layer);
    kill_after(folder.path(), &registry, 4 * MIB);
    let kept = kept(folder.path());
    assert!(kept.start < OVERHEAD && kept.end > 3 * MIB, "{kept:?}");
    let told = finish(folder.path(), &registry, &layer);
    assert!(says(&told, "goes on at"), "{told:?}");
    let both = registry.server.written();
    assert!(both <= layer.blob.len() + OVERHEAD, "{both} for {}", layer.blob.len());
}

/// Many files, so that some are complete whenever it ends.
fn chunked(seed: usize) -> Layer {
    let files: Vec<_> = (0..200)
        .map(|n| {
            let seed = if n < 80 { n } else { seed + n };
            (format!("usr/f{n}"), noise(16 * KIB + n, seed as u64))
        })
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    FAIR.make(&files)
}
