//! Downloads that are interrupted go on where they stopped, in another run as well, whatever became of what was kept;
//! and nothing goes faster than it may.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod chunks;
mod support;
mod tars;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cfs_core::ids::Algorithm;
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::reference::Reference;
use cfs_core::registry::{self, Limit, Options, Push, Retry};
use cfs_core::store::import::{Compression, LayerSource, Plan, Remote};
use cfs_core::store::{Origin, Store, fsck, gc};
use cfs_core::{Kind, Result, pull};

use chunks::{FAIR, Layer, Ranges, Recipe, Registry, names};
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

#[test]
fn an_interrupted_download_goes_on_where_it_stopped_and_again_after_another_interruption() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(6 * MIB, 1));
    let registry = slow(&layer);
    let first = interrupt(folder.path(), &registry, 3 * MIB);
    assert!(first.start < OVERHEAD && first.end == 3 * MIB, "{first:?}");
    let second = interrupt(folder.path(), &registry, 2 * MIB);
    assert_eq!(second, first.start..5 * MIB, "the same one, longer");
    *registry.pace.lock().unwrap() = None;
    let told = finish(folder.path(), &registry, &layer);
    assert!(says(&told, "goes on at 5.2 MB of 6.3 MB"), "{told:?}");
    assert!(!says(&told, "fetched anew"), "{told:?}");
    let config = 300;
    let missing = layer.blob.len() - (second.end - second.start);
    assert!(registry.sent() <= missing + config, "{} of {missing}", registry.sent());
    let ranges = registry.ranges();
    let last = &ranges[ranges.len() - 2..];
    assert_eq!(
        last,
        [format!("bytes=0-{}", first.start - 1), format!("bytes={}-", 5 * MIB)]
    );
}

#[test]
fn parts_that_are_a_link_to_another_folder_are_neither_read_nor_written_nor_removed() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(6 * MIB, 1));
    let registry = slow(&layer);
    interrupt(folder.path(), &registry, 3 * MIB);
    let (own, outside) = (
        folder.path().join("composefs/cfs-update/parts"),
        folder.path().join("outside"),
    );
    fs::rename(&own, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &own).unwrap();
    let content = || fs::read(outside.join(&names(&outside)[0])).unwrap();
    let before = content();
    *registry.ways.lock().unwrap() = Ranges::Cut(5 * MIB);
    run(folder.path(), &registry, 1).1.unwrap_err();
    *registry.ways.lock().unwrap() = Ranges::Several;
    *registry.pace.lock().unwrap() = None;
    run(folder.path(), &registry, 4).1.unwrap();
    assert!(registry.sent() >= layer.blob.len(), "nothing of it was here");
    assert!(content() == before);
}

#[test]
fn a_fast_network_keeps_nothing() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(6 * MIB, 2));
    let registry = Registry::start(&[&layer]);
    *registry.ways.lock().unwrap() = Ranges::Cut(3 * MIB);
    let (_, pulled) = run(folder.path(), &registry, 1);
    assert_eq!(pulled.unwrap_err().kind(), Kind::Network);
    assert!(!folder.path().join("composefs/cfs-update/parts").exists());
    *registry.ways.lock().unwrap() = Ranges::Several;
    finish(folder.path(), &registry, &layer);
}

#[test]
fn cut_connections_are_taken_up_in_the_same_run_and_what_was_kept_goes_with_its_end() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 3));
    let registry = slow(&layer);
    *registry.ways.lock().unwrap() = Ranges::Cut(MIB);
    let told = finish(folder.path(), &registry, &layer);
    assert!(!says(&told, "goes on at"), "{told:?}");
    assert_eq!(registry.ranges().len(), layer.blob.len().div_ceil(MIB) - 1);
}

