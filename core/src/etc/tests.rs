//! The plan against its rules on generated folders, and what is written against what was planned.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::error::Result;
use crate::ids::Algorithm;
use crate::layers::{Meta, Mtime};
use crate::sys::dir::{Dir, is_privileged};
use crate::sys::verity;

/// A source in memory: content by path.
#[derive(Clone, Debug, Default)]
struct Memory {
    listing: Listing,
    content: HashMap<PathBuf, Vec<u8>>,
}

impl Source for Memory {
    fn listing(&self) -> &Listing {
        &self.listing
    }
    fn open(&self, path: &Path) -> Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.content[path].as_slice()))
    }
}

fn me() -> (u32, u32) {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    (uid.as_raw(), gid.as_raw())
}

fn meta(mode: u32) -> Meta {
    let (uid, gid) = me();
    Meta {
        mode,
        uid,
        gid,
        mtime: Mtime {
            sec: 1_700_000_000,
            nsec: 123_456_789,
        },
        xattrs: Vec::new(),
    }
}

impl Memory {
    fn new() -> Self {
        let mut memory = Self::default();
        memory.add("", Item::Directory, 0o755);
        memory
    }
    fn add(&mut self, path: &str, item: Item, mode: u32) {
        let node = Node {
            item,
            meta: meta(mode),
            group: None,
        };
        self.listing.insert(path.into(), node);
    }
    fn file(mut self, path: &str, content: &str) -> Self {
        self.add(
            path,
            Item::Regular(verity::hash(Algorithm::Sha256, content.as_bytes())),
            0o644,
        );
        self.content.insert(path.into(), content.into());
        self
    }
    fn dir(mut self, path: &str) -> Self {
        self.add(path, Item::Directory, 0o755);
        self
    }
    fn link(mut self, path: &str, target: &str) -> Self {
        self.add(path, Item::Symlink(target.as_bytes().into()), 0o777);
        self
    }
    fn meta(mut self, path: &str, change: impl FnOnce(&mut Meta)) -> Self {
        let mut node = self.listing.get(Path::new(path)).unwrap().clone();
        change(&mut node.meta);
        self.listing.insert(path.into(), node);
        self
    }
    fn grouped(mut self, paths: &[&str], group: u64) -> Self {
        for path in paths {
            let mut node = self.listing.get(Path::new(path)).unwrap().clone();
            node.group = Some(group);
            self.listing.insert(path.into(), node);
        }
        self
    }
}

/// `path: side path` of every step but the top.
fn shown(plan: &Plan) -> Vec<String> {
    let steps = plan.steps.iter().skip(1);
    steps
        .map(|(path, step)| {
            let side = if step.from == Side::Current { "A" } else { "N" };
            if step.path == *path {
                format!("{} {side}", path.display())
            } else {
                format!("{} {side}:{}", path.display(), step.path.display())
            }
        })
        .collect()
}

fn conflicts(plan: &Plan) -> Vec<(String, What)> {
    plan.conflicts
        .iter()
        .map(|c| (c.path.display().to_string(), c.what))
        .collect()
}

fn merged(old: &Memory, current: &Memory, new: &Memory) -> Plan {
    plan(&old.listing, &current.listing, &new.listing, Rules::STRICT)
}

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

