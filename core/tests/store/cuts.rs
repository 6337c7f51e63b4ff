//! The power is cut at every step of a pull and of a garbage collection.

use cfs_core::ids::BlobDigest;
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::testing::{CrashFs, Loss};

use super::*;

/// What an update does to the store.
fn pull(fs: Arc<dyn Fs>, path: &Path) -> Result<()> {
    let store = Store::open_or_create_with(fs, path, Algorithm::Sha256)?;
    let tar = layer(1);
    let diff_id = diff_id(&tar);
    if !store.has_layer(&diff_id) {
        let source = source(diff_id, Compression::Gzip, gzip(&tar));
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
