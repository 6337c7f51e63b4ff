//! File systems of block devices, mounted for a while.
//!
//! Invariant: a mount is taken away when its guard is dropped. Behind [`own_mounts`] nobody else sees it, and it goes
//! with the process however that ends, also by SIGKILL.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::verity;
use crate::error::{Error, Result};
use crate::ids::Algorithm;

/// Gives this thread, and those that it starts, mounts of their own, which others do not see. Done before any other
/// thread that is to see them is started.
///
/// # Errors
/// [`Error::Io`] where the process may not: it needs root.
#[allow(
    unsafe_code,
    reason = "unshare is unsafe for file descriptors, which are not unshared here"
)]
pub fn own_mounts() -> Result<()> {
    let fail = |e: Errno| Error::io("separate the mounts of this process from", "/", e);
    // SAFETY: without `UnshareFlags::FILES`, nothing changes for descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(fail)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    match rustix::mount::mount_change("/", private) {
        // In a chroot the root is no mount, and nothing says that mounts below it are shared.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(e) => Err(fail(e)),
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    attached: bool,
}

impl Mounted {
    /// Mounts `device` at `path`, a folder, without set-user-ID programs and devices; `options` are the file system's
    /// own.
    ///
    /// # Errors
    /// [`Error::Disk`] says what was to be mounted.
    pub fn new(device: &Path, path: &Path, kind: &str, options: &str) -> Result<Self> {
        let data = std::ffi::CString::new(options).map_err(|_| Error::io("mount", device, Errno::INVAL))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(device, path, kind, flags, &*data).map_err(|e| Error::Disk {
            path: device.to_path_buf(),
            why: format!("cannot be mounted as {kind}: {e}"),
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            attached: true,
        })
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it away; what was written is on the disk then.
    pub fn unmount(mut self) -> Result<()> {
        self.attached = false;
        rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW).map_err(|e| Error::io("unmount", &self.path, e))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.attached {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// A new folder for mounts, removed when dropped.
#[derive(Debug)]
pub struct MountPoint(PathBuf);

impl MountPoint {
    /// Below `/run`, which is memory and nobody else's; `purpose` is in its name.
    pub fn new(purpose: &str) -> Result<Self> {
        let path = PathBuf::from(format!("/run/cfs-update-{purpose}-{}", std::process::id()));
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            // Of a process of the same number that was killed.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("make the folder", &path, e)),
        }
        Ok(Self(path))
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        let _ = rustix::fs::rmdir(&self.0);
    }
}

/// Whether files below `folder` can have fs-verity, found out by giving it to one that has no name.
pub fn has_verity(folder: &Path, algorithm: Algorithm) -> Result<bool> {
    let fail = |e: Errno| Error::io("try fs-verity in", folder, e);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let written = match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(false),
        Err(e) => return Err(fail(e)),
    };
    rustix::io::write(&written, b"fs-verity?").map_err(fail)?;
    let path = format!("/proc/self/fd/{}", written.as_raw_fd());
    let readable = File::open(&path).map_err(|e| Error::io("try fs-verity in", folder, e))?;
    drop(written);
    verity::enable(&readable, algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_goes_with_its_guard_and_nobody_else_sees_it() {
        if !rustix::process::geteuid().is_root() {
            println!("not checked: mounting needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        let path = folder.path().to_path_buf();
        let here = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        std::thread::spawn(move || {
            own_mounts().unwrap();
            let mounted = Mounted::new(Path::new("none"), &path, "tmpfs", "size=1m").unwrap();
            std::fs::write(path.join("inside"), b"x").unwrap();
            assert!(here().contains(path.to_str().unwrap()));
            drop(mounted);
            assert!(!path.join("inside").exists());
            let again = Mounted::new(Path::new("none"), &path, "tmpfs", "size=1m").unwrap();
            std::fs::write(path.join("inside"), b"x").unwrap();
            // As if it were killed here: the thread's mounts go with it.
            std::mem::forget(again);
        })
        .join()
        .unwrap();
        assert!(!inside.exists());
        let refused = Mounted::new(Path::new("/dev/no-such"), folder.path(), "ext4", "").unwrap_err();
        assert!(
            refused.to_string().contains("/dev/no-such: cannot be mounted as ext4"),
            "{refused}"
        );
    }

    #[test]
    fn whether_there_is_fs_verity_is_answered_wherever_one_may_write() {
        let folder = tempfile::tempdir().unwrap();
        let first = has_verity(folder.path(), Algorithm::Sha256).unwrap();
        assert_eq!(has_verity(folder.path(), Algorithm::Sha256).unwrap(), first);
        assert!(!has_verity(Path::new("/dev/shm"), Algorithm::Sha256).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
