//! Layers into the store and back: what goes in comes out, byte for byte and entry for entry.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod tars;

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use cfs_core::ids::{Algorithm, DiffId, ObjectId};
use cfs_core::layers::{Content, Entry, Item};
use cfs_core::monitor::{Event, Monitor, Quiet};
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::store::{Store, fsck, gc};
use cfs_core::sys::verity;
use cfs_core::testing::CrashFs;
use cfs_core::{Error, Kind, Result};

use proptest::prelude::*;
use tars::{Header, Tar, diff_id, gzip, zstd};

fn source(diff_id: DiffId, compression: Compression, blob: Vec<u8>) -> LayerSource<'static> {
    LayerSource {
        partial: None,
        remote: None,
        diff_id,
        size: blob.len() as u64,
        compression,
        open: Box::new(move || Ok(Box::new(io::Cursor::new(blob)) as Box<dyn BufRead + Send>)),
    }
}

fn findings(store: &Store) -> Vec<fsck::Finding> {
    let mut findings = Vec::new();
    fsck::check(store, &no_objects, &mut |f| findings.push(f)).unwrap();
    findings
}

fn no_objects(_: &[u8]) -> Result<Vec<ObjectId>> {
    Ok(Vec::new())
}

fn store(folder: &Path, algorithm: Algorithm) -> Store {
    Store::open_or_create(&folder.join("composefs"), algorithm).unwrap()
}

fn import(store: &Store, tar: &[u8]) -> Result<DiffId> {
    let diff_id = diff_id(tar);
    import::layers(store, vec![source(diff_id, Compression::None, tar.to_vec())], 0, &Quiet)?;
    Ok(diff_id)
}

fn entries(store: &Store, diff_id: &DiffId) -> Vec<Entry> {
    store.entries(diff_id).unwrap().collect::<Result<_>>().unwrap()
}

fn rebuilt(store: &Store, diff_id: &DiffId) -> Vec<u8> {
    let mut out = Vec::new();
    store.rebuild(diff_id, &mut out).unwrap();
    out
}

/// Content of a regular file, read from the store where it is an object.
fn content(store: &Store, entry: &Entry) -> Vec<u8> {
    match &entry.item {
        Item::Regular(Content::Inline(bytes)) => bytes.to_vec(),
        Item::Regular(Content::Object { id, size }) => {
            let bytes = store.read_object(id, u64::MAX - 1).unwrap();
            assert_eq!(bytes.len() as u64, *size);
            assert_eq!(verity::hash(store.algorithm(), &bytes), *id);
            bytes
        }
        other => panic!("{other:?} is no file"),
    }
}

#[test]
fn a_layer_comes_back_entry_for_entry_and_byte_for_byte() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), algorithm);
        let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let tar = Tar::new()
            .directory("usr/")
            .file("usr/empty", b"")
            .file("usr/small", &[b's'; 64])
            .file("usr/medium", &[b'm'; 65])
            .file("usr/page", &[b'p'; 4096])
            .file("usr/big", &big)
            .file("usr/again", &[b'm'; 65])
            .finish();
        let diff_id = import(&store, &tar).unwrap();
        let entries = entries(&store, &diff_id);
        let sizes: Vec<_> = entries[1..].iter().map(|e| content(&store, e).len()).collect();
        assert_eq!(sizes, [0, 64, 65, 4096, big.len(), 65]);
        assert!(content(&store, &entries[5]) == big);
        assert_eq!(entries[3].item, entries[6].item);
        assert!(rebuilt(&store, &diff_id) == tar);
    }
}

#[test]
fn every_compression_gives_the_same_stream() {
    let folder = tempfile::tempdir().unwrap();
    let tar = Tar::new()
        .directory("d")
        .file("d/f", &[3; 5000])
        .file("d/g", &[4; 700_000])
        .finish();
    let diff_id = diff_id(&tar);
    let (a, b) = tar.split_at(3000);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, b'h', b'i'];
    let blobs = [
        (Compression::None, tar.clone()),
        (Compression::Gzip, gzip(&tar)),
        (Compression::Gzip, [gzip(a), gzip(b)].concat()),
        (Compression::Zstd, zstd(&tar)),
        (
            Compression::Zstd,
            [&skippable[..], &zstd(a), &skippable, &zstd(b), &skippable].concat(),
        ),
        // A wrong media type, as registries have them.
        (Compression::Gzip, zstd(&tar)),
        (Compression::Zstd, tar.clone()),
    ];
    let mut streams = Vec::new();
    for (n, (compression, blob)) in blobs.into_iter().enumerate() {
        let store = store(&folder.path().join(n.to_string()).tap(), Algorithm::Sha256);
        import::layers(&store, vec![source(diff_id, compression, blob)], 0, &Quiet).unwrap();
        store.publish().unwrap();
        streams.push(std::fs::read_link(store.path().join(format!("streams/oci-layer-{diff_id}"))).unwrap());
        assert!(rebuilt(&store, &diff_id) == tar);
    }
    streams.dedup();
    assert_eq!(streams.len(), 1);
}

