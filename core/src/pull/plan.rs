//! Where each layer of an image comes from: this store, podman's storage on this machine, or the registry, as a whole
//! or in parts.
//!
//! Invariant: looking changes nothing, and what is carried out is what was looked at, so that a forecast and the import
//! that follows cannot disagree.

use std::collections::HashSet;
use std::sync::Arc;

use crate::chunked::Place;
use crate::error::{Error, Kind, Result};
use crate::ids::DiffId;
use crate::manifest::{Compression, Descriptor};
use crate::monitor::{Event, Monitor};
use crate::podman;
use crate::preflight::Tally;
use crate::reference::Reference;
use crate::registry::{self, Registry};
use crate::store::{Origin, Store, adopt, import};

/// What an import of one image would do, found out without doing it.
pub(crate) struct Plan<'a> {
    registry: &'a Registry,
    image: &'a registry::Image,
    monitor: &'a dyn Monitor,
    /// Layers of the image, each once.
    pub(crate) layers: usize,
    /// Those that podman has.
    pub(crate) podman: Vec<(DiffId, podman::Layer)>,
    /// Those that are fetched.
    pub(crate) fetch: import::Plan<'a>,
}

/// How far a plan may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Nothing may be written.
    Look,
    /// What is found out may be kept for the import, and layers of an interrupted run be taken over.
    Import,
}

impl<'a> Plan<'a> {
    /// Looks which layers are here or with podman, and reads the tables of contents of the others.
    pub(crate) fn new(
        store: Option<&Store>,
        registry: &'a Registry,
        image: &'a registry::Image,
        purpose: Purpose,
        threads: usize,
        monitor: &'a dyn Monitor,
    ) -> Self {
        let mut seen = HashSet::new();
        let mut sources = Vec::new();
        let mut podman = Vec::new();
        let here = |diff_id: &DiffId| match purpose {
            Purpose::Look => store.is_some_and(|store| store.layer_is_published(diff_id)),
            Purpose::Import => store.is_some_and(|store| store.has_layer(diff_id)),
        };
        for (diff_id, layer) in image.config.diff_ids.iter().zip(&image.blobs) {
            if !seen.insert(*diff_id) || here(diff_id) {
                continue;
            }
            match in_podman(store, registry, diff_id, monitor) {
                Some(found) => podman.push((*diff_id, found)),
                None => sources.push(fetched(
                    registry,
                    diff_id,
                    layer,
                    local(store, registry, monitor),
                    monitor,
                )),
            }
        }
        Self {
            registry,
            image,
            monitor,
            layers: seen.len(),
            podman,
            fetch: import::Plan::new(store, sources, threads, purpose == Purpose::Import, monitor),
        }
    }

    /// Adds what it needs.
    pub(crate) fn count(&self, tally: &mut Tally<'_>) {
        tally.image(&self.image.config.diff_ids);
        for (diff_id, layer) in &self.podman {
            tally.podman(*diff_id, layer.size().unwrap_or(0));
        }
        for layer in self.fetch.layers() {
            tally.layer(&layer);
        }
    }

    /// Takes the layers that podman has. Those that are not what they should be are fetched with the others.
    pub(super) fn adopt(mut self, store: &Store, threads: usize) -> Result<Self> {
        let monitor = self.monitor;
        let mut again = Vec::new();
        for (diff_id, found) in std::mem::take(&mut self.podman) {
            // Of several images, the one before may have brought it.
            if store.has_layer(&diff_id) {
                continue;
            }
            let Err(error) = adopt_any(store, found, &diff_id, monitor) else {
                continue;
            };
            let mut layers = self.image.config.diff_ids.iter().zip(&self.image.blobs);
            match layers.find(|(id, _)| **id == diff_id) {
                Some((_, layer)) if !self.registry.is_podman() && error.kind() == Kind::Failed => {
                    monitor.event(Event::Warning(format!("not taken from podman, but fetched: {error}")));
                    // Not from podman's files once more.
                    again.push(fetched(self.registry, &diff_id, layer, None, monitor));
                }
                _ => return Err(with_remedy(error)),
            }
        }
        let again = import::Plan::new(Some(store), again, threads, true, monitor);
        self.fetch = self.fetch.and(again);
        Ok(self)
    }

