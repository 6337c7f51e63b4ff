//! zstd:chunked layers over HTTP: only what is missing is fetched, whatever the registry does the result is the layer,
//! and tables that lie are found out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod chunks;
mod support;
mod tars;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::layers::{Content, Item};
use cfs_core::manifest::Platform;
use cfs_core::pull;
use cfs_core::registry::{Options, Retry};
use cfs_core::store::{Store, gc};
use cfs_core::{Result, registry};

use chunks::{FAIR, Image, Layer, Ranges, Recipe, Registry, names};
use serde_json::json;
use support::{Told, noise};
use tars::diff_id;

const KIB: usize = 1 << 10;

fn options() -> Options {
    Options {
        retry: Retry {
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

/// What was told meanwhile.
fn pull(store: &Store, registry: &Registry) -> Result<Vec<String>> {
    let told = Told::default();
    pull_image(store, registry, &told)?;
    Ok(told.0.into_inner().unwrap())
}

fn pull_image(store: &Store, registry: &Registry, told: &Told) -> Result<ObjectId> {
    let reference = format!("{}/org/os:1", registry.server.host()).parse().unwrap();
    let open = registry::Registry::open(&reference, &options())?;
    Ok(pull::pull(store, &open, &Platform::host(), 0, told)?.id)
}

/// What was told meanwhile, `mirror` being asked first.
fn pull_behind(store: &Store, good: &Registry, mirror: &support::Server, folder: &Path) -> Vec<String> {
    let conf = folder.join("registries.conf");
    let text = format!(
        "[[registry]]\nprefix = \"h.example\"\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        good.server.host(),
        mirror.host(),
    );
    std::fs::write(&conf, text).unwrap();
    let options = Options {
        registries_conf: vec![conf],
        ..options()
    };
    let told = Told::default();
    let open = registry::Registry::open(&"h.example/org/os:1".parse().unwrap(), &options).unwrap();
    pull::pull(store, &open, &Platform::host(), 0, &told).unwrap();
    told.0.into_inner().unwrap()
}

fn fell_back(told: &[String]) -> bool {
    told.iter().any(|event| event.contains("is fetched as a whole"))
}

fn rebuilt(store: &Store, layer: &Layer) -> bool {
    let mut out = Vec::new();
    store.rebuild(&diff_id(&layer.tar), &mut out).is_ok() && out == layer.tar
}

/// A folder with files of several sizes, of which `changed` are of version 2.
fn files(changed: &[usize]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("usr/".to_owned(), Vec::new()), ("usr/empty".to_owned(), Vec::new())];
    for n in 0..28 {
        let seed = if changed.contains(&n) { 1000 + n } else { n };
        let size = [40, 3 * KIB, 9 * KIB, 40 * KIB][n % 4] + n;
        files.push((format!("usr/f{n}"), noise(size, seed as u64)));
    }
    files
}

fn layer_of(recipe: &Recipe<'_>, files: &[(String, Vec<u8>)]) -> Layer {
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| (path.as_str(), content.as_slice()))
        .collect();
    recipe.make(&files)
}

fn version(changed: &[usize]) -> Layer {
    layer_of(&FAIR, &files(changed))
}

/// The sum of what events of this name say of bytes.
fn bytes(told: &[String], event: &str) -> u64 {
    let events = told.iter().filter(|told| told.starts_with(&format!("{event} {{")));
    let numbers = events.map(|told| told.split_once(" bytes: ").unwrap().1.trim_end_matches([' ', '}']));
    numbers.map(|number| number.parse::<u64>().unwrap()).sum()
}

#[test]
fn an_update_fetches_the_changed_files_and_little_else() {
    let (folder, v1, v2) = (tempfile::tempdir().unwrap(), version(&[]), version(&[7, 10, 21]));
    let registry = Registry::start(&[&v1]);
    let store = store(folder.path());
    let told = pull(&store, &registry).unwrap();
    assert!(!fell_back(&told), "{told:?}");
    assert!(
        registry.ranges().is_empty(),
        "a store with nothing in it asks for the whole at once"
    );
    assert!(rebuilt(&store, &v1));
    assert_eq!(
        names(&store.path().join("cfs-update/index")),
        [diff_id(&v1.tar).to_hex()]
    );

    registry.serve(&[&v2], Ranges::Several);
    let told = pull(&store, &registry).unwrap();
    assert!(!fell_back(&told), "{told:?}");
    assert!(rebuilt(&store, &v2));
    assert_eq!(
        bytes(&told, "Plan"),
        bytes(&told, "LayerBytes"),
        "what is announced is what comes"
    );
    let changed: usize = ["usr/f7", "usr/f10", "usr/f21"]
        .iter()
        .map(|path| v2.places[*path].len())
        .sum();
    let overhead = v2.blob.len() - v2.places["usr/f27"].end;
    let sent = registry.sent() - Image::new(&[&v2]).blobs.values().map(Vec::len).min().unwrap();
    assert!(
        sent <= changed + overhead + 2 * KIB,
        "{sent} for {changed} and {overhead}"
    );
    assert_eq!(registry.ranges().len(), 2, "{:?}", registry.ranges());

    // Both are indexed: going on to a third version needs no more.
    let v3 = version(&[7, 10, 22]);
    registry.serve(&[&v3], Ranges::Several);
    assert!(!fell_back(&pull(&store, &registry).unwrap()));
    assert!(rebuilt(&store, &v3) && registry.sent() < v3.places["usr/f22"].len() + overhead + 2 * KIB);
}

#[test]
fn whatever_a_registry_makes_of_ranges_the_layer_comes() {
    let (v1, v2) = (version(&[]), version(&[3, 11, 19, 21]));
    for (ways, whole) in [
        (Ranges::Several, false),
        (Ranges::Single, false),
        (Ranges::First, false),
        (Ranges::Cut(60 * KIB), false),
        (Ranges::Ignored, true),
        (Ranges::Refused, true),
        (Ranges::Other, true),
        (Ranges::Shifted, true),
        (Ranges::Broken, true),
        (Ranges::FailsSeveral, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(&[&v1]);
        let store = store(folder.path());
        pull(&store, &registry).unwrap();
        registry.serve(&[&v2], ways);
        let told = pull(&store, &registry).unwrap();
        assert!(rebuilt(&store, &v2), "{ways:?}");
        assert_eq!(fell_back(&told), whole, "{ways:?}: {told:?}");
    }
}

#[test]
fn connections_that_end_after_a_megabyte_are_taken_up_where_they_ended() {
    let folder = tempfile::tempdir().unwrap();
    let large = |names: &[&str]| {
        let seeds = (1..).zip(names);
        let more = seeds.map(|(seed, name)| ((*name).to_owned(), noise(9_000_000, seed)));
        layer_of(&FAIR, &files(&[]).into_iter().chain(more).collect::<Vec<_>>())
    };
    let (old, new) = (large(&["usr/a"]), large(&["usr/a", "usr/b"]));
    let store = store(folder.path());
    let registry = Registry::start(&[&old]);
    *registry.ways.lock().unwrap() = Ranges::Cut(1_000_000);
    pull(&store, &registry).unwrap();
    assert!(rebuilt(&store, &old));
    registry.serve(&[&new], Ranges::Cut(1_000_000));
    let told = pull(&store, &registry).unwrap();
    assert!(!fell_back(&told) && rebuilt(&store, &new), "{told:?}");
    assert!(registry.sent() < 11_000_000, "{}", registry.sent());
    assert!(registry.ranges().len() >= 19, "{:?}", registry.ranges());
}

#[test]
fn layers_that_were_fetched_without_a_table_are_looked_through_once() {
    let (folder, v1) = (tempfile::tempdir().unwrap(), version(&[]));
    let plain = Layer {
        annotations: Default::default(),
        ..v1.clone()
    };
    let big = files(&[])
        .into_iter()
        .chain([("usr/large".to_owned(), noise(1200 << 10, 99))])
        .collect::<Vec<_>>();
    let changed = files(&[11])
        .into_iter()
        .chain([("usr/large".to_owned(), noise(1200 << 10, 99))])
        .collect::<Vec<_>>();
    let registry = Registry::start(&[
        &Layer {
            annotations: Default::default(),
            ..layer_of(&FAIR, &big)
        },
        &plain,
    ]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let index = store.path().join("cfs-update/index");
    assert!(names(&index).is_empty(), "a plain import pays nothing");
    let large = layer_of(&FAIR, &changed);
    registry.serve(&[&large], Ranges::Several);
    let told = pull(&store, &registry).unwrap();
    assert!(told.iter().any(|event| event.contains("looking through")), "{told:?}");
    assert!(rebuilt(&store, &large));
    assert!(
        registry.sent() < large.blob.len() / 10,
        "{} of {}",
        registry.sent(),
        large.blob.len()
    );
    assert_eq!(names(&index).len(), 3);
}

#[test]
fn tables_that_lie_cost_bytes_and_nothing_else() {
    let original = files(&[]);
    let v2 = files(&[5]);
    let swap = |table: &mut serde_json::Value| {
        // Two files of the old version say that they are each other.
        let entries = table["entries"].as_array_mut().unwrap();
        let (a, b) = (entries[3]["digest"].clone(), entries[7]["digest"].clone());
        (entries[3]["digest"], entries[7]["digest"]) = (b, a);
    };
    let other_digest = |table: &mut serde_json::Value| table["entries"][3]["digest"] = json!(support::sha256(b"x"));
    let overlap = |table: &mut serde_json::Value| table["entries"][4]["offset"] = json!(1);
    let huge = |table: &mut serde_json::Value| table["entries"][3]["size"] = json!(u64::MAX);
    let negative = |table: &mut serde_json::Value| table["entries"][3]["offset"] = json!(-1);
    let bomb = |table: &mut serde_json::Value| table["entries"][3]["size"] = json!(1u64 << 50);
    let fewer = |table: &mut serde_json::Value| drop(table["entries"].as_array_mut().unwrap().pop());
    type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
    let tables: [(&str, Change<'_>); 7] = [
        ("swapped", &swap),
        ("other digest", &other_digest),
        ("overlap", &overlap),
        ("huge", &huge),
        ("negative", &negative),
        ("bomb", &bomb),
        ("fewer", &fewer),
    ];
    for (what, table) in tables {
        for first in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let lying = Recipe { table, ..FAIR };
            let old = layer_of(if first { &lying } else { &FAIR }, &original);
            let new = layer_of(if first { &FAIR } else { &lying }, &v2);
            let registry = Registry::start(&[&old]);
            pull(&store, &registry).unwrap();
            registry.serve(&[&new], Ranges::Several);
            pull(&store, &registry).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(rebuilt(&store, &old) && rebuilt(&store, &new), "{what}, {first}");
            // The next update is right again, and a small one.
            let third = layer_of(&FAIR, &files(&[5, 9]));
            registry.serve(&[&third], Ranges::Several);
            pull(&store, &registry).unwrap();
            assert!(rebuilt(&store, &third), "{what}, {first}");
        }
    }
}

#[test]
fn a_table_or_tar_split_with_another_digest_or_size_is_not_believed() {
    let v1 = version(&[]);
    type Change<'a> = &'a dyn Fn(&mut std::collections::BTreeMap<String, String>);
    let set = |key: &'static str, value: String| {
        move |annotations: &mut std::collections::BTreeMap<String, String>| {
            annotations.insert(format!("io.github.containers.zstd-chunked.{key}"), value.clone());
        }
    };
    let wrong = set("manifest-checksum", support::sha256(b"no"));
    let short = |annotations: &mut std::collections::BTreeMap<String, String>| {
        let position = annotations
            .get_mut("io.github.containers.zstd-chunked.manifest-position")
            .unwrap();
        let parts: Vec<&str> = position.split(':').collect();
        *position = format!("{}:{}:100:1", parts[0], parts[1]);
    };
    let elsewhere = set("tarsplit-position", "100:200:3000".into());
    let raw = |split: &mut Vec<serde_json::Value>| split[0]["payload"] = json!("AAAA");
    let longer = |split: &mut Vec<serde_json::Value>| split.push(json!({"type": 1, "size": 5}));
    let none = |_: &mut Vec<serde_json::Value>| {};
    let keep = |_: &mut std::collections::BTreeMap<String, String>| {};
    type Split<'a> = &'a dyn Fn(&mut Vec<serde_json::Value>);
    let cases: [(&str, Change<'_>, Split<'_>); 5] = [
        ("checksum", &wrong, &none),
        ("bomb", &short, &none),
        ("elsewhere", &elsewhere, &none),
        ("other header", &keep, &raw),
        ("more files", &keep, &longer),
    ];
    for (what, annotations, tar_split) in cases {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let registry = Registry::start(&[&v1]);
        pull(&store, &registry).unwrap();
        let recipe = Recipe {
            annotations,
            tar_split,
            ..FAIR
        };
        let v2 = layer_of(&recipe, &files(&[8]));
        registry.serve(&[&v2], Ranges::Several);
        let told = pull(&store, &registry).unwrap();
        assert!(fell_back(&told), "{what}: {told:?}");
        assert!(rebuilt(&store, &v2), "{what}");
    }
}

/// What the object has that a layer's file became.
fn object_of(store: &Store, layer: &Layer, path: &str) -> Vec<u8> {
    let mut entries = store.entries(&diff_id(&layer.tar)).unwrap().map(Result::unwrap);
    let entry = entries.find(|entry| *entry.path == *path.as_bytes()).unwrap();
    let Item::Regular(Content::Object { id, size }) = entry.item else {
        panic!("{path}: {entry:?}")
    };
    let object = std::fs::read(store.path().join("objects").join(id.object_path())).unwrap();
    assert_eq!(object.len() as u64, size, "{path}");
    object
}

#[test]
fn a_file_that_is_a_chunk_of_a_larger_file_which_is_here_becomes_an_object_of_its_own() {
    let plain_zeros = |table: &mut serde_json::Value| {
        for entry in table["entries"].as_array_mut().unwrap() {
            entry.as_object_mut().unwrap().remove("chunkType");
        }
    };
    let recipe = Recipe {
        table: &plain_zeros,
        ..FAIR
    };
    let large = noise(50 * KIB, 77);
    let with = |more: &[(&str, &[u8])]| {
        let more = more
            .iter()
            .map(|(path, content)| ((*path).to_owned(), content.to_vec()));
        layer_of(&recipe, &files(&[]).into_iter().chain(more).collect::<Vec<_>>())
    };
    let zeros = vec![0; 300 * KIB];
    let old = with(&[("usr/log", &large), ("usr/zeros", &zeros)]);
    let parts: [(&str, &[u8]); 4] = [
        ("usr/log", &large[..16 * KIB]),
        ("usr/second", &large[16 * KIB..32 * KIB]),
        ("usr/last", &large[48 * KIB..]),
        ("usr/zeros", &zeros[..16 * KIB]),
    ];
    let new = with(&parts);
    let (warm, cold) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (warm, cold) = (store(warm.path()), store(cold.path()));
    let registry = Registry::start(&[&old]);
    pull(&warm, &registry).unwrap();
    registry.serve(&[&new], Ranges::Several);
    let told = pull(&warm, &registry).unwrap();
    assert!(!fell_back(&told), "{told:?}");
    let sent = registry.sent();
    assert!(
        sent < new.blob.len() / 4,
        "{sent} of {}: the chunks are here",
        new.blob.len()
    );
    let images = [&warm, &cold].map(|store| pull_image(store, &registry, &Told::default()).unwrap());
    assert!(rebuilt(&warm, &new));
    for (path, content) in parts {
        assert_eq!(object_of(&warm, &new, path), content, "{path}");
    }
    assert_eq!(images[0], images[1], "the image is that of a cold pull");
}

#[test]
fn an_object_that_is_damaged_makes_way_for_the_right_one_when_an_update_by_parts_meets_it() {
    let (folder, v1, v2) = (tempfile::tempdir().unwrap(), version(&[]), version(&[7]));
    let registry = Registry::start(&[&v1]);
    pull(&store(folder.path()), &registry).unwrap();
    let store = store(folder.path());
    let mut objects = store
        .entries(&diff_id(&v1.tar))
        .unwrap()
        .map(|entry| entry.unwrap().item);
    let is_large = |item: Item| match item {
        Item::Regular(Content::Object { id, size }) if size > 40_000 => Some(store.object_path(&id)),
        _ => None,
    };
    let object = objects.find_map(is_large).unwrap();
    let good = std::fs::read(&object).unwrap();
    let damaged: Vec<u8> = good.iter().map(|byte| byte ^ 1).collect();
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, damaged).unwrap();
    registry.serve(&[&v2], Ranges::Several);
    let told = pull(&store, &registry).unwrap();
    assert!(fell_back(&told), "{told:?}");
    assert_eq!(std::fs::read(&object).unwrap(), good);
    assert!(rebuilt(&store, &v1) && rebuilt(&store, &v2));
}

#[test]
fn the_index_is_made_again_where_it_is_damaged_old_or_gone_and_collected_with_its_layer() {
    let folder = tempfile::tempdir().unwrap();
    let big: Vec<_> = files(&[])
        .into_iter()
        .chain([("usr/large".to_owned(), noise(1200 << 10, 5))])
        .collect();
    let old = layer_of(&FAIR, &big);
    let registry = Registry::start(&[&old]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let path: PathBuf = store.path().join("cfs-update/index").join(diff_id(&old.tar).to_hex());
    let good = std::fs::read(&path).unwrap();
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let damages: [Damage<'_>; 5] = [
        &|bytes| bytes.truncate(bytes.len() / 2),
        &|bytes| bytes.clear(),
        &|bytes| bytes[100] ^= 1,
        &|bytes| bytes[8] = 0,
        &|bytes| bytes.extend([0; 9]),
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let mut bytes = good.clone();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let mut changed = big.clone();
        changed.push((format!("usr/new{n}"), noise(100, 500 + n as u64)));
        let new = layer_of(&FAIR, &changed);
        registry.serve(&[&new], Ranges::Several);
        let told = pull(&store, &registry).unwrap();
        assert!(!fell_back(&told) && rebuilt(&store, &new), "{n}: {told:?}");
        assert!(registry.sent() < new.blob.len() / 4, "{n}: {}", registry.sent());
    }
    // Only the last one is named: the others go, with their index.
    let none = |_: &[u8]| Ok(Vec::new());
    gc::run(&store, &gc::Roots::default(), &none).unwrap();
    assert_eq!(names(&store.path().join("cfs-update/index")).len(), 1);
}

#[test]
fn an_index_that_is_a_link_is_not_used_and_what_it_leads_to_stays() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), version(&[]));
    let registry = Registry::start(&[&layer]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let (index, outside) = (store.path().join("cfs-update/index"), folder.path().join("outside"));
    std::fs::remove_dir_all(&index).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "theirs").unwrap();
    std::os::unix::fs::symlink(&outside, &index).unwrap();
    let new = version(&[3]);
    registry.serve(&[&new], Ranges::Several);
    pull(&store, &registry).unwrap();
    assert!(rebuilt(&store, &new));
    gc::run(&store, &gc::Roots::default(), &|_| Ok(Vec::new())).unwrap();
    assert_eq!(names(&outside), ["precious"]);
}

