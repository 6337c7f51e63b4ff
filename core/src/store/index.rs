//! What is in the objects, by SHA-256: so that a file which a table of contents names is found here.
//!
//! Objects are named by fs-verity digests; tables name files by SHA-256. `cfs-update/index/<diff_id>` says for one
//! layer which object each of its files is, where in it the chunks are, and what its smallest files hold. It is filled
//! from the layer's own table where it has one, which costs no hashing, else by hashing the layer's objects when a
//! table asks for files for the first time ([`Store::fill_index`]); a plain import pays nothing.
//! [`crate::store::records`] has the format.
//!
//! Invariant: nothing rests on it. A file of it that is cut, damaged, old or of a layer that is gone is removed and
//! made again when it is needed; what it says of an object's size is compared with the object; and a layer that was
//! put together from what it says has its diff_id, or is fetched as a whole. The diff_id is that of the bytes that
//! were copied: so a file is an object that was found only where they are all that the object has. So it needs no
//! sync, and a table that lies costs bytes, not truth.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use crate::chunked::Table;
use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::layers::{Content, Item};
use crate::monitor::{Event, Monitor};
use crate::store::Store;
use crate::store::found::{Found, Sum};
use crate::store::pending::{OWN, is_own, own_names};
use crate::store::records::{self, Building, Record, Records};
use crate::store::streams::layer_name;
use crate::sys::fs;

/// The folder of the index.
pub(super) const INDEX: &str = "cfs-update/index";
/// How many threads hash objects at most.
const MAX_THREADS: usize = 4;

/// Only one run through the store's objects at a time.
static FILLING: Mutex<()> = Mutex::new(());

/// A search: what is wanted, and what was found so far.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) wanted: HashSet<Sum>,
    pub(super) found: Found,
}

impl Store {
    /// Looks in the index for what is wanted. Files of it that cannot be used are removed where `remember`.
    pub(super) fn search_index(&self, search: &mut Search, remember: bool) -> Result<()> {
        let folder = self.path.join(INDEX);
        for name in own_names(&folder)? {
            let path = folder.join(&name);
            let opened = fs::open_own_file(&path).map_err(io::Error::other);
            if let Err(error) = opened.and_then(|mut file| self.search_file(&mut file, search)) {
                tracing::debug!("index {}: {error}; it is made again", path.display());
                if remember && let Err(error) = self.remove_own(&path) {
                    tracing::debug!("index {}: {error}", path.display());
                }
            }
        }
        Ok(())
    }

    /// Nothing is taken from a file that is damaged.
    fn search_file(&self, file: &mut (impl Read + Seek), search: &mut Search) -> Result<(), io::Error> {
        records::check(file)?;
        let mut records = Records::new(BufReader::with_capacity(128 << 10, file), self.algorithm)?;
        let (mut object, mut sound) = (None, None);
        while let Some(record) = records.next()? {
            let sum = *record.sum();
            if let Record::File { id, size, .. } = &record {
                object = Some((*id, *size));
            }
            // An object is worth more than the same bytes in a larger one, which are copied out of it.
            let known = match &record {
                Record::File { .. } => search.found.has_object(&sum),
                Record::Chunk { .. } | Record::Small { .. } => search.found.contains(&sum),
            };
            if known || !search.wanted.contains(&sum) {
                continue;
            }
            let (id, size, offset, length) = match (record, object) {
                (Record::Small { bytes, .. }, _) => {
                    search.found.inline(sum, bytes);
                    continue;
                }
                (Record::File { id, size, .. }, _) => (id, size, 0, size),
                (Record::Chunk { offset, length, .. }, Some((id, size))) => (id, size, offset, length),
                (Record::Chunk { .. }, None) => return Err(invalid("a chunk without a file")),
            };
            let inside = offset.checked_add(length).is_some_and(|end| end <= size);
            if inside && self.sound(id, size, &mut sound) {
                search.found.object(sum, (id, size), offset, length);
            }
        }
        Ok(())
    }

    /// Whether the object is here with that size, and can be relied on. `last` remembers the answer for one object.
    fn sound(&self, id: ObjectId, size: u64, last: &mut Option<(ObjectId, bool)>) -> bool {
        if let Some((known, sound)) = last
            && *known == id
        {
            return *sound;
        }
        let here = self.objects.size(&id).is_ok_and(|here| here == Some(size));
        let sound = here && (!self.is_suspect() || self.objects.is_intact(&id).unwrap_or(false));
        *last = Some((id, sound));
        sound
    }

    /// Whether there is anything that could be found.
    pub(super) fn has_layers(&self) -> bool {
        !self.layers().is_empty() || !self.pending().streams.is_empty()
    }

    pub(super) fn layers(&self) -> Vec<DiffId> {
        let links = self.links("streams").unwrap_or_default();
        let diff_id = |name: &String| name.strip_prefix("oci-layer-")?.parse().ok();
        links.keys().filter_map(diff_id).collect()
    }

    /// Whether each layer has its file in the index.
    pub(super) fn index_is_complete(&self) -> bool {
        self.layers().iter().all(|layer| self.has_index(layer))
    }

    fn has_index(&self, layer: &DiffId) -> bool {
        let folder = self.path.join(INDEX);
        is_own(&folder) && fs::exists(&folder.join(layer.to_hex()))
    }

