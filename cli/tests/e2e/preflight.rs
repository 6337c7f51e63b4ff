//! Too little space: exit 4 before the first byte, nothing changed, the numbers and what would help.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::disk::Tmpfs;
use crate::common::layout::{Finished, How, Image, Layer, base, digest, noise, small};
use crate::common::registry::Registry;
use crate::common::{Cfs, is_root, list, name, scratch};

/// A layer blob of the image is asked for by GET.
fn fetched(registry: &Registry, image: &Finished) -> bool {
    // The last blob is the config.
    let layers = &image.blobs[..image.blobs.len() - 1];
    layers
        .iter()
        .any(|blob| !registry.blob_answers(&digest(blob)).is_empty())
}

fn objects(cfs: &Cfs) -> Vec<PathBuf> {
    let folders = list(&cfs.sysroot().join("composefs/objects"));
    folders.iter().flat_map(|folder| list(folder)).collect()
}

/// The number before `word` in what was said.
fn number(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap().trim_end();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number before {word:?} in {text}"))
}

#[test]
fn an_image_that_no_disk_holds_is_refused_without_a_byte_of_it_by_everybody() {
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::unprivileged(dir.path());
    let one = small(1, "a", 2, 2000).finish();
    cfs.run(["switch", &one.push(&registry, "os", "1")]).expect(0);
    let before = (objects(&cfs), cfs.deployments(), cfs.entries().len());

    // 999 TiB, as the manifest has it.
    let two = small(2, "b", 2, 2000).finish();
    let mut manifest: Value = serde_json::from_slice(&two.manifest).unwrap();
    manifest["layers"][1]["size"] = (999_u64 << 40).into();
    for blob in &two.blobs {
        registry.put_blob("os", blob);
    }
    let layout = dir.path().join("oci");
    let huge = Finished {
        manifest: manifest.to_string().into_bytes(),
        blobs: two.blobs.clone(),
    };
    let reference = huge.layout(&layout, "os");
    for command in ["switch", "image pull"] {
        let args = command.split(' ').chain([reference.as_str()]);
        let ran = cfs.run(args).expect(4);
        let path = cfs.sysroot().join("composefs");
        assert!(
            ran.stderr.contains(&format!("{}: ", path.display())) && ran.stderr.contains("nothing was changed"),
            "{}",
            ran.stderr
        );
        assert!(number(&ran.stderr, "bytes needed") > 998 << 40);
        assert!(number(&ran.stderr, "free;") > 0);
        assert_eq!(
            (objects(&cfs), cfs.deployments(), cfs.entries().len()),
            before,
            "{command}"
        );
    }
    let told = cfs.run(["switch", "--dry-run", "--json", &reference]).expect(0).json();
    assert_eq!(told["fits"], false);
    assert!(told["store"]["bytesAtLeast"].as_u64().unwrap() > 998 << 40);
    let told = cfs.run(["switch", "--dry-run", &reference]).expect(0).stdout;
    assert!(told.contains("Too little: there is not enough space"), "{told}");
    let failure = cfs.run(["switch", "--json", &reference]).expect(4);
    let failure: Value = serde_json::from_str(failure.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(failure["error"]["kind"], "space");
    cfs.fsck();
}

#[test]
fn a_first_image_that_cannot_fit_is_refused_before_its_first_layer() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::new(dir.path());
    let disk = Tmpfs::mount(cfs.sysroot(), 4);
    let image = small(1, "a", 10, 600_000).finish();
    let reference = image.push(&registry, "os", "1");
    for command in ["switch", "image pull"] {
        let ran = cfs.run(command.split(' ').chain([reference.as_str()])).expect(4);
        assert!(
            ran.stderr.contains("`--ignore-space` tries it all the same"),
            "{}",
            ran.stderr
        );
        assert!(number(&ran.stderr, "bytes needed") > 5_900_000, "{}", ran.stderr);
        assert!(!fetched(&registry, &image));
        assert_eq!(objects(&cfs), Vec::<PathBuf>::new());
    }
    // The way round: then the disk becomes full, and what was written goes again.
    let before = disk.free();
    let ran = cfs.run(["switch", "--ignore-space", &reference]).expect(4);
    assert!(fetched(&registry, &image));
    assert!(
        ran.stderr.contains("No space left on device") && ran.stderr.contains("was removed again"),
        "{}",
        ran.stderr
    );
    assert!(number(&ran.stderr, "bytes and") + 200_000 > before, "{}", ran.stderr);
    assert_eq!(objects(&cfs), Vec::<PathBuf>::new());
    assert!(cfs.entries().is_empty() && cfs.deployments().is_empty());
    disk.resize(60);
    cfs.run(["switch", &reference]).expect(0);
    cfs.fsck();
}

