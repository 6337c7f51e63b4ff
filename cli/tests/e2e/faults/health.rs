//! Health checks on a machine where something else is wrong.

use super::*;

/// `health check` in this configuration root, which has one check and, as `by_systemd` says, systemd-bless-boot on a
/// boot that is counted.
fn judged(cfs: &Cfs, root: &Path, check: &str, by_systemd: bool) -> Ran {
    let _ = fs::remove_dir_all(root);
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("etc/cfs-update/health.d/10-check", &format!("#!/bin/sh\n{check}\n"));
    write("etc/cfs-update/config.toml", "[health]\nattempts = 1\n");
    write(
        "etc/cfs-update/config.toml.d/20-typing-error.toml",
        "[boot]\ntrys = 3\n",
    );
    if by_systemd {
        write("usr/lib/systemd/systemd-bless-boot", "");
        write(
            "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
            "",
        );
    }
    cfs.run(["--config-root", root.to_str().unwrap(), "health", "check"])
}

#[test]
fn checks_decide_whether_a_boot_was_good_and_neither_a_damaged_store_nor_a_typing_error() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let root = dir.path().join("config");
    cfs.run([
        "switch",
        &small(1, "a", 2, 2000).finish().layout(&dir.path().join("oci"), "os"),
    ])
    .expect(0);
    let ran = judged(&cfs, &root, "exit 0", true);
    says(&ran.expect(0), &["20-typing-error.toml"]);
    fs::write(cfs.sysroot().join("composefs/meta.json"), "{").unwrap();
    let ran = judged(&cfs, &root, "exit 0", true).expect(0);
    assert!(
        ran.stdout.contains("nothing else could be done") && ran.stdout.contains("meta.json"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("This boot is good"), "{}", ran.stdout);
    // Nobody else would mark it, or nobody should.
    judged(&cfs, &root, "exit 0", false).expect(1);
    judged(&cfs, &root, "exit 1", true).expect(1);
}
