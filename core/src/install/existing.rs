//! A root file system that somebody else made and mounted.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mount};
use super::target::{Prepared, WITHOUT_VERITY};
use super::tools;
use crate::error::{Error, Result};
use crate::ids::Algorithm;
use crate::sys::{filesystem, fs, mount_tree};

/// What may be in a root that counts as empty: what mkfs makes, places to mount on, and what an installation that
/// failed left behind.
const HARMLESS: [&str; 5] = ["lost+found", "boot", "efi", "composefs", "state"];

/// What is wanted of a root.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// `$BOOT`, if not what is mounted at `boot` or `efi`.
    pub boot: Option<PathBuf>,
    /// Value of `root=`, if not the UUID of the file system.
    pub root_argument: Option<String>,
    /// Install where there is no fs-verity, too.
    pub allow_missing_verity: bool,
    /// Of the repository.
    pub algorithm: Algorithm,
}

/// Looks at a root; changes nothing.
///
/// # Errors
/// [`Error::Disk`] says what is in the way, and what to do.
pub fn look(root: &Path, wishes: &Wishes) -> Result<Prepared> {
    let refuse = |why: String| Error::Disk { path: root.into(), why };
    let path = root.canonicalize().map_err(|e| Error::io("open", root, e))?;
    let mounts = mountinfo::read()?;
    let mount = mountinfo::at(&mounts, &path).ok_or_else(|| {
        refuse("no file system is mounted exactly there; mount the root file system, then give its folder".into())
    })?;
    check_root(mount).map_err(refuse)?;
    check_empty(&path)?;
    let seen = Seen {
        is_dir: &fs::is_dir,
        is_mounted: &mount_tree::is_mount_point,
        is_fat: &is_fat,
    };
    let Places { boot, esp } = Places::find(&path, wishes.boot.as_deref(), &seen).map_err(refuse)?;
    let has_verity = filesystem::has_verity(&path, wishes.algorithm)?;
    if !has_verity && !wishes.allow_missing_verity {
        return Err(refuse(without_verity(mount)));
    }
    let root_argument = match &wishes.root_argument {
        Some(given) => given.clone(),
        None => root_argument(&path, mount)?,
    };
    let not_fat = format!(
        "{} is not FAT, which is all that firmware and systemd-boot can read",
        boot.display()
    );
    let notes = [(has_verity, WITHOUT_VERITY.to_owned()), (is_fat(&boot), not_fat)];
    Ok(Prepared {
        kernel_arguments: arguments(mount),
        has_verity,
        notes: notes
            .into_iter()
            .filter(|(good, _)| !good)
            .map(|(_, note)| note)
            .collect(),
        ..Prepared::given(path, boot, esp, root_argument)
    })
}

/// Refuses what is no root for another system.
fn check_root(mount: &Mount) -> Result<(), String> {
    if mount.path == Path::new("/") || mount.path == Path::new("/sysroot") {
        return Err("it is the root of the running system; use `cfs-update switch`".into());
    }
    if mount.read_only {
        return Err("it is mounted read-only; mount it again with `-o remount,rw`".into());
    }
    if mount.root != Path::new("/") && mount.kind != "btrfs" {
        return Err(format!(
            "only the folder {} of a file system is mounted there, and nothing would find that at boot; mount the whole one",
            mount.root.display()
        ));
    }
    Ok(())
}

/// What the root needs on the kernel command line: of btrfs it may be a subvolume.
fn arguments(mount: &Mount) -> Vec<String> {
    let mut arguments = Vec::new();
    if mount.kind == "btrfs" && mount.root != Path::new("/") {
        arguments.push(format!("rootflags=subvol={}", mount.root.display()));
    }
    arguments
}

fn without_verity(mount: &Mount) -> String {
    let remedy = match mount.kind.as_str() {
        "ext4" if fs::exists(Path::new("/sys/fs/ext4/features/verity")) => format!(
            "unmount it, run `tune2fs -O verity {}`, and mount it again",
            mount.source.display()
        ),
        "ext4" | "btrfs" => "this kernel is built without it: install from one that has it".to_owned(),
        other => format!("{other} has none: take ext4 (mkfs.ext4 -O verity) or btrfs"),
    };
    format!(
        "it has no fs-verity, without which nothing proves at boot what is read; {remedy}; or give --allow-missing-verity"
    )
}