#[test]
fn a_disk_that_becomes_full_when_the_deployment_is_recorded_is_given_back_everything() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let disk = Tmpfs::mount(cfs.sysroot(), 60);
    let layout = dir.path().join("oci");
    cfs.run(["switch", &small(1, "a", 2, 2000).finish().layout(&layout, "os")])
        .expect(0);
    let before = (objects(&cfs), cfs.deployments(), cfs.entries().len());
    // It fits into the store, and once more in /etc it does not.
    let etc = Layer::default().dirs(&["etc"]).file("etc/large", noise(3, 6_000_000));
    let image = Image::new("2").layer(base("2", "b"), How::Gzip).layer(etc, How::Gzip);
    image.finish().layout(&layout, "os");
    disk.leave(8_000_000);
    let free = disk.free();
    let ran = cfs.run(["upgrade"]).expect(4);
    assert!(
        ran.stderr.contains("state/deploy") && ran.stderr.contains("was removed again"),
        "{}",
        ran.stderr
    );
    assert_eq!((objects(&cfs), cfs.deployments(), cfs.entries().len()), before);
    assert!(disk.free() + 100_000 > free, "{} of {free}", disk.free());
    cfs.fsck();
    disk.resize(60);
    cfs.run(["upgrade"]).expect(0);
    cfs.fsck();
}

#[test]
fn where_not_a_byte_is_free_delete_and_gc_make_room_all_the_same() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let disk = Tmpfs::mount(cfs.sysroot(), 60);
    let layout = dir.path().join("oci");
    let mut first = String::new();
    for version in [1, 2] {
        let reference = small(version, "a", 4, 500_000).finish().layout(&layout, "os");
        cfs.run(["switch", &reference]).expect(0);
        if first.is_empty() {
            first = cfs.deployments().remove(0);
        }
    }
    // Its text tells who has it, and is not needed.
    fs::remove_file(cfs.sysroot().join("state/cfs-update/lock")).unwrap();
    disk.leave(0);
    assert_eq!(disk.free(), 0);
    cfs.run(["status"]).expect(0);
    cfs.run(["delete", &first]).expect(0);
    cfs.run(["gc"]).expect(0);
    assert!(disk.free() > 1_000_000, "{}", disk.free());
    cfs.fsck();
}

#[test]
fn the_setting_turns_the_comparison_off() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::new(dir.path());
    let _disk = Tmpfs::mount(cfs.sysroot(), 4);
    let image = small(1, "a", 10, 600_000).finish();
    let reference = image.push(&registry, "os", "1");
    let config = dir.path().join("root/etc/cfs-update");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), "[store]\ncheck-space = false\n").unwrap();
    let root = dir.path().join("root");
    cfs.run(["--config-root", root.to_str().unwrap(), "switch", &reference])
        .expect(4);
    assert!(fetched(&registry, &image), "it was tried");
}

#[test]
fn gc_frees_what_the_refusal_said_and_then_the_same_command_succeeds() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::new(dir.path());
    let disk = Tmpfs::mount(cfs.sysroot(), 60);
    let one = small(1, "a", 4, 100_000).finish();
    cfs.run(["switch", &one.push(&registry, "os", "1")]).expect(0);
    // An image that nobody wants any more.
    let app = Layer::default().dirs(&["usr"]).file("usr/app", noise(9, 8_000_000));
    let app = Image::new("1")
        .layer(app, How::Gzip)
        .finish()
        .push(&registry, "app", "1");
    cfs.run(["image", "pull", &app]).expect(0);
    cfs.run(["image", "rm", &app]).expect(0);

    let two = Image::new("2")
        .layer(base("2", "a"), How::Gzip)
        .layer(
            Layer::default().dirs(&["usr"]).file("usr/big", noise(10, 16_000_000)),
            How::Gzip,
        )
        .finish();
    two.push(&registry, "os", "1");
    disk.leave(7_000_000);
    let before = (objects(&cfs), cfs.deployments(), cfs.entries().len());
    let ran = cfs.run(["upgrade"]).expect(4);
    assert!(!fetched(&registry, &two), "{}", ran.stderr);
    assert_eq!((objects(&cfs), cfs.deployments(), cfs.entries().len()), before);
    let promised = number(ran.stderr.split("would free").nth(1).unwrap(), "bytes");
    assert!((8_000_000..8_200_000).contains(&promised), "{}", ran.stderr);

    let freed = disk.free();
    let told = cfs.run(["gc", "--json"]).expect(0).json();
    assert_eq!(told["bytes"].as_u64(), Some(promised));
    assert!(disk.free() - freed >= 8_000_000);
    // Nine million bytes more, as an administrator would find them.
    disk.leave(disk.free() + 4_000_000);
    cfs.run(["upgrade"]).expect(0);
    cfs.fsck();
}

