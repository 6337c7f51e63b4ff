use rustix::fs::CWD;

use super::*;

fn objects(folder: &Path, suspect: bool) -> Objects {
    Objects::open(folder, Algorithm::Sha256, Verity::Unknown, suspect).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

#[test]
fn a_name_is_the_path_of_the_id() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let id = verity::hash(algorithm, b"x");
        assert_eq!(Name::new(&id).as_str(), id.object_path());
    }
}

#[test]
fn objects_are_stored_once_with_and_without_unnamed_files() {
    for named in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path(), false);
        if named {
            objects.without_tmpfile();
        }
        let data = vec![7; 5000];
        let id = verity::hash(Algorithm::Sha256, &data);
        assert!(objects.put(&id, &data).unwrap());
        assert!(!objects.put(&id, &data).unwrap());
        // Lost the race: another thread stored it after the look.
        let mut late = objects.temporary().unwrap();
        late.write_all(&data).unwrap();
        assert!(!objects.store(late, &id).unwrap());
        drop(objects.temporary().unwrap());
        assert_eq!(files(folder.path()), [objects.path(&id)], "named: {named}");
        assert!(objects.is_intact(&id).unwrap());
        objects.remove(&id).unwrap();
        objects.remove(&id).unwrap();
        assert!(matches!(objects.open_object(&id), Err(Error::Object { .. })));
    }
}

#[test]
fn many_threads_may_store_the_same_object() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path(), true);
    let data = vec![8; 100_000];
    let id = verity::hash(Algorithm::Sha256, &data);
    let new: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| objects.put(&id, &data).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| usize::from(thread.join().unwrap()))
            .sum()
    });
    assert_eq!(new, 1);
    assert!(objects.is_intact(&id).unwrap());
}

#[test]
fn an_object_of_another_size_or_suspect_content_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = vec![9; 5000];
    let id = verity::hash(Algorithm::Sha256, &data);
    for (suspect, damage, again) in [(false, 4999, true), (false, 5000, false), (true, 5000, true)] {
        objects(folder.path(), suspect).put(&id, &data).unwrap();
        let objects = objects(folder.path(), suspect);
        #[allow(clippy::disallowed_methods, reason = "the damage")]
        std::fs::write(objects.path(&id), vec![0; damage]).unwrap();
        assert_eq!(objects.put(&id, &data).unwrap(), again, "{suspect} {damage}");
        objects.remove(&id).unwrap();
    }
}

#[test]
fn what_a_new_folder_holds_is_known_without_a_look_and_an_object_of_somebody_else_is_met_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (here, other) = (objects(folder.path(), false), objects(folder.path(), false));
    let id = |n: u8| {
        let mut raw = [n; 32];
        raw[0] = 7;
        ObjectId::from_bytes(Algorithm::Sha256, &raw).unwrap()
    };
    assert!(here.put(&id(1), b"one").unwrap());
    assert_eq!(
        (here.fresh.has(&id(1)), here.fresh.has(&id(2))),
        (Some(true), Some(false))
    );
    assert_eq!(other.fresh.has(&id(1)), None, "it did not make the folder");
    assert!(!here.put(&id(1), b"one").unwrap() && !other.put(&id(1), b"one").unwrap());
    assert!(other.put(&id(2), b"two").unwrap());
    assert!(!here.put(&id(2), b"two").unwrap(), "the name is taken");
    here.remove(&id(1)).unwrap();
    assert!(here.put(&id(1), b"one").unwrap());
    for id in [id(1), id(2)] {
        here.remove(&id).unwrap();
    }
    here.remove_empty_folders();
    assert!(!here.path(&id(1)).parent().unwrap().exists());
    assert!(other.put(&id(2), b"two").unwrap() && here.put(&id(1), b"one").unwrap());
    here.remove_empty_folders();
    assert!(here.path(&id(1)).exists(), "only those that are empty");
}

#[test]
fn what_is_no_file_in_an_objects_place_is_no_object_and_gives_way_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path(), false);
    let data = vec![3; 5000];
    let id = verity::hash(Algorithm::Sha256, &data);
    let (path, outside) = (objects.path(&id), folder.path().join("outside"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    #[allow(clippy::disallowed_methods, reason = "the same content, elsewhere")]
    std::fs::write(&outside, &data).unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink(&outside, path).unwrap();
    let fifo = |path: &Path| rustix::fs::mkfifoat(CWD, path, Mode::RUSR).unwrap();
    let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let full = |path: &Path| std::fs::create_dir_all(path.join("below")).unwrap();
    type Kind<'a> = (&'a str, &'a dyn Fn(&Path));
    let kinds: [Kind<'_>; 4] = [("link", &link), ("pipe", &fifo), ("socket", &socket), ("folder", &full)];
    for (kind, make) in kinds {
        make(&path);
        assert!(objects.is_obstructed(&id), "{kind}");
        assert_eq!(objects.size(&id).unwrap(), None, "{kind}");
        let refusal = objects.open_object(&id).unwrap_err().to_string();
        assert!(refusal.contains(NO_FILE), "{kind}: {refusal}");
        assert!(objects.put(&id, &data).unwrap(), "{kind}");
        assert!(objects.is_intact(&id).unwrap(), "{kind}");
        objects.remove(&id).unwrap();
    }
    assert_eq!(std::fs::read(&outside).unwrap(), data);
}

#[test]
fn leftovers_of_a_killed_run_go_and_other_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path(), false);
    objects.without_tmpfile();
    std::mem::forget(objects.temporary().unwrap());
    let id = verity::hash(Algorithm::Sha256, b"x");
    objects.put(&id, b"x").unwrap();
    assert_eq!(files(folder.path()).len(), 2);
    objects.remove_leftovers().unwrap();
    assert_eq!(files(folder.path()), [objects.path(&id)]);
}
