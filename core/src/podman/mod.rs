//! podman's images on this machine: containers-storage, read where it lies.
//!
//! ```text
//! overlay-images/images.json, images.lock, <id>/manifest, <id>/=<base64 of "sha256:<id>">   image records, their JSON
//! overlay-layers/layers.json, layers.lock, <id>.tar-split.gz                                layer records, how to rebuild
//! overlay/<id>/diff/…   (vfs/dir/<id>/…, btrfs/subvolumes/<id>/… with these drivers)        a layer's files
//! overlay/<id>/composefs-data/composefs.blob   with `use_composefs`: their names; diff/ has the contents then
//! ```
//!
//! With `imagestore` the image records and the layers' files are there, the layer records are not. Additional image
//! stores are storages of their own, which an image of the first one may have its layers in.
//!
//! Invariant: nothing here is changed, and nothing of it is trusted: whoever takes a layer's tar from here checks it
//! against its diff_id, a manifest or config against its digest. While a [`Storage`] is open, podman's own locks on
//! the records are held (fcntl record locks, shared), so that nothing of it is removed meanwhile: `podman image prune`
//! waits. Record locks belong to the process and go with the first descriptor of the file that it closes: a process
//! opens one storage once.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::ids::DiffId;
use crate::sys::fs;
use crate::sys::lock::RecordLock;

mod config;
mod folders;
mod image;
mod tar_split;

pub(crate) use config::split;
pub use config::{Place, Places};
pub use folders::{Content, Folders};
pub use tar_split::{Part, Parts, Tar};

/// Drivers whose layers are plain files in a folder each.
const DRIVERS: [&str; 3] = ["overlay", "vfs", "btrfs"];
/// Records of a hundred thousand layers.
const RECORDS_LIMIT: u64 = 256 << 20;
/// Manifests and configs.
const DATA_LIMIT: u64 = 8 << 20;
/// What podman takes for the beginning of an id.
const SHORTEST_ID: usize = 3;
/// No image has more layers.
const DEEPEST: usize = 1000;

/// An opened storage, with the additional ones that podman reads beside it.
#[derive(Debug)]
pub struct Storage {
    /// The storage itself first.
    stores: Vec<Folder>,
    layers: Vec<LayerRecord>,
    by_id: HashMap<String, usize>,
    images: Vec<ImageRecord>,
    /// Additional storages that could not be read, and why.
    passed_over: Vec<String>,
    locks: Mutex<Vec<RecordLock>>,
}

/// One storage of a driver.
#[derive(Clone, Debug)]
struct Folder {
    root: PathBuf,
    /// Where images' records and layers' files are, if not there.
    images: Option<PathBuf>,
    driver: &'static str,
}

#[derive(Debug, Deserialize)]
struct LayerRecord {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    /// The diff_id; of partial pulls there may be none, but what it should be in the flags.
    #[serde(default, rename = "diff-digest")]
    diff_digest: Option<String>,
    #[serde(default, rename = "diff-size")]
    diff_size: Option<i64>,
    #[serde(default)]
    flags: Option<serde_json::Map<String, serde_json::Value>>,
    /// It is none of podman's, but of our own making for it.
    #[serde(default, rename = "cfs-update-image")]
    ours: Option<String>,
    #[serde(skip)]
    store: usize,
}

#[derive(Debug, Deserialize)]
struct ImageRecord {
    id: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// The highest of its layers, and the same for other owners.
    #[serde(default)]
    layer: Option<String>,
    #[serde(default, rename = "mapped-layers")]
    mapped: Option<Vec<String>>,
    #[serde(default, rename = "big-data-digests")]
    data_digests: Option<BTreeMap<String, String>>,
    #[serde(skip)]
    store: usize,
}

/// A layer that can be rebuilt.
#[derive(Clone, Debug)]
pub struct Layer {
    storage: Arc<Storage>,
    at: usize,
}

/// An image: what its manifest and config are.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest's bytes, or an index.
    pub manifest: Vec<u8>,
    /// The image id: the config's SHA-256 in hex, for all but very old images.
    pub id: String,
}

impl Storage {
    /// Opens a storage and takes its locks, waiting for them for `patience`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Busy`] while podman changes it; [`Error::File`] where it is damaged; [`Error::Io`] where it may not
    /// be read. An additional one that cannot be read is passed over.
    pub fn open(place: &Place, patience: Duration) -> Result<Option<Self>> {
        let mut storage = Self {
            stores: Vec::new(),
            layers: Vec::new(),
            by_id: HashMap::new(),
            images: Vec::new(),
            passed_over: Vec::new(),
            locks: Mutex::default(),
        };
        for driver in drivers_of(place)? {
            let folder = Folder {
                root: place.root.clone(),
                images: place.images.clone(),
                driver,
            };
            storage.take(folder, place.run.as_deref(), patience)?;
        }
        for root in &place.additional {
            storage.add(root, patience);
        }
        if storage.stores.is_empty() && storage.passed_over.is_empty() {
            return Ok(None);
        }
        for (at, layer) in storage.layers.iter().enumerate() {
            storage.by_id.entry(layer.id.clone()).or_insert(at);
        }
        Ok(Some(storage))
    }

