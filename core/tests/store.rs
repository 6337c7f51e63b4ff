//! The store beside composefs-rs: it opens, lists, checks and collects ours, and we read what it wrote.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod tars;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_core::ids::{Algorithm, BlobDigest, DiffId, ManifestDigest, ObjectId};
use cfs_core::layers::{Content, Item};
use cfs_core::monitor::Quiet;
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::store::{IMAGE_V1, Store, WHOLE_IMAGE_V1, fsck, gc};
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::testing::{CrashFs, Loss};
use cfs_core::{Error, Result};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::Repository;
use rustix::fs::CWD;
use sha2::{Digest, Sha256};

use tars::{Tar, diff_id, gzip};

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn import(store: &Store, tar: &[u8]) -> DiffId {
    let (diff_id, blob) = (diff_id(tar), gzip(tar));
    let source = LayerSource {
        partial: None,
        remote: None,
        diff_id,
        size: blob.len() as u64,
        compression: Compression::Gzip,
        open: Box::new(move || Ok(Box::new(std::io::Cursor::new(blob)) as Box<dyn BufRead + Send>)),
    };
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

fn composefs_rs_has_no_complaint<H: FsVerityHashValue>(sample: &Sample) {
    let mut repo = Repository::<H>::open_path(CWD, &sample.path).unwrap();
    repo.set_insecure();
    let repo = Arc::new(repo);
    let checked = wait(repo.fsck()).unwrap();
    assert!(checked.is_ok(), "{checked}");
    assert!(checked.objects_checked() > 8 && checked.streams_checked() == 4 && checked.images_checked() == 1);
    let oci = wait(composefs_oci::oci_image::oci_fsck(&repo)).unwrap();
    assert!(oci.is_ok(), "{oci}");

    let images = composefs_oci::oci_image::list_images(&repo).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((&*images[0].name, images[0].layer_count), ("quay.io/org/os:1%2", 2));
    let (digest, verity) = composefs_oci::oci_image::resolve_ref(&repo, "quay.io/org/os:1%2").unwrap();
    assert_eq!(digest.to_string(), sample.manifest.to_string());
    let image = composefs_oci::oci_image::OciImage::open(&repo, &digest, Some(&verity)).unwrap();
    assert_eq!(image.image_ref_v1().unwrap().to_hex(), sample.image.to_hex());

    for layer in &sample.layers {
        let mut tar = Vec::new();
        composefs_oci::oci_image::layer_tar(&repo, &layer.to_string().parse().unwrap(), &mut tar).unwrap();
        assert_eq!(diff_id(&tar), *layer);
    }
    let collected = repo.gc_dry_run(&[]).unwrap();
    assert_eq!(
        (
            collected.objects_removed,
            collected.images_pruned,
            collected.streams_pruned
        ),
        (0, 0, 0)
    );
}

#[test]
fn composefs_rs_opens_checks_lists_and_keeps_what_we_store() {
    composefs_rs_has_no_complaint::<Sha256HashValue>(&sample(Algorithm::Sha256));
    composefs_rs_has_no_complaint::<Sha512HashValue>(&sample(Algorithm::Sha512));
}

/// Both readers' view of a layer, as text.
fn views<H: FsVerityHashValue>(path: &Path, store: &Store, layer: &DiffId) -> (Vec<String>, Vec<String>) {
    let mut repo = Repository::<H>::open_path(CWD, path).unwrap();
    repo.set_insecure();
    let mut stream = repo.open_stream(&format!("oci-layer-{layer}"), None, None).unwrap();
    let mut theirs = Vec::new();
    while let Some(entry) = composefs_oci::tar::get_entry(&mut stream).unwrap() {
        theirs.push(entry.to_string());
    }
    let ours = store.entries(layer).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let path = String::from_utf8_lossy(&entry.path).trim_end_matches('/').to_owned();
        let meta = &entry.meta;
        let (kind, rest) = match &entry.item {
            Item::Directory => (0o040_000, String::new()),
            Item::Regular(Content::Inline(bytes)) => (0o100_000, format!("{} bytes", bytes.len())),
            Item::Regular(Content::Object { id, size }) => (0o100_000, format!("{size} {}", id.object_path())),
            Item::Symlink(target) => (0o120_000, String::from_utf8_lossy(target).into_owned()),
            Item::Hardlink(target) => (0, String::from_utf8_lossy(target).into_owned()),
            Item::CharDevice(device) => (0o020_000, device.to_string()),
            Item::BlockDevice(device) => (0o060_000, device.to_string()),
            Item::Fifo => (0o010_000, String::new()),
        };
        let time = format!("{}.{}", meta.mtime.sec, meta.mtime.nsec);
        format!(
            "/{path} {:o} {} {} {time} {rest} {:?}",
            kind | meta.mode,
            meta.uid,
            meta.gid,
            meta.xattrs
        )
    });
    (ours.collect(), theirs)
}

