//! What is particular to systemd-boot: the text of an entry, counters in names, `loader.conf`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::path::Path;
use std::sync::Arc;

use cfs_bootloader::Kind;
use cfs_bootloader::bls::{self, Entry};
use cfs_bootloader::cmdline;
use cfs_bootloader::counter::CountedName;
use cfs_bootloader::esp::BootDir;
use cfs_core::boot::{Bootloader, Tries};
use cfs_core::sys::fs::RealFs;
use common::{delete, deployment_of, id, install, new_entry, open, stage};

fn machine(test: impl FnOnce(&dyn Bootloader, &Path)) {
    let folder = common::folder();
    let boot = folder.path().join("boot");
    test(&*open(Kind::SystemdBoot, &boot, Arc::new(RealFs)), &boot);
}

fn entry(boot: &Path, name: &str) -> std::path::PathBuf {
    boot.join("loader/entries").join(name)
}

fn rename(boot: &Path, from: &str, to: &str) {
    std::fs::rename(entry(boot, from), entry(boot, to)).unwrap();
}

fn warnings(loader: &dyn Bootloader) -> String {
    loader.entries().unwrap().warnings.join("\n")
}

fn overrides(loader: &dyn Bootloader) -> String {
    loader.entries().unwrap().overrides.join("\n")
}

#[test]
fn an_entry_is_written_as_the_specification_says() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        assert_eq!(made.file, "cfs-000001-010101010101+03-00.conf");
        let digest = made.kernel.unwrap();
        let text = std::fs::read_to_string(entry(boot, &made.file)).unwrap();
        let (text, checksum) = text.split_at(text.rfind('#').unwrap());
        assert_eq!(checksum.len(), "# sha256 of the lines above: \n".len() + 64);
        let expected = format!(
            "title Debian GNU/Linux 13 (trixie) (010101010101)\n\
             version 1\n\
             sort-key cfs-update\n\
             linux /cfs-update/{digest}/linux\n\
             initrd /cfs-update/{digest}/initrd\n\
             options composefs.digest=v1-sha256-12:{} root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2 quiet\n",
            "01".repeat(32)
        );
        assert_eq!(text, expected);
        assert!(bls::is_valid_name(&made.file));
    });
}

#[test]
fn the_menu_is_in_the_order_that_bootctl_lists() {
    let golden = include_str!("../testdata/menu-order.txt");
    let blocks = golden.split("\n@ ").skip(1);
    let expected: Vec<(&str, Entry)> = blocks
        .map(|block| block.split_once('\n').unwrap())
        .map(|(name, text)| (name, Entry::parse(text)))
        .collect();
    assert_eq!(expected.len(), 60);
    let mut sorted = expected.clone();
    sorted.sort_by_key(|(name, _)| *name);
    sorted.sort_by(|(a, left), (b, right)| {
        let (a, b) = (CountedName::parse(a), CountedName::parse(b));
        bls::menu_order(
            &left.sort_fields(a.stem(), a.tries()),
            &right.sort_fields(b.stem(), b.tries()),
        )
    });
    let names = |entries: &[(&str, Entry)]| entries.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&sorted), names(&expected));
}

#[test]
fn an_entry_that_has_no_tries_left_is_last_and_the_one_before_boots() {
    machine(|loader, boot| {
        let good = install(loader, 1, "6.1").unwrap();
        let new = install(loader, 2, "6.2").unwrap();
        for (from, to) in [("+03-00", "+2-1"), ("+2-1", "+1-2"), ("+1-2", "+0-3")] {
            let name = |counter: &str| new.file.replace("+03-00", counter);
            assert_eq!(loader.entries().unwrap().next.unwrap(), name(from));
            rename(boot, &name(from), &name(to));
        }
        let entries = loader.entries().unwrap();
        assert_eq!(entries.next.as_ref(), Some(&good.file));
        assert_eq!(entries.ours[1].tries, Tries::Bad { done: 3 });
        assert_eq!(entries.next_generation(0).unwrap(), 3);
        // The bad one can be removed, the one that works cannot.
        assert!(loader.plan_removal(&[id(1)]).is_err());
        delete(loader, 2).unwrap();
        assert_eq!(loader.entries().unwrap().ours.len(), 1);
    });
}

#[test]
fn an_entry_marked_good_has_no_counter_and_stays() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        rename(boot, &made.file, "cfs-000001-010101010101.conf");
        let entries = loader.entries().unwrap();
        assert_eq!(entries.ours[0].tries, Tries::Good);
        assert_eq!(entries.next.as_deref(), Some("cfs-000001-010101010101.conf"));
        assert!(loader.check().unwrap().is_empty());
    });
}