#[test]
fn what_was_changed_since_a_merge_is_known_and_what_arrived_all_the_same_is_not_lacking() {
    let there = Memory::new()
        .file("a", "1")
        .file("b", "1")
        .file("c", "1")
        .dir("d")
        .file(".updated", "");
    let made = Memory::new().file("a", "image's").file("b", "1");
    let from = verity::hash(Algorithm::Sha256, b"from");
    let note = Merged::new(from, &there.listing, &made.listing);
    assert_eq!(note.since(&there.listing), []);
    assert!(note.made(&made.listing) && !note.made(&there.listing));
    let touched = made.clone().meta("a", |meta| meta.mtime.sec += 1);
    assert!(note.made(&touched.listing), "times are no change");
    let other = Merged::new(from, &made.listing, &there.listing);
    let both = note.clone().or(&other);
    assert!(both.made(&made.listing) && both.made(&there.listing));

    let mut now = Memory::new()
        .file("a", "2")
        .file("b", "1")
        .file("e", "1")
        .file("f", "1")
        .file(".updated", "x")
        .meta("b", |meta| meta.mode = 0o600);
    now.add("run.socket", Item::Socket, 0o600);
    let changes = note.since(&now.listing);
    let path = |(path, change): &(PathBuf, Change)| (path.to_str().unwrap().to_owned(), *change);
    let expected = [
        ("a", Change::Changed),
        ("b", Change::Changed),
        ("c", Change::Removed),
        ("d", Change::Removed),
        ("e", Change::Added),
        ("f", Change::Added),
        ("run.socket", Change::Added),
    ];
    let shown: Vec<_> = changes.iter().map(path).collect();
    assert_eq!(shown, expected.map(|(path, change)| (path.to_owned(), change)));
    let here = Memory::new()
        .file("a", "2")
        .file("b", "1")
        .file("c", "1")
        .file("e", "2");
    let lacking = lacking(changes, &now.listing, &here.listing, Rules::STRICT);
    let lacking: Vec<_> = lacking.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(lacking, ["b", "c", "e", "f"]);
}

