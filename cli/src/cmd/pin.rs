//! `pin`, `unpin` and `delete`: which deployments stay.

use anyhow::Result;
use cfs_core::{download, rollback};
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::Report;

/// A deployment that was changed.
#[derive(Debug, Serialize)]
struct Changed {
    deployment: String,
    result: &'static str,
}

impl Changed {
    fn new(id: impl ToString, result: &'static str) -> Self {
        Self {
            deployment: id.to_string(),
            result,
        }
    }
}

impl Report for Changed {
    fn human(&self) -> String {
        format!("Deployment {} is {}\n", self.deployment, self.result)
    }
}

/// Which one.
#[derive(Debug, clap::Args)]
struct Which {
    /// Deployment: booted, staged, rollback, its index or id in `status`, its manifest digest or image
    deployment: String,
    #[command(flatten)]
    boot: BootDir,
}

/// Keep a deployment until it is unpinned
#[derive(Debug, clap::Args)]
pub struct Pin {
    #[command(flatten)]
    which: Which,
}

impl Pin {
    pub fn run(self, context: &Context) -> Result<()> {
        let id = rollback::pin(&context.open(&self.which.boot, "pin")?, &self.which.deployment, true)?;
        context.show(&Changed::new(id, "pinned"))
    }
}

/// No longer keep a deployment longer than others
#[derive(Debug, clap::Args)]
pub struct Unpin {
    #[command(flatten)]
    which: Which,
}

impl Unpin {
    pub fn run(self, context: &Context) -> Result<()> {
        let id = rollback::pin(&context.open(&self.which.boot, "unpin")?, &self.which.deployment, false)?;
        context.show(&Changed::new(id, "unpinned"))
    }
}

/// Remove a deployment that neither runs nor boots next, or what was `downloaded`
///
/// Its boot entries, record and /etc go; objects stay until `gc`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    which: Which,
}

impl Delete {
    pub fn run(self, context: &Context) -> Result<()> {
        let sysroot = context.open(&self.which.boot, "delete")?;
        if self.which.deployment == download::NAME && download::forget(&sysroot)? {
            return context.show(&Changed::new(download::NAME, "deleted"));
        }
        let id = rollback::delete(&sysroot, &self.which.deployment)?;
        context.show(&Changed::new(id, "deleted"))
    }
}
