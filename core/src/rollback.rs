//! Going back, and choosing what stays: `rollback`, `pin`, `unpin`, `delete`.
//!
//! Invariant: a rollback adds an entry with a higher generation and changes none. At every instant the old entry or
//! the new one is the one that boots next, and both are complete.

use jiff::Timestamp;

use crate::activate;
use crate::deployment::{Failed, FailedDigests, Staged};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::plan;
use crate::sysroot::{Known, Sysroot};

/// What a rollback did.
#[derive(Clone, Debug)]
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
}

/// The previous deployment boots next.
///
/// # Errors
/// [`Error::Deployment`] where there is no other that could; nothing is changed then.
pub fn rollback(sysroot: &Sysroot) -> Result<Done> {
    let known = sysroot.known()?;
    let standing = Sysroot::standing(&known);
    let target = plan::rollback_target(&standing)?.id;
    let instead_of = plan::next_to_boot(&standing).map(|d| d.id);
    let staged = sysroot.roles(&standing).staged;
    let was_staged = staged.is_some() && staged == instead_of;
    let waits = note_waiting(sysroot, &known, target)?;
    let (entry, generation) = activate::again(sysroot, &known, target, None, "rollback")?;
    if !waits {
        Staged::clear(sysroot.fs(), sysroot.layout())?;
    }
    leave_alone(sysroot, &known, instead_of, target)?;
    Ok(Done {
        id: target,
        instead_of,
        was_staged,
        entry,
        generation,
    })
}

/// Where the target never ran, the note is about it before it boots next: it has to have the last merge of /etc, and
/// what a power cut keeps from it is told afterwards. Whether that is so.
fn note_waiting(sysroot: &Sysroot, known: &[Known], target: DeploymentId) -> Result<bool> {
    let origin = known.iter().find(|k| k.id == target).and_then(Known::origin);
    let Some(from) = origin.and_then(|origin| origin.etc_from) else {
        return Ok(false);
    };
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
/// [`Error::Deployment`] for the one that runs, the one that boots next, and a pinned one.
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
    activate::remove(sysroot, &[id])?;
    Ok(id)
}
