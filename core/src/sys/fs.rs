//! Durable changes to a file system.
//!
//! Every change that a promise rests on goes through [`Fs`], so that a test can count the operations and cut the power
//! after each one ([`crate::testing::CrashFs`]). Reading needs no seam and uses the functions below it.
//!
//! Invariant: a file appears under its final name only complete and synced ([`replace`]); the name itself is durable
//! when [`Fs::sync_dir`] of its folder has returned.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sys::memory::prefer_huge_pages;

/// The changing operations, one system call's worth each. Errors name the path.
pub trait Fs: Debug + Send + Sync {
    /// Makes one folder with exactly these permissions (whatever the umask); an existing folder is success.
    fn create_dir(&self, path: &Path, mode: u32) -> Result<()>;
    /// Writes a new file with exactly these permissions; fails where `path` exists. Not durable before
    /// [`Fs::sync_file`]. Returns the bytes written.
    fn create(&self, path: &Path, mode: u32, content: &mut dyn Read) -> Result<u64>;
    /// Makes a symbolic link; fails where `path` exists.
    fn symlink(&self, target: &Path, path: &Path) -> Result<()>;
    /// Renames over whatever is at `to`.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file or symbolic link; a missing one is success.
    fn remove_file(&self, path: &Path) -> Result<()>;
    /// Removes a folder with all in it, never following a link; a missing one is success.
    fn remove_dir_all(&self, path: &Path) -> Result<()>;
    /// Makes a file's content durable.
    fn sync_file(&self, path: &Path) -> Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Makes everything on the file system of `path` durable: `syncfs`, with write errors reported.
    fn sync_all(&self, path: &Path) -> Result<()>;
    /// Swaps two names in one step.
    fn exchange(&self, a: &Path, b: &Path) -> Result<()> {
        exchange(a, b)
    }
}

/// Bytes written at a time.
const WRITE: usize = 256 << 10;

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl Fs for RealFs {
    fn create_dir(&self, path: &Path, mode: u32) -> Result<()> {
        let made = std::fs::DirBuilder::new().mode(mode).create(path);
        match made {
            Ok(()) => set_mode(path, mode),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_dir(path) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let why = "a file or a link is in its place; move it away";
                Err(Error::io("make the folder", path, io::Error::new(e.kind(), why)))
            }
            Err(e) => Err(Error::io("make the folder", path, e)),
        }
    }

    fn create(&self, path: &Path, mode: u32, content: &mut dyn Read) -> Result<u64> {
        let fail = |e| Error::io("write", path, e);
        let file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(fail)?;
        let mut file = io::BufWriter::with_capacity(WRITE, file);
        let written = io::copy(content, &mut file).map_err(fail)?;
        file.flush().map_err(fail)?;
        set_mode(path, mode)?;
        Ok(written)
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<()> {
        rustix::fs::symlink(target, path).map_err(|e| Error::io("link", path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        rustix::fs::rename(from, to).map_err(|e| Error::io("rename to", to, e))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io("remove", path, e)),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
            _ => Ok(()),
        }
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        let fail = |e| Error::io("sync", path, e);
        std::fs::File::open(path).map_err(fail)?.sync_all().map_err(fail)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.sync_file(path)
    }

    fn sync_all(&self, path: &Path) -> Result<()> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("sync", path, e))?;
        rustix::fs::syncfs(&file).map_err(|e| Error::io("sync the file system of", path, e))
    }
}

/// Permissions exactly as asked, whatever the umask. FAT has none: what cannot be set there is left.
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let fail = |e| Error::io("set permissions of", path, e);
    let have = std::fs::symlink_metadata(path).map_err(fail)?.mode() & 0o7777;
    if have == mode & 0o7777 {
        return Ok(());
    }
    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)) {
        Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(()),
        other => other.map_err(fail),
    }
}

/// Makes `path` and all missing parents.
pub fn create_dir_all(fs: &dyn Fs, path: &Path, mode: u32) -> Result<()> {
    if is_dir(path) {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir_all(fs, parent, mode)?;
    }
    fs.create_dir(path, mode)
}

