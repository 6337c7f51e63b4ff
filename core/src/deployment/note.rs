//! Notes: a JSON document with its format version, in one line. Small ones in `state/cfs-update`, or beside a record.
//!
//! Invariant: a note is replaced as a whole and durable when writing returns.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Layout;
use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs};

/// The version that every note has so far.
pub(crate) const VERSION: u32 = 1;

/// One of them.
pub(crate) struct Note {
    /// Its name in the folder.
    pub(crate) file: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// More bytes it never has.
    pub(crate) limit: u64,
    /// What to do about one that cannot be understood.
    pub(crate) remedy: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    format_version: u32,
}

impl Note {
    /// Reads it; `None` where there is none.
    pub(crate) fn read<T: DeserializeOwned>(&self, layout: &Layout) -> Result<Option<T>> {
        self.read_in(&layout.state())
    }

    /// The one in another folder.
    pub(crate) fn read_in<T: DeserializeOwned>(&self, folder: &Path) -> Result<Option<T>> {
        let path = folder.join(self.file);
        let Some(bytes) = fs::read(&path, self.limit)? else {
            return Ok(None);
        };
        let refuse = |why: String| Error::Settings {
            path: path.clone(),
            why: format!("{why}; {}", self.remedy),
        };
        let broken = |e: serde_json::Error| refuse(format!("no {}: {e}", self.what));
        let head: Head = serde_json::from_slice(&bytes).map_err(broken)?;
        if head.format_version != VERSION {
            return Err(refuse(format!("unknown format version {}", head.format_version)));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(broken)
    }

    /// Writes it.
    pub(crate) fn write(&self, fs: &dyn Fs, layout: &Layout, content: &impl Serialize) -> Result<()> {
        self.write_in(fs, &layout.state(), content)
    }

    /// Writes it into another folder.
    pub(crate) fn write_in(&self, fs: &dyn Fs, folder: &Path, content: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(content).unwrap_or_default();
        bytes.push(b'\n');
        fs::replace(fs, &folder.join(self.file), 0o600, &bytes)
    }

    /// Removes it, durably; a missing one is success.
    pub(crate) fn remove(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        self.remove_in(fs, &layout.state())
    }

    /// Removes the one in another folder.
    pub(crate) fn remove_in(&self, fs: &dyn Fs, folder: &Path) -> Result<()> {
        let path = folder.join(self.file);
        if !fs::exists(&path) {
            return Ok(());
        }
        fs.remove_file(&path)?;
        fs.sync_dir(folder)
    }
}
