//! Putting a root together from mounts, and bringing it where another one is.
//!
//! Invariant: nothing is seen before it is whole. Mounts are made below a [`Staging`] place, which propagates nothing
//! and disappears with all in it when dropped; only [`take_over`] moves the finished tree to where it is looked for.
//! What is mounted on is an opened folder, never a path that a link could lead elsewhere.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, fspick, mount_change, mount_remount, move_mount, open_tree,
};

use super::dir::{Dir, Handle};
use super::mount::{Refused, escape, with_log};
use crate::error::{Error, Result};

/// A tmpfs of its own, in which a tree of mounts is put together.
#[derive(Debug)]
pub struct Staging {
    place: PathBuf,
}

impl Staging {
    /// At `place`, a folder that is made where it is missing.
    pub fn new(place: &Path) -> Result<Self> {
        match std::fs::DirBuilder::new().mode(0o700).create(place) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && super::fs::is_dir(place) => {}
            Err(e) => return Err(Error::io("make the folder", place, e)),
        }
        let fail = |e: Errno| Error::io("mount a tmpfs on", place, e);
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
        fsconfig_set_string(&context, "source", "cfs-update-root").map_err(fail)?;
        fsconfig_set_string(&context, "mode", "0700").map_err(fail)?;
        fsconfig_create(&context).map_err(fail)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(fail)?;
        attach_path(&mount, place).map_err(fail)?;
        let staging = Self { place: place.into() };
        make_private(&mount).map_err(fail)?;
        Ok(staging)
    }

    /// A new folder in it.
    pub fn folder(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.place.join(name);
        let made = std::fs::DirBuilder::new().mode(mode).create(&path);
        made.map_err(|e| Error::io("make the folder", &path, e))?;
        Ok(path)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = rustix::fs::rmdir(&self.place);
    }
}

/// Shows the folder `source`, with what is mounted below it, at `target`, too; writable where its file system is.
pub fn bind(source: &Dir, target: &Dir) -> Result<()> {
    let fail = |e: Errno| Error::io("bind a folder to", target.path(), e);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(source.as_fd(), "", flags | OpenTreeFlags::AT_RECURSIVE).map_err(fail)?;
    attach(&tree, target).map_err(fail)?;
    make_private(&tree).map_err(fail)?;
    let now = rustix::fs::fstatvfs(&tree).map_err(fail)?.f_flag;
    if now.contains(StatVfsMountFlags::RDONLY) {
        let kept = kept_flags(now) | MountFlags::BIND;
        mount_remount(proc_path(&tree), kept, c"").map_err(fail)?;
    }
    Ok(())
}

/// The folders of an overlay that can be written to.
#[derive(Debug)]
pub struct Writable<'a> {
    /// Shown as the mount's source.
    pub source: &'a str,
    /// What is shown below: the target, or what it shows.
    pub lower: &'a Path,
    /// What is written.
    pub upper: &'a Path,
    /// An empty folder on the same file system.
    pub work: &'a Path,
}

/// Mounts over `target` an overlay that shows `lower` and keeps what is written in `upper`, which gets owner and
/// permissions of `lower` where it is empty.
pub fn overlay(writable: &Writable<'_>, target: &Dir) -> Result<()> {
    let upper = Dir::open(writable.upper)?;
    if upper.names()?.is_empty() {
        let like = Dir::open(writable.lower)?.stat_self()?;
        let handle: Handle<'_, OwnedFd> = upper.handle();
        handle.set_owner(like.uid, like.gid)?;
        handle.set_mode(like.mode)?;
    }
    let refuse = |e: Refused| {
        Error::io(
            "mount an overlay on",
            target.path(),
            std::io::Error::other(e.to_string()),
        )
    };
    let mount = overlay_context(writable).map_err(refuse)?;
    attach(&mount, target).map_err(|e| refuse(e.into()))
}

fn overlay_context(writable: &Writable<'_>) -> Result<OwnedFd, Refused> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = || {
        fsconfig_set_string(&context, "source", writable.source)?;
        fsconfig_set_string(
            &context,
            "lowerdir",
            std::ffi::OsStr::from_bytes(&escape(writable.lower)),
        )?;
        fsconfig_set_string(&context, "upperdir", writable.upper)?;
        fsconfig_set_string(&context, "workdir", writable.work)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    with_log(&context, configured())
}

