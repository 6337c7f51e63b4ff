//! Files of a chunked layer that are in podman's storage are not fetched, whichever of its layers has them; what is
//! wrong there costs bytes and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod chunks;
mod support;
mod tars;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use cfs_core::forecast::{Forecast, Way};
use cfs_core::ids::Algorithm;
use cfs_core::image::{Versions, dump, writer};
use cfs_core::manifest::Platform;
use cfs_core::monitor::{Event, Monitor, Quiet};
use cfs_core::podman::Places;
use cfs_core::registry::{self, Options, Retry};
use cfs_core::store::Store;
use cfs_core::{Result, pull};

use chunks::{FAIR, Layer, Ranges, Registry};
use serde_json::json;
use support::noise;
use tars::diff_id;

const KIB: usize = 1 << 10;

type Files = Vec<(String, Vec<u8>)>;

/// Ten files of 150 KB, some small ones.
fn files(changed: &[usize]) -> Files {
    let mut files = Vec::new();
    for n in 0..10 {
        let seed = if changed.contains(&n) { 1000 + n } else { n };
        files.push((format!("usr/f{n}"), noise(150 * KIB + n, seed as u64)));
        files.push((format!("usr/s{n}"), noise(2000 + n, seed as u64)));
    }
    files
}

fn layer(files: &Files) -> Layer {
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| (path.as_str(), content.as_slice()))
        .collect();
    FAIR.make(&files)
}

/// A storage with one layer of these files, as podman writes it; a partial pull's has no diff_id.
fn storage(root: &Path, id: &str, diff_digest: &str, files: &Files) -> PathBuf {
    let layers = root.join("overlay-layers");
    std::fs::create_dir_all(&layers).unwrap();
    let record = json!([{"id": id, "diff-digest": diff_digest, "diff-size": 1}]);
    std::fs::write(layers.join("layers.json"), record.to_string()).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for (path, content) in files {
        let at = root.join("overlay").join(id).join("diff").join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, content).unwrap();
        writeln!(gz, "{}", json!({"type": 2, "payload": "AAAA", "position": 0})).unwrap();
        let line = json!({"type": 1, "name": path, "size": content.len(), "payload": "", "position": 1});
        writeln!(gz, "{line}").unwrap();
    }
    std::fs::write(layers.join(format!("{id}.tar-split.gz")), gz.finish().unwrap()).unwrap();
    root.join("overlay").join(id).join("diff")
}

/// Makes of such a layer what podman writes with `use_composefs`: names in an image, contents by other names.
fn with_composefs(diff: &Path, files: &Files) {
    let contents = diff.with_file_name("contents");
    let mut dump = String::from("/ 0 40755 2 0 0 0 0.0 - - -\n/usr 0 40755 2 0 0 0 0.0 - - -\n");
    for (n, (path, content)) in files.iter().enumerate() {
        let (folder, name) = (format!("{n:02x}"), format!("{n:062x}"));
        std::fs::create_dir_all(contents.join(&folder)).unwrap();
        std::fs::write(contents.join(&folder).join(&name), content).unwrap();
        let size = content.len();
        dump += &format!("/{path} {size} 100644 1 0 0 0 0.0 {folder}/{name} - -\n");
    }
    std::fs::remove_dir_all(diff).unwrap();
    std::fs::rename(&contents, diff).unwrap();
    let image = writer::build(&dump::parse(dump.as_bytes()).unwrap(), Versions::MKCOMPOSEFS).unwrap();
    let data = diff.with_file_name("composefs-data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("composefs.blob"), image).unwrap();
}

fn open(registry: &Registry, storage: &Path) -> registry::Registry {
    let options = Options {
        retry: Retry {
            first_wait: Duration::from_millis(1),
            ..Retry::default()
        },
        podman: Places {
            files: Vec::new(),
            usual: Some(storage.to_path_buf()),
            ..Places::default()
        },
        ..Options::default()
    };
    let reference = format!("{}/org/os:1", registry.server.host()).parse().unwrap();
    registry::Registry::open(&reference, &options).unwrap()
}

/// Does something when the first layer begins to come, and remembers what was said.
struct Meanwhile<'a> {
    act: &'a (dyn Fn() + Send + Sync),
    told: Mutex<Vec<String>>,
}

impl Monitor for Meanwhile<'_> {
    fn event(&self, event: Event) {
        let mut told = self.told.lock().unwrap();
        if matches!(event, Event::LayerStarted { .. }) && !told.iter().any(|t| t.contains("LayerStarted")) {
            (self.act)();
        }
        told.push(format!("{event:?}"));
    }
}

fn pull(store: &Store, registry: &registry::Registry, act: &(dyn Fn() + Send + Sync)) -> Result<Vec<String>> {
    let told = Meanwhile {
        act,
        told: Mutex::default(),
    };
    pull::pull(store, registry, &Platform::host(), 0, &told)?;
    Ok(told.told.into_inner().unwrap())
}

fn store(folder: &Path) -> Store {
    Store::open_or_create(&folder.join("composefs"), Algorithm::Sha256).unwrap()
}

fn rebuilt(store: &Store, layer: &Layer) -> bool {
    let mut out = Vec::new();
    store.rebuild(&diff_id(&layer.tar), &mut out).is_ok() && out == layer.tar
}

fn said(told: &[String], what: &str) -> bool {
    told.iter().any(|event| event.contains(what))
}

