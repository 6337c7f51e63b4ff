//! Images of the store for podman: a read-only additional image store of containers-storage whose files are our
//! objects.
//!
//! ```text
//! overlay-images/images.json, images.lock, <id>/manifest, <id>/=<base64 of "sha256:<id>", "manifest-sha256:…">
//! overlay-layers/layers.json, layers.lock        storage.lock
//! overlay/<layer>/composefs-data/composefs.blob -> the image in objects/      an image's highest layer, flattened
//! overlay/<layer>/diff -> objects/               overlay/<layer>/link, overlay/l/<link> -> ../<layer>/diff
//! overlay/<below>/diff/                          those below it: empty, and only in the records its parents
//! ```
//!
//! podman mounts the blob (erofs) with our objects as its data-only layer: nothing is copied, and pages that the host
//! has read are not read again. There are no `lower` files, so no empty layer is ever mounted, however many there are.
//!
//! Invariant: what is listed here is kept in the store by a name of its own (`podman-…` below
//! `images/refs/cfs-update`), which is there before it is listed and goes after it is not; and a layer that a
//! container of podman's stands on is neither unlisted nor let go of, whatever became of its image, nor is one that
//! podman has given a name of its own. All of it is derived and can be made again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::ids::{ManifestDigest, ObjectId};
use crate::image::{Versions, writer};
use crate::podman::Places;
use crate::pull::{self, Variant};
use crate::store::{Store, StoredImage, WHOLE_IMAGE_V1};
use crate::sys::fs::{self, Fs};
use crate::sys::lock::RecordLock;

mod conf;
mod containers;
mod names;
mod records;

pub use conf::{Change, add, doubts, named, remove};
pub use names::name_for_podman;
pub use records::Shown;

use containers::Containers;
use records::{Ready, ShownLayer};

const RECORDS_LIMIT: u64 = 256 << 20;
/// How names of images begin that are kept for podman.
pub(crate) const NAMES: &str = "podman-";
/// How long podman is waited for while it reads.
const PATIENCE: Duration = Duration::from_secs(60);
const LOCKS: [&str; 3] = [
    "storage.lock",
    "overlay-layers/layers.lock",
    "overlay-images/images.lock",
];

/// The folder that podman reads.
#[derive(Debug)]
pub struct Shelf<'a> {
    fs: &'a dyn Fs,
    store: &'a Store,
    root: PathBuf,
    podman: &'a Places,
    /// Where podman finds the objects; it takes absolute links only.
    objects: PathBuf,
}

/// An image to be shown to podman.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What podman calls it; `None` where only its id leads to it.
    pub name: Option<String>,
    /// Its manifest, which is in the store with all it needs.
    pub manifest: ManifestDigest,
}

impl<'a> Shelf<'a> {
    /// The shelf at `root`, which may not be there yet. `podman`: whose containers may stand on it.
    pub fn new(fs: &'a dyn Fs, store: &'a Store, root: &Path, podman: &'a Places) -> Self {
        Self {
            fs,
            store,
            root: root.to_path_buf(),
            podman,
            objects: store.objects(),
        }
    }

    /// For a podman that has the objects there: on a system that is yet to boot.
    pub fn with_objects(mut self, objects: PathBuf) -> Self {
        self.objects = objects;
        self
    }

    /// Whether images are shown to podman at all.
    pub fn is_there(&self) -> bool {
        fs::is_dir(&self.root)
    }

    /// The images that podman sees.
    ///
    /// # Errors
    /// What reading gives.
    pub fn images(&self) -> Result<Vec<Shown>> {
        self.records("overlay-images/images.json")
    }

    /// Makes the image that podman is shown of what is in the store, where it was not made yet.
    ///
    /// # Errors
    /// What is missing in the store; what writing gives.
    pub fn make(&self, manifest: &ManifestDigest) -> Result<()> {
        let StoredImage {
            manifest,
            config,
            mut images,
        } = self.store.stored_image(manifest)?;
        if images.contains_key(WHOLE_IMAGE_V1) {
            return Ok(());
        }
        let mut tree = pull::merge(self.store, &config.diff_ids)?;
        pull::transform(self.store, &mut tree, Variant::Whole)?;
        let image = self
            .store
            .put_image_pieces(|sink| writer::write(&tree, Versions::V1, sink))?;
        images.insert(WHOLE_IMAGE_V1.into(), image);
        let digest = self.store.put_config(&config.bytes, &config.diff_ids, &images)?;
        self.store.put_manifest(&manifest.bytes, &digest, &config.diff_ids)?;
        self.store.publish()
    }

