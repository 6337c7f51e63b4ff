//! What a pull would fetch, found out without fetching it.
//!
//! Invariant: nothing is written. Tables of contents are fetched and looked up as a pull does it, so the numbers are those
//! of the pull that follows, as long as nothing else changes the store in between.

use std::collections::HashSet;

use crate::error::Result;
use crate::ids::{DiffId, ManifestDigest};
use crate::monitor::Monitor;
use crate::pull;
use crate::registry::{self, Registry};
use crate::store::{Store, import};

/// How a layer would come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is here.
    Here,
    /// The parts that are not here would be fetched.
    Parts,
    /// It would be fetched as a whole.
    Whole,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Which.
    pub diff_id: DiffId,
    /// Its size in bytes, as it is in the registry.
    pub size: u64,
    /// Bytes that would be fetched.
    pub fetch: u64,
    /// How it would come.
    pub way: Way,
}

/// What would be fetched of an image.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The image, as it was asked for.
    pub reference: String,
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// Its layers, lowest first, each once.
    pub layers: Vec<Layer>,
}

impl Forecast {
    /// Finds out. `store`: where the image would go; `None` where there is none yet.
    ///
    /// # Errors
    /// What reading the store gives. A table that cannot be had or used means that the layer would be fetched as a whole.
    pub fn new(
        store: Option<&Store>,
        registry: &Registry,
        image: &registry::Image,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        for (diff_id, blob) in image.config.diff_ids.iter().zip(&image.blobs) {
            if !seen.insert(*diff_id) {
                continue;
            }
            let parts = || import::forecast(store?, diff_id, &pull::partial(registry, blob, monitor)?, monitor);
            let (way, fetch) = match store.is_some_and(|store| store.layer_is_published(diff_id)) {
                true => (Way::Here, 0),
                false => parts().map_or((Way::Whole, blob.size), |bytes| (Way::Parts, bytes)),
            };
            layers.push(Layer {
                diff_id: *diff_id,
                size: blob.size,
                fetch,
                way,
            });
        }
        Ok(Self {
            reference: image.reference.to_string(),
            manifest: image.digest,
            layers,
        })
    }

    /// Bytes that would be fetched.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.fetch).sum()
    }

    /// Bytes that would be fetched layer by layer.
    pub fn bytes_of_layers(&self) -> u64 {
        let missing = self.layers.iter().filter(|layer| layer.way != Way::Here);
        missing.map(|layer| layer.size).sum()
    }

    /// How many layers would come in this way.
    pub fn count(&self, way: Way) -> usize {
        self.layers.iter().filter(|layer| layer.way == way).count()
    }
}
