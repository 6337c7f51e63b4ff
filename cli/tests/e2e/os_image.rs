//! The whole way on a real Debian from a real registry: switch, upgrade, rollback, status, and what is on disk after.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;

use crate::common::registry::Registry;
use crate::common::{Cfs, Entry, OsImage, is_root, list, name, peer, scratch, sha256_file, sha256_reader, tool};

/// The bytes of a file of a layer, by GNU tar.
fn from_layer(layer: &str, path: &str, into: &Path) -> std::path::PathBuf {
    let archive = OsImage::get().dir.join(format!("layers/{layer}.tar"));
    let to = into.to_str().unwrap();
    tool(
        "tar",
        [
            "--extract",
            "--file",
            archive.to_str().unwrap(),
            "--directory",
            to,
            "--no-same-owner",
            path,
        ],
    );
    into.join(path)
}

/// Checks that what an entry promises is there: image, objects, kernel, initrd, /etc, /var, record and signature.
#[track_caller]
fn complete(cfs: &Cfs, entry: &Entry) {
    let root = cfs.sysroot();
    let id = entry.digest();
    let image = root.join("composefs/images").join(id);
    assert!(
        fs::symlink_metadata(&image).unwrap().is_symlink(),
        "{}",
        image.display()
    );
    assert!(fs::metadata(&image).unwrap().len() > 4096);
    let deployment = root.join("state/deploy").join(id);
    assert!(deployment.join("etc/passwd").is_file());
    assert_eq!(
        fs::read_link(deployment.join("var")).unwrap(),
        Path::new("../../os/default/var")
    );
    assert!(deployment.join("var").is_dir(), "the shared /var");
    assert!(deployment.join(format!("{id}.origin")).is_file());
    assert!(deployment.join("seal.json").is_file());
    for key in ["linux", "initrd"] {
        let file = entry.get(key).unwrap();
        assert!(
            root.join("boot").join(file.trim_start_matches('/')).is_file(),
            "{key} {file}"
        );
    }
    let linux = root
        .join("boot")
        .join(entry.get("linux").unwrap().trim_start_matches('/'));
    let both = [linux.clone(), linux.with_file_name("initrd")]
        .map(|p| fs::read(p).unwrap())
        .concat();
    assert_eq!(
        name(linux.parent().unwrap()),
        sha256_reader(&mut &both[..]),
        "named by kernel and initrd"
    );
    let file = name(&entry.path);
    assert_eq!(file, format!("cfs-{:06}-{}+03-00.conf", entry.version(), &id[..12]));
    assert_eq!(entry.get("sort-key"), Some("cfs-update"));
}