    /// Adds what a driver has in a storage.
    fn take(&mut self, folder: Folder, run: Option<&Path>, patience: Duration) -> Result<()> {
        let layers = folder.of("layers");
        let images = folder.of("images");
        let mut locks = Vec::new();
        // In podman's own order.
        for path in [layers.join("layers.lock"), images.join("images.lock")] {
            locks.extend(RecordLock::shared(&path, patience)?);
        }
        let volatile = run.map(|run| run.join(format!("{}-layers", folder.driver)));
        let mut found: Vec<LayerRecord> = records(&layers.join("layers.json"))?;
        for folder in iter::once(layers).chain(volatile) {
            found.extend(records::<LayerRecord>(&folder.join("volatile-layers.json"))?);
        }
        let mut of_images: Vec<ImageRecord> = records(&images.join("images.json"))?;
        if found.iter().any(|layer| layer.ours.is_some()) {
            return Ok(());
        }
        let store = self.stores.len();
        found.iter_mut().for_each(|layer| layer.store = store);
        of_images.iter_mut().for_each(|image| image.store = store);
        self.layers.extend(found);
        self.images.extend(of_images);
        self.locks().extend(locks);
        self.stores.push(folder);
        Ok(())
    }

    fn add(&mut self, root: &Path, patience: Duration) {
        let place = Place::from(root);
        let taken = drivers_of(&place).and_then(|drivers| {
            drivers.into_iter().try_for_each(|driver| {
                let folder = Folder {
                    root: root.to_path_buf(),
                    images: None,
                    driver,
                };
                self.take(folder, None, patience)
            })
        });
        if let Err(error) = taken {
            tracing::debug!("an additional image store is passed over: {error}");
            self.passed_over.push(error.to_string());
        }
    }

    fn locks(&self) -> MutexGuard<'_, Vec<RecordLock>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets podman change it again. What is read afterwards may have gone, which is an error then.
    pub fn release(&self) {
        self.locks().clear();
    }

    /// Ids of layers that something stands on: another layer (of an image, of a container), or an image, as one that
    /// was given a name with `podman tag`.
    pub fn needed(&self) -> impl Iterator<Item = &str> {
        let parents = self.layers.iter().filter_map(|layer| layer.parent.as_deref());
        let tops = self.images.iter().filter_map(|image| image.layer.as_deref());
        let mapped = self.images.iter().flat_map(|image| image.mapped.iter().flatten());
        parents
            .chain(tops)
            .chain(mapped.map(String::as_str))
            .filter(|id| !id.is_empty())
    }

    /// A complete layer with this diff_id, as its record has it.
    pub fn layer(self: &Arc<Self>, diff_id: &DiffId) -> Option<Layer> {
        self.layer_from(0, &diff_id.to_string())
    }

    /// The first such layer from this index on.
    fn layer_from(self: &Arc<Self>, from: usize, wanted: &str) -> Option<Layer> {
        let fits = |at: &usize| self.layers[*at].diff_id() == Some(wanted) && self.is_complete(*at);
        (from..self.layers.len()).find(fits).map(|at| Layer {
            storage: self.clone(),
            at,
        })
    }

    fn is_complete(&self, at: usize) -> bool {
        let layer = &self.layers[at];
        let incomplete = layer
            .flags
            .as_ref()
            .is_some_and(|flags| flags.contains_key("incomplete"));
        !incomplete && is_id(&layer.id) && fs::exists(&self.tar_split(layer))
    }

    /// All complete layers whose files are known, those without a diff_id (of partial pulls), too.
    pub fn layers(self: &Arc<Self>) -> impl DoubleEndedIterator<Item = Layer> {
        (0..self.layers.len())
            .filter(move |at| self.is_complete(*at))
            .map(|at| Layer {
                storage: self.clone(),
                at,
            })
    }

    /// The layer of this index, as [`Layer::index`] gave it.
    pub fn layer_at(self: &Arc<Self>, at: usize) -> Option<Layer> {
        self.layers.get(at).filter(|layer| is_id(&layer.id))?;
        Some(Layer {
            storage: self.clone(),
            at,
        })
    }

    fn tar_split(&self, layer: &LayerRecord) -> PathBuf {
        let folder = self.stores[layer.store].of("layers");
        folder.join(format!("{}.tar-split.gz", layer.id))
    }