/// Makes the folder that it names.
trait Tap {
    fn tap(self) -> Self;
}

impl Tap for std::path::PathBuf {
    fn tap(self) -> Self {
        std::fs::create_dir_all(&self).unwrap();
        self
    }
}

#[test]
fn a_wrong_diff_id_is_refused_and_leaves_no_layer() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let tar = Tar::new().file("f", &[1; 100_000]).finish();
    let wrong = DiffId::from_hash([7; 32]);
    let refused = import::layers(&store, vec![source(wrong, Compression::Gzip, gzip(&tar))], 0, &Quiet).unwrap_err();
    assert!(
        matches!(&refused, Error::Mismatch { expected, .. } if *expected == wrong.to_string()),
        "{refused}"
    );
    store.publish().unwrap();
    assert!(!store.has_layer(&wrong) && !store.has_layer(&diff_id(&tar)));
    assert_eq!(names(&store, "streams"), ["refs"]);
    assert_eq!(findings(&store), []);
}

fn names(store: &Store, folder: &str) -> Vec<String> {
    let names = std::fs::read_dir(store.path().join(folder)).unwrap();
    names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_layer_truncated_at_any_byte_is_refused_and_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let noise: Vec<u8> = (0..3000_u64)
        .map(|i| ((i * i * 2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
    let tar = Tar::new()
        .directory("d")
        .file("d/f", &noise)
        .file("d/g", &noise[..100])
        .finish();
    let diff_id = diff_id(&tar);
    for (compression, blob) in [(Compression::Gzip, gzip(&tar)), (Compression::Zstd, zstd(&tar))] {
        for end in (0..blob.len()).step_by(7).chain(blob.len() - 20..blob.len()) {
            let cut = source(diff_id, compression, blob[..end].to_vec());
            let refused = import::layers(&store, vec![cut], 0, &Quiet).unwrap_err();
            assert!(refused.to_string().contains("sha256:"), "{end}: {refused}");
            assert!(!store.has_layer(&diff_id), "{end}");
        }
    }
    store.publish().unwrap();
    assert_eq!(names(&store, "streams"), ["refs"]);
    import(&store, &tar).unwrap();
    assert!(rebuilt(&store, &diff_id) == tar);
}

#[test]
fn a_truncated_tar_names_the_layer_and_the_entry() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let tar = Tar::new().file("etc/first", b"x").file("usr/cut", &[1; 9000]).finish();
    for end in [1024 + 512 + 10, 1024 + 512 + 8999] {
        let refused = import(&store, &tar[..end]).unwrap_err().to_string();
        assert!(
            refused.contains("usr/cut") && refused.contains("truncated"),
            "{refused}"
        );
        assert!(refused.contains(&diff_id(&tar[..end]).to_string()), "{refused}");
    }
    let refused = import(&store, &tar[..1024 + 100]).unwrap_err().to_string();
    assert!(
        refused.contains("etc/first") && refused.contains("truncated"),
        "{refused}"
    );
}

#[test]
fn hostile_names_are_data_and_nothing_is_written_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let hostile = [
        "../../escape",
        "/absolute",
        "a/../../b",
        ".",
        "",
        "..",
        "new\nline",
        "l/passwd",
        ".wh..wh..opq",
    ];
    let mut tar = Tar::new().link("l", b'2', "/etc");
    for name in hostile {
        tar = tar.pax(&[("path", name.as_bytes())]).file("x", &[9; 200]);
    }
    let tar = tar
        .link("hard", b'1', "../../../etc/shadow")
        .file("\u{1}\u{7f}ü", b"x")
        .finish();
    let diff_id = import(&store, &tar).unwrap();
    store.publish().unwrap();
    let entries = entries(&store, &diff_id);
    let paths: Vec<_> = entries[1..]
        .iter()
        .map(|e| String::from_utf8_lossy(&e.path).into_owned())
        .collect();
    let expected: Vec<_> = hostile
        .iter()
        .map(|name| if name.is_empty() { "x" } else { name })
        .collect();
    assert_eq!(paths[..hostile.len()], expected);
    assert_eq!(entries[10].item, Item::Hardlink(b"../../../etc/shadow"[..].into()));
    let outside: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(outside, ["composefs"]);
    let mut inside = names(&store, "");
    inside.sort();
    assert_eq!(inside, ["cfs-update", "images", "meta.json", "objects", "streams"]);
    assert_eq!(findings(&store), []);
}

#[test]
fn holes_of_terabytes_cost_nothing_and_more_than_one_all_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let of = |sizes: &[u64]| {
        let add = |tar: Tar, (at, size): (usize, &u64)| {
            let size = size.to_string();
            tar.pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"")])
                .file(&format!("hole{at}"), b"")
        };
        sizes.iter().enumerate().fold(Tar::new(), add).finish()
    };
    let began = std::time::Instant::now();
    import(&store, &of(&[1 << 39, (1 << 39) - 1])).unwrap();
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    let error = import(&store, &of(&[1 << 39, (1 << 39) + 1])).unwrap_err().to_string();
    assert!(error.contains("hole1") && error.contains("more than"), "{error}");
}