#[test]
fn whatever_a_registry_makes_of_ranges_the_interrupted_layer_comes() {
    for (ways, goes_on, anew) in [
        (Ranges::Single, true, false),
        (Ranges::First, true, false),
        (Ranges::Cut(MIB), true, false),
        (Ranges::Ignored, false, false),
        (Ranges::Refused, false, false),
        (Ranges::Broken, false, false),
        (Ranges::Lies, true, true),
    ] {
        let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 4));
        let registry = slow(&layer);
        let kept = interrupt(folder.path(), &registry, 3 * MIB);
        *registry.pace.lock().unwrap() = None;
        *registry.ways.lock().unwrap() = ways;
        let told = finish(folder.path(), &registry, &layer);
        assert_eq!(says(&told, "fetched anew"), anew, "{ways:?}: {told:?}");
        let saved = kept.end - kept.start;
        let whole = registry.sent() >= layer.blob.len();
        assert_eq!(
            whole,
            !goes_on || anew,
            "{ways:?}: {} sent, {saved} kept",
            registry.sent()
        );
    }
}

#[test]
fn what_was_kept_of_an_image_that_is_no_longer_wanted_goes_when_another_from_there_is_here() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 5), layer(MIB, 6));
    let registry = slow(&old);
    interrupt(folder.path(), &registry, 3 * MIB);
    registry.serve(&[&new], Ranges::Several);
    let told = finish(folder.path(), &registry, &new);
    assert!(!says(&told, "goes on at"), "{told:?}");
}

#[test]
fn damage_to_what_was_kept_costs_bytes_and_nothing_else() {
    type Damage<'a> = &'a dyn Fn(&Path, &Layer);
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    let flipped = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[HEAD + MIB] ^= 1);
    let zeros = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[2 * MIB..].fill(0));
    let longer = |path: &Path, layer: &Layer| edit(path, &|bytes| bytes.resize(layer.blob.len() + HEAD, 7));
    let of_another = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[8..40].fill(7));
    let no_head = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[0] = 0);
    let short = |path: &Path, _: &Layer| edit(path, &|bytes| bytes.truncate(HEAD - 1));
    let head_only = |path: &Path, _: &Layer| edit(path, &|bytes| bytes.truncate(HEAD));
    let empty = |path: &Path, _: &Layer| edit(path, &|bytes| bytes.clear());
    let elsewhere = |path: &Path, _: &Layer| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (blob, rest) = name.split_once('-').unwrap();
        let origin = rest.split_once('-').unwrap().1;
        fs::rename(path, path.with_file_name(format!("{blob}-99-{origin}"))).unwrap();
    };
    let behind_the_end = |path: &Path, _: &Layer| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (blob, rest) = name.split_once('-').unwrap();
        let origin = rest.split_once('-').unwrap().1;
        fs::rename(path, path.with_file_name(format!("{blob}-{}-{origin}", u64::MAX))).unwrap();
    };
    let cases: [(&str, Damage<'_>, bool, bool); 10] = [
        ("flipped", &flipped, true, true),
        ("zeros", &zeros, true, true),
        ("elsewhere", &elsewhere, true, true),
        ("longer", &longer, false, false),
        ("of another", &of_another, false, false),
        ("no head", &no_head, false, false),
        ("short", &short, false, false),
        ("head only", &head_only, false, false),
        ("empty", &empty, false, false),
        ("behind the end", &behind_the_end, false, false),
    ];
    for (what, damage, used, anew) in cases {
        let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 7));
        let registry = slow(&layer);
        interrupt(folder.path(), &registry, 3 * MIB);
        *registry.pace.lock().unwrap() = None;
        damage(&parts(folder.path())[0], &layer);
        let told = finish(folder.path(), &registry, &layer);
        assert_eq!(says(&told, "goes on at"), used, "{what}: {told:?}");
        assert_eq!(says(&told, "fetched anew"), anew, "{what}: {told:?}");
    }
}

