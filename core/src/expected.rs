//! What the next version is expected to need that cannot be known before it is here, by what the present one has.
//!
//! Invariant: nothing is refused for an expectation, and nothing is written.

use crate::bound as bound_images;
use crate::error::Result;
use crate::monitor::{Event, Monitor};
use crate::preflight::{Amount, Figures};
use crate::reference::Reference;
use crate::registry::{self, Registry};
use crate::sys::fs;
use crate::sys::space::Space;
use crate::sysroot::{Known, Sysroot};

/// What the deployment that is followed binds, as it is now: the next one is expected to bind the same. What cannot be
/// had is a warning here; it will be an error then.
///
/// # Errors
/// What reading the store gives.
pub fn bound(sysroot: &Sysroot, known: &[Known], monitor: &dyn Monitor) -> Result<Vec<(Registry, registry::Image)>> {
    let mut images = Vec::new();
    let Some(current) = sysroot.current(known) else {
        return Ok(images);
    };
    for reference in bound_images::of(&sysroot.store, &current.id)? {
        let asked = reference.parse::<Reference>().and_then(|reference| {
            let registry = Registry::open(&reference, &sysroot.options.registry)?;
            let image = registry.image(&sysroot.options.platform, monitor)?;
            Ok((registry, image))
        });
        match asked {
            Ok(found) => images.push(found),
            Err(error) => monitor.event(Event::Warning(format!(
                "bound image {reference} is not counted: {error}"
            ))),
        }
    }
    Ok(images)
}

/// What a kernel and an initrd as large as those of the deployment that is followed would take on `$BOOT`; `None`
/// where there are none. The new ones may be the same, which take nothing, so nothing is refused for this.
///
/// # Errors
/// What the system answers about the file system.
pub fn boot(sysroot: &Sysroot, known: &[Known]) -> Result<Option<Figures>> {
    let boot = sysroot.bootloader().boot_dir();
    let Some(entry) = sysroot.current(known).and_then(|known| known.entry.as_ref()) else {
        return Ok(None);
    };
    let space = Space::of(boot)?;
    let size = |path: &str| fs::metadata(&boot.join(path.trim_start_matches('/'))).map_or(0, |file| file.len());
    let blocks = |bytes: u64| bytes.div_ceil(space.block).saturating_mul(space.block);
    Ok(Some(Figures {
        path: boot.to_path_buf(),
        at_least: Amount::default(),
        about: Amount {
            // Beside the files: the entry, and folders that it makes or that grow.
            bytes: blocks(size(&entry.linux)) + blocks(size(&entry.initrd)) + 6 * space.block,
            inodes: 4,
        },
        free: space.bytes,
        free_inodes: space.inodes,
    }))
}

/// What is to be said where that does not fit.
pub fn boot_doubt(boot: &Figures) -> Option<String> {
    (boot.about.bytes > boot.free).then(|| {
        format!(
            "{}: {} bytes are free, and kernel and initrd of the present deployment take {}: an image with another kernel \
             cannot be staged before a deployment is deleted",
            boot.path.display(),
            boot.free,
            boot.about.bytes
        )
    })
}