#[test]
fn sparse_files_are_expanded_and_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let data: Vec<u8> = (0..200_u8).collect();
    let sparse = |tar: Tar, name: &str, size: &str, map: &str, data: &[u8]| {
        tar.pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())])
            .file(name, data)
    };
    let mut tar = sparse(Tar::new(), "large", "3000000", "4096,150,2999950,50", &data);
    tar = sparse(tar, "tiny data", "100000", "10,20,99990,10", &data[..30]);
    tar = sparse(tar, "tiny", "64", "1,3,60,4", &data[..7]);
    tar = sparse(tar, "hole", "70000", "", b"");
    tar = sparse(tar, "again", "3000000", "4096,150,2999950,50", &data);
    let tar = tar.file("plain", &data).finish();
    let diff_id = import(&store, &tar).unwrap();
    store.publish().unwrap();
    assert!(rebuilt(&store, &diff_id) == tar);
    let entries = entries(&store, &diff_id);
    let expand = |size: usize, parts: &[(usize, &[u8])]| {
        let mut whole = vec![0; size];
        parts
            .iter()
            .for_each(|(at, bytes)| whole[*at..at + bytes.len()].copy_from_slice(bytes));
        whole
    };
    let large = expand(3_000_000, &[(4096, &data[..150]), (2_999_950, &data[150..])]);
    assert!(content(&store, &entries[0]) == large && content(&store, &entries[4]) == large);
    assert!(content(&store, &entries[1]) == expand(100_000, &[(10, &data[..20]), (99_990, &data[20..30])]));
    assert_eq!(
        content(&store, &entries[2]),
        expand(64, &[(1, &data[..3]), (60, &data[3..7])])
    );
    assert!(content(&store, &entries[3]) == vec![0; 70_000]);
    assert_eq!(content(&store, &entries[5]), data);
    assert_eq!(findings(&store), []);
    let roots = gc::Roots {
        streams: vec![format!("oci-layer-{diff_id}")],
        ..Default::default()
    };
    assert!(
        gc::plan(&store, &roots, &no_objects).unwrap().is_empty(),
        "an expanded file is garbage"
    );
}

#[test]
fn what_follows_the_end_mark_is_kept_for_the_rebuild() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let base = Tar::new().file("f", &[1; 100]).finish();
    for tail in [vec![0; 9 * 1024], b"garbage".to_vec(), vec![5; 700_000]] {
        let tar = [base.clone(), tail].concat();
        let diff_id = import(&store, &tar).unwrap();
        assert!(rebuilt(&store, &diff_id) == tar);
        assert_eq!(entries(&store, &diff_id).len(), 1);
    }
    for odd in [&b""[..], &[0; 512], &[0; 1024], &base[..1024 - 400], &base[..1024]] {
        let diff_id = import(&store, odd).unwrap();
        assert!(rebuilt(&store, &diff_id) == odd);
    }
}

/// Sums what it hears.
#[derive(Default)]
struct Counts(Mutex<(u64, u64, u64, Vec<DiffId>)>);

impl Monitor for Counts {
    fn event(&self, event: Event) {
        let mut counts = self.0.lock().unwrap();
        match event {
            Event::Objects { stored, shared } => (counts.0, counts.1) = (counts.0 + stored, counts.1 + shared),
            Event::LayerBytes { bytes, .. } => counts.2 += bytes,
            Event::LayerDone { diff_id } => counts.3.push(diff_id),
            _ => {}
        }
    }
}