#[test]
fn of_a_counted_and_a_clean_copy_the_clean_one_is_kept() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        let clean = "cfs-000001-010101010101.conf";
        std::fs::copy(entry(boot, &made.file), entry(boot, clean)).unwrap();
        let entries = loader.entries().unwrap();
        assert_eq!(entries.ours.len(), 2);
        assert_eq!(entries.of(&id(1)).unwrap().file, clean);
        assert!(warnings(loader).contains("another counter"), "{}", warnings(loader));
        let plan = loader.plan_cleanup().unwrap();
        assert_eq!(plan.files, [format!("loader/entries/{}", made.file)]);
        loader.remove(&plan).unwrap();
        assert_eq!(warnings(loader), "");
        assert_eq!(loader.entries().unwrap().next.as_deref(), Some(clean));
    });
}

#[test]
fn crlf_upper_case_and_tabs_are_read_as_written_by_us() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        let text = std::fs::read_to_string(entry(boot, &made.file)).unwrap();
        std::fs::remove_file(entry(boot, &made.file)).unwrap();
        let text = text.replace('\n', "\r\n").replace("title ", "title\t\t");
        let name = made.file.to_uppercase();
        std::fs::write(entry(boot, &name), text).unwrap();
        let entries = loader.entries().unwrap();
        assert_eq!(entries.ours[0].problem, None);
        assert_eq!(entries.ours[0].id, Some(id(1)));
        assert_eq!(entries.next, Some(name));
        assert_eq!(entries.warnings, [""; 0]);
    });
}

#[test]
fn a_malformed_counter_makes_a_name_that_is_not_ours() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        install(loader, 2, "6.2").unwrap();
        rename(boot, &made.file, "cfs-000001-010101010101+3-.conf");
        let entries = loader.entries().unwrap();
        assert_eq!(entries.ours.len(), 1);
        let problem = entries.foreign[0].problem.clone().unwrap();
        assert!(problem.contains("looks like one of ours"), "{problem}");
        // Its kernel stays, because it is still an entry.
        assert!(loader.plan_cleanup().unwrap().is_empty());
    });
}

#[test]
fn an_edited_entry_is_reported() {
    machine(|loader, boot| {
        let other = format!("composefs.digest=?v1-sha256-12:{}", "ee".repeat(32));
        let edits: [(&str, &str, &str); 6] = [
            ("sort-key cfs-update", "sort-key aaa", "changed"),
            ("version 1", "version 99", "changed"),
            ("options ", &format!("options {other} "), "changed"),
            ("composefs.digest=v1", "composefs.digest=v7", "name no image"),
            (
                "010101010101010101",
                "020202020202020202",
                "its name is that of another image",
            ),
            (
                "linux /cfs-update",
                "linux /../cfs-update",
                "leads out of the partition",
            ),
        ];
        let made = install(loader, 1, "6.1").unwrap();
        let text = std::fs::read_to_string(entry(boot, &made.file)).unwrap();
        for (from, to, expected) in edits {
            std::fs::write(entry(boot, &made.file), text.replacen(from, to, 1)).unwrap();
            let found: Vec<String> = loader.check().unwrap().into_iter().map(|f| f.why).collect();
            assert!(found.iter().any(|why| why.contains(expected)), "{to}: {found:?}");
        }
    });
}

#[test]
fn files_that_are_no_text_are_listed_with_their_problem() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        std::fs::write(entry(boot, "cfs-000007-010101010101.conf"), [0xff, 0xfe, 0]).unwrap();
        std::fs::create_dir(entry(boot, "folder.conf")).unwrap();
        std::fs::write(entry(boot, "huge.conf"), vec![b'a'; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("nowhere", entry(boot, "dangling.conf")).unwrap();
        let entries = loader.entries().unwrap();
        assert_eq!(entries.next, Some(made.file));
        let problem = |file: &str| {
            let ours = entries.ours.iter().find(|e| e.file == file).map(|e| &e.problem);
            ours.or_else(|| entries.foreign.iter().find(|e| e.file == file).map(|e| &e.problem))
                .unwrap()
                .clone()
                .unwrap()
        };
        assert_eq!(problem("cfs-000007-010101010101.conf"), "it is not UTF-8");
        assert!(problem("folder.conf").contains("folder.conf"));
        assert!(problem("huge.conf").contains("larger than"));
        assert_eq!(entries.next_generation(0).unwrap(), 8);
        // What cannot be read may need any kernel: none is removed.
        let unused = boot.join("cfs-update").join("ab".repeat(32));
        std::fs::create_dir(&unused).unwrap();
        loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
        assert!(unused.exists());
    });
}

