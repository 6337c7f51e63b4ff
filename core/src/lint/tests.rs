//! One image that is right, and what is found when one thing of it is wrong.

use std::collections::BTreeMap;

use super::*;
use crate::error::Error;
use crate::ids::Algorithm;
use crate::image::dump;
use crate::initrd::tests::cpio;
use crate::sys::verity;

/// Path, then what the dump says of it: mode, owner, group, content or target.
#[derive(Clone)]
struct Image(BTreeMap<String, (u32, u32, u32, Vec<u8>)>);

const KERNEL: &str = "usr/lib/modules/6.12.1";

impl Image {
    fn right() -> Self {
        let mut image = Self(BTreeMap::new());
        for folder in [
            "", "boot", "dev", "etc", "proc", "run", "sys", "sysroot", "usr", "var", "usr/bin", "usr/sbin",
        ] {
            image.put(folder, 0o40755, "");
        }
        image.put("tmp", 0o41777, "");
        image.put("usr/lib/os-release", 0o100644, "ID=x\nPRETTY_NAME=X 1\nVERSION_ID=1\n");
        image.put("etc/os-release", 0o120777, "../usr/lib/os-release");
        image.put("etc/machine-id", 0o100444, "uninitialized\n");
        image.put("usr/sbin/init", 0o100755, "init");
        image.put("sbin", 0o120777, "usr/sbin");
        image.put("usr/bin/cfs-update", 0o100755, "program");
        for unit in ["health", "finalize"] {
            image.put(
                &format!("usr/lib/systemd/system/cfs-update-{unit}.service"),
                0o100644,
                "[Unit]",
            );
        }
        image.put("usr/lib/systemd/boot/efi/systemd-bootx64.efi", 0o100644, "MZ");
        image.put("usr/lib/cfs-update/cfs-update-root", 0o100755, "program");
        image.put(&format!("{KERNEL}/vmlinuz"), 0o100644, "kernel");
        image.put(&format!("{KERNEL}/kernel/fs/erofs/erofs.ko.xz"), 0o100644, "module");
        let config = "CONFIG_EROFS_FS=m\nCONFIG_OVERLAY_FS=y\nCONFIG_FS_VERITY=y\n";
        image.put(&format!("{KERNEL}/config"), 0o100644, config);
        image.initrd(&[
            "usr/lib/cfs-update/cfs-update-root",
            "usr/lib/modules/6.12.1/kernel/fs/erofs/erofs.ko.xz",
        ]);
        image
    }

    fn initrd(&mut self, names: &[&str]) -> &mut Self {
        self.bytes(&format!("{KERNEL}/initramfs.img"), 0o100600, cpio(names))
    }

    fn bytes(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        let mut at = 0;
        while let Some(slash) = path[at..].find('/') {
            at += slash;
            self.0.entry(path[..at].into()).or_insert((0o40755, 0, 0, Vec::new()));
            at += 1;
        }
        self.0.insert(path.into(), (mode, 0, 0, content));
        self
    }

    fn put(&mut self, path: &str, mode: u32, content: &str) -> &mut Self {
        self.bytes(path, mode, content.into())
    }

    fn remove(&mut self, path: &str) -> &mut Self {
        self.0
            .retain(|at, _| at != path && !at.starts_with(&format!("{path}/")));
        self
    }

    fn own(&mut self, path: &str, uid: u32, gid: u32) -> &mut Self {
        let entry = self.0.get_mut(path).unwrap();
        (entry.1, entry.2) = (uid, gid);
        self
    }

    fn lint(&self) -> Vec<Finding> {
        let mut objects = BTreeMap::new();
        let mut text = String::new();
        for (path, (mode, uid, gid, content)) in &self.0 {
            let (mut payload, mut digest) = ("-".to_owned(), "-".to_owned());
            if mode & 0o170_000 == 0o120_000 {
                payload = String::from_utf8(content.clone()).unwrap();
            } else if mode & 0o170_000 == 0o100_000 && !content.is_empty() {
                let id = verity::hash(Algorithm::Sha256, content);
                (payload, digest) = (id.object_path(), id.to_hex());
                objects.insert(id, content.clone());
            }
            let rdev = u32::from(mode & 0o170_000 == 0o60_000) * 0x801;
            text += &format!(
                "/{path} {} {mode:o} 1 {uid} {gid} {rdev} 0.0 {payload} - {digest}\n",
                content.len()
            );
        }
        let tree = dump::parse(text.as_bytes()).unwrap();
        let read = |id: &ObjectId| {
            objects.get(id).cloned().ok_or_else(|| Error::Object {
                id: id.to_hex(),
                why: "not kept".into(),
            })
        };
        lint(&tree, &read, "amd64")
    }
}

