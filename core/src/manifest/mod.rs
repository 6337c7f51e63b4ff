//! Manifests, image indexes and configs: what an image is made of.
//!
//! Bytes in, values out; nothing here fetches. Invariant: a [`Manifest`] names an image that can be imported (its
//! config is an image config, each layer a tar in a known compression, all digests SHA-256), and it carries the very
//! bytes that its digest was computed from. Whatever else there is in registries (artifacts, schema 1, layers that may
//! not be distributed, documents that can be read in two ways) was refused here with its reason.
//!
//! Formats: OCI image specification 1.1, Docker image manifest version 2 schema 2.

use std::collections::BTreeMap;

use oci_distribution::manifest as wire;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::{BlobDigest, DiffId, ManifestDigest};

mod platform;

pub use platform::Platform;

/// Largest manifest or index that is read: 4 MiB, the limit that registries and clients agree on.
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// Largest config that is read: 8 MiB.
pub const CONFIG_LIMIT: u64 = 8 << 20;
/// The annotation of containers/image for an index entry whose layers are zstd, beside one for those who cannot read
/// them.
const SAYS_ZSTD: &str = "io.github.containers.compression.zstd";

/// What a manifest request accepts, best first.
pub const ACCEPTED: [&str; 4] = [
    wire::OCI_IMAGE_INDEX_MEDIA_TYPE,
    wire::OCI_IMAGE_MEDIA_TYPE,
    wire::IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    wire::IMAGE_MANIFEST_MEDIA_TYPE,
];

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or several members.
    Gzip,
    /// zstd, one or several frames.
    Zstd,
}

/// A blob that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest, as stored by the registry (compressed).
    pub digest: BlobDigest,
    /// Its size in bytes, as stored.
    pub size: u64,
    /// Annotations; empty where there are none.
    pub annotations: BTreeMap<String, String>,
}

/// One image.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The bytes as received.
    pub bytes: Vec<u8>,
    /// SHA-256 of `bytes`.
    pub digest: ManifestDigest,
    /// Its media type, OCI's or Docker's.
    pub media_type: String,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations; empty where there are none.
    pub annotations: BTreeMap<String, String>,
}

/// An image index (Docker: manifest list).
#[derive(Clone, Debug)]
pub struct Index {
    /// SHA-256 of the bytes as received.
    pub digest: ManifestDigest,
    /// What it lists, in its order.
    pub entries: Vec<IndexEntry>,
}

/// An entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Media type of what it points to: a manifest or another index.
    pub media_type: String,
    /// Digest of what it points to; text, since entries that are not chosen may be of any algorithm.
    pub digest: String,
    /// Size in bytes of what it points to.
    pub size: u64,
    /// For which machine; `None` where the index does not say.
    pub platform: Option<Platform>,
    /// What it is if it is no image, where the index says so: a signature, a bill of materials.
    pub artifact_type: Option<String>,
    /// Annotations; empty where there are none.
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest request gave.
#[derive(Clone, Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several to choose from.
    Index(Index),
}

/// An image's config, the parts that matter for booting it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bytes as received.
    pub bytes: Vec<u8>,
    /// GOARCH; empty where the config does not say.
    pub architecture: String,
    /// `v7` and the like.
    pub variant: Option<String>,
    /// GOOS; empty where the config does not say.
    pub os: String,
    /// The layers' tar streams, lowest first: as many as the manifest has layers.
    pub diff_ids: Vec<DiffId>,
    /// Labels; empty where there are none.
    pub labels: BTreeMap<String, String>,
    /// When it was built; `None` where the config does not say or says no time.
    pub created: Option<jiff::Timestamp>,
}

/// What [`wire::OciImageIndex`] leaves out.
#[derive(Deserialize)]
struct RawTypes {
    manifests: Vec<RawType>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawType {
    artifact_type: Option<String>,
}

/// Just enough to see what kind of document this is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
    blobs: Option<serde::de::IgnoredAny>,
}

