//! Mounting composefs images: what is demanded of one and proven before it is mounted ([`layers`] does that), and what
//! a refusal of the kernel means.
//!
//! Invariant: where a digest is demanded, the kernel has measured exactly the open file that is mounted, before it is
//! mounted; no path is looked up twice in between. What cannot be proven is refused, and nothing stays mounted then.

mod layers;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{fs, verity};
use crate::error::{Error, Result};
use crate::ids::ObjectId;

use layers::{Overlay, mount_erofs};
pub(super) use layers::{Refused, escape, with_log};

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

#[cfg(test)]
mod tests;
