//! Objects on disk: files named by the fs-verity digest of their content.
//!
//! Invariant: a name appears below `objects/` only when the file behind it was written completely and, where the file
//! system has fs-verity, sealed. It is not durable then: a power cut before the next `syncfs` may leave the name with
//! lost content, so nothing may refer to it before, and [`crate::store`] keeps a mark that tells the next run.

mod new;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::sys::fresh::Fresh;
use crate::sys::fs::{Fs, RealFs};
use crate::sys::verity;

use new::TEMPORARY;
pub use new::Temporary;

/// Why what is in an object's place is not the object.
pub const NO_FILE: &str = "what is in its place is no regular file";

/// What is known of the file system's fs-verity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verity {
    /// Every object must have it.
    Required,
    /// It is enabled where that works; the first object tells.
    Unknown,
    /// The file system has none.
    Unsupported,
}

/// The folder `objects/` of a repository.
#[derive(Debug)]
pub struct Objects {
    dir: OwnedFd,
    path: PathBuf,
    algorithm: Algorithm,
    verity: AtomicU8,
    /// The file system has no O_TMPFILE.
    named: AtomicBool,
    /// Linking needs /proc: the kernel wants a privilege for AT_EMPTY_PATH.
    by_proc: AtomicBool,
    /// Objects that are here already may be broken: look before they are used again.
    suspect: AtomicBool,
    fresh: Fresh,
}

impl Objects {
    /// Opens the folder. `suspect`: an interrupted run may have left objects with lost content.
    pub fn open(path: &Path, algorithm: Algorithm, verity: Verity, suspect: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open", path, e))?;
        Ok(Self {
            dir,
            path: path.to_path_buf(),
            algorithm,
            verity: AtomicU8::new(verity as u8),
            named: AtomicBool::new(false),
            by_proc: AtomicBool::new(false),
            suspect: AtomicBool::new(suspect),
            fresh: Fresh::new(),
        })
    }

