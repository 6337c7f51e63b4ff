//! The store: what it is given and gives back, its garbage, its damage, and composefs-rs beside it, which reads ours
//! as we read its.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod composefs_rs;
mod cuts;
mod damage;
mod garbage;
#[path = "../tars/mod.rs"]
mod tars;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_core::ids::{Algorithm, DiffId, ManifestDigest, ObjectId};
use cfs_core::layers::{Content, Item};
use cfs_core::monitor::Quiet;
use cfs_core::store::import::{self, Compression};
use cfs_core::store::{IMAGE_V1, Store, WHOLE_IMAGE_V1, fsck, gc};
use cfs_core::{Error, Result};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::Repository;
use rustix::fs::CWD;
use sha2::{Digest, Sha256};

use tars::{Tar, diff_id, gzip, source};

fn import(store: &Store, tar: &[u8]) -> DiffId {
    let diff_id = diff_id(tar);
    let source = source(diff_id, Compression::Gzip, gzip(tar));
    import::layers(store, vec![source], 0, &Quiet).unwrap();
    diff_id
}

/// Every kind of entry that composefs-oci reads, with names and numbers in every notation.
fn layer(seed: u8) -> Vec<u8> {
    let long = format!("usr/{}/{}", "d".repeat(90), "f".repeat(120));
    let mut device = tars::Header::new("usr/null", b'3', 0);
    device.put(329, b"0000001\0").put(337, b"0000003\0");
    let mut owner = tars::Header::new("usr/owner", b'0', 3);
    owner.put(108, b"\x80\0\0\0\x12\x34\x56\x78").put(136, b"     1234567 ");
    let mut prefixed = tars::Header::new("name", b'0', 70);
    prefixed.put(345, b"usr");
    Tar::new()
        .pax(&[("mtime", b"1700000000.123456789")])
        .directory("usr/")
        .file("usr/empty", b"")
        .file("usr/inline", &[seed; 64])
        .file("usr/object", &[seed; 65])
        .file("usr/aligned", &[seed; 1024])
        .file("usr/large", &vec![seed; 1_500_000])
        .file("usr/object2", &[seed; 65])
        .link("usr/symlink", b'2', "/target/of it")
        .link("usr/hardlink", b'1', "usr/object")
        .directory(&format!("usr/{}", "d".repeat(90)))
        .long_name(b'L', &long)
        .file("cut", &[seed; 100])
        .pax(&[
            ("path", "usr/päx".as_bytes()),
            ("SCHILY.xattr.user.x", b"v\0w"),
            ("uid", b"70000"),
        ])
        .file("short", b"abc")
        .header(device)
        .header(owner)
        .content(b"abc")
        .header(prefixed)
        .content(&[7; 70])
        .link("usr/fifo", b'6', "")
        .finish()
}

/// A store with a tagged image of two layers.
struct Sample {
    _folder: tempfile::TempDir,
    path: PathBuf,
    layers: Vec<DiffId>,
    manifest: ManifestDigest,
    image: ObjectId,
    config: Vec<u8>,
}

fn sample(algorithm: Algorithm) -> Sample {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("composefs");
    let store = Store::create(&path, algorithm).unwrap();
    let layers = vec![import(&store, &layer(1)), import(&store, &layer(2))];
    let (config, manifest) = json(&layers);
    // Any bytes: composefs-rs reads images only where it collects garbage or checks them.
    let image = match algorithm {
        Algorithm::Sha256 => erofs::<Sha256HashValue>(),
        Algorithm::Sha512 => erofs::<Sha512HashValue>(),
    };
    let image = store.put_image(&image).unwrap();
    let config_digest = store
        .put_config(
            &config,
            &layers,
            &[IMAGE_V1, WHOLE_IMAGE_V1].map(|name| (name.to_owned(), image)).into(),
        )
        .unwrap();
    let manifest = store.put_manifest(&manifest, &config_digest, &layers).unwrap();
    store.tag("quay.io/org/os:1%2", &manifest).unwrap();
    store.name_image("deployment", &image).unwrap();
    assert!(store.tags().unwrap().is_empty(), "named before it was published");
    store.publish().unwrap();
    Sample {
        _folder: folder,
        path,
        layers,
        manifest,
        image,
        config,
    }
}

