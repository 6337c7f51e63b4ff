//! Installation: to real file systems of this kernel on loop devices, and to disks up to where a kernel is needed that
//! has FAT (the rest runs in a virtual machine, `testdata/vm`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::layout::{How, Image, Layer, base, noise, small};
use crate::common::registry::Registry;
use crate::common::{Cfs, Ran, is_root, list, name, scratch, tool};

const LOADER: &str = "MZ #### LoaderInfo: systemd-boot 257 ####";

/// The folders of systemd-boot in an image, and its program.
fn loader(layer: Layer) -> Layer {
    let efi = match std::env::consts::ARCH {
        "aarch64" => "aa64",
        _ => "x64",
    };
    layer
        .dirs(&["usr/lib/systemd", "usr/lib/systemd/boot", "usr/lib/systemd/boot/efi"])
        .file(
            &format!("usr/lib/systemd/boot/efi/systemd-boot{efi}.efi"),
            "MZ unsigned #### LoaderInfo: systemd-boot 257 ####",
        )
        .file(
            &format!("usr/lib/systemd/boot/efi/systemd-boot{efi}.efi.signed"),
            LOADER,
        )
}

/// A bootable image with systemd-boot, kernel arguments of its own, and root's home in /var.
fn image(dir: &Path, version: u32) -> String {
    let layer = loader(Layer::default().dirs(&["usr", "usr/lib"]))
        .dirs(&["usr/lib/bootc", "usr/lib/bootc/kargs.d", "usr/lib/bootc/install"])
        .dirs(&["etc", "var", "var/roothome"])
        .file("usr/lib/bootc/kargs.d/10.toml", "kargs = [\"quiet\"]\n")
        .file("usr/lib/bootc/install/10.toml", "[install]\nkargs = [\"wanted=1\"]\n")
        .file("etc/machine-id", "uninitialized\n")
        .symlink("root", "var/roothome");
    small(version, &format!("k{version}"), 3, 5000)
        .layer(layer, How::Gzip)
        .finish()
        .layout(&dir.join("oci"), "os")
}

/// The program without `--sysroot`.
fn run(home: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cfs-update"));
    let command = command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home);
    Ran::from(command.stdin(Stdio::null()).output().unwrap())
}

fn install<const N: usize>(home: &Path, args: [&str; N]) -> Ran {
    run(home, &[&["install"], &args[..]].concat())
}

/// A file system in a file, mounted until the test ends; `esp/` beside it.
struct Root {
    dir: TempDir,
}

