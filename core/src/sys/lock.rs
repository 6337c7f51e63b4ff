//! Locks: one for each sysroot, and those of folders and of other programs' files.
//!
//! Invariant: who holds a [`Lock`] is the only writer of that sysroot. The kernel drops it with the process, so a
//! killed run or a power cut leaves none behind; the text in the file only tells a second run who holds it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sys::fs;

/// An exclusive lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock at `path`, whose folder exists. `purpose` (the command) is shown to a second run.
    ///
    /// # Errors
    /// [`Error::Busy`] with the holder's process id and purpose, where another run has it.
    pub fn exclusive(path: &Path, purpose: &str) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Self::take(&mut options, path, purpose)
    }

    /// As [`Lock::exclusive`], also where the file system is read-only: then as [`Lock::to_look`].
    ///
    /// # Errors
    /// As [`Lock::exclusive`].
    pub fn exclusive_anyway(path: &Path, purpose: &str) -> Result<Self> {
        match Self::exclusive(path, purpose) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => Self::to_look(path),
            taken => taken,
        }
    }

    /// Takes the lock at `path`, which is there, and writes nothing: a second run is not told who has it.
    ///
    /// # Errors
    /// As [`Lock::exclusive`].
    pub fn to_look(path: &Path) -> Result<Self> {
        Self::take(File::options().read(true), path, "")
    }

    fn take(options: &mut OpenOptions, path: &Path, purpose: &str) -> Result<Self> {
        let fail = |e| Error::io("lock", path, e);
        let never_through_a_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut file = options.custom_flags(never_through_a_link).open(path).map_err(fail)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::Busy {
                    path: path.to_path_buf(),
                    holder: holder(&mut file),
                });
            }
            Err(e) => return Err(fail(e.into())),
        }
        // The text is for people. Where nothing can be written, what makes room wants the lock all the same.
        let text = format!("{} {purpose}\n", std::process::id());
        let _ = (file.write_all(text.as_bytes())).and_then(|()| file.set_len(text.len() as u64));
        Ok(Self {
            _file: file,
            path: path.to_path_buf(),
        })
    }

    /// Where the lock is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A lock on a folder, held until dropped, by which runs of this program that write there exclude each other.
#[derive(Debug)]
pub struct FolderLock {
    /// `None` where the file system has no such locks.
    _folder: Option<File>,
}

impl FolderLock {
    /// Takes the lock on `path`, a folder. `who` else may have it, for the message.
    ///
    /// # Errors
    /// [`Error::Busy`] where another run has it.
    pub fn exclusive(path: &Path, who: &str) -> Result<Self> {
        let folder = File::open(path).map_err(|e| Error::io("lock", path, e))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _folder: Some(folder) }),
            Err(Errno::WOULDBLOCK) => Err(Error::Busy {
                path: path.to_path_buf(),
                holder: who.into(),
            }),
            Err(error) => {
                tracing::debug!("{} has no locks: {error}", path.display());
                Ok(Self { _folder: None })
            }
        }
    }
}

/// Takes the lock on `file` until it is closed: whether no other run has it. So it is where the file system has no
/// locks.
pub fn ours(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}

/// Whoever is waited for longer is named.
const SILENCE: Duration = Duration::from_secs(1);

/// A lock on another program's file, as fcntl has it: the kernel drops it with the process, and with the first
/// descriptor of that file that the process closes.
#[derive(Debug)]
pub struct RecordLock {
    file: File,
    path: PathBuf,
}

impl RecordLock {
    /// Takes the lock at `path` for reading, waiting for whoever has it for `patience`; `None` where there is no such
    /// file, and so nobody who locks it.
    ///
    /// # Errors
    /// [`Error::Busy`] with the holder's process id after that time.
    pub fn shared(path: &Path, patience: Duration) -> Result<Option<Self>> {
        let never_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        match File::options().read(true).custom_flags(never_wait).open(path) {
            Ok(file) => Self::take(file, path, FlockOperation::NonBlockingLockShared, patience).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("lock", path, e)),
        }
    }

    /// Takes the lock at `path`, which exists, for writing. It is written to, so a link in its place is refused.
    ///
    /// # Errors
    /// As [`RecordLock::shared`]; what is no regular file.
    pub fn exclusive(path: &Path, patience: Duration) -> Result<Self> {
        let file = fs::open_to_change(path, false)?;
        Self::take(file, path, FlockOperation::NonBlockingLockExclusive, patience)
    }

    /// Leaves the mark by which those who read what the lock is for see that it has changed: 64 bytes that nobody has
    /// written before.
    ///
    /// # Errors
    /// What writing gives.
    pub fn mark_change(&mut self) -> Result<()> {
        let mut mark = [0; 64];
        let _ = getrandom::fill(&mut mark);
        let written = self.file.rewind().and_then(|()| self.file.write_all(&mark));
        written.map_err(|e| Error::io("write", &self.path, e))
    }

    fn take(file: File, path: &Path, operation: FlockOperation, patience: Duration) -> Result<Self> {
        let start = Instant::now();
        let mut said = false;
        loop {
            match rustix::fs::fcntl_lock(&file, operation) {
                Ok(()) => {
                    let path = path.to_path_buf();
                    return Ok(Self { file, path });
                }
                Err(Errno::AGAIN | Errno::ACCESS) if start.elapsed() >= patience => {
                    return Err(Error::Busy {
                        path: path.to_path_buf(),
                        holder: record_holder(&file),
                    });
                }
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    if !said && start.elapsed() >= SILENCE {
                        said = true;
                        let holder = record_holder(&file);
                        tracing::warn!("waiting for {}, which {holder} has locked", path.display());
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io("lock", path, e)),
            }
        }
    }
}

fn record_holder(file: &File) -> String {
    let wanted = rustix::process::Flock::from(rustix::process::FlockType::ReadLock);
    match rustix::process::fcntl_getlk(file, &wanted) {
        Ok(Some(found)) => match found.pid {
            Some(pid) => format!("process {}", pid.as_raw_nonzero()),
            None => "another process".into(),
        },
        _ => "another process".into(),
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(200).read_to_string(&mut text));
    match text.trim().split_once(' ') {
        Some((pid, purpose)) if read.is_ok() => format!("process {pid} ({purpose})"),
        _ => "another process".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_a_link_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::write(&outside, "precious").unwrap();
        std::os::unix::fs::symlink(&outside, folder.path().join("lock")).unwrap();
        assert!(Lock::exclusive(&folder.path().join("lock"), "upgrade").is_err());
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
    }

    #[test]
    fn a_lock_of_podmans_kind_is_never_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, path) = (folder.path().join("outside"), folder.path().join("images.lock"));
        std::fs::write(&outside, "precious").unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        let refusal = RecordLock::exclusive(&path, Duration::ZERO).unwrap_err().to_string();
        assert!(
            refusal.contains("images.lock") && refusal.contains("symbolic link"),
            "{refusal}"
        );
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(RecordLock::exclusive(&path, Duration::ZERO).is_err());
    }

    #[test]
    fn a_second_lock_says_who_holds_the_first_and_succeeds_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::exclusive(&path, "upgrade").unwrap();
        let refusal = Lock::exclusive(&path, "switch").unwrap_err().to_string();
        assert!(
            refusal.contains(&format!("process {} (upgrade)", std::process::id())),
            "{refusal}"
        );
        drop(first);
        // A program that another test starts has it, too, until it runs.
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(busy) = Lock::exclusive(&path, "switch") {
            assert!(Instant::now() < until, "{busy}");
        }
    }
}