    /// Hashes the objects of all layers that have no file in the index, looks there for what is wanted, and makes the
    /// file where `remember`.
    ///
    /// # Errors
    /// None for what cannot be read: it is not found then.
    pub(super) fn fill_index(&self, search: &mut Search, remember: bool, monitor: &dyn Monitor) -> Result<()> {
        let _one = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing = self.layers();
        missing.retain(|layer| !self.has_index(layer));
        if missing.is_empty() {
            // Another thread has been here meanwhile.
            return self.search_index(search, remember);
        }
        let count = missing.len();
        monitor.event(Event::Note(format!(
            "looking through the files of {count} layer(s) that are here already for what is needed"
        )));
        for layer in missing {
            match self.hashed_records(&layer) {
                Ok(bytes) => {
                    if let Err(error) = self.search_file(&mut Cursor::new(&bytes), search) {
                        tracing::debug!("index of {layer}: {error}");
                    }
                    if let (true, Err(error)) = (remember, self.put_index(&layer, &bytes)) {
                        // Of a full disk, say: it is made again when it is needed.
                        tracing::debug!("index of {layer}: {error}");
                    }
                }
                Err(error) => tracing::debug!("index of {layer}: {error}"),
            }
        }
        self.search_index(search, remember)
    }

    /// The index of a layer, by hashing what it refers to.
    fn hashed_records(&self, layer: &DiffId) -> Result<Vec<u8>> {
        let mut files = Vec::new();
        for entry in self.entries(layer)? {
            match entry?.item {
                Item::Regular(Content::Inline(bytes)) if !bytes.is_empty() => files.push(Contained::Small(bytes)),
                Item::Regular(Content::Object { id, size }) => files.push(Contained::Object(id, size)),
                _ => {}
            }
        }
        let sums = self.hash_all(&files);
        let mut records = Building::new(self.algorithm);
        for (file, sum) in files.iter().zip(sums) {
            match (file, sum) {
                (Contained::Small(bytes), Some(sum)) => records.small(&sum, bytes),
                (Contained::Object(id, size), Some(sum)) => records.file(&sum, id, *size),
                (_, None) => {}
            }
        }
        Ok(records.finish())
    }

    /// SHA-256 of each, several at a time; `None` for what cannot be read or has another size.
    fn hash_all(&self, files: &[Contained]) -> Vec<Option<Sum>> {
        let next = AtomicUsize::new(0);
        let sums: Vec<Mutex<Option<Sum>>> = files.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            let mut buffer = vec![0; 128 << 10];
            while let Some((file, sum)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((files.get(at)?, sums.get(at)?)))
            {
                *sum.lock().unwrap_or_else(PoisonError::into_inner) = match file {
                    Contained::Small(bytes) => Some(Sha256::digest(bytes).into()),
                    Contained::Object(id, size) => self.hash_object(id, *size, &mut buffer).ok(),
                };
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        sums.into_iter()
            .map(|sum| sum.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    fn hash_object(&self, id: &ObjectId, size: u64, buffer: &mut [u8]) -> Result<Sum> {
        let fail = |e| Error::io("read", self.object_path(id), e);
        let mut file: File = self.open_object(id)?;
        let (mut hash, mut read) = (Sha256::new(), 0);
        loop {
            match file.read(buffer).map_err(fail)? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    read += n as u64;
                }
            }
        }
        match read == size {
            true => Ok(hash.finalize().into()),
            false => Err(fail(invalid("it has another size than its layer says"))),
        }
    }

    /// Makes a layer's index from its table: no object is read. A table that does not fit to the layer gives none.
    pub(super) fn index_from_table(&self, layer: &DiffId, table: &Table) -> Result<()> {
        let mut records = Building::of_table(self.algorithm, table);
        let mut files = table.files.iter();
        let lie = |why: &'static str| Error::Stream {
            name: layer_name(layer),
            why: format!("its table of contents {why}"),
        };
        for entry in self.entries(layer)? {
            let Item::Regular(content) = entry?.item else { continue };
            let size = match &content {
                Content::Inline(bytes) => bytes.len() as u64,
                Content::Object { size, .. } => *size,
            };
            if size == 0 {
                continue;
            }
            let file = files.next().filter(|file| file.size == size);
            let file = file.ok_or_else(|| lie("has other files than its tar"))?;
            match content {
                Content::Inline(bytes) => {
                    if Sum::from(Sha256::digest(&bytes)) != file.digest {
                        return Err(lie("has wrong digests"));
                    }
                    records.small(&file.digest, &bytes);
                }
                Content::Object { id, size } => {
                    records.file(&file.digest, &id, size);
                    records.chunks(table, file);
                }
            }
        }
        self.put_index(layer, &records.finish())
    }

    pub(super) fn put_index(&self, layer: &DiffId, bytes: &[u8]) -> Result<()> {
        let folder = self.path.join(INDEX);
        let path = folder.join(layer.to_hex());
        self.fs.create_dir(&self.path.join(OWN), 0o700)?;
        self.fs.create_dir(&folder, 0o700)?;
        self.remove_own(&path)?;
        self.fs.create(&path, 0o600, &mut &*bytes)?;
        Ok(())
    }

    /// Removes the index: something in it was wrong. It is made again by hashing.
    pub(super) fn forget_index(&self) -> Result<()> {
        let folder = self.path.join(INDEX);
        match is_own(&folder) {
            true => self.fs.remove_dir_all(&folder),
            false => Ok(()),
        }
    }

    /// Removes the files of layers that are gone.
    pub(super) fn trim_index(&self) -> Result<()> {
        let folder = self.path.join(INDEX);
        let here: HashSet<_> = self.layers().iter().map(DiffId::to_hex).collect();
        let pending: HashSet<_> = self.pending().streams.keys().cloned().collect();
        for name in own_names(&folder)? {
            let kept = name
                .to_str()
                .is_some_and(|name| here.contains(name) || pending.iter().any(|stream| stream.ends_with(name)));
            if !kept {
                self.remove_own(&folder.join(&name))?;
            }
        }
        Ok(())
    }
}

/// What a layer has of a file.
enum Contained {
    Small(Box<[u8]>),
    Object(ObjectId, u64),
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
