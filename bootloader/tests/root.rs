//! The initramfs program against a sysroot made with the library, in a mount namespace of its own.
//!
//! Mounting needs root: says so where there is none. This machine's kernel may lack fs-verity; what then can be shown
//! of it is that it is refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

#[path = "root/fixture.rs"]
mod fixture;

use std::fs;
use std::os::unix::fs::symlink;

use fixture::{Machine, Outcome, is_root};

#[test]
fn the_booted_tree_is_the_image_with_the_deployments_etc_and_var_and_the_physical_root() {
    if !is_root() {
        return;
    }
    for propagation in ["private", "shared"] {
        let machine = Machine::new();
        machine.run_as(propagation, &[], "after=mounts").succeeded();
        let seen = machine.run_as(
            propagation,
            &[],
            "cat $S/usr/lib/os-release $S/etc/hostname $S/var/lib/data; ls -d $S/sysroot/composefs $S/sysroot/state
             echo new >$S/etc/new && echo etc-writable
             echo new >$S/var/new && echo var-writable
             echo new >$S/usr/new || echo usr-read-only
             awk -v s=\"$S\" '$5 == s' /proc/self/mountinfo | wc -l
             ls -A $RUN",
        );
        seen.succeeded();
        seen.shows("NAME=of the image");
        seen.shows("the administrator's");
        seen.shows("kept data");
        for line in ["etc-writable", "var-writable", "usr-read-only"] {
            seen.shows(line);
        }
        // Nothing is left below: one mount there, and of the staging place nothing.
        assert!(seen.stdout.lines().any(|line| line == "1"), "{seen}");
        assert!(!seen.stdout.contains("cfs-update-root"), "{seen}");
        assert_eq!(fs::read(machine.etc().join("new")).unwrap(), b"new\n", "{propagation}");
        assert_eq!(fs::read(machine.var().join("new")).unwrap(), b"new\n", "{propagation}");
    }
}

#[test]
fn other_tools_find_the_booted_deployment_by_the_source_of_the_root() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let source = |config: &str| {
        machine.config(config);
        let seen = machine.run(
            &[],
            "findmnt -n -o SOURCE --mountpoint $S; readlink $RUN/systemd/volatile-root",
        );
        seen.succeeded();
        seen
    };
    source("").shows(&format!("composefs:{}", machine.id));
    source("[root]\ntransient = true").shows(&format!("transient:composefs={}", machine.id));
}

#[test]
fn what_is_written_to_a_transient_root_or_etc_is_gone_with_the_boot() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    machine.config("[root]\ntransient = true\n[etc]\nmount = 'transient'\n[var]\nmount = 'none'");
    let seen = machine.run(
        &[],
        "echo x >$S/usr/new && echo x >$S/etc/new && echo written
         cat $S/etc/hostname; stat -c %a $S/etc; ls -A $S/var",
    );
    seen.succeeded();
    seen.shows("written");
    seen.shows("the image's");
    assert!(!machine.etc().join("new").exists());
    let again = machine.run(&[], "ls $S/usr/new $S/etc/new");
    assert!(
        again.stderr.contains("usr/new") && again.stderr.contains("etc/new"),
        "{again}"
    );
}

#[test]
fn an_overlay_etc_shows_the_images_and_keeps_what_is_written() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    machine.config("[etc]\nmount = 'overlay'");
    machine
        .run(&[], "cat $S/etc/hostname; echo kept >$S/etc/hostname")
        .shows("the image's");
    machine.run(&[], "cat $S/etc/hostname").shows("kept");
    assert_eq!(fs::read(machine.etc().join("upper/hostname")).unwrap(), b"kept\n");
    machine.config("[root]\ntransient = true\n[etc]\nmount = 'overlay'");
    machine
        .run(&[], "cat $S/etc/hostname; echo x >$S/usr/new && echo written")
        .shows("kept\nwritten");
}

#[test]
fn a_volatile_state_leaves_var_to_systemd() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    machine.cmdline(&format!("quiet {} systemd.volatile=state", machine.argument("?")));
    let seen = machine.run(&[], "cat $S/var/lib/data || echo no-data");
    seen.shows("no-data");
}

#[test]
fn the_next_root_of_a_soft_reboot_is_made_beside_the_running_one() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let seen = machine.run(
        &["--target", "/mnt"],
        "\"$@\" || exit 98; cat /mnt/etc/hostname; ls -d $S/composefs /mnt/sysroot/composefs; findmnt -n -o SOURCE --mountpoint /mnt",
    );
    seen.succeeded();
    seen.shows("the administrator's");
    seen.shows("/mnt/sysroot/composefs");
    seen.shows(&format!("composefs:{}", machine.id));
}

