//! composefs-rs opens, lists, checks and collects ours, and we read what it wrote.

use super::*;

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
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
