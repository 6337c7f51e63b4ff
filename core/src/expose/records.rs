//! What podman reads of an image that it is shown: the records of `images.json` and `layers.json`.
//!
//! podman's tools for history, commits and builds count an image's layers, so there is a record for each of them: the
//! highest is the composefs image with all the files, the others are empty. Invariant: ids are made of the digests as
//! containers/image makes them, so that it finds the layers of a base again when it writes an image that stands on
//! them; and the digests are such that no tar has, so that it takes none of them for another image's.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{DiffId, ObjectId};
use crate::manifest::{Config, Manifest};

/// An image that podman sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The image id.
    pub id: String,
    /// The manifest's digest; of several with one config, the first one's.
    pub digest: String,
    /// Its names.
    #[serde(default)]
    pub names: Vec<String>,
    /// Its highest layer, which has its files.
    pub layer: String,
    #[serde(rename = "big-data-names")]
    data_names: Vec<String>,
    #[serde(rename = "big-data-sizes")]
    data_sizes: BTreeMap<String, usize>,
    #[serde(rename = "big-data-digests")]
    data_digests: BTreeMap<String, String>,
    created: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShownLayer {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    created: String,
    #[serde(rename = "diff-digest")]
    diff_digest: String,
    #[serde(rename = "diff-size")]
    diff_size: u64,
    /// Ours alone: the image that it is; nothing where it is one of the empty ones below that.
    #[serde(rename = "cfs-update-image")]
    pub image: String,
}

/// All that is needed of one image.
pub(super) struct Ready {
    pub shown: Shown,
    /// Lowest first.
    pub layers: Vec<ShownLayer>,
    /// By the name that podman has for it.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl Shown {
    /// What its folder below `overlay-images` holds.
    pub(super) fn files(&self) -> impl Iterator<Item = String> {
        self.data_names.iter().map(|name| file_name(name))
    }
}

/// As containers-storage calls the file of an image's data.
pub(super) fn file_name(name: &str) -> String {
    match name.contains(':') {
        true => format!("={}", STANDARD.encode(name)),
        false => name.into(),
    }
}

impl ShownLayer {
    pub(super) fn is_empty_one(&self) -> bool {
        self.image.is_empty()
    }

    /// Its name below `overlay/l`.
    pub(super) fn link(&self) -> String {
        self.id[..26].to_uppercase()
    }
}

impl Ready {
    /// `sizes`: those of the layers' tars, lowest first.
    pub(super) fn new(digest: String, manifest: Manifest, config: Config, image: &ObjectId, sizes: &[u64]) -> Self {
        let created = config.created.unwrap_or_default().to_string();
        let id = manifest.config.digest.to_hex();
        let layers = layers(&config.diff_ids, sizes, image, &created);
        let mut ready = Self {
            shown: Shown {
                layer: layers.last().map(|layer| layer.id.clone()).unwrap_or_default(),
                created,
                id: id.clone(),
                digest: digest.clone(),
                ..Shown::default()
            },
            layers,
            data: BTreeMap::new(),
        };
        ready.add("manifest".into(), manifest.bytes.clone());
        ready.add(format!("manifest-{digest}"), manifest.bytes);
        ready.add(format!("sha256:{id}"), config.bytes);
        ready
    }

    /// The other manifest's digest leads to it, too: what one config has in two compressions is one image to podman.
    pub(super) fn also(&mut self, other: Self) {
        for (name, bytes) in other.data {
            if !self.data.contains_key(&name) {
                self.add(name, bytes);
            }
        }
    }

    fn add(&mut self, name: String, bytes: Vec<u8>) {
        self.shown.data_names.push(name.clone());
        self.shown.data_sizes.insert(name.clone(), bytes.len());
        let digest = format!("sha256:{}", hash(&bytes));
        self.shown.data_digests.insert(name.clone(), digest);
        self.data.insert(name, bytes);
    }
}

/// A layer for each of the image's own. Those below the highest stand for the layers whose diff_ids they are made of,
/// and images that have these in common share them.
fn layers(diff_ids: &[DiffId], sizes: &[u64], image: &ObjectId, created: &str) -> Vec<ShownLayer> {
    let (size, below) = sizes.split_last().unwrap_or((&0, &[]));
    let mut layers: Vec<ShownLayer> = Vec::new();
    let mut add = |seed: String, size: u64, image: String| {
        let digest = hash(format!("cfs-update {seed}"));
        let parent = layers.last().map(|below| below.id.clone());
        layers.push(ShownLayer {
            id: match &parent {
                Some(parent) => hash(format!("{parent}+{digest}")),
                None => digest.clone(),
            },
            parent,
            created: created.into(),
            diff_digest: format!("sha256:{digest}"),
            diff_size: size,
            image,
        });
    };
    for (diff_id, size) in diff_ids.iter().zip(below) {
        add(format!("below {diff_id}"), *size, String::new());
    }
    add(image.to_string(), *size, image.to_hex());
    layers
}

fn hash(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_as_many_layers_as_its_own_and_shares_those_that_it_has_in_common() {
        let id = |byte: &str| format!("sha256:{}", byte.repeat(32)).parse::<DiffId>().unwrap();
        let image: ObjectId = "ab".repeat(32).parse().unwrap();
        let of = |ids: &[&str]| {
            let ids: Vec<DiffId> = ids.iter().map(|byte| id(byte)).collect();
            let sizes: Vec<u64> = (1..=ids.len() as u64).collect();
            layers(&ids, &sizes, &image, "1970-01-01T00:00:00Z")
        };
        let three = of(&["01", "02", "03"]);
        let parents: Vec<_> = three.iter().map(|layer| layer.parent.as_deref()).collect();
        assert_eq!(parents, [None, Some(&*three[0].id), Some(&*three[1].id)]);
        assert_eq!(three.iter().map(|layer| layer.diff_size).sum::<u64>(), 6);
        let empty: Vec<_> = three.iter().map(ShownLayer::is_empty_one).collect();
        assert_eq!(empty, [true, true, false]);
        let expected = hash(format!("{}+{}", three[0].id, &three[1].diff_digest[7..]));
        assert_eq!(three[1].id, expected, "as containers/image makes them");
        let other = of(&["01", "02", "04"]);
        assert_eq!(three, other, "the files are all in the highest one");
        let other = of(&["01", "04", "03"]);
        assert_eq!(three[0], other[0]);
        assert!(three[1].id != other[1].id && three[2].id != other[2].id);
        // The one layer of such an image is called as it always was.
        let one = of(&["01"]);
        assert_eq!((one.len(), &one[0].parent), (1, &None));
        assert_eq!(one[0].id, hash(format!("cfs-update {image}")));
        assert_eq!(of(&[]), {
            let mut one = one;
            one[0].diff_size = 0;
            one
        });
    }
}