/// Puts `content` at `path`, complete and durable or not at all: temporary name, sync, rename, sync of file and folder.
///
/// The file once more after the rename: FAT keeps size and place in the folder, its new name begins with a size of 0,
/// and syncing the folder does not bring the file's own size there. Without it a power cut leaves an empty file.
///
/// The temporary name starts with `.#`, which no boot loader and no reader of ours takes for an entry; a leftover of
/// an interrupted run is overwritten.
pub fn replace(fs: &dyn Fs, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let temporary = temporary(path)?;
    fs.remove_file(&temporary)?;
    fs.create(&temporary, mode, &mut &*content)?;
    fs.sync_file(&temporary)?;
    fs.rename(&temporary, path)?;
    fs.sync_file(path)?;
    fs.sync_dir(parent(path)?)
}

/// Like [`replace`], but leaves it to the system when it reaches the disk: for what a tool makes, which can be made
/// again. Whoever reads `path` sees the old content or the whole new one; what a power cut leaves is not promised.
pub fn replace_unsynced(fs: &dyn Fs, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let temporary = temporary(path)?;
    fs.remove_file(&temporary)?;
    fs.create(&temporary, mode, &mut &*content)?;
    fs.rename(&temporary, path)
}

/// Like [`replace_unsynced`], of what `produce` gives to its sink; nothing is left of what does not come to its end. A
/// device or pipe at `path` is written to, not replaced.
pub fn replace_by_pieces(
    path: &Path,
    mode: u32,
    produce: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let fail = |e| Error::io("write", path, e);
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = std::fs::File::options().write(true).open(path).map_err(fail)?;
        return produce(&mut |piece| file.write_all(piece).map_err(fail));
    }
    let temporary = temporary(path)?;
    RealFs.remove_file(&temporary)?;
    let mut file = new_file(&temporary, mode)?;
    let done = produce(&mut |piece| file.write_all(piece).map_err(fail))
        .and_then(|()| set_mode(&temporary, mode))
        .and_then(|()| RealFs.rename(&temporary, path));
    if done.is_err() {
        // What went wrong first is what to tell.
        let _ = RealFs.remove_file(&temporary);
    }
    done
}

/// What a file is called while it is written.
fn temporary(path: &Path) -> Result<PathBuf> {
    let mut name = OsString::from(".#");
    name.push(path.file_name().unwrap_or_default());
    Ok(parent(path)?.join(name))
}

/// A new file in `folder` that has no name and vanishes when it is closed.
pub fn unnamed(folder: &Path) -> Result<std::fs::File> {
    let fail = |e: io::Error| Error::io("make a file in", folder, e);
    let flags = OFlags::TMPFILE.bits().cast_signed();
    let mut options = std::fs::File::options();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(flags).open(folder) {
        Ok(file) => Ok(file),
        Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            let path = folder.join(format!(".#cfs-update-{}", std::process::id()));
            let file = options.create_new(true).open(&path).map_err(fail)?;
            std::fs::remove_file(&path).map_err(fail)?;
            Ok(file)
        }
        Err(e) => Err(fail(e)),
    }
}

/// A new file for writing; fails where `path` exists.
pub fn new_file(path: &Path, mode: u32) -> Result<std::fs::File> {
    let mut options = std::fs::File::options();
    options.write(true).create_new(true).mode(mode);
    options.open(path).map_err(|e| Error::io("write", path, e))
}

/// A file for reading and writing in place: a new one, or the regular one that is there. Never through a link.
pub fn open_to_change(path: &Path, new: bool) -> Result<std::fs::File> {
    let mut options = std::fs::File::options();
    options.read(true).write(true).create_new(new).mode(0o600);
    open_regular(&mut options, OFlags::NOFOLLOW, path)
}

