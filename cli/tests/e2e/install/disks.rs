//! `install to-disk`: what is refused before a byte of the disk changes.

use super::*;

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
