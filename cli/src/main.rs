//! `cfs-update`: arguments, settings, terminal and JSON output over `cfs-core`, which does the work.
//!
//! Invariant: nothing here decides anything about images, deployments or boot entries; each subcommand calls one verb
//! of the library and shows what it returned. Exit codes come from [`cfs_core::Error::kind`] alone ([`output`]).
//!
//! A signal ends the process at once, by its default action: nothing needs to be put away, since the library shows
//! nothing under its final name before it is complete and durable, and the kernel drops the lock.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "help texts write [OPTION] as users know it"
)]

mod args;
mod cmd;
mod host;
mod journal;
mod metered;
mod output;
mod reboot;
mod settings;
mod ui;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return output::usage(&error),
    };
    let output = output::Output::new(args.global.format());
    match cmd::run(args, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.failure(&error),
    }
}