#[test]
fn after_a_power_cut_what_was_made_durable_is_used_and_the_rest_is_not() {
    for durable in [0, MIB as u64, 100 * MIB as u64] {
        let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 8));
        let registry = slow(&layer);
        let kept = interrupt(folder.path(), &registry, 3 * MIB);
        *registry.pace.lock().unwrap() = None;
        // Another boot, and all that was not durable reads as zeros.
        let path = &parts(folder.path())[0];
        let mut bytes = fs::read(path).unwrap();
        bytes[40..56].fill(0xee);
        bytes[56..64].copy_from_slice(&durable.to_le_bytes());
        let safe = usize::try_from(durable).unwrap().min(bytes.len() - HEAD);
        bytes[HEAD + safe..].fill(0);
        fs::write(path, bytes).unwrap();
        let told = finish(folder.path(), &registry, &layer);
        assert!(!says(&told, "fetched anew"), "{durable}: {told:?}");
        assert_eq!(says(&told, "goes on at"), durable > 0, "{durable}: {told:?}");
        let missing = layer.blob.len() - safe.min(kept.end - kept.start);
        assert!(
            registry.sent() <= missing + 300,
            "{durable}: {} of {missing}",
            registry.sent()
        );
    }
}

#[test]
fn what_another_run_writes_is_neither_read_nor_removed_and_old_parts_are_collected() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 9));
    let registry = slow(&layer);
    interrupt(folder.path(), &registry, 3 * MIB);
    *registry.pace.lock().unwrap() = None;
    let part = parts(folder.path())[0].clone();
    let age = |days: u64| {
        let then = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600 + 60);
        fs::File::options()
            .write(true)
            .open(&part)
            .unwrap()
            .set_modified(then)
            .unwrap();
    };
    let collect = || gc::run(&store(folder.path()), &gc::Roots::default(), &|_| Ok(Vec::new())).unwrap();
    age(6);
    assert!(collect().parts.is_empty() && part.exists(), "a week is not over");
    age(7);
    let lock = fs::File::open(&part).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    collect();
    let (told, pulled) = run(folder.path(), &registry, 1);
    pulled.unwrap();
    assert!(!says(&told, "goes on at") && part.exists(), "{told:?}");
    drop(lock);
    let planned = gc::plan(&store(folder.path()), &gc::Roots::default(), &|_| Ok(Vec::new())).unwrap();
    assert_eq!(planned.parts.len(), 1);
    assert!(planned.bytes() > MIB as u64 && part.exists());
    collect();
    assert!(!part.exists());
}

#[test]
fn what_an_interrupted_run_has_written_is_not_asked_room_for_again() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 16));
    let kept = interrupt(folder.path(), &slow(&layer), 3 * MIB);
    let store = store(folder.path());
    let reached = |blob: &[u8], size: usize| {
        let source = LayerSource {
            diff_id: diff_id(&layer.tar),
            size: size as u64,
            compression: Compression::Zstd,
            open: Box::new(|| Ok(Box::new(std::io::empty()))),
            partial: None,
            remote: Some(Remote {
                blob: support::sha256(blob).parse().unwrap(),
                origin: Origin::new("somewhere/else"),
                open: Box::new(|_| Box::new(std::io::empty())),
            }),
        };
        let plan = Plan::new(Some(&store), vec![source], 0, false, &Quiet);
        plan.layers().next().unwrap().reached
    };
    assert_eq!(reached(&layer.blob, layer.blob.len()), kept.end as u64);
    assert_eq!(reached(&layer.blob, kept.end - 1), 0, "of another size");
    assert_eq!(reached(b"another", layer.blob.len()), 0);
}

#[test]
fn a_part_that_cannot_be_written_does_not_keep_a_layer_from_coming() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(2 * MIB, 10));
    let registry = slow(&layer);
    let own = store(folder.path()).path().join("cfs-update");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("parts"), "in the way").unwrap();
    let (told, pulled) = run(folder.path(), &registry, 1);
    pulled.unwrap_or_else(|error| panic!("{error}: {told:?}"));
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