impl Root {
    fn new(kind: &str) -> Self {
        let root = Self { dir: scratch() };
        let (file, mount) = (root.path("fs.img"), root.mount());
        fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        for folder in [&mount, &root.path("esp")] {
            fs::create_dir(folder).unwrap();
        }
        match kind {
            "ext4" => tool("mkfs.ext4", [Path::new("-q"), Path::new("-F"), &file]),
            _ => tool("mkfs.btrfs", [Path::new("-q"), Path::new("-f"), &file]),
        };
        tool("mount", [Path::new("-o"), Path::new("loop"), &file, &mount]);
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> PathBuf {
        self.path("mnt")
    }

    fn boot(&self) -> String {
        self.path("esp").display().to_string()
    }

    fn install<const N: usize>(&self, image: &str, more: [&str; N]) -> Ran {
        let (mount, boot) = (self.mount().display().to_string(), self.boot());
        let args = ["install", "to-filesystem", &mount, image, "--boot", &boot, "--json"];
        run(self.dir.path(), &[&args, &more[..]].concat())
    }

    fn entries(&self) -> Vec<String> {
        let entries = list(&self.path("esp/loader/entries"));
        entries.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    /// The program on what was installed.
    fn cfs(&self) -> (Cfs, String) {
        (Cfs::new(self.dir.path()).on(&self.mount()), self.boot())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount()).status();
    }
}

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

/// A file that is to be a disk.
fn disk(dir: &Path, size: u64) -> String {
    let path = dir.join("disk.img");
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path.display().to_string()
}

fn knows(kind: &str) -> bool {
    let list = fs::read_to_string("/proc/filesystems").unwrap();
    list.lines().any(|line| line.ends_with(&format!("\t{kind}")))
}

fn loops() -> usize {
    let backing = |path: &PathBuf| path.join("loop/backing_file").exists();
    list(Path::new("/sys/block"))
        .iter()
        .filter(|path| name(path).starts_with("loop") && backing(path))
        .count()
}

#[test]
fn a_disk_with_data_on_it_is_refused_and_not_a_byte_of_it_changes() {
    let dir = scratch();
    let disk = disk(dir.path(), 2 << 30);
    tool("mkfs.ext4", ["-q", "-F", &disk]);
    let head = || {
        let output = Command::new("sha256sum").arg(&disk).output().unwrap();
        output.stdout
    };
    let before = head();
    let reference = image(dir.path(), 1);
    let refused = install(dir.path(), ["to-disk", &disk, &reference]).expect(1);
    assert!(
        refused.stderr.contains("there is data on it (ext4); --wipe"),
        "{}",
        refused.stderr
    );
    let json = install(dir.path(), ["--json", "to-disk", &disk, &reference]).expect(1);
    assert!(
        json.stderr.starts_with("{\"error\":{\"kind\":\"failed\""),
        "{}",
        json.stderr
    );
    let dry = install(
        dir.path(),
        [
            "to-disk",
            "--dry-run",
            "--wipe",
            "--allow-missing-verity",
            &disk,
            &reference,
        ],
    );
    if knows("vfat") {
        let dry = dry.expect(0);
        assert!(dry.stdout.contains("Nothing was changed"), "{}", dry.stdout);
    } else {
        let dry = dry.expect(1);
        assert!(
            dry.stderr
                .contains("nothing was changed: this kernel cannot mount vfat"),
            "{}",
            dry.stderr
        );
    }
    assert_eq!(head(), before);
}

#[test]
fn a_disk_in_use_is_refused_even_with_wipe() {
    if !is_root("attaching and mounting disks") {
        return;
    }
    let root = Root::new("ext4");
    let reference = image(root.dir.path(), 1);
    // The file is behind a loop device, which is mounted.
    let device = tool("findmnt", ["-n", "-o", "SOURCE", root.mount().to_str().unwrap()]);
    let device = device.trim();
    let refused = install(root.dir.path(), ["to-disk", "--wipe", device, &reference]).expect(1);
    let wanted = format!("it is in use: mounted at {}", root.mount().display());
    assert!(refused.stderr.contains(&wanted), "{}", refused.stderr);
    let file = root.path("fs.img").display().to_string();
    let refused = install(root.dir.path(), ["to-disk", "--wipe", &file, &reference]).expect(1);
    assert!(refused.stderr.contains("part of loop"), "{}", refused.stderr);
}

#[test]
fn a_file_is_installed_to_or_refused_with_the_reason_before_it_is_touched() {
    let dir = scratch();
    let disk = disk(dir.path(), 2 << 30);
    let reference = image(dir.path(), 1);
    let before = loops();
    let ran = install(
        dir.path(),
        ["to-disk", "--json", "--allow-missing-verity", &disk, &reference],
    );
    if knows("vfat") && rustix::process::geteuid().is_root() {
        let done = ran.expect(0).json();
        assert_eq!(done["partitions"][0]["role"], "esp");
        let table = tool("sfdisk", ["--json", &disk]);
        let table: Value = serde_json::from_str(&table).unwrap();
        assert_eq!(table["partitiontable"]["label"], "gpt");
        let again = install(dir.path(), ["to-disk", "--allow-missing-verity", &disk, &reference]).expect(1);
        assert!(again.stderr.contains("--wipe"), "{}", again.stderr);
        install(
            dir.path(),
            ["to-disk", "--wipe", "--allow-missing-verity", &disk, &reference],
        )
        .expect(0);
    } else {
        let refused = ran.expect(1);
        assert!(refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
        assert_eq!(tool("wipefs", ["--no-act", &disk]), "");
    }
    assert_eq!(loops(), before);
}

#[test]
fn wrong_requests_are_told_before_anything_is_looked_at() {
    let dir = scratch();
    let small = disk(dir.path(), 100 << 20);
    let reference = image(dir.path(), 1);
    let ran = |args: &[&str], code| run(dir.path(), args).expect(code).stderr;
    let to_disk = |more: &[&str], code| ran(&[&["install", "to-disk", &small, &reference], more].concat(), code);
    assert!(to_disk(&[], 4).contains("bytes needed, 104857600 free"));
    assert!(to_disk(&["--karg", "a b"], 2).contains("more than one argument"));
    assert!(to_disk(&["--esp-size", "1X"], 2).contains("no size"));
    assert!(to_disk(&["--esp-size", "10M"], 2).contains("too few"));
    assert!(to_disk(&["--filesystem", "xfs"], 2).contains("ext4 or btrfs"));
    assert!(to_disk(&["--root-ssh-authorized-keys", "/no/such"], 2).contains("no such file"));
    assert!(to_disk(&["--source-imgref", "oci:/x"], 2).contains("cannot be used with"));
    assert!(ran(&["install", "to-disk", &small], 2).contains("IMAGE"));
    assert!(ran(&["--sysroot", "/x", "install", "to-disk", &small, &reference], 2).contains("leave --sysroot out"));
    assert!(ran(&["install", "to-disk", "/no/such/disk", &reference], 1).contains("/no/such/disk"));
    assert!(
        ran(&["install", "to-disk", dir.path().to_str().unwrap(), &reference], 1).contains("neither a block device")
    );
}

#[test]
fn a_wrong_image_costs_nobody_a_disk() {
    if !is_root("a place to install to") {
        return;
    }
    let root = Root::new("ext4");
    let missing = format!("oci:{}/none:os", root.dir.path().display());
    root.install(&missing, ["--allow-missing-verity"]).expect(5);
    assert_eq!(
        list(&root.mount()).iter().map(|path| name(path)).collect::<Vec<_>>(),
        ["lost+found"]
    );
}
