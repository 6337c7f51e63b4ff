//! What arrived of a layer's blob over a slow network, kept for the next run should this one be interrupted.
//!
//! ```text
//! cfs-update/parts/<blob, 64 digits>-<first byte>-<origin, 16 digits>
//! "CFSPART1" | blob's SHA-256[32] | boot id[16] | u64 bytes that are durable | the bytes of the blob from <first byte> on
//! ```
//! A layer is not copied to the disk before it is imported (docs/decisions.md); when its network turns out to be slow
//! ([`crate::registry::Kept`]), what arrives from then on is written here as well, and goes when the layer is imported.
//!
//! Invariant: nothing rests on a part. What it holds is hashed with the rest of the blob, and where the result is
//! wrong the part goes and the layer is fetched anew. A part is locked (flock) by the run that uses it: another one
//! neither reads, extends nor removes it. One that cannot be written (a full disk) goes, and the import goes on
//! without.
//!
//! Power cuts: a write reaches the disk when the kernel thinks it time, half a minute later, and a file system may
//! have the file's new size before its content, which then reads as zeros. So once in [`SYNC`] a thread of its own
//! makes durable what was written, then notes in the head how much that is, and makes that durable. A run that finds a
//! part of an earlier boot believes so much of it and cuts the rest off; one of the same boot has all that was
//! written, since the page cache outlives a killed process. By time and not by bytes: what a power cut costs is
//! [`SYNC`] of the network, however slow, for a flush in [`SYNC`] at most, which keeps nobody waiting.
//! `sync_file_range` would not do: it waits for no disk cache and writes no size.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::BlobDigest;
use crate::registry::Kept;
use crate::store::Store;
use crate::store::pending::{is_own, own_names};
use crate::sys::fs::{self, Fs};

/// The folder of the parts.
pub(super) const PARTS: &str = "cfs-update/parts";
const MAGIC: &[u8; 8] = b"CFSPART1";
const HEAD_SIZE: usize = 64;
const HEAD: u64 = HEAD_SIZE as u64;
/// How often what was written is made durable.
pub(super) const SYNC: Duration = Duration::from_secs(5);
/// How often it is looked whether the disk has room for a part beside what is imported.
const LOOK: u64 = 1 << 20;
/// So much stays free, and for each byte that is still to come [`UNPACKED`]: more than layers unpack to.
const MARGIN: u64 = 64 << 20;
const UNPACKED: u64 = 4;
/// A part that nobody went on with for so long goes with the next garbage collection.
pub(super) const AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const READ: usize = 256 << 10;

/// Where blobs come from: parts of one origin go when an image from there was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin([u8; 8]);

impl Origin {
    /// Of a repository, as `host/path`.
    pub fn new(repository: &str) -> Self {
        let mut origin = [0; 8];
        origin.copy_from_slice(&Sha256::digest(repository)[..8]);
        Self(origin)
    }
}

/// What is kept of one blob, if anything is; clones are the same.
#[derive(Clone, Debug)]
pub struct Part {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    fs: Arc<dyn Fs>,
    folder: PathBuf,
    blob: BlobDigest,
    origin: Origin,
    size: u64,
    open: Option<Open>,
    /// Something of it was here at the beginning.
    found: bool,
    /// Nothing is kept any more.
    given_up: bool,
    /// Bytes that came since it was last looked for room.
    unlooked: u64,
    /// There was too little when it was last looked.
    cramped: bool,
}

/// A part that is locked by us.
#[derive(Debug)]
struct Open {
    file: Arc<File>,
    path: PathBuf,
    range: Range<u64>,
    synced: Instant,
    syncing: Option<JoinHandle<()>>,
}

impl Store {
    /// What earlier runs kept of a blob, or nothing yet. Parts that cannot be used are removed.
    pub(super) fn part(&self, blob: &BlobDigest, size: u64, origin: Origin) -> Part {
        let folder = self.path.join(PARTS);
        let open = find(&*self.fs, &folder, blob, size);
        Part {
            inner: Arc::new(Mutex::new(Inner {
                fs: self.fs.clone(),
                folder,
                blob: *blob,
                origin,
                size,
                found: open.is_some(),
                open,
                given_up: self.read_only.is_some(),
                unlooked: LOOK,
                cramped: false,
            })),
        }
    }