#[test]
fn files_that_are_here_are_not_written_again_and_events_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let first = Tar::new()
        .file("a", &[1; 100])
        .file("b", &[1; 100])
        .file("c", &vec![2; 2 << 20])
        .finish();
    let second = Tar::new().file("x", &vec![2; 2 << 20]).file("y", &[3; 100]).finish();
    let blobs = [gzip(&first), gzip(&second)];
    let counts = Counts::default();
    for (tar, blob) in [&first, &second].into_iter().zip(&blobs) {
        import::layers(
            &store,
            vec![source(diff_id(tar), Compression::Gzip, blob.clone())],
            0,
            &counts,
        )
        .unwrap();
    }
    let (stored, shared, bytes, done) = counts.0.into_inner().unwrap();
    assert_eq!((stored, shared), (3, 2));
    assert_eq!(bytes, (blobs[0].len() + blobs[1].len()) as u64);
    assert_eq!(done, [diff_id(&first), diff_id(&second)]);
}

#[test]
fn many_layers_side_by_side_and_one_broken_one_fails_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let tars: Vec<_> = (0..40_u8)
        .map(|n| Tar::new().file("own", &[n; 5000]).file("all", &[9; 5000]).finish())
        .collect();
    let sources = |broken: Option<usize>| -> Vec<_> {
        let all = tars.iter().enumerate();
        all.map(|(n, tar)| {
            let blob = if broken == Some(n) {
                gzip(tar)[..90].to_vec()
            } else {
                gzip(tar)
            };
            source(diff_id(tar), Compression::Gzip, blob)
        })
        .collect()
    };
    for threads in [1, 3, 0] {
        let refused = import::layers(&store, sources(Some(17)), threads, &Quiet)
            .unwrap_err()
            .to_string();
        assert!(refused.contains(&diff_id(&tars[17]).to_string()), "{refused}");
    }
    import::layers(&store, sources(None), 0, &Quiet).unwrap();
    store.publish().unwrap();
    assert!(tars.iter().all(|tar| rebuilt(&store, &diff_id(tar)) == *tar));
    assert_eq!(findings(&store), []);
}

#[test]
fn an_error_of_the_blob_keeps_its_kind() {
    struct Broken(&'static str);
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other(Error::Network {
                url: self.0.into(),
                why: "cut".into(),
            }))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let tar = Tar::new().file("f", &[1; 100_000]).finish();
    let blob = gzip(&tar);
    let half = blob.len() / 2;
    let failing = LayerSource {
        partial: None,
        remote: None,
        diff_id: diff_id(&tar),
        size: blob.len() as u64,
        compression: Compression::Gzip,
        open: Box::new(move || {
            Ok(Box::new(io::Cursor::new(blob[..half].to_vec()).chain(io::BufReader::new(Broken("https://r/b")))) as _)
        }),
    };
    let error = import::layers(&store, vec![failing], 0, &Quiet).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    assert!(error.to_string().contains("https://r/b"));
    let unopened = LayerSource {
        partial: None,
        remote: None,
        diff_id: diff_id(&tar),
        size: 1,
        compression: Compression::None,
        open: Box::new(|| {
            Err(Error::Network {
                url: "https://r/c".into(),
                why: "refused".into(),
            })
        }),
    };
    assert!(
        import::layers(&store, vec![unopened], 0, &Quiet)
            .unwrap_err()
            .to_string()
            .contains("https://r/c")
    );
}

