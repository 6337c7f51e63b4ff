//! Kernel arguments of this machine: what `kargs` shows and changes.
//!
//! Invariant: a change is durable in `boot.toml`, which every later entry is made with, before an entry has it; and
//! that entry is a further one, above all others, like that of an update. At every instant the old entry or the new
//! one is the one that boots next, and both are complete. After a power cut between the two the former arguments hold,
//! or the same command once more makes the entry. A changed entry is counted. With arguments that the machine does not
//! come up with it goes back to the entry that booted well before ([`crate::trial`]), or to the deployment before
//! where there is none.

use crate::activate::{self, Line};
use crate::boot::host::Edit;
use crate::boot::{BootEntry, HostArguments, Tries};
use crate::bootable;
use crate::deployment::Trial;
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::monitor::{Event, Monitor};
use crate::plan;
use crate::sysroot::{Known, Sysroot};
use crate::trial;

/// The arguments of what boots next, and where they are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What boots next.
    pub id: DeploymentId,
    /// Those that its image brings along.
    pub image: Vec<String>,
    /// Those that the machine wants of every entry.
    pub machine: Vec<String>,
    /// The whole command line, as the entry has it.
    pub line: Vec<String>,
    /// The entry.
    pub entry: String,
    /// What the entry would have if it was made now; it has something else where it was edited, or was made before the
    /// machine's arguments were changed.
    wanted: Vec<String>,
}

impl Arguments {
    /// Whether the entry is what these arguments make.
    pub fn is_current(&self) -> bool {
        self.line == self.wanted
    }
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// As they are now.
    pub arguments: Arguments,
    /// What the entry has that the one before had not.
    pub added: Vec<String>,
    /// What the entry before had.
    pub removed: Vec<String>,
}

/// The arguments of what boots next.
///
/// # Errors
/// [`Error::Deployment`] where nothing boots next.
pub fn show(sysroot: &Sysroot) -> Result<Arguments> {
    let known = sysroot.known()?;
    let host = trial::wanted(sysroot)?;
    let (id, entry) = next(&known)?;
    of(sysroot, id, entry, &host, &host)
}

/// Changes what the machine wants of every entry, and gives what boots next an entry that has it.
///
/// # Errors
/// [`Error::Usage`] for a change that cannot be made, [`Error::Nothing`] where there is nothing to change.
pub fn change(sysroot: &Sysroot, edit: &Edit, monitor: &dyn Monitor) -> Result<Done> {
    let known = sysroot.known()?;
    sysroot.check_boot(&known)?;
    sysroot.bootloader().check_writable()?;
    trial::settle(sysroot, &known)?;
    let had = HostArguments::load(sysroot.layout())?;
    let host = had.changed(edit)?;
    let (id, old) = next(&known)?;
    let before = of(sysroot, id, old, &host, &had)?;
    if before.is_current() && host == had {
        return Err(Error::Nothing("the kernel arguments are like that already".into()));
    }
    let line = match before.is_current() {
        true => Line::Same,
        false => prepare(sysroot, &known, (id, old), &had, &before, monitor)?,
    };
    if host != had {
        host.save(sysroot.fs(), sysroot.layout())?;
    }
    if before.is_current() {
        return Ok(Done {
            arguments: before,
            added: Vec::new(),
            removed: Vec::new(),
        });
    }
    let activate::Again { entry, lost } = activate::again(sysroot, &known, id, line, "kargs")?;
    for error in lost {
        monitor.event(Event::Warning(format!("the entry is made; not noted: {error}")));
    }
    let not_in = |list: &[String], other: &[String]| list.iter().filter(|a| !other.contains(a)).cloned().collect();
    Ok(Done {
        added: not_in(&before.wanted, &before.line),
        removed: not_in(&before.line, &before.wanted),
        arguments: Arguments {
            line: before.wanted.clone(),
            entry,
            ..before
        },
    })
}

/// Sees to it that there is something to go back to, should the machine not come up with what `before` wants, and notes
/// it; then what the new entry is to have.
fn prepare(
    sysroot: &Sysroot,
    known: &[Known],
    (id, old): (DeploymentId, &BootEntry),
    had: &HostArguments,
    before: &Arguments,
    monitor: &dyn Monitor,
) -> Result<Line> {
    let line = before.wanted.clone();
    let (fs, layout) = (sysroot.fs(), sysroot.layout());
    match way_back(sysroot, id, old, had)? {
        Some((former, _)) if former.options == line => {
            Trial::clear(fs, layout)?;
            Ok(Line::Former(former.into()))
        }
        Some((former, wanted)) => {
            Trial::new(id, line.clone(), former.options, wanted).save(fs, layout)?;
            activate::keep_former_next(sysroot, known, id)?;
            Ok(Line::New(line))
        }
        None => {
            if plan::rollback_target(&Sysroot::standing(known)).is_err() {
                let alone = "there is nothing to go back to that booted well, should the machine not come up with these \
                             arguments: then change them in the boot loader's menu (key e), and here";
                monitor.event(Event::Warning(alone.into()));
            }
            activate::keep_good_next(sysroot, known, id)?;
            Ok(Line::New(line))
        }
    }
}

/// The entry of the deployment that booted well, and what the machine wanted when it was made.
fn way_back(
    sysroot: &Sysroot,
    id: DeploymentId,
    old: &BootEntry,
    had: &HostArguments,
) -> Result<Option<(BootEntry, Vec<String>)>> {
    if old.tries == Tries::Good && !old.changed {
        return Ok(Some((old.clone(), had.kernel_arguments.clone())));
    }
    let waits = trial::find(sysroot)?.filter(|found| found.trial.id == id && found.tried.is_some());
    Ok(waits.map(|found| (found.former, found.trial.wanted)))
}

fn next(known: &[Known]) -> Result<(DeploymentId, &BootEntry)> {
    Sysroot::next(known)
        .and_then(|k| Some((k.id, k.entry.as_ref()?)))
        .ok_or_else(|| Error::Deployment {
            id: "next to boot".into(),
            why: "there is none that could boot; `cfs-update status` says why".into(),
        })
}

/// `had`: what the machine wanted when the entry was made, as far as is known.
fn of(
    sysroot: &Sysroot,
    id: DeploymentId,
    entry: &BootEntry,
    host: &HostArguments,
    had: &HostArguments,
) -> Result<Arguments> {
    let image = bootable::arguments_of(&sysroot.store, &id, sysroot.options.platform.architecture())?;
    let root = root(sysroot, entry, had)?;
    let all = host.clone().and(&sysroot.options.kernel_arguments);
    Ok(Arguments {
        id,
        wanted: bootable::command_line(&id, &root, &image, &all),
        image,
        machine: all.kernel_arguments,
        line: entry.options.clone(),
        entry: entry.file.clone(),
    })
}

/// The entry's own root; where that was the machine's wish, which it may not be any more, that of the file system.
fn root(sysroot: &Sysroot, entry: &BootEntry, had: &HostArguments) -> Result<String> {
    let wished = bootable::root_of(&had.kernel_arguments);
    match bootable::root_of(&entry.options).filter(|root| Some(*root) != wished) {
        Some(root) => Ok(root.to_owned()),
        None => activate::root_argument(sysroot, &[]),
    }
}
