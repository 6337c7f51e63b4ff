//! Mounting composefs images: EROFS from the image, overlayfs over it and the objects (format document, 5).
//!
//! Invariant: where a digest is demanded, the kernel has measured exactly the open file that is mounted, before it is
//! mounted; no path is looked up twice in between. What cannot be proven is refused, and nothing stays mounted then.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::loop_device::LoopDevice;
use super::{fs, verity};
use crate::error::{Error, Result};
use crate::ids::ObjectId;

/// The header's magic number and its flag for POSIX ACLs (format document, 3.7).
const MAGIC: u32 = 0xd078_629a;
const HAS_ACL: u32 = 1;

/// How much overlayfs checks the objects' fs-verity digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verity {
    /// The image must have fs-verity, and every object the digest that the image names.
    Require,
    /// As `Require` where the image itself has fs-verity and the kernel can; unchecked otherwise.
    #[default]
    Try,
    /// Unchecked.
    Off,
}

/// What to mount.
#[derive(Clone, Debug)]
pub struct MountOptions<'a> {
    /// The image file.
    pub image: &'a Path,
    /// Object stores, searched in order.
    pub objects: &'a [&'a Path],
    /// The digest that the kernel must measure on the image file; given, objects are checked, too, as with
    /// [`Verity::Require`].
    pub digest: Option<ObjectId>,
    /// Whether objects are checked.
    pub verity: Verity,
    /// Shown as the mount's source: `composefs:NAME`.
    pub name: Option<&'a str>,
}

/// Mounts an image on `target`, a folder, read-only. Needs root.
///
/// # Errors
/// [`Error::Trust`] where a digest is demanded and the file has another one or none; [`Error::Image`] for a file that
/// is no composefs image and for what the kernel refuses.
pub fn mount_composefs(options: &MountOptions<'_>, target: &Path) -> Result<()> {
    let never_wait = OFlags::NONBLOCK.bits().cast_signed();
    let image = File::options().read(true).custom_flags(never_wait).open(options.image);
    let image = image.map_err(|e| Error::io("open", options.image, e))?;
    mount_file(&image, options, target)
}

/// What to mount on where `target` is given: the folder that it is or, as mount(8) has it, leads to.
///
/// # Errors
/// [`Error::Usage`] where it is anything else, for which the kernel says "Invalid argument".
pub fn folder(target: &Path) -> Result<PathBuf> {
    match fs::leads_to_dir(target) {
        true => Ok(fs::resolved(target)),
        false => Err(Error::Usage(format!(
            "{} is no folder; an image is mounted on one that is there: make it, or name another",
            target.display()
        ))),
    }
}

/// As [`mount_composefs`], from a file that is open; its path in the options is for messages.
///
/// # Errors
/// As [`mount_composefs`].
pub fn mount_file(image: &File, options: &MountOptions<'_>, target: &Path) -> Result<()> {
    let refuse = |why: String| Error::Image {
        image: options.image.display().to_string(),
        why,
    };
    let has_acl = header(image, options.image)?;
    let measured = verity::measure(image)?;
    match (options.digest, options.verity) {
        (Some(expected), _) => prove(options.image, expected, measured)?,
        (None, Verity::Require) if measured.is_none() => return Err(unproven(options.image)),
        _ => {}
    }
    let check = match options.verity {
        _ if options.digest.is_some() => Verity::Require,
        Verity::Try if measured.is_none() => Verity::Off,
        other => other,
    };
    let erofs = mount_erofs(image, has_acl).map_err(|e| refuse(explain_erofs(&e)))?;
    let overlay = Overlay {
        source: options
            .name
            .map_or_else(|| "composefs".into(), |name| format!("composefs:{name}")),
        objects: options.objects,
        check,
    };
    overlay
        .mount(&erofs, target)
        .map_err(|e| refuse(explain_overlay(target, check, &e)))
}