/// The image with one change has exactly one finding: this severity, this check, this text.
fn finds(change: impl FnOnce(&mut Image) -> &mut Image, severity: Severity, check: &str, text: &str) {
    let mut image = Image::right();
    change(&mut image);
    let findings = image.lint();
    let [finding] = findings.as_slice() else {
        panic!("{check}: {findings:#?}")
    };
    assert_eq!((finding.severity, finding.check), (severity, check), "{finding:?}");
    assert!(finding.what.contains(text), "{finding:?}");
    assert!(!finding.remedy.is_empty(), "{finding:?}");
}

#[test]
fn an_image_with_everything_has_no_findings() {
    assert_eq!(Image::right().lint(), []);
}

#[test]
fn what_is_needed_to_boot_is_an_error_where_it_is_missing() {
    use Severity::{Error, Note, Warning};
    finds(|i| i.remove(&format!("{KERNEL}/vmlinuz")), Error, "kernel", "no kernel");
    finds(
        |i| i.remove(&format!("{KERNEL}/initramfs.img")),
        Error,
        "kernel",
        "no initrd",
    );
    finds(
        |i| i.initrd(&["init", "erofs.ko"]),
        Error,
        "initramfs-program",
        "cfs-update-root",
    );
    finds(
        |i| i.initrd(&["usr/lib/bootc/initramfs-setup", "erofs.ko"]),
        Note,
        "initramfs-program",
        "another tool's",
    );
    finds(
        |i| i.initrd(&["usr/lib/cfs-update/cfs-update-root"]),
        Error,
        "initramfs-driver",
        "erofs",
    );
    finds(
        |i| i.put("usr/lib/composefs/setup-root-conf.toml", 0o100644, "[etc]"),
        Error,
        "initramfs-config",
        "setup-root-conf.toml",
    );
    let initrd = format!("{KERNEL}/initramfs.img");
    finds(|i| i.put(&initrd, 0o100600, "garbage"), Error, "initrd", "no initrd");

    finds(
        |i| i.bytes(&initrd, 0o100600, b"\xfd7zXZ\0".to_vec()),
        Note,
        "initrd",
        "xz",
    );
    let unreadable = |i: &mut Image| {
        i.bytes(&initrd, 0o100600, b"\xfd7zXZ\0".to_vec());
        i.remove("usr/lib/cfs-update");
    };
    finds(
        |i| {
            unreadable(i);
            i
        },
        Error,
        "initramfs-program",
        "cfs-update-root",
    );
    finds(
        |i| {
            i.put(
                &format!("{KERNEL}/config"),
                0o100644,
                "CONFIG_EROFS_FS=m\nCONFIG_OVERLAY_FS=y\n# CONFIG_FS_VERITY is not set\n",
            )
        },
        Error,
        "kernel-config",
        "fs-verity",
    );
    finds(
        |i| {
            i.put(
                "usr/lib/bootc/kargs.d/1.toml",
                0o100644,
                "kargs = ['composefs.digest=v1-sha256-12:00']",
            )
        },
        Error,
        "kernel-arguments",
        "composefs.digest",
    );
    finds(
        |i| i.put("usr/lib/bootc/kargs.d/1.toml", 0o100644, "kargs = 1"),
        Error,
        "kernel-arguments",
        "1.toml",
    );
    finds(
        |i| i.put("usr/lib/bootc/kargs.d/1.toml", 0o100644, "kargs = ['root=LABEL=x']"),
        Note,
        "kernel-arguments",
        "LABEL=x",
    );
    finds(|i| i.remove("usr/lib/systemd/boot"), Warning, "boot-loader", "install");
    finds(|i| i.remove("usr/sbin/init"), Error, "init", "/sbin/init");
    finds(
        |i| i.put("usr/sbin/init", 0o100644, "init"),
        Error,
        "init",
        "/sbin/init",
    );
    finds(|i| i.remove("usr/lib/os-release"), Error, "os-release", "os-release");
    finds(
        |i| i.put("usr/lib/os-release", 0o100644, "VERSION_ID=1\n"),
        Warning,
        "os-release",
        "PRETTY_NAME",
    );
    finds(
        |i| i.put("usr/lib/os-release", 0o100644, "NAME=x\n"),
        Note,
        "os-release",
        "VERSION_ID",
    );
}

#[test]
fn folders_to_mount_on_must_be_folders() {
    for name in ["boot", "sysroot", "etc", "var", "tmp", "proc", "sys", "dev", "run"] {
        let mut image = Image::right();
        let findings = image.remove(name).lint();
        assert!(
            findings
                .iter()
                .any(|f| f.check == "folders" && f.what.contains(&format!("/{name};"))),
            "{name}: {findings:?}"
        );
    }
    finds(
        |i| i.remove("sysroot").put("sysroot", 0o120777, "usr"),
        Severity::Error,
        "folders",
        "/sysroot is a symbolic link",
    );
    finds(|i| i.put("home", 0o40755, ""), Severity::Warning, "folders", "/home");
}

