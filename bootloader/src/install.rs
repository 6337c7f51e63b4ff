//! systemd-boot onto the EFI system partition, from the image's own files.
//!
//! Nothing here boots anything: that takes an entry, which an installation adds last. What of the partition belongs to
//! another system is left as it is. EFI variables are not written: firmware starts `EFI/BOOT/BOOT*.EFI` of a disk that
//! it has no entry for.

use std::path::Path;

use cfs_core::error::{Error, Result};
use cfs_core::sys::fs::{self, Fs};

use crate::publish;

/// Where images keep systemd-boot.
const FOLDER: &str = "usr/lib/systemd/boot/efi";
/// What every systemd-boot has in it, and no other loader.
const MARK: &[u8] = b"#### LoaderInfo: systemd-boot";
/// No `default`: one that matches a single entry would defeat counting and falling back.
const LOADER_CONF: &str = "# No \"default\" here: the newest entry that has tries left boots.\ntimeout 3\n";
/// Tells other tools that $BOOT holds entries of type 1.
const ENTRIES_SREL: &str = "type1\n";
const SEED_SIZE: usize = 32;
/// A loader that is there is looked at, not trusted.
const LOADER_LIMIT: u64 = 64 << 20;

/// Where systemd-boot is in an image, the signed one first: it starts with and without Secure Boot.
pub fn programs(architecture: &str) -> Vec<String> {
    let Some(efi) = efi_architecture(architecture) else {
        return Vec::new();
    };
    let path = |end: &str| format!("{FOLDER}/systemd-boot{efi}.efi{end}");
    [".signed", ""].map(path).into()
}

/// Puts `program` onto the EFI system partition `esp`, with settings and random seed; durable when this returns. What
/// is worth a note comes back.
///
/// # Errors
/// [`Error::BootEntry`] for a program that is no systemd-boot.
pub fn put(fs: &dyn Fs, boot: &Path, esp: &Path, architecture: &str, program: &[u8]) -> Result<Vec<String>> {
    let refuse = |why: String| Error::BootEntry {
        entry: format!("folder {}", esp.display()),
        why,
    };
    let efi = efi_architecture(architecture)
        .ok_or_else(|| refuse(format!("no systemd-boot is known for architecture {architecture}")))?;
    if !program.starts_with(b"MZ") || !contains(program, MARK) {
        return Err(refuse(format!(
            "the systemd-boot{efi}.efi of the image is none; nothing was written"
        )));
    }
    for folders in [&["EFI", "systemd"][..], &["EFI", "BOOT"], &["loader"]] {
        publish::folders(fs, esp, folders)?;
    }
    publish::folders(fs, boot, &["loader", "entries"])?;
    let own = esp.join(format!("EFI/systemd/systemd-boot{efi}.efi"));
    fs::replace(fs, &own, 0o644, program)?;
    let mut notes = Vec::new();
    let fallback = esp.join(format!("EFI/BOOT/BOOT{}.EFI", efi.to_ascii_uppercase()));
    match fs::read(&fallback, LOADER_LIMIT)? {
        Some(other) if !contains(&other, MARK) => notes.push(format!(
            "{} is another boot loader's and stays as it is; for firmware to start systemd-boot, make an entry for \
             \\EFI\\systemd\\systemd-boot{efi}.efi (efibootmgr --create)",
            fallback.display()
        )),
        _ => fs::replace(fs, &fallback, 0o644, program)?,
    }
    add(fs, &esp.join("loader/loader.conf"), 0o644, LOADER_CONF.as_bytes())?;
    add(fs, &boot.join("loader/entries.srel"), 0o644, ENTRIES_SREL.as_bytes())?;
    add(fs, &esp.join("loader/random-seed"), 0o600, &random()?)?;
    Ok(notes)
}

/// Writes a file that is not there yet: settings and seed of a system that shares the partition stay.
fn add(fs: &dyn Fs, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    if fs::exists(path) {
        return Ok(());
    }
    fs::replace(fs, path, mode, content)
}

fn random() -> Result<[u8; SEED_SIZE]> {
    let mut seed = [0; SEED_SIZE];
    getrandom::fill(&mut seed).map_err(|e| Error::io("read", "/dev/urandom", std::io::Error::other(e)))?;
    Ok(seed)
}

fn contains(content: &[u8], mark: &[u8]) -> bool {
    content.windows(mark.len()).any(|window| window == mark)
}

