//! What an update would change on this machine: of an image whose layers are all here.
//!
//! The tree is merged and transformed, and the image's digest computed, as the update does it. Invariant: nothing is
//! written, so what is said holds as long as nobody changes the machine or its /etc in between.

use crate::activate;
use crate::boot::{BootEntry, Room, cmdline};
use crate::bootable;
use crate::deploy;
use crate::error::Result;
use crate::etc::Conflict;
use crate::ids::DeploymentId;
use crate::image::{Versions, reader, writer};
use crate::plan;
use crate::preflight::{Amount, Figures};
use crate::pull::{self, IMAGE_LIMIT, Variant};
use crate::registry;
use crate::sys::verity::Hasher;
use crate::sysroot::{Known, Sysroot};
use crate::tree::{self, Differences, Merge, Tree};
use crate::trial;

/// What would be other than it is.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The deployment that would boot next.
    pub id: DeploymentId,
    /// Its version.
    pub version: Option<String>,
    /// Paths of its image, beside those of the deployment that runs or else boots next.
    pub files: Differences,
    /// The kernel, as in `uname -r`.
    pub kernel: String,
    /// `$BOOT` has these very kernel files.
    pub kernel_stays: bool,
    /// Kernel arguments that the present entry has not.
    pub arguments: Vec<String>,
    /// Kernel arguments that only the present entry has.
    pub arguments_gone: Vec<String>,
    /// Where the administrator's /etc and the image's do not go together.
    pub conflicts: Vec<Conflict>,
    /// Whether user space alone could be restarted into it, else why not; `None` where nothing of ours runs.
    pub soft_reboot: Option<Result<(), String>>,
    /// What would be written on `$BOOT`.
    pub boot: Figures,
}

/// Finds out; all layers are here. `line`: what the kernel that runs was booted with.
///
/// # Errors
/// Those of the update, as far as it would come without writing.
pub fn of(sysroot: &Sysroot, known: &[Known], image: &registry::Image, line: &[String]) -> Result<Changes> {
    let store = &sysroot.store;
    let mut tree = pull::merge(store, &image.config.diff_ids)?;
    let bootable = bootable::look(store, &tree, &image.config.architecture)?;
    pull::transform(store, &mut tree, Variant::Boot)?;
    let id = digest(sysroot, &tree)?;
    let current = sysroot.current(known);
    let room = sysroot.bootloader().room(&bootable.kernel)?;
    let host = trial::wanted(sysroot)?.and(&sysroot.options.kernel_arguments);
    let root = activate::root_argument(sysroot, known)?;
    let options = bootable::command_line(&id, &root, &bootable.arguments, &host);
    let present = current.and_then(|known| known.entry.as_ref());
    let had = present.map_or(&[][..], |entry| &entry.options);
    let (arguments, arguments_gone) = (only(&options, had), only(had, &options));
    let running = present.filter(|_| sysroot.booted().is_some());
    let soft = |running: &BootEntry| {
        let next = BootEntry {
            id: Some(id),
            kernel: Some(bootable.kernel.digest()?),
            options,
            ..running.clone()
        };
        Ok::<_, crate::Error>(plan::soft_reboot(running, &next, line))
    };
    Ok(Changes {
        id,
        version: deploy::version(image, &bootable),
        files: files(sysroot, current, &tree)?,
        kernel_stays: room.shared,
        arguments,
        arguments_gone,
        conflicts: deploy::etc_conflicts(sysroot, &tree, sysroot.with_etc(known))?,
        soft_reboot: running.map(soft).transpose()?,
        boot: on_boot(sysroot, room),
        kernel: bootable.kernel.version,
    })
}

/// The digest of the image that would be made.
fn digest(sysroot: &Sysroot, tree: &Tree) -> Result<DeploymentId> {
    let mut hasher = Hasher::new(sysroot.store.algorithm());
    let mut sink = |piece: &[u8]| {
        hasher.update(piece);
        Ok(())
    };
    writer::write(tree, Versions::V1, &mut sink)?;
    Ok(hasher.finish())
}

fn files(sysroot: &Sysroot, current: Option<&Known>, tree: &Tree) -> Result<Differences> {
    let old = match current {
        Some(current) => reader::read(&sysroot.store.read_object(&current.id, IMAGE_LIMIT)?)?,
        None => Merge::new().finish()?,
    };
    Ok(tree::compare(&old, tree))
}

/// What is in one list of kernel arguments only, the name of the image apart.
fn only(list: &[String], other: &[String]) -> Vec<String> {
    let own = |a: &&String| !cmdline::names_image(a) && !other.contains(a);
    list.iter().filter(own).cloned().collect()
}

fn on_boot(sysroot: &Sysroot, room: Room) -> Figures {
    let amount = Amount {
        bytes: room.needed,
        inodes: 0,
    };
    Figures {
        path: sysroot.bootloader().boot_dir().to_path_buf(),
        at_least: amount,
        about: amount,
        free: room.free,
        free_inodes: None,
    }
}