#[test]
fn a_dry_run_checks_everything_and_mounts_nothing() {
    let machine = Machine::new();
    let seen = machine.run_here(&["--dry-run"]);
    seen.succeeded();
    let id = &machine.id;
    assert_eq!(
        seen.stdout,
        format!(
            "mount composefs:{id} on / (without fs-verity)\nbind the deployment's etc to /etc\n\
             bind the deployment's var to /var\nbind the physical root to /sysroot\n\
             tell systemd the device of the physical root\nmount the new root in place of the physical one\n"
        )
    );
    assert!(machine.sysroot().join("composefs/images").exists());
}

#[test]
fn the_older_form_of_the_argument_is_understood_and_tried_last() {
    let machine = Machine::new();
    let other = "0".repeat(64);
    machine.cmdline(&format!(
        "composefs=?{} composefs.digest=v1-sha256-12:{other} ro",
        machine.id
    ));
    machine.run_here(&["--dry-run"]).succeeded();
    machine.cmdline(&format!("composefs=?{other} {}", machine.argument("?")));
    machine.run_here(&["--dry-run"]).succeeded();
    machine.cmdline(&format!(
        "composefs=?{other} composefs.digest=v1-sha256-12:{}",
        "1".repeat(64)
    ));
    let refused = machine.run_here(&["--dry-run"]);
    refused.refused(1, &["no image that the kernel command line names", &other, "root="]);
}

#[test]
fn a_repository_with_sha_512_boots_the_same() {
    if !is_root() {
        return;
    }
    let machine = Machine::with(cfs_core::ids::Algorithm::Sha512);
    let seen = machine.run(&[], "cat $S/usr/lib/os-release; findmnt -n -o SOURCE --mountpoint $S");
    seen.succeeded();
    seen.shows("NAME=of the image");
    seen.shows(&format!("composefs:{}", machine.id));
    assert_eq!(machine.id.len(), 128);
}

#[test]
fn what_another_program_has_mounted_already_is_left_alone() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    for config in ["", "[root]\ntransient = true"] {
        machine.config(config);
        let seen = machine.run(
            &[],
            "echo first; \"$@\" || exit 98; awk -v s=\"$S\" '$5 == s' /proc/self/mountinfo | wc -l",
        );
        seen.succeeded();
        seen.shows("first\n1\n");
        assert!(seen.stderr.contains("already: nothing to do"), "{seen}");
    }
}

#[test]
fn after_a_refusal_it_stays_where_a_reboot_would_lead_nowhere() {
    let machine = Machine::new();
    machine.cmdline(&machine.argument("").replace("sha256-12:", "sha256-12:ff"));
    machine
        .run_here(&["--on-failure", "reboot"])
        .refused(1, &["no kernel argument names an image"]);
    machine.cmdline(&format!("composefs.digest=v1-sha256-12:{}", "0".repeat(64)));
    let refused = machine.run_here(&["--on-failure", "reboot"]);
    refused.refused(1, &["no reboot: the boot loader does not count", "boot loader's menu"]);
    machine.counted("\\loader\\entries\\cfs-000002-000000000000+00-04.conf");
    let refused = machine.run_here(&["--on-failure", "reboot"]);
    refused.refused(1, &["no reboot: the tries of this entry were used up before"]);
}

#[test]
fn a_boot_that_failed_after_this_program_stays_where_no_tries_are_counted_and_says_so() {
    let machine = Machine::new();
    for (entry, why) in [
        (None, "the boot loader does not count"),
        (Some("+00-04"), "the tries of this entry were used up before"),
        (Some(""), "the boot loader does not count"),
    ] {
        if let Some(counter) = entry {
            machine.counted(&format!("\\loader\\entries\\cfs-000002-000000000000{counter}.conf"));
        }
        let seen = machine.run_here(&["--boot-failed"]);
        assert_eq!(seen.code, Some(0), "{seen}");
        assert!(seen.stderr.contains("this boot has failed"), "{seen}");
        assert!(seen.stderr.contains(&format!("no reboot: {why}")), "{seen}");
        let log = fs::read_to_string(machine.path("kmsg")).unwrap();
        assert!(log.contains(why), "{log}");
    }
}

#[test]
fn a_boot_that_waits_for_its_disk_is_left_alone_as_soon_as_the_disk_is_there() {
    let machine = Machine::new();
    machine.cmdline(&format!("root=UUID=0a-1 {}", machine.argument("?")));
    fs::create_dir_all(machine.path("dev/disk/by-uuid")).unwrap();
    let dev = machine.path("dev");
    let look = ["--boot-failed", "--if-root-is-missing", "--dev", dev.to_str().unwrap()];
    let seen = machine.run_here(&look);
    assert!(seen.stderr.contains("the disk that root= names has not come"), "{seen}");
    assert!(
        seen.stderr.contains("no reboot: the boot loader does not count"),
        "{seen}"
    );
    fs::write(machine.path("dev/disk/by-uuid/0a-1"), "").unwrap();
    let seen = machine.run_here(&look);
    assert_eq!((seen.code, seen.stderr.as_str()), (Some(0), ""), "{seen}");
}

