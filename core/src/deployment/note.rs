//! Small notes in `state/cfs-update`: a JSON document with its format version, in one line.
//!
//! Invariant: a note is replaced as a whole and durable when writing returns.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Layout;
use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs};

const LIMIT: u64 = 64 * 1024;
/// The version that every note has so far.
pub(super) const VERSION: u32 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    format_version: u32,
}

/// Reads a note; `None` where there is none. `remedy` ends the message about one that cannot be understood.
pub(super) fn read<T: DeserializeOwned>(layout: &Layout, file: &str, remedy: &str) -> Result<Option<T>> {
    let path = layout.state().join(file);
    let Some(bytes) = fs::read(&path, LIMIT)? else {
        return Ok(None);
    };
    let refuse = |why: String| Error::Settings {
        path: path.clone(),
        why: format!("{why}; {remedy}"),
    };
    let broken = |e: serde_json::Error| refuse(format!("is not what this program writes there: {e}"));
    let head: Head = serde_json::from_slice(&bytes).map_err(broken)?;
    if head.format_version != VERSION {
        return Err(refuse(format!("unknown format version {}", head.format_version)));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}

/// Writes a note.
pub(super) fn write(fs: &dyn Fs, layout: &Layout, file: &str, note: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec(note).unwrap_or_default();
    bytes.push(b'\n');
    fs::replace(fs, &layout.state().join(file), 0o600, &bytes)
}

/// Removes a note, durably; a missing one is success.
pub(super) fn remove(fs: &dyn Fs, layout: &Layout, file: &str) -> Result<()> {
    let path = layout.state().join(file);
    if !fs::exists(&path) {
        return Ok(());
    }
    fs.remove_file(&path)?;
    fs.sync_dir(&layout.state())
}
