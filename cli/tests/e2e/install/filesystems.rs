//! `install to-filesystem`: what a file system made by hand gets, and which are refused.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::common::layout::{Image, base, noise};
use crate::common::registry::Registry;

fn options(entry: &str) -> Vec<&str> {
    let line = entry.lines().find_map(|line| line.strip_prefix("options")).unwrap();
    line.split_whitespace().collect()
}

#[test]
fn a_file_system_that_was_made_by_hand_gets_a_whole_system_that_can_be_updated() {
    if !is_root("mounting a file system to install to") {
        return;
    }
    for kind in ["ext4", "btrfs"] {
        let root = Root::new(kind);
        let keys = root.path("keys");
        fs::write(&keys, "ssh-ed25519 AAAA me@here\n").unwrap();
        let more = [
            "--allow-missing-verity",
            "--karg",
            "console=ttyS0,115200",
            "--karg=dyndbg=\"file a.c +p\"",
            "--root-ssh-authorized-keys",
            keys.to_str().unwrap(),
        ];
        let done = root.install(&image(root.dir.path(), 1), more).expect(0).json();
        assert_eq!(done["result"], "installed");
        assert_eq!(done["partitions"], Value::Array(Vec::new()));
        let uuid = tool(
            "blkid",
            ["-p", "-o", "value", "-s", "UUID", root.path("fs.img").to_str().unwrap()],
        );
        let wanted = format!("root=UUID={}", uuid.trim());

        let entries = root.entries();
        assert_eq!(entries.len(), 1, "{kind}");
        let digest = if done["fsVerity"] == true { "" } else { "?" };
        let digest = format!(
            "composefs.digest={digest}v1-sha256-12:{}",
            done["deployment"].as_str().unwrap()
        );
        let arguments = [
            digest.as_str(),
            &wanted,
            "rw",
            "quiet",
            "wanted=1",
            "console=ttyS0,115200",
            "dyndbg=\"file",
            "a.c",
            "+p\"",
        ];
        assert_eq!(options(&entries[0]), arguments, "{kind}");

        // The signed loader, in both places; settings that name no entry; a seed that only root may read.
        let read = |path: &str| fs::read(root.path("esp").join(path)).unwrap();
        let efi = if cfg!(target_arch = "aarch64") {
            ("aa64", "AA64")
        } else {
            ("x64", "X64")
        };
        assert_eq!(
            read(&format!("EFI/systemd/systemd-boot{}.efi", efi.0)),
            LOADER.as_bytes()
        );
        assert_eq!(read(&format!("EFI/BOOT/BOOT{}.EFI", efi.1)), LOADER.as_bytes());
        assert!(done["bootLoader"].as_str().unwrap().ends_with(".efi.signed"));
        let conf = String::from_utf8(read("loader/loader.conf")).unwrap();
        assert!(!conf.lines().any(|line| line.starts_with("default")), "{conf}");
        assert_eq!(read("loader/random-seed").len(), 32);
        let mode = fs::metadata(root.path("esp/loader/random-seed"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);

        let etc = root
            .mount()
            .join("state/deploy")
            .join(done["deployment"].as_str().unwrap())
            .join("etc");
        assert_eq!(fs::read_to_string(etc.join("machine-id")).unwrap(), "uninitialized\n");
        let drop_in = fs::read_to_string(etc.join("tmpfiles.d/cfs-update-root-ssh.conf")).unwrap();
        assert!(
            drop_in.contains("f~ /var/roothome/.ssh/authorized_keys 0600 root root - c3NoLWVkMjU1MTkg"),
            "{drop_in}"
        );

        let (cfs, boot) = root.cfs();
        let status = cfs.run(["status", "--json", "--boot", &boot]).expect(0).json();
        assert_eq!(status["status"]["staged"]["image"]["imageDigest"], done["imageDigest"]);
        cfs.run(["fsck", "--boot", &boot]).expect(0);

        // The next version keeps what was asked for, and the keys.
        image(root.dir.path(), 2);
        let upgraded = cfs.run(["upgrade", "--json", "--boot", &boot]).expect(0).json();
        let entries = root.entries();
        let id = upgraded["deployment"].as_str().unwrap();
        let new = entries.iter().find(|entry| entry.contains(id)).unwrap();
        assert_eq!(options(new)[1..], arguments[1..], "{kind}");
        assert_eq!(options(new)[0].contains("=?v1"), digest.contains("=?v1"));
        let kept = root
            .mount()
            .join("state/deploy")
            .join(id)
            .join("etc/tmpfiles.d/cfs-update-root-ssh.conf");
        assert_eq!(fs::read_to_string(kept).unwrap(), drop_in);
        cfs.run(["fsck", "--boot", &boot]).expect(0);
    }
}

#[test]
fn what_is_installed_from_a_folder_can_follow_a_registry() {
    if !is_root("mounting a file system to install to") {
        return;
    }
    let root = Root::new("ext4");
    let reference = image(root.dir.path(), 1);
    let more = ["--allow-missing-verity", "--target-imgref", "quay.io/org/os:41"];
    let done = root.install(&reference, more).expect(0).json();
    assert_eq!(done["image"], "docker://quay.io/org/os:41");
    let (cfs, boot) = root.cfs();
    let status = cfs.run(["status", "--json", "--boot", &boot]).expect(0).json();
    assert_eq!(status["spec"]["image"]["image"], "quay.io/org/os:41");
    cfs.run(["fsck", "--boot", &boot]).expect(0);
}

#[test]
fn what_an_installed_system_binds_is_there_for_podman_at_its_first_boot() {
    if !is_root("mounting a file system to install to") {
        return;
    }
    let root = Root::new("ext4");
    let registry = Registry::start();
    let app = Layer::default().dirs(&["usr"]).file("usr/app", noise(1, 9000));
    let app = Image::new("1")
        .layer(app, How::Gzip)
        .finish()
        .push(&registry, "app", "1");
    let binds = loader(Layer::default().dirs(&["usr", "usr/lib"]))
        .dirs(&[
            "usr/lib/bootc",
            "usr/lib/bootc/bound-images.d",
            "etc",
            "var",
            "var/roothome",
        ])
        .file(
            "usr/lib/bootc/bound-images.d/app.image",
            format!("[Image]\nImage={app}\n"),
        )
        .symlink("root", "var/roothome");
    let os = small(1, "k1", 3, 5000).layer(binds, How::Gzip).finish();
    let os = os.layout(&root.path("oci"), "os");
    root.install(&os, ["--allow-missing-verity"]).expect(0);
    let shelf = root.mount().join("state/cfs-update/podman");
    let images = fs::read_to_string(shelf.join("overlay-images/images.json")).unwrap();
    assert!(images.contains(&app), "{images}");
    let layers = list(&shelf.join("overlay"));
    let links = layers.iter().filter_map(|layer| fs::read_link(layer.join("diff")).ok());
    let links: Vec<_> = links.collect();
    // As the system has it that runs, not where it was installed to.
    assert_eq!(links, [Path::new("/sysroot/composefs/objects"); 2]);
    let (cfs, boot) = root.cfs();
    cfs.run(["fsck", "--boot", &boot]).expect(0);
}

#[test]
fn a_file_system_without_fs_verity_or_with_something_in_it_is_refused_and_stays_as_it_is() {
    if !is_root("mounting a file system to install to") {
        return;
    }
    let root = Root::new("ext4");
    let reference = image(root.dir.path(), 1);
    let before = || (list(&root.mount()), list(&root.path("esp")));
    let empty = before();
    let refused = root.install(&reference, []).expect(1);
    assert!(refused.stderr.contains("--allow-missing-verity"), "{}", refused.stderr);
    assert_eq!(before(), empty);

    fs::write(root.mount().join("data"), "x").unwrap();
    let refused = root.install(&reference, ["--allow-missing-verity"]).expect(1);
    assert!(
        refused.stderr.contains("not empty; remove or move away: data"),
        "{}",
        refused.stderr
    );
    assert!(!root.mount().join("composefs").exists());
    fs::remove_file(root.mount().join("data")).unwrap();

    let below = root.mount().join("lost+found").display().to_string();
    let refused = install(root.dir.path(), ["to-filesystem", &below, &reference, "--boot", "/tmp"]).expect(1);
    assert!(refused.stderr.contains("mounted exactly there"), "{}", refused.stderr);
    let refused = install(root.dir.path(), ["to-filesystem", "/", &reference, "--boot", "/tmp"]).expect(1);
    assert!(refused.stderr.contains("cfs-update switch"), "{}", refused.stderr);

    // An image that cannot be installed is found out before; a second installation is refused.
    let broken = small(1, "k", 1, 100).finish().layout(&root.path("no-loader"), "os");
    let failed = root.install(&broken, ["--allow-missing-verity"]).expect(1);
    assert!(
        failed.stderr.contains("the image needs its boot loader"),
        "{}",
        failed.stderr
    );
    assert_eq!(list(&root.path("esp")), empty.1, "nothing was written to $BOOT");
    assert!(!root.mount().join("composefs").exists());
    root.install(&reference, ["--allow-missing-verity"]).expect(0);
    let again = root.install(&reference, ["--allow-missing-verity"]).expect(1);
    assert!(again.stderr.contains("installed there already"), "{}", again.stderr);
}

#[test]
fn a_boot_partition_that_cannot_hold_two_kernels_is_refused_with_numbers_before_it_is_written_to() {
    if !is_root("mounting a file system to install to") {
        return;
    }
    let root = Root::new("ext4");
    let kernel = "usr/lib/modules/6.1.0/vmlinuz";
    let layer = loader(Layer::default().dirs(&["usr", "usr/lib"])).file(kernel, noise(7, 3 << 20));
    let reference = Image::new("1")
        .layer(base("1", "k"), How::None)
        .layer(layer, How::None)
        .finish()
        .layout(&root.path("oci"), "os");
    let esp = root.path("esp");
    let mount = |size: &str| tool("mount", ["-t", "tmpfs", "-o", size, "none", esp.to_str().unwrap()]);
    mount("size=5m");
    let refused = root.install(&reference, ["--allow-missing-verity"]);
    let left = list(&esp);
    tool("umount", [&esp]);
    let refused = refused.expect(4);
    assert!(
        !root.mount().join("composefs").exists(),
        "the root was not touched either"
    );
    assert!(
        refused.stderr.contains("bytes needed") && refused.stderr.contains("5242880 free"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("--esp-size"), "{}", refused.stderr);
    assert_eq!(left, Vec::<PathBuf>::new());
    mount("size=8m");
    let done = root.install(&reference, ["--allow-missing-verity"]);
    tool("umount", [&esp]);
    done.expect(0);
}

#[test]
fn a_wrong_image_costs_nobody_a_disk() {
    if !is_root("a place to install to") {
        return;
    }
    let root = Root::new("ext4");
    let missing = format!("oci:{}/none:os", root.dir.path().display());
    root.install(&missing, ["--allow-missing-verity"]).expect(1);
    assert_eq!(
        list(&root.mount()).iter().map(|path| name(path)).collect::<Vec<_>>(),
        ["lost+found"]
    );
}
