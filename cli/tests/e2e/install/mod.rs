//! Installation: to real file systems of this kernel on loop devices, and to disks up to where a kernel is needed that
//! has FAT (the rest runs in a virtual machine, `testdata/vm`).

mod disks;
mod filesystems;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::layout::{How, Layer, small};
use crate::common::{Cfs, Ran, is_root, list, name, scratch, tool};

const LOADER: &str = "MZ #### LoaderInfo: systemd-boot 257 ####";

/// The folders of systemd-boot in an image, and its program.
fn loader(layer: Layer) -> Layer {
    let efi = match std::env::consts::ARCH {
        "aarch64" => "aa64",
        _ => "x64",
    };
    layer
        .dirs(&["usr/lib/systemd", "usr/lib/systemd/boot", "usr/lib/systemd/boot/efi"])
        .file(
            &format!("usr/lib/systemd/boot/efi/systemd-boot{efi}.efi"),
            "MZ unsigned #### LoaderInfo: systemd-boot 257 ####",
        )
        .file(
            &format!("usr/lib/systemd/boot/efi/systemd-boot{efi}.efi.signed"),
            LOADER,
        )
}

/// A bootable image with systemd-boot, kernel arguments of its own, and root's home in /var.
fn image(dir: &Path, version: u32) -> String {
    let layer = loader(Layer::default().dirs(&["usr", "usr/lib"]))
        .dirs(&["usr/lib/bootc", "usr/lib/bootc/kargs.d", "usr/lib/bootc/install"])
        .dirs(&["etc", "var", "var/roothome"])
        .file("usr/lib/bootc/kargs.d/10.toml", "kargs = [\"quiet\"]\n")
        .file("usr/lib/bootc/install/10.toml", "[install]\nkargs = [\"wanted=1\"]\n")
        .file("etc/machine-id", "uninitialized\n")
        .symlink("root", "var/roothome");
    small(version, &format!("k{version}"), 3, 5000)
        .layer(layer, How::Gzip)
        .finish()
        .layout(&dir.join("oci"), "os")
}

/// The program without `--sysroot`.
fn run(home: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cfs-update"));
    let command = command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home);
    Ran::from(command.stdin(Stdio::null()).output().unwrap())
}

fn install<const N: usize>(home: &Path, args: [&str; N]) -> Ran {
    run(home, &[&["install"], &args[..]].concat())
}

/// A file system in a file, mounted until the test ends; `esp/` beside it.
struct Root {
    dir: TempDir,
}

impl Root {
    fn new(kind: &str) -> Self {
        let root = Self { dir: scratch() };
        let (file, mount) = (root.path("fs.img"), root.mount());
        fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        for folder in [&mount, &root.path("esp")] {
            fs::create_dir(folder).unwrap();
        }
        match kind {
            "ext4" => tool("mkfs.ext4", [Path::new("-q"), Path::new("-F"), &file]),
            _ => tool("mkfs.btrfs", [Path::new("-q"), Path::new("-f"), &file]),
        };
        tool("mount", [Path::new("-o"), Path::new("loop"), &file, &mount]);
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> PathBuf {
        self.path("mnt")
    }

    fn boot(&self) -> String {
        self.path("esp").display().to_string()
    }

    fn install<const N: usize>(&self, image: &str, more: [&str; N]) -> Ran {
        let (mount, boot) = (self.mount().display().to_string(), self.boot());
        let args = ["install", "to-filesystem", &mount, image, "--boot", &boot, "--json"];
        run(self.dir.path(), &[&args, &more[..]].concat())
    }

    fn entries(&self) -> Vec<String> {
        let entries = list(&self.path("esp/loader/entries"));
        entries.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    /// The program on what was installed.
    fn cfs(&self) -> (Cfs, String) {
        (Cfs::new(self.dir.path()).on(&self.mount()), self.boot())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount()).status();
    }
}
