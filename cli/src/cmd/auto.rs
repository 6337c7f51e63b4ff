//! `auto run` and `auto status`: what the timer does.

use anyhow::Result;
use cfs_core::Error;
use cfs_core::update::{self, Outcome, Wishes};
use serde::Serialize;

use super::Context;
use super::updated::Updated;
use crate::args::{BootDir, SpaceArgs};
use crate::output::Report;
use crate::reboot::Apply;

/// Automatic updates
#[derive(Debug, clap::Subcommand)]
pub enum Auto {
    Run(Run),
    Status(Status),
}

/// Update as the settings say; what cfs-update-auto.timer starts
///
/// Exit code 77 if there is nothing to do.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    boot: BootDir,
}

/// Show what automatic updates do here
#[derive(Debug, clap::Args)]
pub struct Status;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    enabled: bool,
    apply: bool,
}

impl Report for Policy {
    fn human(&self) -> String {
        let what = match (self.enabled, self.apply) {
            (false, _) => "do nothing; `enabled = true` in [auto] turns them on",
            (true, false) => "stage what is new; it runs after the next reboot",
            (true, true) => "stage what is new and reboot into it",
        };
        format!("Automatic updates {what}\n")
    }
}

impl Auto {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Run(command) => command.run(context),
            Self::Status(Status) => {
                let auto = &context.settings.auto;
                context.show(&Policy {
                    enabled: auto.enabled,
                    apply: auto.apply,
                })
            }
        }
    }
}

impl Run {
    fn run(self, context: &Context) -> Result<()> {
        let auto = &context.settings.auto;
        if !auto.enabled {
            return Err(Error::Nothing("automatic updates are off: `enabled = false` in [auto]".into()).into());
        }
        context.check_apply(auto.apply)?;
        let sysroot = context.open(&self.boot, "auto run")?;
        let wishes = Wishes {
            automatic: true,
            ..Wishes::default()
        };
        let work = |sysroot: &_| update::upgrade(sysroot, wishes, &context.ui);
        let outcome = context.fetching(&sysroot, SpaceArgs::default(), work)?;
        if let Outcome::FailedBefore(failed) = &outcome {
            let why = format!("{} is left alone: {}", failed.digest, failed.why);
            return Err(Error::Nothing(why).into());
        }
        let updated = Updated::of(outcome)?;
        let apply = auto.apply.then_some(Apply::Reboot).filter(|_| updated.waits(&sysroot));
        if updated.is_new() || apply.is_some() {
            return context.finish(&updated, apply, sysroot);
        }
        context.show_document(&updated)?;
        Err(Error::Nothing(updated.human().trim_end().into()).into())
    }
}
