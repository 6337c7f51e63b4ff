//! Where `$BOOT` is, and whether it can be written.
//!
//! The choice is pure ([`choose`]); looking is apart from it. For a sysroot that is not the running system's, `$BOOT`
//! is its folder `boot`; for the running system it is what the Boot Loader Specification says: what is mounted at
//! `/boot`, otherwise the EFI system partition at `/efi` or, as it used to be, at `/boot/efi`. Nothing is written here.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cfs_core::error::{Error, Result};
use rustix::fs::{Access, AtFlags, StatVfsMountFlags};

use crate::variables;

/// `MSDOS_SUPER_MAGIC` of linux/magic.h: FAT in all its variants.
const MSDOS_SUPER_MAGIC: i64 = 0x4d44;

/// A folder that is `$BOOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootDir {
    /// Where it is mounted; absolute or as given.
    pub path: PathBuf,
    /// Whether it is FAT: no permissions, no links, upper and lower case the same, files below 4 GiB.
    pub fat: bool,
    /// Of the running system: where its EFI variables are.
    pub variables: Option<PathBuf>,
    /// Of the running system: its EFI system partition, where that is another one. The boot loader's settings are there.
    pub esp: Option<PathBuf>,
}

/// How to look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// This folder, which exists.
    Given(&'a Path),
    /// The folder `boot` of this sysroot; it is made on first need.
    Sysroot(&'a Path),
    /// Of the running system, whose root is this (`/`).
    Host(&'a Path),
}

/// Finds `$BOOT`.
///
/// # Errors
/// [`Error::BootEntry`] when there is none, saying what to mount or to give.
pub fn locate(place: Place<'_>) -> Result<BootDir> {
    let path = match place {
        Place::Given(path) if path.is_dir() => path.to_path_buf(),
        Place::Given(path) => {
            return Err(none(
                path,
                "no such folder; mount the boot partition there, or give another --boot DIR",
            ));
        }
        Place::Sysroot(sysroot) => sysroot.join("boot"),
        Place::Host(root) => {
            let candidates = probes(root);
            match choose(&candidates) {
                Some(probe) => {
                    refuse_other_esp(root, probe)?;
                    probe.path.clone()
                }
                None => {
                    let why =
                        "nothing is mounted at /boot, /efi or /boot/efi; mount the boot partition, or give --boot DIR";
                    return Err(none(&root.join("boot"), why));
                }
            }
        }
    };
    let (variables, esp) = match place {
        Place::Host(root) => (Some(root.join(variables::FOLDER)), other_esp(&probes(root), &path)),
        _ => (None, None),
    };
    Ok(BootDir {
        fat: is_fat(&path),
        path,
        variables,
        esp,
    })
}

/// Where `$BOOT` of the running system may be, best place first.
fn probes(root: &Path) -> [Probe; 3] {
    ["boot", "efi", "boot/efi"].map(|path| Probe::of(&root.join(path)))
}

/// The EFI system partition, unless it is `boot` itself: what firmware starts the boot loader from.
fn other_esp(candidates: &[Probe], boot: &Path) -> Option<PathBuf> {
    let is_esp = |probe: &&Probe| probe.mounted && probe.path.join("EFI").is_dir();
    let mut esps = candidates.iter().filter(is_esp).map(|probe| probe.path.clone());
    let first = esps.next()?;
    (first != boot && !esps.any(|path| path == boot)).then_some(first)
}

/// The variable in which systemd-boot and systemd-stub say which partition they were started from (Boot Loader
/// Interface), by its UUID.
const LOADER_PARTITION: &str = "LoaderDevicePartUUID";

/// Refuses an EFI system partition that is not the one the machine was started from: with two of them, entries on the
/// wrong one would never be read, and the update silently never boot.
fn refuse_other_esp(root: &Path, probe: &Probe) -> Result<()> {
    let started_from = variables::read(&root.join(variables::FOLDER), LOADER_PARTITION);
    let Some(uuid) = started_from.and_then(|text| partition_uuid(&text)) else {
        return Ok(());
    };
    let node = root.join("dev/disk/by-partuuid").join(&uuid);
    // A partition that is not there any more says nothing; an extended boot partition has no firmware's folder.
    let is_esp = probe.fat && probe.path.join("EFI").is_dir();
    let (Ok(started), true) = (std::fs::metadata(&node), is_esp) else {
        return Ok(());
    };
    if std::fs::metadata(&probe.path).is_ok_and(|mounted| mounted.dev() == started.rdev()) {
        return Ok(());
    }
    let why = format!(
        "this is not the EFI system partition that the machine was started from, which has the partition UUID {uuid}; \
         mount that one there, or give --boot DIR"
    );
    Err(none(&probe.path, &why))
}

/// The UUID in the variable's content, in lower case; `None` for anything else, so that no path can be made of it.
fn partition_uuid(text: &str) -> Option<String> {
    let is_uuid = text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_uuid.then(|| text.to_ascii_lowercase())
}

/// What was seen at a folder where `$BOOT` may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The folder.
    pub path: PathBuf,
    /// Something is mounted there.
    pub mounted: bool,
    /// It is FAT, which firmware and boot loaders can read.
    pub fat: bool,
    /// It holds `loader/entries` or `EFI`: a boot loader's partition.
    pub in_use: bool,
}

impl Probe {
    /// Looks, which also makes systemd mount what it mounts on demand.
    pub fn of(path: &Path) -> Self {
        let opened = std::fs::read_dir(path).is_ok();
        let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
        let above = path.parent().and_then(device);
        Self {
            mounted: opened && above.is_some() && device(path) != above,
            in_use: path.join("loader/entries").is_dir() || path.join("EFI").is_dir(),
            fat: opened && is_fat(path),
            path: path.to_path_buf(),
        }
    }
}

/// Chooses among the candidates, best place first: the first mounted one that a boot loader can read (FAT) or uses
/// already, otherwise the first mounted one.
pub fn choose(candidates: &[Probe]) -> Option<&Probe> {
    let mut mounted = candidates.iter().filter(|probe| probe.mounted);
    let readable = |probe: &&Probe| probe.fat || probe.in_use;
    mounted.clone().find(readable).or_else(|| mounted.next())
}

/// Makes sure that the nearest existing folder can be written, before anything is.
///
/// # Errors
/// [`Error::BootEntry`] that says what to do about a partition mounted read-only, or a folder of somebody else.
pub fn check_writable(boot: &Path) -> Result<()> {
    let existing = existing(boot);
    let fail = |e: rustix::io::Errno| Error::io("look at", existing, e);
    if rustix::fs::statvfs(existing)
        .map_err(fail)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY)
    {
        let why = format!(
            "it is mounted read-only; run: mount -o remount,rw {}",
            existing.display()
        );
        return Err(none(boot, &why));
    }
    match rustix::fs::accessat(
        rustix::fs::CWD,
        existing,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    ) {
        Ok(()) => Ok(()),
        Err(_) => Err(none(
            boot,
            "it cannot be written by this user; run this as its owner or as root, or give --boot DIR",
        )),
    }
}

