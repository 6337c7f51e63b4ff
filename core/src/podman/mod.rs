//! podman's images on this machine: containers-storage, read where it lies.
//!
//! ```text
//! overlay-images/images.json, images.lock, <id>/manifest, <id>/=<base64 of "sha256:<id>">   image records, their JSON
//! overlay-layers/layers.json, layers.lock, <id>.tar-split.gz                                layer records, how to rebuild
//! overlay/<id>/diff/…   (vfs/dir/<id>/… with that driver)                                   a layer's files
//! ```
//!
//! Invariant: nothing here is changed, and nothing of it is trusted: whoever takes a layer's tar from here checks it
//! against its diff_id, a manifest or config against its digest. While a [`Storage`] is open, podman's own locks on the
//! records are held (fcntl record locks, shared), so that nothing of it is removed meanwhile: `podman image prune` waits.
//! Record locks belong to the process and go with the first descriptor of the file that it closes: a process opens one
//! storage once.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::ids::DiffId;
use crate::sys::fs;
use crate::sys::lock::RecordLock;

mod config;
mod tar_split;

pub use config::Places;
pub(crate) use config::split;
pub use tar_split::{Folders, Part, Parts, Tar};

/// Drivers whose layers are plain files in a folder each.
const DRIVERS: [&str; 2] = ["overlay", "vfs"];
/// Records of a hundred thousand layers.
const RECORDS_LIMIT: u64 = 256 << 20;
/// Manifests and configs.
const DATA_LIMIT: u64 = 8 << 20;

/// An opened storage.
#[derive(Debug)]
pub struct Storage {
    root: PathBuf,
    driver: &'static str,
    layers: Vec<LayerRecord>,
    images: Vec<ImageRecord>,
    _locks: Vec<RecordLock>,
}

#[derive(Debug, Deserialize)]
struct LayerRecord {
    id: String,
    #[serde(default)]
    parent: String,
    /// The diff_id; of partial pulls there may be none.
    #[serde(default, rename = "diff-digest")]
    diff_digest: String,
    #[serde(default, rename = "diff-size")]
    diff_size: i64,
    #[serde(default)]
    flags: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct ImageRecord {
    id: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    names: Option<Vec<String>>,
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
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The image id: the config's SHA-256 in hex, for all but very old images.
    pub id: String,
}

impl Storage {
    /// Opens the storage at `root` and takes its locks, waiting for them for `patience`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Busy`] while podman changes it; [`Error::Network`] where it is damaged; [`Error::Io`] where it may not be
    /// read.
    pub fn open(root: &Path, patience: Duration) -> Result<Option<Self>> {
        let Some(driver) = driver_of(root)? else {
            return Ok(None);
        };
        let folder = |kind: &str| root.join(format!("{driver}-{kind}"));
        let mut locks = Vec::new();
        // In podman's own order.
        for path in [
            folder("layers").join("layers.lock"),
            folder("images").join("images.lock"),
        ] {
            locks.extend(RecordLock::shared(&path, patience)?);
        }
        let mut layers: Vec<LayerRecord> = records(&folder("layers").join("layers.json"))?;
        layers.extend(records::<LayerRecord>(&folder("layers").join("volatile-layers.json"))?);
        Ok(Some(Self {
            images: records(&folder("images").join("images.json"))?,
            root: root.to_path_buf(),
            driver,
            layers,
            _locks: locks,
        }))
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Ids of layers that another one stands on: of images, and of containers.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        let parents = self.layers.iter().map(|layer| layer.parent.as_str());
        parents.filter(|parent| !parent.is_empty())
    }

    /// A complete layer with this diff_id, as its record has it.
    pub fn layer(self: &Arc<Self>, diff_id: &DiffId) -> Option<Layer> {
        let wanted = diff_id.to_string();
        let fits = |layer: &LayerRecord| {
            layer.diff_digest == wanted
                && !layer.flags.contains_key("incomplete")
                && is_id(&layer.id)
                && fs::exists(&self.tar_split(&layer.id))
        };
        let at = self.layers.iter().position(fits)?;
        Some(Layer {
            storage: self.clone(),
            at,
        })
    }

