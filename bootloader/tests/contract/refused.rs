//! What is not published: entries that are not newer, not of their deployment, not whole, or that do not fit.

use std::sync::Mutex;

use cfs_core::boot::FileSource;
use cfs_core::error::{Error, Kind as Failure};
use cfs_core::sys::fs::Fs;

use super::*;
use crate::common::Full;

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