/// From an image's architecture to that of EFI file names.
fn efi_architecture(architecture: &str) -> Option<&'static str> {
    Some(match architecture {
        "amd64" => "x64",
        "386" => "ia32",
        "arm64" => "aa64",
        "arm" => "arm",
        "riscv64" => "riscv64",
        "loong64" => "loongarch64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use cfs_core::sys::fs::RealFs;

    use super::*;

    fn program(version: &str) -> Vec<u8> {
        format!("MZ…#### LoaderInfo: systemd-boot {version} ####").into_bytes()
    }

    fn read(esp: &Path, path: &str) -> Vec<u8> {
        std::fs::read(esp.join(path)).unwrap()
    }

    #[test]
    fn the_loader_is_where_firmware_looks_and_nothing_names_a_default_entry() {
        let esp = tempfile::tempdir().unwrap();
        let notes = put(&RealFs, esp.path(), esp.path(), "amd64", &program("257")).unwrap();
        assert_eq!(notes, [""; 0]);
        for path in ["EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"] {
            assert_eq!(read(esp.path(), path), program("257"), "{path}");
        }
        let conf = String::from_utf8(read(esp.path(), "loader/loader.conf")).unwrap();
        assert_eq!(crate::loader_conf::default_pattern(&conf), None);
        assert!(conf.contains("timeout 3"));
        assert_eq!(read(esp.path(), "loader/entries.srel"), b"type1\n");
        let seed = esp.path().join("loader/random-seed");
        assert_eq!(std::fs::metadata(&seed).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(read(esp.path(), "loader/random-seed").len(), 32);
        assert_ne!(read(esp.path(), "loader/random-seed"), [0; 32]);
        assert_eq!(std::fs::read_dir(esp.path().join("loader/entries")).unwrap().count(), 0);
    }

    #[test]
    fn what_others_have_on_the_partition_stays() {
        let esp = tempfile::tempdir().unwrap();
        for (path, content) in [
            ("EFI/BOOT/BOOTX64.EFI", &b"MZ another loader"[..]),
            ("loader/loader.conf", b"default windows.conf\n"),
            ("loader/random-seed", &[7; 32]),
            ("EFI/systemd/systemd-bootx64.efi", b"MZ an older systemd-boot"),
        ] {
            let path = esp.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let notes = put(&RealFs, esp.path(), esp.path(), "amd64", &program("257")).unwrap();
        assert!(notes[0].contains("BOOTX64.EFI is another boot loader's"), "{notes:?}");
        assert_eq!(read(esp.path(), "EFI/BOOT/BOOTX64.EFI"), b"MZ another loader");
        assert_eq!(read(esp.path(), "loader/loader.conf"), b"default windows.conf\n");
        assert_eq!(read(esp.path(), "loader/random-seed"), [7; 32]);
        assert_eq!(read(esp.path(), "EFI/systemd/systemd-bootx64.efi"), program("257"));
    }

    #[test]
    fn entries_are_on_the_extended_boot_partition_and_the_loader_is_not() {
        let (boot, esp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(&RealFs, boot.path(), esp.path(), "arm64", &program("257")).unwrap();
        assert!(boot.path().join("loader/entries").is_dir() && boot.path().join("loader/entries.srel").is_file());
        assert!(!boot.path().join("EFI").exists() && !esp.path().join("loader/entries").exists());
        assert!(esp.path().join("EFI/BOOT/BOOTAA64.EFI").is_file() && esp.path().join("loader/loader.conf").is_file());
    }

    #[test]
    fn a_newer_systemd_boot_takes_the_place_of_an_older_one() {
        let esp = tempfile::tempdir().unwrap();
        for version in ["256", "257"] {
            assert!(
                put(&RealFs, esp.path(), esp.path(), "amd64", &program(version))
                    .unwrap()
                    .is_empty()
            );
        }
        assert_eq!(read(esp.path(), "EFI/BOOT/BOOTX64.EFI"), program("257"));
    }

    #[test]
    fn a_file_that_is_no_loader_is_not_installed() {
        let esp = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"#!/bin/sh #### LoaderInfo: systemd-boot", b"MZ grub"] {
            assert!(put(&RealFs, esp.path(), esp.path(), "amd64", content).is_err());
        }
        assert!(put(&RealFs, esp.path(), esp.path(), "vax", &program("257")).is_err());
        assert_eq!(std::fs::read_dir(esp.path()).unwrap().count(), 0);
        assert_eq!(programs("vax"), [""; 0]);
        assert_eq!(
            programs("amd64"),
            [
                "usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed",
                "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
            ]
        );
    }
}
