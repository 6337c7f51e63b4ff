//! Whatever is in a layer, and however it is packed, it comes back as it was.

use cfs_core::layers::Content;
use proptest::prelude::*;

use super::*;
use crate::tars::Header;

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