/// The kernel would mount it all the same, and then fail each time a file is opened.
fn unproven(path: &Path) -> Error {
    Error::Trust {
        what: path.display().to_string(),
        why: "it has no fs-verity digest, so its files cannot be checked; it was not mounted. Use a file system with \
              fs-verity (ext4 -O verity, btrfs), or mount it with --verity try"
            .into(),
    }
}

/// Takes the mount on `target` away.
pub fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).map_err(|e| Error::io("unmount", target, e))
}

/// Whether the image has ACLs; refuses a file that is no composefs image.
fn header(image: &File, path: &Path) -> Result<bool> {
    let mut header = [0; 16];
    let mut reader = image;
    let read = reader.read_exact(&mut header);
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if read.is_err() || word(0) != MAGIC {
        return Err(Error::Image {
            image: path.display().to_string(),
            why: "is no composefs image".into(),
        });
    }
    Ok(word(8) & HAS_ACL != 0)
}

fn prove(path: &Path, expected: ObjectId, measured: Option<ObjectId>) -> Result<()> {
    let why = match measured {
        Some(found) if found == expected => return Ok(()),
        Some(found) => format!("its fs-verity digest is {found}, expected {expected}; it was not mounted"),
        None => format!(
            "it has no fs-verity digest, so nothing proves that it is {expected}; it was not mounted. Use a file \
             system with fs-verity (ext4 -O verity, btrfs), or mount it without --digest"
        ),
    };
    Err(Error::Trust {
        what: path.display().to_string(),
        why,
    })
}

/// The kernel's answer to an attempt to mount, and what it wrote into the mount's log.
#[derive(Debug)]
pub(super) struct Refused {
    errno: Errno,
    log: String,
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
pub(super) fn with_log<T>(context: &OwnedFd, result: Result<T, Errno>) -> Result<T, Refused> {
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

fn explain_erofs(refused: &Refused) -> String {
    let hint = match refused.errno {
        Errno::PERM | Errno::ACCESS => "; mounting needs root",
        Errno::NODEV => "; this kernel has no EROFS: load or build in its module erofs (CONFIG_EROFS_FS)",
        Errno::NOTBLK | Errno::NXIO | Errno::NOENT => {
            "; this kernel mounts EROFS from a block device only (CONFIG_EROFS_FS_BACKED_BY_FILE, Linux 6.12) and has no \
             loop device: load its module loop"
        }
        _ => "",
    };
    format!("cannot mount its EROFS part: {refused}{hint}")
}

fn explain_overlay(target: &Path, check: Verity, refused: &Refused) -> String {
    let hint = match (refused.errno, check) {
        (Errno::PERM | Errno::ACCESS, _) => "; mounting needs root",
        (Errno::NODEV, _) => "; this kernel has no overlayfs: load or build in its module overlay (CONFIG_OVERLAY_FS)",
        (Errno::INVAL, Verity::Require) => {
            "; overlayfs must know data-only layers (Linux 6.5) and verity=require (Linux 6.6): this kernel may be older"
        }
        _ => "",
    };
    format!("cannot mount it on {}: {refused}{hint}", target.display())
}

/// The EROFS part, mounted nowhere yet.
fn mount_erofs(image: &File, has_acl: bool) -> Result<OwnedFd, Refused> {
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

fn erofs_from(source: &Path, has_acl: bool) -> Result<OwnedFd, Refused> {
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

struct Overlay<'a> {
    source: String,
    objects: &'a [&'a Path],
    check: Verity,
}

impl Overlay<'_> {
    /// The newest interface that the kernel has: layers by descriptor (6.15), layers by path (6.8), one option string
    /// with data-only layers (6.5), one without (older).
    fn mount(&self, erofs: &OwnedFd, target: &Path) -> Result<(), Refused> {
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

    fn context(&self, lower: impl FnOnce(&OwnedFd) -> Result<(), Errno>) -> Result<OwnedFd, Refused> {
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

    fn mount_old(&self, lower: &Path, target: &Path) -> Result<(), Errno> {
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
pub(super) fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<(), Errno> {
    move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A mount at a private place, taken away when dropped; overlayfs keeps its own reference to it.
struct Attached(PathBuf);

impl Attached {
    fn new(mount: &OwnedFd) -> Result<Self, Errno> {
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

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = rustix::fs::rmdir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Versions, dump, writer};

    const CONTENT: &[u8] = b"more than sixty-four bytes of content, so that it is an object of its own......";

    /// A folder with an object, an image that names it, and a place to mount on.
    fn fixture(name: &str) -> (tempfile::TempDir, PathBuf, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join(name);
        let (objects, target, image) = (base.join("objects"), base.join("target"), base.join("image"));
        let id = verity::hash(crate::ids::Algorithm::Sha256, CONTENT);
        let object = objects.join(id.object_path());
        std::fs::create_dir_all(object.parent().unwrap()).unwrap();
        std::fs::create_dir(&target).unwrap();
        std::fs::write(&object, CONTENT).unwrap();
        let size = CONTENT.len();
        let text = format!(
            "/ 0 40755 2 0 0 0 5.7 - - -\n/big {size} 100640 1 7 8 0 6.5 {} - {id} user.k=v\n/small 2 104755 1 0 0 0 1.0 - hi -\n",
            id.object_path()
        );
        let bytes = writer::build(&dump::parse(text.as_bytes()).unwrap(), Versions::V1).unwrap();
        std::fs::write(&image, bytes).unwrap();
        (folder, objects, target, image)
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("not checked: mounting needs root");
        }
        root
    }

    fn check_content(target: &Path) {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::read(target.join("big")).unwrap(), CONTENT);
        assert_eq!(std::fs::read(target.join("small")).unwrap(), b"hi");
        let meta = std::fs::metadata(target.join("big")).unwrap();
        assert_eq!((meta.mode(), meta.uid(), meta.gid()), (0o100640, 7, 8));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (6, 5));
        assert_eq!(std::fs::metadata(target.join("small")).unwrap().mode(), 0o104755);
    }

    fn options<'a>(image: &'a Path, objects: &'a [&'a Path]) -> MountOptions<'a> {
        MountOptions {
            image,
            objects,
            digest: None,
            verity: Verity::Try,
            name: Some("test"),
        }
    }

