//! Objects on disk: files named by the fs-verity digest of their content.
//!
//! Invariant: a name appears below `objects/` only when the file behind it was written completely and, where the file
//! system has fs-verity, sealed. It is not durable then: a power cut before the next `syncfs` may leave the name with
//! lost content, so nothing may refer to it before, and [`crate::store`] keeps a mark that tells the next run.
//!
//! A new object costs five system calls without fs-verity: look, open, write, link, close; with fs-verity three more,
//! to open it again for reading only, close and seal. In a folder that was made by the same run there is no look.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::sys::fresh::Fresh;
use crate::sys::fs::{Fs, RealFs};
use crate::sys::verity;

/// How names of unfinished files start, on file systems without O_TMPFILE; no digest starts like this.
const TEMPORARY: &str = ".cfs-";
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

/// A file that is no object yet; it vanishes unless it is stored.
#[derive(Debug)]
pub struct Temporary<'a> {
    file: File,
    named: Option<(String, &'a Objects)>,
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

    /// A new file to be written.
    pub fn temporary(&self) -> Result<Temporary<'_>> {
        if !self.named.load(Ordering::Relaxed) {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            match rustix::fs::openat(&self.dir, ".", flags, Mode::from_raw_mode(0o644)) {
                Ok(fd) => {
                    return Ok(Temporary {
                        file: File::from(fd),
                        named: None,
                    });
                }
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS | Errno::INVAL) => {
                    self.named.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err(Error::io("make a file in", &self.path, e)),
            }
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "{TEMPORARY}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.dir, &name, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| Error::io("make a file in", &self.path, e))?;
        Ok(Temporary {
            file: File::from(fd),
            named: Some((name, self)),
        })
    }

    /// Another program's file as one to be stored under our name as well (a hard link). With fs-verity, which it gets,
    /// its content can no longer change under us; without it this must not be done.
    pub fn foreign(&self, file: File) -> Temporary<'_> {
        Temporary { file, named: None }
    }

    /// Gives a written file its name; `false` where another of that name came first.
    pub fn store(&self, temporary: Temporary<'_>, id: &ObjectId) -> Result<bool> {
        let temporary = self.seal(temporary, id)?;
        let name = Name::new(id);
        let mut linked = self.link(&temporary, name.as_str());
        if linked == Err(Errno::NOENT) {
            // The kernel says so, too, where it does not allow AT_EMPTY_PATH: hence the second attempt.
            self.make_folder(&name, id)?;
            linked = self.link(&temporary, name.as_str());
            if linked == Err(Errno::NOENT) && !self.by_proc.swap(true, Ordering::Relaxed) {
                linked = self.link(&temporary, name.as_str());
            }
        }
        match linked {
            Ok(()) => {
                self.fresh.stored(id);
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(Error::io("link", self.path(id), e)),
        }
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

    /// Removes those of the 256 folders that are empty, for who has the repository alone: a new object makes its folder
    /// again. One that stays does no harm.
    pub fn remove_empty_folders(&self) {
        for folder in 0..=255_u8 {
            let _ = rustix::fs::unlinkat(&self.dir, format!("{folder:02x}"), AtFlags::REMOVEDIR);
        }
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

    /// Enables fs-verity where it is to be had; the file is open for reading only afterwards.
    fn seal<'a>(&self, mut temporary: Temporary<'a>, id: &ObjectId) -> Result<Temporary<'a>> {
        let verity = self.verity();
        if verity == Verity::Unsupported {
            return Ok(temporary);
        }
        let proc = proc_path(&temporary.file);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let sealed = rustix::fs::open(&*proc, flags, Mode::empty()).map_err(|e| Error::io("open again", &proc, e))?;
        // Closes the writable descriptor, which the kernel insists on.
        temporary.file = File::from(sealed);
        let supported = verity::enable(&temporary.file, self.algorithm)?;
        match (supported, verity) {
            (true, _) => self.verity.store(Verity::Required as u8, Ordering::Relaxed),
            (false, Verity::Required) => {
                return Err(Error::Object {
                    id: id.to_hex(),
                    why: "the repository demands fs-verity and this file system or kernel has none; enable the \
                          feature `verity` of the file system"
                        .into(),
                });
            }
            (false, _) => self.verity.store(Verity::Unsupported as u8, Ordering::Relaxed),
        }
        Ok(temporary)
    }

    fn link(&self, temporary: &Temporary<'_>, name: &str) -> Result<(), Errno> {
        if let Some((from, _)) = &temporary.named {
            return match rustix::fs::renameat_with(&self.dir, &**from, &self.dir, name, RenameFlags::NOREPLACE) {
                // The file system cannot: link and let the temporary name go.
                Err(Errno::INVAL) => rustix::fs::linkat(&self.dir, &**from, &self.dir, name, AtFlags::empty()),
                other => other,
            };
        }
        if self.by_proc.load(Ordering::Relaxed) {
            let proc = proc_path(&temporary.file);
            return rustix::fs::linkat(CWD, &*proc, &self.dir, name, AtFlags::SYMLINK_FOLLOW);
        }
        match rustix::fs::linkat(&temporary.file, "", &self.dir, name, AtFlags::EMPTY_PATH) {
            Err(Errno::PERM | Errno::INVAL) => {
                self.by_proc.store(true, Ordering::Relaxed);
                self.link(temporary, name)
            }
            other => other,
        }
    }

    fn make_folder(&self, name: &Name, id: &ObjectId) -> Result<()> {
        let make = || match rustix::fs::mkdirat(&self.dir, name.folder(), Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(Error::io("make the folder", self.path.join(name.folder()), e)),
        };
        self.fresh.make(id, make)
    }
}