/// Free bytes and the size of a block on the file system that `boot` is on or will be made on.
pub fn free(boot: &Path) -> Result<(u64, u64)> {
    let existing = existing(boot);
    let stat = rustix::fs::statvfs(existing).map_err(|e| Error::io("ask for free space on", existing, e))?;
    let block = stat.f_frsize.max(512);
    Ok((stat.f_bavail.saturating_mul(block), block))
}

/// The folder itself or the nearest one above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn is_fat(path: &Path) -> bool {
    // The type of the field differs between architectures.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    rustix::fs::statfs(existing(path)).is_ok_and(|stat| stat.f_type as i64 == MSDOS_SUPER_MAGIC)
}

fn none(path: &Path, why: &str) -> Error {
    Error::BootEntry {
        entry: format!("folder {}", path.display()),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn probe(path: &str, mounted: bool, in_use: bool) -> Probe {
        Probe {
            path: path.into(),
            mounted,
            fat: false,
            in_use,
        }
    }

    #[test]
    fn the_boot_partition_comes_before_the_efi_one() {
        let path = |candidates: &[Probe]| choose(candidates).map(|probe| probe.path.display().to_string());
        let both = [probe("/boot", true, true), probe("/efi", true, true)];
        assert_eq!(path(&both).as_deref(), Some("/boot"));
        // /boot is a partition of its own for another purpose: what a boot loader reads is at /efi.
        let separate = [probe("/boot", true, false), probe("/efi", true, true)];
        assert_eq!(path(&separate).as_deref(), Some("/efi"));
        // A new extended boot partition, which no boot loader reads yet, comes before the small ESP.
        let extended = Probe {
            fat: true,
            ..probe("/boot", true, false)
        };
        assert_eq!(path(&[extended, probe("/efi", true, true)]).as_deref(), Some("/boot"));
        let old = [
            probe("/boot", false, false),
            probe("/efi", false, false),
            probe("/boot/efi", true, true),
        ];
        assert_eq!(path(&old).as_deref(), Some("/boot/efi"));
        let fresh = [probe("/boot", true, false), probe("/efi", false, true)];
        assert_eq!(path(&fresh).as_deref(), Some("/boot"));
        assert_eq!(path(&[probe("/boot", false, true)]), None);
    }

    #[test]
    fn settings_are_on_the_efi_system_partition_where_that_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let probe = |path: &str| Probe {
            mounted: true,
            ..Probe::of(&at(path))
        };
        std::fs::create_dir_all(at("efi/EFI")).unwrap();
        std::fs::create_dir_all(at("boot")).unwrap();
        let both = || [probe("boot"), probe("efi")];
        assert_eq!(other_esp(&both(), &at("boot")), Some(at("efi")));
        assert_eq!(other_esp(&both(), &at("efi")), None);
        let unmounted = Probe {
            mounted: false,
            ..probe("efi")
        };
        assert_eq!(other_esp(&[probe("boot"), unmounted], &at("boot")), None);
        std::fs::create_dir_all(at("boot/EFI")).unwrap();
        assert_eq!(other_esp(&both(), &at("boot")), None, "it is one itself");
    }

    #[test]
    fn a_sysroots_boot_folder_need_not_exist_and_a_given_one_must() {
        let folder = tempfile::tempdir().unwrap();
        let found = locate(Place::Sysroot(folder.path())).unwrap();
        assert_eq!(found.path, folder.path().join("boot"));
        assert!(!found.fat);
        let error = locate(Place::Given(&folder.path().join("esp")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("esp: no such folder; mount"), "{error}");
        assert_eq!(locate(Place::Given(folder.path())).unwrap().path, folder.path());
        let error = locate(Place::Host(folder.path())).unwrap_err().to_string();
        assert!(error.contains("--boot DIR"), "{error}");
    }

    #[test]
    fn a_second_esp_is_refused_and_the_one_that_was_started_from_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let esp = Probe {
            fat: true,
            ..Probe::of(&root.join("efi"))
        };
        std::fs::create_dir_all(esp.path.join("EFI")).unwrap();
        assert!(refuse_other_esp(root, &esp).is_ok(), "no variable: another boot loader");
        let variable = variables::path(&root.join(variables::FOLDER), LOADER_PARTITION);
        std::fs::create_dir_all(variable.parent().unwrap()).unwrap();
        let uuid = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
        let units = uuid.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        std::fs::write(&variable, [6, 0, 0, 0].into_iter().chain(units).collect::<Vec<u8>>()).unwrap();
        assert!(refuse_other_esp(root, &esp).is_ok(), "that partition has gone");
        let nodes = root.join("dev/disk/by-partuuid");
        std::fs::create_dir_all(&nodes).unwrap();
        // Any device will do that is not the one that the folder is on.
        std::os::unix::fs::symlink("/dev/null", nodes.join(uuid.to_lowercase())).unwrap();
        let error = refuse_other_esp(root, &esp).unwrap_err().to_string();
        assert!(error.contains("efi") && error.contains(&uuid.to_lowercase()), "{error}");
        let extended = Probe {
            path: root.join("boot"),
            ..esp
        };
        assert!(
            refuse_other_esp(root, &extended).is_ok(),
            "an extended boot partition is another one"
        );
        for raw in [&b""[..], b"abc", &[0; 80], "....../../../../etc/passwd".as_bytes()] {
            std::fs::write(&variable, raw).unwrap();
            let text = variables::read(&root.join(variables::FOLDER), LOADER_PARTITION);
            assert_eq!(text.and_then(|text| partition_uuid(&text)), None);
        }
    }

    #[test]
    fn a_mount_point_is_told_from_a_folder() {
        assert!(Probe::of(Path::new("/proc")).mounted);
        assert!(!Probe::of(Path::new("/usr/share")).mounted);
        assert!(!Probe::of(Path::new("/does/not/exist")).mounted);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_writable(folder.path()).is_ok());
        assert!(check_writable(&folder.path().join("not/there/yet")).is_ok());
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
        let refused = check_writable(folder.path());
        // Root may write it all the same.
        let root = rustix::process::geteuid().is_root();
        assert!(root || refused.unwrap_err().to_string().contains("give --boot DIR"));
    }
}