/// Whether this user may run `path`: a file, links followed, that can be executed.
///
/// # Errors
/// A path that cannot be looked at.
pub fn is_executable(path: &Path) -> Result<bool> {
    let found = std::fs::metadata(path).map_err(|e| Error::io("look at", path, e))?;
    Ok(found.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}

/// The folder that `path` is in.
pub fn parent(path: &Path) -> Result<&Path> {
    path.parent().filter(|p| !p.as_os_str().is_empty()).ok_or_else(|| {
        Error::Usage(format!(
            "{} has no folder above it; give an absolute path",
            path.display()
        ))
    })
}

/// A whole small file; `None` where there is none. Fails on more than `limit` bytes; never waits, as a pipe in its
/// place would have it.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let fail = |e| Error::io("read", path, e);
    let never_wait = OFlags::NONBLOCK.bits().cast_signed();
    let opened = std::fs::File::options().read(true).custom_flags(never_wait).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    let size = file.metadata().map_or(0, |metadata| metadata.len()).min(limit);
    // One byte more, so that the end is found without growing.
    let mut content = Vec::with_capacity(usize::try_from(size).map_or(0, |size| size + 1));
    prefer_huge_pages(&content);
    file.take(limit + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > limit {
        return Err(fail(io::Error::other(format!("larger than {limit} bytes"))));
    }
    Ok(Some(content))
}

/// A whole small UTF-8 file; `None` where there is none.
pub fn read_text(path: &Path, limit: u64) -> Result<Option<String>> {
    let Some(content) = read(path, limit)? else {
        return Ok(None);
    };
    String::from_utf8(content)
        .map(Some)
        .map_err(|_| Error::io("read", path, io::Error::other("not UTF-8")))
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<std::fs::File> {
    std::fs::File::open(path).map_err(|e| Error::io("open", path, e))
}

/// Opens a regular file for reading; never waits, as a pipe in its place would have it.
pub fn open_file(path: &Path) -> Result<std::fs::File> {
    open_regular(std::fs::File::options().read(true), OFlags::empty(), path)
}

/// As [`open_file`]; a link in the file's place is not followed.
pub fn open_own_file(path: &Path) -> Result<std::fs::File> {
    open_regular(std::fs::File::options().read(true), OFlags::NOFOLLOW, path)
}

fn open_regular(options: &mut std::fs::OpenOptions, links: OFlags, path: &Path) -> Result<std::fs::File> {
    let fail = |e| Error::io("open", path, e);
    let never_wait = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = options
        .custom_flags((links | never_wait).bits().cast_signed())
        .open(path);
    let is_link = |e: &io::Error| !links.is_empty() && e.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    let file = opened.map_err(|e| match is_link(&e) {
        true => fail(io::Error::other(
            "is a symbolic link, which is not followed here; remove it",
        )),
        false => fail(e),
    })?;
    match file.metadata().map_err(fail)?.is_file() {
        true => Ok(file),
        false => Err(fail(io::Error::other("is no file"))),
    }
}

/// The names in a folder, sorted by bytes; empty where there is none.
pub fn names(path: &Path) -> Result<Vec<OsString>> {
    let fail = |e| Error::io("list", path, e);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(fail)?.file_name());
    }
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}

/// Where a symbolic link points; `None` where there is nothing.
pub fn read_link(path: &Path) -> Result<Option<PathBuf>> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read the link", path, e)),
    }
}

/// A folder, not a link to one.
pub fn is_dir(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// A folder, or a link to one.
pub fn leads_to_dir(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_dir())
}

/// The path without links in it, absolute; as it is where there is no such file.
pub fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

/// Anything at all, a dangling link, too.
pub fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// What `lstat` says.
pub fn metadata(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::symlink_metadata(path).map_err(|e| Error::io("look at", path, e))
}

/// Free bytes and free inodes of the file system of `path`, for an unprivileged user.
pub fn free(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).map_err(|e| Error::io("ask for free space on", path, e))?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_favail))
}

/// Swaps two names in one step; not possible on FAT with older kernels.
pub fn exchange(a: &Path, b: &Path) -> Result<()> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(|e| Error::io("exchange", a, e))
}

/// The UUID of the file system that `path` is on, as udev names it; `None` where it has no device of its own
/// (overlay, tmpfs, network) or udev is not there.
pub fn uuid_of(path: &Path) -> Result<Option<String>> {
    let device = std::fs::metadata(path)
        .map_err(|e| Error::io("look at", path, e))?
        .dev();
    let folder = Path::new("/dev/disk/by-uuid");
    for name in names(folder)? {
        let same = std::fs::metadata(folder.join(&name)).is_ok_and(|m| m.rdev() == device);
        if let (true, Some(uuid)) = (same, name.to_str()) {
            return Ok(Some(uuid.to_owned()));
        }
    }
    Ok(None)
}
