//! New objects: from a file without a name to one that has an object's.
//!
//! A new object costs five system calls without fs-verity: look, open, write, link, close; with fs-verity three more,
//! to open it again for reading only, close and seal. In a folder that was made by the same run there is no look.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Name, Objects, Verity};
use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::sys::verity;

/// How names of unfinished files start, on file systems without O_TMPFILE; no digest starts like this.
pub(super) const TEMPORARY: &str = ".cfs-";

/// A file that is no object yet; it vanishes unless it is stored.
#[derive(Debug)]
pub struct Temporary<'a> {
    file: File,
    named: Option<(String, &'a Objects)>,
}

impl Objects {
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

    /// The size in bytes.
    ///
    /// # Errors
    /// The system's answer.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
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

fn proc_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