    /// The algorithm of the names.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether objects that were here before are checked before they are used again.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// From now on objects that were here before are checked before they are used again: one of them is broken.
    pub fn distrust(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// From now on objects are believed: what might have been broken is gone.
    pub fn trust(&self) {
        self.suspect.store(false, Ordering::Relaxed);
    }

    /// Pretends that the file system has no O_TMPFILE.
    #[cfg(test)]
    pub(crate) fn without_tmpfile(&self) {
        self.named.store(true, Ordering::Relaxed);
    }

    /// Whether new objects get fs-verity.
    pub fn verity(&self) -> Verity {
        match self.verity.load(Ordering::Relaxed) {
            v if v == Verity::Required as u8 => Verity::Required,
            v if v == Verity::Unsupported as u8 => Verity::Unsupported,
            _ => Verity::Unknown,
        }
    }

    /// Where an object is.
    pub fn path(&self, id: &ObjectId) -> PathBuf {
        self.path.join(Name::new(id).as_str())
    }

    /// Opens an object for reading; never waits, as a pipe in its place would have it.
    pub fn open_object(&self, id: &ObjectId) -> Result<File> {
        let refuse = |why: &str| Error::Object {
            id: id.to_hex(),
            why: format!("{why}; `cfs-update fsck --repair` fetches it again"),
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::openat(&self.dir, Name::new(id).as_str(), flags, Mode::empty());
        match opened.and_then(|fd| Ok((is_file(&rustix::fs::fstat(&fd)?), fd))) {
            Ok((true, fd)) => Ok(File::from(fd)),
            Ok((false, _)) => Err(refuse(NO_FILE)),
            Err(Errno::NOENT) => Err(refuse("missing")),
            Err(_) if self.is_obstructed(id) => Err(refuse(NO_FILE)),
            Err(e) => Err(Error::io("open", self.path(id), e)),
        }
    }

    /// The size of an object in bytes; `None` where there is none.
    pub fn size(&self, id: &ObjectId) -> Result<Option<u64>> {
        match self.look(id)? {
            Place::Object(size) => Ok(Some(size)),
            Place::Empty | Place::Obstructed => Ok(None),
        }
    }

    /// Whether something that is no object is in an object's place: a link, a folder, a pipe, a socket, a device.
    pub fn is_obstructed(&self, id: &ObjectId) -> bool {
        matches!(self.look(id), Ok(Place::Obstructed))
    }

    fn look(&self, id: &ObjectId) -> Result<Place> {
        match rustix::fs::statat(&self.dir, Name::new(id).as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_file(&stat) => Ok(Place::Object(stat.st_size.cast_unsigned())),
            Ok(_) => Ok(Place::Obstructed),
            Err(Errno::NOENT) => Ok(Place::Empty),
            Err(Errno::NOTDIR) => Err(self.no_folder(Name::new(id).folder())),
            Err(e) => Err(Error::io("look at", self.path(id), e)),
        }
    }

    /// Whether the object is here and can be relied on. What is no file in its place, or one of another size, is
    /// removed; where objects are suspect, a broken one, too.
    pub fn has(&self, id: &ObjectId, size: u64) -> Result<bool> {
        if let Some(known) = self.fresh.has(id) {
            return Ok(known);
        }
        match self.look(id)? {
            Place::Empty => Ok(false),
            Place::Object(here) if here == size && (!self.is_suspect() || self.is_intact(id)?) => Ok(true),
            Place::Object(_) | Place::Obstructed => {
                self.remove(id)?;
                Ok(false)
            }
        }
    }

    /// Whether the content of an object is what its name says.
    pub fn is_intact(&self, id: &ObjectId) -> Result<bool> {
        let mut file = self.open_object(id)?;
        if verity::measure(&file)? == Some(*id) {
            return Ok(true);
        }
        let hashed = verity::hash_reader(id.algorithm(), &mut file);
        let (found, _) = hashed.map_err(|e| Error::io("read", self.path(id), e))?;
        Ok(found == *id)
    }

    /// Stores bytes whose digest is known; `false` where they are here already.
    pub fn put(&self, id: &ObjectId, data: &[u8]) -> Result<bool> {
        if self.has(id, data.len() as u64)? {
            return Ok(false);
        }
        let mut temporary = self.temporary()?;
        temporary
            .write_all(data)
            .map_err(|e| Error::io("write", self.path(id), e))?;
        self.store(temporary, id)
    }

    /// Removes an object, or whatever is in its place; a missing one is success.
    pub fn remove(&self, id: &ObjectId) -> Result<()> {
        self.fresh.removed(id);
        match rustix::fs::unlinkat(&self.dir, Name::new(id).as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => RealFs.remove_dir_all(&self.path(id)),
            Err(e) => Err(Error::io("remove", self.path(id), e)),
        }
    }

    /// Removes those of the 256 folders that are empty, for who has the repository alone: a new object makes its
    /// folder again. One that stays does no harm.
    pub fn remove_empty_folders(&self) {
        for folder in 0..=255_u8 {
            let _ = rustix::fs::unlinkat(&self.dir, format!("{folder:02x}"), AtFlags::REMOVEDIR);
        }
    }

    /// How many of the 256 folders there are.
    pub fn folders(&self) -> Result<u64> {
        let fail = |e| Error::io("list", &self.path, e);
        let mut count = 0;
        for entry in Dir::read_from(&self.dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            count += u64::from(matches!(entry.file_name().to_bytes(), [a, b] if *a != b'.' && *b != b'.'));
        }
        Ok(count)
    }

    /// Removes unfinished files that a killed run left where there is no O_TMPFILE.
    pub fn remove_leftovers(&self) -> Result<()> {
        let fail = |e| Error::io("list", &self.path, e);
        for entry in Dir::read_from(&self.dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_name().to_bytes().starts_with(TEMPORARY.as_bytes()) {
                match rustix::fs::unlinkat(&self.dir, entry.file_name(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(Error::io("remove a leftover in", &self.path, e)),
                }
            }
        }
        Ok(())
    }

    /// Calls `each` for every file of one of the 256 folders: its name, and the id where the name is one.
    pub fn list(&self, folder: u8, each: &mut dyn FnMut(&str, Option<ObjectId>) -> Result<()>) -> Result<()> {
        let folder = format!("{folder:02x}");
        let path = self.path.join(&folder);
        let fail = |e| Error::io("list", &path, e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.dir, &*folder, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR) => return Err(self.no_folder(&folder)),
            Err(e) => return Err(fail(e)),
        };
        for entry in Dir::read_from(&fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                let id = format!("{folder}{name}").parse::<ObjectId>().ok();
                let id = id.filter(|id| id.algorithm() == self.algorithm);
                each(&format!("{folder}/{name}"), id)?;
            }
        }
        Ok(())
    }

    fn no_folder(&self, folder: &str) -> Error {
        let why = "it is no folder; `cfs-update fsck --repair` removes it and fetches what was in it";
        Error::io(
            "use",
            self.path.join(folder),
            io::Error::new(io::ErrorKind::NotADirectory, why),
        )
    }

    /// Whether something that is no folder is in the place of one of the 256.
    pub fn is_folder_obstructed(&self, folder: u8) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, format!("{folder:02x}"), flags, Mode::empty());
        opened.err() == Some(Errno::NOTDIR)
    }

    /// Removes what is no folder in the place of one of the 256.
    pub fn clear_folder(&self, folder: u8) -> Result<()> {
        match self.is_folder_obstructed(folder) {
            true => RealFs.remove_file(&self.path.join(format!("{folder:02x}"))),
            false => Ok(()),
        }
    }
}

impl AsFd for Objects {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// What is in an object's place.
enum Place {
    Empty,
    /// A regular file of so many bytes.
    Object(u64),
    Obstructed,
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_file()
}

/// `ab/cdef…`, without a heap allocation.
struct Name {
    text: [u8; 129],
    length: usize,
}

impl Name {
    fn new(id: &ObjectId) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut name = Self {
            text: [b'/'; 129],
            length: 0,
        };
        for (at, byte) in id.as_bytes().iter().enumerate() {
            let to = if at == 0 { 0 } else { 2 * at + 1 };
            name.text[to] = DIGITS[usize::from(byte >> 4)];
            name.text[to + 1] = DIGITS[usize::from(byte & 15)];
        }
        name.length = 2 * id.as_bytes().len() + 1;
        name
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }

    fn folder(&self) -> &str {
        &self.as_str()[..2]
    }
}

#[cfg(test)]
mod tests;
