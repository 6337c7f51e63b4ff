//! The image file: found through `images/` only, and proven before it is mounted.
//!
//! Invariant: what is mounted is the open file whose digest was compared, never a path that is looked up again. A name
//! in `images/` says that a tool made the image here (a hostile EROFS never gets to the kernel); the digest says which
//! it is.

use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use cfs_core::Error;
use cfs_core::boot::cmdline::DigestArgument;
use cfs_core::ids::ObjectId;
use cfs_core::sys::dir::Dir;
use cfs_core::sys::verity::{self, Unmeasured};

use crate::refusal::Refusal;

/// An image that is there, open.
#[derive(Debug)]
pub struct Image {
    argument: DigestArgument,
    file: File,
    path: PathBuf,
}

/// What an image's digest rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The kernel measured it and checks every read, of objects too.
    Verity,
    /// It was computed now, since the command line allows that (`?`); later changes go unnoticed.
    Computed,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verity => "fs-verity",
            Self::Computed => "without fs-verity",
        })
    }
}

/// Opens the image of an argument; `None` where `images/` has no such name.
pub fn find(sysroot: &Dir, argument: &DigestArgument) -> Result<Option<Image>, Refusal> {
    let id = argument.id;
    let name = id.to_hex();
    let repository = sysroot
        .open_dir("composefs".as_ref())
        .map_err(|e| no_repository(sysroot, &e))?;
    let images = repository
        .open_dir("images".as_ref())
        .map_err(|e| no_repository(sysroot, &e))?;
    if images.stat(name.as_ref())?.is_none() {
        return Ok(None);
    }
    let object = format!("objects/{}", id.object_path());
    let link = images.path().join(&name);
    let wanted = format!("../{object}");
    let refuse = |found: String| {
        Refusal::new(
            format!("{} is not what makes an image", link.display()),
            format!("a link to {wanted}"),
            found,
        )
        .by_trust()
        .remedy("boot another deployment and deploy this image again")
    };
    let target = images
        .read_link(name.as_ref())
        .map_err(|_| refuse("no symbolic link".into()))?;
    if target != wanted.as_bytes() {
        return Err(refuse(format!("a link to {}", String::from_utf8_lossy(&target))));
    }
    let hex = id.to_hex();
    let path = repository.path().join(&object);
    let opened = repository
        .walk(&Path::new("objects").join(&hex[..2]))
        .and_then(|folder| folder.open_file(hex[2..].as_ref()));
    let file = opened.map_err(|e| {
        Refusal::new(
            format!("image {id} cannot be opened"),
            format!("the object {}", path.display()),
            e.to_string(),
        )
        .remedy("boot another deployment and deploy this image again; `cfs-update fsck` says what else is missing")
    })?;
    Ok(Some(Image {
        argument: *argument,
        file,
        path,
    }))
}

impl Image {
    /// The digest that names it, and its deployment.
    pub fn id(&self) -> ObjectId {
        self.argument.id
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compares its digest with the argument's. Computes one only where the argument has a `?` and the kernel has none.
    pub fn prove(&self) -> Result<Proof, Refusal> {
        let id = self.id();
        let differs = |found: ObjectId, how: &str| {
            Refusal::new(
                format!("image {} is not the one that was asked for", self.path.display()),
                expected(&id),
                format!("{how} {found}"),
            )
            .by_trust()
            .remedy("somebody changed it, or the disk is failing: boot another deployment and deploy this image again")
        };
        match verity::measure(&self.file)? {
            Some(found) if found == id => return Ok(Proof::Verity),
            Some(found) => return Err(differs(found, "fs-verity digest")),
            None => {}
        }
        if !self.argument.optional {
            return Err(self.unproven(verity::why_unmeasured(&self.file)));
        }
        let computed = self.compute()?;
        if computed != id {
            return Err(differs(computed, "computed digest"));
        }
        Ok(Proof::Computed)
    }

    fn unproven(&self, why: Unmeasured) -> Refusal {
        let remedy = match why {
            Unmeasured::NotEnabled => {
                "the file was replaced, or copied from elsewhere: boot another deployment and deploy this image again"
            }
            Unmeasured::FileSystem => {
                "put the repository on a file system with fs-verity (ext4 made with -O verity, or btrfs); to boot without that \
                 protection, write composefs.digest=?... in the boot entry"
            }
            Unmeasured::Kernel => {
                "boot a kernel with CONFIG_FS_VERITY; to boot without that protection, write composefs.digest=?... in the \
                 boot entry"
            }
        };
        Refusal::new(
            format!(
                "nothing proves that {} is the image that was asked for",
                self.path.display()
            ),
            expected(&self.id()),
            format!("no fs-verity digest: {why}"),
        )
        .by_trust()
        .remedy(remedy)
    }

    fn compute(&self) -> Result<ObjectId, Refusal> {
        let mut file = &self.file;
        let (digest, _) = verity::hash_reader(self.id().algorithm(), &mut file)
            .and_then(|digest| file.seek(SeekFrom::Start(0)).map(|_| digest))
            .map_err(|e| Error::io("read", &self.path, e))?;
        Ok(digest)
    }
}

fn expected(id: &ObjectId) -> String {
    format!("fs-verity digest {id} (composefs.digest= of the kernel command line)")
}

/// Nothing is mounted at SYSROOT, or something else.
pub fn no_sysroot(path: &Path, error: &Error) -> Refusal {
    Refusal::new(
        "the physical root is not there",
        format!("the file system that root= names, mounted at {}", path.display()),
        error.to_string(),
    )
    .remedy("check root= of the boot entry, and that the initramfs has the driver of its disk and file system")
}

fn no_repository(sysroot: &Dir, error: &Error) -> Refusal {
    Refusal::new(
        format!("{} has no composefs repository", sysroot.path().display()),
        "the folder composefs with images and objects in it",
        error.to_string(),
    )
    .remedy("check that root= of the boot entry names the file system that this installation is on")
}
