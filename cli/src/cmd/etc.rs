//! `etc diff`.

use anyhow::Result;
use cfs_core::error::one_line;
use cfs_core::etc::{Change, is_kept_beside};
use cfs_core::sysroot::{Known, Sysroot};
use cfs_core::{Error, deploy};
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::Report;

/// What was changed in /etc
#[derive(Debug, clap::Subcommand)]
pub enum Etc {
    Diff(Diff),
}

/// List what differs in /etc from what the image has there
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// Deployment: booted, staged, rollback, its index or id in `status` [default: booted, else what boots next]
    deployment: Option<String>,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
struct Changes {
    deployment: String,
    changes: Vec<Changed>,
}

#[derive(Debug, Serialize)]
struct Changed {
    path: String,
    change: &'static str,
    /// It is the image's version of a file that was changed here as well.
    conflict: bool,
}

impl Report for Changes {
    fn human(&self) -> String {
        let line = |c: &Changed| {
            let mark = match c.change {
                "added" => '+',
                "removed" => '-',
                _ => '~',
            };
            let what = if c.conflict {
                " (the image's version of a file that was changed here)"
            } else {
                ""
            };
            format!("{mark} /etc/{}{what}\n", one_line(&c.path))
        };
        self.changes.iter().map(line).collect()
    }
}

impl Etc {
    pub fn run(self, context: &Context) -> Result<()> {
        let Self::Diff(command) = self;
        command.run(context)
    }
}

impl Diff {
    fn run(self, context: &Context) -> Result<()> {
        let sysroot = context.look_anyway(&self.boot)?;
        let known = self.known(&sysroot)?;
        let changes = deploy::etc_changes(&sysroot, &known)?.into_iter();
        let changes = changes.map(|(path, change)| Changed {
            conflict: change == Change::Added && is_kept_beside(&path),
            change: match change {
                Change::Added => "added",
                Change::Changed => "changed",
                Change::Removed => "removed",
            },
            path: path.display().to_string(),
        });
        context.show(&Changes {
            deployment: known.id.to_string(),
            changes: changes.collect(),
        })
    }

    fn known(&self, sysroot: &Sysroot) -> Result<Known> {
        let (id, known) = match &self.deployment {
            Some(text) => sysroot.find(text)?,
            None => {
                let known = sysroot.known()?;
                let booted = known.iter().find(|k| k.standing.booted);
                let id = booted.or_else(|| known.first()).map(|k| k.id);
                let none = || Error::Deployment {
                    id: "etc diff".into(),
                    why: "there is no deployment yet".into(),
                };
                (id.ok_or_else(none)?, known)
            }
        };
        let mut known = known.into_iter();
        known.find(|k| k.id == id).ok_or_else(|| {
            let why = "it has just been removed";
            let id = id.short();
            Error::Deployment { id, why: why.into() }.into()
        })
    }
}
