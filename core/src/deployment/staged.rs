//! `state/cfs-update/staged.json`: which deployment is to boot next and was not booted yet.
//!
//! A note for people and for `status`; what boots is decided by the boot entries alone. So a lost or stale note delays
//! nothing, and one about a deployment that is gone is simply void.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::note::{self, Note};
use super::{Layout, Origin};
use crate::error::Result;
use crate::ids::DeploymentId;
use crate::sys::fs::Fs;

const NOTE: Note = Note {
    file: "staged.json",
    what: "staged record",
    limit: 64 << 10,
    remedy: "remove it, the boot entries decide what boots",
};

/// The staged deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Staged {
    format_version: u32,
    /// Which.
    pub id: DeploymentId,
    /// Since when.
    pub since: Timestamp,
    /// The kernel's boot id at that time: with another one, the machine was booted since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// The deployment whose /etc is merged into it once more at shutdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_from: Option<DeploymentId>,
    /// When that merge was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalized: Option<Timestamp>,
    /// Why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finalize_failed: Option<String>,
}

impl Staged {
    /// A deployment that boots next.
    pub fn new(id: DeploymentId, since: Timestamp) -> Self {
        Self {
            format_version: note::VERSION,
            id,
            since,
            boot_id: None,
            merge_from: None,
            finalized: None,
            finalize_failed: None,
        }
    }

    /// One that never ran, and has its /etc from another one.
    pub fn waiting(id: DeploymentId, from: DeploymentId, origin: Option<&Origin>) -> Self {
        let since = origin.and_then(|origin| origin.deployed).unwrap_or_else(Timestamp::now);
        Self {
            merge_from: Some(from),
            ..Self::new(id, since)
        }
    }

    /// The note as it has to be about one that never ran, and about the /etc of another one. One that cannot be read, or
    /// is about something else, is made anew: it is for people.
    pub fn turned(layout: &Layout, id: DeploymentId, from: DeploymentId, origin: Option<&Origin>) -> Self {
        let note = Self::load(layout).ok().flatten().filter(|note| note.id == id);
        let mut note = note.unwrap_or_else(|| Self::waiting(id, from, origin));
        if note.merge_from != Some(from) {
            (note.merge_from, note.finalized) = (Some(from), None);
        }
        note
    }

    /// Makes the note be so, unless it is already.
    pub fn turn_to(
        fs: &dyn Fs,
        layout: &Layout,
        id: DeploymentId,
        from: DeploymentId,
        origin: Option<&Origin>,
    ) -> Result<()> {
        let note = Self::turned(layout, id, from, origin);
        match Self::load(layout) {
            Ok(Some(there)) if there == note => Ok(()),
            _ => note.save(fs, layout),
        }
    }

    /// Reads the note; `None` where nothing is staged.
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

    /// Removes the note, durable when this returns.
    pub fn clear(fs: &dyn Fs, layout: &Layout) -> Result<()> {
        NOTE.remove(fs, layout)
    }
}
