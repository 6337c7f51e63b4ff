//! From what the checks said to what boots next.

use jiff::Timestamp;

use super::report::HealthReport;
use crate::activate::{self, Line};
use crate::boot::{BootEntry, Mark, Tries};
use crate::deployment::{Failed, FailedDigests};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::kernels;
use crate::plan;
use crate::sysroot::{Known, Sysroot};
use crate::trial::{self, Found};

/// What a boot was found to be, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No deployment of ours runs: there is nothing to mark.
    NotOurs,
    /// Good, and it was known to be.
    StillGood,
    /// Good for the first time: its entry is counted no longer, or will not be when `boot-complete.target` is reached.
    Good {
        /// Its entry's file name now.
        entry: String,
        /// systemd-bless-boot marks the entry, so that other services that have a say are waited for.
        by_systemd: bool,
    },
    /// Bad: the next boot goes to another deployment, or to the same one with the kernel arguments of before.
    GoBack {
        /// What boots next.
        to: DeploymentId,
        /// What is wrong.
        why: String,
    },
    /// Bad, but nothing else could boot: it stays.
    Alone {
        /// What is wrong.
        why: String,
    },
    /// Bad, though it booted well before: that is no bad update. It stays.
    NoLongerGood {
        /// What is wrong.
        why: String,
    },
}

/// Marks the running deployment as good, whatever its checks say.
///
/// # Errors
/// [`Error::Deployment`] where it has no entry; those of writing to `$BOOT`.
pub fn approve(sysroot: &Sysroot) -> Result<Verdict> {
    let known = sysroot.known()?;
    let Some(running) = known.iter().find(|k| k.standing.booted) else {
        return Ok(Verdict::NotOurs);
    };
    let entry = running.entry.as_ref().ok_or_else(|| no_entry(running.id))?;
    if !running.is_started(sysroot) {
        return Ok(Verdict::StillGood);
    }
    let entry = sysroot.bootloader().mark(entry, Mark::Good)?;
    Ok(Verdict::Good {
        entry,
        by_systemd: false,
    })
}

/// Draws the conclusion from the checks of the running deployment. `by_systemd`: systemd-bless-boot is there to mark a
/// good entry.
///
/// # Errors
/// Those of reading the deployments and of writing to `$BOOT`; what was found is in the report all the same. And where
/// anything could not be written down.
pub fn judge(sysroot: &Sysroot, report: &HealthReport, by_systemd: bool) -> Result<Verdict> {
    let mut lost = Vec::new();
    let verdict = judge_anyway(sysroot, report, by_systemd, &mut lost)?;
    lost.into_iter().next().map_or(Ok(verdict), Err)
}

/// As [`judge`], also where nothing can be written down: a root file system that is full, or read-only since it is
/// damaged, must neither keep a good boot from being marked nor a bad one from being left. What could not be noted is
/// in `lost`.
///
/// # Errors
/// Those of reading the deployments and of writing to `$BOOT`.
pub fn judge_anyway(
    sysroot: &Sysroot,
    report: &HealthReport,
    by_systemd: bool,
    lost: &mut Vec<Error>,
) -> Result<Verdict> {
    lost.extend(report.save(sysroot.fs(), sysroot.layout()).err());
    let known = sysroot.known()?;
    lost.extend(settle(sysroot, &known).err());
    let Some(running) = known.iter().find(|k| k.standing.booted) else {
        return Ok(Verdict::NotOurs);
    };
    // A boot says nothing of an entry that was made during it, with other kernel arguments, say.
    let counted = running.entry.as_ref().is_some_and(|e| e.tries != Tries::Good) && running.is_started(sysroot);
    match (report.failure(), counted) {
        (None, false) => Ok(Verdict::StillGood),
        (None, true) => good(sysroot, running, by_systemd, lost),
        (Some(why), false) => Ok(Verdict::NoLongerGood { why }),
        (Some(why), true) => condemn(sysroot, &known, running.id, &why, lost),
    }
}

/// Takes the counter off the running deployment's entry and forgets that its image ever failed.
fn good(sysroot: &Sysroot, running: &Known, by_systemd: bool, lost: &mut Vec<Error>) -> Result<Verdict> {
    let entry = running.entry.as_ref().ok_or_else(|| no_entry(running.id))?;
    lost.extend(forgive(sysroot, running).err());
    let entry = match by_systemd {
        true => entry.file.clone(),
        false => sysroot.bootloader().mark(entry, Mark::Good)?,
    };
    Ok(Verdict::Good { entry, by_systemd })
}

/// Forgets that its image ever failed.
fn forgive(sysroot: &Sysroot, running: &Known) -> Result<()> {
    if let Some(manifest) = running.manifest() {
        let mut failed = FailedDigests::load(sysroot.layout())?;
        if failed.remove(&manifest) {
            failed.save(sysroot.fs(), sysroot.layout())?;
        }
    }
    if let Some(origin) = running.origin() {
        sysroot.remember("health", &running.id, origin, "good")?;
    }
    Ok(())
}

