//! What is made on a file system.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use super::*;
use crate::sys::dir::{Dir, is_privileged};

#[test]
fn hard_links_stay_hard_links_and_a_kept_copy_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let new = Memory::new()
        .file("a", "2")
        .file("b", "2")
        .dir("d")
        .file("d/c", "2")
        .grouped(&["a", "b", "d/c"], 7);
    let old = Memory::new().file("a", "1").file("b", "1").dir("d");
    let current = Memory::new()
        .file("a", "mine")
        .file("b", "1")
        .dir("d")
        .file("x", "x")
        .file("y", "x");
    let current = current.grouped(&["x", "y"], 7);
    let plan = merged(&old, &current, &new);
    let to = folder.path().join("etc");
    apply(&plan, &current, &new, &to).unwrap();
    let inode = |name: &str| to.join(name).symlink_metadata().unwrap().ino();
    assert_eq!(inode("b"), inode("d/c"));
    assert_eq!(inode("x"), inode("y"));
    assert_ne!(
        inode("a.cfs-new"),
        inode("b"),
        "editing the copy must not edit another file"
    );
    assert_ne!(inode("x"), inode("b"));
    let scan = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
    let group = |name: &str| scan.listing().get(Path::new(name)).unwrap().group;
    assert!(group("b").is_some() && group("b") == group("d/c") && group("a").is_none());
    assert!(group("x") == group("y") && group("x") != group("b"));
}

#[test]
fn modes_times_links_and_pipes_are_written_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = Memory::new()
        .file("setuid", "x")
        .dir("closed")
        .file("closed/in", "y")
        .link("l", "/etc/shadow");
    image = image
        .meta("setuid", |m| m.mode = 0o4755)
        .meta("closed", |m| m.mode = 0o500);
    image = image.meta("closed/in", |m| m.mtime = Mtime { sec: -5, nsec: 1 });
    image.add("pipe", Item::Fifo, 0o620);
    image.add("null", Item::CharDevice(0x103), 0o666);
    let to = folder.path().join("etc");
    let report = write(&image, &to).unwrap();
    assert_eq!(report.nodes_skipped, [PathBuf::from("null")]);
    assert!(report.complete());
    assert_eq!(report.notes().len(), 1, "{:?}", report.notes());
    let meta = |name: &str| to.join(name).symlink_metadata().unwrap();
    assert_eq!(meta("setuid").mode() & 0o7777, 0o4755);
    assert_eq!(
        meta("closed").mode() & 0o7777,
        if is_privileged() { 0o500 } else { 0o700 }
    );
    assert_eq!((meta("closed/in").mtime(), meta("closed/in").mtime_nsec()), (-5, 1));
    assert_eq!(meta("closed").mtime(), 1_700_000_000);
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(meta("pipe").mode() & 0o7777, 0o620);
    assert_eq!(meta("l").mtime_nsec(), 123_456_789);
    assert_eq!(std::fs::read_link(to.join("l")).unwrap(), Path::new("/etc/shadow"));
}

#[test]
fn what_goes_away_while_it_is_merged_is_left_out_and_what_the_image_lost_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path().join("etc");
    std::fs::create_dir_all(etc.join("d/gone")).unwrap();
    for name in ["a", "lock", "linked", "d/gone/x", "d/y"] {
        std::fs::write(etc.join(name), name).unwrap();
    }
    let here = FolderSource::scan(&etc, Algorithm::Sha256).unwrap();
    std::fs::remove_file(etc.join("lock")).unwrap();
    std::fs::remove_file(etc.join("linked")).unwrap();
    symlink("a", etc.join("linked")).unwrap();
    std::fs::remove_dir_all(etc.join("d/gone")).unwrap();
    let nothing = Memory::new();
    let plan = plan(&nothing.listing, here.listing(), &nothing.listing, Rules::STRICT);
    let to = folder.path().join("new");
    apply(&plan, &here, &nothing, &to).unwrap();
    let written = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
    let names: Vec<_> = written
        .listing()
        .iter()
        .map(|(path, _)| path.to_str().unwrap())
        .collect();
    assert_eq!(names, ["", "a", "d", "d/gone", "d/y"]);
    assert!(write(&here, &folder.path().join("image")).is_err());
}