/// Whether the file system that the folder is on may not be written to, or this mount of it.
pub fn is_read_only(folder: &Dir) -> Result<bool> {
    let state = rustix::fs::fstatvfs(folder).map_err(|e| Error::io("look at", folder.path(), e))?;
    Ok(state.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Makes the file system at the mount point `folder`, and this mount of it, writable; other options stay.
pub fn make_writable(folder: &Dir) -> Result<()> {
    let fail = |e: Errno| Error::io("remount for writing", folder.path(), e);
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(folder.as_fd(), "", flags).map_err(fail)?;
    let done = fsconfig_set_flag(&context, "rw").and_then(|()| fsconfig_reconfigure(&context));
    with_log(&context, done).map_err(|e| {
        Error::io(
            "remount for writing",
            folder.path(),
            std::io::Error::other(e.to_string()),
        )
    })?;
    if is_read_only(folder)? {
        let now = rustix::fs::fstatvfs(folder).map_err(fail)?.f_flag;
        mount_remount(proc_path(folder), kept_flags(now) | MountFlags::BIND, c"").map_err(fail)?;
    }
    Ok(())
}

/// Moves the tree of mounts at `from` to `target`, in place of what is mounted there. At no moment is nothing mounted
/// there, where the kernel can do that (6.5).
pub fn take_over(from: &Path, target: &Path) -> Result<()> {
    let fail = |e: Errno| Error::io("mount the new root on", target, e);
    let take_away = || rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    if move_mount(CWD, from, CWD, target, MoveMountFlags::MOVE_MOUNT_BENEATH).is_ok() {
        return take_away().map_err(|e| Error::io("unmount", target, e));
    }
    match take_away() {
        // Nothing is mounted there.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(e) => return Err(Error::io("unmount", target, e)),
    }
    move_mount(CWD, from, CWD, target, MoveMountFlags::empty()).map_err(fail)
}

/// Moves the tree of mounts at `from` to the folder `target`, over what is there.
pub fn put_over(from: &Path, target: &Path) -> Result<()> {
    move_mount(CWD, from, CWD, target, MoveMountFlags::empty())
        .map_err(|e| Error::io("mount the new root on", target, e))
}

/// Whether a file system, or another folder of one, is mounted exactly here.
pub fn is_mount_point(path: &Path) -> bool {
    let id = |path: &Path| {
        let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, rustix::fs::StatxFlags::MNT_ID).ok()?;
        Some(stat.stx_mnt_id)
    };
    match (id(path), path.parent().and_then(id)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

/// Major and minor number of the block device under `folder`, a mount point or a folder on it; `None` where there is
/// no single one.
pub fn block_device(folder: &Path) -> Option<(u32, u32)> {
    let device = std::fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if major != 0 {
        return Some((major, minor));
    }
    // btrfs has a number of its own for each subvolume; the mount table names the device.
    let device = std::fs::metadata(source(folder)?).ok()?.rdev();
    (device != 0).then(|| (rustix::fs::major(device), rustix::fs::minor(device)))
}

/// The source of what is mounted at `folder`, as the mount table has it; `None` where nothing is mounted exactly there.
pub fn source(folder: &Path) -> Option<String> {
    let table = super::fs::read_text(Path::new("/proc/self/mountinfo"), 1 << 24).ok()??;
    let here = |line: &&str| line.split(' ').nth(4).map(Path::new) == Some(folder);
    let (_, shown) = table.lines().rev().find(here)?.split_once(" - ")?;
    shown.split(' ').nth(1).map(str::to_owned)
}

fn attach(mount: &OwnedFd, target: &Dir) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), "", target.as_fd(), "", flags)
}

fn attach_path(mount: &OwnedFd, target: &Path) -> Result<(), Errno> {
    move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// What is mounted below it later is seen nowhere else.
fn make_private(mount: &OwnedFd) -> Result<(), Errno> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(proc_path(mount), flags)
}

fn proc_path(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// The flags of a mount without read-only, as remounting wants them.
fn kept_flags(now: StatVfsMountFlags) -> MountFlags {
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let set = pairs.into_iter().filter(|(shown, _)| now.contains(*shown));
    set.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}
