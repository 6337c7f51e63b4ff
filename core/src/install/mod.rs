//! The first deployment of a machine, on a disk that is partitioned and formatted for it, or on a file system that
//! somebody else made.
//!
//! Invariant: everything that can be known beforehand is looked at before anything is changed: the image, the programs
//! that are needed, what the kernel can, what is on the disk and who uses it. What makes the disk bootable, the boot
//! entry, comes last, as in every update ([`crate::update::publish`]), so that a power cut leaves a disk that does not
//! boot and can be installed again, never one that boots half a system. What is mounted or attached is so for this
//! process only and goes with it.

pub mod configuration;
pub mod disk;
pub mod existing;
pub mod format;
pub mod keys;
pub mod mountinfo;
pub mod table;
pub mod target;
pub mod tools;
pub mod uuid;

use std::path::Path;

use crate::boot::HostArguments;
use crate::bootable;
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};
use crate::pull::read_file;
use crate::registry::{Image, Registry};
use crate::sys::fs;
use crate::sysroot::{Known, Sysroot};
use crate::tree::Tree;
use crate::update::{self, Done, Wishes};

pub use disk::Disk;
pub use table::{FileSystem, Sizes, Table};
pub use target::Prepared;

/// What is installed.
#[derive(Debug)]
pub struct Request<'a> {
    /// Has the layers.
    pub registry: &'a Registry,
    /// The image, under the reference that is followed from then on.
    pub image: Image,
    /// What every entry of the machine gets.
    pub host: HostArguments,
    /// Who may log in as root: the text of an `authorized_keys`.
    pub root_keys: Option<Vec<u8>>,
}

/// What was installed.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The deployment.
    pub done: Done,
    /// Where the image has the boot loader that was put in place.
    pub loader: String,
    /// What the entry has beside the image's arguments.
    pub host: HostArguments,
}

/// Installs to a prepared place: the way of an update, with the boot loader put in place before the entry.
///
/// # Errors
/// Those of an update; [`Error::Space`] where the boot partition is too small for two kernels, before anything is
/// written to it; [`Error::Tree`] for an image without a boot loader.
pub fn install(sysroot: &Sysroot, place: &Prepared, request: Request<'_>, monitor: &dyn Monitor) -> Result<Installed> {
    let known = sysroot.known()?;
    refuse_installed(sysroot, &known)?;
    let Request {
        registry,
        image,
        host,
        root_keys,
    } = request;
    let fetched = update::fetch(sysroot, registry, image, &known, Wishes::default(), monitor)?;
    let architecture = fetched.architecture().to_owned();
    let files = BootFiles::find(fetched.tree(), &sysroot.bootloader().programs(&architecture))?;
    files.check_mounted(place)?;
    let loader = files.loader;
    let program = match fetched.tree().resolve(&loader) {
        Some(inode) => read_file(sysroot.store(), &loader, inode)?,
        None => Vec::new(),
    };
    let host = with_wanted(host, sysroot, fetched.tree(), &architecture, monitor)?;
    host.save(sysroot.fs(), sysroot.layout())?;
    let recorded = update::record(sysroot, fetched, &known, monitor)?;
    let etc = recorded.deployment().etc();
    let warnings = [
        root_keys
            .map(|keys| keys::add(&etc, recorded.tree(), &keys))
            .transpose()?
            .flatten(),
        machine_id_warning(&etc),
    ];
    for warning in warnings.into_iter().flatten() {
        monitor.event(Event::Warning(warning));
    }
    for note in sysroot.bootloader().install(&place.esp, &architecture, &program)? {
        monitor.event(Event::Note(note));
    }
    let done = update::publish(sysroot, recorded, &known, monitor)?;
    Ok(Installed { done, loader, host })
}

/// With the kernel arguments that the image wants from its installation on, before those that were asked for.
fn with_wanted(
    host: HostArguments,
    sysroot: &Sysroot,
    tree: &Tree,
    architecture: &str,
    monitor: &dyn Monitor,
) -> Result<HostArguments> {
    let files = bootable::settings_files(sysroot.store(), tree, &configuration::FOLDERS)?;
    let wanted = configuration::kernel_arguments(files, architecture)?;
    if !wanted.is_empty() {
        let list = wanted.join(" ");
        monitor.event(Event::Note(format!(
            "kernel arguments of the image's bootc/install: {list}"
        )));
    }
    let kernel_arguments = [wanted, host.kernel_arguments].concat();
    Ok(HostArguments {
        kernel_arguments,
        ..host
    })
}

