//! `finalize`: what `cfs-update-finalize.service` runs at shutdown.

use anyhow::Result;
use cfs_core::finalize::{self, Finalized};
use serde::Serialize;

use super::Context;
use super::updated::Conflict;
use crate::args::BootDir;
use crate::output::Report;
use crate::reboot;

/// Bring changes of /etc over into the staged deployment, once more before it boots
#[derive(Debug, clap::Args)]
pub struct Finalize {
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Merged {
    deployment: Option<String>,
    etc_conflicts: Vec<Conflict>,
    /// It was booted already, and keeps the /etc that was changed there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    keeps_own_etc: bool,
}

impl Report for Merged {
    fn human(&self) -> String {
        let Some(id) = &self.deployment else {
            return "No update waits for changes of /etc\n".into();
        };
        if self.keeps_own_etc {
            return format!("Deployment {id} was booted already and keeps its own /etc, which was changed there\n");
        }
        let conflicts = self.etc_conflicts.iter().map(|c| format!("  {}\n", c.human()));
        format!("Deployment {id} has the present /etc\n") + &conflicts.collect::<String>()
    }
}

impl Finalize {
    pub fn run(self, context: &Context) -> Result<()> {
        if !context.has_repository()? || reboot::soft_reboot_waits()? {
            return context.show(&Merged::default());
        }
        let sysroot = context.open_waiting(&self.boot, "finalize")?;
        let merged = match finalize::finalize(&sysroot, &context.ui)? {
            Finalized::Nothing => Merged::default(),
            Finalized::Merged { id, conflicts } => Merged {
                deployment: Some(id.to_string()),
                etc_conflicts: conflicts.iter().map(Conflict::from).collect(),
                keeps_own_etc: false,
            },
            Finalized::Kept { id } => Merged {
                deployment: Some(id.to_string()),
                keeps_own_etc: true,
                ..Merged::default()
            },
        };
        context.show(&merged)
    }
}