#[test]
fn both_read_the_same_entries_from_a_layer() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    let (ours, theirs) = views::<Sha256HashValue>(&sample.path, &store, &sample.layers[0]);
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let ours: Vec<_> = ours.split(' ').collect();
        let theirs: Vec<_> = theirs.split(' ').collect();
        assert_eq!(theirs[0].replace("p\\xc3\\xa4x", "päx"), ours[0]);
        if theirs[2].starts_with('@') {
            assert_eq!(theirs[8].trim_start_matches('/'), ours[5]);
            continue;
        }
        assert_eq!(
            (theirs[2], theirs[4], theirs[5], theirs[7]),
            (ours[1], ours[2], ours[3], ours[4]),
            "{theirs:?}"
        );
        if ours[6].contains('/') {
            assert_eq!((theirs[1], theirs[8]), (ours[5], ours[6]));
        }
    }
}

#[test]
fn we_read_what_composefs_rs_imported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("repo");
    let config = composefs::repository::RepositoryConfig::new(composefs::fsverity::Algorithm::SHA256).set_insecure();
    let (repo, _) = Repository::<Sha256HashValue>::init_path(CWD, &path, config).unwrap();
    let repo = Arc::new(repo);
    let tar = layer(9);
    let diff_id = diff_id(&tar);
    let id = diff_id.to_string().parse().unwrap();
    wait(composefs_oci::import_layer(&repo, &id, Some("kept"), &tar[..])).unwrap();
    drop(repo);

    let store = Store::open(&path).unwrap();
    assert!(store.has_layer(&diff_id));
    let mut rebuilt = Vec::new();
    store.rebuild(&diff_id, &mut rebuilt).unwrap();
    assert!(rebuilt == tar);
    let own = sample(Algorithm::Sha256);
    let ours = Store::open(&own.path).unwrap();
    let here = import(&ours, &tar);
    let entries = |store: &Store| store.entries(&here).unwrap().collect::<Result<Vec<_>>>().unwrap();
    assert_eq!(entries(&store), entries(&ours));
    assert_eq!(findings(&store), []);
    assert!(gc::plan(&store, &gc::Roots::default(), &no_objects).unwrap().is_empty());
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
fn a_healthy_store_has_no_findings_and_no_garbage() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let sample = sample(algorithm);
        let store = Store::open(&sample.path).unwrap();
        assert_eq!(findings(&store), []);
        assert!(gc::plan(&store, &gc::Roots::default(), &no_objects).unwrap().is_empty());
        assert!(!sample.path.join("cfs-update/unsynced").exists());
    }
}

