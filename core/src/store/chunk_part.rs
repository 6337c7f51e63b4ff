//! What arrived of a file of a zstd:chunked layer over a slow network, kept for the next run should this one be
//! interrupted.
//!
//! ```text
//! cfs-update/parts/<the file's SHA-256, 64 digits>-chunks-<origin, 16 digits>
//! the chunks that were fetched, unpacked, each where it stands in the file; holes where the others are
//! ```
//! Files that are complete are objects, and the index that is written on the way finds them
//! ([`crate::store::on_the_way`]). The one under way has no name until it is complete, and may be larger than what
//! comes from one interruption to the next. So when the network turns out to be slow ([`Pace`]), its chunks are
//! written here as well, and it goes when the index has the file. What is fetched again is the chunk under way
//! (podman's have 64 KiB), and what came before the network was known to be slow.
//!
//! Invariant: nothing rests on it. Each chunk that is found in such a file is hashed when it is looked for, and counts
//! only where it is what the table says: whatever a power cut, a full disk or another program made of the rest, it is
//! fetched. A file is locked (flock) by the run that uses it; another one neither reads, extends nor removes it. One
//! that cannot be written goes, and the layer comes without.
//!
//! Power cuts: once in [`SYNC`] a thread of its own makes the file system durable, so that this and the objects and
//! the index that were written before it are there after one; only where the network is slow, so that nobody waits for
//! it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::chunked::Table;
use crate::error::{Error, Result};
use crate::registry::Pace;
use crate::store::Store;
use crate::store::found::{Found, Sum};
use crate::store::part::{Origin, PARTS, SYNC, has_room, lock, new_locked};
use crate::store::pending::own_names;

const MARK: &str = "-chunks-";
/// How often it is looked whether the disk has room beside what is imported.
const LOOK: u64 = 1 << 20;
const READ: usize = 64 << 10;

/// A file's chunks that an earlier run kept, locked by us.
#[derive(Debug)]
pub(super) struct ChunkPart {
    file: File,
    path: PathBuf,
}

impl ChunkPart {
    /// From there on.
    pub(super) fn at(&self, offset: u64) -> io::Result<&File> {
        let mut file = &self.file;
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(file)
    }
}

impl Store {
    /// Notes the chunks that an interrupted run kept of files that are not here.
    pub(super) fn find_chunks(&self, table: &Table, found: &mut Found) {
        let folder = self.path.join(PARTS);
        let mut kept = HashMap::new();
        for name in own_names(&folder).unwrap_or_default() {
            let sum = name.to_str().and_then(|name| name.split_once(MARK)).map(|(sum, _)| sum);
            let mut digest = Sum::default();
            if sum.is_some_and(|sum| hex::decode_to_slice(sum, &mut digest).is_ok()) {
                kept.insert(digest, folder.join(name));
            }
        }
        if kept.is_empty() {
            return;
        }
        let mut buffer = vec![0; READ];
        for entry in &table.files {
            let wanted = kept.remove(&entry.digest);
            let Some(path) = wanted.filter(|_| !found.has(&entry.digest, entry.size)) else {
                continue;
            };
            let Some(file) = lock(&path) else { continue };
            let part = found.part(entry.digest, ChunkPart { file, path });
            let mut at = 0;
            for chunk in table.chunks(entry) {
                let wanted = !chunk.zeros && !found.contains(&chunk.digest);
                if wanted && sum_of(&part.file, at, chunk.size, &mut buffer) == Some(chunk.digest) {
                    found.kept(chunk.digest, &part, at, chunk.size);
                }
                at += chunk.size;
            }
        }
    }
}

