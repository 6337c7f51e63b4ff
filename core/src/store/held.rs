//! How much the layers that are here hold, and what they had in common with their blobs: for what is to come.
//!
//! Read from the heads of the layers' streams and from manifests: no object is looked at.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::ids::DiffId;
use crate::manifest::{Compression, Config, Document};
use crate::splitstream::Reader;
use crate::store::Store;
use crate::store::streams::layer_name;

/// Objects are in so many folders.
pub const OBJECT_FOLDERS: u64 = 256;
/// So many images are looked at for the ratio, at most.
const IMAGES: usize = 16;
/// A ratio of less than so many compressed bytes says nothing.
const TELLING: u64 = 1 << 20;

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// No more bytes than these of what is to come can be here: those of the tars of all layers but `own` and, after an
    /// interrupted run, of all objects.
    pub most: u64,
    /// The compressed layers whose blob's size is known.
    pub sample: Option<Sample>,
}

/// Layers as blobs and as what they became.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Compressed bytes.
    pub packed: u64,
    /// Bytes of the tars.
    pub tars: u64,
    /// Objects.
    pub objects: u64,
}

impl Store {
    /// Looks at all layers; `own` are those of the image that is to come, whose other layers have not the same files
    /// once more. What cannot be read is left out.
    ///
    /// # Errors
    /// What listing gives.
    pub fn held(&self, own: &HashSet<DiffId>) -> Result<Held> {
        let mut layers = HashMap::new();
        for diff_id in self.layers() {
            if let Some(head) = self.head(&diff_id) {
                layers.insert(diff_id, head);
            }
        }
        let others = layers.iter().filter(|(diff_id, _)| !own.contains(diff_id));
        let mut most = others.fold(0_u64, |sum, (_, (tar, _))| sum.saturating_add(*tar));
        if self.is_suspect() {
            most = most.saturating_add(self.object_bytes()?);
        }
        let sample = self.sample(&layers)?;
        Ok(Held {
            most,
            sample: (sample.packed >= TELLING).then_some(sample),
        })
    }

    /// Size of a layer's tar and how many objects it has; `None` for one that is not here, or cannot be read.
    fn head(&self, diff_id: &DiffId) -> Option<(u64, u64)> {
        let stream = self.stream(&layer_name(diff_id)).ok().flatten()?;
        let reader = Reader::new(self.open_object(&stream).ok()?, self.algorithm).ok()?;
        Some((reader.size(), reader.object_refs().len() as u64))
    }

    /// How many objects those of these layers have that are here.
    pub fn objects_of(&self, layers: &HashSet<DiffId>) -> u64 {
        let heads = layers.iter().filter_map(|diff_id| self.head(diff_id));
        heads.fold(0, |sum, (_, objects)| sum.saturating_add(objects))
    }

    /// How many folders new objects may yet make.
    ///
    /// # Errors
    /// What listing gives.
    pub fn folders_to_come(&self) -> Result<u64> {
        Ok(OBJECT_FOLDERS.saturating_sub(self.objects.folders()?))
    }

    /// Bytes of all objects: an interrupted run left some that no layer leads to.
    fn object_bytes(&self) -> Result<u64> {
        let mut bytes = 0_u64;
        for folder in 0..=255 {
            self.objects.list(folder, &mut |_, id| {
                let size = id.and_then(|id| self.objects.size(&id).ok().flatten());
                bytes = bytes.saturating_add(size.unwrap_or(0));
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    fn sample(&self, layers: &HashMap<DiffId, (u64, u64)>) -> Result<Sample> {
        let mut sample = Sample::default();
        let mut seen = HashSet::new();
        let mut manifests = HashSet::new();
        let tags = self.tags()?.into_values().filter(|digest| manifests.insert(*digest));
        for digest in tags.take(IMAGES) {
            let Ok(Some(stored)) = self.manifest(&digest) else {
                continue;
            };
            let Ok(Some(config)) = self.config(&stored.config) else {
                continue;
            };
            let Ok(Document::Manifest(manifest)) = Document::parse(stored.bytes, None, "") else {
                continue;
            };
            let Ok(config) = Config::parse(config.bytes, &manifest) else {
                continue;
            };
            for (diff_id, blob) in config.diff_ids.iter().zip(&manifest.layers) {
                let packed = blob.compression() != Compression::None && seen.insert(*diff_id);
                if let (true, Some((tar, objects))) = (packed, layers.get(diff_id)) {
                    sample.packed = sample.packed.saturating_add(blob.size);
                    sample.tars = sample.tars.saturating_add(*tar);
                    sample.objects = sample.objects.saturating_add(*objects);
                }
            }
        }
        Ok(sample)
    }
}
