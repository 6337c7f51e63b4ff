//! `containers-storage:NAME`: an image of podman on this machine.
//!
//! Its manifest is the one that podman keeps, its layers are the tars that podman can rebuild.

use std::io::BufReader;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::oci_dir::{broken, missing, wrong_size};
use super::{Body, Failure, Fetched, Transport, Wanted};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, DiffId, ManifestDigest};
use crate::manifest::Descriptor;
use crate::monitor::Monitor;
use crate::podman::{Image, Storage, Tar};
use crate::registry::PLAIN_LAYER;

const BUFFER: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Podman {
    reference: String,
    storage: Arc<Storage>,
    image: Image,
}

impl Podman {
    pub(super) fn open(reference: String, storage: Arc<Storage>, name: &str) -> Result<Self> {
        Ok(Self {
            image: storage.image(name)?,
            reference,
            storage,
        })
    }
}

/// There is none where it was looked for.
pub(super) fn no_storage(reference: &str, root: Option<PathBuf>) -> Error {
    let place = root.map_or("on this machine".into(), |root| format!("at {}", root.display()));
    Error::Network {
        url: reference.into(),
        why: format!("podman has no images {place}; write containers-storage:[ROOT]NAME for those that are elsewhere"),
    }
}

impl Transport for Podman {
    fn url(&self, wanted: Wanted) -> String {
        match wanted {
            Wanted::Top => self.reference.clone(),
            Wanted::Digest(digest) => format!("{} {digest}", self.reference),
        }
    }

    fn head(&self, _: &dyn Monitor) -> Result<Option<ManifestDigest>, Failure> {
        Ok(Some(super::digest_of(&self.image.manifest)))
    }

    fn manifest(&self, wanted: Wanted, _: &dyn Monitor) -> Result<Fetched, Failure> {
        let bytes = match wanted {
            Wanted::Top => self.image.manifest.clone(),
            Wanted::Digest(digest) => {
                let found = self.storage.manifest(&self.image, &digest)?;
                found.ok_or_else(|| missing(self.url(wanted)))?
            }
        };
        Ok(Fetched {
            bytes,
            content_type: None,
        })
    }

    fn blob(&self, digest: &BlobDigest, size: u64, wanted: Range<u64>, _: &dyn Monitor) -> Result<Body, Failure> {
        let (from, whole) = (wanted.start, false);
        if let Some(layer) = self.storage.layer(&DiffId::from_hash(*digest.as_bytes())) {
            let reader = Box::new(BufReader::with_capacity(BUFFER, Tar::new(layer.parts()?, from)));
            return Ok(Body { reader, from, whole });
        }
        let config = self.storage.config(&self.image.id, &digest.to_hex())?;
        let what = || format!("{} {digest}", self.reference);
        let config = config.ok_or_else(|| missing(what()))?;
        if config.len() as u64 != size {
            return Err(wrong_size(what(), size, config.len() as u64));
        }
        let reader = Box::new(std::io::Cursor::new(config));
        Ok(Body { reader, from: 0, whole })
    }

    fn plain(&self, _: &Descriptor, diff_id: &DiffId) -> Result<Option<Descriptor>> {
        let none = || {
            let why = format!(
                "podman cannot rebuild the layer {diff_id} (it was pulled in part, or is not there): copy the image out \
                 with `podman save --format oci-archive -o FILE`, or follow it in its registry"
            );
            broken(self.reference.clone(), why)
        };
        let layer = self.storage.layer(diff_id).ok_or_else(none)?;
        let size = match layer.size() {
            Some(size) => size,
            None => std::io::copy(&mut Tar::new(layer.parts()?, 0), &mut std::io::sink())
                .map_err(|e| Error::from_read(layer.name(), e))?,
        };
        Ok(Some(Descriptor {
            media_type: PLAIN_LAYER.into(),
            digest: BlobDigest::from_hash(*diff_id.as_bytes()),
            size,
            annotations: std::collections::BTreeMap::new(),
        }))
    }
}