    #[test]
    fn a_mounted_image_shows_the_objects_under_the_trees_metadata() {
        if !is_root() {
            return;
        }
        let (_keep, objects, target, image) = fixture("plain");
        mount_composefs(&options(&image, &[&objects]), &target).unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts
            .lines()
            .find(|l| l.contains(target.to_str().unwrap()))
            .unwrap()
            .to_owned();
        check_content(&target);
        let refused = std::fs::write(target.join("new"), b"").unwrap_err();
        unmount(&target).unwrap();
        assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        assert!(line.starts_with("composefs:test ") && line.contains("ro,"), "{line}");
    }

    #[test]
    fn older_interfaces_of_the_kernel_give_the_same_mount() {
        if !is_root() {
            return;
        }
        let (_keep, objects, target, image) = fixture("with,comma:and\\more");
        let file = File::open(&image).unwrap();
        let device = LoopDevice::attach(&file).unwrap();
        let erofs = erofs_from(device.path(), false).unwrap();
        let paths: &[&Path] = &[&objects];
        let overlay = Overlay {
            source: "composefs:old".into(),
            objects: paths,
            check: Verity::Off,
        };
        let place = Attached::new(&erofs).unwrap();
        let by_path = overlay
            .context(|c| fsconfig_set_string(c, "lowerdir+", place.path()))
            .unwrap();
        attach(&by_path, &target).unwrap();
        drop(by_path);
        check_content(&target);
        unmount(&target).unwrap();
        overlay.mount_old(place.path(), &target).unwrap();
        check_content(&target);
        unmount(&target).unwrap();
    }