/// Small folders that collide often: names, kinds and contents from few choices.
fn folders() -> impl Strategy<Value = Memory> {
    let name = prop::sample::select(vec!["a", "b", "c", "a.cfs-new"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let kind = prop_oneof![
        4 => prop::sample::select(vec!["1", "2", "3"]).prop_map(Some),
        1 => Just(None),
    ];
    let entry = (path, kind, any::<bool>(), prop::bool::weighted(0.1));
    prop::collection::vec(entry, 0..14).prop_map(|entries| {
        let mut memory = Memory::new();
        for (path, content, link, private) in entries {
            // A parent that is no folder, or a folder with children, stays as it is.
            let parents: Vec<&Path> = Path::new(&path).ancestors().skip(1).collect();
            let blocked = |p: &&Path| memory.listing.get(p).is_some_and(|node| !node.is_dir());
            if parents.iter().any(blocked) || memory.listing.subtree(Path::new(&path)).count() > 1 {
                continue;
            }
            for parent in parents.iter().rev().filter(|p| !p.as_os_str().is_empty()) {
                if memory.listing.get(parent).is_none() {
                    memory.add(parent.to_str().unwrap(), Item::Directory, 0o755);
                }
            }
            memory = match content {
                Some(content) if link => memory.link(&path, content),
                Some(content) => memory.file(&path, content),
                None => memory.dir(&path),
            };
            if private && !link {
                memory = memory.meta(&path, |meta| meta.mode = 0o700);
            }
        }
        memory
    })
}

/// Three versions of a folder with much in common.
fn three() -> impl Strategy<Value = (Memory, Memory, Memory)> {
    let mix = |base: &Memory, other: &Memory, keep: &[bool]| {
        // Takes whole names of the top from one or the other.
        let mut mixed = Memory::new();
        let names = ["a", "b", "c", "a.cfs-new"];
        for (name, keep) in names.iter().zip(keep) {
            let from = if *keep { base } else { other };
            for (path, node) in from.listing.subtree(Path::new(name)) {
                mixed.listing.insert(path.to_path_buf(), node.clone());
                if let Some(content) = from.content.get(path) {
                    mixed.content.insert(path.to_path_buf(), content.clone());
                }
            }
        }
        mixed
    };
    let keep = || prop::collection::vec(any::<bool>(), 4);
    (folders(), folders(), folders(), keep(), keep()).prop_map(move |(old, a, n, keep_a, keep_n)| {
        let (current, new) = (mix(&old, &a, &keep_a), mix(&old, &n, &keep_n));
        (old, current, new)
    })
}

fn same(a: Option<&Node>, b: Option<&Node>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Rules::STRICT.same(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// The listing that a plan makes.
fn result(plan: &Plan, current: &Memory, new: &Memory) -> Memory {
    let mut memory = Memory::default();
    for (path, step) in &plan.steps {
        let side = if step.from == Side::Current { current } else { new };
        memory
            .listing
            .insert(path.clone(), side.listing.get(&step.path).unwrap().clone());
        if let Some(content) = side.content.get(&step.path) {
            memory.content.insert(path.clone(), content.clone());
        }
    }
    memory
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_admin_changed_is_in_the_result_and_what_he_deleted_is_not((old, current, new) in three()) {
        let plan = merged(&old, &current, &new);
        let kept: Vec<_> = plan.conflicts.iter().filter_map(|c| c.kept_as.clone()).collect();
        let beside = |path: &Path| kept.iter().any(|kept| path.starts_with(kept));
        for (path, node) in current.listing.iter().filter(|(path, _)| !beside(path)) {
            if !same(Some(node), old.listing.get(path)) {
                let expected = Step { from: Side::Current, path: path.to_path_buf(), alone: false };
                prop_assert_eq!(plan.steps.get(path), Some(&expected), "{}", path.display());
            }
        }
        for (path, _) in old.listing.iter().filter(|(path, _)| !beside(path)) {
            if current.listing.get(path).is_none() {
                prop_assert!(!plan.steps.contains_key(path), "{}", path.display());
            }
        }
        // What was replaced under a kept name is an unchanged version of an image's file.
        for path in &kept {
            if let Some(node) = current.listing.get(path) {
                let images = [&old, &new].map(|m| m.listing.iter().any(|(_, n)| Rules::STRICT.same(n, node)));
                prop_assert!(images.contains(&true), "{}", path.display());
            }
        }
    }

    #[test]
    fn without_changes_of_the_admin_the_result_is_the_new_image((old, new) in (folders(), folders())) {
        let plan = merged(&old, &old, &new);
        prop_assert_eq!(result(&plan, &old, &new).listing, new.listing);
        prop_assert_eq!(plan.conflicts, vec![]);
    }

    #[test]
    fn without_changes_of_the_image_the_result_is_the_admins_folder((old, current) in (folders(), folders())) {
        let plan = merged(&old, &current, &old);
        prop_assert_eq!(result(&plan, &current, &old).listing, current.listing);
        prop_assert_eq!(plan.conflicts, vec![]);
    }

    #[test]
    fn every_path_of_the_result_lies_in_a_folder_of_it((old, current, new) in three()) {
        let plan = merged(&old, &current, &new);
        let result = result(&plan, &current, &new);
        prop_assert!(plan.steps.contains_key(Path::new("")));
        for path in plan.steps.keys().filter(|path| !path.as_os_str().is_empty()) {
            let parent = result.listing.get(path.parent().unwrap());
            prop_assert!(parent.is_some_and(Node::is_dir), "{}", path.display());
        }
    }

    #[test]
    fn what_the_image_changed_arrives_where_the_admin_changed_nothing((old, current, new) in three()) {
        let plan = merged(&old, &current, &new);
        for (path, node) in new.listing.iter() {
            let untouched = path.ancestors().all(|at| same(old.listing.get(at), current.listing.get(at)));
            let same_here = current.listing.get(path).is_some_and(|here| Rules::STRICT.same(here, node));
            let mine_below = current.listing.subtree(path).any(|(at, n)| !same(old.listing.get(at), Some(n)));
            if untouched && !same_here && !mine_below && !kept_above(&plan, path) {
                let expected = Step { from: Side::New, path: path.to_path_buf(), alone: false };
                prop_assert_eq!(plan.steps.get(path), Some(&expected), "{}", path.display());
            }
        }
    }

    #[test]
    fn a_conflict_keeps_the_images_version_whole((old, current, new) in three()) {
        let plan = merged(&old, &current, &new);
        let made = result(&plan, &current, &new);
        for conflict in &plan.conflicts {
            prop_assert_eq!(conflict.kept_as.is_some(), conflict.what == What::BothChanged);
            let Some(kept) = &conflict.kept_as else { continue };
            let there: Vec<_> = new.listing.subtree(&conflict.path).map(|(_, node)| node.clone()).collect();
            let here: Vec<_> = made.listing.subtree(kept).map(|(_, node)| node.clone()).collect();
            prop_assert_eq!(here, there, "{}", kept.display());
        }
    }

    #[test]
    fn merging_once_more_changes_nothing((old, current, new) in three()) {
        let first = merged(&old, &current, &new);
        let made = result(&first, &current, &new);
        let second = merged(&new, &made, &new);
        prop_assert_eq!(result(&second, &made, &new).listing, made.listing);
        prop_assert_eq!(second.conflicts, vec![]);
    }

    #[test]
    fn two_paths_have_one_digest_exactly_where_they_are_the_same((a, b, _) in three(), change in 0..5_u8) {
        let attribute = |key: &[u8]| (Box::from(key), Box::from(&b"v"[..]));
        let changed = |mut node: Node| {
            match change {
                0 => node.meta.mode ^= 0o11,
                1 => node.meta.gid += 1,
                2 => node.meta.mtime.sec += 1,
                3 => node.meta.xattrs.push(attribute(b"user.x")),
                _ => node.meta.xattrs.push(attribute(b"security.selinux")),
            }
            node
        };
        for rules in [Rules::STRICT, Rules { ownership: false }] {
            for (_, a) in a.listing.iter() {
                for b in b.listing.iter().map(|(_, b)| b.clone()).chain([changed(a.clone())]) {
                    prop_assert_eq!(rules.same(a, &b), rules.digest(a) == rules.digest(&b), "{:?} {:?}", a, b);
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_what_was_planned((old, current, new) in three()) {
        let folder = tempfile::tempdir().unwrap();
        let plan = merged(&old, &current, &new);
        let to = folder.path().join("etc");
        let report = apply(&plan, &current, &new, &to).unwrap();
        prop_assert!(report.complete());
        let written = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
        let mut planned = result(&plan, &current, &new).listing;
        without_labels(&mut planned);
        let mut found = written.listing().clone();
        without_labels(&mut found);
        prop_assert_eq!(found, planned);
    }
}

/// A path that the plan could not take because something of the admin's is in its place above.
fn kept_above(plan: &Plan, path: &Path) -> bool {
    plan.conflicts
        .iter()
        .any(|c| path.starts_with(&c.path) || c.kept_as.as_ref().is_some_and(|k| path.starts_with(k)))
}

/// What the system may set by itself, and the permissions of links, which it does not keep.
fn without_labels(listing: &mut Listing) {
    let nodes: Vec<_> = listing
        .iter()
        .map(|(path, node)| (path.to_path_buf(), node.clone()))
        .collect();
    for (path, mut node) in nodes {
        node.meta
            .xattrs
            .retain(|(key, _)| !key.starts_with(b"security.selinux"));
        if matches!(node.item, Item::Symlink(_)) {
            node.meta.mode = 0o777;
        }
        listing.insert(path, node);
    }
}

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

#[test]
fn a_folder_is_listed_without_following_links() {
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path().join("etc");
    std::fs::create_dir_all(etc.join("d")).unwrap();
    std::fs::write(etc.join("d/f"), "content").unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    symlink("../secret", etc.join("out")).unwrap();
    symlink("d", etc.join("loop")).unwrap();
    let odd = etc.join(OsStr::from_bytes(b"\xff\n"));
    std::fs::write(&odd, "").unwrap();
    std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o640)).unwrap();
    let source = FolderSource::scan(&etc, Algorithm::Sha512).unwrap();
    let kinds: BTreeMap<_, _> = source
        .listing()
        .iter()
        .map(|(path, node)| (path.to_path_buf(), node.item.clone()))
        .collect();
    let expected = [
        (PathBuf::new(), Item::Directory),
        ("d".into(), Item::Directory),
        ("d/f".into(), Item::Regular(verity::hash(Algorithm::Sha512, b"content"))),
        ("loop".into(), Item::Symlink(b"d"[..].into())),
        ("out".into(), Item::Symlink(b"../secret"[..].into())),
        (
            OsStr::from_bytes(b"\xff\n").into(),
            Item::Regular(verity::hash(Algorithm::Sha512, b"")),
        ),
    ];
    assert_eq!(kinds, BTreeMap::from(expected));
    assert!(source.open(Path::new("loop/f")).is_err());
    assert!(source.open(Path::new("out")).is_err());
    let mut text = String::new();
    source
        .open(Path::new("d/f"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "content");
}

#[test]
fn folders_nested_too_deeply_are_refused_instead_of_exhausting_the_stack() {
    let folder = tempfile::tempdir().unwrap();
    let top = Dir::create(&folder.path().join("etc")).unwrap();
    let mut at = top.walk(Path::new("")).unwrap();
    for _ in 0..MAX_DEPTH {
        at = at.make_dir(OsStr::new("d")).unwrap();
    }
    let error = FolderSource::scan(&folder.path().join("etc"), Algorithm::Sha256).unwrap_err();
    assert!(error.to_string().contains("nested too deeply"), "{error}");
}

/// `etc` with inline and external content, a hard link, an attribute and a device.
const DUMP: &str = "/ 0 40755 2 0 0 0 1.0 - - -\n\
    /etc 0 40750 2 0 0 0 5.000000007 - - -\n\
    /etc/hostname 5 100644 2 0 0 0 2.0 - box\\nx -\n\
    /etc/hosts 5 100600 1 0 0 0 2.0 - hello - user.note=y\n\
    /etc/name 0 @120000 - - - - 0.0 /etc/hostname - -\n\
    /etc/null 0 20666 1 0 0 259 2.0 - - -\n\
    /etc/os-release 21 120777 1 0 0 0 3.0 ../usr/lib/os-release - -\n\
    /etc/services SIZE 100644 1 0 0 0 4.0 PATH - DIGEST\n\
    /usr 0 40755 2 0 0 0 1.0 - - -\n\
    /var 0 100644 1 0 0 0 1.0 - - -\n";

fn image_tree(content: &[u8]) -> crate::tree::Tree {
    let id = verity::hash(Algorithm::Sha256, content);
    let dump = DUMP.replace("SIZE", &content.len().to_string());
    let dump = dump.replace("PATH", &id.object_path()).replace("DIGEST", &id.to_hex());
    crate::image::dump::parse(dump.as_bytes()).unwrap()
}

#[test]
fn the_etc_of_an_image_is_written_and_compares_equal_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let content = b"ssh 22/tcp\n".repeat(1000);
    let tree = image_tree(&content);
    let open =
        |_: &crate::ids::ObjectId| -> Result<Box<dyn Read>> { Ok(Box::new(std::io::Cursor::new(content.clone()))) };
    let image = TreeSource::new(&tree, "etc", Algorithm::Sha256, &open).unwrap();
    let to = folder.path().join("etc");
    let report = write(&image, &to).unwrap();
    assert_eq!(report.nodes_skipped, [PathBuf::from("null")]);
    assert_eq!(std::fs::read(to.join("services")).unwrap(), content);
    assert_eq!(std::fs::read(to.join("hostname")).unwrap(), b"box\nx");
    assert_eq!(
        to.join("name").metadata().unwrap().ino(),
        to.join("hostname").metadata().unwrap().ino()
    );
    let top = to.metadata().unwrap();
    assert_eq!((top.mode() & 0o7777, top.mtime(), top.mtime_nsec()), (0o750, 5, 7));
    let written = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
    let rules = Rules {
        ownership: report.complete(),
    };
    let changes = diff(image.listing(), written.listing(), rules);
    assert_eq!(changes, [], "what is never made was not removed by anybody");

    let missing = TreeSource::new(&tree, "opt", Algorithm::Sha256, &open).unwrap();
    assert_eq!(missing.listing(), &Listing::empty());
    let error = TreeSource::new(&tree, "var", Algorithm::Sha256, &open).unwrap_err();
    assert_eq!(error.to_string(), "var: it is not a folder");
}

#[test]
fn a_damaged_object_never_becomes_a_file_of_etc() {
    let folder = tempfile::tempdir().unwrap();
    let content = b"root:x:0:0\n".repeat(1000);
    let tree = image_tree(&content);
    for damage in ["flip", "truncate", "extend"] {
        let mut damaged = content.clone();
        match damage {
            "flip" => damaged[7000] ^= 1,
            "truncate" => damaged.truncate(10_000),
            _ => damaged.push(b'\n'),
        }
        let open =
            |_: &crate::ids::ObjectId| -> Result<Box<dyn Read>> { Ok(Box::new(std::io::Cursor::new(damaged.clone()))) };
        let image = TreeSource::new(&tree, "etc", Algorithm::Sha256, &open).unwrap();
        let error = write(&image, &folder.path().join(damage)).unwrap_err().to_string();
        assert!(error.contains("services") && error.contains("is damaged"), "{error}");
    }
}