#[test]
fn a_real_image_is_followed_from_version_1_to_version_2_and_back() {
    let registry = Registry::with_os();
    registry.retag("os", "1-gzip", "stable");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let os = OsImage::get();

    // --- switch, gzip
    cfs.run(["switch", &registry.reference("os:stable")]).expect(0);
    let first = cfs.entries();
    assert_eq!(first.len(), 1);
    complete(&cfs, &first[0]);
    let v1 = first[0].digest().to_owned();
    assert_eq!(cfs.deployments(), std::slice::from_ref(&v1));
    assert_eq!(
        fs::metadata(cfs.sysroot().join("composefs"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o700
    );
    let options = first[0].get("options").unwrap();
    for argument in ["console=ttyS0,115200", "panic=1", "quiet"] {
        assert!(
            options.split(' ').any(|o| o == argument),
            "{argument} of the image's kargs.d in '{options}'"
        );
    }
    assert!(options.split(' ').any(|o| o.starts_with("root=")), "{options}");

    // --- the kernel is the image's own
    let kernel = fs::read_to_string(os.dir.join("kernel.txt")).unwrap();
    for (key, prefix) in [("linux", "vmlinuz-"), ("initrd", "initrd.img-")] {
        let file = kernel.lines().find(|l| l.starts_with(prefix)).unwrap();
        let original = from_layer("4-kernel", &format!("./boot/{file}"), dir.path());
        let ours = cfs
            .sysroot()
            .join("boot")
            .join(first[0].get(key).unwrap().trim_start_matches('/'));
        assert_eq!(sha256_file(&ours), sha256_file(&original), "{key}");
    }

    // --- /etc of the deployment is the image's, and an admin changes it
    let etc = cfs.sysroot().join("state/deploy").join(&v1).join("etc");
    assert_eq!(fs::read_to_string(etc.join("site.conf")).unwrap(), "version=1\n");
    fs::write(etc.join("admin.conf"), "mine\n").unwrap();
    fs::write(etc.join("hostname"), "changed-by-admin\n").unwrap();
    fs::write(cfs.sysroot().join("state/os/default/var/data"), "kept\n").unwrap();

    // --- nothing new: one request, exit code 77
    let before = registry.requests().len();
    cfs.run(["upgrade"]).expect(77);
    let asked = registry.requests().split_off(before);
    assert_eq!(asked.len(), 1, "an unchanged image costs one request: {asked:?}");

    // --- upgrade, zstd: the tag has moved
    registry.retag("os", "2-zstd", "stable");
    cfs.run(["upgrade"]).expect(0);
    let second = cfs.entries();
    assert_eq!(second.len(), 2);
    let v2 = second[0].digest().to_owned();
    assert_ne!(v1, v2);
    assert_eq!(second[1].digest(), v1, "the old one stays");
    assert!(second[0].version() > second[1].version(), "the new one sorts first");
    complete(&cfs, &second[0]);
    complete(&cfs, &second[1]);
    assert_eq!(
        second[0].get("linux"),
        second[1].get("linux"),
        "the same kernel is there once"
    );
    assert_eq!(list(&cfs.sysroot().join("boot/cfs-update")).len(), 1);
    assert!(
        second[0].get("options").unwrap().contains("loglevel=5"),
        "the kernel arguments are the new image's"
    );
    let new = cfs.sysroot().join("state/deploy").join(&v2).join("etc");
    assert_eq!(
        fs::read_to_string(new.join("site.conf")).unwrap(),
        "version=2\n",
        "a new default arrives"
    );
    assert!(new.join("new-in-v2.conf").is_file());
    assert!(
        !new.join("removed-in-v2.conf").exists(),
        "what the image dropped and nobody changed is gone"
    );
    assert_eq!(
        fs::read_to_string(new.join("admin.conf")).unwrap(),
        "mine\n",
        "the admin's file came along"
    );
    assert_eq!(fs::read_to_string(new.join("hostname")).unwrap(), "changed-by-admin\n");
    assert_eq!(
        fs::read_to_string(new.join("../var/data")).unwrap(),
        "kept\n",
        "/var is shared"
    );
    cfs.fsck();

    // --- rollback: the previous one is the newest entry
    cfs.run(["rollback"]).expect(0);
    let third = cfs.entries();
    assert_eq!(third[0].digest(), v1);
    assert!(
        third[0].version() > second[0].version(),
        "a new generation, not an edited entry"
    );
    assert!(third.iter().any(|e| e.digest() == v2), "version 2 stays to go back to");
    complete(&cfs, &third[0]);
    cfs.fsck();
}

#[test]
fn status_tells_the_same_in_all_three_forms() {
    let registry = Registry::with_os();
    registry.retag("os", "1-zstd", "stable");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = registry.reference("os:stable");
    cfs.run(["switch", &reference]).expect(0);
    let id = cfs.entries()[0].digest().to_owned();

    let json = cfs.status();
    let text = json.to_string();
    assert!(text.contains(&id) && text.contains(&reference), "{text}");
    let yaml = cfs.run(["status", "--format", "yaml"]).expect(0);
    assert!(
        yaml.stdout.contains(&id) && yaml.stdout.contains(&reference),
        "{}",
        yaml.stdout
    );
    let human = cfs.run(["status"]).expect(0);
    assert!(human.stdout.contains(&reference), "{}", human.stdout);
    assert!(human.stdout.to_lowercase().contains("verified by"), "{}", human.stdout);
    assert!(serde_json::from_str::<Value>(&human.stdout).is_err());
}

#[test]
fn a_user_without_rights_leads_a_sysroot_through_a_life() {
    let registry = Registry::with_os();
    registry.retag("os", "1-zstd", "stable");
    let dir = scratch();
    let cfs = Cfs::unprivileged(dir.path());
    cfs.run(["switch", &registry.reference("os:stable")]).expect(0);
    registry.retag("os", "2-gzip", "stable");
    cfs.run(["upgrade"]).expect(0);
    let entries = cfs.entries();
    complete(&cfs, &entries[0]);
    complete(&cfs, &entries[1]);
    cfs.run(["rollback"]).expect(0);
    assert_eq!(cfs.entries()[0].digest(), entries[1].digest());
    cfs.status();
    cfs.fsck();
    let owner = fs::metadata(cfs.sysroot().join("composefs/meta.json")).unwrap().uid();
    assert_eq!(owner, fs::metadata(dir.path()).unwrap().uid(), "the user's own");
}

#[test]
fn rights_do_not_change_the_image() {
    if !is_root("being root and somebody else") {
        return;
    }
    let dir = scratch();
    let root = Cfs::new(&dir.path().join("root"));
    let user_dir = dir.path().join("user");
    fs::create_dir_all(&user_dir).unwrap();
    let user = Cfs::unprivileged(&user_dir);
    let layout = OsImage::get().layout("2-zstd");
    // The user must be able to read the layout, wherever the tests run.
    let copy = user_dir.join("oci");
    tool("cp", ["-r", layout.split(':').nth(1).unwrap(), copy.to_str().unwrap()]);
    tool("chmod", ["-R", "a+rX", copy.to_str().unwrap()]);
    let layout = format!("oci:{}:2-zstd", copy.display());
    root.run(["switch", &layout]).expect(0);
    user.run(["switch", &layout]).expect(0);
    assert_eq!(root.entries()[0].digest(), user.entries()[0].digest());
}

#[test]
fn gzip_and_zstd_of_the_same_layers_are_the_same_deployment_image() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let os = OsImage::get();
    let digest = |tag: &str| cfs.run(["image", "digest", "--boot", &os.layout(tag)]).expect(0).stdout;
    let (gzip, zstd) = (digest("2-gzip"), digest("2-zstd"));
    assert_eq!(gzip, zstd);
    assert_ne!(gzip, digest("1-gzip"));
    assert_eq!(gzip.trim().len(), 64, "the hex digest alone: '{gzip}'");
}

#[test]
fn the_reference_implementation_computes_the_same_digests_from_the_same_layers() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let os = OsImage::get();
    for tag in ["1-gzip", "2-zstd"] {
        let layout = os.layout(tag);
        let peer = peer::import(&layout, &dir.path().join(format!("peer-{tag}")));
        assert_eq!(
            cfs.run(["image", "digest", &layout]).expect(0).stdout.trim(),
            peer.plain.unwrap(),
            "{tag}"
        );
        assert_eq!(
            cfs.run(["image", "digest", "--boot", &layout]).expect(0).stdout.trim(),
            peer.boot.unwrap(),
            "{tag}, --boot"
        );
    }
}

