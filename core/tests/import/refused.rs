//! Layers that are not what they say, cut or hostile: an error that names them, and nothing is left of them.

use cfs_core::Error;

use super::*;

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
