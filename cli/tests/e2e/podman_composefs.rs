//! Layers of a storage with `use_composefs`, which skopeo's is made into: Debian has no mkcomposefs that podman would use.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::common::registry::Registry;
use crate::common::{Cfs, is_root, list, scratch, sha256_file};
use crate::podman::{Stored, blobs_fetched, image};

/// What `mkcomposefs` keeps in the image itself where it reads a folder.
const INLINED: u64 = 64;

/// Makes of it what podman writes with `use_composefs`: each layer's names in an image, contents by their sums; but
/// small contents in the image, as others who make such images have them.
fn with_composefs(stored: &Stored, cfs: &Cfs) {
    for layer in list(&stored.root.join("overlay")) {
        let (diff, contents) = (layer.join("diff"), layer.join("contents"));
        if !diff.is_dir() {
            continue;
        }
        let mut dump = String::new();
        moved(&diff, "/", &contents, &mut dump);
        fs::create_dir_all(&contents).unwrap();
        fs::remove_dir_all(&diff).unwrap();
        fs::rename(&contents, &diff).unwrap();
        fs::create_dir_all(layer.join("composefs-data")).unwrap();
        let text = layer.join("dump");
        fs::write(&text, dump).unwrap();
        let blob = layer.join("composefs-data/composefs.blob");
        let [text, blob] = [&text, &blob].map(|path| path.to_str().unwrap());
        cfs.run(["image", "build", "--from-file", text, "-o", blob]).expect(0);
    }
}

/// Moves what a folder of a layer has among the contents, and writes it down as mkcomposefs takes it.
fn moved(at: &Path, name: &str, contents: &Path, dump: &mut String) {
    let found = fs::symlink_metadata(at).unwrap();
    let mode = found.mode();
    if found.is_dir() {
        writeln!(dump, "{name} 0 {mode:o} 2 0 0 0 0.0 - - -").unwrap();
        for child in list(at) {
            let below = format!(
                "{}/{}",
                name.trim_end_matches('/'),
                child.file_name().unwrap().display()
            );
            moved(&child, &below, contents, dump);
        }
    } else if found.is_symlink() {
        let target = fs::read_link(at).unwrap();
        let (size, target) = (found.len(), target.display());
        writeln!(dump, "{name} {size} {mode:o} 1 0 0 0 0.0 {target} - -").unwrap();
    } else if found.len() == 0 {
        writeln!(dump, "{name} 0 {mode:o} 1 0 0 0 0.0 - - -").unwrap();
    } else if found.len() <= INLINED {
        let content: String = fs::read(at)
            .unwrap()
            .iter()
            .map(|byte| format!("\\x{byte:02x}"))
            .collect();
        let size = found.len();
        writeln!(dump, "{name} {size} {mode:o} 1 0 0 0 0.0 - {content} -").unwrap();
    } else {
        let sum = sha256_file(at);
        let content = format!("{}/{}", &sum[..2], &sum[2..]);
        let size = found.len();
        writeln!(dump, "{name} {size} {mode:o} 1 0 0 0 0.0 {content} - -").unwrap();
        fs::create_dir_all(contents.join(&sum[..2])).unwrap();
        fs::copy(at, contents.join(&content)).unwrap();
    }
}

#[test]
fn layers_of_a_storage_with_composefs_are_taken_from_there() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let from = finished.push(&registry, "os", "1");
    let oci = finished.layout(&dir.path().join("oci"), "stable");
    let cfs = Cfs::new(&dir.path().join("a"));
    let stored = Stored::new(dir.path(), &oci);
    with_composefs(&stored, &cfs);
    let told = stored
        .run(&cfs, ["switch", "--dry-run", &from, "--json"])
        .expect(0)
        .json();
    assert_eq!(told["bytes"], 0, "{told}");
    let asked = blobs_fetched(&registry);
    let told = stored.run(&cfs, ["switch", &from]).expect(0);
    assert_eq!(told.stderr.matches("taken from podman: ").count(), 3, "{}", told.stderr);
    assert_eq!(blobs_fetched(&registry) - asked, 1, "the config alone");
    cfs.fsck();
    let only = Cfs::new(&dir.path().join("only"));
    only.run(["switch", &stored.reference("os:1")]).expect(0);
    assert_eq!(only.deployments(), cfs.deployments());
    // A damaged image of names costs what the layers do.
    for layer in list(&stored.root.join("overlay")) {
        let blob = layer.join("composefs-data/composefs.blob");
        if let Ok(bytes) = fs::read(&blob) {
            fs::write(&blob, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    let again = Cfs::new(&dir.path().join("b"));
    let told = stored.run(&again, ["switch", &from]).expect(0);
    assert!(told.stderr.contains("composefs.blob"), "{}", told.stderr);
    assert_eq!(again.deployments(), cfs.deployments());
    let told = Cfs::new(&dir.path().join("c"));
    let told = told.run(["switch", &stored.reference("os:1")]).expect(1);
    assert!(told.stderr.contains("composefs.blob"), "{}", told.stderr);
}