    pub(super) fn run(mut self, store: &Store, threads: usize) -> Result<()> {
        self.fetch.retain(|diff_id| !store.has_layer(diff_id));
        self.fetch.run(store, threads, self.monitor)
    }
}

/// What to do where podman's files are not the layer's any more, and there is no other place to have it from.
fn with_remedy(error: Error) -> Error {
    const REMEDY: &str = "pull or build the image again with podman, or follow it in its registry";
    match error {
        Error::Layer { layer, entry, why } => Error::Layer {
            layer,
            entry,
            why: format!("{why}; {REMEDY}"),
        },
        Error::Mismatch { what, expected, found } => Error::Mismatch {
            what: format!("{what} of podman's, of which files were changed ({REMEDY})"),
            expected,
            found,
        },
        error => error,
    }
}

/// podman may have the same layer several times, on others: where one is not what it should be, the next may be.
fn adopt_any(store: &Store, mut found: podman::Layer, diff_id: &DiffId, monitor: &dyn Monitor) -> Result<()> {
    loop {
        let error = match adopt::layer(store, &found, diff_id, monitor) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match found.next().filter(|_| error.kind() == Kind::Failed) {
            Some(next) => found = next,
            None => return Err(error),
        }
        monitor.event(Event::Note(format!("{error}; podman has that layer once more")));
    }
}

fn fetched<'a>(
    registry: &'a Registry,
    diff_id: &DiffId,
    layer: &'a Descriptor,
    podman: Option<Arc<podman::Storage>>,
    monitor: &'a dyn Monitor,
) -> import::LayerSource<'a> {
    import::LayerSource {
        diff_id: *diff_id,
        size: layer.size,
        compression: layer.compression(),
        open: Box::new(move || Ok(Box::new(registry.blob(layer, monitor)) as _)),
        partial: partial(registry, layer, podman, monitor),
        remote: origin(registry).map(|origin| import::Remote {
            blob: layer.digest,
            origin,
            open: Box::new(move |kept| Box::new(registry.blob(layer, monitor).with_kept(kept)) as _),
        }),
    }
}

/// Where blobs come from, if it is a registry.
pub(super) fn origin(registry: &Registry) -> Option<Origin> {
    match registry.reference() {
        Reference::Registry(name) if registry.is_remote() => Some(Origin::new(&name.full())),
        _ => None,
    }
}

/// A layer that podman has on this machine, for a store that keeps what it gets.
fn in_podman(
    store: Option<&Store>,
    registry: &Registry,
    diff_id: &DiffId,
    monitor: &dyn Monitor,
) -> Option<podman::Layer> {
    local(store, registry, monitor)?.layer(diff_id)
}

/// podman's layers on this machine, for a store that keeps what it gets.
fn local(store: Option<&Store>, registry: &Registry, monitor: &dyn Monitor) -> Option<Arc<podman::Storage>> {
    if store.is_some_and(|store| !store.keeps_all()) {
        return None;
    }
    registry.local(monitor)
}

/// How to get parts of a layer that has a table of contents.
fn partial<'a>(
    registry: &'a Registry,
    layer: &'a Descriptor,
    podman: Option<Arc<podman::Storage>>,
    monitor: &'a dyn Monitor,
) -> Option<import::Partial<'a>> {
    let place = Place::find(&layer.annotations, layer.size).filter(|_| layer.compression() == Compression::Zstd)?;
    let parts = move |ranges| {
        let open = || Box::new(registry.parts(layer, ranges, monitor)) as _;
        registry.serves_parts().then(open)
    };
    Some(import::Partial {
        place,
        parts: Box::new(parts),
        gap: Box::new(|| registry.gap()),
        podman,
        origin: origin(registry),
    })
}
