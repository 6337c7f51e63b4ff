//! The last merge of /etc, at shutdown, and what the next boot says of it.
//!
//! An update merges /etc when it is staged, so that conflicts are seen while somebody is there and a power cut at any
//! time afterwards boots a deployment with a whole /etc. What the administrator changes between then and the shutdown
//! is brought over here. Invariant: the new /etc replaces the staged one in one step ([`Deployments::begin_etc`]), so
//! a power cut in the middle leaves the staged one; the running /etc is only read. That the merge was not made is
//! known from the staged note, which says when it was, and is reported after the next boot with the files that it is
//! about.
//!
//! [`Deployments::begin_etc`]: crate::deployment::Deployments::begin_etc

use std::path::PathBuf;

use jiff::Timestamp;

use crate::boot::Tries;
use crate::deploy;
use crate::deployment::Staged;
use crate::error::{Error, Result};
use crate::etc::Conflict;
use crate::ids::DeploymentId;
use crate::monitor::Monitor;
use crate::sysroot::{Known, Sysroot};

/// What finalizing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finalized {
    /// Nothing waits for the running deployment's /etc.
    Nothing,
    /// The staged deployment has it.
    Merged {
        /// Which.
        id: DeploymentId,
        /// Where the administrator and the image both changed something.
        conflicts: Vec<Conflict>,
    },
}

/// A deployment that was booted without the last merge, or with changes that were made after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Where the files are: the deployment whose /etc was not merged once more.
    pub from: DeploymentId,
    /// Files in it that were written after the update was staged.
    pub files: Vec<PathBuf>,
    /// Why it was not merged, where that is known; a power cut leaves no word.
    pub why: Option<String>,
}

/// Merges the running deployment's /etc once more into the staged one.
///
/// # Errors
/// Those of the merge; the reason is noted for the next boot and the staged /etc stays as it was.
pub fn finalize(sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<Finalized> {
    let known = sysroot.known()?;
    let Some((next, from)) = waiting(sysroot, &known) else {
        return Ok(Finalized::Nothing);
    };
    // A note that is lost, or about another one, is made anew: it is for people.
    let note = Staged::load(sysroot.layout())
        .ok()
        .flatten()
        .filter(|note| note.id == next.id);
    let now = Timestamp::now();
    let mut staged = note.unwrap_or_else(|| Staged::waiting(next.id, from, next.origin()));
    let merged = merge(sysroot, &known, &staged, from, monitor);
    match &merged {
        Ok(_) => {
            staged.finalized = Some(now);
            staged.finalize_failed = None;
        }
        Err(e) => staged.finalize_failed = Some(e.to_string()),
    }
    staged.save(sysroot.fs(), sysroot.layout())?;
    Ok(Finalized::Merged {
        id: staged.id,
        conflicts: merged?,
    })
}

/// The deployment that boots next, where it never ran, and the one whose /etc it is to have: the one that runs.
fn waiting<'k>(sysroot: &Sysroot, known: &'k [Known]) -> Option<(&'k Known, DeploymentId)> {
    let generation = |k: &Known| k.standing.generation;
    let counts = |k: &&Known| {
        k.entry
            .as_ref()
            .is_some_and(|entry| !matches!(entry.tries, Tries::Bad { .. }))
    };
    // Whatever is broken about it: the boot loader does not know, and the merge says what it is.
    let next = known.iter().filter(counts).max_by_key(|k| generation(k))?;
    let from = next.origin()?.etc_from.filter(|from| *from != next.id)?;
    // Another one's /etc did not change since, and one that is gone has none.
    let runs = match sysroot.booted() {
        Some(booted) => booted == from,
        None => known.iter().any(|k| k.id == from),
    };
    runs.then_some((next, from))
}

fn merge(
    sysroot: &Sysroot,
    known: &[Known],
    staged: &Staged,
    from: DeploymentId,
    monitor: &dyn Monitor,
) -> Result<Vec<Conflict>> {
    let missing = |id: DeploymentId| Error::Deployment {
        id: id.short(),
        why: "its /etc cannot be merged: it is not there any more".into(),
    };
    let current = known.iter().find(|k| k.id == from).ok_or_else(|| missing(from))?;
    let next = known.iter().find(|k| k.id == staged.id);
    let next = next.ok_or_else(|| missing(staged.id))?;
    let conflicts = deploy::merge_etc(sysroot, &next.id, current, monitor)?;
    if let Some(origin) = next.origin() {
        sysroot.remember("finalize", &next.id, origin, "done")?;
    }
    Ok(conflicts)
}

/// After a boot: what the staged deployment, which runs now, does not have; `None` where all is well.
///
/// # Errors
/// Where the note or the other /etc cannot be read.
pub fn missed(sysroot: &Sysroot) -> Result<Option<Missed>> {
    let Some(staged) = Staged::load(sysroot.layout())? else {
        return Ok(None);
    };
    let runs = sysroot.options.booted == Some(staged.id);
    let Some(from) = staged.merge_from.filter(|from| runs && *from != staged.id) else {
        return Ok(None);
    };
    let files = match sysroot.deployments.has_etc(&from) {
        true => deploy::etc_written_since(sysroot, &from, staged.finalized.unwrap_or(staged.since))?,
        false => Vec::new(),
    };
    let why = staged.finalize_failed;
    Ok((why.is_some() || !files.is_empty()).then_some(Missed { from, files, why }))
}
