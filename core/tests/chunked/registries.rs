//! What registries make of requests for ranges: the layer comes, whatever they answer and wherever it is had from.

use super::*;

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
        (Ranges::Forbids(1), false),
        (Ranges::Forbids(2), false),
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
