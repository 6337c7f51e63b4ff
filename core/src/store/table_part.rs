//! A layer's table of contents and tar-split, as far as they arrived over a slow network, kept for the next run should
//! this one be interrupted: of a large layer they are some megabytes, which come before anything else does.
//!
//! ```text
//! cfs-update/parts/<the table's SHA-256, 64 digits>-table-<origin, 16 digits>
//! both as they are in the blob, that which is first there from its first byte on
//! ```
//! It stays when both are here, so that a run that is interrupted later does not fetch them again, and goes with the
//! other parts of its origin.
//!
//! Invariant: nothing rests on it. Table and tar-split are compared with their digests wherever they came from; what
//! was kept and turns out wrong (a power cut leaves zeros) goes, and both are fetched. It is locked (flock) while it
//! is read and written.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::registry::Pace;
use crate::store::Store;
use crate::store::part::{Origin, PARTS, has_room, lock, new_locked};

/// What is kept of one table, if anything is.
pub(super) struct TablePart<'a> {
    store: &'a Store,
    /// Unset where nothing is to be kept.
    path: Option<PathBuf>,
    file: Option<File>,
    /// So much of it is in the file.
    written: usize,
    /// What came over the network.
    pace: Pace,
}

impl<'a> TablePart<'a> {
    /// With the bytes that an earlier run kept, `size` at most. `remember`: something may be written.
    pub(super) fn find(
        store: &'a Store,
        origin: Option<Origin>,
        checksum: &[u8; 32],
        size: u64,
        remember: bool,
    ) -> (Self, Vec<u8>) {
        let name = |origin| format!("{}-table-{origin}", hex::encode(checksum));
        let path = origin.map(|origin| store.path.join(PARTS).join(name(origin)));
        let file = path.as_ref().and_then(|path| lock(path));
        let mut bytes = Vec::new();
        let read = file.as_ref().map(|file| file.take(size).read_to_end(&mut bytes));
        if !matches!(read, Some(Ok(_))) {
            bytes.clear();
        }
        let part = Self {
            store,
            path: path.filter(|_| remember && store.read_only.is_none()),
            file,
            written: bytes.len(),
            pace: Pace::default(),
        };
        (part, bytes)
    }

    /// `new` bytes came, and were waited for so long; `bytes` are all that are here now, `left` of the blob are to
    /// come.
    pub(super) fn arrived(&mut self, bytes: &[u8], new: usize, waited: Duration, left: u64) {
        self.pace.more(waited, new as u64);
        if self.file.is_none() && !self.pace.is_slow() {
            return;
        }
        if let Err(error) = self.keep(bytes, left) {
            tracing::debug!("nothing is kept of a table: {error}");
            self.remove();
            self.path = None;
        }
    }

    fn keep(&mut self, bytes: &[u8], left: u64) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = match self.file.take() {
            Some(file) => file,
            None if !has_room(&self.store.path.join(PARTS), left)? => return Ok(()),
            None => new_locked(&*self.store.fs, path)?,
        };
        let file = self.file.insert(file);
        file.write_all_at(&bytes[self.written..], self.written as u64)
            .map_err(|e| Error::io("write", path, e))?;
        self.written = bytes.len();
        Ok(())
    }

    /// What was kept is wrong, or cannot be kept.
    pub(super) fn remove(&mut self) {
        if let (Some(path), Some(_)) = (&self.path, self.file.take()) {
            let _ = self.store.fs.remove_file(path);
        }
        self.written = 0;
    }
}