fn check_empty(root: &Path) -> Result<()> {
    let refuse = |why: String| Error::Disk { path: root.into(), why };
    let names = fs::names(root)?;
    let shown = |name: &std::ffi::OsString| name.to_string_lossy().into_owned();
    let foreign: Vec<String> = names
        .iter()
        .filter(|name| !HARMLESS.iter().any(|own| name.as_os_str() == *own))
        .filter(|name| !mount_tree::is_mount_point(&root.join(name)))
        .map(shown)
        .collect();
    if !foreign.is_empty() {
        return Err(refuse(format!(
            "it is not empty; remove or move away: {}",
            foreign.join(" ")
        )));
    }
    Ok(())
}

/// `$BOOT` and the EFI system partition.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    boot: PathBuf,
    esp: PathBuf,
}

/// How folders are looked at.
struct Seen<'a> {
    is_dir: &'a dyn Fn(&Path) -> bool,
    is_mounted: &'a dyn Fn(&Path) -> bool,
    is_fat: &'a dyn Fn(&Path) -> bool,
}

impl Places {
    /// What is mounted at `boot` is `$BOOT`, what is mounted at `efi` or `boot/efi` the EFI system partition; one of
    /// them is both where there is no other, or where the one at `boot` is of a kind that systemd-boot cannot read. A
    /// folder that was given counts as `$BOOT` whatever it is.
    fn find(root: &Path, given: Option<&Path>, seen: &Seen<'_>) -> Result<Self, String> {
        if let Some(given) = given.filter(|given| !(seen.is_dir)(given)) {
            return Err(format!("--boot {}: no such folder", given.display()));
        }
        let mounted = |names: &[&str]| {
            let mut paths = names.iter().map(|name| root.join(name));
            paths.find(|path| (seen.is_mounted)(path))
        };
        let esp = mounted(&["efi", "boot/efi"]);
        let found = || mounted(&["boot"]).filter(|boot| esp.is_none() || (seen.is_fat)(boot));
        let boot = given.map(Path::to_path_buf).or_else(found);
        match (boot, esp) {
            (Some(boot), Some(esp)) => Ok(Self { boot, esp }),
            (Some(both), None) | (None, Some(both)) => Ok(Self {
                boot: both.clone(),
                esp: both,
            }),
            (None, None) => Err(format!(
                "no boot partition is mounted at {0}/boot, {0}/efi or {0}/boot/efi; mount it there, or give --boot DIR",
                root.display()
            )),
        }
    }
}

fn is_fat(folder: &Path) -> bool {
    /// `MSDOS_SUPER_MAGIC` of linux/magic.h.
    const FAT: i64 = 0x4d44;
    // The type of the field differs between architectures.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type as i64 == FAT)
}

/// By the UUID that udev, or else blkid, has for the device.
fn root_argument(root: &Path, mount: &Mount) -> Result<String> {
    if let Some(uuid) = uuid_from_udev(root)? {
        return Ok(format!("UUID={uuid}"));
    }
    let arguments = ["-p", "-o", "value", "-s", "UUID"].map(Into::into);
    let arguments: Vec<_> = arguments.into_iter().chain([mount.source.clone().into()]).collect();
    let found = tools::run(&tools::BLKID, &arguments, b"", &mount.source);
    let uuid = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match uuid {
        Ok(uuid) if !uuid.is_empty() => Ok(format!("UUID={uuid}")),
        _ => Err(Error::Disk {
            path: root.into(),
            why: format!(
                "the UUID of the file system on {} cannot be found out; give --root-mount-spec UUID=…",
                mount.source.display()
            ),
        }),
    }
}

