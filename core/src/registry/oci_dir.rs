//! An OCI image layout, in a folder or in an archive.
//!
//! Nothing of it is trusted: blobs are opened by digest only, and what is read is checked like what comes from
//! a registry.

use std::ops::Range;

use serde::Deserialize;

use super::files::Files;
use super::{Again, Body, Failure, Fetched, Transport, Wanted};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, DiffId, ManifestDigest};
use crate::manifest::{Descriptor, Document, Index, IndexEntry, MANIFEST_LIMIT};
use crate::monitor::Monitor;
use crate::reference::{Choice, Layout};

/// Annotation of an index entry: the name of its image.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of an index entry of ours whose layers are not compressed any more: the digest of the manifest that the
/// image had in its registry, which lies beside it.
pub(crate) const ORIGINAL_MANIFEST: &str = "cfs-update.original-manifest";
/// The media type of a layer that is not compressed.
pub(crate) const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Debug)]
pub(super) struct OciDir {
    layout: Layout,
    files: Files,
}

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl OciDir {
    /// Checks that these are the files of such a layout.
    pub(super) fn open(layout: &Layout, files: Files) -> Result<Self> {
        let dir = Self {
            layout: layout.clone(),
            files,
        };
        let Some(text) = dir.files.read("oci-layout", 4096)? else {
            let colon = match layout.choice() {
                Choice::Named(name) if name.contains('/') => {
                    " (the name ends at the first `:`; link one with `:` in it to one without)"
                }
                _ => "",
            };
            return Err(Error::File {
                path: layout.path().into(),
                why: format!("is not an OCI image layout: there is no file oci-layout in it{colon}"),
            });
        };
        let broken = |why| broken(dir.files.name("oci-layout"), why);
        let marker: Marker = serde_json::from_slice(&text).map_err(|e| broken(format!("is malformed: {e}")))?;
        match marker.version.starts_with("1.") {
            true => Ok(dir),
            false => Err(broken(format!(
                "is of layout version {}; only 1 is known",
                marker.version
            ))),
        }
    }

    /// It has not the image that is meant, as a registry may not have it.
    fn lacks(&self, why: String) -> Error {
        Error::Network {
            url: format!("{}{}", self.transport(), self.layout.path().display()),
            why,
        }
    }

    fn transport(&self) -> &'static str {
        match self.files {
            Files::Folder(_) => "oci:",
            Files::Archive(_) => "oci-archive:",
        }
    }

    fn index(&self) -> Result<Index> {
        let path = self.files.name("index.json");
        let bytes = self.files.read("index.json", MANIFEST_LIMIT)?;
        let bytes = bytes.ok_or_else(|| missing(path.clone()))?;
        match Document::parse(bytes, None, &path)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(broken(path, "is a manifest, not an index".into())),
        }
    }

    fn top(&self) -> Result<ManifestDigest> {
        if let Some(pinned) = self.layout.digest() {
            return match self.has(&pinned)? {
                true => Ok(pinned),
                false => Err(self.lacks(format!("has no image {pinned}"))),
            };
        }
        let index = self.index()?;
        let entry = self.pick(&index.entries)?;
        // Its digest still says what may be run: it names the config, which names the layers' tars.
        let original = entry
            .annotations
            .get(ORIGINAL_MANIFEST)
            .and_then(|text| text.parse().ok());
        match original {
            Some(digest) if self.has(&digest)? => Ok(digest),
            _ => entry.manifest_digest(&self.url(Wanted::Top)),
        }
    }

    fn has(&self, manifest: &ManifestDigest) -> Result<bool> {
        Ok(self.files.size(&path_of(&manifest.to_hex()))?.is_some())
    }

    fn pick<'i>(&self, entries: &'i [IndexEntry]) -> Result<&'i IndexEntry> {
        let all = || {
            let named = entries
                .iter()
                .filter_map(|entry| entry.annotations.get(REF_NAME).map(String::as_str));
            match named.collect::<Vec<_>>()[..] {
                [] => "none of them has a name; choose by place (:@0) or digest (@sha256:…)".into(),
                ref names => format!("it has: {}", names.join(", ")),
            }
        };
        match self.layout.choice() {
            Choice::Only => match entries {
                [only] => Ok(only),
                [] => Err(self.lacks("has no image in it".into())),
                _ => {
                    let same = entries.iter().all(|entry| entry.digest == entries[0].digest);
                    match same {
                        true => Ok(&entries[0]),
                        false => Err(self.lacks(format!("has {} images; say which, {}", entries.len(), all()))),
                    }
                }
            },
            Choice::At(place) => (entries.get(*place))
                .ok_or_else(|| self.lacks(format!("has {} images; there is no @{place}", entries.len()))),
            Choice::Named(name) => {
                let mut named = entries
                    .iter()
                    .filter(|entry| entry.annotations.get(REF_NAME) == Some(name));
                let first = named
                    .next()
                    .ok_or_else(|| self.lacks(format!("has no image {name:?}; {}", all())))?;
                match named.find(|entry| entry.digest != first.digest) {
                    Some(_) => Err(self.lacks(format!("has several images {name:?}; choose by digest (@sha256:…)"))),
                    None => Ok(first),
                }
            }
        }
    }
}