    #[test]
    fn what_is_mounted_on_is_a_folder_or_leads_to_one() {
        let keep = tempfile::tempdir().unwrap();
        let at = |name: &str| keep.path().canonicalize().unwrap().join(name);
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::write(at("file"), b"").unwrap();
        for (link, to) in [("link", "folder"), ("to-file", "file"), ("dangling", "nothing")] {
            std::os::unix::fs::symlink(at(to), at(link)).unwrap();
        }
        for good in ["folder", "link"] {
            assert_eq!(folder(&at(good)).unwrap(), at("folder"), "{good}");
        }
        for bad in ["file", "to-file", "dangling", "nothing"] {
            let refusal = folder(&at(bad)).unwrap_err();
            assert_eq!(refusal.kind(), crate::Kind::Usage, "{refusal}");
            assert!(refusal.to_string().contains(at(bad).to_str().unwrap()), "{refusal}");
        }
    }

    #[test]
    fn a_pipe_in_the_place_of_an_image_is_none() {
        let (_keep, objects, target, image) = fixture("pipe");
        std::fs::remove_file(&image).unwrap();
        rustix::fs::mkfifoat(CWD, &image, rustix::fs::Mode::RUSR).unwrap();
        let refusal = mount_composefs(&options(&image, &[&objects]), &target).unwrap_err();
        assert!(refusal.to_string().contains("is no composefs image"), "{refusal}");
    }

    #[test]
    fn an_image_without_fs_verity_is_not_mounted_where_it_is_required() {
        let (_keep, objects, target, image) = fixture("unproven");
        let sealed = File::open(&image).unwrap();
        if verity::enable(&sealed, crate::ids::Algorithm::Sha256).unwrap() {
            println!("not checked: this file system has fs-verity");
            return;
        }
        let paths: &[&Path] = &[&objects];
        let required = MountOptions {
            verity: Verity::Require,
            ..options(&image, paths)
        };
        let refusal = mount_composefs(&required, &target).unwrap_err();
        assert_eq!(refusal.kind(), crate::Kind::Trust, "{refusal}");
    }

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let refused = |errno| Refused {
            errno,
            log: "overlay: Unknown parameter 'verity'".into(),
        };
        let erofs = |errno| explain_erofs(&refused(errno));
        assert!(erofs(Errno::NODEV).contains("no EROFS") && erofs(Errno::NODEV).contains("erofs"));
        assert!(erofs(Errno::NOENT).contains("no loop device") && erofs(Errno::NOENT).contains("Linux 6.12"));
        assert!(!erofs(Errno::IO).contains("this kernel"));
        let overlay = |errno, check| explain_overlay(Path::new("/t"), check, &refused(errno));
        assert!(overlay(Errno::NODEV, Verity::Off).contains("no overlayfs"));
        let old = overlay(Errno::INVAL, Verity::Require);
        for text in [
            "verity=require",
            "Linux 6.6",
            "data-only layers",
            "Unknown parameter 'verity'",
        ] {
            assert!(old.contains(text), "{old}");
        }
        assert!(!overlay(Errno::INVAL, Verity::Off).contains("Linux 6.6"));
    }

    #[test]
    fn what_the_kernel_says_of_a_mount_is_kept() {
        if !is_root() {
            return;
        }
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let refused = with_log(&context, fsconfig_set_string(&context, "no-such-option", "1")).unwrap_err();
        assert!(refused.to_string().contains("no-such-option"), "{refused}");
    }

    #[test]
    fn an_image_without_the_demanded_digest_is_not_mounted() {
        if !is_root() {
            return;
        }
        let (_keep, objects, target, image) = fixture("digest");
        let paths: &[&Path] = &[&objects];
        let demanded = MountOptions {
            digest: Some(verity::hash(crate::ids::Algorithm::Sha256, b"another")),
            ..options(&image, paths)
        };
        let refusal = mount_composefs(&demanded, &target).unwrap_err();
        assert_eq!(refusal.kind(), crate::Kind::Trust, "{refusal}");
        assert!(!target.join("big").exists());
        let no_image = mount_composefs(&options(&image.with_file_name("target"), paths), &target);
        assert!(no_image.unwrap_err().to_string().contains("is no composefs image"));
    }
}
