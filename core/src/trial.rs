//! Kernel arguments that were changed, until the machine has come up with them.
//!
//! Beside the entry that has them, the one that booted well with the former ones stays, below it; so the way back from
//! a bad argument leads to the same deployment. Invariant: what became of a change follows from the entries that are
//! there ([`find`]), at any time. While the new entry has tries left, the machine's wish is the new one; once it has
//! none, or never came to be, and the machine runs with the former entry, it is the former one again.

use crate::boot::{BootEntry, HostArguments, Tries};
use crate::deployment::Trial;
use crate::error::Result;
use crate::sysroot::{Known, Sysroot};

/// A change that did not prove itself so far.
pub(crate) struct Found {
    /// What was noted of it.
    pub trial: Trial,
    /// The entry that booted well before.
    pub former: BootEntry,
    /// The entry that has the change; `None` where it failed.
    pub tried: Option<BootEntry>,
}

/// The change that has yet to prove itself, or failed; `None` where there is none, or it is over: a newer entry of its
/// deployment booted well, or what there was before is gone.
pub(crate) fn find(sysroot: &Sysroot) -> Result<Option<Found>> {
    let Some(trial) = Trial::load(sysroot.layout()) else {
        return Ok(None);
    };
    let entries = sysroot.bootloader().entries()?.ours;
    let own = || {
        let of_it = |entry: &&BootEntry| entry.is_complete() && entry.belongs_to(&trial.id);
        entries.iter().filter(of_it)
    };
    let is_former = |entry: &&BootEntry| entry.tries == Tries::Good && entry.options == trial.former;
    let Some(former) = own().filter(is_former).max_by_key(|entry| entry.generation).cloned() else {
        return Ok(None);
    };
    let newer = || own().filter(|entry| entry.generation > former.generation);
    if newer().any(|entry| entry.tries == Tries::Good) {
        return Ok(None);
    }
    // What runs may be in its last try.
    let runs =
        |entry: &BootEntry| sysroot.booted() == Some(trial.id) && sysroot.options.started == Some(entry.generation);
    let waits = |entry: &&BootEntry| matches!(entry.tries, Tries::Left { .. }) || runs(entry);
    let tried = newer().filter(waits).max_by_key(|entry| entry.generation).cloned();
    Ok(Some(Found { trial, former, tried }))
}

impl Found {
    /// Whether the machine runs with the former arguments since the new ones failed.
    fn is_given_up(&self, sysroot: &Sysroot) -> bool {
        self.tried.is_none() && sysroot.booted() == Some(self.trial.id)
    }

    /// Whether this deployment runs with the entry that is tried.
    pub(crate) fn is_of(&self, running: &Known, sysroot: &Sysroot) -> bool {
        let same = |tried: &BootEntry| running.entry.as_ref().is_some_and(|entry| entry.file == tried.file);
        self.tried.as_ref().is_some_and(same) && running.standing.booted && running.is_started(sysroot)
    }

    /// What the machine wants again; then the note has done its work.
    pub(crate) fn give_up(&self, sysroot: &Sysroot) -> Result<()> {
        let (fs, layout) = (sysroot.fs(), sysroot.layout());
        let wanted = self.undone(HostArguments::load(layout)?);
        wanted.save(fs, layout)?;
        Trial::clear(fs, layout)
    }

    fn undone(&self, host: HostArguments) -> HostArguments {
        HostArguments {
            kernel_arguments: self.trial.wanted.clone(),
            ..host
        }
    }
}

/// What the machine wants of every entry: not what it did not come up with.
pub(crate) fn wanted(sysroot: &Sysroot) -> Result<HostArguments> {
    let host = HostArguments::load(sysroot.layout())?;
    let given_up = find(sysroot)?.filter(|found| found.is_given_up(sysroot));
    Ok(given_up.map_or(host.clone(), |found| found.undone(host)))
}

/// Writes down what became of a change. Doing it twice is as good as once.
pub(crate) fn settle(sysroot: &Sysroot, known: &[Known]) -> Result<()> {
    let Some(found) = find(sysroot)? else {
        return Trial::clear(sysroot.fs(), sysroot.layout());
    };
    if !found.is_given_up(sysroot) {
        return Ok(());
    }
    found.give_up(sysroot)?;
    let origin = known.iter().find(|k| k.id == found.trial.id).and_then(Known::origin);
    let why = "the machine did not come up with its new kernel arguments, and wants the former ones again";
    origin.map_or(Ok(()), |origin| sysroot.remember("kargs", &found.trial.id, origin, why))
}
