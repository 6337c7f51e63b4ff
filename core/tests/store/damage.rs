//! Damage is found, named and mended.

use super::*;

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