#[test]
fn every_damage_is_found_and_named() {
    let healthy = sample(Algorithm::Sha256);
    let store = Store::open(&healthy.path).unwrap();
    let stream = std::fs::read_link(healthy.path.join(format!("streams/oci-layer-{}", healthy.layers[0]))).unwrap();
    let stream = stream.strip_prefix("..").unwrap().to_string_lossy().into_owned();
    let file = store
        .entries(&healthy.layers[0])
        .unwrap()
        .find_map(|e| match e.unwrap().item {
            Item::Regular(Content::Object { id, .. }) => Some(format!("objects/{}", id.object_path())),
            _ => None,
        });
    let image = format!("objects/{}", healthy.image.object_path());
    for object in [stream, file.unwrap(), image] {
        let path = healthy.path.join(&object);
        let content = std::fs::read(&path).unwrap();
        let mut flipped = content.clone();
        flipped[content.len() / 2] ^= 1;
        for damaged in [
            Some(&content[..content.len() - 1]),
            Some(&flipped),
            Some(&b""[..]),
            None,
        ] {
            match damaged {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let found = findings(&store);
            let hex = object.trim_start_matches("objects/").replace('/', "");
            assert!(
                found.iter().any(|f| f.path == object || f.why.contains(&hex)),
                "{object} {:?}: {found:?}",
                damaged.map(<[u8]>::len)
            );
        }
        std::fs::write(&path, content).unwrap();
        assert_eq!(findings(&store), []);
    }
    std::fs::write(healthy.path.join("objects/00/junk"), "")
        .or_else(|_| {
            std::fs::create_dir(healthy.path.join("objects/00"))?;
            std::fs::write(healthy.path.join("objects/00/junk"), "")
        })
        .unwrap();
    std::fs::write(healthy.path.join("streams/file"), "").unwrap();
    std::os::unix::fs::symlink("../../nothing", healthy.path.join("streams/refs/oci/dangling")).unwrap();
    std::os::unix::fs::symlink("../objects/00/00", healthy.path.join("images/dangling")).unwrap();
    let paths: Vec<_> = findings(&store).into_iter().map(|f| f.path).collect();
    assert_eq!(
        paths,
        [
            "objects/00/junk",
            "streams/file",
            "images/dangling",
            "streams/refs/oci/dangling"
        ]
    );
}

#[test]
fn garbage_is_what_no_name_leads_to_and_nothing_else() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    // A second image shares a layer with the first.
    let extra = import(&store, &layer(3));
    let layers = [sample.layers[0], extra];
    let (config, manifest) = json(&layers);
    let config = store.put_config(&config, &layers, &BTreeMap::new()).unwrap();
    let second = store.put_manifest(&manifest, &config, &layers).unwrap();
    store.tag("second", &second).unwrap();
    store.publish().unwrap();
    let loose = store.put(&[5; 1000]).unwrap();
    store.publish().unwrap();

    let plan = |roots: &gc::Roots| gc::plan(&store, roots, &no_objects).unwrap();
    assert_eq!(plan(&gc::Roots::default()).objects, [(loose, 1000)]);
    let without = gc::Roots {
        without_tags: vec!["second".into()],
        ..Default::default()
    };
    let planned = plan(&without);
    assert_eq!(planned.streams.len(), 3, "{:?}", planned.streams);

    store.untag("second").unwrap();
    assert_eq!(plan(&gc::Roots::default()), planned);
    let kept = gc::Roots {
        streams: vec![format!("oci-manifest-{second}")],
        ..Default::default()
    };
    assert_eq!(plan(&kept).objects, [(loose, 1000)]);
    let done = gc::run(&store, &gc::Roots::default(), &no_objects).unwrap();
    assert_eq!(done, planned);
    assert!(!store.has_layer(&extra) && store.has_layer(&sample.layers[0]));
    assert!(plan(&gc::Roots::default()).is_empty());
    assert_eq!(findings(&store), []);

    // The image goes only when neither its own name nor the config leads to it.
    store.unname_image("deployment").unwrap();
    assert!(plan(&gc::Roots::default()).is_empty());
    store.untag("quay.io/org/os:1%2").unwrap();
    let roots = gc::Roots {
        images: vec![sample.image],
        ..Default::default()
    };
    assert_eq!(plan(&roots).images, [""; 0]);
    gc::run(&store, &gc::Roots::default(), &no_objects).unwrap();
    let left = (0..=255).filter(|n| {
        std::fs::read_dir(sample.path.join(format!("objects/{n:02x}"))).is_ok_and(|mut d| d.next().is_some())
    });
    assert_eq!(left.count(), 0);
    assert_eq!((store.images().unwrap().len(), store.tags().unwrap().len()), (0, 0));
}

#[test]
fn what_is_put_and_not_published_is_no_garbage() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    let extra = import(&store, &layer(3));
    store.put(&[5; 1000]).unwrap();
    assert!(gc::run(&store, &gc::Roots::default(), &no_objects).unwrap().is_empty());
    store.publish().unwrap();
    assert!(store.has_layer(&extra));
}

