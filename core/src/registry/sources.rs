//! The places that have an image, by its transport.

use std::sync::Arc;
use std::time::Duration;

use super::archive::Archive;
use super::docker_archive::DockerArchive;
use super::files::Files;
use super::oci_dir::OciDir;
use super::{Options, Transport, https, podman};
use crate::error::{Error, Result};
use crate::podman::{self as storage, Storage};
use crate::reference::Reference;

/// How long podman is waited for, where the image is to be had from it alone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mirrors first, the registry itself last; never empty.
pub(super) type Sources = Vec<Box<dyn Transport>>;

/// The places, and podman's storage where the image is in it. Makes no request.
pub(super) fn open(reference: &Reference, options: &Options) -> Result<(Sources, Option<Arc<Storage>>)> {
    let one = |transport: Box<dyn Transport>| Ok((vec![transport], None));
    match reference {
        Reference::Registry(name) => Ok((https::sources(name, options)?, None)),
        Reference::Layout(layout) => {
            let files = Files::Folder(layout.path().to_path_buf());
            one(Box::new(OciDir::open(layout, files)?))
        }
        Reference::OciArchive(layout) => {
            let files = Files::Archive(Archive::open(layout.path(), &options.temporary)?);
            one(Box::new(OciDir::open(layout, files)?))
        }
        Reference::DockerArchive(layout) => {
            let archive = Archive::open(layout.path(), &options.temporary)?;
            one(Box::new(DockerArchive::open(layout, archive)?))
        }
        Reference::ContainersStorage(text) => {
            let (storage, image) = storage(reference, text, options)?;
            let transport = podman::Podman::open(reference.to_string(), storage.clone(), image)?;
            Ok((vec![Box::new(transport)], Some(storage)))
        }
    }
}

fn storage<'t>(reference: &Reference, text: &'t str, options: &Options) -> Result<(Arc<Storage>, &'t str)> {
    let name = |why| Error::Reference {
        reference: reference.to_string(),
        why,
    };
    let (place, image) = storage::split(text).map_err(name)?;
    let place = match place {
        Some(place) => Some(place),
        None => options.podman.place()?,
    };
    let storage = match &place {
        Some(place) => Storage::open(place, PATIENCE)?,
        None => None,
    };
    let root = place.map(|place| place.root);
    let storage = storage.ok_or_else(|| podman::no_storage(&reference.to_string(), root))?;
    Ok((Arc::new(storage), image))
}
