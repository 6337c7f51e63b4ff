//! To a folder in OCI image layout, which may hold other images already.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{COPY, Content, OCI_MANIFEST, Outgoing, Target};
use crate::error::{Error, Result};
use crate::ids::ManifestDigest;
use crate::manifest::{Descriptor, MANIFEST_LIMIT};
use crate::monitor::Monitor;
use crate::reference::{Choice, Layout, Reference};
use crate::registry::{ORIGINAL_MANIFEST, REF_NAME};
use crate::sys::fs::{self, Fs, RealFs};

pub(super) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    name: Option<String>,
    index: Value,
}

impl Folder {
    /// Looks whether images can go there; writes nothing.
    pub(super) fn open(layout: &Layout, reference: &Reference) -> Result<Self> {
        let path = layout.path().to_path_buf();
        let name = name(layout, reference)?;
        let refuse = |why: &str| Error::Reference {
            reference: reference.to_string(),
            why: why.into(),
        };
        let index = match fs::read(&path.join("index.json"), MANIFEST_LIMIT)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .ok()
                .filter(|index: &Value| index["manifests"].is_array())
                .ok_or_else(|| refuse("has an index.json that is none; move it away"))?,
            None if fs::names(&path)?.is_empty() => json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}),
            // What an interrupted run left has no index yet.
            None if fs::exists(&path.join("oci-layout")) => {
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
            }
            None => return Err(refuse("is a folder with something else in it; give another one")),
        };
        Ok(Self { path, name, index })
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.path.join("blobs/sha256").join(hex)
    }

    /// A leftover of an interrupted run is overwritten.
    fn write(&self, hex: &str, content: Content<'_>) -> Result<()> {
        let folder = self.path.join("blobs/sha256");
        if !fs::is_dir(&folder) {
            fs::create_dir_all(&RealFs, &folder, 0o755)?;
            fs::replace(&RealFs, &self.path.join("oci-layout"), 0o644, MARKER)?;
        }
        let temporary = folder.join(format!(".#{hex}"));
        RealFs.remove_file(&temporary)?;
        let file = fs::new_file(&temporary, 0o644)?;
        let mut out = BufWriter::with_capacity(COPY, file);
        let written = content(&mut out).and_then(|()| out.flush().map_err(|e| Error::io("write", &temporary, e)));
        drop(out);
        match written {
            Ok(()) => RealFs.rename(&temporary, &self.blob(hex)),
            Err(error) => {
                let _ = RealFs.remove_file(&temporary);
                Err(error)
            }
        }
    }

    fn write_bytes(&self, hex: &str, bytes: &[u8]) -> Result<()> {
        self.write(hex, &mut |out| super::copy_all(&mut &*bytes, out))
    }
}

/// The name that the image gets in the layout.
pub(super) fn name(layout: &Layout, reference: &Reference) -> Result<Option<String>> {
    match (layout.choice(), layout.digest()) {
        (Choice::Only, None) => Ok(None),
        (Choice::Named(name), None) => Ok(Some(name.clone())),
        _ => Err(Error::Reference {
            reference: reference.to_string(),
            why: "a new image has no place or digest there yet; write a name, or none".into(),
        }),
    }
}

/// The entry of `index.json`.
pub(super) fn entry(name: Option<&str>, manifest: &Outgoing<'_>) -> Value {
    let mut entry = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest.to_string(),
        "size": manifest.bytes.len(),
    });
    if let Some(name) = name {
        entry["annotations"][REF_NAME] = name.into();
    }
    if let Some(original) = manifest.original {
        debug_assert_eq!(manifest.media_type, OCI_MANIFEST);
        entry["annotations"][ORIGINAL_MANIFEST] = original.digest.to_string().into();
    }
    entry
}

/// `index.json` of one image.
pub(super) fn index_of(entry: &Value) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
}

fn hash_of(path: &Path) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut file = fs::open_own_file(path)?;
    let mut buffer = vec![0; COPY];
    loop {
        let n = std::io::Read::read(&mut file, &mut buffer).map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..n]);
    }
}

impl Target for Folder {
    fn is_there(&mut self, _: &ManifestDigest, _: &dyn Monitor) -> Result<bool> {
        // Its blobs are looked at one by one: a folder can be damaged.
        Ok(false)
    }

    fn has(&mut self, blob: &Descriptor, _: &dyn Monitor) -> Result<bool> {
        let path = self.blob(&blob.digest.to_hex());
        if !fs::exists(&path) || fs::metadata(&path)?.len() != blob.size {
            return Ok(false);
        }
        Ok(hash_of(&path)? == *blob.digest.as_bytes())
    }

    fn put(&mut self, blob: &Descriptor, content: Content<'_>, _: &dyn Monitor) -> Result<()> {
        self.write(&blob.digest.to_hex(), content)
    }

    fn finish(&mut self, manifest: &Outgoing<'_>, _: &dyn Monitor) -> Result<()> {
        self.write_bytes(&manifest.digest.to_hex(), manifest.bytes)?;
        if let Some(original) = manifest.original {
            self.write_bytes(&original.digest.to_hex(), &original.bytes)?;
        }
        RealFs.sync_all(&self.path)?;
        let entry = entry(self.name.as_deref(), manifest);
        let same = |other: &Value| match &self.name {
            Some(name) => other["annotations"][REF_NAME] == name.as_str(),
            None => other["annotations"].get(REF_NAME).is_none(),
        };
        if let Some(entries) = self.index["manifests"].as_array_mut() {
            entries.retain(|other| !same(other));
            entries.push(entry);
        }
        let text = self.index.to_string();
        fs::replace(&RealFs, &self.path.join("index.json"), 0o644, text.as_bytes())
    }

    fn folder(&self) -> Option<PathBuf> {
        existing(&self.path)
    }
}

/// The folder itself or the first one above it that is there.
pub(super) fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.is_dir()).map(PathBuf::from)
}
