//! `state/cfs-update/staged.json`: which deployment is to boot next and was not booted yet.
//!
//! A note for people and for `status`; what boots is decided by the boot entries alone. So a lost or stale note delays
//! nothing, and one about a deployment that is gone is simply void.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Layout;
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::sys::fs::{self, Fs};

const LIMIT: u64 = 64 * 1024;
const VERSION: u32 = 1;

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
    /// Fetched and recorded, but not to boot until it is applied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub download_only: bool,
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
            format_version: VERSION,
            id,
            since,
            boot_id: None,
            download_only: false,
            merge_from: None,
            finalized: None,
            finalize_failed: None,
        }
    }

    /// Reads the note; `None` where nothing is staged.
    ///
    /// # Errors
    /// [`Error::Settings`] for a file that cannot be understood. It may be removed.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.state().join("staged.json");
        let Some(bytes) = fs::read(&path, LIMIT)? else {
            return Ok(None);
        };
        let refuse = |why: String| Error::Settings {
            path: path.clone(),
            why: format!("{why}; remove it, the boot entries decide what boots"),
        };
        let staged: Self = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("no staged record: {e}")))?;
        if staged.format_version != VERSION {
            return Err(refuse(format!("unknown format version {}", staged.format_version)));
        }
        Ok(Some(staged))
    }

    /// Writes the note, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        fs::replace(fs, &layout.state().join("staged.json"), 0o600, &bytes)
    }

    /// Removes the note, durable when this returns.
    pub fn clear(fs: &dyn Fs, layout: &Layout) -> Result<()> {
        let path = layout.state().join("staged.json");
        if !fs::exists(&path) {
            return Ok(());
        }
        fs.remove_file(&path)?;
        fs.sync_dir(&layout.state())
    }
}
