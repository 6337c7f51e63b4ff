//! What the files of a layer that comes in parts become in the store.

use super::*;

/// What the object has that a layer's file became.
fn object_of(store: &Store, layer: &Layer, path: &str) -> Vec<u8> {
    let mut entries = store.entries(&diff_id(&layer.tar)).unwrap().map(Result::unwrap);
    let entry = entries.find(|entry| *entry.path == *path.as_bytes()).unwrap();
    let Item::Regular(Content::Object { id, size }) = entry.item else {
        panic!("{path}: {entry:?}")
    };
    let object = std::fs::read(store.path().join("objects").join(id.object_path())).unwrap();
    assert_eq!(object.len() as u64, size, "{path}");
    object
}

#[test]
fn a_file_that_is_a_chunk_of_a_larger_file_which_is_here_becomes_an_object_of_its_own() {
    let plain_zeros = |table: &mut serde_json::Value| {
        for entry in table["entries"].as_array_mut().unwrap() {
            entry.as_object_mut().unwrap().remove("chunkType");
        }
    };
    let recipe = Recipe {
        table: &plain_zeros,
        ..FAIR
    };
    let large = noise(50 * KIB, 77);
    let with = |more: &[(&str, &[u8])]| {
        let more = more
            .iter()
            .map(|(path, content)| ((*path).to_owned(), content.to_vec()));
        layer_of(&recipe, &files(&[]).into_iter().chain(more).collect::<Vec<_>>())
    };
    let zeros = vec![0; 300 * KIB];
    let old = with(&[("usr/log", &large), ("usr/zeros", &zeros)]);
    let parts: [(&str, &[u8]); 4] = [
        ("usr/log", &large[..16 * KIB]),
        ("usr/second", &large[16 * KIB..32 * KIB]),
        ("usr/last", &large[48 * KIB..]),
        ("usr/zeros", &zeros[..16 * KIB]),
    ];
    let new = with(&parts);
    let (warm, cold) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (warm, cold) = (store(warm.path()), store(cold.path()));
    let registry = Registry::start(&[&old]);
    pull(&warm, &registry).unwrap();
    registry.serve(&[&new], Ranges::Several);
    let told = pull(&warm, &registry).unwrap();
    assert!(!fell_back(&told), "{told:?}");
    let sent = registry.sent();
    assert!(
        sent < new.blob.len() / 4,
        "{sent} of {}: the chunks are here",
        new.blob.len()
    );
    let images = [&warm, &cold].map(|store| pull_image(store, &registry, &Told::default()).unwrap());
    assert!(rebuilt(&warm, &new));
    for (path, content) in parts {
        assert_eq!(object_of(&warm, &new, path), content, "{path}");
    }
    assert_eq!(images[0], images[1], "the image is that of a cold pull");
}

#[test]
fn an_object_that_is_damaged_makes_way_for_the_right_one_when_an_update_by_parts_meets_it() {
    let (folder, v1, v2) = (tempfile::tempdir().unwrap(), version(&[]), version(&[7]));
    let registry = Registry::start(&[&v1]);
    pull(&store(folder.path()), &registry).unwrap();
    let store = store(folder.path());
    let mut objects = store
        .entries(&diff_id(&v1.tar))
        .unwrap()
        .map(|entry| entry.unwrap().item);
    let is_large = |item: Item| match item {
        Item::Regular(Content::Object { id, size }) if size > 40_000 => Some(store.object_path(&id)),
        _ => None,
    };
    let object = objects.find_map(is_large).unwrap();
    let good = std::fs::read(&object).unwrap();
    let damaged: Vec<u8> = good.iter().map(|byte| byte ^ 1).collect();
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, damaged).unwrap();
    registry.serve(&[&v2], Ranges::Several);
    let told = pull(&store, &registry).unwrap();
    assert!(fell_back(&told), "{told:?}");
    assert_eq!(std::fs::read(&object).unwrap(), good);
    assert!(rebuilt(&store, &v1) && rebuilt(&store, &v2));
}
