//! `state/cfs-update/running.json`: which deployment ran last, as far as a command of ours was run in it.
//!
//! Whatever boots and never ran before lacks what was changed in the /etc of the one that ran before it, whichever that
//! was and by whatever way it came to boot; where the last merge did not happen, nothing else tells which one that is.
//!
//! Invariant: written by the first command that holds the lock in a boot of another deployment, and only after what
//! it said until then was made use of. One that is lost means that the record's `etc_from` counts.

use serde::{Deserialize, Serialize};

use super::Layout;
use super::note::{self, Note};
use crate::error::Result;
use crate::ids::DeploymentId;
use crate::sys::fs::Fs;

const NOTE: Note = Note {
    file: "running.json",
    what: "note of what ran last",
    limit: 64 << 10,
    remedy: "remove it",
};

/// What ran last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    format_version: u32,
    /// Which.
    pub id: DeploymentId,
}

impl Running {
    /// This one runs.
    pub fn new(id: DeploymentId) -> Self {
        Self {
            format_version: note::VERSION,
            id,
        }
    }

    /// Reads the note; `None` where nothing ran yet.
    ///
    /// # Errors
    /// [`Error::Settings`](crate::error::Error::Settings) for a file that cannot be understood. It may be removed.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        NOTE.read(layout)
    }

    /// Writes the note, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        NOTE.write(fs, layout, self)
    }
}