#[test]
fn a_default_that_defeats_the_fallback_is_warned_of() {
    machine(|loader, boot| {
        let first = install(loader, 1, "6.1").unwrap();
        let second = install(loader, 2, "6.2").unwrap();
        std::fs::write(entry(boot, "other.conf"), "title o\nlinux /other\n").unwrap();
        std::fs::write(boot.join("other"), "kernel").unwrap();
        let with = |pattern: &str| {
            std::fs::write(
                boot.join("loader/loader.conf"),
                format!("timeout 3\r\ndefault {pattern}\r\n"),
            )
            .unwrap();
            let entries = loader.entries().unwrap();
            (entries.next.unwrap(), entries.overrides.join("\n"))
        };
        for harmless in ["cfs-*", "CFS-*.conf", "*", "gone.conf"] {
            assert_eq!(with(harmless), (second.file.clone(), String::new()), "{harmless}");
        }
        let (next, warning) = with("cfs-000001-010101010101.conf");
        assert_eq!(next, first.file);
        assert!(warning.contains("keeps a new deployment from booting"), "{warning}");
        let (next, warning) = with("cfs-000001-*");
        assert_eq!(next, first.file);
        assert!(warning.contains("default cfs-000001-*"), "{warning}");
        let (next, warning) = with("other.conf");
        assert_eq!(next, "other.conf");
        assert!(warning.contains("not ours"), "{warning}");
        let (next, warning) = with("@saved");
        assert_eq!(next, second.file);
        assert!(warning.contains("@saved"), "{warning}");
    });
}

#[test]
fn an_entry_of_another_system_that_sorts_first_is_warned_of() {
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        let arch = "title Arch\nsort-key arch\nversion 1\nlinux /arch/linux\n";
        std::fs::write(entry(boot, "arch.conf"), arch).unwrap();
        assert_eq!(
            loader.entries().unwrap().next,
            Some(made.file.clone()),
            "its kernel is not there: not shown"
        );
        std::fs::create_dir(boot.join("arch")).unwrap();
        std::fs::write(boot.join("arch/linux"), "kernel").unwrap();
        assert_eq!(loader.entries().unwrap().next.as_deref(), Some("arch.conf"));
        assert!(
            overrides(loader).contains("arch.conf, which is not ours, boots by default"),
            "{}",
            overrides(loader)
        );
        std::fs::write(entry(boot, "arch.conf"), format!("{arch}architecture zz99\n")).unwrap();
        assert_eq!(
            loader.entries().unwrap().next,
            Some(made.file),
            "it is for another machine: not shown"
        );
    });
}

#[test]
fn what_boots_next_but_is_broken_is_warned_of() {
    machine(|loader, boot| {
        install(loader, 1, "6.1").unwrap();
        let made = install(loader, 2, "6.2").unwrap();
        std::fs::remove_file(boot.join(made.initrd.trim_start_matches('/'))).unwrap();
        assert_eq!(loader.entries().unwrap().next, Some(made.file.clone()));
        assert!(
            overrides(loader).contains("boots by default but is broken"),
            "{}",
            overrides(loader)
        );
        std::fs::remove_file(boot.join(made.linux.trim_start_matches('/'))).unwrap();
        assert_ne!(
            loader.entries().unwrap().next,
            Some(made.file),
            "without a kernel it is not even shown"
        );
    });
}

#[test]
fn files_are_readable_as_far_as_they_hold_no_secrets() {
    use std::os::unix::fs::PermissionsExt;
    machine(|loader, boot| {
        let made = install(loader, 1, "6.1").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&entry(boot, &made.file)), 0o644);
        assert_eq!(mode(&boot.join(made.linux.trim_start_matches('/'))), 0o644);
        assert_eq!(mode(&boot.join(made.initrd.trim_start_matches('/'))), 0o600);
    });
}

#[test]
fn an_entry_that_is_not_counted_has_a_plain_name() {
    machine(|loader, _| {
        let mut new = new_entry(1, 1, "6.1");
        new.tries = None;
        let made = loader.publish(stage(loader, 1, &new).unwrap()).unwrap();
        assert_eq!(
            (made.file.as_str(), made.tries),
            ("cfs-000001-010101010101.conf", Tries::Good)
        );
    });
}

#[test]
fn a_deployment_named_by_sha512_gets_an_entry_as_well() {
    machine(|loader, boot| {
        let mut new = new_entry(1, 1, "6.1");
        new.id = "5a".repeat(64).parse().unwrap();
        new.options[0] = cmdline::digest_argument(&new.id, false);
        let deployment = deployment_of(new.id, 1);
        let made = loader.publish(loader.stage(&deployment, &new).unwrap()).unwrap();
        assert_eq!(made.file, "cfs-000001-5a5a5a5a5a5a+03-00.conf");
        assert_eq!((made.id, made.problem), (Some(new.id), None));
        let text = std::fs::read_to_string(entry(boot, &made.file)).unwrap();
        assert!(
            text.contains(&format!(
                "options composefs.digest=v1-sha512-12:{} root=",
                "5a".repeat(64)
            )),
            "{text}"
        );
        assert!(loader.check().unwrap().is_empty());
    });
}

