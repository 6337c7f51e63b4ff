//! `state/cfs-update/rollback.json`: a rollback that has begun and has not said that it is done.
//!
//! A rollback that is done and one that is asked for again look the same on `$BOOT`: the older deployment boots next.
//! This note tells a run that was killed, or could not write what comes after its entry, from one that is over, so
//! that the same command again finishes the first and goes back once more only after the second.
//!
//! Invariant: it counts in the boot of the machine in which it was written, and only while the entry that it names is
//! the one that boots next. No other entry ever has the generation that it names, so that none is taken for that one.
//! One that is lost or cannot be read means what no note means.

use serde::{Deserialize, Serialize};

use super::Layout;
use super::note::{self, Note};
use crate::error::Result;
use crate::ids::DeploymentId;
use crate::sys::fs::Fs;

const NOTE: Note = Note {
    file: "rollback.json",
    what: "note of a rollback",
    limit: 64 << 10,
    remedy: "remove it",
};

/// A rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    format_version: u32,
    /// What is to boot next.
    pub id: DeploymentId,
    /// The generation of the entry that it gets for that.
    pub generation: u64,
    /// What would have booted next.
    pub instead_of: Option<DeploymentId>,
    /// Whether that was an update that never ran.
    pub was_staged: bool,
    /// The boot of the machine.
    boot_id: String,
}

impl Begun {
    /// In this boot of the machine.
    pub fn new(id: DeploymentId, generation: u64, boot_id: &str) -> Self {
        Self {
            format_version: note::VERSION,
            id,
            generation,
            instead_of: None,
            was_staged: false,
            boot_id: boot_id.into(),
        }
    }

    /// One of this boot of the machine, if there is any.
    pub fn of_boot(layout: &Layout, boot_id: &str) -> Option<Self> {
        let found: Option<Self> = NOTE.read(layout).ok().flatten();
        found.filter(|begun| begun.boot_id == boot_id)
    }

    /// The generation that a rollback of whatever boot has named for its entry.
    pub fn named_generation(layout: &Layout) -> Option<u64> {
        let found: Option<Self> = NOTE.read(layout).ok().flatten();
        found.map(|begun| begun.generation)
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
