//! What may go: nothing that boots, nothing that another entry needs.

use cfs_core::boot::Mark;

use super::*;

#[test]
fn equal_kernels_are_stored_once_and_stay_as_long_as_one_entry_needs_them() {
    each(|loader| {
        install(loader, 1, "6.1").unwrap();
        let room = loader.room(&kernel("6.1")).unwrap();
        assert!(room.shared);
        let other = loader.room(&kernel("6.2")).unwrap();
        assert!(!other.shared && other.needed > room.needed);
        install(loader, 2, "6.1").unwrap();
        assert_eq!(kernel_folders(loader), 1);
        let plan = loader.plan_removal(&[id(1)]).unwrap();
        assert_eq!((plan.files.len(), plan.folders.len()), (1, 0));
        delete(loader, 1).unwrap();
        assert_eq!(kernel_folders(loader), 1);
        install(loader, 3, "6.3").unwrap();
        let plan = loader.plan_removal(&[id(2)]).unwrap();
        assert_eq!((plan.files.len(), plan.folders.len()), (1, 1));
        assert!(plan.bytes > 50);
        delete(loader, 2).unwrap();
        assert_eq!(kernel_folders(loader), 1);
        assert_eq!(findings(loader), "");
    });
}

#[test]
fn a_plan_removes_nothing_before_it_is_carried_out() {
    each(|loader| {
        install(loader, 1, "6.1").unwrap();
        install(loader, 2, "6.2").unwrap();
        let before = snapshot(loader.boot_dir());
        loader.plan_removal(&[id(1)]).unwrap();
        loader.plan_cleanup().unwrap();
        loader.check().unwrap();
        assert_eq!(snapshot(loader.boot_dir()), before);
    });
}

#[test]
fn the_last_entry_that_boots_is_not_removed() {
    each(|loader| {
        let first = install(loader, 1, "6.1").unwrap();
        let error = loader.plan_removal(&[id(1)]).unwrap_err().to_string();
        assert!(
            error.contains(&first.file) && error.contains("switch or upgrade first"),
            "{error}"
        );
        let second = install(loader, 2, "6.2").unwrap();
        assert!(loader.plan_removal(&[id(1), id(2)]).is_err());
        // A broken one does not count as one that boots.
        std::fs::write(loader.boot_dir().join(second.initrd.trim_start_matches('/')), "").unwrap();
        assert!(loader.plan_removal(&[id(1)]).is_err());
        delete(loader, 2).unwrap();
        assert_eq!(next(loader), first.file);
    });
}

#[test]
fn leftovers_of_an_interrupted_run_are_removed_and_nothing_else() {
    each(|loader| {
        let entry = install(loader, 1, "6.1").unwrap();
        write(loader, ".#cfs-000009-010101010101+03-00.conf", "half");
        let kernels = loader.boot_dir().join("cfs-update");
        let used = loader
            .boot_dir()
            .join(entry.linux.trim_start_matches('/'))
            .parent()
            .unwrap()
            .to_path_buf();
        std::fs::write(used.join(".#linux"), "half").unwrap();
        std::fs::create_dir(kernels.join("ab".repeat(32))).unwrap();
        std::fs::write(kernels.join("ab".repeat(32)).join(".#linux"), "half").unwrap();
        let text = findings(loader);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('!'), "{text}");
        let plan = loader.plan_cleanup().unwrap();
        assert_eq!((plan.files.len(), plan.folders.len(), plan.bytes), (2, 1, 12));
        loader.remove(&plan).unwrap();
        assert_eq!(findings(loader), "");
        assert_eq!(next(loader), entry.file);
    });
}

#[test]
fn the_same_image_of_another_system_on_the_same_partition_is_no_leftover() {
    each(|loader| {
        let first = install(loader, 1, "6.1").unwrap();
        let mut other = new_entry(1, 2, "6.1");
        other.options[1] = "root=UUID=of-the-other-disk".into();
        loader.publish(stage(loader, 1, &other).unwrap()).unwrap();
        assert!(loader.plan_cleanup().unwrap().is_empty());
        let third = install(loader, 1, "6.1").unwrap();
        let plan = loader.plan_cleanup().unwrap();
        assert_eq!(plan.files, [format!("loader/entries/{}", first.file)]);
        assert_eq!(next(loader), third.file);
    });
}

#[test]
fn an_entry_that_booted_well_is_a_leftover_once_a_newer_one_with_another_command_line_did_so_or_one_with_the_same_is_there()
 {
    each(|loader| {
        let first = install(loader, 1, "6.1").unwrap();
        let good = loader.mark(&loader.entries().unwrap().ours[0], Mark::Good).unwrap();
        let changed = |generation| {
            let mut new = new_entry(1, generation, "6.1");
            new.options.push("debug".into());
            loader.publish(stage(loader, 1, &new).unwrap()).unwrap()
        };
        let second = changed(first.generation + 1);
        assert!(loader.plan_cleanup().unwrap().is_empty());
        let third = changed(first.generation + 2);
        let plan = loader.plan_cleanup().unwrap();
        assert_eq!(plan.files, [format!("loader/entries/{}", second.file)]);
        loader.remove(&plan).unwrap();
        // Without tries it still proves nothing.
        let bad = loader.mark(&third, Mark::Bad).unwrap();
        assert!(loader.plan_cleanup().unwrap().is_empty());
        assert_eq!(next(loader), good);
        let third = loader
            .entries()
            .unwrap()
            .ours
            .into_iter()
            .find(|entry| entry.file == bad);
        loader.mark(&third.unwrap(), Mark::Good).unwrap();
        assert_eq!(loader.plan_cleanup().unwrap().files, [format!("loader/entries/{good}")]);
    });
}

#[test]
fn entries_of_deployments_that_are_gone_are_swept_but_not_those_of_another_system() {
    each(|loader| {
        let lost = install(loader, 1, "6.1").unwrap();
        let known = install(loader, 2, "6.2").unwrap();
        let mut other = new_entry(3, 3, "6.3");
        other.options[1] = "root=UUID=of-the-other-disk".into();
        let other = loader.publish(stage(loader, 3, &other).unwrap()).unwrap();
        assert!(loader.plan_sweep(&[id(1), id(2)]).unwrap().is_empty());
        let plan = loader.plan_sweep(&[id(2)]).unwrap();
        assert_eq!(plan.files, [format!("loader/entries/{}", lost.file)]);
        assert_eq!(plan.folders.len(), 1);
        // Where nothing is known, or nothing known works, nothing goes.
        assert!(loader.plan_sweep(&[]).unwrap().is_empty());
        loader.remove(&plan).unwrap();
        let files: Vec<String> = loader
            .entries()
            .unwrap()
            .ours
            .into_iter()
            .map(|entry| entry.file)
            .collect();
        assert_eq!(files, [other.file, known.file.clone()]);
        install(loader, 4, "6.1").unwrap();
        std::fs::write(loader.boot_dir().join(known.linux.trim_start_matches('/')), "").unwrap();
        assert!(loader.plan_sweep(&[id(2)]).unwrap().is_empty());
    });
}