#[test]
fn the_reference_implementation_reads_checks_and_lists_our_repository() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = OsImage::get().layout("2-gzip");
    cfs.run(["switch", &layout]).expect(0);
    cfs.run(["image", "pull", &layout]).expect(0);
    let id = cfs.entries()[0].digest().to_owned();
    let plain = cfs.run(["image", "digest", &layout]).expect(0).stdout.trim().to_owned();

    let repo = peer::open(&cfs.sysroot().join("composefs"));
    assert!(peer::fsck(&repo) >= 1, "it finds our tags");
    let images = peer::images(&repo);
    assert_eq!(images.len(), 1);
    let (recorded, computed) = peer::recorded_and_computed(&repo, &images[0]);
    assert_eq!(recorded.boot, Some(id), "the deployment's image");
    assert_eq!(recorded.plain.as_ref(), Some(&plain), "the container's image");
    assert_eq!(computed, plain, "what it computes from our streams");
}

#[test]
fn every_real_layer_can_be_rebuilt_byte_for_byte() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let os = OsImage::get();
    cfs.run(["switch", &os.layout("2-zstd")]).expect(0);
    let store = cfs_core::store::Store::open(&cfs.sysroot().join("composefs")).unwrap();
    for layer in os.layers(2) {
        let expected = format!("sha256:{}", sha256_file(&layer));
        let diff_id = expected.parse().unwrap();
        assert!(store.has_layer(&diff_id), "{}", layer.display());
        let rebuilt = dir.path().join("rebuilt.tar");
        store
            .rebuild(&diff_id, &mut fs::File::create(&rebuilt).unwrap())
            .unwrap();
        assert_eq!(
            format!("sha256:{}", sha256_file(&rebuilt)),
            expected,
            "{}",
            layer.display()
        );
    }
}

#[test]
fn a_layer_that_is_here_is_not_fetched_again() {
    let registry = Registry::with_os();
    registry.retag("os", "1-gzip", "stable");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &registry.reference("os:stable")]).expect(0);
    registry.retag("os", "2-gzip", "stable");
    let before = registry.requests().len();
    cfs.run(["upgrade"]).expect(0);
    let blobs: Vec<String> = registry
        .requests()
        .split_off(before)
        .into_iter()
        .filter(|r| r.starts_with("GET") && r.contains("/blobs/"))
        .collect();
    assert_eq!(blobs.len(), 2, "the new config and the one new layer: {blobs:?}");
}
