//! The two file systems of a mounted image: EROFS from the image, overlayfs over it and the objects (format document,
//! 5), by whichever interface the kernel has.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::Verity;
use crate::error::Error;
use crate::sys::loop_device::LoopDevice;

/// The kernel's answer to an attempt to mount, and what it wrote into the mount's log.
#[derive(Debug)]
pub(in crate::sys) struct Refused {
    pub(super) errno: Errno,
    pub(super) log: String,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            log: String::new(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.errno)?;
        if !self.log.is_empty() {
            write!(f, " ({})", self.log)?;
        }
        Ok(())
    }
}

/// Adds to a refusal what the kernel has to say about this mount.
pub(in crate::sys) fn with_log<T>(context: &OwnedFd, result: Result<T, Errno>) -> Result<T, Refused> {
    result.map_err(|errno| {
        let mut lines = Vec::new();
        let mut buffer = [0; 512];
        // One message a read; the end is an error.
        while let Ok(length) = rustix::io::read(context, &mut buffer) {
            if length == 0 || lines.len() == 16 {
                break;
            }
            let line = String::from_utf8_lossy(&buffer[..length]);
            lines.push(line.trim().trim_start_matches(['e', 'w', 'i']).trim().to_owned());
        }
        Refused {
            errno,
            log: lines.join("; "),
        }
    })
}

/// The EROFS part, mounted nowhere yet.
pub(super) fn mount_erofs(image: &File, has_acl: bool) -> Result<OwnedFd, Refused> {
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    match erofs_from(Path::new(&path), has_acl) {
        Err(Refused {
            errno: Errno::NOTBLK, ..
        }) => {
            let device = LoopDevice::attach(image).map_err(|e| match &e {
                Error::Io { source, .. } => Refused {
                    errno: Errno::from_io_error(source).unwrap_or(Errno::IO),
                    log: e.to_string(),
                },
                _ => Errno::IO.into(),
            })?;
            erofs_from(device.path(), has_acl)
        }
        mounted => mounted,
    }
}

pub(super) fn erofs_from(source: &Path, has_acl: bool) -> Result<OwnedFd, Refused> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = || {
        fsconfig_set_string(&context, "source", source)?;
        fsconfig_set_flag(&context, "ro")?;
        if !has_acl {
            // Unknown to a kernel built without ACLs, where there are none anyway.
            let _ = fsconfig_set_flag(&context, "noacl");
        }
        fsconfig_create(&context)?;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )
    };
    with_log(&context, configured())
}

/// The overlay of an image's tree over the objects.
pub(super) struct Overlay<'a> {
    pub(super) source: String,
    pub(super) objects: &'a [&'a Path],
    pub(super) check: Verity,
}

impl Overlay<'_> {
    /// The newest interface that the kernel has: layers by descriptor (6.15), layers by path (6.8), one option string
    /// with data-only layers (6.5), one without (older).
    pub(super) fn mount(&self, erofs: &OwnedFd, target: &Path) -> Result<(), Refused> {
        const OLDER: [Errno; 5] = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NODEV, Errno::BADF];
        match self.context(|context| fsconfig_set_fd(context, "lowerdir+", erofs)) {
            Ok(overlay) => return Ok(attach(&overlay, target)?),
            Err(e) if OLDER.contains(&e.errno) => {}
            Err(e) => return Err(e),
        }
        let place = Attached::new(erofs)?;
        match self.context(|context| fsconfig_set_string(context, "lowerdir+", place.path())) {
            Ok(overlay) => Ok(attach(&overlay, target)?),
            Err(e) if matches!(e.errno, Errno::INVAL | Errno::NOSYS) => {
                // The old interface has no log: what the new one said is what there is to tell.
                self.mount_old(place.path(), target)
                    .map_err(|errno| Refused { errno, log: e.log })
            }
            Err(e) => Err(e),
        }
    }

    pub(super) fn context(&self, lower: impl FnOnce(&OwnedFd) -> Result<(), Errno>) -> Result<OwnedFd, Refused> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let configured = self.configure(&context, lower);
        with_log(&context, configured)
    }

    fn configure(
        &self,
        context: &OwnedFd,
        lower: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<OwnedFd, Errno> {
        fsconfig_set_string(context, "source", self.source.as_str())?;
        fsconfig_set_string(context, "metacopy", "on")?;
        fsconfig_set_string(context, "redirect_dir", "on")?;
        match self.check {
            Verity::Require => fsconfig_set_string(context, "verity", "require")?,
            Verity::Try => drop(fsconfig_set_string(context, "verity", "require")),
            Verity::Off => {}
        }
        lower(context)?;
        for objects in self.objects {
            fsconfig_set_string(context, "datadir+", *objects)?;
        }
        fsconfig_create(context)?;
        fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )
    }

    pub(super) fn mount_old(&self, lower: &Path, target: &Path) -> Result<(), Errno> {
        let mut refusal = Errno::INVAL;
        for between in ["::", ":"] {
            for check in [Verity::Require, Verity::Off] {
                if (self.check, check) == (Verity::Off, Verity::Require)
                    || (self.check, check) == (Verity::Require, Verity::Off)
                {
                    continue;
                }
                let data = self.data(lower, between, check);
                let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
                match rustix::mount::mount(self.source.as_str(), target, "overlay", MountFlags::RDONLY, &*data) {
                    Err(e @ Errno::INVAL) => refusal = e,
                    done => return done,
                }
            }
        }
        Err(refusal)
    }

    fn data(&self, lower: &Path, between: &str, check: Verity) -> Vec<u8> {
        let mut data = b"metacopy=on,redirect_dir=on,lowerdir=".to_vec();
        data.extend(escape(lower));
        for objects in self.objects {
            data.extend(between.as_bytes());
            data.extend(escape(objects));
        }
        if check == Verity::Require {
            data.extend(b",verity=require");
        }
        data
    }
}

/// A path inside an overlayfs option string: what separates layers and options is escaped.
pub(in crate::sys) fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

pub(super) fn attach(mount: &OwnedFd, target: &Path) -> Result<(), Errno> {
    move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A mount at a private place, taken away when dropped; overlayfs keeps its own reference to it.
pub(super) struct Attached(PathBuf);

impl Attached {
    pub(super) fn new(mount: &OwnedFd) -> Result<Self, Errno> {
        let name = format!(".cfs-update-{}", std::process::id());
        // An initramfs has the first, a container perhaps only the second.
        let make = |folder: &str| {
            let path = Path::new(folder).join(&name);
            rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU).map(|()| Self(path))
        };
        let place = make("/run").or_else(|_| make("/tmp"))?;
        attach(mount, &place.0)?;
        Ok(place)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = rustix::fs::rmdir(&self.0);
    }
}
