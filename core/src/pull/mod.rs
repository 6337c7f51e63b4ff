//! An image from a registry into the store: layers to objects, layers to a tree, the tree to an image, all of it
//! synced.
//!
//! Invariant: a [`Synced`] image is made by [`Built::sync`] alone, after the store's one `syncfs`; whoever holds one
//! may let signatures and records refer to what is in it. A run that ends before leaves objects that nothing refers
//! to.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ids::{DiffId, ManifestDigest, ObjectId};
use crate::image::{Versions, writer};
use crate::manifest::Platform;
use crate::monitor::{Event, Monitor, Stage};
use crate::preflight::Tally;
use crate::reference::Reference;
use crate::registry::{self, Registry};
use crate::store::{self, Store};
use crate::synced::Synced;
use crate::tree::{Inode, Kind, Merge, Regular, Tree};

mod plan;

use plan::origin;
pub(crate) use plan::{Plan, Purpose};

/// Files that the library itself reads from an image (policies, kernel arguments) are refused above this many bytes.
pub const FILE_LIMIT: u64 = 64 << 20;

/// Images are refused above this many bytes: some ten million files.
pub const IMAGE_LIMIT: u64 = 4 << 30;

/// What an image is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The layers' tree as it is: what podman would show.
    Whole,
    /// A container's root: the tree as `transform_for_oci` leaves it, as far as it goes.
    Container,
    /// A host's root: /boot and /sysroot emptied, SELinux labels recomputed.
    Boot,
}

impl Variant {
    /// The named reference of the config stream that leads to the image.
    pub const fn reference(self) -> &'static str {
        match self {
            Self::Whole => store::WHOLE_IMAGE_V1,
            Self::Container => store::IMAGE_V1,
            Self::Boot => store::BOOT_IMAGE_V1,
        }
    }
}

/// An image whose layers are all in the store, each checked against its diff_id. Nothing is durable yet.
#[derive(Debug)]
pub struct Imported {
    source: registry::Image,
}

/// An image that was generated and stored; not durable yet.
#[derive(Debug)]
pub struct Built {
    source: registry::Image,
    id: ObjectId,
}

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its fs-verity digest.
    pub id: ObjectId,
    /// What it was made from.
    pub source: registry::Image,
}

