//! `image lint` on folders and container images: what it finds, in which form, and its exit code.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::layout::{How, Image, Layer, base};
use crate::common::{Cfs, OsImage, scratch};

/// A cpio archive (newc) of empty files.
fn initrd(names: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names.iter().chain(&["TRAILER!!!"]) {
        let mut fields = ["00000000"; 13].map(str::to_owned);
        fields[11] = format!("{:08x}", name.len() + 1);
        bytes.extend(format!("070701{}{name}\0", fields.concat()).bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

const PROGRAM: &str = "usr/lib/cfs-update/cfs-update-root";

/// What `base` lacks of an image that boots.
fn rest() -> Layer {
    Layer::default()
        .program("usr/sbin/init")
        .symlink("sbin", "usr/sbin")
        .program("usr/bin/cfs-update")
        .program(PROGRAM)
        .file("usr/lib/systemd/boot/efi/systemd-bootx64.efi", "MZ")
        .file("usr/lib/systemd/system/cfs-update-health.service", "[Unit]")
        .file("usr/lib/systemd/system/cfs-update-finalize.service", "[Unit]")
}

fn image(dir: &Path, last: Layer) -> String {
    let image = Image::new("1")
        .layer(base("1", "k"), How::Gzip)
        .layer(rest(), How::Zstd);
    image.layer(last, How::None).finish().layout(&dir.join("oci"), "os")
}

fn checks(report: &Value, severity: &str) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["severity"] == severity)
        .map(|finding| finding["check"].as_str().unwrap().to_owned())
        .collect()
}

const INITRAMFS: &str = "usr/lib/modules/6.1.0/initramfs.img";

#[test]
fn an_image_that_boots_has_no_errors_and_needs_no_sysroot() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let good = image(dir.path(), Layer::default().file(INITRAMFS, initrd(&[PROGRAM])));
    let report = cfs.run(["image", "lint", "--json", &good]).expect(0).json();
    assert_eq!(report["errors"], 0, "{report}");
    assert_eq!(
        checks(&report, "warning"),
        ["modes"],
        "/tmp has mode 0755 here: {report}"
    );
    assert!(!cfs.sysroot().join("composefs").exists());
    // From the repository, where the layers are all there.
    cfs.run(["image", "pull", &good]).expect(0);
    fs::remove_dir_all(dir.path().join("oci/blobs")).ok();
    image(dir.path(), Layer::default().file(INITRAMFS, initrd(&[PROGRAM])));
    cfs.run(["image", "lint", &good]).expect(0);
}

#[test]
fn an_initrd_that_is_a_hard_link_is_looked_into_all_the_same() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let linked = |content: Vec<u8>| {
        Layer::default()
            .dirs(&["usr/lib/objects"])
            .file("usr/lib/objects/1", content)
            .hard_link(INITRAMFS, "usr/lib/objects/1")
    };
    let reference = image(dir.path(), linked(initrd(&[PROGRAM])));
    cfs.run(["image", "lint", &reference]).expect(0);
    let reference = image(dir.path(), linked(initrd(&["init"])));
    let report = cfs.run(["image", "lint", "--json", &reference]).expect(1).json();
    assert_eq!(checks(&report, "error"), ["initramfs-program"], "{report}");
}

#[test]
fn each_error_is_said_with_what_to_do_and_ends_with_1() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let last = Layer::default()
        .file(INITRAMFS, initrd(&["init"]))
        .file(".wh.sysroot", "")
        .file("usr/lib/.wh.os-release", "")
        .file("var/lib/state", "state")
        .file("etc/ssh/ssh_host_rsa_key", "secret");
    let reference = image(dir.path(), last);
    let report = cfs.run(["image", "lint", "--json", &reference]).expect(1).json();
    assert_eq!(
        checks(&report, "error"),
        ["initramfs-program", "os-release", "folders", "identity"],
        "{report}"
    );
    assert!(checks(&report, "warning").contains(&"var".to_owned()), "{report}");
    let text = cfs.run(["image", "lint", &reference]).expect(1);
    for said in [
        "cfs-update-root",
        "no folder /sysroot",
        "ssh_host_rsa_key",
        "/var/lib/state",
        "4 errors",
    ] {
        assert!(text.stdout.contains(said), "no {said:?}: {}", text.stdout);
    }
}

#[test]
fn a_folder_is_an_image_in_the_making_and_a_composefs_image_is_none_any_more() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("usr/lib/modules/6.1.0")).unwrap();
    fs::write(tree.join("usr/lib/modules/6.1.0/vmlinuz"), "k".repeat(100)).unwrap();
    fs::write(tree.join(INITRAMFS), initrd(&["init"])).unwrap();
    let path = tree.to_str().unwrap();
    let report = cfs.run(["image", "lint", "--json", path]).expect(1).json();
    let errors = checks(&report, "error");
    for check in ["initramfs-program", "os-release", "folders", "init"] {
        assert!(errors.iter().any(|own| own == check), "{check}: {report}");
    }
    assert!(!errors.iter().any(|own| own == "kernel"), "{report}");

    let built = dir.path().join("tree.erofs");
    let built = built.to_str().unwrap();
    cfs.run(["image", "build", path, "-o", built]).expect(0);
    cfs.run(["image", "lint", built]).expect(2);
    cfs.run(["image", "lint", &"0".repeat(64)]).expect(2);
}

#[test]
fn switch_warns_of_an_initrd_that_cannot_boot_a_deployment() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let without = image(
        dir.path(),
        Layer::default().file(INITRAMFS, initrd(&["init", "usr/bin/sh"])),
    );
    let warned = cfs.run(["switch", &without]).expect(0);
    assert!(warned.stderr.contains("will not boot"), "{}", warned.stderr);
    let good = image(dir.path(), Layer::default().file(INITRAMFS, initrd(&[PROGRAM])));
    let quiet = cfs.run(["switch", &good]).expect(0);
    assert!(!quiet.stderr.contains("will not boot"), "{}", quiet.stderr);
}

#[test]
fn a_real_debian_lacks_what_was_not_installed_and_nothing_else() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    for tag in ["1-gzip", "2-zstd"] {
        let report = cfs
            .run(["image", "lint", "--json", &OsImage::get().layout(tag)])
            .expect(1)
            .json();
        let errors = checks(&report, "error");
        // Its initrd is looked into, and was made without our hook, so without EROFS, too. Two files of the test image
        // have odd owners on purpose.
        assert!(errors.contains(&"initramfs-program".to_owned()), "{report}");
        let known = ["initramfs-program", "initramfs-driver", "owners"];
        assert!(errors.iter().all(|check| known.contains(&check.as_str())), "{report:#}");
        for (check, text) in [
            ("var", "/var/"),
            ("updater", "cfs-update"),
            ("boot-loader", "systemd-boot"),
        ] {
            let mut findings = report["findings"].as_array().unwrap().iter();
            let said = |finding: &Value| finding["check"] == check && finding["what"].as_str().unwrap().contains(text);
            assert!(findings.any(said), "{check}: {report:#}");
        }
    }
}
