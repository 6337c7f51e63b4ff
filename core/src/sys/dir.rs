//! Folders as handles: writing and reading trees that may be hostile, without ever leaving them.
//!
//! Invariant: every operation takes one name in an open folder and follows no symbolic link, so nothing outside the
//! folder that was opened first can be reached, whatever is put or swapped in while it runs. Nothing here is durable by
//! itself: the caller syncs the file system, then gives the folder its name.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Seconds since 1970 and nanoseconds 0..1e9.
pub type Time = (i64, u32);

/// Extended attributes, key (with its prefix) and value, by key.
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An open folder; its path is for messages only.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What `lstat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Kind.
    pub kind: FileType,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Kernel's 32-bit device number of a device.
    pub rdev: u32,
    /// Modification time.
    pub mtime: Time,
    /// Names it has.
    pub nlink: u64,
    /// Device and inode: the same for hard links.
    pub inode: (u64, u64),
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens a folder; the last component of `path` is no link.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = sys::open(path, FOLDER, Mode::empty()).map_err(|e| Error::io("open the folder", path, e))?;
        Ok(Self {
            fd,
            path: path.to_path_buf(),
        })
    }

    /// Makes a folder (0700) and opens it; fails where anything has the name.
    pub fn create(path: &Path) -> Result<Self> {
        sys::mkdir(path, Mode::RWXU).map_err(|e| Error::io("make the folder", path, e))?;
        Self::open(path)
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// One plain name: not empty, no `.` or `..`, no slash.
    fn name<'a>(&self, name: &'a OsStr, action: &'static str) -> Result<&'a OsStr> {
        let bytes = name.as_bytes();
        let plain = !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.iter().any(|&b| b == b'/' || b == 0);
        if plain {
            return Ok(name);
        }
        let why = io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no plain file name"));
        Err(Error::io(action, &self.path, why))
    }

    /// Opens a folder in this one.
    pub fn open_dir(&self, name: &OsStr) -> Result<Self> {
        let name = self.name(name, "open a folder in")?;
        let fd = sys::openat(&self.fd, name, FOLDER, Mode::empty())
            .map_err(|e| Error::io("open the folder", self.at(name), e))?;
        Ok(Self {
            fd,
            path: self.at(name),
        })
    }

    /// Opens the folder `path` below this one, one name after the other; empty is this folder again.
    pub fn walk(&self, path: &Path) -> Result<Self> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|e| Error::io("open the folder", &self.path, e))?;
        let mut at = Self {
            fd,
            path: self.path.clone(),
        };
        for component in path.components() {
            at = at.open_dir(component.as_os_str())?;
        }
        Ok(at)
    }

    /// Makes a folder (0700) in this one and opens it; fails where anything has the name.
    pub fn make_dir(&self, name: &OsStr) -> Result<Self> {
        let name = self.name(name, "make a folder in")?;
        sys::mkdirat(&self.fd, name, Mode::RWXU).map_err(|e| Error::io("make the folder", self.at(name), e))?;
        self.open_dir(name)
    }

    /// Makes an empty file (0600), open for reading and writing; fails where anything has the name.
    pub fn make_file(&self, name: &OsStr) -> Result<File> {
        let name = self.name(name, "make a file in")?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = sys::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| Error::io("make", self.at(name), e))?;
        Ok(File::from(fd))
    }

    /// Opens a regular file for reading; anything else fails.
    pub fn open_file(&self, name: &OsStr) -> Result<File> {
        let name = self.name(name, "open a file in")?;
        let fail = |e: io::Error| Error::io("open", self.at(name), e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(sys::openat(&self.fd, name, flags, Mode::empty()).map_err(|e| fail(e.into()))?);
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(io::Error::other("it is not a regular file")));
        }
        Ok(file)
    }

    /// Opens what `path` leads to for reading, where this folder is the root: links are followed as a program would
    /// whose root it is, and lead nowhere else. `None` where there is no such name; one whose content is missing, as
    /// it may be in an overlay, is an error.
    pub fn open_inside(&self, path: &Path) -> Result<Option<File>> {
        let open = |flags| {
            sys::openat2(
                &self.fd,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            )
        };
        match open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT | Errno::NOTDIR) if open(OFlags::PATH).is_err() => Ok(None),
            Err(e) => Err(Error::io("open", self.path.join(path), e)),
        }
    }

    /// Makes a symbolic link.
    pub fn make_symlink(&self, name: &OsStr, target: &[u8]) -> Result<()> {
        let name = self.name(name, "link in")?;
        sys::symlinkat(OsStr::from_bytes(target), &self.fd, name).map_err(|e| Error::io("link", self.at(name), e))
    }

    /// Makes a second name of `other` in `folder`.
    pub fn make_link(&self, name: &OsStr, folder: &Self, other: &OsStr) -> Result<()> {
        let name = self.name(name, "link in")?;
        let other = folder.name(other, "link from")?;
        sys::linkat(&folder.fd, other, &self.fd, name, AtFlags::empty())
            .map_err(|e| Error::io("link", self.at(name), e))
    }

    /// Makes a named pipe or a device; devices need privileges.
    pub fn make_node(&self, name: &OsStr, kind: FileType, rdev: u32) -> Result<()> {
        let name = self.name(name, "make a node in")?;
        // The kernel's 32-bit number: minor 0..7, major 8..19, minor 8..19 above.
        let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00));
        let device = if kind == FileType::Fifo {
            0
        } else {
            sys::makedev(major, minor)
        };
        sys::mknodat(&self.fd, name, kind, Mode::RUSR | Mode::WUSR, device)
            .map_err(|e| Error::io("make the node", self.at(name), e))
    }

    /// `lstat`; `None` where there is nothing.
    pub fn stat(&self, name: &OsStr) -> Result<Option<Stat>> {
        let name = self.name(name, "look in")?;
        match sys::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(convert(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io("look at", self.at(name), e)),
        }
    }

    /// Of this folder.
    pub fn stat_self(&self) -> Result<Stat> {
        let stat = sys::fstat(&self.fd).map_err(|e| Error::io("look at", &self.path, e))?;
        Ok(convert(&stat))
    }

    /// The names in it, sorted by bytes.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let fail = |e: Errno| Error::io("list", &self.path, e);
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, name: &OsStr) -> Result<Vec<u8>> {
        let name = self.name(name, "read a link in")?;
        let target =
            sys::readlinkat(&self.fd, name, Vec::new()).map_err(|e| Error::io("read the link", self.at(name), e))?;
        Ok(target.into_bytes())
    }

    /// Sets owner and group of what has the name, not following a link.
    pub fn set_owner(&self, name: &OsStr, uid: u32, gid: u32) -> Result<()> {
        let name = self.name(name, "change an owner in")?;
        let (uid, gid) = (sys::Uid::from_raw(uid), sys::Gid::from_raw(gid));
        sys::chownat(&self.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::io("change the owner of", self.at(name), e))
    }

    /// Sets the times of what has the name, not following a link.
    pub fn set_mtime(&self, name: &OsStr, mtime: Time) -> Result<()> {
        let name = self.name(name, "set a time in")?;
        sys::utimensat(&self.fd, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::io("set the time of", self.at(name), e))
    }

    /// Sets the permissions of a node that is no link (of a pipe or device: through its name).
    pub fn set_node_mode(&self, name: &OsStr, mode: u32) -> Result<()> {
        let name = self.name(name, "set permissions in")?;
        sys::chmodat(&self.fd, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
            .map_err(|e| Error::io("set permissions of", self.at(name), e))
    }

    /// Sets an extended attribute of what has the name, not following a link. Needs /proc.
    pub fn set_xattr(&self, name: &OsStr, key: &[u8], value: &[u8]) -> Result<()> {
        let name = self.name(name, "set an attribute in")?;
        let fail = |e: Errno| Error::io("set an extended attribute of", self.at(name), e);
        let key = CString::new(key).map_err(|_| fail(Errno::INVAL))?;
        sys::lsetxattr(self.proc_path(name), &key, value, XattrFlags::empty()).map_err(fail)
    }

    /// All extended attributes of what has the name that this user may see, by key, not following a link. Needs /proc.
    pub fn xattrs(&self, name: &OsStr) -> Result<Xattrs> {
        let name = self.name(name, "read attributes in")?;
        let path = self.proc_path(name);
        read_xattrs(
            &self.at(name),
            |buffer| sys::llistxattr(&path, buffer),
            |key, buffer| sys::lgetxattr(&path, key, buffer),
        )
    }

    /// Of this folder.
    pub fn own_xattrs(&self) -> Result<Xattrs> {
        read_xattrs(
            &self.path,
            |buffer| sys::flistxattr(&self.fd, buffer),
            |key, buffer| sys::fgetxattr(&self.fd, key, buffer),
        )
    }

    /// This folder and a name in it, by way of the handle.
    fn proc_path(&self, name: &OsStr) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(name)
    }

    /// Owner, extended attributes, permissions and times of an open file or folder.
    pub fn handle(&self) -> Handle<'_, OwnedFd> {
        Handle {
            fd: &self.fd,
            path: &self.path,
        }
    }
}

/// Changes to an open file or folder; the path is for messages.
#[derive(Debug)]
pub struct Handle<'a, F: AsFd> {
    /// The file.
    pub fd: &'a F,
    /// What to call it.
    pub path: &'a Path,
}

impl<F: AsFd> Handle<'_, F> {
    /// User and group that it belongs to.
    pub fn owner(&self) -> Result<(u32, u32)> {
        let stat = sys::fstat(self.fd).map_err(|e| Error::io("look at", self.path, e))?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// Owner and group.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        sys::fchown(self.fd, Some(sys::Uid::from_raw(uid)), Some(sys::Gid::from_raw(gid)))
            .map_err(|e| Error::io("change the owner of", self.path, e))
    }

    /// Permission bits, 07777.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        sys::fchmod(self.fd, Mode::from_raw_mode(mode & 0o7777))
            .map_err(|e| Error::io("set permissions of", self.path, e))
    }

    /// Access and modification time.
    pub fn set_mtime(&self, mtime: Time) -> Result<()> {
        sys::futimens(self.fd, &timestamps(mtime)).map_err(|e| Error::io("set the time of", self.path, e))
    }

    /// One extended attribute.
    pub fn set_xattr(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let fail = |e: Errno| Error::io("set an extended attribute of", self.path, e);
        let key = CString::new(key).map_err(|_| fail(Errno::INVAL))?;
        sys::fsetxattr(self.fd, &key, value, XattrFlags::empty()).map_err(fail)
    }
}

/// Whether this is root, who may read and own everything (in its user namespace).
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes a tree of one's own removable: the owner gets all permissions on every folder, and what was made immutable or
/// append-only (`chattr +i`, `+a`; needs root) is so no longer.
pub fn make_removable(path: &Path) -> Result<()> {
    loosen(path);
    // The folder may not even be readable: this one chmod goes by name, and follows no link.
    if crate::sys::fs::is_dir(path) {
        sys::chmod(path, Mode::RWXU).map_err(|e| Error::io("set permissions of", path, e))?;
    }
    let folder = Dir::open(path)?;
    for name in folder.names()? {
        match folder.stat(&name)?.map(|stat| stat.kind) {
            Some(FileType::Directory) => make_removable(&path.join(&name))?,
            Some(FileType::RegularFile) => loosen(&path.join(&name)),
            _ => {}
        }
    }
    Ok(())
}

/// As far as possible; where it is not, the removal says what is in its way.
fn loosen(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = sys::open(path, flags, Mode::empty()) else {
        return;
    };
    let sealed = sys::IFlags::IMMUTABLE | sys::IFlags::APPEND;
    if let Ok(set) = sys::ioctl_getflags(&file)
        && set.intersects(sealed)
    {
        let _ = sys::ioctl_setflags(&file, set - sealed);
    }
}

fn timestamps(mtime: Time) -> sys::Timestamps {
    let time = sys::Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1.min(999_999_999).into(),
    };
    sys::Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn convert(stat: &sys::Stat) -> Stat {
    let (major, minor) = (sys::major(stat.st_rdev), sys::minor(stat.st_rdev));
    Stat {
        kind: FileType::from_raw_mode(stat.st_mode),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        rdev: (minor & 0xff) | (major << 8) | ((minor & 0xf_ff00) << 12),
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        #[allow(clippy::useless_conversion, reason = "u32 on some architectures")]
        nlink: stat.st_nlink.into(),
        inode: (stat.st_dev, stat.st_ino),
    }
}

/// Reads names, then values; what disappears in between or may not be read is left out.
fn read_xattrs(
    path: &Path,
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CString, &mut [u8]) -> rustix::io::Result<usize>,
) -> Result<Xattrs> {
    let mut buffer = vec![0; 1 << 16];
    let length = match list(&mut buffer) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read extended attributes of", path, e)),
    };
    let mut names: Vec<&[u8]> = buffer[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    let mut value = vec![0; 1 << 16];
    let mut xattrs = Vec::new();
    for name in names {
        let Ok(key) = CString::new(name) else { continue };
        match get(&key, &mut value) {
            Ok(length) => xattrs.push((name.into(), value[..length].into())),
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(Error::io("read an extended attribute of", path, e)),
        }
    }
    Ok(xattrs)
}