    /// Shows exactly these images, and keeps what containers stand on.
    ///
    /// # Errors
    /// [`Error::Busy`] while podman reads for longer than a minute; what writing gives. What podman sees is complete
    /// then, old or new.
    pub fn show(&self, wanted: &[Wanted]) -> Result<Vec<Shown>> {
        let ready = self.all_ready(wanted)?;
        let mut layers: BTreeMap<String, ShownLayer> = ready
            .values()
            .flat_map(|image| image.layers.iter().cloned())
            .map(|layer| (layer.id.clone(), layer))
            .collect();
        // Until all is done podman makes no container: it might stand on what goes.
        let containers = Containers::of(self.podman)?;
        self.add_used(&mut layers, &containers)?;
        self.keep(layers.values())?;
        self.prepare()?;
        ready.values().try_for_each(|image| self.write_image(image))?;
        layers.values().try_for_each(|layer| self.write_layer(layer))?;
        self.fs.sync_all(&self.root)?;
        let shown: Vec<Shown> = ready.into_values().map(|image| image.shown).collect();
        self.list(&shown, &layers.values().collect::<Vec<_>>())?;
        self.clear(&shown, &layers)?;
        drop(containers);
        Ok(shown)
    }

    /// Adds what something of podman's stands on, as it is listed, with what is below it.
    fn add_used(&self, layers: &mut BTreeMap<String, ShownLayer>, containers: &Containers) -> Result<()> {
        let listed = self.listed()?;
        let by_id: BTreeMap<&str, &ShownLayer> = listed.iter().map(|layer| (layer.id.as_str(), layer)).collect();
        for layer in &listed {
            if !containers.may_use(&layer.id) || !layer.image.parse().is_ok_and(|id| self.store.is_image(&id)) {
                continue;
            }
            let mut next = Some(layer);
            while let Some(layer) = next.filter(|layer| !layers.contains_key(&layer.id)) {
                layers.insert(layer.id.clone(), layer.clone());
                next = layer.parent.as_deref().and_then(|parent| by_id.get(parent).copied());
            }
        }
        Ok(())
    }

    /// All that is needed of these images, by image id. A name is one image's, the first one's: podman does not work
    /// at all with a store where it is that of two.
    fn all_ready(&self, wanted: &[Wanted]) -> Result<BTreeMap<String, Ready>> {
        let mut ready: BTreeMap<String, Ready> = BTreeMap::new();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for wanted in wanted {
            let new = self.ready(wanted)?;
            let image = match ready.entry(new.shown.id.clone()) {
                Entry::Occupied(image) => {
                    let image = image.into_mut();
                    image.also(new);
                    image
                }
                Entry::Vacant(place) => place.insert(new),
            };
            let of_digest = |name: &String| Some(format!("{}@{}", names::repository(name)?, wanted.manifest));
            let names = [wanted.name.clone(), wanted.name.as_ref().and_then(of_digest)];
            let free = |name: &String| taken.get(name).is_none_or(|id| *id == image.shown.id);
            if let Some(name) = names.into_iter().flatten().find(free) {
                taken.insert(name.clone(), image.shown.id.clone());
                image.shown.names.push(name);
            }
        }
        for image in ready.values_mut() {
            image.shown.names.sort();
            image.shown.names.dedup();
        }
        Ok(ready)
    }

    /// The layers that podman sees: those whose records are what we write.
    fn listed(&self) -> Result<Vec<ShownLayer>> {
        let mut layers: Vec<ShownLayer> = self.records("overlay-layers/layers.json")?;
        layers.retain(|layer| layer.id.len() == 64 && layer.id.bytes().all(|b| b.is_ascii_hexdigit()));
        Ok(layers)
    }

