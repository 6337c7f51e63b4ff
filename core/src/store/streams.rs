//! Layers, configs and manifests as split streams.
//!
//! Names, content types and references are those of composefs-oci 0.9, so that it lists, mounts and keeps what we
//! store, and we what it stores.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::PoisonError;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::{BlobDigest, DiffId, ManifestDigest, ObjectId};
use crate::manifest::{Config, Document, Manifest};
use crate::splitstream::{ContentType, Part, Reader, Writer};
use crate::store::Store;
use crate::sys::{fs, verity};

/// The largest manifest or config in bytes; registries refuse more than 4 MiB.
const JSON_LIMIT: u64 = 16 << 20;

/// A manifest as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// The bytes that the registry sent.
    pub bytes: Vec<u8>,
    /// The config that it names.
    pub config: BlobDigest,
}

/// An image as the store keeps it, understood.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: Config,
    /// As [`StoredConfig::images`].
    pub images: BTreeMap<String, ObjectId>,
}

/// A config as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// The bytes that the registry sent.
    pub bytes: Vec<u8>,
    /// The layers that it needs, sorted; their order is in the bytes.
    pub layers: BTreeSet<DiffId>,
    /// Images made of it that may be mounted, by [`crate::store::IMAGE_V1`], [`crate::store::BOOT_IMAGE_V1`] and what
    /// other tools add.
    pub images: BTreeMap<String, ObjectId>,
}

impl StoredConfig {
    /// The boot image that was made of it last, where `id` is none of its images: that was made of other layers, which
    /// were not what they should be.
    pub fn remade(&self, id: &ObjectId) -> Option<ObjectId> {
        let made = self.images.get(crate::store::BOOT_IMAGE_V1)?;
        (!self.images.values().any(|image| image == id)).then_some(*made)
    }
}

/// The objects that layers are, as configs and manifests name them.
pub(super) type NamedLayers = HashMap<DiffId, BTreeSet<ObjectId>>;

pub(super) fn layer_name(diff_id: &DiffId) -> String {
    format!("oci-layer-{diff_id}")
}

pub(super) fn config_name(digest: &BlobDigest) -> String {
    format!("oci-config-{digest}")
}

pub(crate) fn manifest_name(digest: &ManifestDigest) -> String {
    format!("oci-manifest-{digest}")
}

impl Store {
    /// Stores an image; `publish` links it under `images/`, which allows mounting it.
    ///
    /// # Errors
    /// What writing gives.
    pub fn put_image(&self, image: &[u8]) -> Result<ObjectId> {
        self.put_image_pieces(|sink| sink(image))
    }

