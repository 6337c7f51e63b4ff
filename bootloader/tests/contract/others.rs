//! What others have on the partition stays theirs.

use cfs_bootloader::Kind;

use super::*;

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
