//! Files that podman's layers on this machine have, for a layer of which they are missing here.
//!
//! What podman has of a layer is its tar-split data (every file's name and size) and the files. No SHA-256 of them is
//! known, so files of a size that is looked for are hashed, and no others: that costs no more than what it saves. No
//! more bytes of tar-split data are read than are missing, of the newest layers first. Layers without diff_id, of
//! podman's partial pulls, are looked through as well.
//!
//! Invariant: nothing rests on it. A file that was changed or has gone when it is used leaves a layer that has not its
//! diff_id, or an error, and the layer is fetched as a whole. podman's locks are held as long as its storage is open.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use crate::monitor::{Event, Monitor};
use crate::podman::{Folders, Layer, Storage};
use crate::store::found::Sum;

/// Smaller files are not looked for: opening and hashing them costs as much as fetching them.
const SMALLEST: u64 = 4 << 10;
/// How many layers are looked through at a time at most.
const MAX_THREADS: usize = 4;

/// A file of a layer of podman's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which layer of the storage.
    pub(super) layer: usize,
    /// Its name in the layer.
    pub(super) name: Vec<u8>,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// What is looked for: by size, the sums of the files that have it.
type Wanted = HashMap<u64, HashSet<Sum>>;

/// Looks for files, given by sum and size, of which so many bytes would be fetched.
pub(super) fn search(
    storage: &Arc<Storage>,
    files: impl Iterator<Item = (Sum, u64)>,
    missing: u64,
    monitor: &dyn Monitor,
) -> HashMap<Sum, Place> {
    let mut wanted = Wanted::new();
    for (sum, size) in files.filter(|(_, size)| *size >= SMALLEST) {
        wanted.entry(size).or_default().insert(sum);
    }
    let mut read = 0;
    let worth = |layer: &Layer| {
        read += layer.list_bytes();
        read <= missing
    };
    let layers: Vec<_> = storage.layers().rev().take_while(worth).collect();
    if wanted.is_empty() || layers.is_empty() {
        return HashMap::new();
    }
    monitor.event(Event::Note(format!(
        "looking through {} layer(s) of podman's for what is needed",
        layers.len()
    )));
    let (wanted, found, next) = (Mutex::new(wanted), Mutex::new(HashMap::new()), AtomicUsize::new(0));
    let work = || {
        while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = look(layer, &wanted, &found) {
                tracing::debug!("{}: {error}", layer.name());
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        for _ in 1..threads.min(layers.len()) {
            scope.spawn(work);
        }
        work();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Looks through one layer; ends early where nothing is wanted any more.
fn look(layer: &Layer, wanted: &Mutex<Wanted>, found: &Mutex<HashMap<Sum, Place>>) -> Result<(), crate::error::Error> {
    let lock = || wanted.lock().unwrap_or_else(PoisonError::into_inner);
    let mut list = layer.list()?;
    let mut folders = layer.folders();
    let mut buffer = vec![0; 128 << 10];
    while let Some((name, size)) = list.next_file(&|size| lock().contains_key(&size))? {
        let Some(sum) = hash(&mut folders, &name, size, &mut buffer) else {
            continue;
        };
        let mut wanted = lock();
        let Some(sums) = wanted.get_mut(&size) else { continue };
        if sums.remove(&sum) {
            if sums.is_empty() {
                wanted.remove(&size);
            }
            let place = Place {
                layer: layer.index(),
                name,
                size,
            };
            found.lock().unwrap_or_else(PoisonError::into_inner).insert(sum, place);
            if wanted.is_empty() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// `None` for what cannot be read or has another size.
fn hash(folders: &mut Folders, name: &[u8], size: u64, buffer: &mut [u8]) -> Option<Sum> {
    let mut file = folders.open(name, size).ok()?;
    let (mut hash, mut read) = (Sha256::new(), 0);
    loop {
        match file.read(buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                read += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    (read == size).then(|| hash.finalize().into())
}