#[test]
fn a_first_process_that_cannot_be_read_is_refused_before_it_is_too_late_for_another_try() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let init = machine.init();
    fs::remove_file(&init).unwrap();
    let seen = machine.try_run(&[], "ls -d $S/composefs; ls -A $RUN");
    seen.refused(1, &["its first process cannot be started: /sbin/init", "fsck --repair"]);
    seen.shows("/composefs");
    assert!(!seen.stdout.contains("cfs-update-root"), "something is left: {seen}");
    machine.cmdline(&format!("{} init=/usr/lib/os-release", machine.argument("?")));
    machine.run(&[], "").succeeded();
}

#[test]
fn a_panic_or_a_crash_of_systemd_restarts_the_machine_only_where_tries_are_counted() {
    if !is_root() {
        return;
    }
    for (counter, expected) in [("+02-01", "10"), ("+00-03", "10"), ("", "0")] {
        let machine = Machine::new();
        machine.counted(&format!("\\loader\\entries\\cfs-000002-000000000000{counter}.conf"));
        fs::create_dir_all(machine.path("sysctl/kernel")).unwrap();
        fs::write(machine.path("sysctl/kernel/panic"), "0").unwrap();
        let seen = machine.run(&["--on-failure", "reboot"], "cat $RUN/systemd/system.conf.d/*.conf");
        let panic = fs::read_to_string(machine.path("sysctl/kernel/panic")).unwrap();
        assert!(panic.starts_with(expected), "{counter}: {panic}");
        assert_eq!(
            seen.stdout.contains("CrashReboot=yes"),
            expected == "10",
            "{counter}: {seen}"
        );
    }
}

#[test]
fn another_kind_of_boot_is_left_alone() {
    let machine = Machine::new();
    machine.cmdline("root=UUID=1 quiet");
    let seen = machine.run_here(&[]);
    assert_eq!(seen.code, Some(77), "{seen}");
}

#[test]
fn without_a_digest_that_the_kernel_measured_it_is_refused() {
    let machine = Machine::new();
    if machine.has_verity() {
        println!("not run: the image has fs-verity here");
        return;
    }
    machine.cmdline(&machine.argument(""));
    let refused = machine.run_here(&[]);
    refused.refused(
        3,
        &[
            "nothing proves",
            "no fs-verity digest",
            &machine.id,
            "composefs.digest=?",
        ],
    );
    refused.is_in_the_kernel_log(&machine);
}

#[test]
fn an_image_with_other_content_is_refused_also_where_fs_verity_is_optional() {
    let machine = Machine::new();
    let object = machine.object();
    let mut content = fs::read(&object).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    machine.overwrite(&object, &content);
    let refused = machine.run_here(&[]);
    refused.refused(
        3,
        &[
            "is not the one that was asked for",
            &machine.id,
            "computed digest",
            "deploy this image again",
        ],
    );
    refused.is_in_the_kernel_log(&machine);
}

#[test]
fn images_are_opened_through_their_link_only() {
    let machine = Machine::new();
    let link = machine.sysroot().join("composefs/images").join(&machine.id);
    let outside = machine.sysroot().join("evil");
    fs::copy(machine.object(), &outside).unwrap();
    let cases: [(&str, &dyn Fn()); 3] = [
        ("a link to ../../evil", &|| symlink("../../evil", &link).unwrap()),
        ("a link to /etc/passwd", &|| symlink("/etc/passwd", &link).unwrap()),
        ("no symbolic link", &|| assert!(fs::copy(&outside, &link).is_ok())),
    ];
    for (found, put) in cases {
        fs::remove_file(&link).unwrap();
        put();
        machine
            .run_here(&[])
            .refused(3, &["is not what makes an image", found, "../objects/"]);
    }
    fs::remove_file(&link).unwrap();
    machine
        .run_here(&[])
        .refused(1, &["no image that the kernel command line names"]);
}

#[test]
fn a_missing_object_repository_or_sysroot_is_named() {
    let machine = Machine::new();
    fs::remove_file(machine.object()).unwrap();
    machine
        .run_here(&[])
        .refused(1, &["cannot be opened", "the object", "fsck"]);
    fs::remove_dir_all(machine.sysroot().join("composefs")).unwrap();
    machine
        .run_here(&[])
        .refused(1, &["has no composefs repository", "root="]);
    fs::remove_dir_all(machine.sysroot()).unwrap();
    machine
        .run_here(&[])
        .refused(1, &["the physical root is not there", "root="]);
}

