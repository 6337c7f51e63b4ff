//! The object store: a composefs repository that other composefs tools can read.

pub mod fsck;
pub mod gc;
pub mod import;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::{Algorithm, BlobDigest, DiffId, ManifestDigest, ObjectId};
use crate::layers::Entry;

/// Named reference of a config stream: the image of EROFS format 1 (`composefs.image.v1` of composefs-oci).
pub const IMAGE_V1: &str = "composefs.image.v1";
/// Named reference of a config stream: the boot image of EROFS format 1 (`composefs.image.boot.v1`).
pub const BOOT_IMAGE_V1: &str = "composefs.image.boot.v1";

/// An opened repository.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    algorithm: Algorithm,
}

/// A manifest as the store keeps it.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// The bytes that the registry sent.
    pub bytes: Vec<u8>,
    /// The config that it names.
    pub config: BlobDigest,
}

/// A config as the store keeps it.
#[derive(Clone, Debug)]
pub struct StoredConfig {
    /// The bytes that the registry sent.
    pub bytes: Vec<u8>,
    /// The layers, in the config's order.
    pub layers: Vec<DiffId>,
    /// Images made of it, by [`IMAGE_V1`], [`BOOT_IMAGE_V1`] and what other tools add.
    pub images: BTreeMap<String, ObjectId>,
}

fn todo<T>() -> Result<T> {
    Err(Error::Usage("the store is not built yet".into()))
}

impl Store {
    /// Opens the repository at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        todo()
    }
    /// Makes a repository at `path` (its parent exists), fs-verity on where the file system has it.
    pub fn create(path: &Path, algorithm: Algorithm) -> Result<Self> {
        let _ = (path, algorithm);
        todo()
    }
    /// Opens the repository, or makes it where there is none; an existing one must have this algorithm.
    pub fn open_or_create(path: &Path, algorithm: Algorithm) -> Result<Self> {
        let _ = (path, algorithm);
        todo()
    }
    /// The algorithm that names its objects.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The folder of the objects, for mounts.
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }
    /// Whether objects have fs-verity.
    pub fn has_verity(&self) -> bool {
        false
    }
    /// Stores bytes as an object.
    pub fn put(&self, data: &[u8]) -> Result<ObjectId> {
        let _ = data;
        todo()
    }
    /// Stores everything that `source` gives as an object; returns its size, too.
    pub fn put_file(&self, source: &mut dyn Read) -> Result<(ObjectId, u64)> {
        let _ = source;
        todo()
    }
    /// Whether there is an object of this name; not whether its content is right.
    pub fn has_object(&self, id: &ObjectId) -> bool {
        let _ = id;
        false
    }
    /// Where the object is or would be.
    pub fn object_path(&self, id: &ObjectId) -> PathBuf {
        self.objects().join(id.object_path())
    }
    /// Opens an object for reading; its content is not checked.
    pub fn open_object(&self, id: &ObjectId) -> Result<File> {
        let _ = id;
        todo()
    }
    /// An object's content, checked against its digest; fails on more than `limit` bytes.
    pub fn read_object(&self, id: &ObjectId, limit: u64) -> Result<Vec<u8>> {
        let _ = (id, limit);
        todo()
    }
    /// Whether the layer is here, so that it need not be fetched: published, imported by this run, or completed by an
    /// interrupted run and found whole.
    pub fn has_layer(&self, diff_id: &DiffId) -> bool {
        let _ = diff_id;
        false
    }
    /// The layer's entries in the order of its tar.
    pub fn entries(&self, diff_id: &DiffId) -> Result<Entries> {
        let _ = diff_id;
        todo()
    }
    /// Writes the layer's tar byte for byte and checks it against its diff_id.
    pub fn rebuild(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<()> {
        let _ = (diff_id, out);
        todo()
    }
    /// Stores an image; `publish` links it under `images/`.
    pub fn put_image(&self, image: &[u8]) -> Result<ObjectId> {
        let _ = image;
        todo()
    }
    /// Stores a config with references to its layers (all here) and to images, by [`IMAGE_V1`], [`BOOT_IMAGE_V1`].
    pub fn put_config(
        &self,
        bytes: &[u8],
        layers: &[DiffId],
        images: &BTreeMap<String, ObjectId>,
    ) -> Result<BlobDigest> {
        let _ = (bytes, layers, images);
        todo()
    }
    /// Stores a manifest with references to its config and layers, all put before.
    pub fn put_manifest(&self, bytes: &[u8], config: &BlobDigest, layers: &[DiffId]) -> Result<ManifestDigest> {
        let _ = (bytes, config, layers);
        todo()
    }
    /// The manifest of this digest, if it is here (published, or put by this run); checked against the digest.
    pub fn manifest(&self, digest: &ManifestDigest) -> Result<Option<StoredManifest>> {
        let _ = digest;
        todo()
    }
    /// The config of this digest, if it is here; checked against the digest.
    pub fn config(&self, digest: &BlobDigest) -> Result<Option<StoredConfig>> {
        let _ = digest;
        todo()
    }
    /// Names a manifest `streams/refs/oci/NAME` at the next `publish`; such names keep all that the manifest needs.
    pub fn tag(&self, name: &str, manifest: &ManifestDigest) -> Result<()> {
        let _ = (name, manifest);
        todo()
    }
    /// Removes a name of a manifest, durably; a missing one is success. Objects stay until gc.
    pub fn untag(&self, name: &str) -> Result<()> {
        let _ = name;
        todo()
    }
    /// All names of manifests.
    pub fn tags(&self) -> Result<BTreeMap<String, ManifestDigest>> {
        todo()
    }
    /// Names an image `images/refs/cfs-update/NAME` at the next `publish`.
    pub fn name_image(&self, name: &str, image: &ObjectId) -> Result<()> {
        let _ = (name, image);
        todo()
    }
    /// Removes a name of an image, durably; a missing one is success.
    pub fn unname_image(&self, name: &str) -> Result<()> {
        let _ = name;
        todo()
    }
    /// Our names of images (`images/refs/cfs-update/`).
    pub fn image_names(&self) -> Result<BTreeMap<String, ObjectId>> {
        todo()
    }
    /// All images that may be mounted (`images/`).
    pub fn images(&self) -> Result<Vec<ObjectId>> {
        todo()
    }
    /// Makes all that was put since the last time durable (one `syncfs`), then visible under `streams/` and `images/`,
    /// then named. Nothing to publish costs nothing.
    pub fn publish(&self) -> Result<()> {
        todo()
    }
}

/// Entries of a layer, in the order of its tar.
#[derive(Debug)]
pub struct Entries(());

impl Iterator for Entries {
    type Item = Result<Entry>;
    fn next(&mut self) -> Option<Result<Entry>> {
        None
    }
}