#[test]
fn one_sync_comes_before_the_first_link_and_the_mark_outlives_the_links() {
    let folder = tempfile::tempdir().unwrap();
    let (base, stash) = (folder.path().join("base"), folder.path().join("stash"));
    std::fs::create_dir(&base).unwrap();
    std::fs::create_dir(&stash).unwrap();
    let fs = Arc::new(CrashFs::new(&base, &stash));
    let store = Store::create_with(fs.clone(), &base.join("composefs"), Algorithm::Sha256).unwrap();
    let made = fs.log().len();
    let tar = Tar::new().file("f", &[1; 100]).finish();
    let diff_id = import(&store, &tar).unwrap();
    let image = store.put_image(&[5; 5000]).unwrap();
    store.name_image("name", &image).unwrap();
    store.publish().unwrap();
    let log = fs.log().split_off(made);
    let at = |what: &str| {
        log.iter()
            .position(|line| line.contains(what))
            .unwrap_or_else(|| panic!("{what}: {log:#?}"))
    };
    let syncs: Vec<_> = log.iter().filter(|line| line.starts_with("sync-all")).collect();
    assert_eq!(syncs.len(), 1, "{log:#?}");
    let order = [
        at("cfs-update/unsynced"),
        at("sync-all"),
        at(&format!("streams/oci-layer-{diff_id}")),
        at("sync-dir composefs/streams"),
        at(&format!("images/{image}")),
        at("images/refs/cfs-update/name"),
        at("sync-dir composefs/images/refs/cfs-update"),
        log.iter()
            .rposition(|line| line.contains("cfs-update/unsynced"))
            .unwrap(),
    ];
    assert!(order.is_sorted(), "{order:?} {log:#?}");
    let before = fs.log().len();
    store.publish().unwrap();
    assert_eq!(fs.log().len(), before, "publishing nothing does something");
}

/// A store whose run ended without publishing.
fn interrupted(folder: &Path, tars: &[&[u8]]) {
    let store = store(folder, Algorithm::Sha256);
    for tar in tars {
        import(&store, tar).unwrap();
    }
}

#[test]
fn layers_of_an_interrupted_run_are_taken_over_after_every_object_was_checked() {
    let tar = Tar::new().file("a", &[1; 100]).file("b", &[2; 9000]).finish();
    let other = Tar::new().file("a", &[1; 100]).finish();
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path(), &[&tar, &other]);
    let store = store(folder.path(), Algorithm::Sha256);
    assert!(store.is_suspect() && names(&store, "streams") == ["refs"]);
    assert!(store.has_layer(&diff_id(&tar)));
    store.publish().unwrap();
    drop(store);
    let store = Store::open(&folder.path().join("composefs")).unwrap();
    assert!(store.has_layer(&diff_id(&tar)) && !store.has_layer(&diff_id(&other)));
    assert!(rebuilt(&store, &diff_id(&tar)) == tar);
    assert!(store.is_suspect(), "objects of the other layer may still be broken");
    let roots = gc::Roots {
        streams: vec![format!("oci-layer-{}", diff_id(&tar))],
        ..Default::default()
    };
    gc::run(&store, &roots, &no_objects).unwrap();
    assert!(!store.is_suspect() && !store.path().join("cfs-update/unsynced").exists());
    assert_eq!(findings(&store), []);
}

#[test]
fn objects_that_a_power_cut_emptied_or_filled_with_zeros_are_written_again() {
    let tar = Tar::new()
        .file("a", &[1; 100])
        .file("b", &[2; 9000])
        .file("c", &vec![3; 2 << 20])
        .finish();
    let damage: [fn(usize) -> Vec<u8>; 3] = [|_| Vec::new(), |size| vec![0; size], |size| vec![0; size / 2]];
    for damage in damage {
        let folder = tempfile::tempdir().unwrap();
        interrupted(folder.path(), &[&tar]);
        let store = store(folder.path(), Algorithm::Sha256);
        for entry in entries_of_pending(&tar) {
            let path = store.object_path(&verity::hash(Algorithm::Sha256, &entry));
            std::fs::write(path, damage(entry.len())).unwrap();
        }
        assert!(!store.has_layer(&diff_id(&tar)));
        import(&store, &tar).unwrap();
        store.publish().unwrap();
        assert!(rebuilt(&store, &diff_id(&tar)) == tar);
        assert_eq!(findings(&store), []);
    }
}

fn entries_of_pending(_: &[u8]) -> [Vec<u8>; 3] {
    [vec![1; 100], vec![2; 9000], vec![3; 2 << 20]]
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "is started and killed by another test"]
fn child_that_is_killed() {
    struct Forever;
    impl Read for Forever {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            println!("\nREADY");
            loop {
                std::thread::park();
            }
        }
    }
    let Some(folder) = std::env::var_os("CFS_TEST_KILL") else {
        return;
    };
    let store = store(Path::new(&folder), Algorithm::Sha256);
    let (whole, half) = (killed_layer(1), killed_layer(2));
    import(&store, &whole).unwrap();
    let source = LayerSource {
        partial: None,
        remote: None,
        diff_id: diff_id(&half),
        size: 1,
        compression: Compression::None,
        open: Box::new(move || {
            Ok(Box::new(io::Cursor::new(half[..1 << 20].to_vec()).chain(io::BufReader::new(Forever))) as _)
        }),
    };
    import::layers(&store, vec![source], 0, &Quiet).unwrap();
}