#[test]
fn overlays_marks_are_kept_where_the_administrator_has_them() {
    let key = |name: &str| Box::from(name.as_bytes());
    let mut meta = meta(0o755);
    for name in ["trusted.overlay.opaque", "trusted.overlay.origin", "user.x"] {
        meta.xattrs.push((key(name), key("y")));
    }
    let kept = |side| {
        let kept = apply::wanted(&meta, side).map(|(key, _)| String::from_utf8_lossy(key).into_owned());
        kept.collect::<Vec<_>>()
    };
    assert_eq!(kept(Side::Current), ["trusted.overlay.opaque", "user.x"]);
    assert_eq!(kept(Side::New), ["user.x"]);
}

#[test]
fn owners_and_capabilities_are_set_by_root_and_reported_by_others() {
    let folder = tempfile::tempdir().unwrap();
    // cap_net_raw=ep: version 2, effective, permitted 1 << 13 (linux/capability.h).
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let image = Memory::new()
        .file("ping", "x")
        .file("shadow", "y")
        .link("l", "x")
        .meta("l", |m| m.uid = 7);
    let image = image
        .meta("ping", |m| {
            m.xattrs
                .push((Box::from(&b"security.capability"[..]), capability.into()))
        })
        .meta("shadow", |m| (m.uid, m.gid, m.mode) = (12, 42, 0o000));
    let to = folder.path().join("etc");
    let report = write(&image, &to).unwrap();
    let shadow = to.join("shadow").symlink_metadata().unwrap();
    if is_privileged() {
        assert!(report.complete(), "{report:?}");
        assert_eq!((shadow.uid(), shadow.gid(), shadow.mode() & 0o7777), (12, 42, 0));
        assert_eq!(to.join("l").symlink_metadata().unwrap().uid(), 7);
        let read = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
        assert_eq!(diff(image.listing(), read.listing(), Rules::STRICT), []);
    } else {
        assert_eq!((report.owners_skipped, report.attributes_skipped), (2, 1));
        assert_eq!(report.notes().len(), 2);
        assert_eq!(shadow.mode() & 0o7777, 0o400, "still readable for the next merge");
    }
    let read = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
    assert_eq!(
        diff(
            image.listing(),
            read.listing(),
            Rules {
                ownership: report.complete()
            }
        ),
        []
    );
}

#[test]
fn nothing_is_written_through_a_link_or_over_something() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, folder.path().join("etc")).unwrap();
    let image = Memory::new().file("passwd", "evil");
    assert!(write(&image, &folder.path().join("etc")).is_err());
    std::fs::write(folder.path().join("file"), "old").unwrap();
    assert!(write(&image, &folder.path().join("file")).is_err());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    // A name that tries to leave, as no image of ours can have one but a listing could.
    for name in ["..", "../passwd", "/tmp/passwd", "a/../../passwd"] {
        let mut image = Memory::new();
        image.add(name, Item::Fifo, 0o600);
        let mut plan = Plan::fresh(&Memory::new().listing);
        let step = Step {
            from: Side::New,
            path: name.into(),
            alone: false,
        };
        plan.steps.insert(name.into(), step);
        let to = folder.path().join("new");
        assert!(apply(&plan, &image, &image, &to).is_err(), "{name}");
        std::fs::remove_dir_all(to).unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    // A folder swapped for a link while it is open is still the folder.
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let handle = Dir::open(&inner).unwrap();
    std::fs::rename(&inner, folder.path().join("moved")).unwrap();
    symlink(&outside, &inner).unwrap();
    handle.make_file(OsStr::from_bytes(b"x")).unwrap();
    assert!(folder.path().join("moved/x").exists() && !outside.join("x").exists());
    assert!(Dir::open(&inner).is_err());
}
