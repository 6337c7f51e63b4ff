//! Application images that an OS version binds: in the store before it is staged, gone after it.

use crate::common::layout::{How, Image, Layer, base, noise};
use crate::common::registry::Registry;
use crate::common::{Cfs, scratch};

fn app(registry: &Registry, name: &str, seed: u64) -> (String, String) {
    let layer = Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/app", noise(seed, 40_000));
    let image = Image::new("1").layer(layer, How::Gzip).finish();
    (image.push(registry, name, "1"), image.digest())
}

/// An OS whose version `n` binds what the quadlet files say; those in folders are there without being bound.
fn os(registry: &Registry, n: u32, files: &[(&str, String)]) -> String {
    let mut layer = Layer::default().dirs(&[
        "usr",
        "usr/lib",
        "usr/lib/bootc",
        "usr/lib/bootc/bound-images.d",
        "usr/lib/cfs-update",
        "usr/lib/cfs-update/bound-images.d",
        "usr/share",
        "usr/share/containers",
        "usr/share/containers/systemd",
    ]);
    for (name, text) in files {
        let path = format!("usr/share/containers/systemd/{name}");
        layer = layer.file(&path, text);
        if let Some((folder, _)) = name.split_once('/') {
            layer = layer.dirs(&[&format!("usr/share/containers/systemd/{folder}")]);
            continue;
        }
        let folder = if name.ends_with(".image") {
            "bootc"
        } else {
            "cfs-update"
        };
        layer = layer.symlink(&format!("usr/lib/{folder}/bound-images.d/{name}"), &format!("/{path}"));
    }
    let image = Image::new(&n.to_string())
        .layer(base(&n.to_string(), "kernel"), How::Gzip)
        .layer(layer, How::Gzip);
    image.finish().push(registry, "os", "stable")
}

fn names(cfs: &Cfs) -> String {
    cfs.run(["image", "ls", "--all", "--json"]).expect(0).stdout
}

#[test]
fn bound_images_come_before_the_system_and_go_after_it() {
    let dir = scratch();
    let registry = Registry::start();
    let (one, digest) = app(&registry, "one", 1);
    let (two, _) = app(&registry, "two", 2);
    let container = |image: &str| format!("[Unit]\nDescription=x\n[Container]\nImage={image}\n");
    let from = os(
        &registry,
        1,
        &[
            ("one.container", container(&one)),
            ("two.image", format!("[Image]\nImage={two}\n")),
        ],
    );
    let cfs = Cfs::new(dir.path());
    let told = cfs.run(["switch", &from]).expect(0);
    assert!(
        told.stderr.contains(&format!("one.container binds {one}")),
        "{}",
        told.stderr
    );
    cfs.fsck();
    assert!(names(&cfs).contains(&digest) && names(&cfs).contains(&two));
    // podman is shown them, by their own names; a collection leaves them alone.
    cfs.run(["gc"]).expect(0);
    let told = cfs.run(["image", "expose", "--json"]).expect(0).json();
    let shown = told["images"].to_string();
    assert!(shown.contains(&one) && shown.contains(&two), "{shown}");
    cfs.run(["image", "rm", &one]).expect(2);

    // The next version binds one of them; the version after that none. Two deployments stay.
    os(&registry, 2, &[("one.container", container(&one))]);
    let before = registry
        .requests()
        .iter()
        .filter(|line| line.contains("/v2/one/blobs/") && !line.starts_with("HEAD"))
        .count();
    cfs.run(["upgrade"]).expect(0);
    let after = registry
        .requests()
        .iter()
        .filter(|line| line.contains("/v2/one/blobs/") && !line.starts_with("HEAD"))
        .count();
    assert!(after <= before + 1, "its layers are here: {:?}", registry.requests());
    assert!(names(&cfs).contains(&two), "the deployment to go back to needs it");
    os(&registry, 3, &[]);
    cfs.run(["upgrade"]).expect(0);
    cfs.run(["gc"]).expect(0);
    assert!(
        names(&cfs).contains(&one) && !names(&cfs).contains(&two),
        "{}",
        names(&cfs)
    );
    os(&registry, 4, &[]);
    cfs.run(["upgrade"]).expect(0);
    let told = cfs.run(["gc", "--json"]).expect(0).json();
    assert!(!told["objects"].as_array().unwrap().is_empty());
    assert!(!names(&cfs).contains(&digest), "{}", names(&cfs));
    cfs.fsck();
}

#[test]
fn a_quadlet_may_name_another_one_and_what_is_bound_by_digest_is_asked_for_once() {
    let dir = scratch();
    let registry = Registry::start();
    let (one, digest) = app(&registry, "one", 1);
    let (two, _) = app(&registry, "two", 2);
    let pinned = format!("{}@{digest}", one.trim_end_matches(":1"));
    let files = [
        ("pinned.container", format!("[Container]\nImage=\\\n    {pinned}\n")),
        ("two.container", "[Container]\nImage=two.image\n".into()),
        ("two.image", format!("[Image]\nImage={two}\n")),
    ];
    let from = os(&registry, 1, &files);
    let cfs = Cfs::new(dir.path());
    let told = cfs.run(["switch", &from]).expect(0);
    for said in [
        format!("two.container binds {two}"),
        format!("pinned.container binds {pinned}"),
    ] {
        assert!(told.stderr.contains(&said), "{}", told.stderr);
    }
    let asked = || {
        registry
            .requests()
            .iter()
            .filter(|line| line.contains("/v2/one/"))
            .count()
    };
    let before = asked();
    os(&registry, 2, &files);
    cfs.run(["upgrade"]).expect(0);
    assert_eq!(asked(), before, "it is here, and means the same for ever");
    cfs.fsck();
}