#[test]
fn a_pipe_or_a_link_in_the_index_is_not_waited_for_and_goes() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), version(&[]));
    let registry = Registry::start(&[&layer]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let path = store.path().join("cfs-update/index").join(diff_id(&layer.tar).to_hex());
    let outside = folder.path().join("outside");
    std::fs::rename(&path, &outside).unwrap();
    let pipe = || rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    let link = || std::os::unix::fs::symlink(&outside, &path).unwrap();
    let kinds: [&dyn Fn(); 2] = [&pipe, &link];
    for (n, make) in kinds.into_iter().enumerate() {
        make();
        let new = version(&[n]);
        registry.serve(&[&new], Ranges::Several);
        pull(&store, &registry).unwrap();
        assert!(rebuilt(&store, &new), "{n}");
        assert!(path.symlink_metadata().is_err(), "{n}");
    }
}

#[test]
fn a_mirror_with_other_bytes_in_its_layers_is_passed_over() {
    let layer = version(&[]);
    let good = Registry::start(&[&layer]);
    let image = Image::new(&[&layer]);
    for garbled in [0, layer.blob.len() - 10] {
        let mut wrong = image.clone();
        let digest = support::sha256(&layer.blob);
        wrong.blobs.get_mut(&digest).unwrap()[garbled] ^= 1;
        let mirror = support::Server::start(move |seen, _| match seen.path.split_once("/blobs/") {
            Some((_, digest)) => support::Reply::ok(wrong.blobs[digest].clone()),
            None => support::manifest_reply(&wrong.manifest, support::MANIFEST),
        });
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let told = pull_behind(&store, &good, &mirror, folder.path());
        assert!(rebuilt(&store, &layer), "{garbled}");
        assert!(
            told.iter().any(|event| event.contains("mirror passed over")),
            "{told:?}"
        );
    }
}

#[test]
fn parts_come_from_the_registry_where_a_mirror_has_the_manifest_and_not_the_layers() {
    let (folder, v1, v2) = (tempfile::tempdir().unwrap(), version(&[]), version(&[7, 10, 21]));
    let good = Registry::start(&[&v1]);
    let store = store(folder.path());
    pull(&store, &good).unwrap();
    good.serve(&[&v2], Ranges::Several);
    let image = Image::new(&[&v2]);
    let layer = support::sha256(&v2.blob);
    let mirror = support::Server::start(move |seen, _| match seen.path.split_once("/blobs/") {
        Some((_, digest)) if digest == layer => support::not_found(),
        Some((_, digest)) => support::Reply::ok(image.blobs[digest].clone()),
        None => support::manifest_reply(&image.manifest, support::MANIFEST),
    });
    let told = pull_behind(&store, &good, &mirror, folder.path());
    assert!(!fell_back(&told) && rebuilt(&store, &v2), "{told:?}");
    assert!(good.sent() < v2.blob.len() / 2, "{} of {}", good.sent(), v2.blob.len());
}