#[test]
fn parts_of_a_layer_that_a_killed_run_fetched_are_not_fetched_again() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), chunked(1000), chunked(2000));
    let registry = Registry::start(&[&old]);
    finish(folder.path(), &registry, &old);
    registry.serve(&[&new], Ranges::Several);
    // 60 % of the layer is missing: 120 files of 16 KiB, which take six seconds.
    *registry.pace.lock().unwrap() = Some(Duration::from_millis(50));
    let before = registry.server.written();
    kill_after(folder.path(), &registry, 3 * MIB / 2);
    let fetched = registry.server.written() - before;
    *registry.pace.lock().unwrap() = None;
    let before = registry.server.written();
    let told = finish(folder.path(), &registry, &new);
    assert!(!says(&told, "as a whole"), "{told:?}");
    let rest = registry.server.written() - before;
    let missing = 120 * (16 * KIB + 200) + 64 * KIB;
    // What came in the last two seconds before the kill was not noted.
    let unnoted = 2 * 20 * 16 * KIB + 256 * KIB;
    assert!(fetched + rest <= missing + unnoted, "{fetched} + {rest} for {missing}");
    assert!(rest < missing - MIB / 2, "{rest} of {missing}");
}

#[test]
fn parts_of_a_layer_whose_connection_fails_are_not_fetched_again() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), chunked(1000), chunked(2000));
    let registry = Registry::start(&[&old]);
    finish(folder.path(), &registry, &old);
    registry.serve(&[&new], Ranges::Cut(MIB));
    let (_, pulled) = run(folder.path(), &registry, 1);
    assert_eq!(pulled.unwrap_err().kind(), Kind::Network);
    registry.serve(&[&new], Ranges::Several);
    let told = finish(folder.path(), &registry, &new);
    assert!(!says(&told, "as a whole"), "{told:?}");
    let missing = 120 * (16 * KIB + 200);
    assert!(registry.sent() < missing - MIB / 2, "{} of {missing}", registry.sent());
}

/// A layer of which a large file is new, and the version before.
fn with_large_file(size: usize) -> (Layer, Layer) {
    let (same, old, new) = (noise(size, 50), noise(size, 51), noise(size, 52));
    (
        FAIR.make(&[("usr/same", &same), ("usr/z", &old)]),
        FAIR.make(&[("usr/same", &same), ("usr/z", &new)]),
    )
}

/// Pulls the version before, then the new one from a slow registry until so many bytes came, and is killed.
fn killed_in_a_large_file(folder: &Path, size: usize, bytes: usize) -> (Registry, Layer) {
    let (old, new) = with_large_file(size);
    let registry = Registry::start(&[&old]);
    finish(folder, &registry, &old);
    registry.serve(&[&new], Ranges::Several);
    *registry.pace.lock().unwrap() = SLOW;
    kill_after(folder, &registry, bytes);
    (registry, new)
}

#[test]
fn a_large_file_that_was_under_way_is_not_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, new) = killed_in_a_large_file(folder.path(), 6 * MIB, 4 * MIB);
    let [part] = &parts(folder.path())[..] else {
        panic!("{:?}", parts(folder.path()));
    };
    assert!(part.to_string_lossy().contains("-chunks-"), "{part:?}");
    let told = finish(folder.path(), &registry, &new);
    assert!(!says(&told, "as a whole"), "{told:?}");
    assert!(registry.sent() < 2 * MIB + OVERHEAD, "{}", registry.sent());
}

#[test]
fn a_file_that_takes_longer_than_from_one_interruption_to_the_next_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let each = 5 * MIB / 2;
    let (registry, new) = killed_in_a_large_file(folder.path(), 10 * MIB, each);
    for _ in 0..2 {
        kill_after(folder.path(), &registry, each);
    }
    finish(folder.path(), &registry, &new);
    let most = 10 * MIB - 3 * (each - OVERHEAD);
    assert!(registry.sent() < most, "{} of {most}", registry.sent());
}