    fn files(&self, layer: &LayerRecord) -> impl Iterator<Item = folders::Place> {
        let Folder { root, images, driver } = &self.stores[layer.store];
        let (folder, image) = match *driver {
            "vfs" => (Path::new("vfs/dir").join(&layer.id), None),
            "btrfs" => (Path::new("btrfs/subvolumes").join(&layer.id), None),
            driver => {
                let layer = Path::new(driver).join(&layer.id);
                (layer.join("diff"), Some(layer.join("composefs-data/composefs.blob")))
            }
        };
        let roots = images.iter().chain(iter::once(root));
        roots.map(move |root| folders::Place {
            folder: root.join(&folder),
            image: image.as_ref().map(|image| root.join(image)),
        })
    }
}

impl LayerRecord {
    /// As podman has it, or, of a partial pull, as the image's config had it. Neither is believed.
    fn diff_id(&self) -> Option<&str> {
        let known = self.diff_digest.as_deref().filter(|digest| !digest.is_empty());
        known.or_else(|| self.flags.as_ref()?.get("expected-layer-diffid")?.as_str())
    }
}

impl Folder {
    /// `overlay-layers`, `overlay-images`
    fn of(&self, kind: &str) -> PathBuf {
        let root = match (kind, &self.images) {
            ("images", Some(images)) => images,
            _ => &self.root,
        };
        root.join(format!("{}-{kind}", self.driver))
    }
}

impl Layer {
    /// For messages.
    pub fn name(&self) -> String {
        let record = self.record();
        let root = &self.storage.stores[record.store].root;
        format!("{} of podman's storage {}", record.id, root.display())
    }

    /// The tar's size in bytes as podman has noted it; `None` where it has not.
    pub fn size(&self) -> Option<u64> {
        u64::try_from(self.record().diff_size?).ok().filter(|size| *size > 0)
    }

    /// The parts of its tar, in order.
    ///
    /// # Errors
    /// What opening gives.
    pub fn parts(&self) -> Result<Parts> {
        let list = self.storage.tar_split(self.record());
        Parts::open(&list, self.places(), self.name())
    }

    /// The list of its files.
    ///
    /// # Errors
    /// What opening gives.
    pub fn list(&self) -> Result<Parts> {
        Parts::open(&self.storage.tar_split(self.record()), Vec::new(), self.name())
    }

    /// Bytes of that list, as it is on disk, and of what is read to find the files.
    pub fn list_bytes(&self) -> u64 {
        let record = self.record();
        let images = self.storage.files(record).filter_map(|place| place.image);
        let read = iter::once(self.storage.tar_split(record)).chain(images);
        read.map(|path| fs::metadata(&path).map_or(0, |file| file.len())).sum()
    }

    /// Where its files are.
    pub fn folders(&self) -> Folders {
        Folders::new(self.places())
    }

    /// Which one of its storage it is.
    pub fn index(&self) -> usize {
        self.at
    }

    /// Another complete layer with the same diff_id, further on.
    pub fn next(&self) -> Option<Self> {
        let wanted = self.record().diff_id()?;
        self.storage.layer_from(self.at + 1, wanted)
    }

    fn places(&self) -> Vec<folders::Place> {
        let storage = &self.storage;
        let mut record = self.record();
        let mut places: Vec<_> = storage.files(record).collect();
        // What a layer does not hold itself, one below it may; records that lead in a circle end somewhere.
        for _ in 0..storage.layers.len().min(DEEPEST) {
            let below = record.parent.as_ref().and_then(|parent| storage.by_id.get(parent));
            let Some(below) = below.map(|at| &storage.layers[*at]).filter(|layer| is_id(&layer.id)) else {
                break;
            };
            places.extend(storage.files(below));
            record = below;
        }
        places
    }

    fn record(&self) -> &LayerRecord {
        &self.storage.layers[self.at]
    }
}

/// The drivers that have something there: the one that is asked for where it has. One that may not be looked into is
/// not taken for none.
fn drivers_of(place: &Place) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for driver in DRIVERS {
        let path = place.root.join(format!("{driver}-layers"));
        match std::fs::metadata(&path) {
            Ok(folder) if folder.is_dir() => found.push(driver),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::io("read", &path, e)),
        }
    }
    let asked = place.driver.as_deref().map(|driver| match driver {
        "overlay2" => "overlay",
        driver => driver,
    });
    if let Some(driver) = found.iter().copied().find(|driver| Some(*driver) == asked) {
        return Ok(vec![driver]);
    }
    Ok(found)
}

/// Ids become parts of paths.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// podman takes an empty file, and `null`, for no records.
fn records<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = match fs::read(path, RECORDS_LIMIT)? {
        Some(text) if std::fs::metadata(path).is_ok_and(|found| found.is_file()) => text,
        Some(_) => return Err(damaged(path, "is no file")),
        None => return Ok(Vec::new()),
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let records: Option<Vec<T>> =
        serde_json::from_slice(&text).map_err(|e| damaged(path, &format!("is damaged ({e})")))?;
    Ok(records.unwrap_or_default())
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::File {
        path: path.to_path_buf(),
        why: format!("{why}; `podman system check --repair` may mend it"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
