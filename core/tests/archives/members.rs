//! Members of an archive as GNU tar writes them: sparse ones, and such as belong to no image.

use super::*;

/// Without room for what is zero in it, which GNU tar looks for then.
fn write_with_holes(path: &Path, content: &[u8]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (n, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, n as u64 * 4096).unwrap();
        }
    }
}

/// A folder with these files, as GNU tar archives it.
fn by_gnu_tar(folder: &Path, how: &[&str]) -> Vec<u8> {
    let ran = Command::new("tar")
        .args(how)
        .args(["-C", folder.to_str().unwrap(), "-cf", "-", "."])
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{how:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    ran.stdout
}

#[test]
fn sparse_members_of_an_archive_are_read_as_the_files_that_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut holes = vec![0; 700_000];
    for at in [0, 5000, 300_000, 690_000] {
        holes[at..at + 3000].copy_from_slice(&noise(3000, at as u64));
    }
    let layer = Tar::new().directory("usr/").file("usr/holes", &holes).finish();
    let (saved, path) = (dir.path().join("folder"), dir.path().join("saved"));
    fs::create_dir(&saved).unwrap();
    let list = json!([{"Config": "config.json", "RepoTags": null, "Layers": ["layer.tar"]}]);
    fs::write(saved.join("manifest.json"), list.to_string()).unwrap();
    fs::write(saved.join("config.json"), config(&json!([sha256(&layer)]))).unwrap();
    write_with_holes(&saved.join("layer.tar"), &layer);
    let reference = format!("docker-archive:{}", path.display());
    fs::write(&path, by_gnu_tar(&saved, &[])).unwrap();
    let expected = pull(dir.path(), &reference).unwrap();
    let sparse = ["--sparse", "--hole-detection=raw"];
    for format in [
        &["--format=gnu"][..],
        &["--format=oldgnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let archive = by_gnu_tar(&saved, &[&sparse[..], format].concat());
        assert!(archive.len() < layer.len() / 2, "{format:?}: it is sparse");
        fs::write(&path, &archive).unwrap();
        assert_eq!(pull(dir.path(), &reference).unwrap(), expected, "{format:?}");
        fs::write(&path, gzip(&archive)).unwrap();
        assert_eq!(pull(dir.path(), &reference).unwrap(), expected, "{format:?}");
    }
}

#[test]
fn what_else_is_in_an_archive_is_passed_over_and_names_do_not_fill_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let reference = format!("docker-archive:{}", path.display());
    fs::write(&path, plain()).unwrap();
    let expected = pull(dir.path(), &reference).unwrap();
    // A volume's label, a folder as GNU tar lists it for increments, a kind that nobody knows.
    let odd = Tar::new()
        .header(Header::new("label", b'V', 0).gnu())
        .header(Header::new("folder", b'D', 5).gnu())
        .content(b"Yone\0")
        .pax(&[("path", b"1.tar")])
        .header(Header::new("odd", b'Q', 600))
        .content(&[7; 600]);
    fs::write(&path, [odd.0, plain()].concat()).unwrap();
    assert_eq!(pull(dir.path(), &reference).unwrap(), expected);
    let long = Tar::new()
        .file("first", b"x")
        .header(Header::new("././@LongLink", b'L', 8 << 20).gnu())
        .content(&vec![b'n'; 8 << 20]);
    fs::write(&path, [long.0, plain()].concat()).unwrap();
    let error = pull(dir.path(), &reference).unwrap_err();
    assert_eq!(error.kind(), cfs_core::Kind::Failed, "{error}");
    assert!(
        error.to_string().contains("is damaged or incomplete behind \"first\""),
        "{error}"
    );
    let lying = Header::new("lying", b'0', 512);
    let lying = Tar::new()
        .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"5,3,0,2")])
        .header(lying)
        .content(&[1; 512]);
    fs::write(&path, [lying.0, plain()].concat()).unwrap();
    let error = refused(dir.path(), &reference);
    assert!(error.contains("\"lying\": the sparse map is not ascending"), "{error}");
}
