//! zstd:chunked layers over HTTP: only what is missing is fetched, whatever the registry does the result is the layer,
//! and tables that lie are found out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../chunks/mod.rs"]
mod chunks;
mod figures;
mod index;
mod objects;
mod registries;
#[path = "../support/mod.rs"]
mod support;
mod tables;
#[path = "../tars/mod.rs"]
mod tars;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::layers::{Content, Item};
use cfs_core::manifest::Platform;
use cfs_core::pull;
use cfs_core::registry::{Options, Retry};
use cfs_core::store::{Origin, Store, gc};
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
