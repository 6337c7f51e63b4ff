//! A disk that is or becomes full: what was written goes again, and there is a way out.

use super::*;

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
