//! Kernels on `$BOOT` as they are there now: whether they are what was written, whether that is what the image holds, and
//! making them so.
//!
//! Invariant: what the boot loader takes next stays what it is. A kernel is written anew beside the damaged one and then
//! renamed over it; an entry with the wrong one is not changed, but gets a newer one beside it, as an update would, and
//! what boots next another one above that; only the one to go back to from changed kernel arguments
//! ([`crate::trial`]) gets none. A power cut leaves what was there, or a whole kernel or entry more.

use std::collections::BTreeMap;
use std::path::Path;

use crate::activate::{self, Line};
use crate::boot::{BootEntry, KernelDigest, KernelFiles, NewEntry, cmdline};
use crate::bootable;
use crate::deployment::{Deployment, Origin};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
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
/// may have copied it from a damaged object; with each what to do. What cannot be compared is not among them.
///
/// # Errors
/// What listing gives.
pub(crate) fn not_of_their_image(sysroot: &Sysroot, known: &[Known]) -> Result<Vec<(BootEntry, &'static str)>> {
    let mut wrong = Vec::new();
    for found in known {
        let Some(best) = found.entry.as_ref() else {
            continue;
        };
        let others = beside(sysroot, best, found.id)?;
        let mut entries: Vec<_> = std::iter::once(best.clone()).chain(others).collect();
        entries.retain(|entry| entry.works() && entry.kernel.is_some());
        if entries.is_empty() {
            continue;
        }
        let Ok(kernels) = Kernels::of(sysroot, found) else {
            continue;
        };
        let is_wrong = |entry: &BootEntry| {
            let digest = entry.kernel;
            digest.is_some_and(|digest| matches!(kernels.find(digest), Ok(None)))
        };
        for entry in entries.into_iter().filter(is_wrong) {
            let remedy = match entry.file == best.file {
                true => "`cfs-update fsck --repair` makes an entry with the right ones",
                false => FORMER,
            };
            wrong.push((entry, remedy));
        }
    }
    Ok(wrong)
}

/// What becomes of an entry that stays beside the best one of its deployment.
const FORMER: &str = "it stays to go back to until the machine has come up with the new kernel arguments, and goes \
                      with the `cfs-update gc` after that";

/// The entries of a deployment that stay beside its best one: the one that booted well before its kernel arguments
/// were changed. What the next cleanup removes is not among them.
fn beside(sysroot: &Sysroot, best: &BootEntry, id: DeploymentId) -> Result<Vec<BootEntry>> {
    let bootloader = sysroot.bootloader();
    let mut others = bootloader.entries()?.ours;
    others.retain(|entry| entry.belongs_to(&id) && entry.file != best.file);
    if !others.is_empty() {
        let gone = bootloader.plan_cleanup()?.files;
        let goes = |entry: &BootEntry| {
            gone.iter()
                .any(|path| Path::new(path).file_name() == Some(entry.file.as_ref()))
        };
        others.retain(|entry| !goes(entry));
    }
    Ok(others)
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
    let mut tell = |entry: &BootEntry, done: Result<bool>| match done {
        Ok(false) => {}
        Ok(true) => mended.done.push(format!("kernel of {}", entry.file)),
        Err(error) => mended.failed.push((format!("kernel of {}", entry.file), error)),
    };
    for id in ids {
        // What was mended before has other entries now.
        let known = sysroot.known()?;
        let Some((found, best)) = with_entry(&known, id) else {
            continue;
        };
        tell(best, mend_one(sysroot, &known, found, best));
        let known = sysroot.known()?;
        let Some((found, best)) = with_entry(&known, id) else {
            continue;
        };
        for entry in beside(sysroot, best, id)? {
            if entry.kernel != best.kernel {
                tell(&entry, mend_one(sysroot, &known, found, &entry));
            }
        }
    }
    Ok(mended)
}

/// A deployment with its best entry.
fn with_entry(known: &[Known], id: DeploymentId) -> Option<(&Known, &BootEntry)> {
    let found = known.iter().find(|found| found.id == id)?;
    Some((found, found.entry.as_ref()?))
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
        // A new one would have to prove itself, and would be no way back.
        None if found.entry.as_ref().is_some_and(|best| best.file != entry.file) => {
            return Err(Error::BootEntry {
                entry: entry.file.clone(),
                why: format!("its kernel and initrd are none of its image; {FORMER}"),
            });
        }
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