#[test]
fn garbage_is_not_collected_where_a_root_cannot_be_read_or_another_tool_works() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    store.put(&[5; 1000]).unwrap();
    store.publish().unwrap();
    let other = Repository::<Sha256HashValue>::open_path(CWD, &sample.path).unwrap();
    assert!(matches!(
        gc::run(&store, &gc::Roots::default(), &no_objects),
        Err(Error::Busy { .. })
    ));
    drop(other);
    std::fs::write(store.object_path(&sample.image), "broken").unwrap();
    assert!(matches!(
        gc::run(&store, &gc::Roots::default(), &no_objects),
        Err(Error::Object { .. })
    ));
    let refused = |_: &[u8]| Err(Error::Usage("unreadable".into()));
    assert!(gc::run(&store, &gc::Roots::default(), &refused).is_err());
    assert!(store.has_layer(&sample.layers[0]));
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

/// What an update does to the store.
fn pull(fs: Arc<dyn Fs>, path: &Path) -> Result<()> {
    let store = Store::open_or_create_with(fs, path, Algorithm::Sha256)?;
    let tar = layer(1);
    let (diff_id, blob) = (diff_id(&tar), gzip(&tar));
    if !store.has_layer(&diff_id) {
        let size = blob.len() as u64;
        let open = Box::new(move || Ok(Box::new(std::io::Cursor::new(blob)) as Box<dyn BufRead + Send>));
        let source = LayerSource {
            partial: None,
            remote: None,
            diff_id,
            size,
            compression: Compression::Gzip,
            open,
        };
        import::layers(&store, vec![source], 1, &Quiet)?;
    }
    let image = store.put_image(&erofs::<Sha256HashValue>())?;
    let (config, manifest) = json(&[diff_id]);
    let config = store.put_config(&config, &[diff_id], &BTreeMap::from([(IMAGE_V1.to_owned(), image)]))?;
    let manifest = store.put_manifest(&manifest, &config, &[diff_id])?;
    store.tag("os", &manifest)?;
    store.name_image("os", &image)?;
    store.publish()
}

/// Takes the content of every object and leaves its size, as a power cut before the first sync may.
fn lose_objects(path: &Path) {
    for folder in std::fs::read_dir(path.join("objects")).into_iter().flatten() {
        for object in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            let size = std::fs::metadata(&path).unwrap().len();
            std::fs::write(&path, vec![0; usize::try_from(size).unwrap()]).unwrap();
        }
    }
}

#[test]
fn a_power_cut_at_any_step_leaves_nothing_named_that_is_not_there_and_the_next_run_succeeds() {
    let cut_after = |operations: usize, loss: Loss| {
        let folder = tempfile::tempdir().unwrap();
        let (base, stash) = (folder.path().join("base"), folder.path().join("stash"));
        std::fs::create_dir(&base).unwrap();
        std::fs::create_dir(&stash).unwrap();
        let path = base.join("composefs");
        let fs = Arc::new(CrashFs::new(&base, &stash).cut_after(operations));
        let finished = pull(fs.clone(), &path).is_ok();
        fs.lose(loss);
        if !fs.log().iter().any(|line| line.starts_with("sync-all")) {
            lose_objects(&path);
        }
        if let Ok(store) = Store::open(&path) {
            let found = findings(&store);
            let named: Vec<_> = found.iter().filter(|f| !f.path.starts_with("objects/")).collect();
            assert!(named.is_empty(), "after {operations}, {loss:?}: {named:?}");
            assert!(!finished || store.tags().unwrap().contains_key("os"));
        }
        pull(Arc::new(RealFs), &path).unwrap_or_else(|e| panic!("after {operations}, {loss:?}: {e}"));
        let store = Store::open(&path).unwrap();
        assert_eq!(findings(&store), [], "after {operations}, {loss:?}");
        assert!(store.tags().unwrap().contains_key("os") && store.image_names().unwrap().contains_key("os"));
        gc::run(&store, &gc::Roots::default(), &no_objects).unwrap();
        assert!(!path.join("cfs-update/unsynced").exists());
        finished
    };
    let steps = (0..200).find(|n| cut_after(*n, Loss::Content)).unwrap();
    assert!(steps > 20, "only {steps} steps");
    for n in 0..steps {
        cut_after(n, Loss::Names);
    }
}

