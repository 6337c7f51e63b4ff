//! Images of the store for podman: a read-only additional image store of containers-storage whose files are our
//! objects.
//!
//! ```text
//! overlay-images/images.json, images.lock, <id>/manifest, <id>/=<base64 of "sha256:<id>">
//! overlay-layers/layers.json, layers.lock        storage.lock
//! overlay/<layer>/composefs-data/composefs.blob -> the image in objects/      one layer for each image, flattened
//! overlay/<layer>/diff -> objects/               overlay/<layer>/link, overlay/l/<link> -> ../<layer>/diff
//! ```
//!
//! podman mounts the blob (erofs) with our objects as its data-only layer: nothing is copied, and pages that the host
//! has read are not read again.
//!
//! Invariant: what is listed here is kept in the store by a name of its own (`podman-…` below
//! `images/refs/cfs-update`), which is there before it is listed and goes after it is not; and a layer that a
//! container of podman's stands on is neither unlisted nor let go of, whatever became of its image, nor is one that
//! podman has given a name of its own. All of it is derived and can be made again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::{ManifestDigest, ObjectId};
use crate::image::{Versions, writer};
use crate::manifest::{Config, Manifest};
use crate::podman::Places;
use crate::pull::{self, Variant};
use crate::store::{Store, StoredImage, WHOLE_IMAGE_V1};
use crate::sys::fs::{self, Fs};
use crate::sys::lock::RecordLock;

mod conf;
mod containers;
mod names;

pub use conf::{Change, add, doubts, named, remove};
pub use names::name_for_podman;

use containers::Containers;

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

/// An image that podman sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The image id.
    pub id: String,
    /// The manifest's digest.
    pub digest: String,
    /// Its names.
    #[serde(default)]
    pub names: Vec<String>,
    /// Its one layer.
    pub layer: String,
    #[serde(rename = "big-data-names")]
    data_names: Vec<String>,
    #[serde(rename = "big-data-sizes")]
    data_sizes: BTreeMap<String, usize>,
    #[serde(rename = "big-data-digests")]
    data_digests: BTreeMap<String, String>,
    created: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ShownLayer {
    id: String,
    created: String,
    /// A digest that no tar has: the layer is none of the image's, so podman must not find it by a diff_id.
    #[serde(rename = "diff-digest")]
    diff_digest: String,
    #[serde(rename = "diff-size")]
    diff_size: u64,
    /// Ours alone: the image that it is.
    #[serde(rename = "cfs-update-image")]
    image: String,
}

/// All that is needed of one image.
struct Ready {
    shown: Shown,
    layer: ShownLayer,
    image: ObjectId,
    manifest: Manifest,
    config: Config,
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
            .map(|image| (image.layer.id.clone(), image.layer.clone()))
            .collect();
        // Until all is done podman makes no container: it might stand on what goes.
        let containers = Containers::of(self.podman)?;
        for layer in self.listed()? {
            if containers.may_use(&layer.id) && layer.image.parse().is_ok_and(|id| self.store.is_image(&id)) {
                layers.entry(layer.id.clone()).or_insert(layer);
            }
        }
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

    /// All that is needed of these images, by image id. A name is one image's, the first one's: podman does not work
    /// at all with a store where it is that of two.
    fn all_ready(&self, wanted: &[Wanted]) -> Result<BTreeMap<String, Ready>> {
        let mut ready: BTreeMap<String, Ready> = BTreeMap::new();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for wanted in wanted {
            let new = self.ready(wanted)?;
            let image = ready.entry(new.shown.id.clone()).or_insert(new);
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
        let of_image = |layer: &&ShownLayer| {
            let mut images = images.iter().filter(|image| image.digest == digest);
            images.any(|image| image.layer == layer.id)
        };
        let layers: Vec<_> = layers.iter().filter(of_image).collect();
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
        let mut size = 0;
        for diff_id in &config.diff_ids {
            size += self.store.tar_size(diff_id)?;
        }
        let created = config.created.unwrap_or_default().to_string();
        let layer = hex::encode(Sha256::digest(format!("cfs-update {image}")));
        let id = manifest.config.digest.to_hex();
        let data = [
            ("manifest".to_owned(), &manifest.bytes),
            (format!("sha256:{id}"), &config.bytes),
        ];
        let shown = Shown {
            digest: what,
            names: Vec::new(),
            layer: layer.clone(),
            data_names: data.iter().map(|(name, _)| name.clone()).collect(),
            data_sizes: data.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect(),
            data_digests: data.iter().map(|(name, bytes)| (name.clone(), digest(bytes))).collect(),
            created: created.clone(),
            id,
        };
        Ok(Ready {
            layer: ShownLayer {
                diff_digest: format!("sha256:{layer}"),
                id: layer,
                created,
                diff_size: size,
                image: image.to_hex(),
            },
            shown,
            image,
            manifest,
            config,
        })
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
        debug_assert_eq!(image.layer.image, image.image.to_hex());
        let folder = self.root.join("overlay-images").join(&image.shown.id);
        self.fs.create_dir(&folder, 0o755)?;
        let config = format!("={}", STANDARD.encode(format!("sha256:{}", image.shown.id)));
        fs::replace_unsynced(self.fs, &folder.join("manifest"), 0o644, &image.manifest.bytes)?;
        fs::replace_unsynced(self.fs, &folder.join(config), 0o644, &image.config.bytes)
    }

    fn write_layer(&self, layer: &ShownLayer) -> Result<()> {
        let overlay = self.root.join("overlay");
        let folder = overlay.join(&layer.id);
        let objects = self.objects.clone();
        let Ok(image) = layer.image.parse::<ObjectId>() else {
            return Ok(());
        };
        let link = layer.id[..26].to_uppercase();
        self.fs.create_dir(&folder, 0o755)?;
        self.fs.create_dir(&folder.join("composefs-data"), 0o755)?;
        let links = [
            (
                objects.join(image.object_path()),
                folder.join("composefs-data/composefs.blob"),
            ),
            (objects, folder.join("diff")),
            (
                Path::new("..").join(&layer.id).join("diff"),
                overlay.join("l").join(&link),
            ),
        ];
        for (target, path) in links {
            if fs::read_link(&path).ok().flatten().as_deref() != Some(&target) {
                self.fs.remove_dir_all(&path).or_else(|_| self.fs.remove_file(&path))?;
                self.fs.symlink(&target, &path)?;
            }
        }
        fs::replace_unsynced(self.fs, &folder.join("link"), 0o644, link.as_bytes())
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
        let images: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.clear_folder("overlay-images", &|name| {
            images.contains(name) || name.starts_with("images.")
        })?;
        let links: BTreeSet<String> = layers.keys().map(|id| id[..26].to_uppercase()).collect();
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

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
