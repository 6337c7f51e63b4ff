//! Kernels on `$BOOT` as they are there now: whether they are what was written, whether that is what the image holds, and
//! making them so.
//!
//! Invariant: what the boot loader takes next stays what it is. A kernel is written anew beside the damaged one and then
//! renamed over it; an entry with the wrong one is not changed, but gets a newer one beside it, as an update would, and
//! what boots next another one above that. A power cut leaves what was there, or a whole kernel or entry more.

use std::collections::BTreeMap;

use crate::activate::{self, Line};
use crate::boot::{BootEntry, KernelDigest, KernelFiles, NewEntry, cmdline};
use crate::bootable;
use crate::deployment::{Deployment, Origin};
use crate::error::{Error, Result};
use crate::plan::{self, Standing};
use crate::pull;
use crate::sysroot::{Known, Sysroot};

/// Whether kernel and initrd of an entry are what they were when they were written; reads both. Of files that are not
/// ours nobody knows.
pub(crate) fn are_whole(sysroot: &Sysroot, entry: &BootEntry) -> bool {
    entry.kernel.is_none()
        || KernelFiles::on_boot(entry, sysroot.bootloader().boot_dir())
            .digest()
            .is_ok()
}

/// Deployments as the decisions see them, with the kernels read: what can be started cannot boot where they are damaged.
/// Too slow for what only looks.
pub(crate) fn standing(sysroot: &Sysroot, known: &[Known]) -> Vec<Standing> {
    let mut read = BTreeMap::new();
    let mut stand = |found: &Known| {
        let mut standing = found.standing.clone();
        if let Some(entry) = found.entry.as_ref().filter(|_| standing.bootable) {
            standing.bootable = *read.entry(entry.kernel).or_insert_with(|| are_whole(sysroot, entry));
        }
        standing
    };
    known.iter().map(&mut stand).collect()
}

/// Entries whose kernel or initrd is none of their image's, though it is what was written: as versions before this one
/// may have copied it from a damaged object. What cannot be compared is not among them.
pub(crate) fn not_of_their_image<'k>(sysroot: &Sysroot, known: &'k [Known]) -> Vec<&'k BootEntry> {
    let entries = known.iter().filter_map(|found| Some((found, found.entry.as_ref()?)));
    let wrong = entries.filter(|(found, entry)| {
        let digest = entry.kernel.filter(|_| entry.works());
        let kernels = digest.and_then(|_| Kernels::of(sysroot, found).ok());
        digest
            .zip(kernels)
            .is_some_and(|(digest, kernels)| matches!(kernels.find(digest), Ok(None)))
    });
    wrong.map(|(_, entry)| entry).collect()
}

/// The kernels that an image holds, the one that is booted first.
struct Kernels(Vec<KernelFiles>);

impl Kernels {
    /// From a deployment's layers, since its image has an empty /boot.
    ///
    /// # Errors
    /// Where they are not here.
    fn of(sysroot: &Sysroot, known: &Known) -> Result<Self> {
        let store = &sysroot.store;
        let missing = |why: &str| Error::Deployment {
            id: known.id.short(),
            why: format!("{why}, so its kernel is not known; deploy its image again"),
        };
        let manifest = known.manifest().ok_or_else(|| missing("its record cannot be read"))?;
        let layers = store.stored_image(&manifest)?.config.diff_ids;
        if !layers.iter().all(|layer| store.layer_is_published(layer)) {
            return Err(missing("its layers are not all here"));
        }
        let tree = pull::merge(store, &layers)?;
        let kernels = bootable::kernels(store, &tree)?;
        match kernels.is_empty() {
            true => Err(missing("it has no kernel")),
            false => Ok(Self(kernels)),
        }
    }

    /// The one of this digest, its objects checked; reads them.
    fn find(&self, digest: KernelDigest) -> Result<Option<&KernelFiles>> {
        for kernel in &self.0 {
            if kernel.digest()? == digest {
                return Ok(Some(kernel));
            }
        }
        Ok(None)
    }
}

/// Kernels that were made whole, by entry; and those that could not be, and why.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    pub done: Vec<String>,
    pub failed: Vec<(String, Error)>,
}