/// Another manifest of the same config, as a publisher makes it who compresses the layers another way.
fn recompressed(layers: &[DiffId]) -> (Vec<u8>, Vec<u8>) {
    let (config, manifest) = json(layers);
    let manifest = String::from_utf8(manifest).unwrap();
    (config, manifest.replace("\"size\":1}", "\"size\":2}").into_bytes())
}

#[test]
fn what_two_manifests_share_stays_as_long_as_one_of_them_is_named() {
    for goes in ["quay.io/org/os:1%2", "second"] {
        let sample = sample(Algorithm::Sha256);
        let store = Store::open(&sample.path).unwrap();
        let (config, manifest) = recompressed(&sample.layers);
        let images = BTreeMap::from([("composefs.image.another".to_owned(), sample.image)]);
        let config = store.put_config(&config, &sample.layers, &images).unwrap();
        let second = store.put_manifest(&manifest, &config, &sample.layers).unwrap();
        store.tag("second", &second).unwrap();
        store.publish().unwrap();
        store.unname_image("deployment").unwrap();
        store.untag(goes).unwrap();
        gc::run(&store, &gc::Roots::default(), &no_objects).unwrap();
        let stays = if goes == "second" { sample.manifest } else { second };
        let config = store.config_of(&stays).unwrap().expect("its config is there");
        assert_eq!(config.bytes, sample.config);
        assert_eq!(config.images.get(IMAGE_V1), Some(&sample.image), "{goes}");
        assert_eq!(findings(&store), [], "{goes}");
    }
}

#[test]
fn a_manifest_without_its_config_is_found() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    let config = store.manifest(&sample.manifest).unwrap().unwrap().config;
    std::fs::remove_file(sample.path.join(format!("streams/oci-config-{config}"))).unwrap();
    let found = findings(&store);
    assert!(
        found
            .iter()
            .any(|f| f.path.contains("oci-manifest") && f.why.contains(&config.to_string())),
        "{found:?}"
    );
}

