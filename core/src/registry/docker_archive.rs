//! What `docker save` and `podman save` write: configs and layers, listed by `manifest.json`.
//!
//! It has no manifest of the kind that registries have; one is made here, always the same for the same archive: layers
//! are named by their diff_ids, which the config lists, so that they are checked like any other. Where Docker keeps
//! its images in containerd, it saves layers as they are in registries, compressed: these are named by their own
//! digests.

use std::collections::HashMap;
use std::ops::Range;

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::archive::{Archive, Packing};
use super::oci_dir::{broken, missing, wrong_size};
use super::{Body, Failure, Fetched, Transport, Wanted};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, ManifestDigest};
use crate::manifest::{CONFIG_LIMIT, MANIFEST_LIMIT};
use crate::monitor::Monitor;
use crate::reference::{Choice, Layout};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Debug)]
pub(super) struct DockerArchive {
    reference: String,
    archive: Archive,
    manifest: Vec<u8>,
    /// The member that has a blob.
    blobs: HashMap<BlobDigest, String>,
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<BlobDigest>>,
}

impl DockerArchive {
    pub(super) fn open(layout: &Layout, archive: Archive) -> Result<Self> {
        let reference = format!("docker-archive:{layout}");
        let refuse = |member: &str, why: String| broken(archive.name(member), why);
        let list = archive.read("manifest.json", MANIFEST_LIMIT)?;
        let list = list.ok_or_else(|| Error::File {
            path: layout.path().into(),
            why: "is not what `docker save` writes: it has no manifest.json".into(),
        })?;
        let images: Vec<Saved> =
            serde_json::from_slice(&list).map_err(|e| refuse("manifest.json", format!("is malformed: {e}")))?;
        // As a registry may not have what is asked for.
        let lacks = |why| Error::Network {
            url: reference.clone(),
            why,
        };
        let image = pick(&images, layout.choice()).map_err(lacks)?;
        let config = archive.read(&image.config, CONFIG_LIMIT)?;
        let config = config.ok_or_else(|| missing(archive.name(&image.config)))?;
        let diff_ids = serde_json::from_slice::<Config>(&config)
            .map_err(|e| refuse(&image.config, format!("is malformed: {e}")))?
            .rootfs
            .diff_ids
            .unwrap_or_default();
        let members = image.layers.as_deref().unwrap_or_default();
        if diff_ids.len() != members.len() {
            let (layers, ids) = (members.len(), diff_ids.len());
            let why = format!("lists {layers} layers, the config {} lists {ids}", image.config);
            return Err(refuse("manifest.json", why));
        }
        let config_digest = BlobDigest::from_hash(Sha256::digest(&config).into());
        let mut blobs = HashMap::from([(config_digest, image.config.clone())]);
        let mut layers = Vec::new();
        for (member, diff_id) in members.iter().zip(diff_ids) {
            let size = archive.size(member).ok_or_else(|| missing(archive.name(member)))?;
            let (digest, suffix) = match archive.packing(member)? {
                None => (diff_id, ""),
                Some(Packing::Gzip) => (packed(&archive, member)?, "+gzip"),
                Some(Packing::Zstd) => (packed(&archive, member)?, "+zstd"),
                Some(Packing::Xz | Packing::Bzip2) => {
                    let why = "is in a compression that layers do not have (there are none, gzip and zstd)";
                    return Err(refuse(member, why.into()));
                }
            };
            let media_type = format!("{LAYER_TYPE}{suffix}");
            layers.push(json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}));
            blobs.insert(digest, member.clone());
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config_digest.to_string(), "size": config.len()},
            "layers": layers,
        });
        Ok(Self {
            manifest: manifest.to_string().into_bytes(),
            reference,
            archive,
            blobs,
        })
    }
}

/// The digest of a compressed layer. What its name says is checked when it is read.
fn packed(archive: &Archive, member: &str) -> Result<BlobDigest> {
    let named = member
        .strip_prefix("blobs/sha256/")
        .and_then(|hex| format!("sha256:{hex}").parse().ok());
    named.map_or_else(|| archive.hash(member).map(BlobDigest::from_hash), Ok)
}

