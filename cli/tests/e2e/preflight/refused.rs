//! What cannot fit is refused before its first byte, with the numbers and what would help.

use super::*;

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