    /// As [`Store::put_image`], of what `write` gives to its sink.
    ///
    /// # Errors
    /// What `write` and writing give.
    pub fn put_image_pieces(
        &self,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<ObjectId> {
        let (id, _) = self.put_pieces(write)?;
        self.pending().images.insert(id);
        Ok(id)
    }

    /// Stores a config with references to its layers, all of which are here, and to images made of it, by
    /// [`crate::store::IMAGE_V1`] and [`crate::store::BOOT_IMAGE_V1`]. References that other tools added are kept.
    ///
    /// # Errors
    /// [`Error::Stream`] where a layer is missing; what writing gives.
    pub fn put_config(
        &self,
        bytes: &[u8],
        layers: &[DiffId],
        images: &BTreeMap<String, ObjectId>,
    ) -> Result<BlobDigest> {
        let digest = BlobDigest::from_hash(Sha256::digest(bytes).into());
        let name = config_name(&digest);
        let mut refs = BTreeMap::new();
        // A broken one is replaced.
        if let Some(here) = self.stream(&name)?
            && let Ok(known) = self.open_stream(&name, &here)
        {
            refs.extend(
                known
                    .names()
                    .iter()
                    .filter(|(_, id)| self.has_object(id))
                    .map(|(k, v)| (k.clone(), *v)),
            );
        }
        for layer in layers {
            refs.insert(layer.to_string(), self.need_stream(&layer_name(layer))?);
        }
        refs.extend(images.iter().map(|(key, id)| (key.clone(), *id)));
        self.put_json(&name, ContentType::CONFIG, bytes, refs)?;
        Ok(digest)
    }

    /// Stores a manifest with references to its config and layers, all of which are here.
    ///
    /// # Errors
    /// [`Error::Stream`] where one of them is missing; what writing gives.
    pub fn put_manifest(&self, bytes: &[u8], config: &BlobDigest, layers: &[DiffId]) -> Result<ManifestDigest> {
        let digest = ManifestDigest::from_hash(Sha256::digest(bytes).into());
        let mut refs = BTreeMap::from([(format!("config:{config}"), self.need_stream(&config_name(config))?)]);
        for layer in layers {
            refs.insert(layer.to_string(), self.need_stream(&layer_name(layer))?);
        }
        self.put_json(&manifest_name(&digest), ContentType::MANIFEST, bytes, refs)?;
        Ok(digest)
    }

    /// The manifest of this digest, checked against it; `None` where it is neither published nor put by this run, or
    /// lacks an object: fetching it again mends it.
    ///
    /// # Errors
    /// [`Error::Stream`], [`Error::Mismatch`] where it is broken.
    pub fn manifest(&self, digest: &ManifestDigest) -> Result<Option<StoredManifest>> {
        let name = manifest_name(digest);
        let Some((bytes, refs)) = self.read_json(&name, ContentType::MANIFEST, digest.as_bytes())? else {
            return Ok(None);
        };
        let config = refs.keys().find_map(|key| key.strip_prefix("config:")?.parse().ok());
        let config = config.ok_or_else(|| Error::Stream {
            name,
            why: "it names no config; fetch the image again".into(),
        })?;
        Ok(Some(StoredManifest { bytes, config }))
    }

    /// The config of this digest, checked against it; `None` where it is neither published nor put by this run, or
    /// lacks an object: fetching it again mends it.
    ///
    /// # Errors
    /// [`Error::Stream`], [`Error::Mismatch`] where it is broken.
    pub fn config(&self, digest: &BlobDigest) -> Result<Option<StoredConfig>> {
        let Some((bytes, refs)) = self.read_json(&config_name(digest), ContentType::CONFIG, digest.as_bytes())? else {
            return Ok(None);
        };
        let layers = refs.keys().filter_map(|key| key.parse().ok()).collect();
        let images = refs
            .into_iter()
            .filter(|(key, id)| key.parse::<DiffId>().is_err() && self.is_image(id))
            .collect();
        Ok(Some(StoredConfig { bytes, layers, images }))
    }

    /// The config of the image with this manifest; `None` where one of the two is not here.
    ///
    /// # Errors
    /// As [`Store::manifest`] and [`Store::config`].
    pub fn config_of(&self, manifest: &ManifestDigest) -> Result<Option<StoredConfig>> {
        match self.manifest(manifest)? {
            Some(stored) => self.config(&stored.config),
            None => Ok(None),
        }
    }

    /// Manifest and config of the image with this manifest.
    ///
    /// # Errors
    /// [`Error::Manifest`] where one of the two is not here; as [`Store::manifest`] and [`Store::config`].
    pub fn stored_image(&self, digest: &ManifestDigest) -> Result<StoredImage> {
        let missing = |what: &str| Error::Manifest {
            reference: digest.to_string(),
            why: format!("{what} is not in the store"),
        };
        let stored = self.manifest(digest)?.ok_or_else(|| missing("it"))?;
        let Document::Manifest(manifest) = Document::parse(stored.bytes, None, &digest.to_string())? else {
            return Err(missing("a manifest of this digest"));
        };
        let stored = self
            .config(&manifest.config.digest)?
            .ok_or_else(|| missing("its config"))?;
        Ok(StoredImage {
            config: Config::parse(stored.bytes, &manifest)?,
            images: stored.images,
            manifest,
        })
    }

    /// Whether the layer is here and published, with all its objects; nothing is taken over from an interrupted run.
    pub fn layer_is_published(&self, diff_id: &DiffId) -> bool {
        let here = self.stream(&layer_name(diff_id)).ok().flatten();
        let opened = here.and_then(|id| Reader::new(self.open_object(&id).ok()?, self.algorithm).ok());
        opened.is_some_and(|reader| self.has_all_of(&reader))
    }

    fn has_all_of(&self, reader: &Reader) -> bool {
        let mut needed = reader.object_refs().iter().chain(reader.names().values());
        reader.content_type() == ContentType::LAYER && needed.all(|id| self.has_object(id))
    }

    /// Whether the layer is here, so that it need not be fetched: published, imported by this run, or completed by an
    /// interrupted run and found whole. A layer that lacks an object, or whose link leads to another one than images
    /// say, is not here: fetching it again mends it.
    pub fn has_layer(&self, diff_id: &DiffId) -> bool {
        let here = self.stream(&layer_name(diff_id)).ok().flatten();
        if here.is_some_and(|id| self.is_elsewhere(diff_id, &id)) {
            return false;
        }
        let opened = here.and_then(|id| Reader::new(self.open_object(&id).ok()?, self.algorithm).ok());
        match opened {
            Some(reader) => self.has_all_of(&reader),
            None => self.is_suspect() && self.resume_layer(diff_id).unwrap_or(false),
        }
    }

    /// Whether configs and manifests name this layer, and none of them names this object: a link that was moved. What
    /// this run has put is right.
    pub(super) fn is_elsewhere(&self, diff_id: &DiffId, id: &ObjectId) -> bool {
        if self.pending().streams.contains_key(&layer_name(diff_id)) {
            return false;
        }
        let mut named = self.named_layers.lock().unwrap_or_else(PoisonError::into_inner);
        let named = named.get_or_insert_with(|| self.read_named_layers().unwrap_or_default());
        named.get(diff_id).is_some_and(|objects| !objects.contains(id))
    }

    /// Takes a layer's stream out, which does not lead to the layer's files: it is fetched again.
    ///
    /// # Errors
    /// What removing gives.
    pub(crate) fn forget_layer(&self, diff_id: &DiffId) -> Result<()> {
        self.fs
            .remove_file(&self.path.join("streams").join(layer_name(diff_id)))?;
        self.forget_named_layers();
        Ok(())
    }

    /// The links are others now.
    pub(super) fn forget_named_layers(&self) {
        *self.named_layers.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The objects by which configs and manifests name their layers: one and the same layer may have been stored twice,
    /// as different bytes. Streams that cannot be read are left out.
    fn read_named_layers(&self) -> Result<NamedLayers> {
        let mut named = NamedLayers::new();
        for (name, id) in self.links("streams")? {
            if !name.starts_with("oci-config-") && !name.starts_with("oci-manifest-") {
                continue;
            }
            let reader = self.open_object(&id).ok();
            let reader = reader.and_then(|file| Reader::new(file, self.algorithm).ok());
            for (key, object) in reader.iter().flat_map(Reader::names) {
                if let Ok(diff_id) = key.parse() {
                    named.entry(diff_id).or_default().insert(*object);
                }
            }
        }
        Ok(named)
    }

    /// All images that may be mounted.
    ///
    /// # Errors
    /// What listing gives.
    pub fn images(&self) -> Result<Vec<ObjectId>> {
        let names = fs::names(&self.path.join("images"))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Whether it is an image: put by this run, or published.
    pub(crate) fn is_image(&self, id: &ObjectId) -> bool {
        self.pending().images.contains(id) || fs::exists(&self.path.join("images").join(id.to_hex()))
    }

    /// The object of a stream: put by this run, or published.
    pub(super) fn stream(&self, name: &str) -> Result<Option<ObjectId>> {
        if let Some(id) = self.pending().streams.get(name) {
            return Ok(Some(*id));
        }
        let path = self.path.join("streams").join(name);
        let Some(target) = fs::read_link(&path)? else {
            return Ok(None);
        };
        let id = object_of_link(&target).filter(|id| id.algorithm() == self.algorithm);
        id.map(Some).ok_or_else(|| Error::Stream {
            name: name.into(),
            why: format!("it is a link to {}, which is no object", target.display()),
        })
    }

    pub(super) fn need_stream(&self, name: &str) -> Result<ObjectId> {
        self.stream(name)?.ok_or_else(|| Error::Stream {
            name: name.into(),
            why: "missing; fetch the image again".into(),
        })
    }

    /// Opens a stream after checking its file against its digest.
    pub(super) fn open_stream(&self, name: &str, id: &ObjectId) -> Result<Reader> {
        let mut file = self.open_object(id)?;
        let path = || self.object_path(id);
        if verity::measure(&file)? != Some(*id) {
            let (found, _) =
                verity::hash_reader(self.algorithm, &mut file).map_err(|e| Error::io("read", path(), e))?;
            if found != *id {
                return Err(Error::Stream {
                    name: name.into(),
                    why: format!("object {id} is not what its name says; `cfs-update fsck --repair` fetches it again"),
                });
            }
            file.seek(SeekFrom::Start(0))
                .map_err(|e| Error::io("read", path(), e))?;
        }
        Reader::new(file, self.algorithm).map_err(|e| Error::Stream {
            name: name.into(),
            why: e.to_string(),
        })
    }

    /// Stores JSON as an object and a stream that refers to it, unless just that is here.
    fn put_json(
        &self,
        name: &str,
        content_type: ContentType,
        bytes: &[u8],
        refs: BTreeMap<String, ObjectId>,
    ) -> Result<()> {
        if let Some(here) = self.stream(name)?
            && let Ok(known) = self.open_stream(name, &here)
            && *known.names() == refs
            && known.object_refs().iter().all(|id| self.has_object(id))
        {
            return Ok(());
        }
        let json = self.put(bytes)?;
        let broken = |e: std::io::Error| Error::Stream {
            name: name.into(),
            why: e.to_string(),
        };
        let mut writer = Writer::new(Cursor::new(Vec::new()), self.algorithm, content_type).map_err(broken)?;
        for (key, id) in refs {
            writer.name(key, &id);
        }
        writer.object(&json, bytes.len() as u64).map_err(broken)?;
        let stream = writer.finish().map_err(broken)?.into_inner();
        let id = self.put(&stream)?;
        self.pending().streams.insert(name.into(), id);
        Ok(())
    }

    /// The JSON of a stream, checked against its SHA-256, and the stream's references.
    #[allow(clippy::type_complexity, reason = "a pair, used twice above")]
    fn read_json(
        &self,
        name: &str,
        content_type: ContentType,
        hash: &[u8; 32],
    ) -> Result<Option<(Vec<u8>, BTreeMap<String, ObjectId>)>> {
        let Some(id) = self.stream(name)?.filter(|id| self.has_object(id)) else {
            return Ok(None);
        };
        let broken = |why: String| Error::Stream { name: name.into(), why };
        let mut reader = self.open_stream(name, &id)?;
        if !reader.object_refs().iter().all(|id| self.has_object(id)) {
            return Ok(None);
        }
        if reader.content_type() != content_type || reader.size() > JSON_LIMIT {
            return Err(broken("it is a stream of something else".into()));
        }
        let mut bytes = Vec::new();
        while let Some(part) = reader.part().map_err(|e| broken(e.to_string()))? {
            match part {
                Part::Literal(literal) => bytes.extend_from_slice(literal),
                Part::Object(object) => bytes.extend(self.read_object(&object, JSON_LIMIT)?),
            }
            if bytes.len() as u64 > JSON_LIMIT {
                return Err(broken(format!("it is larger than {JSON_LIMIT} bytes")));
            }
        }
        let found: [u8; 32] = Sha256::digest(&bytes).into();
        if found != *hash {
            return Err(Error::Mismatch {
                what: format!("stream {name}"),
                expected: hex::encode(hash),
                found: hex::encode(found),
            });
        }
        Ok(Some((bytes, reader.names().clone())))
    }
}

/// The object that a link such as `../objects/ab/cdef…` leads to.
pub(super) fn object_of_link(target: &Path) -> Option<ObjectId> {
    let text = std::str::from_utf8(target.as_os_str().as_bytes()).ok()?;
    let (folder, rest) = text.strip_prefix("../objects/")?.split_once('/')?;
    (folder.len() == 2).then(|| format!("{folder}{rest}").parse().ok())?
}