#[test]
fn chunks_that_were_kept_and_are_not_what_they_were_are_fetched_again_and_only_they() {
    use std::os::unix::fs::FileExt;
    for damage in ["other bytes", "a hole", "cut", "of another file"] {
        let folder = tempfile::tempdir().unwrap();
        let (registry, new) = killed_in_a_large_file(folder.path(), 4 * MIB, 3 * MIB);
        let part = &parts(folder.path())[0];
        let file = fs::OpenOptions::new().write(true).open(part).unwrap();
        let length = file.metadata().unwrap().len();
        let lost = match damage {
            "other bytes" => file.write_all_at(b"other", length / 2).map(|()| 16 * KIB),
            "a hole" => file.write_all_at(&[0; 100 * KIB], length / 2).map(|()| 132 * KIB),
            "cut" => file.set_len(length - 100 * KIB as u64).map(|()| 116 * KIB),
            _ => fs::write(part, noise(4 * MIB, 99)).map(|()| 3 * MIB),
        };
        let told = finish(folder.path(), &registry, &new);
        assert!(!says(&told, "as a whole"), "{damage}: {told:?}");
        let most = MIB + OVERHEAD + lost.unwrap();
        assert!(registry.sent() < most, "{damage}: {} of {most}", registry.sent());
    }
}

/// A layer with a table of 4 MiB, and the version before.
fn with_large_table() -> (Layer, Layer) {
    let same = noise(MIB, 60);
    let make = |last: &str, padding: &str| {
        let recipe = Recipe {
            table: &|table| table["padding"] = padding.as_bytes().chunks(1000).map(String::from_utf8_lossy).collect(),
            ..FAIR
        };
        recipe.make(&[("usr/same", &same), ("usr/version", last.as_bytes())])
    };
    (make("1", ""), make("2", &BASE64_STANDARD.encode(noise(4 * MIB, 61))))
}

#[test]
fn a_table_that_was_under_way_or_complete_is_not_fetched_again_and_a_damaged_one_is() {
    let ((old, new), mut sent) = (with_large_table(), Vec::new());
    for damage in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(&[&old]);
        finish(folder.path(), &registry, &old);
        registry.serve(&[&new], Ranges::Several);
        *registry.pace.lock().unwrap() = SLOW;
        kill_after(folder.path(), &registry, 2 * MIB);
        let [part] = &parts(folder.path())[..] else {
            panic!("{:?}", parts(folder.path()));
        };
        assert!(part.to_string_lossy().contains("-table-"), "{part:?}");
        if damage {
            let length = usize::try_from(fs::metadata(part).unwrap().len()).unwrap();
            fs::write(part, vec![0; length]).unwrap();
        }
        let told = finish(folder.path(), &registry, &new);
        assert!(!says(&told, "as a whole"), "{told:?}");
        sent.push(registry.sent());
    }
    // Damaged, the whole of it comes, after what was still missing.
    assert!(sent[0] + MIB < sent[1], "{sent:?}");
}

#[test]
fn a_fast_network_keeps_nothing_of_a_large_file() {
    let (folder, (old, new)) = (tempfile::tempdir().unwrap(), with_large_file(4 * MIB));
    let registry = Registry::start(&[&old]);
    finish(folder.path(), &registry, &old);
    registry.serve(&[&new], Ranges::Cut(3 * MIB));
    run(folder.path(), &registry, 1).1.unwrap_err();
    assert!(parts(folder.path()).is_empty(), "{:?}", parts(folder.path()));
}

fn limited(rate: &str) -> Options {
    Options {
        limit: Some(Limit::new(rate.parse().unwrap())),
        ..options(2)
    }
}

