//! What is garbage and what is not, and when none is collected.

use super::*;

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