fn json(layers: &[DiffId]) -> (Vec<u8>, Vec<u8>) {
    let ids: Vec<_> = layers.iter().map(|l| format!("\"{l}\"")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}},"config":{{}}}}"#,
        ids.join(",")
    );
    let hash = hex::encode(Sha256::digest(&config));
    let blobs: Vec<_> = layers
        .iter()
        .map(|l| format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{l}","size":1}}"#))
        .collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{hash}","size":{}}},"layers":[{}]}}"#,
        config.len(),
        blobs.join(",")
    );
    (config.into_bytes(), manifest.into_bytes())
}

fn erofs<H: FsVerityHashValue>() -> Vec<u8> {
    let dump = "/ 0 40755 2 0 0 0 0.0 - - -\n/a 5 100644 1 0 0 0 0.0 - hello -\n";
    let tree = composefs::dumpfile::dumpfile_to_filesystem::<H>(dump).unwrap();
    let tree = composefs::erofs::writer::ValidatedFileSystem::new(tree).unwrap();
    composefs::erofs::writer::mkfs_erofs_versioned(&tree, composefs::erofs::format::FormatVersion::V1).into()
}

fn no_objects(_: &[u8]) -> Result<Vec<ObjectId>> {
    Ok(Vec::new())
}

fn findings(store: &Store) -> Vec<fsck::Finding> {
    let mut findings = Vec::new();
    let summary = fsck::check(store, &no_objects, &mut |f| findings.push(f)).unwrap();
    assert_eq!(summary.findings, findings.len() as u64);
    findings
}

#[test]
fn manifest_and_config_come_back_as_they_were() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    let manifest = store.manifest(&sample.manifest).unwrap().unwrap();
    assert_eq!(Sha256::digest(&manifest.bytes)[..], sample.manifest.as_bytes()[..]);
    let config = store.config(&manifest.config).unwrap().unwrap();
    assert_eq!(config.bytes, sample.config);
    let images = [IMAGE_V1, WHOLE_IMAGE_V1].map(|name| (name.to_owned(), sample.image));
    assert_eq!(config.images, images.into());
    assert_eq!(
        store.tags().unwrap(),
        BTreeMap::from([("quay.io/org/os:1%2".to_owned(), sample.manifest)])
    );
    assert_eq!(
        store.image_names().unwrap(),
        BTreeMap::from([("deployment".to_owned(), sample.image)])
    );
    assert_eq!(store.images().unwrap(), [sample.image]);
    assert!(store.manifest(&ManifestDigest::from_hash([0; 32])).unwrap().is_none());
}

#[test]
fn repositories_that_are_not_for_us_are_refused_or_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("composefs");
    assert!(matches!(Store::open(&path), Err(Error::Repository { .. })));
    std::fs::create_dir_all(path.join("objects/00")).unwrap();
    let legacy = Store::open(&path).unwrap_err().to_string();
    assert!(legacy.contains("meta.json"), "{legacy}");
    assert!(Store::open_or_create(&path, Algorithm::Sha256).is_err());
    std::fs::remove_dir_all(&path).unwrap();

    let store = Store::create(&path, Algorithm::Sha256).unwrap();
    assert!(Store::create(&path, Algorithm::Sha256).is_err());
    assert!(Store::open_or_create(&path, Algorithm::Sha512).is_err());
    let id = store.put(&[1; 100]).unwrap();
    store.publish().unwrap();
    drop(store);
    let meta = std::fs::read_to_string(path.join("meta.json")).unwrap();
    std::fs::write(path.join("meta.json"), meta.replace("v1_erofs", "news")).unwrap();
    let store = Store::open(&path).unwrap();
    assert!(store.read_only().unwrap().contains("news"));
    assert_eq!(store.read_object(&id, 100).unwrap(), [1; 100]);
    let refusal = store.put(&[2; 100]).unwrap_err().to_string();
    assert!(refusal.contains("news"), "{refusal}");
    assert!(gc::run(&store, &gc::Roots::default(), &no_objects).is_err());
    std::fs::write(
        path.join("meta.json"),
        meta.replace("\"incompatible\": []", "\"incompatible\": [\"x\"]"),
    )
    .unwrap();
    assert!(Store::open(&path).is_err());
}

#[test]
fn names_that_cannot_be_names_are_refused() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    for name in ["", ".", "..", "@sha256:x", "a\nb", &"x".repeat(256)] {
        assert!(store.tag(name, &sample.manifest).is_err(), "{name:?}");
    }
    assert!(store.tag("fine", &ManifestDigest::from_hash([1; 32])).is_err());
    store.tag("../../x", &sample.manifest).unwrap();
    store.publish().unwrap();
    assert!(store.tags().unwrap().contains_key("../../x"));
}
