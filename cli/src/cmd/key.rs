//! `key …`: the machine's own key.

use anyhow::Result;
use cfs_core::signature::SigningKey;
use cfs_core::sys::fs::RealFs;
use serde::Serialize;

use super::Context;
use crate::output::Report;

/// The keys that deployments are signed and verified with
#[derive(Debug, clap::Subcommand)]
pub enum Key {
    Generate(Generate),
}

impl Key {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Generate(command) => command.run(context),
        }
    }
}

/// Make the machine's key; the first deployment does so, too
///
/// An existing key is never overwritten.
#[derive(Debug, clap::Args)]
pub struct Generate {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Generated {
    id: String,
    public_key: String,
    folder: String,
}

impl Generate {
    fn run(self, context: &Context) -> Result<()> {
        let (layout, _lock) = context.lock("key generate")?;
        let key = SigningKey::generate(&RealFs, &layout.keys())?;
        context.show(&Generated {
            id: key.public().id().to_string(),
            public_key: key.public().to_base64(),
            folder: layout.keys().display().to_string(),
        })
    }
}

impl Report for Generated {
    fn human(&self) -> String {
        let Self { id, public_key, folder } = self;
        format!("Key {id} made in {folder}\n{:>16}: {public_key}\n", "Public half")
    }
}
