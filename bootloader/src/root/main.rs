//! `cfs-update-root`: from the mounted physical root to the root of a deployment, inside the initramfs.
//!
//! systemd (or a script) has mounted the physical root at SYSROOT and runs this program; when it returns 0, the tree
//! that is mounted there is the one that the kernel command line names by its fs-verity digest, with the deployment's
//! /etc and /var, and the physical root at its /sysroot. Every switch of roots goes on from there.
//!
//! Invariants: nothing is mounted that was not proven to be what the command line names; what is refused leaves
//! SYSROOT as it was and says what was expected, what was found and what to do. Nothing is written to the disk, so
//! that a power cut changes nothing. In this order: `args`, `config` and `choice` (text in, types out), `image` (which
//! file, and the proof), `seal`, `state` (where /etc and /var are), `plan` (what is to be mounted, pure), `mounts`
//! (does it), `init` (whether it can be started); `failure` and `device` are for boots that end.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and break files as they like")
)]

mod args;
mod refusal;
mod console;
mod config;
mod choice;
mod image;
mod seal;
mod state;
mod plan;
mod mounts;
mod failure;
mod device;
mod init;

use std::process::ExitCode;

use cfs_core::boot::cmdline;
use cfs_core::sys::dir::Dir;
use cfs_core::sys::{fs, mount_tree};

use args::{Action, OnFailure, Options};
use config::Config;
use console::Console;
use refusal::Refusal;

/// No command line, configuration or key list is longer.
const TEXT_LIMIT: u64 = 1 << 20;
/// The kernel command line names no composefs image: another kind of boot.
const NOTHING_TO_DO: u8 = 77;

fn main() -> ExitCode {
    let options = match args::parse(std::env::args_os().skip(1)) {
        Ok(Action::Run(options)) => options,
        Ok(Action::BootFailed(options)) => {
            boot_failed(&options);
            return ExitCode::SUCCESS;
        }
        Ok(Action::Say(text)) => {
            console::answer(&text);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            Console::default().problem(&format!("{why}\n{}", args::USAGE));
            return ExitCode::from(2);
        }
    };
    let console = Console::new(options.kmsg.clone());
    match run(&options, &console) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NOTHING_TO_DO),
        Err(refusal) => {
            console.problem(&refusal.to_string());
            if options.target == options.sysroot && !options.dry_run {
                console.problem("another deployment can be chosen in the boot loader's menu");
            }
            if options.on_failure == OnFailure::Reboot && !options.dry_run {
                failure::act(&options.efivars, &options.sysroot, failure::Reboot::AtOnce, &console);
            }
            ExitCode::from(refusal.exit_code())
        }
    }
}

/// A boot that failed before this program came to its work, or after it.
fn boot_failed(options: &Options) {
    let console = Console::new(options.kmsg.clone());
    let why = if options.if_root_is_missing {
        let arguments = cmdline::split(&text(&options.cmdline).ok().flatten().unwrap_or_default());
        if !device::is_missing(&arguments, &options.dev) {
            return;
        }
        "the disk that root= names has not come"
    } else {
        "it did not come as far as its health checks, or they could not judge it"
    };
    console.problem(&format!("this boot has failed: {why}"));
    failure::act(&options.efivars, &options.sysroot, failure::Reboot::Orderly, &console);
}

/// `false` where there is nothing to do.
fn run(options: &Options, console: &Console) -> Result<bool, Refusal> {
    let line = text(&options.cmdline)?.unwrap_or_default();
    let arguments = cmdline::split(&line);
    let Some(candidates) = choice::candidates(&arguments)? else {
        console.note("the kernel command line has neither composefs.digest= nor composefs=: nothing to do");
        return Ok(false);
    };
    let in_place = options.target == options.sysroot;
    if let Some(source) = mount_tree::source(&options.target).filter(|source| in_place && is_deployment(source)) {
        console.note(&format!(
            "{} has {source} already: nothing to do",
            options.target.display()
        ));
        return Ok(true);
    }
    let config = match text(&options.config)? {
        Some(text) => Config::parse(&text).map_err(|why| config::refuse(&options.config, &why))?,
        None => Config::default(),
    };
    let config = config.with_arguments(&arguments);

    let sysroot = Dir::open(&options.sysroot).map_err(|e| image::no_sysroot(&options.sysroot, &e))?;
    let image = choice::choose(&candidates, |argument| image::find(&sysroot, argument))?;
    let proof = image.prove()?;
    let signer = match config.require_signature {
        true => Some(seal::check(&sysroot, &image.id(), &options.keys)?),
        false => None,
    };
    let state = state::open(&sysroot, &image.id(), &config)?;
    let facts = plan::Facts {
        id: image.id(),
        proof,
        read_only: mount_tree::is_read_only(&sysroot)?,
        in_place,
    };
    let steps = plan::plan(&config, &facts);
    if options.dry_run {
        let lines: Vec<String> = steps.iter().map(ToString::to_string).collect();
        console::answer(&format!("{}\n", lines.join("\n")));
        return Ok(true);
    }
    if options.on_failure == OnFailure::Reboot {
        failure::prepare(options, console);
    }
    mounts::Mounter::new(options, &config, &sysroot, &image, &state)?.run(&steps, &arguments)?;
    let signed = signer.map_or_else(String::new, |key| format!(", signed by {key}"));
    console.note(&format!("booting {} ({proof}{signed})", image.id()));
    Ok(true)
}

/// By the source of its root: ours, or what another tool's program has mounted before us.
fn is_deployment(source: &str) -> bool {
    source.starts_with("composefs:") || source.starts_with("transient:composefs=")
}

fn text(path: &std::path::Path) -> Result<Option<String>, Refusal> {
    Ok(fs::read_text(path, TEXT_LIMIT)?)
}