/// A loader whose EFI variables are in the folder that is given, too.
fn with_variables(test: impl FnOnce(&dyn Bootloader, &dyn Fn(&str, &str) -> String)) {
    let folder = common::folder();
    let variables = folder.path().join("efivars");
    std::fs::create_dir(&variables).unwrap();
    let boot = BootDir {
        path: folder.path().join("boot"),
        fat: false,
        variables: Some(variables.clone()),
        esp: None,
    };
    let loader = cfs_bootloader::open(Kind::SystemdBoot, boot, Arc::new(RealFs));
    let set = |name: &str, value: &str| {
        let path = variables.join(format!("{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"));
        let text = value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        let variable: Vec<u8> = [7, 0, 0, 0].into_iter().chain(text).collect();
        std::fs::write(path, variable).unwrap();
        overrides(&*loader)
    };
    test(&*loader, &set);
}

#[test]
fn an_efi_variable_that_keeps_a_new_deployment_from_booting_is_told_of() {
    with_variables(|loader, set| {
        install(loader, 1, "6.1").unwrap();
        install(loader, 2, "6.2").unwrap();
        assert_eq!(overrides(loader), "");
        let (old, new) = ("cfs-000001-010101010101.conf", "cfs-000002-020202020202.conf");
        assert!(set("LoaderEntryOneShot", old).contains("the next boot, and only that one, takes cfs-000001"));
        assert_eq!(set("LoaderEntryOneShot", new), "");
        // It is the newest now, and will not be after the next update; `@saved` is whatever was chosen last.
        for value in [old, new, "@saved", "auto-windows", "arch.conf", "cfs-*1-*"] {
            let told = set("LoaderEntryDefault", value);
            assert!(
                told.contains(&format!("every boot takes {value}")) && told.contains("bootctl set-default"),
                "{told}"
            );
        }
        for harmless in ["cfs-*", "CFS-*.conf", "", "cfs-000007-070707070707.conf"] {
            assert_eq!(set("LoaderEntryDefault", harmless), "", "{harmless}");
        }
        let told = set("LoaderEntryPreferred", old);
        assert!(
            told.contains("bootctl set-preferred") && !told.contains("bad one"),
            "{told}"
        );
    });
}

#[test]
fn settings_on_another_efi_system_partition_are_told_of() {
    let folder = common::folder();
    let esp = folder.path().join("efi");
    std::fs::create_dir_all(esp.join("loader")).unwrap();
    std::fs::write(esp.join("loader/loader.conf"), "default @saved\n").unwrap();
    let boot = BootDir {
        path: folder.path().join("boot"),
        fat: false,
        variables: None,
        esp: Some(esp),
    };
    let loader = cfs_bootloader::open(Kind::SystemdBoot, boot, Arc::new(RealFs));
    install(&*loader, 1, "6.1").unwrap();
    let told = overrides(&*loader);
    assert!(told.contains("loader.conf: default @saved may boot an old"), "{told}");
    assert!(loader.check().unwrap().iter().any(|finding| finding.why == told));
}

#[test]
fn a_check_tells_of_the_same_variables_as_the_list_of_entries() {
    with_variables(|loader, set| {
        install(loader, 1, "6.1").unwrap();
        let told = set("LoaderEntryDefault", "auto-windows");
        let found = loader.check().unwrap();
        assert!(found.iter().any(|finding| finding.why == told), "{told}: {found:?}");
    });
}

#[test]
fn what_is_preferred_goes_before_the_default_unless_it_is_bad() {
    machine(|loader, boot| {
        let first = install(loader, 1, "6.1").unwrap();
        let second = install(loader, 2, "6.2").unwrap();
        let lines = "preferred cfs-000001-*\ndefault cfs-*\n";
        std::fs::write(boot.join("loader/loader.conf"), lines).unwrap();
        assert_eq!(loader.entries().unwrap().next.as_ref(), Some(&first.file));
        let told = overrides(loader);
        assert!(
            told.contains("preferred cfs-000001-* keeps a new deployment from booting"),
            "{told}"
        );
        rename(boot, &first.file, &first.file.replace("+03-00", "+0-3"));
        assert_eq!(loader.entries().unwrap().next, Some(second.file));
    });
}

#[test]
fn an_entry_that_was_edited_to_boot_before_a_newer_one_is_told_of() {
    machine(|loader, boot| {
        let first = install(loader, 1, "6.1").unwrap();
        let second = install(loader, 2, "6.2").unwrap();
        let text = std::fs::read_to_string(entry(boot, &first.file)).unwrap();
        let edited = text.replace("version 1", "version 99");
        std::fs::write(entry(boot, &first.file), edited).unwrap();
        let told = overrides(loader);
        assert!(
            told.starts_with(&first.file) && told.contains(&format!("not {}, which is newer", second.file)),
            "{told}"
        );
    });
}
