//! What is staged, published and gone back to, and which entry boots next.

use cfs_core::boot::Tries;

use super::*;

#[test]
fn an_empty_boot_partition_has_no_entries_and_no_findings() {
    each(|loader| {
        assert_eq!(loader.entries().unwrap(), Default::default());
        assert_eq!(findings(loader), "");
        assert!(loader.plan_cleanup().unwrap().is_empty());
        assert!(loader.plan_removal(&[id(1)]).unwrap().is_empty());
        assert!(!loader.boot_dir().exists(), "looking writes nothing");
    });
}

#[test]
fn a_published_entry_is_listed_as_it_was_made_and_boots_next() {
    each(|loader| {
        let entry = install(loader, 1, "6.1").unwrap();
        let entries = loader.entries().unwrap();
        assert_eq!(entries.ours, std::slice::from_ref(&entry));
        assert_eq!(entries.next_entry(), Some(&entry));
        assert_eq!((&entries.warnings, &entries.overrides), (&Vec::new(), &Vec::new()));
        assert_eq!(entry.id, Some(id(1)));
        assert_eq!((entry.generation, entry.problem), (1, None));
        assert_eq!(entry.options, new_entry(1, 1, "6.1").options);
        assert_eq!(entry.kernel, Some(kernel("6.1").digest().unwrap()));
        if loader.caps().counts_tries {
            assert_eq!(entry.tries, Tries::Left { left: 3, done: 0 });
        }
        assert_eq!(findings(loader), "");
    });
}

#[test]
fn staging_alone_changes_no_entry() {
    each(|loader| {
        install(loader, 1, "6.1").unwrap();
        let before = loader.entries().unwrap();
        let staged = stage(loader, 2, &new_entry(2, 2, "6.2")).unwrap();
        assert_eq!(loader.entries().unwrap(), before);
        assert_eq!((staged.id(), staged.generation()), (id(2), 2));
        drop(staged);
        // What was staged and never published goes; what boots stays.
        let leftovers = loader.plan_cleanup().unwrap();
        assert_eq!((leftovers.files.len(), leftovers.folders.len()), (0, 1));
        loader.remove(&leftovers).unwrap();
        assert_eq!(kernel_folders(loader), 1);
        assert_eq!(findings(loader), "");
    });
}

#[test]
fn the_newest_generation_boots_next_whatever_its_id() {
    each(|loader| {
        for (n, generation) in [(9, 1), (2, 2), (5, 9), (1, 10), (7, 100), (3, 999_999), (4, 1_000_000)] {
            let entry = loader
                .publish(stage(loader, n, &new_entry(n, generation, "6.1")).unwrap())
                .unwrap();
            assert_eq!(next(loader), entry.file, "generation {generation}");
        }
        let order: Vec<u64> = loader
            .entries()
            .unwrap()
            .ours
            .iter()
            .map(|entry| entry.generation)
            .collect();
        assert_eq!(order, [1_000_000, 999_999, 100, 10, 9, 2, 1]);
    });
}

#[test]
fn a_rollback_adds_an_entry_with_a_higher_generation_and_drops_the_older_one_afterwards() {
    each(|loader| {
        let first = install(loader, 1, "6.1").unwrap();
        let second = install(loader, 2, "6.2").unwrap();
        let entry = roll_back(loader, 1).unwrap();
        assert_eq!((entry.generation, entry.id), (3, Some(id(1))));
        assert_eq!(entry.tries, Tries::Good);
        assert_eq!(
            (&entry.title, &entry.options, &entry.linux),
            (&first.title, &first.options, &first.linux)
        );
        let files: Vec<String> = loader
            .entries()
            .unwrap()
            .ours
            .into_iter()
            .map(|entry| entry.file)
            .collect();
        assert_eq!(files, [entry.file, second.file.clone()]);
        assert_eq!(kernel_folders(loader), 2);
        // And forward again.
        assert_eq!(roll_back(loader, 2).unwrap().generation, 4);
        assert_eq!(loader.entries().unwrap().ours.len(), 2);
        assert_eq!(findings(loader), "");
    });
}

#[test]
fn whether_boot_can_be_written_is_told_without_writing() {
    for kind in KINDS {
        let folder = common::folder();
        let loader = open(kind, &folder.path().join("boot"), Arc::new(RealFs));
        loader.check_writable().unwrap();
        assert!(!loader.boot_dir().exists());
    }
}
