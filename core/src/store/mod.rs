//! The object store: a composefs repository (composefs-rs >= 0.8) that other composefs tools can read and share.
//!
//! ```text
//! meta.json  objects/ab/cdef…  images/<digest> -> object  images/refs/cfs-update/NAME -> image
//! streams/oci-{layer,config,manifest}-sha256:… -> object  streams/refs/oci/TAG -> manifest stream
//! cfs-update/index/…   what is in the objects, by SHA-256: made again where it is missing
//! cfs-update/parts/…   what arrived of layers whose network is slow, for the next run: nothing rests on it
//! cfs-update/unsynced, cfs-update/layers/…   while objects are written that no syncfs has made durable yet
//! ```
//!
//! Invariant: nothing below `streams/` or `images/` names an object that is not durable. Objects get their names when
//! they are complete, but durable by the one `syncfs` in [`Store::publish`], and only then the links are made. A power
//! cut before it can leave names whose content is lost: the mark `cfs-update/unsynced`, durable before the first of
//! these objects was written, tells every later run, which checks objects before it uses them again, until a garbage
//! collection has removed what nothing refers to.
//!
//! The repository is locked as composefs-rs does: shared while it is open, exclusively by garbage collection.

mod buffers;
mod chunk_part;
mod decompress;
mod entries;
mod frames;
mod held;
mod index;
mod layer;
mod local;
mod making;
mod meta;
mod names;
mod found;
mod on_the_way;
mod records;
mod part;
mod partial;
mod pending;
mod room;
mod streams;
mod table_part;
mod unpack;
pub mod adopt;
pub mod fsck;
pub mod gc;
pub mod import;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::sys::fs::{self, Fs, RealFs};
use crate::sys::objects::{Objects, Verity};
use crate::sys::verity::{self, Hasher};

pub use entries::Entries;
pub use held::{Held, OBJECT_FOLDERS, Sample};
pub use part::Origin;
pub(crate) use streams::manifest_name;
pub use streams::{StoredConfig, StoredImage, StoredManifest};

/// Named reference of a config stream: the image of EROFS format 1 (`composefs.image.v1` of composefs-oci).
pub const IMAGE_V1: &str = "composefs.image.v1";
/// The same with what containers have in `/run`, and all extended attributes: what podman is shown.
pub const WHOLE_IMAGE_V1: &str = "cfs-update.image.whole.v1";
/// Named reference of a config stream: the boot image of EROFS format 1 (`composefs.image.boot.v1`).
pub const BOOT_IMAGE_V1: &str = "composefs.image.boot.v1";

/// An opened repository; may be used from several threads.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    algorithm: Algorithm,
    read_only: Option<String>,
    fs: Arc<dyn Fs>,
    objects: Objects,
    lock: File,
    pending: Mutex<pending::Pending>,
    /// Which files of layers are kept; all where unset.
    keeps: Option<Keeps>,
    /// What is to be written is not compared with what is free.
    unchecked: AtomicBool,
    /// When this process began to write objects, by the file system's clock, or an interrupted run before it.
    since: Mutex<Option<(i64, i64)>>,
    /// What links of layers are compared with, until something is published.
    named_layers: Mutex<Option<streams::NamedLayers>>,
    /// What the last comparison said, for an error later on: bytes that are expected, bytes that were free.
    expected: Mutex<Option<(u64, u64)>>,
}

/// Tells by a file's path, as the archive has it, whether its content is wanted.
pub type Keeps = fn(&[u8]) -> bool;

