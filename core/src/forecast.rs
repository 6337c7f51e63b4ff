//! What a pull would fetch and write, found out without doing it.
//!
//! Invariant: nothing is written. Layers are looked for, and tables of contents fetched and looked up, by the code of
//! the pull that follows ([`crate::pull::Plan`]), so the numbers are its numbers, as long as nothing else changes the
//! store in between.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::error::Result;
use crate::ids::{DiffId, ManifestDigest};
use crate::monitor::Monitor;
use crate::preflight::{Figures, Tally};
use crate::pull::{Plan, Purpose};
use crate::registry::{self, Registry};
use crate::store::Store;

/// How a layer would come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is here.
    Here,
    /// podman has it on this machine.
    Podman,
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
    /// Bytes that would be fetched, its table of contents with them, although it may be of no use, without what an
    /// interrupted run kept of it.
    pub fetch: u64,
    /// How it would come.
    pub way: Way,
}

/// What would be fetched of one image.
#[derive(Clone, Debug)]
pub struct Part {
    /// The image, as it was asked for.
    pub reference: String,
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// Its layers, lowest first, each once.
    pub layers: Vec<Layer>,
}

/// What would be fetched, and written where.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The image that was asked for.
    pub image: Part,
    /// Images that it is expected to bind, since the present version does.
    pub bound: Vec<Part>,
    /// On the file system of the store.
    pub store: Figures,
    /// On `$BOOT`, as far as it can be expected; `None` where nothing is written there.
    pub boot: Option<Figures>,
}

impl Forecast {
    /// Finds out. `store`: where the image would go, at `path`; `None` where there is none yet. `bound`: what comes
    /// along.
    ///
    /// # Errors
    /// What reading the store gives. A table that cannot be had or used means that the layer would be fetched as a
    /// whole.
    pub fn new(
        store: Option<&Store>,
        path: &Path,
        image: (&Registry, &registry::Image),
        bound: &[(Registry, registry::Image)],
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let mut tally = Tally::new(store, path)?;
        let mut seen = HashSet::new();
        let mut look = |registry: &Registry, image: &registry::Image| {
            let plan = Plan::new(store, registry, image, Purpose::Look, 0, monitor);
            plan.count(&mut tally);
            part(&plan, image, &mut seen)
        };
        Ok(Self {
            image: look(image.0, image.1),
            bound: bound.iter().map(|(registry, image)| look(registry, image)).collect(),
            store: tally.figures()?,
            boot: None,
        })
    }

    /// Bytes that would be fetched.
    pub fn bytes(&self) -> u64 {
        self.parts().map(Part::bytes).sum()
    }

    /// Bytes that would be fetched layer by layer.
    pub fn bytes_of_layers(&self) -> u64 {
        self.parts().map(Part::bytes_of_layers).sum()
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.image).chain(&self.bound)
    }
}

impl Part {
    /// Bytes that would be fetched.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.fetch).sum()
    }

    /// Bytes that would be fetched layer by layer.
    pub fn bytes_of_layers(&self) -> u64 {
        let fetched = |layer: &&Layer| matches!(layer.way, Way::Parts | Way::Whole);
        self.layers.iter().filter(fetched).map(|layer| layer.size).sum()
    }
}

/// `seen`: layers that came with an image before.
fn part(plan: &Plan<'_>, image: &registry::Image, seen: &mut HashSet<DiffId>) -> Part {
    let fetched = plan.fetch.layers().map(|layer| {
        let comes = match layer.parts {
            true => (Way::Parts, layer.fetch),
            false => (Way::Whole, layer.fetch.saturating_sub(layer.kept)),
        };
        (layer.diff_id, comes)
    });
    let fetched: HashMap<_, _> = fetched.collect();
    let mut own = HashSet::new();
    let mut layers = Vec::new();
    for (diff_id, blob) in image.config.diff_ids.iter().zip(&image.blobs) {
        if !own.insert(*diff_id) {
            continue;
        }
        let (way, fetch) = match fetched.get(diff_id) {
            _ if !seen.insert(*diff_id) => (Way::Here, 0),
            Some(comes) => *comes,
            None if plan.podman.iter().any(|(id, _)| id == diff_id) => (Way::Podman, 0),
            None => (Way::Here, 0),
        };
        layers.push(Layer {
            diff_id: *diff_id,
            size: blob.size,
            fetch,
            way,
        });
    }
    Part {
        reference: image.reference.to_string(),
        manifest: image.digest,
        layers,
    }
}