    /// Removes the parts of an origin that nobody uses: an image from there is here, so whatever it needed is, too.
    ///
    /// # Errors
    /// What removing gives.
    pub fn forget_parts(&self, origin: Origin) -> Result<()> {
        let suffix = format!("-{origin}");
        self.remove_parts(|name| name.ends_with(&suffix))
    }

    /// Bytes of all parts, which give way where room is short. What cannot be looked at counts for nothing.
    pub fn part_bytes(&self) -> u64 {
        let folder = self.path.join(PARTS);
        let names = own_names(&folder).unwrap_or_default();
        let sizes = names.iter().filter_map(|name| fs::metadata(&folder.join(name)).ok());
        sizes.map(|meta| meta.blocks().saturating_mul(512)).sum()
    }

    /// What an interrupted run kept of a blob. It had come to the end of that: what the blob holds up to there was
    /// written to objects.
    pub(super) fn kept_of(&self, blob: &BlobDigest, size: u64) -> Range<u64> {
        let folder = self.path.join(PARTS);
        let prefix = format!("{}-", blob.to_hex());
        let kept = |name: std::ffi::OsString| {
            let start = name.to_str()?.strip_prefix(&prefix)?.split('-').next()?;
            let length = fs::metadata(&folder.join(&name)).ok()?.len().checked_sub(HEAD)?;
            let start = start.parse::<u64>().ok()?;
            Some(start..start.checked_add(length)?)
        };
        let names = own_names(&folder).unwrap_or_default();
        let ranges = names.into_iter().filter_map(kept);
        let fit = ranges.filter(|range| range.end <= size);
        fit.max_by_key(|range| range.end).unwrap_or(0..0)
    }

    /// Parts that nobody went on with for so long, with their sizes.
    pub(super) fn parts_older_than(&self, least: Duration) -> Result<Vec<(String, u64)>> {
        let folder = self.path.join(PARTS);
        let now = SystemTime::now();
        let mut old = Vec::new();
        for name in own_names(&folder)? {
            let Ok(meta) = fs::metadata(&folder.join(&name)) else {
                continue;
            };
            let age = meta.modified().ok().and_then(|then| now.duration_since(then).ok());
            // From the future: the clock was set.
            if age.unwrap_or_default() >= least {
                old.push((name.to_string_lossy().into_owned(), meta.len()));
            }
        }
        Ok(old)
    }

    /// Removes parts by name, but for those that are in use.
    pub(super) fn remove_named_parts(&self, old: &[(String, u64)]) -> Result<()> {
        self.remove_parts(|name| old.iter().any(|(other, _)| other == name))
    }