/// Makes the kernels of all deployments those of their images.
///
/// # Errors
/// What listing gives. A kernel that cannot be mended is no failure of the others.
pub(crate) fn mend(sysroot: &Sysroot) -> Result<Mended> {
    let mut mended = Mended::default();
    let ids: Vec<_> = sysroot.known()?.iter().map(|found| found.id).collect();
    for id in ids {
        // What was mended before has other entries now.
        let known = sysroot.known()?;
        let found = known.iter().find(|found| found.id == id);
        let Some((found, entry)) = found.and_then(|found| Some((found, found.entry.as_ref()?))) else {
            continue;
        };
        match mend_one(sysroot, &known, found, entry) {
            Ok(false) => {}
            Ok(true) => mended.done.push(format!("kernel of {}", entry.file)),
            Err(error) => mended.failed.push((format!("kernel of {}", entry.file), error)),
        }
    }
    Ok(mended)
}

/// Whether there was something to mend.
fn mend_one(sysroot: &Sysroot, known: &[Known], found: &Known, entry: &BootEntry) -> Result<bool> {
    let Some(digest) = entry.kernel else {
        return Ok(false);
    };
    let damaged = !are_whole(sysroot, entry);
    let kernels = match Kernels::of(sysroot, found) {
        Err(_) if !damaged => return Ok(false),
        kernels => kernels?,
    };
    let right = match kernels.find(digest) {
        Err(_) | Ok(Some(_)) if !damaged => return Ok(false),
        right => right?,
    };
    let deployment = activate::verified(found)?;
    match right {
        Some(kernel) => write_anew(sysroot, known, deployment, entry, kernel)?,
        // It is not booted any more, and is not to have further tries.
        None if entry.is_bad() => return Ok(false),
        None => enter_anew(sysroot, known, deployment, entry, &kernels.0[0])?,
    }
    Ok(true)
}

/// The same files in the same folder: what staging another entry does; none is published.
fn write_anew(
    sysroot: &Sysroot,
    known: &[Known],
    deployment: &Deployment,
    entry: &BootEntry,
    kernel: &KernelFiles,
) -> Result<()> {
    let id = *deployment.id();
    let new = NewEntry {
        id,
        generation: activate::next_generation(sysroot, known)?,
        title: entry.title.clone(),
        version: String::new(),
        options: vec![cmdline::digest_argument(&id, false)],
        kernel: kernel.clone(),
        tries: None,
    };
    sysroot.bootloader().stage(deployment, &new).map(drop)
}

/// A further entry with the image's kernel, and before it one above it for what boots next, so that this still does.
fn enter_anew(
    sysroot: &Sysroot,
    known: &[Known],
    deployment: &Deployment,
    entry: &BootEntry,
    kernel: &KernelFiles,
) -> Result<()> {
    let (id, bootloader) = (*deployment.id(), sysroot.bootloader());
    let generation = activate::next_generation(sysroot, known)?;
    let mut new = NewEntry::again(entry, bootloader.boot_dir(), generation, sysroot.options.tries)?;
    new.kernel = kernel.clone();
    let staged = bootloader.stage(deployment, &new)?;
    let next = plan::next_to_boot(&Sysroot::standing(known)).map(|next| next.id);
    let mut entered = vec![(deployment, generation)];
    if let Some(next) = next.filter(|next| *next != id) {
        let (of, above) = activate::stage_again(sysroot, known, (next, generation + 1), Line::Same)?;
        bootloader.publish(above)?;
        entered.push((of, generation + 1));
    }
    bootloader.publish(staged)?;
    let noted = entered
        .into_iter()
        .flat_map(|(of, generation)| activate::note_entry(sysroot, of, generation, "repair"));
    let lost: Vec<_> = noted.collect();
    let (digest, sizes) = (kernel.digest()?.to_string(), kernel.sizes()?);
    let noted = |origin: &mut Origin| {
        origin.boot_digest = Some(digest);
        origin.kernel_sizes = Some(sizes);
    };
    sysroot.deployments.update(sysroot.fs(), &id, noted)?;
    lost.into_iter().next().map_or(Ok(()), Err)
}
