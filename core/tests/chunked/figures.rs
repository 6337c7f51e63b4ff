//! What is said beforehand to be fetched, beside what is fetched then.

use cfs_core::forecast::{Forecast, Way};
use cfs_core::monitor::Quiet;

use super::*;

fn forecast(store: &Store, registry: &Registry) -> Forecast {
    let reference = format!("{}/org/os:1", registry.server.host()).parse().unwrap();
    let open = registry::Registry::open(&reference, &options()).unwrap();
    let image = open.image(&Platform::host(), &Quiet).unwrap();
    Forecast::new(Some(store), store.path(), (&open, &image), &[], &Quiet).unwrap()
}

/// Small files, of which every tenth of the first `changed` is of version 2.
fn small_files(changed: usize) -> Layer {
    let seed = |n: usize| n + 1000 * usize::from(n < changed && n.is_multiple_of(10));
    let content = |n: usize| noise(3 * KIB, seed(n) as u64);
    let files: Vec<_> = (0..400).map(|n| (format!("usr/f{n}"), content(n))).collect();
    layer_of(&FAIR, &files)
}

/// Bytes of a blob that a request for ranges got.
fn came(ways: Ranges, header: &str) -> u64 {
    let ranges = header.strip_prefix("bytes=").unwrap().split(',');
    let bytes = ranges.map(|range| {
        let (first, last) = range.split_once('-').unwrap();
        last.parse::<u64>().unwrap() - first.parse::<u64>().unwrap() + 1
    });
    match ways {
        Ranges::Several => bytes.sum(),
        Ranges::First => bytes.take(1).sum(),
        _ if header.contains(',') => 0,
        _ => bytes.sum(),
    }
}

#[test]
fn what_a_registry_of_single_ranges_makes_us_read_along_is_said_before_anything_is_fetched() {
    for ways in [Ranges::Several, Ranges::Single, Ranges::First, Ranges::FailsSeveral] {
        let (folder, v1, v2) = (tempfile::tempdir().unwrap(), small_files(0), small_files(200));
        let registry = Registry::start(&[&v1]);
        let store = store(folder.path());
        pull(&store, &registry).unwrap();
        registry.serve(&[&v2], ways);
        let said = forecast(&store, &registry);
        assert_eq!(said.image.layers[0].way, Way::Parts, "{ways:?}");
        let before = registry.ranges().len();
        let told = pull(&store, &registry).unwrap();
        assert!(!fell_back(&told) && rebuilt(&store, &v2), "{ways:?}: {told:?}");
        let came: u64 = registry.ranges()[before..].iter().map(|asked| came(ways, asked)).sum();
        // The head of a frame is between table and tar-split.
        assert!(
            (said.bytes()..=said.bytes() + 8).contains(&came),
            "{ways:?}: {} said, {came} came",
            said.bytes()
        );
        assert_eq!(bytes(&told, "Plan"), bytes(&told, "LayerBytes"), "{ways:?}");
    }
}

#[test]
fn a_layer_of_which_most_would_be_read_along_comes_as_a_whole() {
    for (ways, way) in [(Ranges::Several, Way::Parts), (Ranges::Single, Way::Whole)] {
        let (folder, v1, v2) = (tempfile::tempdir().unwrap(), small_files(0), small_files(400));
        let registry = Registry::start(&[&v1]);
        let store = store(folder.path());
        pull(&store, &registry).unwrap();
        registry.serve(&[&v2], ways);
        assert_eq!(forecast(&store, &registry).image.layers[0].way, way, "{ways:?}");
        let told = pull(&store, &registry).unwrap();
        assert!(!fell_back(&told) && rebuilt(&store, &v2), "{ways:?}: {told:?}");
    }
}

#[test]
fn a_table_that_was_fetched_for_nothing_is_in_the_figures() {
    let wrong = |annotations: &mut std::collections::BTreeMap<String, String>| {
        let key = "io.github.containers.zstd-chunked.manifest-checksum";
        annotations.insert(key.into(), support::sha256(b"no"));
    };
    let damaged = Recipe {
        annotations: &wrong,
        ..FAIR
    };
    let all: Vec<usize> = (0..28).collect();
    for (what, v2) in [
        ("most is new", version(&all)),
        ("the table is another", layer_of(&damaged, &files(&[7]))),
    ] {
        let (folder, v1) = (tempfile::tempdir().unwrap(), version(&[]));
        let registry = Registry::start(&[&v1]);
        let store = store(folder.path());
        pull(&store, &registry).unwrap();
        registry.serve(&[&v2], Ranges::Several);
        let said = forecast(&store, &registry);
        assert_eq!(said.image.layers[0].way, Way::Whole, "{what}");
        let before = registry.ranges().len();
        let told = pull(&store, &registry).unwrap();
        assert!(rebuilt(&store, &v2), "{what}");
        let [table] = &registry.ranges()[before..] else {
            panic!("{what}: {:?}", registry.ranges());
        };
        let sum = v2.blob.len() as u64 + came(Ranges::Several, table);
        assert_eq!(said.bytes(), sum, "{what}");
        assert_eq!((bytes(&told, "Plan"), bytes(&told, "LayerBytes")), (sum, sum), "{what}");
    }
}

/// Leaves table and tar-split of a layer in the store, as an interrupted run would have.
fn keep_table(store: &Store, registry: &Registry, layer: &Layer) {
    let note = |key: &str| &layer.annotations[&format!("io.github.containers.zstd-chunked.{key}")];
    let of = |position: &str| {
        let numbers: Vec<usize> = position.split(':').map(|number| number.parse().unwrap()).collect();
        &layer.blob[numbers[0]..numbers[0] + numbers[1]]
    };
    let bytes = [of(note("manifest-position")), of(note("tarsplit-position"))].concat();
    let origin = Origin::new(&format!("{}/org/os", registry.server.host()));
    let name = format!("{}-table-{origin}", &note("manifest-checksum")["sha256:".len()..]);
    let folder = store.path().join("cfs-update/parts");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
}

#[test]
fn a_registry_of_single_ranges_is_known_where_the_table_is_here_as_well() {
    for ways in [Ranges::Several, Ranges::Single] {
        let (folder, v1, v2) = (tempfile::tempdir().unwrap(), small_files(0), small_files(200));
        let registry = Registry::start(&[&v1]);
        let store = store(folder.path());
        pull(&store, &registry).unwrap();
        registry.serve(&[&v2], ways);
        keep_table(&store, &registry, &v2);
        let said = forecast(&store, &registry);
        let before = registry.ranges().len();
        let told = pull(&store, &registry).unwrap();
        assert!(!fell_back(&told) && rebuilt(&store, &v2), "{ways:?}: {told:?}");
        let came: Vec<u64> = registry.ranges()[before..]
            .iter()
            .map(|asked| came(ways, asked))
            .collect();
        // What was kept was not fetched: two bytes were, or what lies between them as well.
        let more = came.iter().filter(|bytes| **bytes > 10);
        assert_eq!(more.count(), 1, "{ways:?}: {came:?}");
        let sum: u64 = came.iter().sum();
        assert!(
            (said.bytes()..=said.bytes() + 8).contains(&sum),
            "{ways:?}: {said:?}, {came:?}"
        );
    }
}
