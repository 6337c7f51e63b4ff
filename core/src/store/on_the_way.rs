//! The index of a layer that is being put together from parts, so that a run that is interrupted fetches no range
//! twice.
//!
//! Its objects are in the store when they are written, but nothing refers to them: the layer's stream comes last. So
//! what was stored is noted in `cfs-update/index/<diff_id>` every [`WRITE`] and when the layer fails; the next run
//! finds the files there as it finds those of other layers, hashes them before it uses them (the store is suspect
//! then), and fetches the rest. The file that was being fetched is another matter ([`crate::store::chunk_part`]). Of a
//! layer that is complete it is the index.
//!
//! Invariant: that of the index ([`crate::store::index`]): nothing rests on it. Garbage collection removes it with the
//! objects.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::chunked::{File, Table};
use crate::error::Result;
use crate::ids::{DiffId, ObjectId};
use crate::store::Store;
use crate::store::found::Sum;
use crate::store::index::INDEX;
use crate::store::pending::OWN;
use crate::store::records::Building;
use crate::sys::fs;

/// How often it is written: some megabytes for a large layer, and nothing where a layer takes no longer.
const WRITE: Duration = Duration::from_secs(2);

/// The index of a layer that is being put together, written now and then: should the run be interrupted, the next one
/// finds what this one fetched, though no layer refers to it.
pub(super) struct OnTheWay<'t> {
    store: &'t Store,
    layer: DiffId,
    /// The table; at the file of it that comes next.
    table: &'t Table,
    next: usize,
    records: Building,
    /// The table has said nothing yet that was not so.
    fits: bool,
    written: Instant,
    /// So many files of the table are in what was written.
    noted: &'t AtomicUsize,
}

impl<'t> OnTheWay<'t> {
    pub(super) fn new(store: &'t Store, layer: DiffId, table: &'t Table, noted: &'t AtomicUsize) -> Self {
        Self {
            store,
            layer,
            table,
            next: 0,
            records: Building::of_table(store.algorithm, table),
            fits: true,
            written: Instant::now(),
            noted,
        }
    }

    /// The next file that is not empty is this object, which is here.
    pub(super) fn object(&mut self, id: &ObjectId, size: u64) {
        if let Some(file) = self.file(size) {
            self.records.file(&file.digest, id, size);
            self.records.chunks(self.table, file);
            if self.written.elapsed() >= WRITE {
                self.write();
            }
        }
    }

    /// The next file has this content.
    pub(super) fn small(&mut self, content: &[u8]) {
        if !content.is_empty()
            && let Some(file) = self.file(content.len() as u64)
        {
            self.fits &= Sum::from(Sha256::digest(content)) == file.digest;
            self.records.small(&file.digest, content);
        }
    }

    /// A table that does not fit is noticed when the layer is complete; until then it only has to do no harm.
    fn file(&mut self, size: u64) -> Option<&'t File> {
        let file = self.table.files.get(self.next).filter(|file| file.size == size);
        self.next += 1;
        self.fits &= file.is_some();
        file
    }

    /// Writes the index of a layer that is complete; `false` where the table does not say what it holds, file by file.
    pub(super) fn complete(self) -> bool {
        if !self.fits || self.next != self.table.files.len() {
            return false;
        }
        if let Err(error) = self.store.put_index(&self.layer, &self.records.finish()) {
            tracing::debug!("index of {}: {error}", self.layer);
        }
        true
    }

    /// A help for another run: nothing depends on it.
    pub(super) fn write(&mut self) {
        match self.put() {
            Ok(()) => self.noted.store(self.next, Ordering::Relaxed),
            Err(error) => tracing::debug!("index of {}: {error}", self.layer),
        }
        self.written = Instant::now();
    }

    /// Whoever reads it meanwhile has the one before.
    fn put(&self) -> Result<()> {
        let fs = &*self.store.fs;
        let folder = self.store.path.join(INDEX);
        fs.create_dir(&self.store.path.join(OWN), 0o700)?;
        fs.create_dir(&folder, 0o700)?;
        fs::replace_unsynced(fs, &folder.join(self.layer.to_hex()), 0o600, &self.records.so_far())
    }
}
