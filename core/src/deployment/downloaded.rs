//! `state/cfs-update/downloaded.json`: which image is here to be deployed and is not deployed yet.
//!
//! Invariant: it is written when all of the image is durable, and removed before the names that keep it; what boots
//! does not depend on it. A lost note costs asking the registry once more.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Layout;
use super::note::{self, Note};
use crate::error::Result;
use crate::ids::{DeploymentId, ManifestDigest};
use crate::sys::fs::Fs;

const NOTE: Note = Note {
    file: "downloaded.json",
    what: "note of a download",
    limit: 64 << 10,
    remedy: "remove it, and `upgrade --download-only` writes it anew",
};

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Downloaded {
    format_version: u32,
    /// Where it is from, with its transport.
    pub reference: String,
    /// What that led to: an index, where there is one.
    pub top: ManifestDigest,
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// The id that its deployment will have.
    pub id: DeploymentId,
    /// Its version, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Since when it is here.
    pub since: Timestamp,
}

impl Downloaded {
    /// An image that is here since now.
    pub fn new(
        reference: String,
        top: ManifestDigest,
        manifest: ManifestDigest,
        id: DeploymentId,
        version: Option<String>,
    ) -> Self {
        Self {
            format_version: note::VERSION,
            reference,
            top,
            manifest,
            id,
            version,
            since: Timestamp::now(),
        }
    }

    /// Reads the note; `None` where nothing was downloaded.
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