impl Store {
    /// Opens the repository at `path`.
    ///
    /// # Errors
    /// [`Error::Repository`] where there is none, or one of a version or with features that we do not know;
    /// [`Error::Busy`] while another tool collects garbage in it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(Arc::new(RealFs), path)
    }

    /// Like [`Store::open`], with links, names and syncs going through `fs`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(fs: Arc<dyn Fs>, path: &Path) -> Result<Self> {
        let path = &absolute(path)?;
        let refuse = |why: String| Error::Repository {
            path: path.to_path_buf(),
            why,
        };
        let meta_path = path.join("meta.json");
        let Some(text) = meta::read(&meta_path)? else {
            return Err(refuse(if has_objects(path)? {
                "it has no meta.json: a repository of composefs-rs before 0.7, whose images have another format; run \
                 `cfsctl init --upgrade`, or let cfs-update make a new one elsewhere"
                    .into()
            } else {
                "there is none; `switch` makes one".into()
            }));
        };
        let access = text.and_then(|text| meta::parse(&text)).map_err(refuse)?;
        let lock = fs::open(path)?;
        lock_shared(&lock, path)?;
        let sealed = verity::measure(&fs::open(&meta_path)?)?.is_some();
        let verity = if sealed { Verity::Required } else { Verity::Unknown };
        let pending = pending::Pending::default();
        let suspect = fs::exists(&path.join(pending::MARK));
        Ok(Self {
            objects: Objects::open(&path.join("objects"), access.algorithm, verity, suspect)?,
            path: path.to_path_buf(),
            algorithm: access.algorithm,
            read_only: access.read_only,
            fs,
            lock,
            pending: Mutex::new(pending),
            keeps: None,
            unchecked: AtomicBool::new(false),
            since: Mutex::new(None),
            named_layers: Mutex::new(None),
            expected: Mutex::new(None),
        })
    }

    /// Whether nothing is at `path` but what a run left that was cut off while it made a repository there.
    pub fn is_unfinished(path: &Path) -> bool {
        let meta = meta::read(&path.join("meta.json"));
        matches!(meta, Ok(None)) && matches!(has_objects(path), Ok(false))
    }

    /// Makes a repository at `path`, whose parent exists, and opens it. Objects get fs-verity where the file system
    /// has it, which `meta.json` then says by having it, too.
    ///
    /// # Errors
    /// [`Error::Repository`] where there is one already.
    pub fn create(path: &Path, algorithm: Algorithm) -> Result<Self> {
        Self::create_with(Arc::new(RealFs), path, algorithm)
    }

    /// Like [`Store::create`], with changes going through `fs`.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_with(fs: Arc<dyn Fs>, path: &Path, algorithm: Algorithm) -> Result<Self> {
        let path = &absolute(path)?;
        let meta_path = path.join("meta.json");
        if fs::exists(&meta_path) || fs::is_dir(&path.join("objects")) {
            return Err(Error::Repository {
                path: path.to_path_buf(),
                why: "there is one already".into(),
            });
        }
        fs.create_dir(path, 0o700)?;
        for folder in [
            "objects",
            "images",
            "images/refs",
            "streams",
            "streams/refs",
            "streams/refs/oci",
        ] {
            fs.create_dir(&path.join(folder), 0o755)?;
        }
        fs::replace(&*fs, &meta_path, 0o644, meta::new(algorithm).as_bytes())?;
        verity::enable(&fs::open(&meta_path)?, algorithm)?;
        fs.sync_dir(fs::parent(path)?)?;
        Self::open_with(fs, path)
    }

    /// Opens the repository, or makes it where there is none.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::create`]; [`Error::Repository`] for one of another algorithm with something in
    /// it.
    pub fn open_or_create(path: &Path, algorithm: Algorithm) -> Result<Self> {
        Self::open_or_create_with(Arc::new(RealFs), path, algorithm)
    }

    /// Like [`Store::open_or_create`], with changes going through `fs`.
    ///
    /// # Errors
    /// As [`Store::open_or_create`].
    pub fn open_or_create_with(fs: Arc<dyn Fs>, path: &Path, algorithm: Algorithm) -> Result<Self> {
        let meta_path = path.join("meta.json");
        if fs::exists(&meta_path) {
            let store = Self::open_with(Arc::clone(&fs), path)?;
            if store.algorithm == algorithm {
                return Ok(store);
            }
            store.give_up_if_empty(algorithm)?;
        }
        if has_objects(path)? {
            return Self::open_with(fs, path);
        }
        let _ = fs.remove_dir_all(&path.join("objects"));
        Self::create_with(fs, path, algorithm)
    }

    /// A run that failed before its first object has not decided the algorithm: nothing has a name by it yet.
    fn give_up_if_empty(self, algorithm: Algorithm) -> Result<()> {
        let alone = || wait_for_lock(&self.lock, &self.path, FlockOperation::NonBlockingLockExclusive);
        if self.read_only.is_none() && !has_objects(&self.path)? && alone()? && !has_objects(&self.path)? {
            return self.fs.remove_file(&self.path.join("meta.json"));
        }
        Err(Error::Repository {
            why: format!(
                "it uses {}, not {}; leave the algorithm out, or use another repository",
                self.algorithm.name(),
                algorithm.name()
            ),
            path: self.path,
        })
    }

    /// From now on files of imported layers are only hashed, but for those that `keeps` names: for a repository that
    /// serves to find out what an image of these layers is, and is thrown away. It refuses to be published.
    pub fn only_hashing(self, keeps: Keeps) -> Self {
        Self {
            keeps: Some(keeps),
            ..self
        }
    }

    /// From now on what is to be written is not compared with what is free before it is fetched.
    pub fn ignore_space(&self) {
        self.unchecked.store(true, Ordering::Relaxed);
    }

    /// Whether what is to be written is compared with what is free before it is fetched.
    pub fn checks_space(&self) -> bool {
        !self.unchecked.load(Ordering::Relaxed) && self.keeps_all()
    }

    /// Whether this process has begun to write objects.
    pub(crate) fn has_written(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Remembers what was expected to be written, and what was free.
    pub(crate) fn expect(&self, bytes: u64, free: u64) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some((bytes, free));
    }

    /// What was expected to be written, and what was free then, where that was found out.
    pub fn expected(&self) -> Option<(u64, u64)> {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it keeps what is imported, all of it.
    pub fn keeps_all(&self) -> bool {
        self.keeps.is_none()
    }

    /// The algorithm that names its objects.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the objects, for mounts.
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// Whether its objects are sure to have fs-verity.
    pub fn has_verity(&self) -> bool {
        self.objects.verity() == Verity::Required
    }

    /// Why nothing may be written to it; `None` where it may.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// Whether an interrupted run left objects that may have lost their content, or one was found to be damaged; they
    /// are checked when they are used again, and a garbage collection ends this.
    pub fn is_suspect(&self) -> bool {
        self.objects.is_suspect()
    }

    /// Stores bytes as an object, durable after the next [`Store::publish`].
    ///
    /// # Errors
    /// What writing gives.
    pub fn put(&self, data: &[u8]) -> Result<ObjectId> {
        self.begin()?;
        let id = verity::hash(self.algorithm, data);
        self.objects.put(&id, data)?;
        Ok(id)
    }

    /// Stores everything that `source` gives as an object; returns its size in bytes, too. Memory is bounded.
    ///
    /// # Errors
    /// What reading and writing give.
    pub fn put_file(&self, source: &mut dyn Read) -> Result<(ObjectId, u64)> {
        let fail = |e| Error::io("write an object in", self.objects(), e);
        let mut buffer = vec![0; 128 << 10];
        self.put_pieces(|sink| {
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(n) => sink(&buffer[..n])?,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(fail(e)),
                }
            }
        })
    }

    /// Stores what `write` gives to its sink as one object; returns its size in bytes, too.
    ///
    /// # Errors
    /// What `write` and writing give.
    pub fn put_pieces(
        &self,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<(ObjectId, u64)> {
        self.begin()?;
        let mut hasher = Hasher::new(self.algorithm);
        let mut temporary = self.objects.temporary()?;
        let mut size = 0;
        write(&mut |piece| {
            hasher.update(piece);
            size += piece.len() as u64;
            let written = temporary.write_all(piece);
            written.map_err(|e| Error::io("write an object in", self.objects(), e))
        })?;
        let id = hasher.finish();
        if !self.objects.has(&id, size)? {
            self.objects.store(temporary, &id)?;
        }
        Ok((id, size))
    }

    /// Whether there is an object of this name; says nothing about its content.
    pub fn has_object(&self, id: &ObjectId) -> bool {
        matches!(self.objects.size(id), Ok(Some(_)))
    }

    /// Whether an object is sound and of another size than this, so it is not the file that has this size.
    pub(crate) fn is_other_file(&self, id: &ObjectId, size: u64) -> bool {
        let here = self.objects.size(id).ok().flatten();
        here.is_some_and(|here| here != size) && self.objects.is_intact(id).unwrap_or(false)
    }

    /// Removes an object whose content is wrong; a missing one is success.
    ///
    /// # Errors
    /// What removing gives.
    pub(crate) fn remove_broken(&self, id: &ObjectId) -> Result<()> {
        self.objects.remove(id)
    }

    /// Removes what is in the place of one of the 256 folders of the objects.
    ///
    /// # Errors
    /// What removing gives.
    pub(crate) fn clear_folder(&self, folder: u8) -> Result<()> {
        self.objects.clear_folder(folder)
    }

    /// Gives an object the fs-verity that it lacks; its content was checked.
    ///
    /// # Errors
    /// [`Error::Object`] where there is no fs-verity; what enabling it gives.
    pub(crate) fn seal(&self, id: &ObjectId) -> Result<()> {
        let file = self.open_object(id)?;
        let enabled = verity::enable(&file, self.algorithm)?;
        if enabled && verity::measure(&file)? == Some(*id) {
            return Ok(());
        }
        Err(Error::Object {
            id: id.to_hex(),
            why: "fs-verity cannot be enabled; enable the feature `verity` of the file system".into(),
        })
    }

    /// Where the object is or would be.
    pub fn object_path(&self, id: &ObjectId) -> PathBuf {
        self.objects.path(id)
    }

    /// Opens an object for reading; its content is not checked.
    ///
    /// # Errors
    /// [`Error::Object`] where there is none.
    pub fn open_object(&self, id: &ObjectId) -> Result<File> {
        self.objects.open_object(id)
    }

    /// An object's content, checked against its digest; fails on more than `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Object`] where it is missing, too large or not what its name says.
    pub fn read_object(&self, id: &ObjectId, limit: u64) -> Result<Vec<u8>> {
        let broken = |why: String| Error::Object { id: id.to_hex(), why };
        let mut content = Vec::new();
        let mut file = self.open_object(id)?.take(limit.saturating_add(1));
        file.read_to_end(&mut content)
            .map_err(|e| Error::io("read", self.object_path(id), e))?;
        if content.len() as u64 > limit {
            return Err(broken(format!("larger than {limit} bytes")));
        }
        if verity::hash(id.algorithm(), &content) != *id {
            return Err(broken(
                "its content is not what its name says; `cfs-update fsck --repair` fetches it again".into(),
            ));
        }
        Ok(content)
    }

    fn pending(&self) -> MutexGuard<'_, pending::Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So that a path of one component has a folder above it, and a change of the working folder changes nothing.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, e))
}

/// Whether the folder holds objects already; an empty `objects/` is what an interrupted [`Store::create`] leaves.
fn has_objects(path: &Path) -> Result<bool> {
    Ok(!fs::names(&path.join("objects"))?.is_empty())
}

/// How long a lock that another process has is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// As every user of the repository has it.
fn lock_shared(lock: &File, path: &Path) -> Result<()> {
    let taken = wait_for_lock(lock, path, FlockOperation::NonBlockingLockShared)?;
    taken.then_some(()).ok_or_else(|| Error::Busy {
        path: path.to_path_buf(),
        holder: "a garbage collection".into(),
    })
}

/// `false` where another process has it all the time.
fn wait_for_lock(lock: &File, path: &Path, operation: FlockOperation) -> Result<bool> {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(lock, operation) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() >= PATIENCE => return Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(20)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("lock", path, e)),
        }
    }
}