    fn remove_parts(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let folder = self.path.join(PARTS);
        for name in own_names(&folder)? {
            let path = folder.join(&name);
            // A folder in a part's place is nobody's.
            if wanted(&name.to_string_lossy()) && (fs::is_dir(&path) || lock(&path).is_some()) {
                self.remove_own(&path)?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Origin {
    /// 16 digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The file, if nobody else has it locked, and its folder is ours.
pub(super) fn lock(path: &Path) -> Option<File> {
    path.parent().filter(|folder| is_own(folder))?;
    let file = fs::open_to_change(path, false).ok()?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Removed while it was opened: what is locked has no name.
    (file.metadata().ok()?.nlink() == 1).then_some(file)
}

/// A new file among the parts, locked.
pub(super) fn new_locked(fs: &dyn Fs, path: &Path) -> Result<File> {
    let folder = fs::parent(path)?;
    for folder in [fs::parent(folder)?, folder] {
        fs.create_dir(folder, 0o700)?;
    }
    let file = fs::open_to_change(path, true)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = fs.remove_file(path);
            Err(Error::io("lock", path, error))
        }
    }
}

/// Whether the disk has room for what is kept in the folder of the parts beside what is imported, of which so many
/// bytes are still to come.
pub(super) fn has_room(folder: &Path, left: u64) -> Result<bool> {
    let (free, _) = fs::free(fs::parent(folder)?)?;
    Ok(free >= left.saturating_mul(UNPACKED).saturating_add(MARGIN))
}

/// The longest part of a blob that nobody else uses. The others, and those that are no part of it, are removed.
fn find(fs: &dyn Fs, folder: &Path, blob: &BlobDigest, size: u64) -> Option<Open> {
    let prefix = format!("{}-", blob.to_hex());
    let mut best: Option<Open> = None;
    for name in own_names(folder).unwrap_or_default() {
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else {
            continue;
        };
        let path = folder.join(&name);
        let Some(file) = lock(&path) else { continue };
        let start = rest.split('-').next().and_then(|start| start.parse().ok());
        let found = start.and_then(|start| usable(&file, blob, start, size));
        let length = |open: &Open| open.range.end - open.range.start;
        let found = found.map(|range| Open {
            file: Arc::new(file),
            path: path.clone(),
            range,
            synced: Instant::now(),
            syncing: None,
        });
        let loser = match (found, best.take()) {
            (Some(found), Some(other)) if length(&found) > length(&other) => {
                best = Some(found);
                Some(other.path)
            }
            (Some(found), None) => {
                best = Some(found);
                None
            }
            (_, other) => {
                best = other;
                Some(path)
            }
        };
        if let Some(loser) = loser {
            let _ = fs.remove_file(&loser);
        }
    }
    best
}

/// Which bytes of the blob the file holds. What was written before the last boot and never became durable is cut off.
fn usable(file: &File, blob: &BlobDigest, start: u64, size: u64) -> Option<Range<u64>> {
    let mut found = [0; HEAD_SIZE];
    file.read_exact_at(&mut found, 0).ok()?;
    let (magic, rest) = found.split_at(MAGIC.len());
    let (sum, rest) = rest.split_at(32);
    let (boot, durable) = rest.split_at(16);
    if magic != MAGIC || sum != blob.as_bytes() {
        return None;
    }
    let written = file.metadata().ok()?.len().checked_sub(HEAD)?;
    let durable = u64::from_le_bytes(durable.try_into().ok()?);
    let length = match boot_id().is_some_and(|now| now == boot) {
        true => written,
        false => written.min(durable),
    };
    let end = start.checked_add(length).filter(|end| *end <= size && length > 0)?;
    if length < written {
        file.set_len(HEAD + length).ok()?;
    }
    // From now on it is this boot's.
    file.write_all_at(&head(blob, durable.min(length)), 0).ok()?;
    Some(start..end)
}

/// Which boot of the machine this is.
fn boot_id() -> Option<[u8; 16]> {
    let text = fs::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 256).ok()??;
    let mut id = [0; 16];
    hex::decode_to_slice(text.trim().replace('-', ""), &mut id).ok()?;
    Some(id)
}

impl Part {
    /// Whether this run went on with what another one kept, so that this, or how it was gone on with, may be what is
    /// wrong.
    pub(super) fn went_on(&self) -> bool {
        let inner = self.lock();
        inner.found && !inner.given_up
    }

    /// Removes it, and keeps nothing from now on.
    pub(super) fn remove(&self) {
        self.lock().give_up();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept for Part {
    fn range(&self) -> Range<u64> {
        self.lock().open.as_ref().map_or(0..0, |open| open.range.clone())
    }

    fn reader(&self, from: u64) -> Box<dyn BufRead + Send> {
        match &self.lock().open {
            Some(Open { file, range, .. }) if range.contains(&from) => {
                let reader = Stretch {
                    file: file.clone(),
                    at: HEAD + (from - range.start),
                    end: HEAD + (range.end - range.start),
                };
                Box::new(BufReader::with_capacity(READ, reader))
            }
            _ => Box::new(io::empty()),
        }
    }

    fn arrived(&mut self, at: u64, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.given_up || bytes.is_empty() {
            return;
        }
        if let Err(error) = inner.keep(at, bytes) {
            tracing::debug!("nothing more is kept of blob {}: {error}", inner.blob);
            inner.give_up();
        }
    }

    fn forget(&mut self) {
        self.remove();
    }
}

impl Inner {
    fn keep(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.unlooked = self.unlooked.saturating_add(bytes.len() as u64);
        if self.unlooked >= LOOK {
            self.unlooked = 0;
            self.cramped = !has_room(&self.folder, self.size.saturating_sub(at))?;
            if self.cramped {
                // What is still to come gets less: perhaps later.
                self.drop_open();
            }
        }
        let mut open = match self.open.take() {
            Some(open) if open.range.end == at => open,
            Some(open) => {
                self.open = Some(open);
                return Ok(());
            }
            None if self.cramped => return Ok(()),
            None => self.begin(at)?,
        };
        let written = open.file.write_all_at(bytes, HEAD + (at - open.range.start));
        let written = written.map_err(|e| Error::io("write", &open.path, e));
        if written.is_ok() {
            open.range.end += bytes.len() as u64;
            open.sync();
        }
        self.open = Some(open);
        written
    }

    /// Makes a new part.
    fn begin(&mut self, at: u64) -> Result<Open> {
        let path = self.folder.join(format!("{}-{at}-{}", self.blob.to_hex(), self.origin));
        let file = new_locked(&*self.fs, &path)?;
        if let Err(error) = file.write_all_at(&head(&self.blob, 0), 0) {
            let _ = self.fs.remove_file(&path);
            return Err(Error::io("write", &path, error));
        }
        Ok(Open {
            file: Arc::new(file),
            path,
            range: at..at,
            synced: Instant::now(),
            syncing: None,
        })
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.drop_open();
    }

    fn drop_open(&mut self) {
        if let Some(open) = self.open.take() {
            let _ = self.fs.remove_file(&open.path);
        }
    }
}

fn head(blob: &BlobDigest, durable: u64) -> Vec<u8> {
    let boot = boot_id().unwrap_or_default();
    [&MAGIC[..], blob.as_bytes(), &boot, &durable.to_le_bytes()].concat()
}

impl Open {
    /// Sees to it that what was written becomes durable, now and then.
    fn sync(&mut self) {
        let busy = self.syncing.as_ref().is_some_and(|thread| !thread.is_finished());
        if busy || self.synced.elapsed() < SYNC {
            return;
        }
        self.synced = Instant::now();
        let (file, folder) = (self.file.clone(), self.path.parent().map(Path::to_path_buf));
        let durable = self.range.end - self.range.start;
        let sync = move || {
            let synced = file.sync_data().and_then(|()| {
                file.write_all_at(&durable.to_le_bytes(), HEAD - 8)?;
                file.sync_data()
            });
            let named = folder.map(|folder| fs::open(&folder).map(|folder| folder.sync_all()));
            tracing::debug!("{durable} bytes of a part are durable: {synced:?}, {named:?}");
        };
        self.syncing = std::thread::Builder::new().name("cfs-part".into()).spawn(sync).ok();
    }
}

/// A part's bytes, read where they are.
struct Stretch {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Stretch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Algorithm;

    #[test]
    fn a_part_begins_when_there_is_room_beside_what_is_still_to_come_and_goes_when_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("composefs"), Algorithm::Sha256).unwrap();
        store.begin().unwrap();
        let (free, _) = fs::free(folder.path()).unwrap();
        let piece = vec![7; usize::try_from(LOOK).unwrap()];
        let blob = BlobDigest::from_hash([1; 32]);
        // Unpacked, no disk has room for it.
        let size = free.max(1 << 30);
        let mut part = store.part(&blob, size, Origin::new("x/y"));
        for at in [0, LOOK] {
            part.arrived(at, &piece);
            assert!(part.range().is_empty(), "{at}");
        }
        // Little is left of it: there is room if the disk has any to speak of.
        let at = size - LOOK;
        part.arrived(at, &piece[..100]);
        assert!(part.range().is_empty(), "looked at once in a while");
        part.arrived(at + 100, &piece[..1000]);
        part.arrived(at + 1100, &piece[..usize::try_from(LOOK).unwrap() - 1100]);
        assert_eq!(part.range().end, size, "{:?}", part.range());
        assert!(part.range().start >= at);
        part.remove();
        assert!(part.range().is_empty() && fs::names(&store.path().join(PARTS)).unwrap().is_empty());
        part.arrived(0, b"more");
        assert!(part.range().is_empty(), "removed is removed");
    }
}
