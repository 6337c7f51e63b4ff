//! `state/cfs-update/kargs.json`: kernel arguments of the machine that have yet to show that it comes up with them.
//!
//! Until they have, the entry that booted well with the former ones stays below the new one, and this note says what
//! the machine wanted then, so that it wants that again should it come back up with the former entry.
//!
//! Invariant: it is durable before the machine's wish or the entry is changed, and what it means follows from the
//! entries that are there, at any time: one of a change that came no further means that the former arguments hold.
//! One that is lost or cannot be read means what no note means.

use serde::{Deserialize, Serialize};

use super::Layout;
use super::note::{self, Note};
use crate::error::Result;
use crate::ids::DeploymentId;
use crate::sys::fs::Fs;

const NOTE: Note = Note {
    file: "kargs.json",
    what: "note of changed kernel arguments",
    limit: 256 << 10,
    remedy: "remove it",
};

/// A change of kernel arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    format_version: u32,
    /// The deployment whose entry it is.
    pub id: DeploymentId,
    /// The command line that is tried.
    pub line: Vec<String>,
    /// The one that booted well.
    pub former: Vec<String>,
    /// What the machine wanted of every entry then.
    pub wanted: Vec<String>,
}

impl Trial {
    /// Of this deployment.
    pub fn new(id: DeploymentId, line: Vec<String>, former: Vec<String>, wanted: Vec<String>) -> Self {
        Self {
            format_version: note::VERSION,
            id,
            line,
            former,
            wanted,
        }
    }

    /// The one that was noted, if there is any.
    pub fn load(layout: &Layout) -> Option<Self> {
        NOTE.read(layout).ok().flatten()
    }

    /// Writes the note, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        NOTE.write(fs, layout, self)
    }

    /// Removes the note, durable when this returns.
    pub fn clear(fs: &dyn Fs, layout: &Layout) -> Result<()> {
        NOTE.remove(fs, layout)
    }
}
