//! Kernel arguments of this machine: what `kargs` shows and changes.
//!
//! Invariant: a change is durable in `boot.toml`, which every later entry is made with, before an entry has it; and
//! that entry is a further one, above all others, like that of an update. At every instant the old entry or the new
//! one is the one that boots next, and both are complete. After a power cut between the two the same command once
//! more, or the next update, makes the entry. A changed entry is counted: with arguments that the machine does not
//! come up with it goes back to the deployment before, which keeps the arguments that it had.

use crate::activate;
use crate::boot::host::Edit;
use crate::boot::{BootEntry, HostArguments};
use crate::bootable;
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::monitor::{Event, Monitor};
use crate::plan;
use crate::sysroot::{Known, Sysroot};

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
    let host = HostArguments::load(sysroot.layout())?;
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
    let had = HostArguments::load(sysroot.layout())?;
    let host = had.changed(edit)?;
    let (id, old) = next(&known)?;
    let before = of(sysroot, id, old, &host, &had)?;
    if before.is_current() && host == had {
        return Err(Error::Nothing("the kernel arguments are like that already".into()));
    }
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
    if plan::rollback_target(&Sysroot::standing(&known)).is_err() {
        let alone = "there is no other deployment to go back to, should the machine not come up with these arguments: then \
                     change them in the boot loader's menu (key e), and here";
        monitor.event(Event::Warning(alone.into()));
    }
    activate::keep_good_next(sysroot, &known, id)?;
    let activate::Again { entry, lost } = activate::again(sysroot, &known, id, Some(before.wanted.clone()), "kargs")?;
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
