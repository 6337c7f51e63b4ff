//! Layers of which only parts are fetched: their chunks, their large files, their tables.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cfs_core::forecast::Forecast;

use super::*;
use crate::chunks::Recipe;

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
fn what_is_kept_of_a_table_is_not_said_to_be_fetched() {
    let (folder, (old, new)) = (tempfile::tempdir().unwrap(), with_large_table());
    let registry = Registry::start(&[&old]);
    finish(folder.path(), &registry, &old);
    registry.serve(&[&new], Ranges::Several);
    let said = || {
        let open = registry::Registry::open(&name(&registry), &options(1)).unwrap();
        let image = open.image(&Platform::host(), &Quiet).unwrap();
        let store = store(folder.path());
        let told = Forecast::new(Some(&store), store.path(), (&open, &image), &[], &Quiet).unwrap();
        usize::try_from(told.bytes()).unwrap()
    };
    let before = said();
    *registry.pace.lock().unwrap() = SLOW;
    kill_after(folder.path(), &registry, 2 * MIB);
    let [part] = &parts(folder.path())[..] else {
        panic!("{:?}", parts(folder.path()));
    };
    let kept = usize::try_from(fs::metadata(part).unwrap().len()).unwrap();
    *registry.pace.lock().unwrap() = None;
    assert_eq!(said(), before - kept);
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
