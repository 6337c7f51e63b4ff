//! Booting into what was staged.
//!
//! A reboot goes through the service manager, so that services stop, shutdown jobs run (the last merge of /etc is one)
//! and whoever holds an inhibitor lock is asked. A soft reboot keeps kernel and hardware as they are: it is offered
//! only where the next deployment has the same kernel, initrd and kernel arguments.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use anyhow::Result;
use cfs_core::boot::cmdline;
use cfs_core::monitor::Monitor;
use cfs_core::sys::fs::{self, Fs, RealFs};
use cfs_core::sys::process;
use cfs_core::sysroot::Sysroot;
use cfs_core::{Error, finalize, plan};
use clap::ValueEnum;

/// Mounts a deployment; the one in the initramfs is the same program.
const ROOT_PROGRAM: &str = "/usr/lib/cfs-update/cfs-update-root";
/// Where systemd looks for the root to go on with (systemd-soft-reboot.service(8)).
const NEXT_ROOT: &str = "/run/nextroot";
/// What counts for this boot alone.
pub const RUN: &str = "/run/cfs-update";
/// Written before a soft reboot; /run is kept over it, and is new after every other one.
const NEXT_LINE: &str = "/run/cfs-update/next-cmdline";
/// systemd-bless-boot would look for the entry that the boot loader counted, which is not the one that runs then.
const NO_BLESSING: &str = "/run/systemd/system/systemd-bless-boot.service.d/50-cfs-update.conf";

/// How `--apply` boots into the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Apply {
    /// Reboot the machine
    Reboot,
    /// Restart only user space, where kernel, initrd and kernel arguments are the same
    Soft,
}

impl Apply {
    /// Boots into what boots next, in this way.
    pub fn run(self, sysroot: Sysroot, monitor: &dyn Monitor) -> Result<()> {
        if self == Self::Reboot {
            drop(sysroot);
            return restart(true);
        }
        prepare_soft(&sysroot, monitor)?;
        drop(sysroot);
        let asked = systemctl(&["soft-reboot", "--check-inhibitors=yes"]);
        if asked.is_err() {
            // The next reboot may be any other, and is to have the last merge of /etc.
            process::run(OsStr::new("umount"), &["--recursive".into(), NEXT_ROOT.into()], b"")?;
            RealFs.remove_file(Path::new(NEXT_LINE))?;
        }
        asked
    }
}

/// Whether what runs was reached by a soft reboot (or one is prepared): then the boot loader started another
/// deployment.
pub fn was_soft() -> bool {
    fs::exists(Path::new(NEXT_LINE))
}

/// Asks the service manager to reboot; `inhibitors`: who holds a lock against it is respected.
pub fn restart(inhibitors: bool) -> Result<()> {
    let check = if inhibitors { "yes" } else { "no" };
    systemctl(&["reboot", &format!("--check-inhibitors={check}")])
}

/// What the kernel that runs was booted with.
pub fn booted_with() -> Result<Vec<String>> {
    let line = fs::read_text(Path::new("/proc/cmdline"), 1 << 20)?.unwrap_or_default();
    Ok(cmdline::split(line.trim()))
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let words: Vec<_> = arguments.iter().map(Into::into).collect();
    let output = process::run(OsStr::new("systemctl"), &words, b"")?;
    if output.success() {
        return Ok(());
    }
    let why = format!(
        "systemctl {} said: {}; what was staged boots with the next reboot",
        arguments[0],
        output.last_line()
    );
    Err(Error::io("run", "systemctl", io::Error::other(why)).into())
}

/// Whether a soft reboot is prepared: then its /etc is mounted already, and may not be exchanged any more.
pub fn soft_reboot_waits() -> Result<bool> {
    let mounts = fs::read_text(Path::new("/proc/self/mountinfo"), 16 << 20)?.unwrap_or_default();
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(NEXT_ROOT)))
}

fn prepare_soft(sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<()> {
    let known = sysroot.known()?;
    let standing = Sysroot::standing(&known);
    let next = plan::next_to_boot(&standing).map(|d| d.id);
    let entry = |id| known.iter().find(|k| Some(k.id) == id).and_then(|k| k.entry.as_ref());
    let (Some(old), Some(new)) = (entry(sysroot.booted()), entry(next)) else {
        let why = "no deployment of ours runs, so there is nothing that a soft reboot could keep; use --apply";
        return Err(Error::Usage(why.into()).into());
    };
    plan::soft_reboot(old, new, &booted_with()?).map_err(|why| Error::Usage(format!("{why}; use --apply")))?;
    finalize::finalize(sysroot, monitor)?;
    let line = Path::new(NEXT_LINE);
    let no_blessing = Path::new(NO_BLESSING);
    for folder in [
        Path::new(RUN),
        Path::new(NEXT_ROOT),
        Path::new("/run/systemd/system"),
        fs::parent(no_blessing)?,
    ] {
        RealFs.create_dir(folder, 0o755)?;
    }
    fs::replace(&RealFs, line, 0o644, cmdline::join(&new.options).as_bytes())?;
    let condition = format!("[Unit]\nConditionPathExists=!{NEXT_LINE}\n");
    fs::replace(&RealFs, no_blessing, 0o644, condition.as_bytes())?;
    let arguments = ["--sysroot", "/sysroot", "--target", NEXT_ROOT, "--cmdline"].map(Into::into);
    let arguments: Vec<_> = arguments.into_iter().chain([line.into()]).collect();
    let output = process::run(OsStr::new(ROOT_PROGRAM), &arguments, b"")?;
    if output.success() {
        return Ok(());
    }
    // What was expected, what was found and what to do, on lines of their own.
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::io("run", ROOT_PROGRAM, io::Error::other(why)).into())
}