fn killed_layer(n: u8) -> Vec<u8> {
    (0..400_u16)
        .fold(Tar::new(), |tar, i| {
            tar.file(&format!("f{i}"), &[&[n; 4000][..], &i.to_le_bytes()].concat())
        })
        .finish()
}

#[test]
fn a_run_that_was_killed_succeeds_when_it_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--ignored", "--nocapture"])
        .env("CFS_TEST_KILL", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    while !seen.ends_with(b"READY") {
        out.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    assert!(store.is_suspect());
    let (whole, half) = (killed_layer(1), killed_layer(2));
    assert!(store.has_layer(&diff_id(&whole)) && !store.has_layer(&diff_id(&half)));
    import(&store, &half).unwrap();
    store.publish().unwrap();
    assert!(rebuilt(&store, &diff_id(&whole)) == whole && rebuilt(&store, &diff_id(&half)) == half);
    assert_eq!(findings(&store), []);
}

/// A small file system, unmounted when dropped; `None` without the right to mount.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, Some(options.as_c_str())) {
            Ok(()) => Some(Self(folder)),
            Err(e) => {
                println!("not tested: mounting a tmpfs needs root ({e})");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_what_was_there() {
    let noise = |n: u64| {
        (0..600_000_u64)
            .map(|i| ((i + n).wrapping_mul(i + 7).wrapping_mul(0x9e37_79b9) >> 11).to_le_bytes()[0])
            .collect::<Vec<_>>()
    };
    let small = Tar::new().file("fits", &noise(1)[..100_000]).finish();
    let large = (0..9)
        .fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), &noise(n)))
        .finish();
    let files = (0..400_u16)
        .fold(Tar::new(), |tar, n| {
            tar.file(&format!("f{n}"), &[&[1; 90][..], &n.to_le_bytes()].concat())
        })
        .finish();
    for (options, tar) in [("size=3m", large), ("size=30m,nr_inodes=500", files)] {
        let Some(disk) = Small::mount(options) else {
            return;
        };
        let store = store(disk.0.path(), Algorithm::Sha256);
        let kept = import(&store, &small).unwrap();
        store.publish().unwrap();
        let error = import(&store, &tar).unwrap_err();
        assert_eq!(error.kind(), Kind::Space, "{error}");
        assert!(!store.has_layer(&diff_id(&tar)));
        store.publish().unwrap();
        assert!(rebuilt(&store, &kept) == small);
        assert_eq!(findings(&store), []);
        let roots = gc::Roots {
            streams: vec![format!("oci-layer-{kept}")],
            ..Default::default()
        };
        assert!(!gc::run(&store, &roots, &no_objects).unwrap().is_empty());
        assert!(rebuilt(&store, &kept) == small);
    }
}

/// One entry of a made-up archive.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![
        0_usize..200,
        4000_usize..4200,
        250_000_usize..270_000,
        Just(1 << 20),
        Just((1 << 20) + 1)
    ];
    let name = "[a-z]{1,12}";
    prop_oneof![
        4 => (name, size, any::<u8>()).prop_map(|(name, size, byte)| Tar::new().file(&name, &vec![byte; size]).0),
        1 => name.prop_map(|name| Tar::new().directory(&name).0),
        1 => name.prop_map(|name| Tar::new().long_name(b'L', &name.repeat(30)).link("l", b'2', "t").0),
        1 => (name, 65_u64..5000).prop_map(|(name, hole)| {
            let map = format!("{hole},7");
            let size = (hole + 7).to_string();
            let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
            Tar::new().pax(&records).file(&name, b"content").0
        }),
        1 => any::<u8>().prop_map(|byte| Tar::new().pax(&[("SCHILY.xattr.user.x", &[byte; 90])]).header(Header::new("h", b'1', 0)).0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_tar_comes_back_byte_for_byte(
        pieces in proptest::collection::vec(piece(), 0..8),
        tail in proptest::collection::vec(any::<u8>(), 0..2000),
        sha512 in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), if sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 });
        let tar = [pieces.concat(), vec![0; 1024], tail].concat();
        let diff_id = import(&store, &tar).unwrap();
        prop_assert!(rebuilt(&store, &diff_id) == tar);
        prop_assert_eq!(entries(&store, &diff_id).len(), pieces.len());
        store.publish().unwrap();
        prop_assert_eq!(findings(&store), []);
    }
}
