//! What every boot loader has to keep, whichever it is and whatever file system `$BOOT` is.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cfs_bootloader::Kind;
use cfs_core::boot::{Bootloader, FileSource, Mark, NewEntry, Tries};
use cfs_core::error::{Error, Kind as Failure};
use cfs_core::sys::fs::{Fs, RealFs};
use common::{FatLike, Full, KINDS, delete, id, install, kernel, new_entry, open, roll_back, snapshot, stage};

/// Runs a test for every loader, on a plain file system and on one as poor as FAT.
fn each(test: impl Fn(&dyn Bootloader)) {
    for kind in KINDS {
        let folder = common::folder();
        test(&*open(kind, &folder.path().join("boot"), Arc::new(RealFs)));
        let fat = Arc::new(FatLike::default());
        let folder = common::folder();
        test(&*open(kind, &folder.path().join("boot"), fat.clone()));
        let refused = fat.refused.lock().unwrap();
        assert!(refused.is_empty(), "FAT cannot do: {refused:?}");
    }
}

fn entry_path(loader: &dyn Bootloader, file: &str) -> PathBuf {
    loader.boot_dir().join("loader/entries").join(file)
}

/// Writes a file among the entries.
fn write(loader: &dyn Bootloader, file: &str, content: impl AsRef<[u8]>) {
    std::fs::create_dir_all(entry_path(loader, "")).unwrap();
    std::fs::write(entry_path(loader, file), content).unwrap();
}

fn kernel_folders(loader: &dyn Bootloader) -> usize {
    std::fs::read_dir(loader.boot_dir().join("cfs-update")).map_or(0, Iterator::count)
}

fn next(loader: &dyn Bootloader) -> String {
    loader.entries().unwrap().next.unwrap()
}