/// What a failed installation left has no entry, and is taken over.
fn refuse_installed(sysroot: &Sysroot, known: &[Known]) -> Result<()> {
    let Some(found) = known.iter().find(|known| known.entry.is_some()) else {
        return Ok(());
    };
    Err(Error::Deployment {
        id: found.id.short(),
        why: format!(
            "is installed there already; use `cfs-update --sysroot {} switch`",
            sysroot.layout().root().display()
        ),
    })
}

/// What of an image goes onto the boot partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// Bytes of kernel and initrd.
    kernel: [u64; 2],
    /// The boot loader's program in the image.
    loader: String,
    loader_size: u64,
}

impl BootFiles {
    /// Looks into a merged tree; `programs` is where the boot loader may be, best first. No content is read.
    ///
    /// # Errors
    /// [`Error::Tree`] for an image without kernel, initrd or boot loader.
    pub fn find(tree: &Tree, programs: &[String]) -> Result<Self> {
        let found = programs.iter().find_map(|path| Some((path, tree.resolve(path)?)));
        let (loader, inode) = found.ok_or_else(|| Error::Tree {
            path: programs.last().map_or_else(|| Path::new("/"), Path::new).into(),
            why: "is not in the image; the image needs its boot loader (Debian: package systemd-boot-efi)".into(),
        })?;
        Ok(Self {
            kernel: bootable::kernel_sizes(tree)?,
            loader: loader.clone(),
            loader_size: inode.size(),
        })
    }

    /// Whether they fit, before there is a file system: `boot` and `esp` are the sizes of the partitions, `None` where
    /// one is both.
    ///
    /// # Errors
    /// [`Error::Space`] of `path`.
    pub fn check_partitions(&self, path: &Path, boot: Option<u64>, esp: u64) -> Result<()> {
        // The largest that FAT itself may take: two tables of four bytes for each cluster of 512.
        let usable = |size: u64| Free {
            bytes: size.saturating_sub(size / 64).saturating_sub(table::MIB),
            block: 512,
        };
        let places = Places {
            boot: (path, boot.map_or_else(|| usable(esp), usable)),
            esp: boot.map(|_| (path, usable(esp))),
        };
        self.check(&places, "nothing was changed")
    }

    /// Whether they fit onto what is mounted.
    ///
    /// # Errors
    /// [`Error::Space`] with the folder.
    pub fn check_mounted(&self, place: &Prepared) -> Result<()> {
        let places = Places {
            boot: (&place.boot, free(&place.boot)?),
            esp: match place.boot == place.esp {
                true => None,
                false => Some((&place.esp, free(&place.esp)?)),
            },
        };
        self.check(&places, "nothing was written to it")
    }

    /// Room for this kernel and that of an update, and for the loader.
    fn check(&self, places: &Places<'_>, done: &str) -> Result<()> {
        let (path, boot) = places.boot;
        let kernels = boot.kernels(self.kernel);
        match places.esp {
            None => boot.refuse(path, kernels + boot.loader(self.loader_size), done, TWO_KERNELS),
            Some((esp_path, esp)) => {
                boot.refuse(path, kernels, done, TWO_KERNELS)?;
                let what = "the boot loader must fit (--esp-size)";
                esp.refuse(esp_path, esp.loader(self.loader_size), done, what)
            }
        }
    }
}

