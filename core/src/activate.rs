//! What boots next, and what goes for it: the end that updates, rollbacks and changed kernel arguments share.
//!
//! Invariant (promise 1): an entry is published whose kernel files are durable, above all others; then entries go,
//! then the records and names of what has none left. A power cut between any two steps leaves the old entry or both,
//! and what is left over means nothing and goes with the next update.

use crate::boot::{BootEntry, Bootloader, HostArguments, NewEntry, StagedEntry, Tries};
use crate::bootable::{self, Bootable};
use crate::bound;
use crate::deployment::{Begun, Deployment};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::monitor::{Event, Monitor, Stage};
use crate::plan;
use crate::sysroot::{Known, REMOVED, Sysroot};
use crate::trial;

/// The name that keeps a deployment's manifest, config and layers.
pub(crate) fn tag(id: &DeploymentId) -> String {
    format!("cfs-update/{id}")
}

/// Fails where `$BOOT` has no room for the kernel.
pub(crate) fn refuse_full_boot(bootloader: &dyn Bootloader, bootable: &Bootable) -> Result<()> {
    let room = bootloader.room(&bootable.kernel)?;
    if room.needed <= room.free {
        return Ok(());
    }
    Err(Error::Space {
        path: bootloader.boot_dir().to_path_buf(),
        needed: room.needed,
        free: room.free,
        remedy: "nothing was changed; delete a deployment that is no longer wanted".into(),
    })
}

/// Above every generation that $BOOT, a record, or the note of a rollback knows.
pub(crate) fn next_generation(sysroot: &Sysroot, known: &[Known]) -> Result<u64> {
    let recorded = known.iter().filter_map(|k| k.origin()?.generation);
    let highest = recorded.chain(Begun::named_generation(sysroot.layout())).max();
    sysroot.bootloader().entries()?.next_generation(highest.unwrap_or(0))
}

/// The first entry of a deployment: kernel files, sync, entry, sync.
pub(crate) fn first(
    sysroot: &Sysroot,
    deployment: &Deployment,
    bootable: &Bootable,
    generation: u64,
    known: &[Known],
) -> Result<String> {
    let root = root_argument(sysroot, known)?;
    let host = HostArguments::load(sysroot.layout())?.and(&sysroot.options.kernel_arguments);
    let new = NewEntry {
        id: *deployment.id(),
        generation,
        title: bootable.title.clone(),
        version: deployment.origin().version.clone().unwrap_or_default(),
        options: bootable::command_line(deployment.id(), &root, &bootable.arguments, &host),
        kernel: bootable.kernel.clone(),
        tries: sysroot.options.tries,
    };
    let staged = sysroot.bootloader().stage(deployment, &new)?;
    Ok(sysroot.bootloader().publish(staged)?.file)
}

/// Gives the deployment that is to be gone back to, should `new` fail, a further entry, where the boot loader would try
/// another one before it. Until `new` has its entry, it boots next.
pub(crate) fn keep_good_next(sysroot: &Sysroot, known: &[Known], new: DeploymentId) -> Result<()> {
    match plan::overtaken(&Sysroot::standing(known), new) {
        Some(good) => again(sysroot, known, good, Line::Same, "keep").map(drop),
        None => Ok(()),
    }
}

/// The same for the entry that is to be gone back to, should one of the same deployment fail that has changed kernel
/// arguments.
pub(crate) fn keep_former_next(sysroot: &Sysroot, known: &[Known], id: DeploymentId) -> Result<()> {
    let Some(found) = trial::find(sysroot)?.filter(|found| found.trial.id == id) else {
        return Ok(());
    };
    match plan::is_overtaken(&Sysroot::standing(known), id, found.former.generation) {
        true => again(sysroot, known, id, Line::Former(found.former.into()), "keep").map(drop),
        false => Ok(()),
    }
}

/// What [`again`] made.
pub(crate) struct Again {
    /// The entry's file.
    pub entry: String,
    /// What could not be noted or tidied up afterwards: the entry boots next all the same.
    pub lost: Vec<Error>,
}

/// What a further entry of a deployment boots with.
pub(crate) enum Line {
    /// What its entry has.
    Same,
    /// This.
    New(Vec<String>),
    /// What this entry of it has, which booted well.
    Former(Box<BootEntry>),
}

/// A new entry, above all others, for a deployment that has one already; then the older ones of it go, but for one that
/// booted well with another command line than one that is new. An error means that there is no such entry.
pub(crate) fn again(sysroot: &Sysroot, known: &[Known], id: DeploymentId, line: Line, event: &str) -> Result<Again> {
    again_as(sysroot, known, (id, next_generation(sysroot, known)?), line, event)
}

/// The same with a generation that was got beforehand.
pub(crate) fn again_as(
    sysroot: &Sysroot,
    known: &[Known],
    (id, generation): (DeploymentId, u64),
    line: Line,
    event: &str,
) -> Result<Again> {
    let (deployment, staged) = stage_again(sysroot, known, (id, generation), line)?;
    let entry = sysroot.bootloader().publish(staged)?;
    Ok(Again {
        entry: entry.file,
        lost: note_entry(sysroot, deployment, generation, event),
    })
}