fn uuid_from_udev(root: &Path) -> Result<Option<String>> {
    let Some((major, minor)) = mount_tree::block_device(root) else {
        return Ok(None);
    };
    let folder = Path::new("/dev/disk/by-uuid");
    let number = rustix::fs::makedev(major, minor);
    let is_it = |name: &std::ffi::OsString| std::fs::metadata(folder.join(name)).is_ok_and(|m| m.rdev() == number);
    let found = fs::names(folder)?.into_iter().find(is_it);
    Ok(found.and_then(|name| name.into_string().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_with(given: Option<&str>, mounted: &[&str], fat: bool) -> Result<(String, String), String> {
        let is_mounted = |path: &Path| mounted.iter().any(|own| path == Path::new(own));
        let seen = Seen {
            is_dir: &|path| path == Path::new("/esp"),
            is_mounted: &is_mounted,
            is_fat: &|path| fat || path != Path::new("/mnt/boot"),
        };
        let places = Places::find(Path::new("/mnt"), given.map(Path::new), &seen)?;
        Ok((places.boot.display().to_string(), places.esp.display().to_string()))
    }

    fn find(given: Option<&str>, mounted: &[&str]) -> Result<(String, String), String> {
        find_with(given, mounted, true)
    }

    #[test]
    fn a_boot_partition_that_systemd_boot_cannot_read_is_passed_over() {
        let both = |path: &str| Ok((path.to_owned(), path.to_owned()));
        assert_eq!(
            find_with(None, &["/mnt/boot", "/mnt/boot/efi"], false),
            both("/mnt/boot/efi")
        );
        assert_eq!(find_with(None, &["/mnt/boot"], false), both("/mnt/boot"));
    }

    #[test]
    fn boot_and_esp_are_told_apart_by_where_they_are_mounted() {
        let both = |path: &str| Ok((path.to_owned(), path.to_owned()));
        assert_eq!(find(None, &["/mnt/boot"]), both("/mnt/boot"));
        assert_eq!(find(None, &["/mnt/efi"]), both("/mnt/efi"));
        assert_eq!(find(None, &["/mnt/boot/efi"]), both("/mnt/boot/efi"));
        assert_eq!(
            find(None, &["/mnt/boot", "/mnt/efi"]),
            Ok(("/mnt/boot".into(), "/mnt/efi".into()))
        );
        assert_eq!(
            find(None, &["/mnt/boot", "/mnt/boot/efi"]),
            Ok(("/mnt/boot".into(), "/mnt/boot/efi".into()))
        );
        assert_eq!(find(Some("/esp"), &[]), both("/esp"));
        assert_eq!(
            find(Some("/esp"), &["/mnt/efi"]),
            Ok(("/esp".into(), "/mnt/efi".into()))
        );
        assert!(
            find(Some("/no"), &["/mnt/boot"])
                .unwrap_err()
                .contains("--boot /no: no such folder")
        );
        assert!(
            find(None, &[])
                .unwrap_err()
                .contains("mounted at /mnt/boot, /mnt/efi or /mnt/boot/efi")
        );
    }

    fn mount(kind: &str, root: &str, path: &str, options: &str) -> Mount {
        let line = format!("36 35 8:2 {root} {path} {options} - {kind} /dev/sdb2 rw\n");
        mountinfo::parse(line.as_bytes()).remove(0)
    }

    #[test]
    fn what_nothing_would_find_at_boot_is_refused() {
        assert_eq!(check_root(&mount("ext4", "/", "/mnt", "rw")), Ok(()));
        assert_eq!(check_root(&mount("btrfs", "/@", "/mnt", "rw")), Ok(()));
        let why = |mount: Mount| check_root(&mount).unwrap_err();
        assert!(why(mount("ext4", "/sub", "/mnt", "rw")).contains("only the folder /sub"));
        assert!(why(mount("ext4", "/", "/mnt", "ro,relatime")).contains("remount,rw"));
        assert!(why(mount("ext4", "/", "/", "rw")).contains("root of the running system"));
        assert!(why(mount("ext4", "/", "/sysroot", "rw")).contains("cfs-update switch"));
    }

    #[test]
    fn a_subvolume_is_named_on_the_command_line() {
        assert_eq!(arguments(&mount("ext4", "/", "/mnt", "rw")), [""; 0]);
        assert_eq!(arguments(&mount("btrfs", "/", "/mnt", "rw")), [""; 0]);
        assert_eq!(arguments(&mount("btrfs", "/@", "/mnt", "rw")), ["rootflags=subvol=/@"]);
    }

    #[test]
    fn only_what_cannot_matter_may_be_in_the_root() {
        let folder = tempfile::tempdir().unwrap();
        for name in HARMLESS {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        check_empty(folder.path()).unwrap();
        std::fs::write(folder.path().join("notes"), "").unwrap();
        let error = check_empty(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it is not empty; remove or move away: notes"), "{error}");
    }

    #[test]
    fn a_folder_that_is_no_mount_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wishes = Wishes {
            boot: None,
            root_argument: None,
            allow_missing_verity: true,
            algorithm: Algorithm::Sha256,
        };
        let error = look(folder.path(), &wishes).unwrap_err().to_string();
        assert!(error.contains("no file system is mounted exactly there"), "{error}");
    }
}