/// What is free where; `esp` only where it is another partition.
struct Places<'a> {
    boot: (&'a Path, Free),
    esp: Option<(&'a Path, Free)>,
}

const TWO_KERNELS: &str = "two kernels with their initrds must fit, for this system and its update: make the partition \
                           larger (--esp-size, or --xbootldr for one of its own)";

/// Free bytes, and bytes of a block.
#[derive(Clone, Copy, Debug)]
struct Free {
    bytes: u64,
    block: u64,
}

fn free(folder: &Path) -> Result<Free> {
    let stat = rustix::fs::statvfs(folder).map_err(|e| Error::io("ask for free space on", folder, e))?;
    Ok(Free {
        bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        block: stat.f_frsize.max(512),
    })
}

impl Free {
    fn blocks(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block).saturating_mul(self.block)
    }

    /// Two of them, with folders and entries.
    fn kernels(self, sizes: [u64; 2]) -> u64 {
        let one = sizes.map(|size| self.blocks(size)).iter().sum::<u64>();
        one.saturating_mul(2).saturating_add(16 * self.block)
    }

    /// In both its places and, while that is written, once more; settings and folders.
    fn loader(self, size: u64) -> u64 {
        self.blocks(size).saturating_mul(3).saturating_add(12 * self.block)
    }

    fn refuse(self, folder: &Path, needed: u64, done: &str, remedy: &str) -> Result<()> {
        if needed <= self.bytes {
            return Ok(());
        }
        Err(Error::Space {
            path: folder.to_path_buf(),
            needed,
            free: self.bytes,
            remedy: format!("{done}; {remedy}"),
        })
    }
}

/// An image whose /etc/machine-id is a real one gives it to every machine.
fn machine_id_warning(etc: &Path) -> Option<String> {
    let text = fs::read(&etc.join("machine-id"), 4096)
        .ok()
        .flatten()
        .unwrap_or_default();
    let id = text.trim_ascii();
    let is_one = id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit);
    is_one.then(|| {
        "the image has a machine ID of its own in /etc/machine-id, which all machines installed from it will share; \
         leave that file empty in the image, then each makes its own at its first boot"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BootFiles {
        BootFiles {
            kernel: [10_000, 8192],
            loader: "loader".into(),
            loader_size: 5000,
        }
    }

    #[test]
    fn two_kernels_and_the_loader_must_fit_and_one_byte_less_is_refused_with_numbers() {
        let with = |bytes| Places {
            boot: (Path::new("/esp"), Free { bytes, block: 4096 }),
            esp: None,
        };
        // 2 * (3 + 2) blocks of kernels, 16 beside them; 3 * 2 of the loader, 12 beside it.
        let needed = (10 + 16 + 6 + 12) * 4096;
        assert!(files().check(&with(needed), "nothing was changed").is_ok());
        let error = files().check(&with(needed - 1), "nothing was changed").unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Space);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!(
                "/esp: {needed} bytes needed, {} free; nothing was changed",
                needed - 1
            )),
            "{text}"
        );
        assert!(text.contains("--esp-size"), "{text}");
    }

    #[test]
    fn kernels_need_no_room_on_the_esp_where_there_is_a_boot_partition() {
        let files = BootFiles {
            kernel: [20 << 20, 30 << 20],
            ..files()
        };
        let check = |boot, esp| {
            files
                .check_partitions(Path::new("/dev/sdx"), boot, esp)
                .map_err(|e| e.to_string())
        };
        assert!(check(None, 104 << 20).is_ok());
        assert!(check(None, 100 << 20).unwrap_err().contains("/dev/sdx: 104"));
        assert!(check(Some(104 << 20), 36 << 20).is_ok());
        assert!(check(Some(100 << 20), 512 << 20).unwrap_err().contains("two kernels"));
        assert!(
            check(Some(200 << 20), 1 << 20)
                .unwrap_err()
                .contains("the boot loader must fit")
        );
    }

    #[test]
    fn an_image_without_boot_loader_is_told_what_it_needs() {
        let text = "/ 0 40755 2 0 0 0 0.0 - - -\n";
        let tree = crate::image::dump::parse(text.as_bytes()).unwrap();
        let programs = ["usr/a.efi.signed".to_owned(), "usr/a.efi".to_owned()];
        let error = BootFiles::find(&tree, &programs).unwrap_err().to_string();
        assert!(error.starts_with("usr/a.efi: is not in the image"), "{error}");
    }

    #[test]
    fn only_a_real_machine_id_is_warned_of() {
        let etc = tempfile::tempdir().unwrap();
        assert_eq!(machine_id_warning(etc.path()), None);
        for harmless in ["", "uninitialized\n", "0123\n"] {
            std::fs::write(etc.path().join("machine-id"), harmless).unwrap();
            assert_eq!(machine_id_warning(etc.path()), None);
        }
        std::fs::write(etc.path().join("machine-id"), format!("{}\n", "ab".repeat(16))).unwrap();
        assert!(machine_id_warning(etc.path()).unwrap().contains("share"));
    }
}
