//! Going back, and choosing what stays: `rollback`, `pin`, `unpin`, `delete`.
//!
//! Invariant: a rollback adds an entry with a higher generation and changes none. At every instant the old entry or
//! the new one is the one that boots next, and both are complete. What is begun is noted before, so that the same
//! command after an interruption finishes it and does not go back once more.

use jiff::Timestamp;

use crate::activate::{self, Line};
use crate::deployment::{Begun, Failed, FailedDigests, Staged};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::kernels;
use crate::plan::{self, Standing};
use crate::sysroot::{Known, Sysroot};

/// What a rollback did.
#[derive(Debug)]
pub struct Done {
    /// What boots next.
    pub id: DeploymentId,
    /// What would have booted next.
    pub instead_of: Option<DeploymentId>,
    /// Whether that was an update that never ran: it stays, and a second rollback brings it back.
    pub was_staged: bool,
    /// The new boot entry.
    pub entry: String,
    /// Its generation.
    pub generation: u64,
    /// What could not be noted afterwards; it boots next all the same.
    pub lost: Vec<Error>,
}

/// The previous deployment boots next. One that was begun in this boot of the machine, and got as far as its entry, is
/// finished instead.
///
/// # Errors
/// [`Error::Deployment`] where there is no other that could; nothing is changed then. What fails after the entry was
/// made is in [`Done::lost`].
pub fn rollback(sysroot: &Sysroot) -> Result<Done> {
    let known = sysroot.known()?;
    if let Some((begun, next)) = unfinished(sysroot, &known) {
        let entry = next.entry.as_ref().map(|entry| entry.file.clone()).unwrap_or_default();
        let waits = note_waiting(sysroot, &known, begun.id)?;
        let lost = activate::note_entry(sysroot, activate::verified(next)?, begun.generation, "rollback");
        return Ok(finish(sysroot, &known, &begun, waits, entry, lost));
    }
    let standing = Sysroot::standing(&known);
    let target = plan::rollback_target(&standing)?.id;
    let instead_of = plan::next_to_boot(&standing).map(|d| d.id);
    let staged = sysroot.roles(&standing).staged;
    let boot_id = sysroot.options.boot_id.as_deref();
    activate::keep_former_next(sysroot, &known, target)?;
    let generation = activate::next_generation(sysroot, &known)?;
    let mut begun = Begun::new(target, generation, boot_id.unwrap_or_default());
    begun.was_staged = staged.is_some() && staged == instead_of;
    begun.instead_of = instead_of;
    let waits = note_waiting(sysroot, &known, target)?;
    // Where it cannot be written, on a full disk, going back is wanted all the more.
    let noted = boot_id.map_or(Ok(()), |_| begun.save(sysroot.fs(), sysroot.layout()));
    let made = activate::again_as(sysroot, &known, (target, generation), Line::Same, "rollback")?;
    let lost = noted.err().into_iter().chain(made.lost).collect();
    Ok(finish(sysroot, &known, &begun, waits, made.entry, lost))
}

/// A rollback of this boot of the machine whose entry boots next, and that did not come to its end.
fn unfinished<'k>(sysroot: &Sysroot, known: &'k [Known]) -> Option<(Begun, &'k Known)> {
    let begun = Begun::of_boot(sysroot.layout(), sysroot.options.boot_id.as_deref()?)?;
    let next = Sysroot::next(known).filter(|next| next.standing.bootable)?;
    (next.id == begun.id && next.standing.generation == Some(begun.generation)).then_some((begun, next))
}

/// What comes after the entry.
fn finish(sysroot: &Sysroot, known: &[Known], begun: &Begun, waits: bool, entry: String, mut lost: Vec<Error>) -> Done {
    let (fs, layout) = (sysroot.fs(), sysroot.layout());
    if !waits {
        lost.extend(Staged::clear(fs, layout).err());
    }
    lost.extend(leave_alone(sysroot, known, begun.instead_of, begun.id).err());
    lost.extend(Begun::clear(fs, layout).err());
    Done {
        id: begun.id,
        instead_of: begun.instead_of,
        was_staged: begun.was_staged,
        entry,
        generation: begun.generation,
        lost,
    }
}

/// Where the target never ran, the note is about it before it boots next: it has to have the last merge of the /etc that
/// runs, and what a power cut keeps from it is told afterwards. Whether that is so.
fn note_waiting(sysroot: &Sysroot, known: &[Known], target: DeploymentId) -> Result<bool> {
    let origin = known.iter().find(|k| k.id == target).and_then(Known::origin);
    let Some(from) = origin.and_then(|origin| origin.etc_from) else {
        return Ok(false);
    };
    let from = sysroot.booted().unwrap_or(from);
    Staged::turn_to(sysroot.fs(), sysroot.layout(), target, from, origin)?;
    Ok(true)
}

/// Tells automatic updates not to install again what the administrator went back from, and that he wants the other.
fn leave_alone(sysroot: &Sysroot, known: &[Known], left: Option<DeploymentId>, target: DeploymentId) -> Result<()> {
    let origin = |id: DeploymentId| known.iter().find(|k| k.id == id).and_then(Known::origin);
    let mut failed = FailedDigests::load(sysroot.layout())?;
    if let Some(origin) = origin(target) {
        failed.remove(&origin.manifest);
    }
    if let Some((id, origin)) = left.and_then(|id| Some((id, origin(id)?)))
        && failed.get(&origin.manifest).is_none()
    {
        failed.add(Failed {
            digest: origin.manifest,
            top: origin.top,
            id: Some(id),
            time: Timestamp::now(),
            why: "the administrator went back from it".into(),
            by_admin: true,
        });
    }
    failed.save(sysroot.fs(), sysroot.layout())
}

/// Keeps a deployment until it is unpinned, or no longer; returns its id.
pub fn pin(sysroot: &Sysroot, which: &str, pinned: bool) -> Result<DeploymentId> {
    let (id, _) = sysroot.find(which)?;
    sysroot
        .deployments
        .update(sysroot.fs(), &id, |origin| origin.pinned = pinned)?;
    Ok(id)
}

/// Removes a deployment: its entries, its record, its /etc. Objects stay until `gc`. Returns its id.
///
/// # Errors
/// [`Error::Deployment`] for the one that runs, the one that boots next, a pinned one, and the last one that boots.
pub fn delete(sysroot: &Sysroot, which: &str) -> Result<DeploymentId> {
    let (id, known) = sysroot.find(which)?;
    sysroot.check_boot(&known)?;
    let standing = Sysroot::standing(&known);
    let refuse = |why: &str| Error::Deployment {
        id: id.short(),
        why: why.into(),
    };
    if sysroot.options.booted == Some(id) {
        return Err(refuse("is running; boot another one first"));
    }
    if plan::next_to_boot(&standing).is_some_and(|d| d.id == id) {
        return Err(refuse(
            "boots next; make another one boot next with `cfs-update rollback` first",
        ));
    }
    if standing.iter().any(|d| d.id == id && d.pinned) {
        return Err(refuse("is pinned; `cfs-update unpin` it first"));
    }
    // What stays was only looked at so far.
    let read = kernels::standing(sysroot, &known);
    let boots = |d: &Standing| d.bootable && d.generation.is_some();
    if read.iter().any(|d| d.id == id && boots(d)) && !read.iter().any(|d| d.id != id && boots(d)) {
        return Err(refuse(
            "is the only one left that boots: the others, or their kernels on $BOOT, are damaged; run `cfs-update fsck \
             --repair` first",
        ));
    }
    activate::remove(sysroot, &[id])?;
    Ok(id)
}