    /// All complete layers whose files are known, those without a diff_id (of partial pulls), too.
    pub fn layers(self: &Arc<Self>) -> impl DoubleEndedIterator<Item = Layer> {
        let usable = |layer: &LayerRecord| {
            is_id(&layer.id) && !layer.flags.contains_key("incomplete") && fs::exists(&self.tar_split(&layer.id))
        };
        (0..self.layers.len())
            .filter(move |at| usable(&self.layers[*at]))
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

    /// The image that podman calls so: a name with or without its tag, an id or its beginning, `NAME@sha256:…`.
    ///
    /// # Errors
    /// [`Error::Network`] where there is none, or more than one, or its manifest is missing.
    pub fn image(&self, name: &str) -> Result<Image> {
        let record = self.find(name)?;
        let manifest = self.data(record, "manifest")?;
        Ok(Image {
            manifest: manifest.ok_or_else(|| self.error(format!("image {name} has no manifest; pull it again")))?,
            id: record.id.clone(),
        })
    }

    /// The config of an image, by its digest in hex; `None` where there is none.
    ///
    /// # Errors
    /// What reading gives.
    pub fn config(&self, id: &str, digest_hex: &str) -> Result<Option<Vec<u8>>> {
        match self.images.iter().find(|image| image.id == id) {
            Some(record) => self.data(record, &format!("sha256:{digest_hex}")),
            None => Ok(None),
        }
    }

    fn find(&self, name: &str) -> Result<&ImageRecord> {
        let is_hex = name.len() >= 6 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let (base, digest) = name
            .split_once('@')
            .map_or((name, None), |(base, digest)| (base, Some(digest)));
        let tagged = match base.rsplit('/').next().is_some_and(|last| last.contains(':')) {
            true => base.to_owned(),
            false => format!("{base}:latest"),
        };
        let candidates = [
            tagged.clone(),
            format!("localhost/{tagged}"),
            format!("docker.io/{tagged}"),
            format!("docker.io/library/{tagged}"),
        ];
        let named = |image: &&ImageRecord, wanted: &str| image.names.iter().flatten().any(|name| name == wanted);
        let found = match digest {
            Some(digest) => self.images.iter().find(|image| image.digest == digest),
            None => candidates
                .iter()
                .find_map(|wanted| self.images.iter().find(|image| named(image, wanted))),
        };
        if let Some(found) = found.filter(|image| is_id(&image.id)) {
            return Ok(found);
        }
        let mut by_id = self
            .images
            .iter()
            .filter(|image| is_hex && is_id(&image.id) && image.id.starts_with(name));
        match (by_id.next(), by_id.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(self.error(format!("has several images whose id begins with {name}"))),
            _ => Err(self.error(format!("has no image {name:?}; `podman images` lists what is there"))),
        }
    }

    fn data(&self, image: &ImageRecord, key: &str) -> Result<Option<Vec<u8>>> {
        let name = match key
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
        {
            true => key.to_owned(),
            false => format!("={}", STANDARD.encode(key)),
        };
        let path = self
            .root
            .join(format!("{}-images", self.driver))
            .join(&image.id)
            .join(name);
        fs::read(&path, DATA_LIMIT)
    }

    fn error(&self, why: String) -> Error {
        Error::Network {
            url: format!("containers-storage:[{}@{}]", self.driver, self.root.display()),
            why,
        }
    }

    fn tar_split(&self, id: &str) -> PathBuf {
        self.root
            .join(format!("{}-layers", self.driver))
            .join(format!("{id}.tar-split.gz"))
    }

    fn files(&self, id: &str) -> PathBuf {
        match self.driver {
            "vfs" => self.root.join("vfs/dir").join(id),
            driver => self.root.join(driver).join(id).join("diff"),
        }
    }
}

impl Layer {
    /// For messages.
    pub fn name(&self) -> String {
        format!("layer {} of {}", self.record().id, self.storage.root.display())
    }

    /// The tar's size in bytes as podman has noted it; `None` where it has not.
    pub fn size(&self) -> Option<u64> {
        u64::try_from(self.record().diff_size).ok().filter(|size| *size > 0)
    }

    /// The parts of its tar, in order.
    ///
    /// # Errors
    /// What opening gives.
    pub fn parts(&self) -> Result<Parts> {
        let list = self.storage.tar_split(&self.record().id);
        Parts::open(&list, self.places(), self.name())
    }

    /// The list of its files.
    ///
    /// # Errors
    /// What opening gives.
    pub fn list(&self) -> Result<Parts> {
        Parts::open(&self.storage.tar_split(&self.record().id), Vec::new(), self.name())
    }

    /// Bytes of that list, as it is on disk.
    pub fn list_bytes(&self) -> u64 {
        fs::metadata(&self.storage.tar_split(&self.record().id)).map_or(0, |list| list.len())
    }

    /// Where its files are.
    pub fn folders(&self) -> Folders {
        Folders::new(self.places())
    }

    /// Which one of its storage it is.
    pub fn index(&self) -> usize {
        self.at
    }

    fn places(&self) -> Vec<PathBuf> {
        let record = self.record();
        let mut folders = vec![self.storage.files(&record.id)];
        // What a layer does not hold itself, one below it may; records that lead in a circle end somewhere.
        let mut parent = &record.parent;
        for _ in 0..self.storage.layers.len() {
            let Some(below) = self
                .storage
                .layers
                .iter()
                .find(|layer| layer.id == *parent && is_id(&layer.id))
            else {
                break;
            };
            folders.push(self.storage.files(&below.id));
            parent = &below.parent;
        }
        folders
    }

    fn record(&self) -> &LayerRecord {
        &self.storage.layers[self.at]
    }
}

/// One that may not be looked into is not taken for none.
fn driver_of(root: &Path) -> Result<Option<&'static str>> {
    for driver in DRIVERS {
        let path = root.join(format!("{driver}-layers"));
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Ok(Some(driver)),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::io("read", &path, e)),
        }
    }
    Ok(None)
}

/// Ids become parts of paths.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn records<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let Some(text) = fs::read(path, RECORDS_LIMIT)? else {
        return Ok(Vec::new());
    };
    serde_json::from_slice(&text).map_err(|e| Error::Network {
        url: path.display().to_string(),
        why: format!("is damaged ({e}); `podman system check --repair` may mend it"),
    })
}
