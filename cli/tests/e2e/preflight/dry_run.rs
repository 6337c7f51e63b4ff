//! What `--dry-run` says of space and of what would be changed.

use super::*;

#[test]
fn a_dry_run_says_what_is_written_where_and_what_is_free() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let disk = Tmpfs::mount(cfs.sysroot(), 40);
    let reference = small(1, "a", 4, 100_000).finish().layout(&layout, "os");
    let told = cfs.run(["switch", "--dry-run", "--json", &reference]).expect(0).json();
    assert!(!cfs.sysroot().join("composefs").exists(), "nothing was made");
    assert_eq!(told["store"]["bytesFree"].as_u64(), Some(disk.free()));
    assert!(told["store"]["bytesAtLeast"].as_u64().unwrap() > 400_000);
    assert_eq!((&told["fits"], &told["boot"]), (&Value::from(true), &Value::Null));
    cfs.run(["switch", &reference]).expect(0);
    let boot = Tmpfs::mount(&dir.path().join("boot"), 1);
    let copied = std::process::Command::new("cp")
        .args(["-a", "--", cfs.sysroot().join("boot/.").to_str().unwrap()])
        .arg(dir.path().join("boot"))
        .status();
    assert!(copied.unwrap().success());
    small(2, "b", 4, 100_000).finish().layout(&layout, "os");
    let on = dir.path().join("boot");
    let at = ["--boot", on.to_str().unwrap()];
    let told = cfs
        .run(["upgrade", "--dry-run", "--json"].iter().chain(&at))
        .expect(0)
        .json();
    // Kernel and initrd of the present deployment: two and three blocks, six beside them.
    assert_eq!(told["boot"]["bytesAbout"].as_u64(), Some((2 + 3 + 6) * 4096));
    assert_eq!(told["boot"]["bytesFree"].as_u64(), Some(boot.free()));
    let shown = cfs.run(["upgrade", "--dry-run"].iter().chain(&at)).expect(0).stdout;
    for line in [
        "Store: ",
        "$BOOT: up to 44.00 KiB",
        "are free; nothing if the kernel stays",
    ] {
        assert!(shown.contains(line), "'{line}' is not in {shown}");
    }

    // Too little there is said beforehand, and refused when it is known.
    boot.leave(20_000);
    let ran = cfs.run(["upgrade"].iter().chain(&at)).expect(4);
    assert!(
        ran.stderr.contains("an image with another kernel cannot be staged"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains(&format!("{}: ", on.display())), "{}", ran.stderr);
    assert_eq!(cfs.deployments().len(), 1);
    boot.resize(8);
    cfs.run(["upgrade"].iter().chain(&at)).expect(0);
}

#[test]
fn a_dry_run_of_what_was_downloaded_says_what_will_be_other_than_it_is() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let reference = small(1, "kernel", 2, 3000).finish().layout(&layout, "os");
    cfs.run(["switch", &reference]).expect(0);
    let etc = list(&cfs.sysroot().join("state/deploy")).remove(0).join("etc");
    fs::write(etc.join("app.conf"), "mine\n").unwrap();

    // One file is gone, one stays, a folder with a file and one with kernel arguments (three names) come.
    let app = || {
        Layer::default()
            .dirs(&[
                "usr",
                "usr/bin",
                "etc",
                "usr/new",
                "usr/lib",
                "usr/lib/bootc",
                "usr/lib/bootc/kargs.d",
            ])
            .file("etc/app.conf", "version = 2\n")
            .file("usr/bin/app-0", noise(1 << 32, 3000))
            .file("usr/new/file", "new")
            .file("usr/lib/bootc/kargs.d/10.toml", "kargs = [\"console=ttyS9\"]\n")
    };
    let next = |kernel: &str| {
        Image::new("2")
            .layer(base("2", kernel), How::Gzip)
            .layer(app(), How::Zstd)
            .finish()
            .layout(&layout, "os")
    };
    next("kernel");
    let before = cfs.run(["upgrade", "--dry-run"]).expect(0).stdout;
    assert!(before.contains("Changes: known when the layers are here"), "{before}");
    let json = || cfs.run(["upgrade", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(json()["changes"], Value::Null);

    cfs.run(["upgrade", "--download-only"]).expect(0);
    let told = json();
    assert_eq!((&told["bytes"], &told["fits"]), (&json!(0), &json!(true)));
    let changes = &told["changes"];
    // Changed are os-release and app.conf.
    assert_eq!(
        changes["files"],
        json!({"added": 5, "removed": 1, "changed": 2}),
        "{told}"
    );
    assert_eq!(
        (&changes["version"], &changes["kernel"]["stays"]),
        (&json!("2"), &json!(true))
    );
    assert_eq!(
        changes["kernelArguments"],
        json!({"added": ["console=ttyS9"], "removed": []})
    );
    assert_eq!(changes["softReboot"], Value::Null, "nothing of this sysroot runs");
    // The entry, and what its folder may grow by.
    assert_eq!(told["boot"]["bytesAtLeast"], 2 * 4096);
    let shown = cfs.run(["upgrade", "--dry-run"]).expect(0).stdout;
    for line in [
        "Files: 5 added, 1 removed, 2 changed\n",
        ", the one that is here\n",
        "Arguments: added: console=ttyS9\n",
        "/etc conflict: app.conf: changed here and in the image; yours stays, the image's version is app.conf.cfs-new\n",
    ] {
        assert!(shown.contains(line), "'{line}' is not in {shown}");
    }
    let done = cfs.run(["upgrade", "--from-downloaded", "--json"]).expect(0).json();
    assert_eq!(done["deployment"], changes["deployment"]);
    assert_eq!(done["etcConflicts"], changes["etcConflicts"]);

    // Layers that came otherwise are as good; another kernel takes what it takes.
    cfs.run(["image", "pull", &next("another kernel")]).expect(0);
    let told = json();
    assert_eq!(told["changes"]["kernel"]["stays"], false);
    assert!(told["boot"]["bytesAtLeast"].as_u64().unwrap() > 2 * 4096);
    let bytes = |cfs: &Cfs| -> u64 {
        let kernels = list(&cfs.sysroot().join("boot/cfs-update"));
        let files = kernels.iter().flat_map(|kernel| list(kernel));
        files
            .map(|file| fs::metadata(file).unwrap().len().div_ceil(4096) * 4096)
            .sum()
    };
    let had = bytes(&cfs);
    cfs.run(["upgrade"]).expect(0);
    // Six blocks for the entry and folders.
    assert_eq!(
        told["boot"]["bytesAtLeast"].as_u64(),
        Some(bytes(&cfs) - had + 6 * 4096)
    );
}