#[test]
fn a_deployment_without_its_state_is_refused_before_anything_is_mounted() {
    let machine = Machine::new();
    let record = machine.etc().parent().unwrap().to_owned();
    let set_aside = machine.sysroot().join("aside");
    fs::rename(machine.etc(), &set_aside).unwrap();
    machine
        .run_here(&[])
        .refused(1, &["has no /etc", "deploy this image again"]);
    symlink("/etc", machine.etc()).unwrap();
    machine.run_here(&[]).refused(1, &["has no /etc"]);
    fs::remove_file(machine.etc()).unwrap();
    fs::rename(&set_aside, machine.etc()).unwrap();

    fs::remove_file(record.join("var")).unwrap();
    machine.run_here(&[]).refused(1, &["has no /var"]);
    for elsewhere in ["/var", "../../../../../var", "../../os/../var", "../../os/a/b/var"] {
        symlink(elsewhere, record.join("var")).unwrap();
        machine.run_here(&[]).refused(3, &["leads elsewhere", elsewhere]);
        fs::remove_file(record.join("var")).unwrap();
    }
    symlink("../../os/default/var", record.join("var")).unwrap();
    machine.run_here(&["--dry-run"]).succeeded();
    fs::remove_dir_all(&record).unwrap();
    machine.run_here(&[]).refused(1, &["has no state"]);
}

#[test]
fn a_required_signature_counts_only_with_a_key_of_the_initramfs_and_for_this_image() {
    let machine = Machine::new();
    machine.config("[root]\nrequire-signature = true");
    machine
        .run_here(&["--dry-run"])
        .refused(3, &["require-signature", "no key"]);

    machine.trust("trusted.d");
    let accepted = machine.run_here(&["--dry-run"]);
    accepted.succeeded();

    let seal = fs::read(machine.seal()).unwrap();
    let mut changed = seal.clone();
    changed[seal.len() / 2] ^= 1;
    for (content, why) in [
        (changed.as_slice(), "require-signature"),
        (&seal[..seal.len() - 20], "not a DSSE envelope"),
        (b"", "not a DSSE envelope"),
    ] {
        fs::write(machine.seal(), content).unwrap();
        machine.run_here(&["--dry-run"]).refused(3, &["require-signature", why]);
    }
    fs::write(machine.seal(), machine.seal_of_another_image()).unwrap();
    machine.run_here(&["--dry-run"]).refused(3, &["a signature of image"]);
    fs::remove_file(machine.seal()).unwrap();
    machine.run_here(&["--dry-run"]).refused(3, &["no such file"]);

    fs::write(machine.seal(), &seal).unwrap();
    machine.trust("revoked.d");
    machine.run_here(&["--dry-run"]).refused(3, &["revoked"]);
}

#[test]
fn a_configuration_that_is_not_understood_is_refused() {
    let machine = Machine::new();
    machine.config("[root]\nrequire-signatur = true");
    machine.run_here(&[]).refused(
        1,
        &[
            "setup-root-conf.toml",
            "line 2",
            "require-signatur",
            "build its initramfs anew",
        ],
    );
}

#[test]
fn an_image_without_a_folder_to_mount_on_is_refused_and_the_physical_root_stays() {
    if !is_root() {
        return;
    }
    let machine = Machine::without("sysroot");
    let outcome = machine.try_run(
        &[],
        "ls -d $S/composefs; grep -c cfs-update /proc/self/mountinfo; ls -A $RUN",
    );
    assert_eq!(outcome.code, Some(1), "{outcome}");
    assert!(outcome.stderr.contains("no folder /sysroot"), "{outcome}");
    outcome.shows("/composefs");
    assert!(outcome.stdout.lines().any(|line| line == "0"), "{outcome}");
}

#[test]
fn a_physical_root_that_was_mounted_read_only_becomes_writable() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let seen = machine.run_on_tmpfs(
        "ro",
        "echo x >$S/etc/new && echo etc-writable; echo x >$S/var/new && echo var-writable",
    );
    seen.shows("etc-writable");
    seen.shows("var-writable");
}

#[test]
fn wrong_use_is_told_from_a_refusal() {
    let outcome = Outcome::of(&["--sysrot", "/"]);
    assert_eq!(outcome.code, Some(2), "{outcome}");
    assert!(
        outcome.stderr.contains("--sysrot") && outcome.stderr.contains("Usage:"),
        "{outcome}"
    );
    assert!(Outcome::of(&["--help"]).stdout.contains("--on-failure"));
}
