//! What holds for any three folders.

use proptest::prelude::*;

use super::*;

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
