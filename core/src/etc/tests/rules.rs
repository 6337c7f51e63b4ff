//! What the plan and the diff decide, rule by rule.

use super::*;

#[test]
fn what_only_one_side_changed_is_taken_and_deletions_persist() {
    let old = Memory::new()
        .file("a", "1")
        .file("b", "1")
        .file("c", "1")
        .file("d", "1")
        .file("e", "1");
    let current = Memory::new()
        .file("a", "admin")
        .file("b", "1")
        .file("d", "1")
        .file("f", "mine");
    let new = Memory::new()
        .file("a", "1")
        .file("b", "2")
        .file("c", "1")
        .file("e", "1")
        .file("g", "new");
    let plan = merged(&old, &current, &new);
    assert_eq!(shown(&plan), ["a A", "b N", "f A", "g N"]);
    assert_eq!(conflicts(&plan), []);
}

#[test]
fn where_both_changed_a_file_the_admins_stays_and_the_images_is_kept_beside_it() {
    let old = Memory::new()
        .file("a", "1")
        .file("b", "1")
        .file("c", "1")
        .file("s", "1")
        .file("t", "1");
    let current = Memory::new()
        .file("a", "admin")
        .file("c", "admin")
        .file("s", "same")
        .link("t", "elsewhere");
    let new = Memory::new()
        .file("a", "2")
        .file("b", "2")
        .file("s", "same")
        .file("t", "2")
        .file("n", "2");
    let current = current.file("n", "also mine");
    let plan = merged(&old, &current, &new);
    assert_eq!(
        shown(&plan),
        [
            "a A",
            "a.cfs-new N:a",
            "c A",
            "n A",
            "n.cfs-new N:n",
            "s A",
            "t A",
            "t.cfs-new N:t"
        ]
    );
    assert_eq!(
        conflicts(&plan),
        [
            ("a".into(), What::BothChanged),
            ("b".into(), What::DeletedHere),
            ("c".into(), What::RemovedInImage),
            ("n".into(), What::BothChanged),
            ("t".into(), What::BothChanged),
        ]
    );
}

#[test]
fn permissions_owner_and_attributes_are_changes_and_times_are_none() {
    let old = Memory::new()
        .file("mode", "1")
        .file("owner", "1")
        .file("time", "1")
        .file("cap", "1")
        .file("label", "1");
    let attribute = |key: &[u8]| (Box::from(key), Box::from(&b"v"[..]));
    let current = old
        .clone()
        .meta("mode", |meta| meta.mode = 0o600)
        .meta("owner", |meta| meta.gid += 1)
        .meta("time", |meta| meta.mtime.sec += 1)
        .meta("cap", |meta| meta.xattrs.push(attribute(b"security.capability")))
        .meta("label", |meta| meta.xattrs.push(attribute(b"security.selinux")));
    let new = Memory::new()
        .file("mode", "1")
        .file("owner", "1")
        .file("time", "2")
        .file("cap", "1")
        .file("label", "2");
    let plan = merged(&old, &current, &new);
    assert_eq!(shown(&plan), ["cap A", "label N", "mode A", "owner A", "time N"]);
    assert_eq!(conflicts(&plan), []);
}

#[test]
fn an_etc_written_without_privileges_is_no_change_by_the_admin() {
    let old = Memory::new().file("shadow", "1").dir("d").file("d/x", "1");
    let old = old
        .meta("shadow", |m| (m.uid, m.gid, m.mode) = (0, 42, 0o000))
        .meta("d", |m| m.mode = 0o500);
    let current = old
        .clone()
        .meta("shadow", |m| (m.uid, m.gid, m.mode) = (1000, 1000, 0o400))
        .meta("d", |m| m.mode = 0o700);
    let new = Memory::new().file("shadow", "2").dir("d").file("d/x", "2");
    let loose = plan(&old.listing, &current.listing, &new.listing, Rules { ownership: false });
    assert_eq!(shown(&loose), ["d N", "d/x N", "shadow N"]);
    let strict = merged(&old, &current, &new);
    assert_eq!(shown(&strict), ["d A", "d/x N", "shadow A", "shadow.cfs-new N:shadow"]);
    assert_eq!(conflicts(&strict)[0], ("d".into(), What::BothChangedFolder));
}

#[test]
fn a_folder_that_the_image_removes_stays_only_for_what_is_the_admins() {
    let old = Memory::new()
        .dir("d")
        .file("d/x", "1")
        .dir("e")
        .file("e/x", "1")
        .dir("f")
        .file("f/x", "1");
    let current = Memory::new()
        .dir("d")
        .file("d/x", "1")
        .file("d/mine", "m")
        .dir("e")
        .file("e/x", "1")
        .dir("f");
    let plan = merged(&old, &current, &Memory::new());
    assert_eq!(shown(&plan), ["d A", "d/mine A"]);
    assert_eq!(conflicts(&plan), []);
}