    /// Takes the shelf away.
    ///
    /// # Errors
    /// [`Error::Busy`] while a container stands on it; what removing gives.
    pub fn remove(&self) -> Result<()> {
        let containers = Containers::of(self.podman)?;
        for layer in &self.listed()? {
            self.refuse_used(layer, &containers)?;
        }
        self.fs.remove_dir_all(&self.root)?;
        self.fs.sync_dir(fs::parent(&self.root)?)?;
        for name in self.store.image_names()?.keys().filter(|name| name.starts_with(NAMES)) {
            self.store.unname_image(name)?;
        }
        Ok(())
    }

    /// Fails where a container of podman's stands on this image.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn refuse_removal(&self, manifest: &ManifestDigest) -> Result<()> {
        let digest = manifest.to_string();
        let layers = self.listed()?;
        let images = self.images()?;
        let mine = |layer: &ShownLayer| {
            let mut images = images.iter().filter(|image| image.digest == digest);
            images.any(|image| image.layer == layer.id)
        };
        let files: BTreeSet<&str> = layers
            .iter()
            .filter(|layer| mine(layer))
            .map(|layer| layer.image.as_str())
            .collect();
        // A layer that an earlier version of this program has made of it, which is kept for what stands on it.
        let earlier = |layer: &ShownLayer| {
            files.contains(layer.image.as_str()) && images.iter().all(|image| image.layer != layer.id)
        };
        let layers: Vec<_> = layers.iter().filter(|layer| mine(layer) || earlier(layer)).collect();
        if layers.is_empty() {
            return Ok(());
        }
        let containers = Containers::of(self.podman)?;
        layers
            .into_iter()
            .try_for_each(|layer| self.refuse_used(layer, &containers))
    }

    fn refuse_used(&self, layer: &ShownLayer, containers: &Containers) -> Result<()> {
        let busy = |holder: &str| Error::Busy {
            path: self.root.join("overlay").join(&layer.id),
            holder: holder.into(),
        };
        match containers {
            Containers::Unknown(why) => Err(busy(&format!("podman, perhaps: its storage cannot be read ({why})"))),
            _ if containers.may_use(&layer.id) => Err(busy(
                "a container or an image of podman's (`podman ps -a` and `podman images` list them, `podman rm` and \
                 `podman rmi` remove them)",
            )),
            _ => Ok(()),
        }
    }

    fn ready(&self, wanted: &Wanted) -> Result<Ready> {
        let what = wanted.manifest.to_string();
        let StoredImage {
            manifest,
            config,
            images,
        } = self.store.stored_image(&wanted.manifest)?;
        let image = *images.get(WHOLE_IMAGE_V1).ok_or_else(|| Error::Manifest {
            reference: what.clone(),
            why: "its composefs image is not in the store".into(),
        })?;
        let sizes: Result<Vec<u64>> = config.diff_ids.iter().map(|id| self.store.tar_size(id)).collect();
        Ok(Ready::new(what, manifest, config, &image, &sizes?))
    }

    /// Names the images in the store, so that no collection takes them.
    fn keep<'l>(&self, layers: impl Iterator<Item = &'l ShownLayer>) -> Result<()> {
        for layer in layers {
            if let Ok(image) = layer.image.parse() {
                self.store.name_image(&format!("{NAMES}{}", layer.id), &image)?;
            }
        }
        self.store.publish()
    }

    fn prepare(&self) -> Result<()> {
        for folder in ["", "overlay", "overlay/l", "overlay-images", "overlay-layers"] {
            self.fs.create_dir(&self.root.join(folder), 0o755)?;
        }
        // podman makes missing ones, but not where it may only read.
        for lock in LOCKS {
            let path = self.root.join(lock);
            if !fs::exists(&path) {
                self.fs.create(&path, 0o644, &mut std::io::empty())?;
            }
        }
        Ok(())
    }

    fn write_image(&self, image: &Ready) -> Result<()> {
        let folder = self.root.join("overlay-images").join(&image.shown.id);
        self.fs.create_dir(&folder, 0o755)?;
        for (name, bytes) in &image.data {
            fs::replace_unsynced(self.fs, &folder.join(records::file_name(name)), 0o644, bytes)?;
        }
        Ok(())
    }

    fn write_layer(&self, layer: &ShownLayer) -> Result<()> {
        let overlay = self.root.join("overlay");
        let folder = overlay.join(&layer.id);
        let image = layer.image.parse::<ObjectId>().ok();
        if image.is_none() && !layer.is_empty_one() {
            return Ok(());
        }
        self.fs.create_dir(&folder, 0o755)?;
        match image {
            Some(image) => {
                let blob = folder.join("composefs-data/composefs.blob");
                self.fs.create_dir(fs::parent(&blob)?, 0o755)?;
                self.link(&self.objects.join(image.object_path()), &blob)?;
                self.link(&self.objects, &folder.join("diff"))?;
            }
            None => self.fs.create_dir(&folder.join("diff"), 0o755)?,
        }
        let link = layer.link();
        let diff = Path::new("..").join(&layer.id).join("diff");
        self.link(&diff, &overlay.join("l").join(&link))?;
        fs::replace_unsynced(self.fs, &folder.join("link"), 0o644, link.as_bytes())
    }

    fn link(&self, target: &Path, path: &Path) -> Result<()> {
        if fs::read_link(path).ok().flatten().as_deref() == Some(target) {
            return Ok(());
        }
        self.fs.remove_dir_all(path).or_else(|_| self.fs.remove_file(path))?;
        self.fs.symlink(target, path)
    }

    /// The records, in one step each, and the mark by which a running podman sees that they changed.
    fn list(&self, images: &[Shown], layers: &[&ShownLayer]) -> Result<()> {
        let mut locks = Vec::new();
        for lock in &LOCKS[1..] {
            locks.push(RecordLock::exclusive(&self.root.join(lock), PATIENCE)?);
        }
        let json = |value: serde_json::Result<Vec<u8>>| {
            value.map_err(|e| Error::io("write", &self.root, std::io::Error::other(e)))
        };
        // An image never names a layer that is not listed.
        let all: Vec<ShownLayer> = self.records("overlay-layers/layers.json")?;
        let gone = all.iter().filter(|old| layers.iter().all(|layer| layer.id != old.id));
        let both: Vec<&ShownLayer> = layers.iter().copied().chain(gone).collect();
        let layers_json = self.root.join("overlay-layers/layers.json");
        fs::replace(self.fs, &layers_json, 0o644, &json(serde_json::to_vec(&both))?)?;
        let images_json = self.root.join("overlay-images/images.json");
        fs::replace(self.fs, &images_json, 0o644, &json(serde_json::to_vec(images))?)?;
        if both.len() > layers.len() {
            fs::replace(self.fs, &layers_json, 0o644, &json(serde_json::to_vec(layers))?)?;
        }
        locks.iter_mut().try_for_each(RecordLock::mark_change)
    }

    /// What is listed no more.
    fn clear(&self, images: &[Shown], layers: &BTreeMap<String, ShownLayer>) -> Result<()> {
        for image in images {
            let files: BTreeSet<String> = image.files().collect();
            self.clear_folder(&format!("overlay-images/{}", image.id), &|name| files.contains(name))?;
        }
        let images: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.clear_folder("overlay-images", &|name| {
            images.contains(name) || name.starts_with("images.")
        })?;
        let links: BTreeSet<String> = layers.values().map(ShownLayer::link).collect();
        self.clear_folder("overlay", &|name| name == "l" || layers.contains_key(name))?;
        self.clear_folder("overlay/l", &|name| links.contains(name))?;
        for name in self.store.image_names()?.keys() {
            if name
                .strip_prefix(NAMES)
                .is_some_and(|layer| !layers.contains_key(layer))
            {
                self.store.unname_image(name)?;
            }
        }
        Ok(())
    }

    fn clear_folder(&self, folder: &str, stays: &dyn Fn(&str) -> bool) -> Result<()> {
        let folder = self.root.join(folder);
        for name in fs::names(&folder)? {
            if !stays(&name.to_string_lossy()) {
                let path = folder.join(name);
                match fs::is_dir(&path) {
                    true => self.fs.remove_dir_all(&path)?,
                    false => self.fs.remove_file(&path)?,
                }
            }
        }
        Ok(())
    }

    /// Damaged ones count as none: they are made again.
    fn records<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Vec<T>> {
        let text = fs::read(&self.root.join(name), RECORDS_LIMIT)?;
        Ok(text
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default())
    }
}