/// The image that is meant.
fn pick<'i>(images: &'i [Saved], choice: &Choice) -> Result<&'i Saved, String> {
    let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let all = || {
        let names: Vec<String> = images.iter().flat_map(tags).collect();
        match names.is_empty() {
            true => "none of them has a name; choose by place (:@0)".into(),
            false => format!("it has: {}", names.join(", ")),
        }
    };
    match choice {
        Choice::Only => match images {
            [only] => Ok(only),
            _ => Err(format!("has {} images; say which, {}", images.len(), all())),
        },
        Choice::At(place) => images
            .get(*place)
            .ok_or_else(|| format!("has {} images; there is no @{place}", images.len())),
        Choice::Named(name) => {
            let full = |name: &str| match name.rsplit_once('/').map_or(name, |(_, last)| last).contains(':') {
                true => name.to_owned(),
                false => format!("{name}:latest"),
            };
            // Docker and podman leave off, or not, what goes without saying.
            let short = |name: &str| {
                let name = name.strip_prefix("docker.io/").unwrap_or(name);
                name.strip_prefix("library/").unwrap_or(name).to_owned()
            };
            let wanted = short(&full(name));
            let fits = |image: &&Saved| tags(image).iter().any(|tag| short(&full(tag)) == wanted);
            images
                .iter()
                .find(fits)
                .ok_or_else(|| format!("has no image {name:?}; {}", all()))
        }
    }
}

impl Transport for DockerArchive {
    fn url(&self, wanted: Wanted) -> String {
        match wanted {
            Wanted::Top => self.reference.clone(),
            Wanted::Digest(digest) => format!("{} {digest}", self.reference),
        }
    }

    fn head(&self, _: &dyn Monitor) -> Result<Option<ManifestDigest>, Failure> {
        Ok(Some(super::digest_of(&self.manifest)))
    }

    fn manifest(&self, _: Wanted, _: &dyn Monitor) -> Result<Fetched, Failure> {
        Ok(Fetched {
            bytes: self.manifest.clone(),
            content_type: None,
        })
    }

    fn blob(&self, digest: &BlobDigest, size: u64, wanted: Range<u64>, _: &dyn Monitor) -> Result<Body, Failure> {
        let none = || missing(format!("{} {digest}", self.reference));
        let member = self.blobs.get(digest).ok_or_else(none)?;
        let found = self.archive.size(member).ok_or_else(none)?;
        if found != size {
            return Err(wrong_size(self.archive.name(member), size, found));
        }
        let from = wanted.start;
        let reader = self.archive.reader(member, from).ok_or_else(none)?;
        Ok(Body {
            reader: Box::new(reader),
            from,
            whole: false,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_whatever_either_side_leaves_off() {
        let names = [
            "debian:13",
            "docker.io/library/alpine:latest",
            "docker.io/org/os:1",
            "quay.io/os:1",
        ];
        let images = names.map(|name| -> Saved {
            serde_json::from_value(json!({"Config": name, "RepoTags": [name], "Layers": []})).unwrap()
        });
        let found = |name: &str| pick(&images, &Choice::Named(name.into())).map(|image| image.config.clone());
        for (asked, name) in [
            ("debian:13", 0),
            ("library/debian:13", 0),
            ("docker.io/debian:13", 0),
            ("docker.io/library/debian:13", 0),
            ("alpine", 1),
            ("docker.io/library/alpine", 1),
            ("org/os:1", 2),
            ("quay.io/os:1", 3),
        ] {
            assert_eq!(found(asked).as_deref(), Ok(names[name]), "{asked}");
        }
        for asked in ["debian", "os:1", "docker.io/os:1", "quay.io/library/os:1"] {
            assert!(found(asked).is_err(), "{asked}");
        }
    }
}