#[test]
fn a_folder_of_the_admins_is_not_replaced_by_the_images_file() {
    let old = Memory::new().dir("d").file("d/x", "1").dir("e").file("e/x", "1");
    let current = Memory::new()
        .dir("d")
        .file("d/x", "1")
        .file("d/mine", "m")
        .dir("e")
        .file("e/x", "1");
    let new = Memory::new().file("d", "now a file").link("e", "d");
    let plan = merged(&old, &current, &new);
    assert_eq!(shown(&plan), ["d A", "d/mine A", "d.cfs-new N:d", "e N"]);
    assert_eq!(conflicts(&plan), [("d".into(), What::BothChanged)]);
}

#[test]
fn a_folder_that_the_admin_deleted_or_replaced_does_not_come_back() {
    let old = Memory::new()
        .dir("d")
        .file("d/x", "1")
        .dir("e")
        .file("e/x", "1")
        .dir("f")
        .file("f/x", "1");
    let current = Memory::new().link("e", "/srv/e").file("f", "a file now");
    let unchanged = merged(&old, &current, &old);
    assert_eq!(shown(&unchanged), ["e A", "f A"]);
    assert_eq!(conflicts(&unchanged), []);
    let new = Memory::new()
        .dir("d")
        .file("d/x", "1")
        .file("d/y", "new")
        .dir("e")
        .file("e/x", "2")
        .dir("f");
    let plan = merged(&old, &current, &new.file("f/x", "1"));
    assert_eq!(shown(&plan), ["e A", "e.cfs-new N:e", "e.cfs-new/x N:e/x", "f A"]);
    assert_eq!(
        conflicts(&plan),
        [("d".into(), What::DeletedHere), ("e".into(), What::BothChanged)]
    );
}

#[test]
fn what_an_earlier_conflict_kept_is_replaced_unless_somebody_has_changed_it() {
    let old = Memory::new().file("a", "2").file("b", "2");
    let current = Memory::new()
        .file("a", "admin")
        .file("a.cfs-new", "2")
        .file("b", "admin")
        .file("b.cfs-new", "notes");
    let new = Memory::new().file("a", "3").file("b", "3");
    let plan = merged(&old, &current, &new);
    assert_eq!(
        shown(&plan),
        ["a A", "a.cfs-new N:a", "b A", "b.cfs-new A", "b.cfs-new-2 N:b"]
    );
}

#[test]
fn the_mark_of_a_finished_update_is_never_kept() {
    let old = Memory::new().file(".updated", "").dir("d").file("d/.updated", "");
    let current = old.clone().file(".updated", "touched");
    let plan = merged(&old, &current, &old);
    assert_eq!(shown(&plan), ["d N", "d/.updated N"]);
    assert_eq!(shown(&Plan::fresh(&old.listing)), ["d N", "d/.updated N"]);
    assert_eq!(diff(&old.listing, &current.listing, Rules::STRICT), []);
}

#[test]
fn the_name_beside_a_very_long_name_fits() {
    let name = "x".repeat(255);
    let long = |content| Memory::new().file(&name, content);
    let plan = merged(&long("1"), &long("2"), &long("3"));
    let kept = plan.conflicts[0].kept_as.clone().unwrap();
    assert_eq!(kept.as_os_str().len(), 255);
    assert!(kept.to_string_lossy().ends_with("x.cfs-new"));
}

#[test]
fn diff_says_what_the_admin_did() {
    let image = Memory::new().file("a", "1").file("b", "1").dir("d").file("d/x", "1");
    let current = Memory::new().file("a", "2").dir("d").file("d/x", "1").link("l", "a");
    let changes = diff(&image.listing, &current.listing, Rules::STRICT);
    let expected = [("a", Change::Changed), ("b", Change::Removed), ("l", Change::Added)];
    assert_eq!(changes, expected.map(|(path, change)| (PathBuf::from(path), change)));
}

#[test]
fn devices_and_sockets_of_an_image_are_nothing_that_could_have_been_deleted() {
    let mut old = Memory::new().file("a", "1");
    for (path, item) in [
        ("null", Item::CharDevice(0x103)),
        ("disk", Item::BlockDevice(0x800)),
        ("socket", Item::Socket),
        ("mine", Item::Socket),
        ("other", Item::Socket),
    ] {
        old.add(path, item, 0o600);
    }
    let current = Memory::new().file("a", "1").file("mine", "m").dir("other");
    let changes = diff(&old.listing, &current.listing, Rules::STRICT);
    let added = |path: &str| (PathBuf::from(path), Change::Added);
    assert_eq!(changes, [added("mine"), added("other")]);
    // So what the next image has in their place arrives, and what is the administrator's stays.
    let mut new = Memory::new().file("a", "1").file("null", "a file now").dir("disk");
    new.add("mine", Item::CharDevice(0x103), 0o600);
    new.add("other", Item::CharDevice(0x103), 0o600);
    let plan = merged(&old, &current, &new);
    assert_eq!(shown(&plan), ["a N", "disk N", "mine A", "null N", "other A"]);
    assert_eq!(conflicts(&plan), []);
    assert_eq!(conflicts(&merged(&old, &current, &Memory::new().file("a", "1"))), []);
}
