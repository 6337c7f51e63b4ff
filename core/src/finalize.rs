//! The last merge of /etc, at shutdown, and what the next boot says of it.
//!
//! An update merges /etc when it is staged, so that conflicts are seen while somebody is there and a power cut at any
//! time afterwards boots a deployment with a whole /etc. What the administrator changes between then and the shutdown
//! is brought over here: from whatever runs then into whatever boots next and never ran. Invariant: the new /etc
//! replaces the staged one in one step ([`Deployments::begin_etc`]), so a power cut in the middle leaves the staged one;
//! the running /etc is only read, and an /etc that somebody changed since a merge made it is never merged over. What the
//! merge did not bring is known from its note ([`Merged`]) and reported after the next boot, path by path.
//!
//! [`Deployments::begin_etc`]: crate::deployment::Deployments::begin_etc
//! [`Merged`]: crate::etc::Merged

use std::path::PathBuf;

use jiff::Timestamp;

use crate::boot::Tries;
use crate::deploy;
use crate::deployment::Staged;
use crate::error::{Error, Result};
use crate::etc::{Change, Conflict, Merged};
use crate::ids::DeploymentId;
use crate::monitor::Monitor;
use crate::sysroot::{Known, Sysroot};

/// Why a deployment that ran gets no merge.
const OWN: &str = "it was booted since it was merged, and its own /etc was changed";

/// What finalizing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finalized {
    /// Nothing that never ran waits for the running deployment's /etc.
    Nothing,
    /// The staged deployment has it.
    Merged {
        /// Which.
        id: DeploymentId,
        /// Where the administrator and the image both changed something.
        conflicts: Vec<Conflict>,
    },
    /// It was booted since the last merge, and its own /etc was changed there: that stays as it is.
    Kept {
        /// Which.
        id: DeploymentId,
    },
}

/// A deployment that was booted without the last merge, or with changes that were made after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Where the files are: the deployment whose /etc was not merged once more.
    pub from: DeploymentId,
    /// What was added or changed in it since, and is not so here.
    pub files: Vec<PathBuf>,
    /// What was removed there since, and is still here.
    pub removed: Vec<PathBuf>,
    /// Why it was not merged, where that is known; a power cut leaves no word.
    pub why: Option<String>,
}

/// Merges the running deployment's /etc once more into the one that boots next, where that never ran.
///
/// # Errors
/// Those of the merge; the reason is noted for the next boot and the staged /etc stays as it was.
pub fn finalize(sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<Finalized> {
    let known = sysroot.known()?;
    let Some((next, from)) = waiting(sysroot, &known) else {
        return Ok(Finalized::Nothing);
    };
    let mut staged = Staged::turned(sysroot.layout(), next.id, from, next.origin());
    let merged = merge(sysroot, &known, next, from, monitor);
    match &merged {
        Ok(Finalized::Kept { id }) => {
            let lacks = deploy::etc_lacking(sysroot, id, &from).is_ok_and(|lacking| lacking.is_empty());
            staged.finalize_failed = (!lacks).then(|| OWN.into());
        }
        Ok(_) => {
            staged.finalized = Some(Timestamp::now());
            staged.finalize_failed = None;
        }
        Err(e) => staged.finalize_failed = Some(e.to_string()),
    }
    staged.save(sysroot.fs(), sysroot.layout())?;
    merged
}

/// The deployment that boots next, where it never ran as far as its record knows, and the one whose /etc it is to have:
/// the one that runs or, on a machine that runs none, the one that it has its /etc from.
fn waiting<'k>(sysroot: &Sysroot, known: &'k [Known]) -> Option<(&'k Known, DeploymentId)> {
    let generation = |k: &Known| k.standing.generation;
    let tries_left = |k: &Known| k.entry.as_ref().is_some_and(|e| !e.is_bad());
    let counts = |k: &&Known| k.standing.starts || tries_left(k);
    // Whatever is broken about it: the boot loader does not know, and the merge says what it is.
    let next = known.iter().filter(counts).max_by_key(|k| generation(k))?;
    let merged_from = next.origin()?.etc_from?;
    let there = |id: &DeploymentId| known.iter().any(|k| k.id == *id);
    let from = sysroot.booted().or_else(|| Some(merged_from).filter(there))?;
    (from != next.id).then_some((next, from))
}

fn merge(
    sysroot: &Sysroot,
    known: &[Known],
    next: &Known,
    from: DeploymentId,
    monitor: &dyn Monitor,
) -> Result<Finalized> {
    let id = next.id;
    if has_own_etc(sysroot, next)? {
        return Ok(Finalized::Kept { id });
    }
    let missing = || Error::Deployment {
        id: from.short(),
        why: "its /etc cannot be merged: it is not there any more".into(),
    };
    let current = known.iter().find(|k| k.id == from).ok_or_else(missing)?;
    let conflicts = deploy::merge_etc(sysroot, &id, current, monitor)?;
    if let Some(origin) = next.origin() {
        sysroot.remember("finalize", &id, origin, "done")?;
    }
    Ok(Finalized::Merged { id, conflicts })
}

/// Whether it ran, though no command of ours did there: its /etc is not what its merge made. Where nothing says what
/// that was, a boot that was counted is taken for one.
fn has_own_etc(sysroot: &Sysroot, next: &Known) -> Result<bool> {
    let tries = next.entry.as_ref().map(|entry| entry.tries);
    let tried = matches!(tries, Some(Tries::Left { done, .. }) if done > 0);
    Ok(deploy::is_as_merged(sysroot, &next.id)?.map_or(tried, |as_merged| !as_merged))
}

/// After a boot: what the staged deployment, which runs now, does not have; `None` where all is well.
///
/// # Errors
/// Where the note or one of the two /etc cannot be read.
pub fn missed(sysroot: &Sysroot) -> Result<Option<Missed>> {
    let Some(staged) = Staged::load(sysroot.layout())? else {
        return Ok(None);
    };
    let runs = sysroot.options.booted == Some(staged.id);
    let Some(from) = staged.merge_from.filter(|from| runs && *from != staged.id) else {
        return Ok(None);
    };
    let lacking = match sysroot.deployments.has_etc(&from) {
        true => deploy::etc_lacking(sysroot, &staged.id, &from)?,
        false => Vec::new(),
    };
    let (removed, files): (Vec<_>, Vec<_>) = lacking.into_iter().partition(|(_, c)| *c == Change::Removed);
    let paths = |list: Vec<(PathBuf, Change)>| list.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let missed = Missed {
        from,
        files: paths(files),
        removed: paths(removed),
        why: staged.finalize_failed,
    };
    let all_there = missed.files.is_empty() && missed.removed.is_empty() && missed.why.is_none();
    Ok((!all_there).then_some(missed))
}

/// What is missed was told: the notes that say so have done their work.
///
/// # Errors
/// Where one of them cannot be read or removed.
pub fn told(sysroot: &Sysroot) -> Result<()> {
    let (fs, layout) = (sysroot.fs(), sysroot.layout());
    let Some(id) = sysroot.booted() else {
        return Ok(());
    };
    if Staged::load(layout)?.is_some_and(|staged| staged.id == id) {
        Staged::clear(fs, layout)?;
    }
    Merged::clear(fs, layout, &id)
}