#[test]
fn what_is_bound_is_what_quadlet_runs_with_drop_ins_and_folders_below() {
    let dir = scratch();
    let registry = Registry::start();
    let (old, _) = app(&registry, "old", 1);
    let (new, digest) = app(&registry, "new", 2);
    let (other, _) = app(&registry, "other", 3);
    let container = |image: &str| format!("[Container]\nImage={image}\n");
    let files = [
        ("a-x.container", container(&old)),
        ("a-x.container.d/10.conf", container(&new)),
        ("a-.container.d/05.conf", container(&other)),
        ("b.container", container("b.image")),
        ("sub/b.image", format!("[Image]\nImage={old}\n")),
        ("image.d/1.conf", "[Image]\nImage=\n".into()),
        ("b.image.d/2.conf", format!("[Image]\nImage={other}\n")),
    ];
    let cfs = Cfs::new(dir.path());
    let told = cfs.run(["switch", &os(&registry, 1, &files)]).expect(0);
    for said in [
        format!("a-x.container binds {new}"),
        format!("b.container binds {other}"),
    ] {
        assert!(told.stderr.contains(&said), "{}", told.stderr);
    }
    assert!(
        names(&cfs).contains(&digest) && !names(&cfs).contains(&old),
        "{}",
        names(&cfs)
    );
    // A drop-in takes the image away: nothing is left out in silence.
    let emptied = [
        ("a.container", container(&old)),
        ("a.container.d/1.conf", container("")),
    ];
    let told = cfs.run(["switch", &os(&registry, 2, &emptied)]).expect(1);
    assert!(told.stderr.contains("has no Image= in [Container]"), "{}", told.stderr);
    let wrong = [
        ("a.container", container(&old)),
        ("container.d/1.conf", container("quay.io/%i:1")),
    ];
    let told = cfs.run(["switch", &os(&registry, 2, &wrong)]).expect(1);
    assert!(
        told.stderr.contains("container.d/1.conf: names quay.io/%i:1"),
        "{}",
        told.stderr
    );
}

#[test]
fn a_system_whose_bound_images_cannot_be_had_is_not_staged() {
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::new(dir.path());
    let gone = registry.reference("gone:1");
    for (name, text, code, why) in [
        ("a.container", format!("[Container]\nImage={gone}\n"), 5, "gone"),
        (
            "a.container",
            "[Container]\nImage=quay.io/%i:1\n".into(),
            1,
            "specifiers",
        ),
        (
            "a.container",
            "[Image]\nImage=quay.io/a:1\n".into(),
            1,
            "has no Image= in [Container]",
        ),
        ("a.image", "[Image]\nImage=oci:/srv/x\n".into(), 1, "in no registry"),
        ("a.volume", "[Volume]\n".into(), 1, "no .image or .container"),
        (
            "a.container",
            "[Container]\nImage=none.image\n".into(),
            1,
            "not among the image's quadlets",
        ),
        (
            "a.container",
            "[Container]\nImage=x.build\n".into(),
            1,
            "built on the host",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/a:1\nAuthFile=/x\n".into(),
            1,
            "AuthFile",
        ),
        (
            "a.image",
            format!(
                "[Image]\nImage=127.0.0.1:1/{}:1@sha256:{}\n",
                "team-x/".repeat(16) + "app",
                "0".repeat(64)
            ),
            1,
            "too long",
        ),
    ] {
        let from = os(&registry, 1, &[(name, text)]);
        let told = cfs.run(["switch", &from]).expect(code);
        assert!(told.stderr.contains(why), "{name}: {}", told.stderr);
        assert!(cfs.deployments().is_empty() && cfs.entries().is_empty());
    }
}

#[test]
fn what_a_downloaded_system_binds_is_kept_with_it() {
    let dir = scratch();
    let registry = Registry::start();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &os(&registry, 1, &[])]).expect(0);
    let (one, digest) = app(&registry, "one", 1);
    os(&registry, 2, &[("one.image", format!("[Image]\nImage={one}\n"))]);
    cfs.run(["upgrade", "--download-only"]).expect(0);
    cfs.run(["gc"]).expect(0);
    assert!(names(&cfs).contains(&digest));
    drop(registry);
    cfs.run(["upgrade", "--from-downloaded"]).expect(0);
    cfs.run(["gc"]).expect(0);
    assert!(names(&cfs).contains(&digest) && !names(&cfs).contains("downloaded"));
    cfs.fsck();
    cfs.run(["rollback"]).expect(0);
    cfs.run(["delete", "staged"]).expect(2);
    cfs.run(["delete", "rollback"]).expect(0);
    assert!(!names(&cfs).contains(&digest), "it goes with the system that binds it");
}
