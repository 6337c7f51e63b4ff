//! What is in the objects, by SHA-256: so that a file which a table of contents names is found here.
//!
//! Objects are named by fs-verity digests; tables name files by SHA-256. `cfs-update/index/<diff_id>` says for one layer
//! which object each of its files is, where in it the chunks are, and what its smallest files hold. It is filled from the
//! layer's own table where it has one, which costs no hashing, else by hashing the layer's objects when a table asks for
//! files for the first time ([`Store::fill_index`]); a plain import pays nothing.
//!
//! ```text
//! "CFSINDEX" | u8 version | u8 algorithm | 6 zero bytes
//! 'F' digest[32] object u64 size           a file      'C' digest[32] u64 offset u64 length   a chunk of the file before
//! 'I' digest[32] u8 length bytes           a small file      'E' SHA-256 of everything before
//! ```
//! Invariant: nothing rests on it. A file of it that is cut, damaged, old or of a layer that is gone is removed and made
//! again when it is needed; what it says of an object's size is compared with the object; and a layer that was put
//! together from what it says has its diff_id, or is fetched as a whole. So it needs no sync, and a table that lies costs
//! bytes, not truth.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use crate::chunked::{self, Table};
use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::layers::{Content, INLINE_MAX, Item};
use crate::monitor::{Event, Monitor};
use crate::store::pending::OWN;
use crate::store::streams::layer_name;
use crate::store::{Store, local};
use crate::sys::fs;

/// The folder of the index.
pub(super) const INDEX: &str = "cfs-update/index";
const MAGIC: &[u8; 8] = b"CFSINDEX";
const VERSION: u8 = 1;
/// How many threads hash objects at most.
const MAX_THREADS: usize = 4;

/// Only one run through the store's objects at a time.
static FILLING: Mutex<()> = Mutex::new(());

/// SHA-256 of content.
pub(super) type Sum = [u8; 32];

/// Where content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// In an object: all of it, or a part.
    Object { id: ObjectId, offset: u64, length: u64 },
    /// Here.
    Inline(Box<[u8]>),
    /// In a file of podman's.
    Podman(local::Place),
}

