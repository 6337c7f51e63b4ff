//! `gc`, `fsck` and `fsck --repair`.

use super::*;

#[test]
fn gc_lists_first_and_removes_only_what_nothing_needs() {
    let dir = scratch();
    let cfs = updated(dir.path());
    cfs.run(["image", "pull", &publish(dir.path(), 3)]).expect(0);
    let before = objects(&cfs);
    let nothing = cfs.run(["gc", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(nothing["objects"], json!([]), "all of it is needed");
    cfs.run(["delete", "rollback"]).expect(0);
    cfs.run([
        "image",
        "rm",
        &format!("oci:{}:stable", dir.path().join("oci").display()),
    ])
    .expect(0);
    let listed = cfs.run(["gc", "--dry-run", "--json"]).expect(0).json();
    let gone = listed["objects"].as_array().unwrap().len();
    assert!(gone > 8, "files of two versions: {listed}");
    assert_eq!(objects(&cfs), before);
    let removed = cfs.run(["gc", "--json"]).expect(0).json();
    assert_eq!(removed["objects"], listed["objects"]);
    assert_eq!(objects(&cfs).len(), before.len() - gone);
    cfs.fsck();
}

#[test]
fn fsck_names_a_broken_object_and_exits_1() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let object = objects(&cfs)
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&object).unwrap();
    fs::write(&object, bytes).unwrap();
    let name = object.file_name().unwrap().to_str().unwrap();
    let checked = cfs.run(["fsck"]).expect(1);
    assert!(checked.stdout.contains(name), "{}", checked.stdout);
    let json = cfs.run(["fsck", "--json"]).expect(1).json();
    assert!(
        json["problems"].as_u64().unwrap() > 0 && json["findings"].to_string().contains(name),
        "{json}"
    );
    cfs.status();
}

/// Another content of the same size.
fn damage(object: &std::path::Path) {
    let mut content = fs::read(object).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::remove_file(object).unwrap();
    fs::write(object, content).unwrap();
}

/// Puts something that is no file in an object's place.
fn obstruct(object: &std::path::Path, kind: usize) {
    fs::remove_file(object).unwrap();
    match kind % 3 {
        0 => std::os::unix::fs::symlink("/etc/hostname", object).unwrap(),
        1 => drop(tool("mkfifo", [object])),
        _ => fs::create_dir_all(object.join("below")).unwrap(),
    }
}

#[test]
fn whatever_is_no_file_in_an_objects_place_fsck_repair_mends_it() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let objects = objects(&cfs);
    for (n, object) in objects.iter().enumerate() {
        obstruct(object, n);
        let found = cfs.run(["fsck"]).expect(1).stdout;
        assert!(
            found.contains("no regular file") && found.contains("fsck --repair"),
            "{found}"
        );
        let repaired = cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"].clone();
        assert_eq!(repaired["failed"], json!([]), "{n}");
        cfs.fsck();
    }
    assert_eq!(self::objects(&cfs), objects);
}

#[test]
fn whatever_object_is_damaged_or_gone_fsck_repair_mends_it() {
    let dir = scratch();
    let cfs = updated(dir.path());
    cfs.run(["image", "pull", &publish(dir.path(), 3)]).expect(0);
    let objects = objects(&cfs);
    assert!(objects.len() > 15, "{objects:?}");
    for object in &objects {
        let id = format!("{}{}", name(object.parent().unwrap()), name(object));
        damage(object);
        let found = cfs.run(["fsck"]).expect(1).stdout;
        assert!(found.contains("fsck --repair"), "{found}");
        let repaired = cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"].clone();
        assert_eq!(repaired["removed"], json!([id]));
        assert_eq!(repaired["failed"], json!([]));
        cfs.fsck();
        fs::remove_file(object).unwrap();
        cfs.run(["fsck"]).expect(1);
        let repaired = cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"].clone();
        assert_eq!(repaired["removed"], json!([]));
        cfs.fsck();
    }
    assert_eq!(self::objects(&cfs), objects);
    assert_eq!(
        cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"],
        Value::Null
    );
}

#[test]
fn what_cannot_be_fetched_is_named_and_mended_when_it_can() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let largest = objects(&cfs)
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    damage(&largest);
    let (layout, away) = (dir.path().join("oci"), dir.path().join("away"));
    fs::rename(&layout, &away).unwrap();
    let ran = cfs.run(["fsck", "--repair"]).expect(1);
    assert!(
        ran.stderr.contains("not mended: oci:") && ran.stdout.contains("Removed object"),
        "{ran:?}"
    );
    assert!(!largest.exists(), "nothing reads what is broken");
    fs::rename(&away, &layout).unwrap();
    let ran = cfs.run(["fsck", "--repair"]).expect(0);
    assert!(ran.stdout.contains("Mended oci:"), "{ran:?}");
    assert!(largest.exists());
    cfs.fsck();
}
