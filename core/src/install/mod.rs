//! The first deployment of a machine, on a disk that is partitioned and formatted for it, or on a file system that
//! somebody else made.
//!
//! Invariant: everything that can be known beforehand is looked at before anything is changed: the image, the programs
//! that are needed, what the kernel can, what is on the disk and who uses it. What makes the disk bootable, the boot
//! entry, comes last, as in every update ([`crate::update::publish`]), so that a power cut leaves a disk that does not
//! boot and can be installed again, never one that boots half a system. What is mounted or attached is so for this
//! process only and goes with it.

pub mod disk;
pub mod existing;
pub mod format;
pub mod keys;
pub mod mountinfo;
pub mod table;
pub mod target;
pub mod tools;

use std::path::Path;

use crate::boot::HostArguments;
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};
use crate::pull::read_file;
use crate::registry::{Image, Registry};
use crate::sys::fs;
use crate::sysroot::{Known, Sysroot};
use crate::update::{self, Done, Fetched, Wishes};

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
    let (loader, program) = find_loader(sysroot, &fetched)?;
    refuse_small(place, &fetched, program.len() as u64)?;
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

/// The boot loader's program in the image, and its path there.
fn find_loader(sysroot: &Sysroot, fetched: &Fetched) -> Result<(String, Vec<u8>)> {
    let bootloader = sysroot.bootloader();
    let paths = bootloader.programs(fetched.architecture());
    for path in &paths {
        if let Some(inode) = fetched.tree().resolve(path) {
            return Ok((path.clone(), read_file(sysroot.store(), path, inode)?));
        }
    }
    let name = bootloader.name();
    Err(match paths.last() {
        Some(path) => Error::Tree {
            path: path.into(),
            why: format!("is not in the image; the image needs {name} (Debian: package {name}-efi)"),
        },
        None => Error::BootEntry {
            entry: name.into(),
            why: format!("there is none for architecture {}", fetched.architecture()),
        },
    })
}

/// Room for this kernel and that of an update, and for the loader.
fn refuse_small(place: &Prepared, fetched: &Fetched, loader: u64) -> Result<()> {
    let kernel = &fetched.bootable().kernel;
    let sizes = [kernel.linux.size()?, kernel.initrd.size()?];
    let (boot, esp) = (free(&place.boot)?, free(&place.esp)?);
    if place.boot == place.esp {
        return boot.refuse(&place.boot, boot.kernels(sizes) + boot.loader(loader), TWO_KERNELS);
    }
    boot.refuse(&place.boot, boot.kernels(sizes), TWO_KERNELS)?;
    esp.refuse(&place.esp, esp.loader(loader), "the boot loader must fit (--esp-size)")
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

    fn refuse(self, folder: &Path, needed: u64, remedy: &str) -> Result<()> {
        if needed <= self.bytes {
            return Ok(());
        }
        Err(Error::Space {
            path: folder.to_path_buf(),
            needed,
            free: self.bytes,
            remedy: format!("nothing was written to it; {remedy}"),
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

    #[test]
    fn two_kernels_and_the_loader_must_fit_and_one_byte_less_is_refused_with_numbers() {
        let free = |bytes| Free { bytes, block: 4096 };
        // 2 * (3 + 2) blocks of kernels, 16 beside them; 3 * 2 of the loader, 12 beside it.
        let needed = free(0).kernels([10_000, 8192]) + free(0).loader(5000);
        assert_eq!(needed, (10 + 16 + 6 + 12) * 4096);
        assert!(free(needed).refuse(Path::new("/esp"), needed, TWO_KERNELS).is_ok());
        let error = free(needed - 1)
            .refuse(Path::new("/esp"), needed, TWO_KERNELS)
            .unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Space);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("/esp: {needed} bytes needed, {} free", needed - 1)),
            "{text}"
        );
        assert!(text.contains("--esp-size"), "{text}");
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