#[test]
fn wrong_owners_and_modes_are_errors() {
    use Severity::{Error, Warning};
    finds(|i| i.own("", 1000, 1000), Error, "owners", "/ belongs to user 1000");
    finds(
        |i| i.own("usr/bin/cfs-update", 1000, 0),
        Error,
        "owners",
        "/usr/bin/cfs-update",
    );
    finds(
        |i| i.put("usr/bin/s", 0o104755, "x").own("usr/bin/s", 1001, 0),
        Error,
        "owners",
        "setuid",
    );
    finds(|i| i.put("etc/open", 0o100666, "x"), Error, "modes", "/etc/open");
    finds(|i| i.put("etc/open", 0o40777, ""), Error, "modes", "/etc/open");
    finds(|i| i.put("etc/shadow", 0o100644, "x"), Error, "modes", "shadow");
    finds(|i| i.put("", 0o40700, ""), Error, "modes", "nobody but root");
    finds(|i| i.put("tmp", 0o40755, ""), Warning, "modes", "/tmp");
}

#[test]
fn state_and_leftovers_are_told() {
    use Severity::{Error, Warning};
    let many = |i: &mut Image| {
        for name in ["a", "b", "c", "d"] {
            i.put(&format!("var/lib/x/{name}"), 0o100644, "state");
        }
    };
    finds(
        |i| {
            many(i);
            i
        },
        Warning,
        "var",
        "4 files in /var (/var/lib/x/a, /var/lib/x/b, /var/lib/x/c and 1 more)",
    );
    finds(|i| i.put("run/x", 0o100644, "x"), Warning, "leftovers", "/run/x");
    finds(|i| i.put("usr/removed", 0o20644, ""), Warning, "leftovers", "0:0");
    finds(|i| i.put("usr/disk", 0o60644, ""), Warning, "leftovers", "/usr/disk");
    finds(
        |i| i.put("etc/machine-id", 0o100444, "0123\n"),
        Warning,
        "identity",
        "machine-id",
    );
    finds(
        |i| i.put("etc/ssh/ssh_host_ed25519_key", 0o100600, "x"),
        Error,
        "identity",
        "ssh_host_ed25519_key",
    );
    finds(
        |i| i.put("etc/fstab", 0o100644, "# /x / y\nUUID=1 / ext4 rw 0 1\n"),
        Warning,
        "fstab",
        "/etc/fstab",
    );
    finds(
        |i| i.remove("usr/bin/cfs-update"),
        Warning,
        "updater",
        "cannot update itself",
    );
    finds(
        |i| i.remove("usr/lib/systemd/system/cfs-update-health.service"),
        Warning,
        "updater",
        "health",
    );
}

#[test]
fn several_kernels_are_said_and_empty_folders_in_var_are_none_of_our_business() {
    let mut image = Image::right();
    image
        .put("usr/lib/modules/6.1.1/vmlinuz", 0o100644, "old")
        .put("var/lib/x", 0o40755, "");
    let findings = image.lint();
    assert!(
        matches!(findings.as_slice(), [f] if f.severity == Severity::Note && f.what.contains("6.1.1")),
        "{findings:?}"
    );
}

#[test]
fn findings_come_in_the_order_of_their_weight() {
    let findings = Image(BTreeMap::from([(String::new(), (0o40755, 0, 0, Vec::new()))])).lint();
    let severities: Vec<_> = findings.iter().map(|f| f.severity).collect();
    assert!(
        severities.is_sorted() && severities.contains(&Severity::Warning),
        "{findings:#?}"
    );
    for check in ["kernel", "os-release", "folders", "init"] {
        assert!(
            findings
                .iter()
                .any(|f| f.check == check && f.severity == Severity::Error),
            "{check}"
        );
    }
}

#[test]
fn only_what_is_looked_into_is_kept_of_layers() {
    for path in [
        "boot/initrd.img-6",
        "./usr/lib/modules/6/initramfs.img",
        "/etc/os-release",
        "usr/lib/bootc/kargs.d/1.toml",
    ] {
        assert!(is_read(path.as_bytes()), "{path}");
    }
    for path in [
        "boot/vmlinuz-6",
        "usr/lib/modules/6/kernel/x.ko",
        "etc/passwd",
        "usr/bin/cfs-update",
    ] {
        assert!(!is_read(path.as_bytes()), "{path}");
    }
}
