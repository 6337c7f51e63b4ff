//! The index that says which object a file of a table is: made, made again, and nothing in its place followed.

use super::*;

#[test]
fn layers_that_were_fetched_without_a_table_are_looked_through_once() {
    let (folder, v1) = (tempfile::tempdir().unwrap(), version(&[]));
    let plain = Layer {
        annotations: Default::default(),
        ..v1.clone()
    };
    let big = files(&[])
        .into_iter()
        .chain([("usr/large".to_owned(), noise(1200 << 10, 99))])
        .collect::<Vec<_>>();
    let changed = files(&[11])
        .into_iter()
        .chain([("usr/large".to_owned(), noise(1200 << 10, 99))])
        .collect::<Vec<_>>();
    let registry = Registry::start(&[
        &Layer {
            annotations: Default::default(),
            ..layer_of(&FAIR, &big)
        },
        &plain,
    ]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let index = store.path().join("cfs-update/index");
    assert!(names(&index).is_empty(), "a plain import pays nothing");
    let large = layer_of(&FAIR, &changed);
    registry.serve(&[&large], Ranges::Several);
    let told = pull(&store, &registry).unwrap();
    assert!(told.iter().any(|event| event.contains("looking through")), "{told:?}");
    assert!(rebuilt(&store, &large));
    assert!(
        registry.sent() < large.blob.len() / 10,
        "{} of {}",
        registry.sent(),
        large.blob.len()
    );
    assert_eq!(names(&index).len(), 3);
}

#[test]
fn the_index_is_made_again_where_it_is_damaged_old_or_gone_and_collected_with_its_layer() {
    let folder = tempfile::tempdir().unwrap();
    let big: Vec<_> = files(&[])
        .into_iter()
        .chain([("usr/large".to_owned(), noise(1200 << 10, 5))])
        .collect();
    let old = layer_of(&FAIR, &big);
    let registry = Registry::start(&[&old]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let path: PathBuf = store.path().join("cfs-update/index").join(diff_id(&old.tar).to_hex());
    let good = std::fs::read(&path).unwrap();
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let damages: [Damage<'_>; 5] = [
        &|bytes| bytes.truncate(bytes.len() / 2),
        &|bytes| bytes.clear(),
        &|bytes| bytes[100] ^= 1,
        &|bytes| bytes[8] = 0,
        &|bytes| bytes.extend([0; 9]),
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let mut bytes = good.clone();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let mut changed = big.clone();
        changed.push((format!("usr/new{n}"), noise(100, 500 + n as u64)));
        let new = layer_of(&FAIR, &changed);
        registry.serve(&[&new], Ranges::Several);
        let told = pull(&store, &registry).unwrap();
        assert!(!fell_back(&told) && rebuilt(&store, &new), "{n}: {told:?}");
        assert!(registry.sent() < new.blob.len() / 4, "{n}: {}", registry.sent());
    }
    // Only the last one is named: the others go, with their index.
    let none = |_: &[u8]| Ok(Vec::new());
    gc::run(&store, &gc::Roots::default(), &none).unwrap();
    assert_eq!(names(&store.path().join("cfs-update/index")).len(), 1);
}

#[test]
fn an_index_that_is_a_link_is_not_used_and_what_it_leads_to_stays() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), version(&[]));
    let registry = Registry::start(&[&layer]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let (index, outside) = (store.path().join("cfs-update/index"), folder.path().join("outside"));
    std::fs::remove_dir_all(&index).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "theirs").unwrap();
    std::os::unix::fs::symlink(&outside, &index).unwrap();
    let new = version(&[3]);
    registry.serve(&[&new], Ranges::Several);
    pull(&store, &registry).unwrap();
    assert!(rebuilt(&store, &new));
    gc::run(&store, &gc::Roots::default(), &|_| Ok(Vec::new())).unwrap();
    assert_eq!(names(&outside), ["precious"]);
}

#[test]
fn a_pipe_or_a_link_in_the_index_is_not_waited_for_and_goes() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), version(&[]));
    let registry = Registry::start(&[&layer]);
    let store = store(folder.path());
    pull(&store, &registry).unwrap();
    let path = store.path().join("cfs-update/index").join(diff_id(&layer.tar).to_hex());
    let outside = folder.path().join("outside");
    std::fs::rename(&path, &outside).unwrap();
    let pipe = || rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    let link = || std::os::unix::fs::symlink(&outside, &path).unwrap();
    let kinds: [&dyn Fn(); 2] = [&pipe, &link];
    for (n, make) in kinds.into_iter().enumerate() {
        make();
        let new = version(&[n]);
        registry.serve(&[&new], Ranges::Several);
        pull(&store, &registry).unwrap();
        assert!(rebuilt(&store, &new), "{n}");
        assert!(path.symlink_metadata().is_err(), "{n}");
    }
}