/// Takes the tries of a deployment's entries, unless nothing else could boot, and remembers its image with the reason.
/// The last good deployment boots next, with a further entry where something newer was never found good. One that runs
/// with kernel arguments which have yet to prove themselves goes back to those of before, and its image is not to blame.
/// What could not be noted is in `lost`: the mark is what counts.
///
/// # Errors
/// [`Error::Deployment`] where it has no entry; those of writing to `$BOOT`.
pub fn condemn(
    sysroot: &Sysroot,
    known: &[Known],
    id: DeploymentId,
    why: &str,
    lost: &mut Vec<Error>,
) -> Result<Verdict> {
    let found = known.iter().find(|k| k.id == id).ok_or_else(|| no_entry(id))?;
    if let Some(change) = trial::find(sysroot)?.filter(|change| change.is_of(found, sysroot)) {
        return without(sysroot, known, &change, why, lost);
    }
    let (own, others): (Vec<_>, Vec<_>) = kernels::standing(sysroot, known).into_iter().partition(|d| d.id == id);
    let newest = others.iter().filter(|d| d.bootable).max_by_key(|d| d.generation);
    let Some(newest) = newest.map(|d| d.id) else {
        let noted = found
            .origin()
            .map_or(Ok(()), |origin| sysroot.remember("health", &id, origin, why));
        lost.extend(noted.err());
        return Ok(Verdict::Alone { why: why.into() });
    };
    let entry = found.entry.as_ref().ok_or_else(|| no_entry(id))?;
    let entries = sysroot.bootloader().entries()?.ours;
    let older = |other: &&BootEntry| other.belongs_to(&id) && other.file != entry.file && other.works();
    lost.extend(blame(sysroot, found, why).err());
    // What the boot loader takes then, though its kernel or seal may be broken.
    let taken = plan::next_to_boot(&others).map(|d| d.id);
    let broken = taken != Some(newest);
    let all: Vec<_> = own.into_iter().chain(others).collect();
    let to = match plan::overtaken(&all, id).or(broken.then_some(newest)) {
        // Something that never proved itself, or is broken, is above it.
        Some(good) if activate::again(sysroot, known, good, Line::Same, "keep").is_ok() => good,
        Some(_) if broken => return Ok(Verdict::Alone { why: why.into() }),
        // Without room for an entry it is that one's turn.
        _ => newest,
    };
    for entry in entries.iter().filter(older).chain([entry]) {
        sysroot.bootloader().mark(entry, Mark::Bad)?;
    }
    Ok(Verdict::GoBack { to, why: why.into() })
}

/// Goes back to the kernel arguments that the deployment booted well with.
fn without(sysroot: &Sysroot, known: &[Known], change: &Found, why: &str, lost: &mut Vec<Error>) -> Result<Verdict> {
    let id = change.trial.id;
    if let Some(origin) = known.iter().find(|k| k.id == id).and_then(Known::origin) {
        lost.extend(sysroot.remember("kargs", &id, origin, why).err());
    }
    let again = activate::again(sysroot, known, id, Line::Former(change.former.clone().into()), "keep");
    if let (Err(_), Some(tried)) = (again, &change.tried) {
        // Without room for an entry the one of before is left.
        sysroot.bootloader().mark(tried, Mark::Bad)?;
    }
    lost.extend(change.give_up(sysroot).err());
    Ok(Verdict::GoBack {
        to: id,
        why: why.into(),
    })
}

/// Remembers its image as one that failed.
fn blame(sysroot: &Sysroot, found: &Known, why: &str) -> Result<()> {
    let (Some(origin), Some(failure)) = (found.origin(), failure(found, why)) else {
        return Ok(());
    };
    let mut failed = FailedDigests::load(sysroot.layout())?;
    failed.add(failure);
    failed.save(sysroot.fs(), sysroot.layout())?;
    sysroot.remember("health", &found.id, origin, why)
}

/// Remembers the images of deployments whose tries the boot loader used up: they never came far enough to be judged.
/// And where it used up those of changed kernel arguments only, the machine wants the former ones again.
pub fn settle(sysroot: &Sysroot, known: &[Known]) -> Result<()> {
    trial::settle(sysroot, known)?;
    let mut list = FailedDigests::load(sysroot.layout())?;
    let news = add_used_up(&mut list, known);
    if news.is_empty() {
        return Ok(());
    }
    list.save(sysroot.fs(), sysroot.layout())?;
    for (found, why) in news {
        if let Some(origin) = found.origin() {
            sysroot.remember("health", &found.id, origin, &why)?;
        }
    }
    Ok(())
}

/// What failed here so far, with what [`settle`] would remember; writes nothing.
pub fn failed(sysroot: &Sysroot, known: &[Known]) -> Result<FailedDigests> {
    let mut list = FailedDigests::load(sysroot.layout())?;
    add_used_up(&mut list, known);
    Ok(list)
}

/// Adds the images of deployments whose tries were used up; returns those that were not in the list. The running one
/// may be in its last try, and is left out.
fn add_used_up<'k>(list: &mut FailedDigests, known: &'k [Known]) -> Vec<(&'k Known, String)> {
    let mut news = Vec::new();
    for found in known.iter().filter(|k| !k.standing.booted) {
        let Some(Tries::Bad { done }) = found.entry.as_ref().map(|e| e.tries) else {
            continue;
        };
        let times = if done == 1 {
            "once".into()
        } else {
            format!("{done} times")
        };
        let why = format!("it was tried {times} and never came up as far as its health checks");
        if let Some(failure) = failure(found, &why).filter(|f| list.get(&f.digest).is_none_or(|f| f.by_admin)) {
            list.add(failure);
            news.push((found, why));
        }
    }
    news
}

fn failure(known: &Known, why: &str) -> Option<Failed> {
    let origin = known.origin()?;
    Some(Failed {
        digest: origin.manifest,
        top: origin.top,
        id: Some(known.id),
        time: Timestamp::now(),
        why: why.into(),
        by_admin: false,
    })
}

fn no_entry(id: DeploymentId) -> Error {
    Error::Deployment {
        id: id.short(),
        why: "has no boot entry".into(),
    }
}
