//! `rollback`.

use anyhow::Result;
use cfs_core::monitor::{Event, Monitor};
use cfs_core::rollback;
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::journal;
use crate::output::Report;
use crate::reboot::Apply;

/// Make the previous deployment boot next
#[derive(Debug, clap::Args)]
pub struct Rollback {
    /// Boot into it: reboot the machine, or with --apply=soft restart user space alone
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "reboot")]
    apply: Option<Apply>,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RolledBack {
    deployment: String,
    instead_of: Option<String>,
    instead_was_staged: bool,
    boot_entry: String,
    generation: u64,
}

impl Report for RolledBack {
    fn human(&self) -> String {
        let mut text = format!(
            "Deployment {} boots next\n{:>16}: {}\n",
            self.deployment, "Boot entry", self.boot_entry
        );
        if let Some(id) = &self.instead_of {
            let what = if self.instead_was_staged {
                "an update that never ran"
            } else {
                "which boots no longer first"
            };
            text.push_str(&format!(
                "{:>16}: {id}, {what}; it stays, and a second rollback brings it back\n",
                "Instead of"
            ));
        }
        text
    }
}

impl Rollback {
    pub fn run(self, context: &Context) -> Result<()> {
        context.check_apply(self.apply.is_some())?;
        let sysroot = context.open(&self.boot, "rollback")?;
        let done = rollback::rollback(&sysroot)?;
        for error in &done.lost {
            context
                .ui
                .event(Event::Warning(format!("it boots next; not noted: {error}")));
        }
        context.tell_overrides(&sysroot);
        journal::rolled_back(&sysroot, &done.id, "the administrator asked for it");
        let report = RolledBack {
            deployment: done.id.to_string(),
            instead_of: done.instead_of.map(|id| id.to_string()),
            instead_was_staged: done.was_staged,
            boot_entry: done.entry,
            generation: done.generation,
        };
        context.finish(&report, self.apply, sysroot)
    }
}
