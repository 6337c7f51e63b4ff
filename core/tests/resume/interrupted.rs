//! Downloads that are interrupted, and where they go on.

use cfs_core::store::Origin;
use cfs_core::store::import::{Compression, LayerSource, Plan, Remote};

use super::*;

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