/// The first half of that.
pub(crate) fn stage_again<'k>(
    sysroot: &Sysroot,
    known: &'k [Known],
    (id, generation): (DeploymentId, u64),
    line: Line,
) -> Result<(&'k Deployment, StagedEntry)> {
    let found = known.iter().find(|k| k.id == id);
    let missing = || Error::Deployment {
        id: id.short(),
        why: "has no boot entry".into(),
    };
    let old = match &line {
        Line::Former(entry) => entry,
        Line::Same | Line::New(_) => found.and_then(|k| k.entry.as_ref()).ok_or_else(missing)?,
    };
    let deployment = verified(found.ok_or_else(missing)?)?;
    let bootloader = sysroot.bootloader();
    // One that was marked good stays good; one that never proved itself has to, with all its tries, and so has a new
    // line.
    let proven = old.tries == Tries::Good && !matches!(line, Line::New(_));
    let tries = sysroot.options.tries.filter(|_| !proven);
    let mut new = NewEntry::again(old, bootloader.boot_dir(), generation, tries)?;
    if let Line::New(line) = line {
        new.options = line;
    }
    Ok((deployment, bootloader.stage(deployment, &new)?))
}

/// What follows a new entry: its generation in the record, older entries of the deployment away, a line of history.
/// All of it may be done twice; gives what could not be done.
pub(crate) fn note_entry(sysroot: &Sysroot, of: &Deployment, generation: u64, event: &str) -> Vec<Error> {
    let bootloader = sysroot.bootloader();
    let noted = sysroot
        .deployments
        .update(sysroot.fs(), of.id(), |origin| origin.generation = Some(generation));
    let tidied = bootloader.plan_cleanup().and_then(|plan| bootloader.remove(&plan));
    let remembered = sysroot.remember(event, of.id(), of.origin(), "done");
    [noted.map(drop), tidied, remembered]
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

pub(crate) fn verified(known: &Known) -> Result<&Deployment> {
    known.verified.as_ref().map_err(|e| Error::Trust {
        what: format!("deployment {}", known.id.short()),
        why: e.to_string(),
    })
}

/// What the settings say, or what the entries had so far without an image that wished it, or the file system that
/// SYSROOT is on, or, where it has no UUID, the root partition by its type (Discoverable Partitions Specification).
pub(crate) fn root_argument(sysroot: &Sysroot, known: &[Known]) -> Result<String> {
    let former = || known.iter().find_map(|known| own_root(sysroot, known));
    if let Some(root) = sysroot.options.root_argument.clone().or_else(former) {
        return Ok(root);
    }
    let uuid = crate::sys::fs::uuid_of(sysroot.layout().root())?;
    Ok(uuid.map_or_else(|| "gpt-auto".into(), |uuid| format!("UUID={uuid}")))
}

/// The root of an entry, unless its image wished it: that goes with the image. One that cannot be read is taken to have
/// wished nothing.
fn own_root(sysroot: &Sysroot, known: &Known) -> Option<String> {
    let root = bootable::root_of(&known.entry.as_ref()?.options)?;
    let architecture = sysroot.options.platform.architecture();
    let image = bootable::arguments_of(&sysroot.store, &known.id, architecture).unwrap_or_default();
    (bootable::root_of(&image) != Some(root)).then(|| root.to_owned())
}

/// Removes what the new entry made superfluous: entries first, then records, then the names that kept their images.
pub(crate) fn let_go(sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<Vec<DeploymentId>> {
    let known = sysroot.known()?;
    let standing = Sysroot::standing(&known);
    let gone = plan::superseded(&standing, sysroot.options.keep);
    monitor.event(Event::Stage(Stage::Clean));
    remove(sysroot, &gone)?;
    let leftovers = sysroot.bootloader().plan_cleanup()?;
    sysroot.bootloader().remove(&leftovers)?;
    Ok(gone)
}

/// Entries and kernels, then records, then names; a power cut between leaves less each time, never a broken entry. The
/// history says first that they go, so that a record which is left without its entry is not taken for one that lost it.
pub(crate) fn remove(sysroot: &Sysroot, ids: &[DeploymentId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    for record in sysroot
        .deployments
        .list()?
        .iter()
        .filter(|found| ids.contains(&found.id))
    {
        if let Ok(record) = &record.record {
            // A full disk must not keep anybody from making room.
            let _ = sysroot.remember(REMOVED, record.id(), record.origin(), "begun");
        }
    }
    let bootloader = sysroot.bootloader();
    bootloader.remove(&bootloader.plan_removal(ids)?)?;
    for id in ids {
        sysroot.deployments.remove(sysroot.fs(), id)?;
        sysroot.store.untag(&tag(id))?;
        bound::let_go(&sysroot.store, &id.short())?;
        sysroot.store.unname_image(&id.to_hex())?;
    }
    Ok(())
}