#[test]
fn nothing_comes_faster_than_it_may_and_it_comes_evenly() {
    let layer = layer(MIB, 12);
    let registry = Registry::start(&[&layer]);
    let open = registry::Registry::open(&name(&registry), &limited("512K")).unwrap();
    let image = open.image(&Platform::host(), &Quiet).unwrap();
    let start = Instant::now();
    let mut blob = open.blob(&image.manifest.layers[0], &Quiet);
    let (mut bytes, mut buffer, mut slowest) = (Vec::new(), vec![0; 64 * KIB], Duration::ZERO);
    let mut last = Instant::now();
    loop {
        let n = blob.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..n]);
        slowest = slowest.max(last.elapsed());
        last = Instant::now();
        // Never ahead of the rate, by more than a moment's worth.
        let may = 512.0 * 1024.0 * start.elapsed().as_secs_f64() + 64.0 * 1024.0;
        assert!(
            (bytes.len() as f64) < may,
            "{} after {:?}",
            bytes.len(),
            start.elapsed()
        );
    }
    assert_eq!(bytes, layer.blob);
    let took = start.elapsed().as_secs_f32();
    assert!((1.8..4.0).contains(&took), "{took} s for 1 MiB at 512 KiB/s");
    assert!(slowest < Duration::from_millis(700), "{slowest:?} without a byte");
}

#[test]
fn one_limit_holds_for_all_connections_and_for_parts() {
    let (one, two) = (layer(MIB, 13), layer(MIB, 14));
    let (a, b) = (Registry::start(&[&one]), Registry::start(&[&two]));
    let options = limited("1M");
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (folder, registry) in [(&first, &a), (&second, &b)] {
            let options = &options;
            scope.spawn(move || pull_with(&store(folder.path()), registry, options).1.unwrap());
        }
    });
    let took = start.elapsed().as_secs_f32();
    assert!((1.8..5.0).contains(&took), "{took} s for 2 MiB at 1 MiB/s");

    let (folder, old, new) = (tempfile::tempdir().unwrap(), chunked(1000), chunked(2000));
    let registry = Registry::start(&[&old]);
    finish(folder.path(), &registry, &old);
    registry.serve(&[&new], Ranges::Several);
    let start = Instant::now();
    let (told, pulled) = pull_with(&store(folder.path()), &registry, &limited("1M"));
    pulled.unwrap();
    assert!(!says(&told, "as a whole"), "{told:?}");
    let took = start.elapsed().as_secs_f32();
    assert!((1.6..5.0).contains(&took), "{took} s for 1.9 MiB at 1 MiB/s");
}

#[test]
fn an_upload_is_no_faster_than_it_may() {
    let server = support::Server::start(|seen, _| match (seen.method.as_str(), seen.path.contains("uploads")) {
        ("POST", _) => support::Reply::new(202).with("Location", "/v2/org/os/blobs/uploads/1"),
        ("PATCH", _) => support::Reply::new(202).with("Location", "/v2/org/os/blobs/uploads/1"),
        ("PUT", _) => support::Reply::new(201),
        ("GET", _) => support::Reply::ok("{}"),
        _ => support::not_found(),
    });
    let reference = format!("{}/org/os:1", server.host()).parse().unwrap();
    let push = Push::open(&reference, &limited("512K"), &Quiet).unwrap();
    let bytes = noise(MIB, 15);
    let descriptor = cfs_core::manifest::Descriptor {
        media_type: "application/octet-stream".into(),
        digest: support::sha256(&bytes).parse().unwrap(),
        size: bytes.len() as u64,
        annotations: Default::default(),
    };
    let start = Instant::now();
    let mut content = |sink: &mut dyn std::io::Write| {
        sink.write_all(&bytes)
            .map_err(|e| cfs_core::Error::io("write", "blob", e))
    };
    push.put(&descriptor, &mut content, &Quiet).unwrap();
    let took = start.elapsed().as_secs_f32();
    assert!((1.8..5.0).contains(&took), "{took} s for 1 MiB at 512 KiB/s");
    let sent: Vec<u8> = server.seen().into_iter().flat_map(|seen| seen.body).collect();
    assert!(sent == bytes);
}
