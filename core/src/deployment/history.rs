//! What happened on this machine (`history.jsonl`), and what must not happen again by itself (`failed.json`).
//!
//! Invariants: the history keeps the newest [`HISTORY_LINES`] events, one JSON object a line; it is replaced whole, so
//! a power cut loses at most the event that was being added. A line that cannot be read is kept and skipped. A list of
//! failed digests that cannot be read is an error: an update that failed would otherwise be tried again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Layout;
use super::note::{self, Note};
use crate::error::Result;
use crate::ids::{DeploymentId, ManifestDigest};
use crate::sys::fs::{self, Fs};

/// How many events are kept.
pub const HISTORY_LINES: usize = 1000;
const HISTORY_LIMIT: u64 = 16 << 20;
const NOTE: Note = Note {
    file: "failed.json",
    what: "list of failures",
    limit: 4 << 20,
    remedy: "remove it to allow every image again",
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `switch`, `upgrade`, `rollback`, `delete`, `boot`, `health`…
    pub event: String,
    /// When.
    pub time: Timestamp,
    /// The deployment that it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeploymentId>,
    /// Its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ManifestDigest>,
    /// Its reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// `done`, or what went wrong.
    pub result: String,
}

/// The history file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Events, oldest first.
    pub events: Vec<Event>,
    /// How many lines could not be read.
    pub unreadable: usize,
}

impl History {
    /// Reads the history; empty where there is none.
    pub fn load(layout: &Layout) -> Result<Self> {
        let mut history = Self::default();
        for line in lines(layout)? {
            match serde_json::from_slice(&line) {
                Ok(event) => history.events.push(event),
                Err(_) => history.unreadable += 1,
            }
        }
        Ok(history)
    }

    /// Adds an event, durable when this returns. A history that cannot be read at all is put aside, as
    /// `history.jsonl.broken`: it must not fail an update that is done.
    pub fn append(fs: &dyn Fs, layout: &Layout, event: &Event) -> Result<()> {
        let mut lines = match lines(layout) {
            Ok(lines) => lines,
            Err(_) => {
                let aside = layout.state().join("history.jsonl.broken");
                if fs::is_dir(&aside) {
                    fs.remove_dir_all(&aside)?;
                }
                fs.rename(&layout.state().join("history.jsonl"), &aside)?;
                Vec::new()
            }
        };
        lines.push(serde_json::to_vec(event).unwrap_or_default());
        let surplus = lines.len().saturating_sub(HISTORY_LINES);
        let mut bytes = Vec::new();
        for line in &lines[surplus..] {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        }
        fs::replace(fs, &layout.state().join("history.jsonl"), 0o600, &bytes)
    }
}

fn lines(layout: &Layout) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(&layout.state().join("history.jsonl"), HISTORY_LIMIT)?.unwrap_or_default();
    let lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(<[u8]>::to_vec).collect())
}

/// One image that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// The manifest that is not installed again by itself.
    pub digest: ManifestDigest,
    /// What the tag led to then: an index, or the manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<ManifestDigest>,
    /// The deployment that it became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeploymentId>,
    /// When.
    pub time: Timestamp,
    /// Why, for people.
    pub why: String,
    /// It did not fail: the administrator went back from it. Automatic updates leave it alone, he may have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_admin: bool,
}

/// The list of failed images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedDigests {
    format_version: u32,
    failed: Vec<Failed>,
}

impl Default for FailedDigests {
    fn default() -> Self {
        Self {
            format_version: note::VERSION,
            failed: Vec::new(),
        }
    }
}

impl FailedDigests {
    /// Reads the list; empty where there is none.
    ///
    /// # Errors
    /// [`Error::Settings`](crate::Error::Settings) for a file that cannot be understood.
    pub fn load(layout: &Layout) -> Result<Self> {
        Ok(NOTE.read(layout)?.unwrap_or_default())
    }

    /// Writes the list, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        NOTE.write(fs, layout, self)
    }

    /// Remembers a failure; the newest one of a digest counts.
    pub fn add(&mut self, failed: Failed) {
        self.remove(&failed.digest);
        self.failed.push(failed);
    }

    /// Forgets a digest (the admin asked for it); whether it was there.
    pub fn remove(&mut self, digest: &ManifestDigest) -> bool {
        let before = self.failed.len();
        self.failed.retain(|failed| failed.digest != *digest);
        self.failed.len() != before
    }

    /// The failure of what a tag leads to: of the manifest, or of the index that it was chosen from.
    pub fn of(&self, digest: &ManifestDigest) -> Option<&Failed> {
        let mut all = self.failed.iter();
        all.find(|failed| failed.digest == *digest || failed.top == Some(*digest))
    }

    /// The failure of a digest.
    pub fn get(&self, digest: &ManifestDigest) -> Option<&Failed> {
        self.failed.iter().find(|failed| failed.digest == *digest)
    }

    /// All failures, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Failed> {
        self.failed.iter()
    }
}
