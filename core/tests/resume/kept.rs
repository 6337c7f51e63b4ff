//! What was kept of a layer, whatever became of it meanwhile.

use cfs_core::store::gc;

use super::*;

#[test]
fn parts_that_are_a_link_to_another_folder_are_neither_read_nor_written_nor_removed() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(6 * MIB, 1));
    let registry = slow(&layer);
    interrupt(folder.path(), &registry, 3 * MIB);
    let (own, outside) = (
        folder.path().join("composefs/cfs-update/parts"),
        folder.path().join("outside"),
    );
    fs::rename(&own, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &own).unwrap();
    let content = || fs::read(outside.join(&names(&outside)[0])).unwrap();
    let before = content();
    *registry.ways.lock().unwrap() = Ranges::Cut(5 * MIB);
    run(folder.path(), &registry, 1).1.unwrap_err();
    *registry.ways.lock().unwrap() = Ranges::Several;
    *registry.pace.lock().unwrap() = None;
    run(folder.path(), &registry, 4).1.unwrap();
    assert!(registry.sent() >= layer.blob.len(), "nothing of it was here");
    assert!(content() == before);
}

#[test]
fn damage_to_what_was_kept_costs_bytes_and_nothing_else() {
    type Damage<'a> = &'a dyn Fn(&Path, &Layer);
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    let flipped = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[HEAD + MIB] ^= 1);
    let zeros = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[2 * MIB..].fill(0));
    let longer = |path: &Path, layer: &Layer| edit(path, &|bytes| bytes.resize(layer.blob.len() + HEAD, 7));
    let of_another = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[8..40].fill(7));
    let no_head = |path: &Path, _: &Layer| edit(path, &|bytes| bytes[0] = 0);
    let short = |path: &Path, _: &Layer| edit(path, &|bytes| bytes.truncate(HEAD - 1));
    let head_only = |path: &Path, _: &Layer| edit(path, &|bytes| bytes.truncate(HEAD));
    let empty = |path: &Path, _: &Layer| edit(path, &|bytes| bytes.clear());
    let elsewhere = |path: &Path, _: &Layer| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (blob, rest) = name.split_once('-').unwrap();
        let origin = rest.split_once('-').unwrap().1;
        fs::rename(path, path.with_file_name(format!("{blob}-99-{origin}"))).unwrap();
    };
    let behind_the_end = |path: &Path, _: &Layer| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (blob, rest) = name.split_once('-').unwrap();
        let origin = rest.split_once('-').unwrap().1;
        fs::rename(path, path.with_file_name(format!("{blob}-{}-{origin}", u64::MAX))).unwrap();
    };
    let cases: [(&str, Damage<'_>, bool, bool); 10] = [
        ("flipped", &flipped, true, true),
        ("zeros", &zeros, true, true),
        ("elsewhere", &elsewhere, true, true),
        ("longer", &longer, false, false),
        ("of another", &of_another, false, false),
        ("no head", &no_head, false, false),
        ("short", &short, false, false),
        ("head only", &head_only, false, false),
        ("empty", &empty, false, false),
        ("behind the end", &behind_the_end, false, false),
    ];
    for (what, damage, used, anew) in cases {
        let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 7));
        let registry = slow(&layer);
        interrupt(folder.path(), &registry, 3 * MIB);
        *registry.pace.lock().unwrap() = None;
        damage(&parts(folder.path())[0], &layer);
        let told = finish(folder.path(), &registry, &layer);
        assert_eq!(says(&told, "goes on at"), used, "{what}: {told:?}");
        assert_eq!(says(&told, "fetched anew"), anew, "{what}: {told:?}");
    }
}

#[test]
fn after_a_power_cut_what_was_made_durable_is_used_and_the_rest_is_not() {
    for durable in [0, MIB as u64, 100 * MIB as u64] {
        let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 8));
        let registry = slow(&layer);
        let kept = interrupt(folder.path(), &registry, 3 * MIB);
        *registry.pace.lock().unwrap() = None;
        // Another boot, and all that was not durable reads as zeros.
        let path = &parts(folder.path())[0];
        let mut bytes = fs::read(path).unwrap();
        bytes[40..56].fill(0xee);
        bytes[56..64].copy_from_slice(&durable.to_le_bytes());
        let safe = usize::try_from(durable).unwrap().min(bytes.len() - HEAD);
        bytes[HEAD + safe..].fill(0);
        fs::write(path, bytes).unwrap();
        let told = finish(folder.path(), &registry, &layer);
        assert!(!says(&told, "fetched anew"), "{durable}: {told:?}");
        assert_eq!(says(&told, "goes on at"), durable > 0, "{durable}: {told:?}");
        let missing = layer.blob.len() - safe.min(kept.end - kept.start);
        assert!(
            registry.sent() <= missing + 300,
            "{durable}: {} of {missing}",
            registry.sent()
        );
    }
}

#[test]
fn what_another_run_writes_is_neither_read_nor_removed_and_old_parts_are_collected() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(4 * MIB, 9));
    let registry = slow(&layer);
    interrupt(folder.path(), &registry, 3 * MIB);
    *registry.pace.lock().unwrap() = None;
    let part = parts(folder.path())[0].clone();
    let age = |days: u64| {
        let then = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600 + 60);
        fs::File::options()
            .write(true)
            .open(&part)
            .unwrap()
            .set_modified(then)
            .unwrap();
    };
    let collect = || gc::run(&store(folder.path()), &gc::Roots::default(), &|_| Ok(Vec::new())).unwrap();
    age(6);
    assert!(collect().parts.is_empty() && part.exists(), "a week is not over");
    age(7);
    let lock = fs::File::open(&part).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    collect();
    let (told, pulled) = run(folder.path(), &registry, 1);
    pulled.unwrap();
    assert!(!says(&told, "goes on at") && part.exists(), "{told:?}");
    rustix::fs::flock(&lock, FlockOperation::Unlock).unwrap();
    let planned = gc::plan(&store(folder.path()), &gc::Roots::default(), &|_| Ok(Vec::new())).unwrap();
    assert_eq!(planned.parts.len(), 1);
    assert!(planned.bytes() > MIB as u64 && part.exists());
    collect();
    assert!(!part.exists());
}

#[test]
fn a_part_that_cannot_be_written_does_not_keep_a_layer_from_coming() {
    let (folder, layer) = (tempfile::tempdir().unwrap(), layer(2 * MIB, 10));
    let registry = slow(&layer);
    let own = store(folder.path()).path().join("cfs-update");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("parts"), "in the way").unwrap();
    let (told, pulled) = run(folder.path(), &registry, 1);
    pulled.unwrap_or_else(|error| panic!("{error}: {told:?}"));
}