impl AsFd for Objects {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Temporary<'_> {
    /// Lets the file, which is empty, share all blocks of `source`; `false` where the file system cannot.
    ///
    /// # Errors
    /// The system's answer, other than that.
    pub fn clone_from(&mut self, source: &File) -> io::Result<bool> {
        match rustix::fs::ioctl_ficlone(&self.file, source) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::TXTBSY | Errno::PERM) => {
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Sets the size; what was not written reads as zeros and takes no room.
    ///
    /// # Errors
    /// The system's answer, such as a size that the file system does not have.
    pub fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }
}

impl Read for Temporary<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Write for Temporary<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Temporary<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some((name, objects)) = &self.named {
            // After a rename there is none; what cannot be removed now is removed by the next run.
            let _ = rustix::fs::unlinkat(&objects.dir, &**name, AtFlags::empty());
        }
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

fn proc_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
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
mod tests {
    use super::*;

    fn objects(folder: &Path, suspect: bool) -> Objects {
        Objects::open(folder, Algorithm::Sha256, Verity::Unknown, suspect).unwrap()
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(&path))
            } else {
                found.push(path)
            }
        }
        found
    }

    #[test]
    fn a_name_is_the_path_of_the_id() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let id = verity::hash(algorithm, b"x");
            assert_eq!(Name::new(&id).as_str(), id.object_path());
        }
    }

    #[test]
    fn objects_are_stored_once_with_and_without_unnamed_files() {
        for named in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let objects = objects(folder.path(), false);
            if named {
                objects.without_tmpfile();
            }
            let data = vec![7; 5000];
            let id = verity::hash(Algorithm::Sha256, &data);
            assert!(objects.put(&id, &data).unwrap());
            assert!(!objects.put(&id, &data).unwrap());
            // Lost the race: another thread stored it after the look.
            let mut late = objects.temporary().unwrap();
            late.write_all(&data).unwrap();
            assert!(!objects.store(late, &id).unwrap());
            drop(objects.temporary().unwrap());
            assert_eq!(files(folder.path()), [objects.path(&id)], "named: {named}");
            assert!(objects.is_intact(&id).unwrap());
            objects.remove(&id).unwrap();
            objects.remove(&id).unwrap();
            assert!(matches!(objects.open_object(&id), Err(Error::Object { .. })));
        }
    }

    #[test]
    fn many_threads_may_store_the_same_object() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path(), true);
        let data = vec![8; 100_000];
        let id = verity::hash(Algorithm::Sha256, &data);
        let new: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| objects.put(&id, &data).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum()
        });
        assert_eq!(new, 1);
        assert!(objects.is_intact(&id).unwrap());
    }

    #[test]
    fn an_object_of_another_size_or_suspect_content_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = vec![9; 5000];
        let id = verity::hash(Algorithm::Sha256, &data);
        for (suspect, damage, again) in [(false, 4999, true), (false, 5000, false), (true, 5000, true)] {
            objects(folder.path(), suspect).put(&id, &data).unwrap();
            let objects = objects(folder.path(), suspect);
            #[allow(clippy::disallowed_methods, reason = "the damage")]
            std::fs::write(objects.path(&id), vec![0; damage]).unwrap();
            assert_eq!(objects.put(&id, &data).unwrap(), again, "{suspect} {damage}");
            objects.remove(&id).unwrap();
        }
    }

    #[test]
    fn what_a_new_folder_holds_is_known_without_a_look_and_an_object_of_somebody_else_is_met_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (here, other) = (objects(folder.path(), false), objects(folder.path(), false));
        let id = |n: u8| {
            let mut raw = [n; 32];
            raw[0] = 7;
            ObjectId::from_bytes(Algorithm::Sha256, &raw).unwrap()
        };
        assert!(here.put(&id(1), b"one").unwrap());
        assert_eq!(
            (here.fresh.has(&id(1)), here.fresh.has(&id(2))),
            (Some(true), Some(false))
        );
        assert_eq!(other.fresh.has(&id(1)), None, "it did not make the folder");
        assert!(!here.put(&id(1), b"one").unwrap() && !other.put(&id(1), b"one").unwrap());
        assert!(other.put(&id(2), b"two").unwrap());
        assert!(!here.put(&id(2), b"two").unwrap(), "the name is taken");
        here.remove(&id(1)).unwrap();
        assert!(here.put(&id(1), b"one").unwrap());
        for id in [id(1), id(2)] {
            here.remove(&id).unwrap();
        }
        here.remove_empty_folders();
        assert!(!here.path(&id(1)).parent().unwrap().exists());
        assert!(other.put(&id(2), b"two").unwrap() && here.put(&id(1), b"one").unwrap());
        here.remove_empty_folders();
        assert!(here.path(&id(1)).exists(), "only those that are empty");
    }

    #[test]
    fn what_is_no_file_in_an_objects_place_is_no_object_and_gives_way_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path(), false);
        let data = vec![3; 5000];
        let id = verity::hash(Algorithm::Sha256, &data);
        let (path, outside) = (objects.path(&id), folder.path().join("outside"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[allow(clippy::disallowed_methods, reason = "the same content, elsewhere")]
        std::fs::write(&outside, &data).unwrap();
        let link = |path: &Path| std::os::unix::fs::symlink(&outside, path).unwrap();
        let fifo = |path: &Path| rustix::fs::mkfifoat(CWD, path, Mode::RUSR).unwrap();
        let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        let full = |path: &Path| std::fs::create_dir_all(path.join("below")).unwrap();
        type Kind<'a> = (&'a str, &'a dyn Fn(&Path));
        let kinds: [Kind<'_>; 4] = [("link", &link), ("pipe", &fifo), ("socket", &socket), ("folder", &full)];
        for (kind, make) in kinds {
            make(&path);
            assert!(objects.is_obstructed(&id), "{kind}");
            assert_eq!(objects.size(&id).unwrap(), None, "{kind}");
            let refusal = objects.open_object(&id).unwrap_err().to_string();
            assert!(refusal.contains(NO_FILE), "{kind}: {refusal}");
            assert!(objects.put(&id, &data).unwrap(), "{kind}");
            assert!(objects.is_intact(&id).unwrap(), "{kind}");
            objects.remove(&id).unwrap();
        }
        assert_eq!(std::fs::read(&outside).unwrap(), data);
    }

    #[test]
    fn leftovers_of_a_killed_run_go_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path(), false);
        objects.without_tmpfile();
        std::mem::forget(objects.temporary().unwrap());
        let id = verity::hash(Algorithm::Sha256, b"x");
        objects.put(&id, b"x").unwrap();
        assert_eq!(files(folder.path()).len(), 2);
        objects.remove_leftovers().unwrap();
        assert_eq!(files(folder.path()), [objects.path(&id)]);
    }
}