#[test]
fn what_podman_has_of_another_layer_is_not_fetched_into_an_empty_store() {
    let folder = tempfile::tempdir().unwrap();
    let podman = folder.path().join("containers");
    // One file is not the same; neither is the order.
    let mut others = files(&[4]);
    others.reverse();
    for digest in ["", "sha256:00"] {
        storage(&podman, "ab12", digest, &others);
        let wanted = layer(&files(&[]));
        let server = Registry::start(&[&wanted]);
        let place = folder.path().join(format!("store{}", digest.len()));
        std::fs::create_dir(&place).unwrap();
        let store = store(&place);
        let from = open(&server, &podman);
        let image = from.image(&Platform::host(), &Quiet).unwrap();
        let forecast = Forecast::new(Some(&store), store.path(), (&from, &image), &[], &Quiet).unwrap();
        assert_eq!(forecast.image.layers[0].way, Way::Parts);
        assert!(forecast.bytes() < 250 * KIB as u64, "{forecast:?}");
        // They are no objects yet.
        assert!(forecast.store.about.bytes > 10 * 150 * KIB as u64, "{forecast:?}");
        server.serve(&[&wanted], Ranges::Several);
        let told = pull(&store, &from, &|| ()).unwrap();
        assert!(said(&told, "looking through 1 layer(s) of podman's"), "{told:?}");
        assert!(!said(&told, "as a whole") && rebuilt(&store, &wanted), "{told:?}");
        assert!(server.sent() < 260 * KIB, "{} of {}", server.sent(), wanted.blob.len());
    }
}

#[test]
fn files_of_a_composefs_layer_of_podmans_are_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let podman = folder.path().join("containers");
    let others = files(&[4]);
    let diff = storage(&podman, "ab12", "", &others);
    with_composefs(&diff, &others);
    let wanted = layer(&files(&[]));
    let server = Registry::start(&[&wanted]);
    let store = store(folder.path());
    let told = pull(&store, &open(&server, &podman), &|| ()).unwrap();
    assert!(!said(&told, "as a whole") && rebuilt(&store, &wanted), "{told:?}");
    assert!(server.sent() < 260 * KIB, "{} of {}", server.sent(), wanted.blob.len());
}

#[test]
fn a_file_that_changes_while_it_is_used_makes_the_layer_come_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let podman = folder.path().join("containers");
    let wanted = layer(&files(&[]));
    let changed = |at: &Path| std::fs::write(at, vec![7; 150 * KIB + 3]).unwrap();
    let gone = |at: &Path| std::fs::remove_file(at).unwrap();
    let shorter = |at: &Path| std::fs::write(at, b"short").unwrap();
    type Act<'a> = &'a (dyn Fn(&Path) + Send + Sync);
    for (n, act) in [&changed as Act<'_>, &gone, &shorter].into_iter().enumerate() {
        let diff = storage(&podman, "ab12", "", &files(&[]));
        let server = Registry::start(&[&wanted]);
        let place = folder.path().join(format!("store{n}"));
        std::fs::create_dir(&place).unwrap();
        let store = store(&place);
        let told = pull(&store, &open(&server, &podman), &|| act(&diff.join("usr/f3"))).unwrap();
        assert!(said(&told, "is fetched as a whole"), "{n}: {told:?}");
        assert!(rebuilt(&store, &wanted), "{n}");
    }
}

#[test]
fn lists_that_are_longer_than_what_is_missing_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let podman = folder.path().join("containers");
    let wanted = layer(&files(&[]));
    storage(&podman, "ab12", "", &files(&[]));
    let list = podman.join("overlay-layers/ab12.tar-split.gz");
    let mut bytes = std::fs::read(&list).unwrap();
    // A gzip member of its own, of which the list goes on: it could be read.
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    let line = json!({"type": 2, "payload": "A".repeat(3 << 20), "position": 2});
    writeln!(gz, "{line}").unwrap();
    bytes.extend(gz.finish().unwrap());
    std::fs::write(&list, bytes).unwrap();
    let server = Registry::start(&[&wanted]);
    let store = store(folder.path());
    let told = pull(&store, &open(&server, &podman), &|| ()).unwrap();
    assert!(!said(&told, "looking through"), "{told:?}");
    assert!(rebuilt(&store, &wanted) && server.sent() > wanted.blob.len() / 2);
}

#[test]
fn what_is_damaged_or_not_what_it_should_be_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let podman = folder.path().join("containers");
    let wanted = layer(&files(&[]));
    let all = files(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let list = podman.join("overlay-layers/ab12.tar-split.gz");
    // The same sizes and names, and nothing of it the same; then half a list; then names that lead out of the layer.
    for n in 0..3 {
        let outside: Files = all
            .iter()
            .map(|(path, content)| (format!("../../../{path}"), content.clone()))
            .collect();
        storage(&podman, "ab12", "", if n == 2 { &outside } else { &all });
        if n == 1 {
            let half = std::fs::read(&list).unwrap();
            std::fs::write(&list, &half[..half.len() / 2]).unwrap();
        }
        let server = Registry::start(&[&wanted]);
        let place = folder.path().join(format!("store{n}"));
        std::fs::create_dir(&place).unwrap();
        let store = store(&place);
        pull(&store, &open(&server, &podman), &|| ()).unwrap();
        assert!(rebuilt(&store, &wanted), "{n}");
        assert!(server.sent() > wanted.blob.len() / 2, "{n}");
    }
}
