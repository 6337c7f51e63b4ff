//! A folder in OCI image layout.
//!
//! Nothing of the folder is trusted: blobs are opened by digest only, and what is read is checked like what comes from
//! a registry.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Again, Body, Failure, Fetched, Transport, Wanted};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, ManifestDigest};
use crate::manifest::{Document, Index, IndexEntry, MANIFEST_LIMIT};
use crate::monitor::Monitor;
use crate::reference::{Choice, Layout};
use crate::sys::fs;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BUFFER: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct OciDir {
    layout: Layout,
}

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl OciDir {
    /// Checks that the folder is such a layout.
    pub(super) fn open(layout: &Layout) -> Result<Self> {
        let dir = Self { layout: layout.clone() };
        let marker = layout.path().join("oci-layout");
        let Some(text) = fs::read(&marker, 4096)? else {
            let colon = match layout.choice() {
                Choice::Named(name) if name.contains('/') => {
                    " (the folder ends at the first `:`; link a folder with `:` in its name to one without)"
                }
                _ => "",
            };
            return Err(dir.error(format!(
                "is not an OCI image layout: there is no file oci-layout in it{colon}"
            )));
        };
        let marker: Marker = serde_json::from_slice(&text).map_err(|e| dir.error(format!("oci-layout: {e}")))?;
        match marker.version.starts_with("1.") {
            true => Ok(dir),
            false => Err(dir.error(format!("is of layout version {}; only 1 is known", marker.version))),
        }
    }

    fn error(&self, why: String) -> Error {
        Error::Network {
            url: format!("oci:{}", self.layout.path().display()),
            why,
        }
    }

    fn path_of(&self, hex: &str) -> PathBuf {
        self.layout.path().join("blobs/sha256").join(hex)
    }

    fn index(&self) -> Result<Index> {
        let path = self.layout.path().join("index.json");
        let bytes = fs::read(&path, MANIFEST_LIMIT)?.ok_or_else(|| self.error("has no index.json".into()))?;
        match Document::parse(bytes, None, &path.display().to_string())? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(self.error("its index.json is a manifest, not an index".into())),
        }
    }

    fn top(&self) -> Result<ManifestDigest> {
        if let Some(pinned) = self.layout.digest() {
            return Ok(pinned);
        }
        let index = self.index()?;
        let entry = self.pick(&index.entries)?;
        entry.manifest_digest(&self.layout.to_string())
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
                [] => Err(self.error("has no image in it".into())),
                _ => {
                    let same = entries.iter().all(|entry| entry.digest == entries[0].digest);
                    match same {
                        true => Ok(&entries[0]),
                        false => Err(self.error(format!("has {} images; say which, {}", entries.len(), all()))),
                    }
                }
            },
            Choice::At(place) => (entries.get(*place))
                .ok_or_else(|| self.error(format!("has {} images; there is no @{place}", entries.len()))),
            Choice::Named(name) => {
                let mut named = entries
                    .iter()
                    .filter(|entry| entry.annotations.get(REF_NAME) == Some(name));
                let first = named
                    .next()
                    .ok_or_else(|| self.error(format!("has no image {name:?}; {}", all())))?;
                match named.find(|entry| entry.digest != first.digest) {
                    Some(_) => Err(self.error(format!("has several images {name:?}; choose by digest (@sha256:…)"))),
                    None => Ok(first),
                }
            }
        }
    }
}

impl Transport for OciDir {
    fn url(&self, wanted: Wanted) -> String {
        match wanted {
            Wanted::Top => self.layout.to_string(),
            Wanted::Digest(digest) => self.path_of(&digest.to_hex()).display().to_string(),
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
        let path = self.path_of(&digest.to_hex());
        let bytes = fs::read(&path, MANIFEST_LIMIT)?.ok_or_else(|| missing(&path))?;
        super::check_digest(&path.display().to_string(), digest, &bytes)?;
        Ok(Fetched {
            bytes,
            content_type: None,
        })
    }

    fn blob(&self, digest: &BlobDigest, size: u64, from: u64, _: &dyn Monitor) -> Result<Body, Failure> {
        let path = self.path_of(&digest.to_hex());
        let fail = |e| Error::io("read", &path, e);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing(&path).into()),
            Err(e) => return Err(fail(e).into()),
        };
        let found = file.metadata().map_err(fail)?.len();
        if found != size {
            return Err(Failure {
                error: Error::Mismatch {
                    what: path.display().to_string(),
                    expected: format!("{size} bytes"),
                    found: format!("{found} bytes"),
                },
                again: Again::Never,
            });
        }
        file.seek(SeekFrom::Start(from)).map_err(fail)?;
        let reader = Box::new(BufReader::with_capacity(BUFFER, file));
        Ok(Body { reader, from })
    }
}

fn missing(path: &Path) -> Error {
    Error::Network {
        url: path.display().to_string(),
        why: "is missing: the layout is incomplete; copy the image again".into(),
    }
}