/// What was found, by SHA-256.
pub(super) type Found = HashMap<Sum, Hit>;

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
        for name in fs::names(&folder)? {
            let path = folder.join(&name);
            let file = match fs::open(&path) {
                Ok(file) => file,
                Err(_) => continue,
            };
            if let Err(error) = self.search_file(BufReader::with_capacity(128 << 10, file), search) {
                tracing::debug!("index {}: {error}; it is made again", path.display());
                if remember {
                    self.fs.remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Hits are taken over when the end has shown that the whole is undamaged.
    fn search_file(&self, file: impl BufRead, search: &mut Search) -> Result<(), io::Error> {
        let mut records = Records::new(file, self)?;
        let mut hits = Vec::new();
        let mut object = None;
        let mut sound = None;
        while let Some(record) = records.next()? {
            let sum = match &record {
                Record::File { id, size, sum } => {
                    object = Some((*id, *size));
                    sum
                }
                Record::Chunk { sum, .. } | Record::Small { sum, .. } => sum,
            };
            if !search.wanted.contains(sum) || search.found.contains_key(sum) {
                continue;
            }
            let sum = *sum;
            let hit = match (record, object) {
                (Record::Small { bytes, .. }, _) => Some(Hit::Inline(bytes)),
                (Record::File { id, size, .. }, _) => self.sound(id, size, &mut sound).then_some(Hit::Object {
                    id,
                    offset: 0,
                    length: size,
                }),
                (Record::Chunk { offset, length, .. }, Some((id, size))) => {
                    let inside = offset.checked_add(length).is_some_and(|end| end <= size);
                    (inside && self.sound(id, size, &mut sound)).then_some(Hit::Object { id, offset, length })
                }
                (Record::Chunk { .. }, None) => return Err(invalid("a chunk without a file")),
            };
            hits.extend(hit.map(|hit| (sum, hit)));
        }
        search.found.extend(hits);
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
        let folder = self.path.join(INDEX);
        self.layers()
            .iter()
            .all(|layer| fs::exists(&folder.join(layer.to_hex())))
    }

    /// Hashes the objects of all layers that have no file in the index, looks there for what is wanted, and makes the
    /// file where `remember`.
    ///
    /// # Errors
    /// None for what cannot be read: it is not found then.
    pub(super) fn fill_index(&self, search: &mut Search, remember: bool, monitor: &dyn Monitor) -> Result<()> {
        let _one = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.path.join(INDEX);
        let missing: Vec<_> = self
            .layers()
            .into_iter()
            .filter(|layer| !fs::exists(&folder.join(layer.to_hex())))
            .collect();
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
                    if let Err(error) = self.search_file(&*bytes, search) {
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
        let mut records = Building::new(self);
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
        let mut records = Building::new(self);
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

    fn put_index(&self, layer: &DiffId, bytes: &[u8]) -> Result<()> {
        let folder = self.path.join(INDEX);
        let path = folder.join(layer.to_hex());
        self.fs.create_dir(&self.path.join(OWN), 0o700)?;
        self.fs.create_dir(&folder, 0o700)?;
        self.fs.remove_file(&path)?;
        self.fs.create(&path, 0o600, &mut &*bytes)?;
        Ok(())
    }

    /// Removes the index: something in it was wrong. It is made again by hashing.
    pub(super) fn forget_index(&self) -> Result<()> {
        self.fs.remove_dir_all(&self.path.join(INDEX))
    }

    /// Removes the files of layers that are gone.
    pub(super) fn trim_index(&self) -> Result<()> {
        let folder = self.path.join(INDEX);
        let here: HashSet<_> = self.layers().iter().map(DiffId::to_hex).collect();
        let pending: HashSet<_> = self.pending().streams.keys().cloned().collect();
        for name in fs::names(&folder)? {
            let kept = name
                .to_str()
                .is_some_and(|name| here.contains(name) || pending.iter().any(|stream| stream.ends_with(name)));
            if !kept {
                self.fs.remove_file(&folder.join(&name))?;
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

/// A file of the index that is being made.
pub(super) struct Building {
    bytes: Vec<u8>,
}

impl Building {
    pub(super) fn new(store: &Store) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, store.algorithm.number(), 0, 0, 0, 0, 0, 0]);
        Self { bytes }
    }

    pub(super) fn file(&mut self, sum: &Sum, id: &ObjectId, size: u64) {
        self.bytes.push(b'F');
        self.bytes.extend_from_slice(sum);
        self.bytes.extend_from_slice(id.as_bytes());
        self.bytes.extend_from_slice(&size.to_le_bytes());
    }

    fn chunk(&mut self, sum: &Sum, offset: u64, length: u64) {
        self.bytes.push(b'C');
        self.bytes.extend_from_slice(sum);
        self.bytes.extend_from_slice(&offset.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }

    /// Those of the file before, where it has several.
    pub(super) fn chunks(&mut self, table: &Table, file: &chunked::File) {
        let chunks = table.chunks(file);
        let mut offset = 0;
        for chunk in chunks.iter().filter(|_| chunks.len() > 1) {
            if !chunk.zeros {
                self.chunk(&chunk.digest, offset, chunk.size);
            }
            offset += chunk.size;
        }
    }

    pub(super) fn small(&mut self, sum: &Sum, bytes: &[u8]) {
        let Ok(length) = u8::try_from(bytes.len()) else { return };
        self.bytes.push(b'I');
        self.bytes.extend_from_slice(sum);
        self.bytes.push(length);
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'E');
        let sum = Sha256::digest(&self.bytes);
        self.bytes.extend_from_slice(&sum);
        self.bytes
    }

    /// As if this were all.
    pub(super) fn so_far(&self) -> Vec<u8> {
        let bytes = self.bytes.clone();
        Self { bytes }.finish()
    }
}

/// What a file of the index says.
enum Record {
    File { sum: Sum, id: ObjectId, size: u64 },
    Chunk { sum: Sum, offset: u64, length: u64 },
    Small { sum: Sum, bytes: Box<[u8]> },
}

/// Reads a file of the index.
struct Records<'s, R> {
    reader: R,
    hash: Sha256,
    store: &'s Store,
}

impl<'s, R: BufRead> Records<'s, R> {
    fn new(reader: R, store: &'s Store) -> io::Result<Self> {
        let mut records = Self {
            reader,
            hash: Sha256::new(),
            store,
        };
        let head: [u8; 16] = records.take()?;
        match head.starts_with(MAGIC) && head[8..10] == [VERSION, store.algorithm.number()] {
            true => Ok(records),
            false => Err(invalid("of another version or algorithm")),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.hash.update(bytes);
        Ok(bytes)
    }

    /// `None` at the end, which is reached only by one that is undamaged.
    fn next(&mut self) -> io::Result<Option<Record>> {
        let [kind] = self.take()?;
        if kind == b'E' {
            let sum: Sum = std::mem::take(&mut self.hash).finalize().into();
            let mut found = [0; 32];
            self.reader.read_exact(&mut found)?;
            return match found == sum && self.reader.fill_buf()?.is_empty() {
                true => Ok(None),
                false => Err(invalid("damaged")),
            };
        }
        let sum = self.take()?;
        Ok(Some(match kind {
            b'F' => {
                let mut raw = [0; 64];
                let raw = &mut raw[..self.store.algorithm.len()];
                self.reader.read_exact(raw)?;
                self.hash.update(&*raw);
                let id = ObjectId::from_bytes(self.store.algorithm, raw).ok_or_else(|| invalid("damaged"))?;
                let size = u64::from_le_bytes(self.take()?);
                Record::File { sum, id, size }
            }
            b'C' => Record::Chunk {
                sum,
                offset: u64::from_le_bytes(self.take()?),
                length: u64::from_le_bytes(self.take()?),
            },
            b'I' => {
                let [length] = self.take()?;
                if u64::from(length) > INLINE_MAX {
                    return Err(invalid("damaged"));
                }
                let mut bytes = vec![0; usize::from(length)].into_boxed_slice();
                self.reader.read_exact(&mut bytes)?;
                self.hash.update(&bytes);
                Record::Small { sum, bytes }
            }
            _ => return Err(invalid("damaged")),
        }))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
