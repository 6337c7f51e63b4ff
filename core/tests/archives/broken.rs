//! What is broken or missing in layouts and archives is said, with the file.

use super::*;

#[test]
fn what_an_incomplete_archive_lacks_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let plain = plain();
    for reference in ["docker-archive", "oci-archive"].map(|kind| format!("{kind}:{}", path.display())) {
        for (end, why) in [
            (plain.len() - 20_000, "ends in the middle of \"2.tar\""),
            (2048 + 300, "is damaged or incomplete behind"),
            (300, "is no tar archive"),
        ] {
            fs::write(&path, &plain[..end]).unwrap();
            let error = pull(dir.path(), &reference).unwrap_err();
            assert_eq!(error.kind(), cfs_core::Kind::Failed, "{error}");
            let error = error.to_string();
            assert!(
                error.contains(why) && error.contains(path.to_str().unwrap()),
                "{end}: {error}"
            );
        }
        fs::write(&path, noise(100_000, 9)).unwrap();
        let error = refused(dir.path(), &reference);
        assert!(
            error.ends_with("is no tar archive, nor one in gzip, zstd, xz or bzip2"),
            "{error}"
        );
    }
}

/// What is in a layout, as an archive.
fn packed(layout: &Path) -> Vec<u8> {
    let mut tar = Tar::new();
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let blobs = blobs.map(|blob| format!("blobs/sha256/{}", blob.unwrap().file_name().display()));
    for name in ["oci-layout".into(), "index.json".into()].into_iter().chain(blobs) {
        if let Ok(content) = fs::read(layout.join(&name)) {
            tar = tar.file(&name, &content);
        }
    }
    tar.finish()
}

#[test]
fn what_is_broken_in_a_layout_is_a_failure_that_names_the_file_and_what_it_lacks_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, archive) = (dir.path().join("layout"), dir.path().join("layout.tar"));
    let manifest = layout(&folder);
    let blob = |digest: &str| format!("blobs/sha256/{}", &digest[7..]);
    let described: Value = serde_json::from_slice(&fs::read(folder.join(blob(&manifest))).unwrap()).unwrap();
    let config = blob(described["config"]["digest"].as_str().unwrap());
    let layer = blob(described["layers"][1]["digest"].as_str().unwrap());
    let manifest = blob(&manifest);
    let whole = fs::read(folder.join(&manifest)).unwrap();
    let other = Some([fs::read(folder.join(&layer)).unwrap(), vec![0]].concat());
    let turned = fs::read(folder.join(&layer)).unwrap().iter().rev().copied().collect();
    for (file, content, why) in [
        ("oci-layout", None, "there is no file oci-layout"),
        ("oci-layout", Some(b"{".to_vec()), "is malformed"),
        (
            "oci-layout",
            Some(br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()),
            "version 2.0.0",
        ),
        ("index.json", None, "is missing"),
        ("index.json", Some(b"{".to_vec()), "is not valid JSON"),
        ("index.json", Some(whole.clone()), "is a manifest, not an index"),
        (&*manifest, None, "is missing"),
        (&*manifest, Some([&*whole, b" "].concat()), "expected sha256:"),
        (&*config, None, "is missing"),
        (&*config, Some(b"{}".to_vec()), "2 bytes"),
        (&*layer, None, "is missing"),
        (&*layer, other, "bytes"),
        (&*layer, Some(turned), "expected sha256:"),
    ] {
        fs::remove_dir_all(&folder).unwrap();
        layout(&folder);
        match &content {
            Some(content) => fs::write(folder.join(file), content).unwrap(),
            None => fs::remove_file(folder.join(file)).unwrap(),
        }
        fs::write(&archive, packed(&folder)).unwrap();
        for (transport, place) in [("oci", &folder), ("oci-archive", &archive)] {
            let error = pull(dir.path(), &format!("{transport}:{}", place.display())).unwrap_err();
            let told = error.to_string();
            assert_eq!(error.kind(), cfs_core::Kind::Failed, "{file}: {told}");
            assert!(told.contains(place.to_str().unwrap()), "{file}: {told}");
            let named = file.trim_start_matches("blobs/sha256/");
            assert!(told.contains(named) && told.contains(why), "{file}: {told}");
        }
    }
    // What nobody put there is not there, as in a registry.
    layout(&folder);
    fs::write(&archive, packed(&folder)).unwrap();
    for (transport, place) in [("oci", &folder), ("oci-archive", &archive)] {
        for name in [":none", ":@7", &format!("@sha256:{}", "0".repeat(64))] {
            let error = pull(dir.path(), &format!("{transport}:{}{name}", place.display())).unwrap_err();
            assert_eq!(error.kind(), cfs_core::Kind::Network, "{name}: {error}");
            assert!(error.to_string().contains(place.to_str().unwrap()), "{name}: {error}");
        }
    }
    let error = pull(dir.path(), &format!("oci:{}", dir.path().join("none").display())).unwrap_err();
    assert_eq!(error.kind(), cfs_core::Kind::Failed, "{error}");
}

#[test]
fn what_is_broken_in_what_docker_saved_is_a_failure_that_names_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let reference = format!("docker-archive:{}", path.display());
    let [first, _] = layers();
    let good = config(&json!([sha256(&first)]));
    let list = |images: &Value| images.to_string().into_bytes();
    let saved = json!([{"Config": "c.json", "RepoTags": ["localhost/os:1"], "Layers": ["1.tar"]}]);
    let two = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["1.tar", "1.tar"]}]);
    for (file, members, why) in [
        (
            "manifest.json",
            vec![("c.json", good.clone())],
            "it has no manifest.json",
        ),
        ("manifest.json", vec![("manifest.json", b"[".to_vec())], "is malformed"),
        ("c.json", vec![("manifest.json", list(&saved))], "is missing"),
        (
            "c.json",
            vec![("manifest.json", list(&saved)), ("c.json", b"{}".to_vec())],
            "is malformed",
        ),
        (
            "manifest.json",
            vec![
                ("manifest.json", list(&two)),
                ("c.json", good.clone()),
                ("1.tar", first.clone()),
            ],
            "2 layers",
        ),
        (
            "1.tar",
            vec![("manifest.json", list(&saved)), ("c.json", good.clone())],
            "is missing",
        ),
        (
            "1.tar",
            vec![
                ("manifest.json", list(&saved)),
                ("c.json", good.clone()),
                ("1.tar", with_tool("xz", &first)),
            ],
            "compression",
        ),
    ] {
        let tar = members
            .iter()
            .fold(Tar::new(), |tar, (name, content)| tar.file(name, content));
        fs::write(&path, tar.finish()).unwrap();
        let error = pull(dir.path(), &reference).unwrap_err();
        let told = error.to_string();
        assert_eq!(error.kind(), cfs_core::Kind::Failed, "{file}: {told}");
        assert!(told.contains(path.to_str().unwrap()), "{file}: {told}");
        assert!(told.contains(file) && told.contains(why), "{file}: {told}");
    }
    fs::write(&path, plain()).unwrap();
    for name in [":localhost/other:1", ":@1"] {
        let error = pull(dir.path(), &format!("{reference}{name}")).unwrap_err();
        assert_eq!(error.kind(), cfs_core::Kind::Network, "{name}: {error}");
    }
}