#[test]
fn a_refusal_names_what_is_kept_and_could_go() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    cfs.run(["switch", &small(1, "a", 2, 2000).finish().layout(&layout, "os")])
        .expect(0);
    let first = cfs.entries()[0].digest().to_owned();
    small(2, "b", 2, 2000).finish().layout(&layout, "os");
    cfs.run(["upgrade"]).expect(0);
    cfs.run(["pin", "rollback"]).expect(0);
    let app = Layer::default().dirs(&["usr"]).file("usr/app", noise(9, 80_000));
    let app = Image::new("1")
        .layer(app, How::Gzip)
        .finish()
        .layout(&dir.path().join("app"), "app");
    cfs.run(["image", "pull", &app]).expect(0);
    let mut three = small(3, "c", 2, 2000).finish();
    let mut manifest: Value = serde_json::from_slice(&three.manifest).unwrap();
    manifest["layers"][1]["size"] = (999_u64 << 40).into();
    three.manifest = manifest.to_string().into_bytes();
    three.layout(&layout, "os");
    let ran = cfs.run(["upgrade"]).expect(4);
    let pinned = format!("`cfs-update delete` of {} (pinned)", &first[..12]);
    for said in [
        "`cfs-update gc` would free nothing there",
        &pinned,
        "`cfs-update image rm` of 1 pulled image(s)",
    ] {
        assert!(ran.stderr.contains(said), "'{said}' is not in {}", ran.stderr);
    }
}

#[test]
fn a_bound_image_that_does_not_fit_stages_nothing_and_is_not_fetched() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::new(dir.path());
    let disk = Tmpfs::mount(cfs.sysroot(), 14);
    let app = |seed: u64| {
        let layer = Layer::default().dirs(&["usr"]).file("usr/app", noise(seed, 9_000_000));
        Image::new("1").layer(layer, How::Gzip).finish()
    };
    // Each of the two fits, both do not.
    let apps = [app(1), app(2)];
    let names = [apps[0].push(&registry, "one", "1"), apps[1].push(&registry, "two", "1")];
    let folder = "usr/lib/cfs-update/bound-images.d";
    let mut binds = Layer::default().dirs(&["usr", "usr/lib", "usr/lib/cfs-update", folder]);
    for (n, image) in names.iter().enumerate() {
        binds = binds.file(
            &format!("{folder}/{n}.container"),
            format!("[Container]\nImage={image}\n"),
        );
    }
    let os = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .layer(binds, How::Gzip)
        .finish();
    let reference = os.push(&registry, "os", "1");
    let before = disk.free();
    let ran = cfs.run(["switch", &reference]).expect(4);
    assert!(number(&ran.stderr, "bytes needed") > 17_000_000, "{}", ran.stderr);
    assert!(!apps.iter().any(|app| fetched(&registry, app)), "{}", ran.stderr);
    assert!(cfs.entries().is_empty() && cfs.deployments().is_empty());
    assert!(disk.free() + 300_000 > before, "{} of {before}", disk.free());
    disk.resize(60);
    cfs.run(["switch", &reference]).expect(0);
    cfs.fsck();

    // The next version is expected to bind the same.
    apps[0].push(&registry, "one", "1");
    let other = app(3);
    other.push(&registry, "two", "1");
    small(2, "b", 1, 1000).finish().push(&registry, "os", "1");
    let told = cfs.run(["upgrade", "--dry-run", "--json"]).expect(0).json();
    let bound = told["boundImages"].as_array().unwrap();
    assert_eq!(bound.len(), 2, "{told}");
    let how: Vec<_> = bound
        .iter()
        .map(|image| image["layers"][0]["how"].as_str().unwrap())
        .collect();
    assert_eq!(how, ["here", "whole"], "{told}");
    assert!(told["bytes"].as_u64().unwrap() > other.blobs[0].len() as u64);
    let told = cfs.run(["upgrade", "--dry-run"]).expect(0).stdout;
    assert!(told.contains(&format!("Binds: {}", names[1])), "{told}");
}

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

#[test]
fn an_installation_that_cannot_fit_leaves_the_file_system_as_empty_as_it_was() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let root = dir.path().join("root");
    let _disk = Tmpfs::mount(&root, 4);
    let registry = Registry::start();
    let image = small(1, "a", 10, 600_000).finish();
    let reference = image.push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cfs-update"));
    let args = [
        "install",
        "to-filesystem",
        "--root-mount-spec",
        "LABEL=x",
        "--allow-missing-verity",
    ];
    command.args(args).args(["--boot", root.to_str().unwrap()]);
    let ran = crate::common::Ran::from(command.arg(&root).arg(&reference).output().unwrap());
    let ran = ran.expect(4);
    assert!(number(&ran.stderr, "bytes needed") > 5_900_000, "{}", ran.stderr);
    assert!(!fetched(&registry, &image));
    let left: Vec<_> = list(&root).iter().map(|path| name(path)).collect();
    assert_eq!(left, Vec::<String>::new(), "{}", cfs.sysroot().display());
}