#[test]
fn garbage_collection_after_a_cut_takes_nothing_that_is_named_and_one_that_is_cut_itself_is_mended_by_the_next_pull() {
    let cut_after = |operations: usize, collecting: bool, loss: Option<Loss>| {
        let folder = tempfile::tempdir().unwrap();
        let (base, stash) = (folder.path().join("base"), folder.path().join("stash"));
        std::fs::create_dir(&base).unwrap();
        std::fs::create_dir(&stash).unwrap();
        let path = base.join("composefs");
        pull(Arc::new(RealFs), &path).unwrap();
        let (config, manifest) = json(&[diff_id(&layer(1))]);
        let fs = Arc::new(CrashFs::new(&base, &stash).cut_after(operations));
        let again = || -> Result<()> {
            let store = Store::open_or_create_with(fs.clone(), &path, Algorithm::Sha256)?;
            if collecting {
                store.untag("os")?;
                store.unname_image("os")?;
                return gc::run(&store, &gc::Roots::default(), &no_objects).map(drop);
            }
            // As for podman: a further image of the same config.
            let image = store.put_image(&[&erofs::<Sha256HashValue>()[..], &[0; 4096]].concat())?;
            let images = BTreeMap::from([(WHOLE_IMAGE_V1.to_owned(), image)]);
            let layers = [diff_id(&layer(1))];
            let config = store.put_config(&config, &layers, &images)?;
            store.put_manifest(&manifest, &config, &layers)?;
            store.publish()
        };
        let finished = again().is_ok();
        loss.into_iter().for_each(|loss| fs.lose(loss));
        let store = Store::open(&path).unwrap();
        let told = format!("after {operations}, collecting: {collecting}, {loss:?}");
        if !collecting {
            gc::run(&store, &gc::Roots::default(), &no_objects).unwrap();
            let manifest = store.tags().unwrap()["os"];
            let config = store
                .config_of(&manifest)
                .unwrap()
                .unwrap_or_else(|| panic!("{told}: no config"));
            assert!(config.images.contains_key(IMAGE_V1), "{told}");
            assert_eq!(findings(&store), [], "{told}");
        }
        // The next pull makes no image that the config says was made of it.
        let digest = BlobDigest::from_hash(Sha256::digest(&config).into());
        let made = store
            .config(&digest)
            .ok()
            .flatten()
            .and_then(|c| c.images.get(IMAGE_V1).copied());
        drop(store);
        match made {
            None => pull(Arc::new(RealFs), &path).unwrap_or_else(|e| panic!("{told}: {e}")),
            Some(image) => {
                let store = Store::open(&path).unwrap();
                let manifest = store.put_manifest(&manifest, &digest, &[diff_id(&layer(1))]).unwrap();
                store.tag("os", &manifest).unwrap();
                store.name_image("os", &image).unwrap();
                store.publish().unwrap();
            }
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(findings(&store), [], "{told}");
        gc::run(&store, &gc::Roots::default(), &no_objects).unwrap();
        assert_eq!(findings(&store), [], "{told}");
        let manifest = store.tags().unwrap()["os"];
        assert!(
            store
                .config_of(&manifest)
                .unwrap()
                .is_some_and(|c| c.images.contains_key(IMAGE_V1)),
            "{told}"
        );
        finished
    };
    for collecting in [false, true] {
        for loss in [None, Some(Loss::Names)] {
            let steps = (0..200).find(|n| cut_after(*n, collecting, loss)).unwrap();
            assert!(steps > 5, "only {steps} steps");
        }
    }
}

/// The objects that a layer's files are.
fn files_of(store: &Store, layer: &DiffId) -> Vec<ObjectId> {
    let files = store.entries(layer).unwrap().map(|entry| entry.unwrap().item);
    let object = |item| match item {
        Item::Regular(Content::Object { id, .. }) => Some(id),
        _ => None,
    };
    files.filter_map(object).collect()
}

#[test]
fn what_is_no_file_in_an_objects_place_is_damage_and_the_next_import_mends_it() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    let id = files_of(&store, &sample.layers[0])[0];
    let (path, outside) = (store.object_path(&id), sample.path.join("../outside"));
    std::fs::rename(&path, &outside).unwrap();
    let link = || std::os::unix::fs::symlink(&outside, &path).unwrap();
    let pipe = || rustix::fs::mkfifoat(CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    let folder = || std::fs::create_dir_all(path.join("below")).unwrap();
    let kinds: [&dyn Fn(); 3] = [&link, &pipe, &folder];
    for (n, make) in kinds.into_iter().enumerate() {
        make();
        let mends: Vec<_> = findings(&store).into_iter().filter_map(|found| found.mend).collect();
        assert_eq!(mends, [fsck::Mend::Content(id)], "{n}");
        assert!(!store.has_object(&id) && !store.has_layer(&sample.layers[0]), "{n}");
        assert_eq!(import(&store, &layer(1)), sample.layers[0]);
        store.publish().unwrap();
        assert_eq!(findings(&store), [], "{n}");
        std::fs::remove_file(&path).unwrap();
    }
    assert!(outside.is_file(), "what the link led to");
}

#[test]
fn a_name_that_leads_to_a_pipe_is_found_and_not_waited_for() {
    let sample = sample(Algorithm::Sha256);
    let pipe = sample.path.join("../pipe");
    rustix::fs::mkfifoat(CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    for name in ["streams/refs/oci/pipe", "images/refs/pipe"] {
        let name = sample.path.join(name);
        std::os::unix::fs::symlink(std::fs::canonicalize(&pipe).unwrap(), name).unwrap();
    }
    let found = findings(&Store::open(&sample.path).unwrap());
    let paths: Vec<_> = found.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(paths, ["streams/refs/oci/pipe", "images/refs/pipe"]);
}

#[test]
fn a_layer_that_lost_an_object_is_fetched_again_and_mended() {
    let sample = sample(Algorithm::Sha256);
    let store = Store::open(&sample.path).unwrap();
    let objects = files_of(&store, &sample.layers[0]);
    // One is gone, one has another size.
    std::fs::remove_file(store.object_path(&objects[0])).unwrap();
    std::fs::write(store.object_path(&objects[2]), "cut").unwrap();
    assert!(!store.has_layer(&sample.layers[0]) && store.has_layer(&sample.layers[1]));
    assert_eq!(import(&store, &layer(1)), sample.layers[0]);
    store.publish().unwrap();
    assert!(store.has_layer(&sample.layers[0]));
    assert_eq!(findings(&store), []);
}