/// Fetches the layers that are not here, `threads` at a time, into objects.
///
/// # Errors
/// [`Error::Space`], [`Error::Inodes`] where they cannot fit, before anything of them was fetched; [`Error::Network`],
/// [`Error::Mismatch`] and [`Error::Layer`] name the layer; nothing was published then.
pub fn import(
    store: &Store,
    registry: &Registry,
    source: registry::Image,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Imported> {
    import_all(store, &[(registry, &source)], threads, monitor)?;
    Ok(Imported { source })
}

/// Fetches the layers of several images, when there is room for all of them.
///
/// # Errors
/// As [`import`].
pub(crate) fn import_all(
    store: &Store,
    images: &[(&Registry, &registry::Image)],
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<()> {
    monitor.event(Event::Stage(Stage::Import));
    let plans = images.iter().map(|(registry, image)| {
        let purpose = Purpose::Import;
        Plan::new(Some(store), registry, image, purpose, threads, monitor)
    });
    let plans: Vec<_> = plans.collect();
    if store.checks_space() {
        let mut tally = Tally::new(Some(store), store.path())?;
        plans.iter().for_each(|plan| plan.count(&mut tally));
        let figures = tally.figures()?;
        figures.check()?;
        if let Some(doubt) = figures.doubt() {
            monitor.event(Event::Warning(doubt));
        }
        store.expect(figures.about.bytes, figures.free);
    }
    let layers = plans.iter().map(|plan| plan.layers).sum();
    let from_podman: usize = plans.iter().map(|plan| plan.podman.len()).sum();
    let fetched = || plans.iter().flat_map(|plan| plan.fetch.layers());
    monitor.event(Event::Plan {
        layers,
        cached: layers - from_podman - fetched().count(),
        bytes: fetched().map(|layer| layer.fetch).sum(),
    });
    let plans = plans.into_iter().map(|plan| plan.adopt(store, threads));
    let plans = plans.collect::<Result<Vec<_>>>()?;
    // Fetching may take hours, in which containers are started: podman waits only for what is taken from its files.
    if !plans.iter().any(|plan| plan.fetch.takes_from_podman()) {
        images.iter().for_each(|(registry, _)| registry.release_local());
    }
    for (plan, image) in plans.into_iter().zip(images) {
        fetch(plan, image, store, threads, monitor)?;
    }
    let origins = images.iter().filter_map(|(registry, _)| origin(registry));
    for origin in origins.filter(|_| store.keeps_all() && store.read_only().is_none()) {
        // Nothing depends on it, and a later collection removes them, too.
        if let Err(error) = store.forget_parts(origin) {
            tracing::debug!("parts of downloads stay: {error}");
        }
    }
    Ok(())
}

/// Fetches what a plan says. Bytes that are not what they should be are found out at their end: the sources that are
/// left may have the right ones.
fn fetch(
    plan: Plan<'_>,
    (registry, image): &(&Registry, &registry::Image),
    store: &Store,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<()> {
    let mut done = plan.run(store, threads);
    while let Err(error) = done {
        let bytes = matches!(error, Error::Mismatch { .. } | Error::Layer { .. });
        if !bytes || !registry.pass_over() {
            return Err(error);
        }
        monitor.event(Event::Warning(format!("mirror passed over: {error}")));
        let plan = Plan::new(Some(store), registry, image, Purpose::Import, threads, monitor);
        done = plan.adopt(store, threads).and_then(|plan| plan.run(store, threads));
    }
    Ok(())
}

impl Imported {
    /// Of an image whose layers are all in the store.
    pub(crate) fn complete(source: registry::Image) -> Self {
        Self { source }
    }
}

/// The merged tree of layers that are in the store.
pub fn merge(store: &Store, layers: &[DiffId]) -> Result<Tree> {
    let mut merge = Merge::new();
    for diff_id in layers {
        merge.layer(store.entries(diff_id)?)?;
    }
    merge.finish()
}

/// Turns a merged tree into what is mounted.
pub fn transform(store: &Store, tree: &mut Tree, variant: Variant) -> Result<()> {
    match variant {
        Variant::Whole => {}
        Variant::Container => tree.transform_for_container(),
        Variant::Boot => {
            tree.transform_for_oci()?;
            tree.transform_for_boot(&|id| store.read_object(id, FILE_LIMIT))?;
        }
    }
    Ok(())
}

/// The bytes of a regular file of a tree; the objects are those of `store`.
///
/// # Errors
/// [`Error::Tree`] for anything but a regular file, and above [`FILE_LIMIT`].
pub fn read_file(store: &Store, path: &str, inode: Inode<'_>) -> Result<Vec<u8>> {
    let refuse = |why: &str| Error::Tree {
        path: path.into(),
        why: why.into(),
    };
    match inode.kind() {
        Kind::Regular(Regular::Inline(content)) => Ok(content.to_vec()),
        Kind::Regular(Regular::External { id: Some(id), .. }) => store.read_object(&id, FILE_LIMIT),
        Kind::Regular(Regular::External { .. }) => Err(refuse("has no content in this store")),
        _ => Err(refuse("is not a regular file")),
    }
}

impl Imported {
    /// What was imported.
    pub fn source(&self) -> &registry::Image {
        &self.source
    }

    /// The merged tree, before any transformation: kernels are still in /boot.
    pub fn tree(&self, store: &Store) -> Result<Tree> {
        merge(store, &self.source.config.diff_ids)
    }

    /// Transforms the tree, generates the image and stores it with config and manifest. `tree` is what
    /// [`Imported::tree`] gave; it is what is mounted afterwards.
    pub fn build(self, store: &Store, tree: &mut Tree, variant: Variant, monitor: &dyn Monitor) -> Result<Built> {
        monitor.event(Event::Stage(Stage::Image));
        transform(store, tree, variant)?;
        let id = store.put_image_pieces(|sink| writer::write(tree, Versions::V1, sink))?;
        let config = &self.source.config;
        let mut images = match store.config(&self.source.manifest.config.digest)? {
            Some(stored) => stored.images,
            None => BTreeMap::new(),
        };
        images.insert(variant.reference().into(), id);
        let config = store.put_config(&config.bytes, &config.diff_ids, &images)?;
        store.put_manifest(&self.source.manifest.bytes, &config, &self.source.config.diff_ids)?;
        Ok(Built {
            source: self.source,
            id,
        })
    }
}

impl Built {
    /// The image's digest.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Makes everything durable, then visible, named `tag` (and, given one, `image_name` under
    /// `images/refs/cfs-update`), so that it is kept until the name is removed.
    pub fn sync(
        self,
        store: &Store,
        tag: &str,
        image_name: Option<&str>,
        monitor: &dyn Monitor,
    ) -> Result<Synced<Image>> {
        monitor.event(Event::Stage(Stage::Sync));
        store.tag(tag, &self.source.digest)?;
        if let Some(name) = image_name {
            store.name_image(name, &self.id)?;
        }
        store.publish()?;
        Ok(Synced::after_publish(Image {
            id: self.id,
            source: self.source,
        }))
    }
}

/// A container image that is in the store.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its image, which can be mounted.
    pub id: ObjectId,
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// The name that it is kept by.
    pub name: String,
    /// Nothing was fetched: this very manifest was here under this name.
    pub unchanged: bool,
}

/// The name that a pulled image is kept by.
///
/// # Errors
/// [`Error::Usage`] where the reference cannot be one.
pub fn name_of(reference: &Reference) -> Result<String> {
    let name = reference.to_string();
    Store::check_name(&name)?;
    Ok(name)
}

/// Pulls a container image into the store and names it by its reference.
pub fn pull(
    store: &Store,
    registry: &Registry,
    platform: &Platform,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Pulled> {
    let name = name_of(registry.reference())?;
    monitor.event(Event::Stage(Stage::Resolve));
    let image = registry.image(platform, monitor)?;
    let manifest = image.digest;
    if store.tags()?.get(&name) == Some(&manifest)
        && let Some(config) = store.config_of(&manifest)?
        && let Some(id) = config.images.get(store::IMAGE_V1).filter(|id| store.has_object(id))
        && config.layers.iter().all(|layer| store.has_layer(layer))
    {
        return Ok(Pulled {
            id: *id,
            manifest,
            name,
            unchanged: true,
        });
    }
    let imported = import(store, registry, image, threads, monitor)?;
    let mut tree = imported.tree(store)?;
    let built = imported.build(store, &mut tree, Variant::Container, monitor)?;
    let synced = built.sync(store, &name, None, monitor)?;
    Ok(Pulled {
        id: synced.id,
        manifest,
        name,
        unchanged: false,
    })
}