impl Descriptor {
    /// How the layer is compressed, by its media type (which [`Document::parse`] has checked).
    pub fn compression(&self) -> Compression {
        match self.media_type.rsplit(['+', '.']).next() {
            Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

impl Document {
    /// Reads a manifest or an index. `content_type` is the registry's header, if it came with one; `name` names the
    /// thing in errors.
    pub fn parse(bytes: Vec<u8>, content_type: Option<&str>, name: &str) -> Result<Self> {
        let fail = |why: String| Error::Manifest {
            reference: name.into(),
            why,
        };
        let shape: Shape = serde_json::from_slice(&bytes).map_err(|e| fail(format!("is not valid JSON: {e}")))?;
        let digest = ManifestDigest::from_hash(Sha256::digest(&bytes).into());
        match kind(&shape, content_type).map_err(fail)? {
            Kind::Index => Ok(Self::Index(Index::read(&bytes, digest).map_err(fail)?)),
            Kind::Manifest => Ok(Self::Manifest(Manifest::read(bytes, digest).map_err(fail)?)),
        }
    }

    /// SHA-256 of the bytes as received.
    pub fn digest(&self) -> ManifestDigest {
        match self {
            Self::Manifest(manifest) => manifest.digest,
            Self::Index(index) => index.digest,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

fn kind_of(media_type: &str) -> Option<Kind> {
    match media_type {
        wire::OCI_IMAGE_MEDIA_TYPE | wire::IMAGE_MANIFEST_MEDIA_TYPE => Some(Kind::Manifest),
        wire::OCI_IMAGE_INDEX_MEDIA_TYPE | wire::IMAGE_MANIFEST_LIST_MEDIA_TYPE => Some(Kind::Index),
        _ => None,
    }
}

/// A document that could be read as either kind is neither (CVE-2021-41190).
fn kind(shape: &Shape, content_type: Option<&str>) -> Result<Kind, String> {
    let content_type = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
    let old = content_type.is_some_and(|t| t.starts_with("application/vnd.docker.distribution.manifest.v1"));
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() || old {
        return Err(
            "is a Docker manifest of schema 1, which is too old; push the image again with a current tool".into(),
        );
    }
    if shape.schema_version != Some(2) {
        return Err("has no schemaVersion 2: this is no image manifest".into());
    }
    if shape.manifests.is_some() && (shape.config.is_some() || shape.layers.is_some()) {
        return Err("is an index and a manifest at once; refused, since tools would read it differently".into());
    }
    if shape.blobs.is_some() || shape.artifact_type.as_deref().is_some_and(|t| !t.is_empty()) {
        let artifact = shape
            .artifact_type
            .as_deref()
            .or(shape.media_type.as_deref())
            .unwrap_or("unknown");
        return Err(format!("is an artifact of type {artifact}, not an OS image"));
    }
    let by_shape = match (shape.manifests.is_some(), shape.layers.is_some()) {
        (true, _) => Kind::Index,
        (false, true) => Kind::Manifest,
        (false, false) => return Err("lists neither layers nor manifests: this is no image manifest".into()),
    };
    for said in shape.media_type.as_deref().into_iter().chain(content_type) {
        match kind_of(said) {
            Some(kind) if kind != by_shape => {
                return Err(format!("says that it is {said}, but its content is something else"));
            }
            None if Some(said) == shape.media_type.as_deref() => {
                return Err(format!("is of type {said}, not an OCI or Docker image"));
            }
            _ => {}
        }
    }
    Ok(by_shape)
}

impl Manifest {
    fn read(bytes: Vec<u8>, digest: ManifestDigest) -> Result<Self, String> {
        let raw: wire::OciImageManifest = serde_json::from_slice(&bytes).map_err(|e| format!("cannot be read: {e}"))?;
        check_config_type(&raw.config.media_type)?;
        let layers = raw.layers.into_iter().enumerate();
        let layers = layers.map(|(at, layer)| {
            let said = format!("layer {} of type {}", at + 1, layer.media_type);
            check_layer_type(&layer.media_type).map_err(|why| format!("{said} {why}"))?;
            descriptor(layer)
        });
        Ok(Self {
            digest,
            media_type: raw.media_type.unwrap_or_else(|| wire::OCI_IMAGE_MEDIA_TYPE.into()),
            layers: layers.collect::<Result<_, String>>()?,
            config: descriptor(raw.config)?,
            annotations: raw.annotations.unwrap_or_default(),
            bytes,
        })
    }
}

fn descriptor(raw: wire::OciDescriptor) -> Result<Descriptor, String> {
    Ok(Descriptor {
        digest: raw.digest.parse().map_err(|_| unsupported(&raw.digest))?,
        size: u64::try_from(raw.size).map_err(|_| format!("{} has the size {}", raw.digest, raw.size))?,
        media_type: raw.media_type,
        annotations: raw.annotations.unwrap_or_default(),
    })
}

fn unsupported(digest: &str) -> String {
    match digest.split_once(':') {
        Some((other, _)) if other != "sha256" => {
            format!("refers to {digest}; digests of the algorithm {other} are not supported, push it with sha256")
        }
        _ => format!("refers to {digest:?}, which is no digest"),
    }
}

fn check_config_type(media_type: &str) -> Result<(), String> {
    match media_type {
        wire::IMAGE_CONFIG_MEDIA_TYPE | wire::IMAGE_DOCKER_CONFIG_MEDIA_TYPE => Ok(()),
        other => Err(format!(
            "is an artifact (its config is of type {other}), not an OS image"
        )),
    }
}

fn check_layer_type(media_type: &str) -> Result<(), &'static str> {
    const OCI: &str = wire::IMAGE_LAYER_MEDIA_TYPE;
    const DOCKER: &str = wire::IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE;
    if media_type.contains("nondistributable") || media_type.contains(".foreign.") {
        return Err("may not be distributed by registries and cannot be fetched; push the image with that layer in it");
    }
    if media_type.ends_with("+encrypted") {
        return Err("is encrypted, which is not supported");
    }
    let tail = media_type.strip_prefix(OCI).or_else(|| media_type.strip_prefix(DOCKER));
    match tail {
        Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => Ok(()),
        Some(_) => Err("is in a compression that is not supported (there are none, gzip and zstd)"),
        None => Err("is not a tar archive: this is an artifact, not an OS image"),
    }
}

impl Index {
    fn read(bytes: &[u8], digest: ManifestDigest) -> Result<Self, String> {
        let raw: wire::OciImageIndex = serde_json::from_slice(bytes).map_err(|e| format!("cannot be read: {e}"))?;
        let types: RawTypes = serde_json::from_slice(bytes).map_err(|e| format!("cannot be read: {e}"))?;
        // Of an image that is its config's type.
        let artifact = |kind: &String| !kind.is_empty() && check_config_type(kind).is_err();
        let entries = raw.manifests.into_iter().zip(types.manifests).map(|(entry, kind)| {
            Ok(IndexEntry {
                artifact_type: kind.artifact_type.filter(artifact),
                size: u64::try_from(entry.size).map_err(|_| format!("{} has the size {}", entry.digest, entry.size))?,
                platform: entry.platform.map(Platform::from_wire),
                media_type: entry.media_type,
                digest: entry.digest,
                annotations: entry.annotations.unwrap_or_default(),
            })
        });
        Ok(Self {
            digest,
            entries: entries.collect::<Result<_, String>>()?,
        })
    }

    /// The entry for `platform`: the best variant that it can run, as containers/image ranks them, and of several the
    /// one that says that its layers are zstd; no artifact. An only entry without a platform is taken for any machine.
    /// `name` names the index in errors.
    pub fn choose(&self, platform: &Platform, name: &str) -> Result<&IndexEntry> {
        let usable = |entry: &&IndexEntry| kind_of(&entry.media_type).is_some() && entry.artifact_type.is_none();
        let best = (self.entries.iter().filter(usable))
            .filter_map(|entry| Some((platform.rank(entry.platform.as_ref()?)?, entry)))
            .min_by_key(|(rank, entry)| (*rank, entry.annotations.get(SAYS_ZSTD).is_none_or(|is| is != "true")));
        if let Some((_, entry)) = best {
            return Ok(entry);
        }
        let mut unnamed = self.entries.iter().filter(usable).filter(|e| e.platform.is_none());
        if let (Some(only), None) = (unnamed.next(), unnamed.next()) {
            return Ok(only);
        }
        let mut has: Vec<_> = self
            .entries
            .iter()
            .filter_map(|e| e.platform.as_ref())
            .map(Platform::to_string)
            .collect();
        has.dedup();
        Err(Error::Manifest {
            reference: name.into(),
            why: match has.is_empty() {
                true => format!("has no image for {platform}"),
                false => format!("has no image for {platform}, only for {}", has.join(", ")),
            },
        })
    }
}

impl IndexEntry {
    /// Its digest as one that can be fetched. `name` names the index in errors.
    pub fn manifest_digest(&self, name: &str) -> Result<ManifestDigest> {
        self.digest.parse().map_err(|_| Error::Manifest {
            reference: name.into(),
            why: unsupported(&self.digest),
        })
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    created: Option<String>,
    rootfs: Option<RawRootfs>,
    config: Option<RawRuntime>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawRuntime {
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, Option<String>>>,
}

impl Config {
    /// Reads the config of `manifest`, and checks that it names as many tar streams as that has layers.
    pub fn parse(bytes: Vec<u8>, manifest: &Manifest) -> Result<Self> {
        let fail = |why: String| Error::Manifest {
            reference: manifest.digest.to_string(),
            why: format!("config {}: {why}", manifest.config.digest),
        };
        let raw: RawConfig =
            serde_json::from_slice(&bytes).map_err(|e| fail(format!("is not an image config: {e}")))?;
        let diff_ids = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() != manifest.layers.len() {
            let (diff_ids, layers) = (diff_ids.len(), manifest.layers.len());
            return Err(fail(format!(
                "names {diff_ids} diff_ids, but the manifest has {layers} layers"
            )));
        }
        let diff_ids = diff_ids.iter().map(|id| id.parse().map_err(|_| fail(unsupported(id))));
        let labels = raw.config.and_then(|config| config.labels).unwrap_or_default();
        Ok(Self {
            diff_ids: diff_ids.collect::<Result<_>>()?,
            architecture: raw.architecture,
            variant: raw.variant.filter(|variant| !variant.is_empty()),
            os: raw.os,
            labels: labels
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect(),
            created: raw.created.and_then(|text| text.parse().ok()),
            bytes,
        })
    }

    /// Refuses an image that was built for another machine than `platform`. A config that does not say is believed.
    pub fn check_platform(&self, platform: &Platform, name: &str) -> Result<()> {
        let built_for = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        if self.architecture.is_empty() || platform.rank(&built_for).is_some() {
            return Ok(());
        }
        Err(Error::Manifest {
            reference: name.into(),
            why: format!("is built for {built_for} and cannot run on {platform}"),
        })
    }
}

#[cfg(test)]
mod tests;
