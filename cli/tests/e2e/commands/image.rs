//! `image`: names, and digests that are the same wherever they are computed.

use super::*;
use crate::common::is_root;

#[test]
fn a_name_that_an_image_cannot_be_kept_by_is_refused_before_anybody_is_asked_for_it() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let path = "team-x/".repeat(20);
    // Nobody listens there, which would be 5.
    for extra in [&[][..], &["--dry-run"]] {
        let command = ["image", "pull", &format!("127.0.0.1:1/{path}app:{}", "t".repeat(100))];
        let told = cfs.run(command.iter().chain(extra)).expect(2);
        assert!(told.stderr.contains("too long: 255 bytes at most"), "{}", told.stderr);
    }
    assert!(!cfs.sysroot().join("composefs").exists(), "nothing is left of it");
}

#[test]
fn a_digest_needs_no_sysroot_and_is_that_of_the_pulled_and_of_the_deployed_image() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = publish(dir.path(), 1);
    let nowhere = cfs.on(&dir.path().join("nowhere"));
    let digest = |more: &[&str]| {
        let ran = nowhere.run([&["image", "digest", &reference], more].concat()).expect(0);
        assert_eq!(ran.stdout.lines().count(), 1);
        ran.stdout.trim().to_owned()
    };
    let (container, boot) = (digest(&[]), digest(&["--boot"]));
    assert_eq!(list(&dir.path().join("nowhere")).len(), 0);
    let pulled = cfs.run(["image", "pull", "--json", &reference]).expect(0).json();
    assert_eq!(pulled["digest"], container);
    let deployed = cfs.run(["switch", "--json", &reference]).expect(0).json();
    assert_eq!(deployed["deployment"], boot);
    assert_eq!(digest(&["--boot", "--algorithm", "sha512"]).len(), 128);

    let images = cfs.run(["image", "ls", "--json"]).expect(0).json();
    assert_eq!(
        (&images[0]["name"], &images[0]["digest"]),
        (&json!(reference), &json!(container))
    );
    let from = |source: &str| cfs.run(["image", "dump", source]).expect(0).stdout;
    assert_eq!(from(&container), from(&reference), "of the store and of the reference");
    assert!(from(&container).contains("/usr/bin/app-0 3000 "));
    let summary = cfs.run(["image", "inspect", "--json", &container]).expect(0).json();
    assert_eq!(
        (&summary["digest"], &summary["formatVersion"]),
        (&json!(container), &json!(1))
    );
    let manifest = cfs.run(["image", "inspect", "--json", &reference]).expect(0).json();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["bootDigest"], boot);
}

#[test]
fn a_boot_digest_follows_the_policy_in_the_image_also_where_it_is_a_hard_link() {
    let dir = scratch();
    let contexts = format!(
        "{}\n/usr/lib(/.*)?\tsystem_u:object_r:bin_t:s0\n",
        "# a comment\n".repeat(20)
    );
    let policy = || {
        Layer::default()
            .dirs(&[
                "etc",
                "etc/selinux",
                "etc/selinux/test",
                "etc/selinux/test/contexts",
                "etc/selinux/test/contexts/files",
            ])
            .file("etc/selinux/config", "SELINUXTYPE=test\n")
    };
    let files = "etc/selinux/test/contexts/files/file_contexts";
    let plain = policy().file(files, &contexts);
    let linked = policy()
        .file("usr/contexts", &contexts)
        .hard_link(files, "usr/contexts");
    let mut digests = Vec::new();
    for (tag, layer) in [("plain", plain), ("linked", linked)] {
        let base = layout::base("1", "kernel");
        let image = layout::Image::new("1")
            .layer(base, How::Gzip)
            .layer(layer, How::None)
            .finish();
        let reference = image.layout(&dir.path().join(tag), tag);
        let nowhere = Cfs::new(&dir.path().join("nowhere"));
        let digest = nowhere
            .run(["-q", "image", "digest", "--boot", &reference])
            .expect(0)
            .stdout;
        let cfs = Cfs::new(&dir.path().join(format!("{tag}-sysroot")));
        let deployed = cfs.run(["switch", "--json", &reference]).expect(0).json();
        assert_eq!(deployed["deployment"], digest.trim());
        let container = nowhere.run(["-q", "image", "digest", &reference]).expect(0).stdout;
        assert_ne!(container, digest, "labels make a difference");
        digests.push(digest);
    }
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn a_mounted_container_image_has_the_digests_of_its_reference() {
    if !is_root("mounting") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = publish(dir.path(), 1);
    let digest = |more: &[&str]| {
        let ran = cfs.run([&["-q", "image", "digest"], more].concat()).expect(0);
        ran.stdout.trim().to_owned()
    };
    let (container, boot) = (digest(&[&reference]), digest(&["--boot", &reference]));
    cfs.run(["image", "pull", &reference]).expect(0);
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    cfs.run(["image", "mount", &reference, at]).expect(0);
    let found = std::panic::catch_unwind(|| (digest(&["--hard-links", at]), digest(&["--boot", at])));
    tool("umount", [at]);
    assert_eq!(found.unwrap(), (container, boot));
}

#[test]
fn a_name_that_is_removed_where_there_is_no_repository_makes_none() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["image", "rm", "quay.io/org/app:1"]).expect(2);
    assert!(ran.stderr.contains("is not in the store"), "{}", ran.stderr);
    assert!(!cfs.sysroot().join("composefs").exists());
}
