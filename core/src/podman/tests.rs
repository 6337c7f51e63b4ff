//! Storages as podman lays them out, made by hand.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn sha(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

fn records(folder: &Path, kind: &str, value: &Value) {
    let folder = folder.join(format!("overlay-{kind}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{kind}.json")), value.to_string()).unwrap();
    fs::write(folder.join(format!("{kind}.lock")), "").unwrap();
}

fn layer(root: &Path, id: &str, diff_id: &str, parent: &str) -> Value {
    let folder = root.join("overlay-layers");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{id}.tar-split.gz")), "").unwrap();
    json!({"id": id, "parent": parent, "diff-digest": diff_id, "diff-size": 10, "unknown": {"field": 1}})
}

/// An image whose manifests are these: the main one first.
fn image(folder: &Path, id: &str, names: &[&str], manifests: &[&str]) -> Value {
    let here = folder.join("overlay-images").join(id);
    fs::create_dir_all(&here).unwrap();
    let mut digests = serde_json::Map::new();
    for (at, manifest) in manifests.iter().enumerate() {
        let key = format!("manifest-{}", sha(manifest.as_bytes()));
        let key = if at == 0 { "manifest".to_owned() } else { key };
        let name = if at == 0 {
            key.clone()
        } else {
            format!("={}", base64(&key))
        };
        fs::write(here.join(name), manifest).unwrap();
        digests.insert(key, sha(manifest.as_bytes()).into());
    }
    json!({"id": id, "names": names, "digest": sha(manifests[0].as_bytes()), "big-data-digests": digests})
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn open(place: &Place) -> Storage {
    Storage::open(place, Duration::ZERO).unwrap().unwrap()
}

#[test]
fn an_image_is_found_by_all_that_podman_calls_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let id = "0a".repeat(32);
    let one = image(
        root,
        &id,
        &["quay.io/org/app:1", "localhost/mine:latest"],
        &["instance", "list"],
    );
    let two = image(
        root,
        &"0b".repeat(32),
        &["docker.io/library/other:2", "ghcr.io/x/app:2"],
        &["other"],
    );
    let three = image(root, &"0c".repeat(32), &["ghcr.io/y/app:2"], &["third"]);
    records(root, "images", &json!([one, two, three]));
    records(root, "layers", &json!([]));
    let storage = open(&root.into());
    let found = |name: &str| {
        storage
            .image(name)
            .map(|image| String::from_utf8(image.manifest).unwrap())
    };
    for name in [
        "quay.io/org/app:1".to_owned(),
        "mine".into(),
        "localhost/mine".into(),
        "org/app:1".into(),
        "app:1".into(),
        "0a0".into(),
        id.clone(),
        format!("sha256:{id}"),
        format!("@{id}"),
        format!("quay.io/org/app:1@{id}"),
        format!("quay.io/org/app@{}", sha(b"instance")),
    ] {
        assert_eq!(found(&name).unwrap(), "instance", "{name}");
    }
    assert_eq!(found("other:2").unwrap(), "other");
    // The digest of the list that it was pulled by: the list, which leads to the instance.
    let by_list = storage.image(&format!("quay.io/org/app@{}", sha(b"list"))).unwrap();
    assert_eq!(by_list.manifest, b"list");
    let instance = storage.manifest(&by_list, &sha(b"instance").parse().unwrap()).unwrap();
    assert_eq!(instance.unwrap(), b"instance");
    // A list made on this machine names manifests of other images.
    let other = storage.manifest(&by_list, &sha(b"other").parse().unwrap()).unwrap();
    assert_eq!(other.unwrap(), b"other");
    for (name, why) in [
        ("app:2", "several images whose names end with /app:2"),
        ("0", "has no image"),
        ("app:3", "has no image \"app:3\""),
        ("../../etc/passwd", "has no image"),
        (&format!("app@{}", sha(b"nothing")), "has no image"),
    ] {
        let error = found(name).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[test]
fn a_manifest_that_was_changed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let id = "0a".repeat(32);
    let record = image(dir.path(), &id, &["localhost/app:1"], &["instance"]);
    records(dir.path(), "images", &json!([record]));
    records(dir.path(), "layers", &json!([]));
    fs::write(dir.path().join("overlay-images").join(&id).join("manifest"), "changed").unwrap();
    let storage = open(&dir.path().into());
    for name in ["app:1".to_owned(), format!("app@{}", sha(b"instance"))] {
        let error = storage.image(&name).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
}

#[test]
fn images_apart_additional_ones_and_containers_that_do_not_outlive_a_boot_belong_to_a_storage() {
    let dir = tempfile::tempdir().unwrap();
    let [root, images, run, more, shelf, gone] =
        ["root", "images", "run", "more", "shelf", "gone"].map(|name| dir.path().join(name));
    let diff = |n: u8| DiffId::from_hash([n; 32]);
    records(&root, "layers", &json!([layer(&root, "aa", &diff(1).to_string(), "")]));
    let mut tagged = image(&images, &"0a".repeat(32), &["localhost/a:1"], &["a"]);
    tagged["layer"] = "ee".into();
    tagged["mapped-layers"] = json!(["ff"]);
    records(&images, "images", &json!([tagged]));
    records(&more, "layers", &json!([layer(&more, "bb", &diff(2).to_string(), "")]));
    records(
        &more,
        "images",
        &json!([image(&more, &"0b".repeat(32), &["localhost/b:1"], &["b"])]),
    );
    // Our own one, which has no layers to take.
    let mut ours = layer(&shelf, "cc", &diff(3).to_string(), "");
    ours["cfs-update-image"] = "x".into();
    records(&shelf, "layers", &json!([ours]));
    records(
        &shelf,
        "images",
        &json!([image(&shelf, &"0c".repeat(32), &["localhost/c:1"], &["c"])]),
    );
    let volatile = run.join("overlay-layers");
    fs::create_dir_all(&volatile).unwrap();
    fs::write(
        volatile.join("volatile-layers.json"),
        json!([{"id": "dd", "parent": "aa"}]).to_string(),
    )
    .unwrap();
    fs::create_dir_all(&gone).unwrap();
    records(&gone, "layers", &json!("damaged"));
    let place = Place {
        images: Some(images.clone()),
        run: Some(run),
        additional: vec![more.clone(), shelf, gone.clone(), dir.path().join("nowhere")],
        ..Place::from(&*root)
    };
    let storage = Arc::new(open(&place));
    assert_eq!(storage.image("a:1").unwrap().manifest, b"a");
    assert_eq!(storage.image("b:1").unwrap().manifest, b"b");
    let error = storage.image("c:1").unwrap_err().to_string();
    assert!(
        error.contains(gone.to_str().unwrap()),
        "what was passed over is said: {error}"
    );
    assert_eq!(storage.needed().collect::<Vec<_>>(), ["aa", "ee", "ff"]);
    let places = |n| storage.layer(&diff(n)).map(|layer| layer.places());
    assert_eq!(places(1).unwrap()[0].folder, images.join("overlay/aa/diff"));
    assert_eq!(places(2).unwrap()[0].folder, more.join("overlay/bb/diff"));
    assert!(places(3).is_none());
}

#[test]
fn empty_records_are_none_and_a_circle_of_parents_ends() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let diff = DiffId::from_hash([1; 32]).to_string();
    let layers = json!([
        layer(root, "aa", &diff, "bb"),
        layer(root, "bb", &diff, "aa"),
        layer(root, "aa", &diff, "aa")
    ]);
    records(root, "layers", &layers);
    records(root, "images", &Value::Null);
    fs::write(root.join("overlay-layers/volatile-layers.json"), "").unwrap();
    let storage = Arc::new(open(&root.into()));
    let first = storage.layer(&DiffId::from_hash([1; 32])).unwrap();
    assert!(first.places().len() < 2 * DEEPEST);
    let second = first.next().unwrap();
    assert_eq!((second.index(), second.next().unwrap().index()), (1, 2));
    assert!(second.next().unwrap().next().is_none());
    assert!(storage.image("a").is_err());
}

#[test]
fn damaged_records_are_a_broken_file() {
    let dir = tempfile::tempdir().unwrap();
    for broken in ["layers", "images"] {
        records(dir.path(), "layers", &json!([]));
        records(dir.path(), "images", &json!([]));
        let file = dir.path().join(format!("overlay-{broken}/{broken}.json"));
        fs::write(&file, "[{").unwrap();
        let error = Storage::open(&dir.path().into(), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Failed, "{error}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_layer_of_a_partial_pull_is_known_by_what_its_image_said() {
    let dir = tempfile::tempdir().unwrap();
    let diff = DiffId::from_hash([1; 32]);
    let mut part = layer(dir.path(), "aa", "", "");
    part["flags"] = json!({"expected-layer-diffid": diff.to_string()});
    let mut lost = layer(dir.path(), "bb", "", "");
    lost["flags"] = json!({"expected-layer-diffid": 1, "incomplete": true});
    records(dir.path(), "layers", &json!([lost, part]));
    let storage = Arc::new(open(&dir.path().into()));
    assert_eq!(storage.layer(&diff).unwrap().index(), 1);
}

#[test]
fn of_two_drivers_the_one_that_is_asked_for_counts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    records(root, "layers", &json!([]));
    fs::create_dir_all(root.join("vfs-layers")).unwrap();
    let drivers = |driver: Option<&str>| {
        let driver = driver.map(String::from);
        let place = Place { driver, ..root.into() };
        open(&place).stores.iter().map(|store| store.driver).collect::<Vec<_>>()
    };
    assert_eq!(drivers(None), ["overlay", "vfs"]);
    assert_eq!(drivers(Some("vfs")), ["vfs"]);
    assert_eq!(drivers(Some("overlay2")), ["overlay"]);
    assert_eq!(drivers(Some("zfs")), ["overlay", "vfs"]);
}