/// SHA-256 of some bytes of a file; `None` where it is shorter.
fn sum_of(file: &File, at: u64, size: u64, buffer: &mut [u8]) -> Option<Sum> {
    let (mut hash, mut done) = (Sha256::new(), 0);
    while done < size {
        let most = buffer.len().min(usize::try_from(size - done).unwrap_or(usize::MAX));
        match file.read_at(&mut buffer[..most], at + done) {
            Ok(0) => return None,
            Ok(n) => {
                hash.update(&buffer[..n]);
                done += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(hash.finalize().into())
}

/// Keeps the chunks of the file that is under way.
pub(super) struct Keeping<'a> {
    store: &'a Store,
    /// Nothing is kept without.
    origin: Option<Origin>,
    found: &'a Found,
    /// So many files of the table are in the index that is on disk.
    noted: &'a AtomicUsize,
    /// The file under way: which of the table, its digest, and what is kept of it.
    place: usize,
    sum: Sum,
    open: Option<Arc<ChunkPart>>,
    /// What came of the file under way, and of the layer.
    of_file: Pace,
    of_layer: Pace,
    /// Bytes that came since it was last looked for room.
    unlooked: u64,
    /// Of files that are complete and that the index has not got yet.
    complete: VecDeque<(usize, Arc<ChunkPart>)>,
    synced: Instant,
    syncing: Option<JoinHandle<()>>,
}

impl<'a> Keeping<'a> {
    pub(super) fn new(store: &'a Store, origin: Option<Origin>, found: &'a Found, noted: &'a AtomicUsize) -> Self {
        Self {
            store,
            origin: origin.filter(|_| store.read_only.is_none()),
            found,
            noted,
            place: 0,
            sum: Sum::default(),
            open: None,
            of_file: Pace::default(),
            of_layer: Pace::default(),
            unlooked: LOOK,
            complete: VecDeque::new(),
            synced: Instant::now(),
            syncing: None,
        }
    }

    /// A file of the table begins.
    pub(super) fn begin(&mut self, place: usize, sum: &Sum) {
        (self.place, self.sum) = (place, *sum);
        self.open = self.found.part_of(sum);
        self.of_file = Pace::default();
    }

    /// It is complete; it goes when the index has the file.
    pub(super) fn end(&mut self) {
        self.complete.extend(self.open.take().map(|open| (self.place, open)));
        let noted = self.noted.load(Ordering::Relaxed);
        while self.complete.front().is_some_and(|(place, _)| *place < noted) {
            if let Some((_, part)) = self.complete.pop_front() {
                self.remove(&part);
            }
        }
    }

    /// So many bytes of the blob came, and were waited for so long. Where that is slow, what is here becomes durable
    /// now and then.
    pub(super) fn waited(&mut self, time: Duration, bytes: u64) {
        for pace in [&mut self.of_file, &mut self.of_layer] {
            pace.more(time, bytes);
        }
        if self.origin.is_some() && self.of_layer.is_slow() {
            self.sync();
        }
    }

    /// These bytes of the file came; `left` of the blob are still to come.
    pub(super) fn arrived(&mut self, at: u64, bytes: &[u8], left: u64) {
        let Some(origin) = self.origin else { return };
        if bytes.is_empty() || (self.open.is_none() && !self.of_file.is_slow()) {
            return;
        }
        if let Err(error) = self.keep(origin, at, bytes, left) {
            tracing::debug!("nothing more is kept of files that are under way: {error}");
            self.origin = None;
            self.forget();
        }
    }

    fn keep(&mut self, origin: Origin, at: u64, bytes: &[u8], left: u64) -> Result<()> {
        let folder = self.store.path.join(PARTS);
        self.unlooked = self.unlooked.saturating_add(bytes.len() as u64);
        if self.unlooked >= LOOK {
            if !has_room(&folder, left)? {
                // Perhaps later: what is still to come gets less.
                self.forget();
                return Ok(());
            }
            self.unlooked = 0;
        }
        let part = match self.open.take() {
            Some(part) => part,
            None => {
                let path = folder.join(format!("{}{MARK}{origin}", hex::encode(self.sum)));
                let file = new_locked(&*self.store.fs, &path)?;
                Arc::new(ChunkPart { file, path })
            }
        };
        let part = self.open.insert(part);
        let written = part.file.write_all_at(bytes, at);
        written.map_err(|e| Error::io("write", &part.path, e))
    }

    fn sync(&mut self) {
        let busy = self.syncing.as_ref().is_some_and(|thread| !thread.is_finished());
        if busy || self.synced.elapsed() < SYNC {
            return;
        }
        self.synced = Instant::now();
        let (fs, path) = (self.store.fs.clone(), self.store.path.clone());
        let sync = move || {
            let synced = fs.sync_all(&path);
            tracing::debug!("what is under way is durable: {synced:?}");
        };
        self.syncing = std::thread::Builder::new().name("cfs-part".into()).spawn(sync).ok();
    }

    fn forget(&mut self) {
        if let Some(part) = self.open.take() {
            self.remove(&part);
        }
    }

    fn remove(&self, part: &ChunkPart) {
        let _ = self.store.fs.remove_file(&part.path);
    }
}
