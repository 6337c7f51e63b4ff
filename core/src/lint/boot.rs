//! Kernel, initrd, the program in it, kernel arguments, boot loader.

use std::path::Path;

use super::Lint;
use crate::boot::{cmdline, kargs, kernel};
use crate::bootable;
use crate::error::Error;
use crate::initrd::{self, EQUIVALENT, Listing, PROGRAM};
use crate::tree::Kind;

const CONFIG: &str = "usr/lib/composefs/setup-root-conf.toml";
const MAKE_INITRD: &str = "install cfs-update's files (make install DESTDIR=...) before the initramfs is made (dracut, \
     update-initramfs or mkinitcpio), or make it anew";

impl Lint<'_> {
    pub(super) fn boot(&mut self) {
        match kernel::find(bootable::kernel_nodes(self.tree)) {
            Ok(found) => {
                if let Some(note) = found.note() {
                    self.note(
                        "kernel",
                        note,
                        "remove the kernels that are not to be booted: each is a part of every update",
                    );
                }
                self.initrd(&found.version, &found.initrd.to_string_lossy());
                self.kernel_config(&found.version);
            }
            Err(e) => {
                let why = match e {
                    Error::Tree { why, .. } => why,
                    other => other.to_string(),
                };
                let (what, remedy) = why
                    .rsplit_once("; ")
                    .unwrap_or((&why, "install a kernel package in the image"));
                self.error("kernel", what, remedy);
                if !self.has_program() {
                    self.no_program("the image");
                }
            }
        }
        self.kernel_arguments();
        self.boot_loader();
    }

    fn initrd(&mut self, version: &str, path: &str) {
        let names = match self.content(path).map(|bytes| initrd::list(bytes.as_slice())) {
            Some(Listing::Names(names)) => names,
            Some(Listing::Broken(why)) => {
                return self.error("initrd", format!("/{path} is no initrd: {why}"), "make it anew");
            }
            unread => {
                if !self.has_program() {
                    self.no_program(&format!("/{path}"));
                } else if let Some(Listing::Compressed(how)) = unread {
                    let what = format!("/{path} is compressed with {how}, so what is in it was not looked at");
                    self.note("initrd", what, "compress it with zstd, to have it checked");
                }
                return;
            }
        };
        let there = |path: &str| names.iter().any(|name| name == path);
        if !initrd::boots_deployments(&names) {
            self.no_program(&format!("/{path}"));
        } else if !there(PROGRAM) {
            let what = format!("/{path} has another tool's program to mount a deployment, not cfs-update-root");
            self.note("initramfs-program", what, "nothing, if that is meant");
        }
        if self.is_file(CONFIG) && !there(CONFIG) {
            let what = format!("/{CONFIG} is not in /{path}, where alone it counts");
            self.error(
                "initramfs-config",
                what,
                "make the initramfs anew, after the file was written",
            );
        }
        for (driver, folder) in [("erofs", "erofs"), ("overlay", "overlayfs")] {
            let has_module = self
                .at(&format!("usr/lib/modules/{version}/kernel/fs/{folder}"))
                .is_some_and(|folder| {
                    folder
                        .children()
                        .any(|child| is_module(&String::from_utf8_lossy(child.name), driver))
                });
            let loaded = names
                .iter()
                .any(|name| is_module(name.rsplit('/').next().unwrap_or(name), driver));
            if has_module && !loaded {
                let what = format!("/{path} has no {driver}, which is a module of kernel {version}");
                self.error("initramfs-driver", what, MAKE_INITRD);
            }
        }
    }

    fn has_program(&self) -> bool {
        self.is_file(PROGRAM) || EQUIVALENT.iter().any(|path| self.is_file(path))
    }

    fn no_program(&mut self, place: &str) {
        let what =
            format!("{place} has no program that mounts a deployment: neither /{PROGRAM} nor bootc's or composefs-rs'");
        self.error("initramfs-program", what, MAKE_INITRD);
    }

    /// Distributions put the kernel's configuration beside it.
    fn kernel_config(&mut self, version: &str) {
        let places = [
            format!("boot/config-{version}"),
            format!("usr/lib/modules/{version}/config"),
        ];
        let Some(config) = places.iter().find_map(|path| self.text(path)) else {
            return;
        };
        let set = |option: &str| {
            ["y", "m"]
                .iter()
                .any(|value| config.lines().any(|line| line == format!("{option}={value}")))
        };
        for (option, what) in [
            ("CONFIG_EROFS_FS", "EROFS"),
            ("CONFIG_OVERLAY_FS", "overlayfs"),
            ("CONFIG_FS_VERITY", "fs-verity"),
        ] {
            if !set(option) {
                let what = format!("kernel {version} has no {what} ({option} is not set)");
                self.error("kernel-config", what, "take a kernel that has it, or build one");
            }
        }
    }

    fn kernel_arguments(&mut self) {
        let mut files = Vec::new();
        for folder in kargs::FOLDERS {
            let Some(inode) = self.at(folder) else { continue };
            let names: Vec<String> = inode
                .children()
                .filter_map(|child| String::from_utf8(child.name.to_vec()).ok())
                .filter(|name| kargs::is_name(name))
                .collect();
            for name in names {
                let path = format!("{folder}/{name}");
                if let Some(text) = self.text(&path) {
                    files.push((Path::new(&path).to_path_buf(), text));
                }
            }
        }
        match kargs::collect(files, self.architecture) {
            Ok(arguments) => {
                for key in [cmdline::DIGEST_KEY, "composefs"] {
                    for value in cmdline::values(&arguments, key) {
                        let what = format!(
                            "kargs.d has {key}={value}; which image is booted says the boot entry of each deployment"
                        );
                        self.error("kernel-arguments", what, "remove the argument");
                    }
                }
                for value in cmdline::values(&arguments, "root") {
                    let what =
                        format!("kargs.d has root={value}, so the image boots only where a file system is called that");
                    self.note("kernel-arguments", what, "leave root= out: the machine's own is put in");
                }
            }
            Err(e) => self.error("kernel-arguments", e.to_string(), "correct the file"),
        }
    }

    fn boot_loader(&mut self) {
        let folder = self.at("usr/lib/systemd/boot/efi");
        let there = folder.is_some_and(|folder| {
            let files = folder
                .children()
                .filter(|child| matches!(child.inode.kind(), Kind::Regular(_)));
            let names = files.map(|child| String::from_utf8_lossy(child.name).into_owned());
            names
                .into_iter()
                .any(|name| name.starts_with("systemd-boot") && name.contains(".efi"))
        });
        if !there {
            let what =
                "no systemd-boot in /usr/lib/systemd/boot/efi: `install` cannot make a disk bootable with this image";
            self.warning(
                "boot-loader",
                what,
                "install the package systemd-boot in the image (Debian: systemd-boot-efi)",
            );
        }
    }
}

fn is_module(name: &str, driver: &str) -> bool {
    name.strip_prefix(driver)
        .is_some_and(|rest| rest == ".ko" || rest.starts_with(".ko."))
}