fn findings(loader: &dyn Bootloader) -> String {
    let found = loader.check().unwrap();
    found
        .into_iter()
        .map(|f| format!("{}{}: {}\n", if f.damage { "! " } else { "" }, f.what, f.why))
        .collect()
}

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
fn whether_boot_can_be_written_is_told_without_writing() {
    for kind in KINDS {
        let folder = common::folder();
        let loader = open(kind, &folder.path().join("boot"), Arc::new(RealFs));
        loader.check_writable().unwrap();
        assert!(!loader.boot_dir().exists());
    }
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
fn a_generation_that_is_not_newer_is_refused_before_anything_is_written() {
    each(|loader| {
        install(loader, 1, "6.1").unwrap();
        install(loader, 2, "6.1").unwrap();
        let before = snapshot(loader.boot_dir());
        for generation in [0, 1, 2] {
            let error = stage(loader, 3, &new_entry(3, generation, "6.3")).unwrap_err();
            assert!(matches!(error, Error::BootEntry { .. }), "{error}");
        }
        assert_eq!(snapshot(loader.boot_dir()), before);
    });
}

#[test]
fn an_entry_for_another_deployment_than_the_one_that_was_verified_is_refused() {
    each(|loader| {
        let error = stage(loader, 1, &new_entry(2, 1, "6.1")).unwrap_err().to_string();
        assert!(
            error.contains("020202020202") && error.contains("010101010101"),
            "{error}"
        );
        assert!(!loader.boot_dir().exists());
    });
}

#[test]
fn publishing_what_has_lost_its_kernel_is_refused() {
    each(|loader| {
        let staged = stage(loader, 1, &new_entry(1, 1, "6.1")).unwrap();
        std::fs::remove_dir_all(loader.boot_dir().join("cfs-update")).unwrap();
        let error = loader.publish(staged).unwrap_err().to_string();
        assert!(error.contains("has gone since"), "{error}");
        assert!(loader.entries().unwrap().ours.is_empty());
    });
}

#[test]
fn a_kernel_that_changes_while_it_is_copied_is_not_kept() {
    for kind in KINDS {
        let folder = common::folder();
        let source = folder.path().join("vmlinuz");
        std::fs::write(&source, "before").unwrap();
        let fs = Arc::new(Changing(source.clone()));
        let loader = open(kind, &folder.path().join("boot"), fs);
        let mut new = new_entry(1, 1, "6.1");
        new.kernel.linux = FileSource::Path(source);
        let error = stage(&*loader, 1, &new).unwrap_err().to_string();
        assert!(error.contains("changed while they were copied"), "{error}");
        let files: Vec<_> = snapshot(loader.boot_dir())
            .into_iter()
            .filter(|(_, content)| !content.is_empty())
            .collect();
        assert_eq!(files, []);
    }
}

/// Changes a file when a folder is made, which is after it was hashed and before it is copied.
#[derive(Debug)]
struct Changing(PathBuf);

impl Fs for Changing {
    fn create_dir(&self, path: &Path, mode: u32) -> cfs_core::Result<()> {
        std::fs::write(&self.0, "after").unwrap();
        RealFs.create_dir(path, mode)
    }
    fn create(&self, path: &Path, mode: u32, content: &mut dyn std::io::Read) -> cfs_core::Result<u64> {
        RealFs.create(path, mode, content)
    }
    fn symlink(&self, target: &Path, path: &Path) -> cfs_core::Result<()> {
        RealFs.symlink(target, path)
    }
    fn rename(&self, from: &Path, to: &Path) -> cfs_core::Result<()> {
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> cfs_core::Result<()> {
        RealFs.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> cfs_core::Result<()> {
        RealFs.remove_dir_all(path)
    }
    fn sync_file(&self, _: &Path) -> cfs_core::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> cfs_core::Result<()> {
        Ok(())
    }
    fn sync_all(&self, _: &Path) -> cfs_core::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_partition_keeps_what_it_had_and_the_same_command_succeeds_later() {
    for kind in KINDS {
        for room in 0..90 {
            let folder = common::folder();
            let boot = folder.path().join("boot");
            install(&*open(kind, &boot, Arc::new(RealFs)), 1, "6.1").unwrap();
            let before = snapshot(&boot);
            let full = open(kind, &boot, Arc::new(Full { room: Mutex::new(room) }));
            let error = install(&*full, 2, "6.2").unwrap_err();
            assert_eq!(error.kind(), Failure::Space, "{error}");
            let after = snapshot(&boot);
            let has_content = |file: &&(PathBuf, Vec<u8>)| !file.1.is_empty() && !before.contains(file);
            let left: Vec<_> = after.iter().filter(has_content).collect();
            // Whole kernel files may be left where the entry did not fit; half ones never.
            assert!(left.is_empty() || left.len() == 2 && room > 60, "room {room}: {left:?}");
            assert!(before.iter().all(|file| after.contains(file)));
            let loader = open(kind, &boot, Arc::new(RealFs));
            let entry = install(&*loader, 2, "6.2").unwrap();
            assert_eq!(next(&*loader), entry.file);
            assert_eq!(findings(&*loader), "");
        }
    }
}

#[test]
fn entries_of_others_are_listed_and_never_touched() {
    each(|loader| {
        let foreign = [
            (
                "6a9857a393724b7a981ebb5b8495b9ea-6.1.0.conf",
                "title Other OS\nlinux /other/linux\n",
            ),
            ("cfs-backup.conf", "title Mine\nlinux /other/linux\n"),
            (".#other.conf", "title half\n"),
            ("broken.conf", "what is this"),
            ("README", "no entry"),
        ];
        for (name, text) in foreign {
            write(loader, name, text);
        }
        std::fs::create_dir_all(loader.boot_dir().join("cfs-update/notes")).unwrap();
        std::fs::write(loader.boot_dir().join("cfs-update/notes/a"), "mine").unwrap();
        let before = snapshot(loader.boot_dir());
        install(loader, 1, "6.1").unwrap();
        install(loader, 2, "6.2").unwrap();
        roll_back(loader, 1).unwrap();
        delete(loader, 2).unwrap();
        loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
        let after = snapshot(loader.boot_dir());
        assert!(before.iter().all(|file| after.contains(file)));
        let entries = loader.entries().unwrap();
        let names: Vec<&str> = entries.foreign.iter().map(|entry| entry.file.as_str()).collect();
        assert_eq!(
            names,
            [
                "6a9857a393724b7a981ebb5b8495b9ea-6.1.0.conf",
                "cfs-backup.conf",
                "broken.conf"
            ]
        );
        assert_eq!(entries.foreign[1].title, "Mine");
        assert!(findings(loader).contains("broken.conf: it has neither a linux nor an efi line"));
        assert_eq!(
            loader.check().unwrap().iter().filter(|finding| finding.damage).count(),
            0
        );
    });
}

#[test]
fn a_kernel_that_somebody_elses_entry_mentions_is_kept() {
    each(|loader| {
        let first = install(loader, 1, "6.1").unwrap();
        install(loader, 2, "6.2").unwrap();
        let path = first.linux.to_uppercase().replace('/', "\\");
        write(loader, "old.conf.disabled", format!("title my copy\nlinux {path}\n"));
        delete(loader, 1).unwrap();
        assert_eq!(kernel_folders(loader), 2);
        std::fs::remove_file(entry_path(loader, "old.conf.disabled")).unwrap();
        loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
        assert_eq!(kernel_folders(loader), 1);
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

type Damage = fn(&Path);

/// What may happen to a file.
const DAMAGE: [(&str, Damage); 4] = [
    ("deleted", |path| std::fs::remove_file(path).unwrap()),
    ("emptied", |path| std::fs::write(path, "").unwrap()),
    ("truncated", |path| {
        let content = std::fs::read(path).unwrap();
        std::fs::write(path, &content[..content.len() / 2]).unwrap();
    }),
    ("flipped", |path| {
        let mut content = std::fs::read(path).unwrap();
        content[0] ^= 1;
        std::fs::write(path, content).unwrap();
    }),
];

#[test]
fn damage_to_any_file_is_named_and_stops_nothing() {
    each(|loader| {
        for (what, damage) in DAMAGE {
            for file in ["entry", "linux", "initrd"] {
                let at = format!("{file} {what}");
                let _ = std::fs::remove_dir_all(loader.boot_dir());
                install(loader, 1, "6.1").unwrap();
                let hurt = install(loader, 2, "6.2").unwrap();
                let path = match file {
                    "entry" => entry_path(loader, &hurt.file),
                    name => loader
                        .boot_dir()
                        .join(hurt.linux.trim_start_matches('/'))
                        .with_file_name(name),
                };
                damage(&path);

                let entries = loader.entries().unwrap_or_else(|e| panic!("{at}: {e}"));
                assert!(entries.of(&id(1)).unwrap().is_complete(), "{at}");
                let text = findings(loader);
                let name = path.file_name().unwrap().to_str().unwrap();
                let folder = hurt.kernel.unwrap().to_string();
                let named = text.contains(name) || text.contains(&folder);
                let damages = text.lines().filter(|line| line.starts_with('!')).count();
                assert!(damages <= 1, "{at}: named more than once: {text}");
                assert!(named, "{at}: {text}");
                assert_eq!(
                    text.contains('!'),
                    !(file == "entry" && what == "deleted"),
                    "{at}: {text}"
                );

                // The same deployment can be staged again, and then all is well.
                let again = install(loader, 2, "6.2").unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(next(loader), again.file, "{at}");
                loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
                assert_eq!(findings(loader), "", "{at}");
                assert_eq!(loader.entries().unwrap().ours.len(), 2, "{at}");
            }
        }
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

#[test]
fn a_damaged_kernel_is_not_carried_into_another_entry() {
    each(|loader| {
        let entry = install(loader, 1, "6.1").unwrap();
        let path = loader.boot_dir().join(entry.initrd.trim_start_matches('/'));
        std::fs::write(path, "something else").unwrap();
        let entries = loader.entries().unwrap();
        let new = NewEntry::again(&entries.ours[0], loader.boot_dir(), 2, None).unwrap();
        let error = stage(loader, 1, &new).unwrap_err().to_string();
        assert!(
            error.contains(&entry.file) && error.contains("fsck --repair"),
            "{error}"
        );
    });
}

#[test]
fn a_file_in_the_place_of_a_folder_is_an_error_and_not_overwritten() {
    let folder = common::folder();
    let boot = folder.path().join("boot");
    std::fs::create_dir(&boot).unwrap();
    std::fs::write(boot.join("cfs-update"), "mine").unwrap();
    let loader = open(Kind::SystemdBoot, &boot, Arc::new(RealFs));
    let error = install(&*loader, 1, "6.1").unwrap_err().to_string();
    assert!(error.contains("boot/cfs-update"), "{error}");
    assert_eq!(std::fs::read(boot.join("cfs-update")).unwrap(), b"mine");
}

#[test]
fn a_kernel_folder_that_is_a_link_is_not_written_through() {
    let folder = common::folder();
    let (boot, elsewhere) = (folder.path().join("boot"), folder.path().join("elsewhere"));
    std::fs::create_dir_all(boot.join("cfs-update")).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    let digest = kernel("6.1").digest().unwrap().to_string();
    std::os::unix::fs::symlink(&elsewhere, boot.join("cfs-update").join(digest)).unwrap();
    let loader = open(Kind::SystemdBoot, &boot, Arc::new(RealFs));
    assert!(install(&*loader, 1, "6.1").is_err());
    assert_eq!(snapshot(&elsewhere), []);
}
