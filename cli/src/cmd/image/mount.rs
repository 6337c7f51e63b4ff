//! `image mount DIGEST|REF DIR`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cfs_core::ids::ObjectId;
use cfs_core::manifest::Document;
use cfs_core::store::{IMAGE_V1, Store};
use cfs_core::sys::mount::{self, MountOptions, Verity};
use cfs_core::{Error, Result as CoreResult};
use clap::ValueEnum;

use super::ls::find_name;
use super::source::Source;
use crate::cmd::Context;

/// Mount an image of the store, read-only
///
/// Needs root. `umount` takes it away.
#[derive(Debug, clap::Args)]
pub struct Mount {
    /// Digest of an image in the store, name of a container image in it, or an image file (then with --digest-store)
    #[arg(value_name = "DIGEST|REF|FILE")]
    image: String,
    /// Where to mount it
    dir: PathBuf,
    /// The digest that the kernel must measure on the image file (fs-verity); implies --verity require
    #[arg(long, value_name = "HEX")]
    digest: Option<ObjectId>,
    /// Whether every file's fs-verity digest is checked when it is opened
    #[arg(long, value_enum, default_value_t)]
    verity: VerityArg,
    /// Folder with the objects of an image file, as ab/cdef…; may be given several times
    #[arg(long, value_name = "DIR", alias = "basedir")]
    digest_store: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum VerityArg {
    /// Refuse to mount where it cannot be checked
    Require,
    /// Check it where kernel and file system can
    #[default]
    Try,
    /// Do not check it
    Off,
}

impl From<VerityArg> for Verity {
    fn from(arg: VerityArg) -> Self {
        match arg {
            VerityArg::Require => Self::Require,
            VerityArg::Try => Self::Try,
            VerityArg::Off => Self::Off,
        }
    }
}

impl Mount {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = mount::folder(&self.dir)?;
        let verity = if self.digest.is_some() {
            Verity::Require
        } else {
            self.verity.into()
        };
        let mut options = MountOptions {
            image: Path::new(""),
            objects: &[],
            digest: self.digest,
            verity,
            name: None,
        };
        let given: Vec<&Path> = self.digest_store.iter().map(PathBuf::as_path).collect();
        if let Source::File(path) = Source::of(&self.image)? {
            if given.is_empty() {
                return Err(without_objects(&path).into());
            }
            options = MountOptions {
                image: &path,
                objects: &given,
                ..options
            };
            return Ok(mount::mount_composefs(&options, &dir)?);
        }
        let store = context.store()?;
        let id = find(&store, &self.image)?;
        let (image, name, own) = (store.object_path(&id), id.to_hex(), store.objects());
        let objects: Vec<&Path> = std::iter::once(own.as_path()).chain(given).collect();
        // Required, an image of the store has to be the one that its name says.
        let digest = self.digest.or((verity == Verity::Require).then_some(id));
        options = MountOptions {
            image: &image,
            objects: &objects,
            digest,
            name: Some(&name),
            ..options
        };
        Ok(mount::mount_file(&store.open_object(&id)?, &options, &dir)?)
    }
}

/// The kernel would say "Invalid argument": overlayfs wants a folder, if only an empty one.
fn without_objects(image: &Path) -> Error {
    Error::Usage(format!(
        "{}: an image file does not say where its objects are; name their folder with --digest-store DIR, an empty one \
         where it has none",
        image.display()
    ))
}

/// The image of the store that is meant; only what `images/` lists may be mounted.
fn find(store: &Store, text: &str) -> CoreResult<ObjectId> {
    let refuse = |why: &str| Error::Image {
        image: text.into(),
        why: why.into(),
    };
    let id = match text.parse() {
        Ok(id) => id,
        Err(_) => {
            let name = find_name(store, text)?;
            let tags = store.tags()?;
            let digest = tags.get(&name).ok_or_else(|| refuse("is not in the store"))?;
            let stored = store
                .manifest(digest)?
                .ok_or_else(|| refuse("its manifest is not in the store"))?;
            let Document::Manifest(manifest) = Document::parse(stored.bytes, None, &name)? else {
                return Err(refuse("its manifest is none"));
            };
            let config = store.config(&manifest.config.digest)?;
            let image = config.and_then(|config| config.images.get(IMAGE_V1).copied());
            image.ok_or_else(|| refuse("has no image in the store; pull it again"))?
        }
    };
    match store.images()?.contains(&id) {
        true => Ok(id),
        false => Err(refuse(
            "is not among the images of the store; `cfs-update image ls` lists them",
        )),
    }
}