impl Transport for OciDir {
    fn url(&self, wanted: Wanted) -> String {
        match wanted {
            Wanted::Top => format!("{}{}", self.transport(), self.layout),
            Wanted::Digest(digest) => self.files.name(&path_of(&digest.to_hex())),
        }
    }

    fn head(&self, _: &dyn Monitor) -> Result<Option<ManifestDigest>, Failure> {
        Ok(Some(self.top()?))
    }

    fn manifest(&self, wanted: Wanted, _: &dyn Monitor) -> Result<Fetched, Failure> {
        let digest = match wanted {
            Wanted::Top => self.top()?,
            Wanted::Digest(digest) => digest,
        };
        let path = path_of(&digest.to_hex());
        let name = || self.files.name(&path);
        let bytes = self.files.read(&path, MANIFEST_LIMIT)?.ok_or_else(|| missing(name()))?;
        super::check_digest(&name(), digest, &bytes)?;
        Ok(Fetched {
            bytes,
            content_type: None,
        })
    }

    fn blob(&self, digest: &BlobDigest, size: u64, wanted: Range<u64>, _: &dyn Monitor) -> Result<Body, Failure> {
        let (from, whole) = (wanted.start, false);
        let path = path_of(&digest.to_hex());
        let name = || self.files.name(&path);
        let (found, reader) = self.files.open(&path, from)?.ok_or_else(|| missing(name()))?;
        match found == size {
            true => Ok(Body { reader, from, whole }),
            false => Err(wrong_size(name(), size, found)),
        }
    }

    fn plain(&self, layer: &Descriptor, diff_id: &DiffId) -> Result<Option<Descriptor>> {
        if self.files.size(&path_of(&layer.digest.to_hex()))?.is_some() {
            return Ok(None);
        }
        let tar = self.files.size(&path_of(&diff_id.to_hex()))?;
        Ok(tar.map(|size| Descriptor {
            media_type: PLAIN_LAYER.into(),
            digest: BlobDigest::from_hash(*diff_id.as_bytes()),
            size,
            annotations: std::collections::BTreeMap::new(),
        }))
    }
}

fn path_of(hex: &str) -> String {
    format!("blobs/sha256/{hex}")
}

pub(super) fn wrong_size(what: String, size: u64, found: u64) -> Failure {
    Failure {
        error: Error::Mismatch {
            what,
            expected: format!("{size} bytes"),
            found: format!("{found} bytes"),
        },
        again: Again::Never,
        refused: false,
    }
}

/// A file of an image on this machine that is not what it should be: no network would help.
pub(super) fn broken(name: String, why: String) -> Error {
    Error::File { path: name.into(), why }
}

pub(super) fn missing(name: String) -> Error {
    broken(name, "is missing: the image is incomplete; copy it again".into())
}
