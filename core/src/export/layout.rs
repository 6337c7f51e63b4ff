//! To a folder in OCI image layout, which may hold other images already.
//!
//! Invariant: one run at a time writes there, under a lock on the folder from before its first byte to the end of
//! `index.json`, which is read under that lock: no run overwrites what another one entered.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::draft::Draft;
use super::{COPY, Content, OCI_MANIFEST, Outgoing, Target};
use crate::error::{Error, Result};
use crate::ids::ManifestDigest;
use crate::manifest::{Descriptor, MANIFEST_LIMIT};
use crate::monitor::Monitor;
use crate::reference::{Choice, Layout, Reference};
use crate::registry::{ORIGINAL_MANIFEST, REF_NAME};
use crate::sys::fs::{self, Fs, RealFs};
use crate::sys::lock::FolderLock;

pub(super) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    name: Option<String>,
    /// For messages.
    reference: String,
    /// From the beginning where there is a folder, else from the first byte on.
    lock: Option<FolderLock>,
}

impl Folder {
    /// Looks whether images can go there; writes nothing.
    pub(super) fn open(layout: &Layout, reference: &Reference) -> Result<Self> {
        let path = layout.path().to_path_buf();
        let name = name(layout, reference)?;
        let mut folder = Self {
            path,
            name,
            reference: reference.to_string(),
            lock: None,
        };
        if fs::leads_to_dir(&folder.path) {
            folder.lock()?;
        }
        folder.index()?;
        Ok(folder)
    }

    /// Excludes other runs from here on.
    fn lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.lock = Some(FolderLock::exclusive(&self.path, "another export")?);
        }
        Ok(())
    }

    /// What is there now.
    fn index(&self) -> Result<Value> {
        let refuse = |why: &str| Error::Reference {
            reference: self.reference.clone(),
            why: why.into(),
        };
        let new = || json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []});
        match fs::read(&self.path.join("index.json"), MANIFEST_LIMIT)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .ok()
                .filter(|index: &Value| index["manifests"].is_array())
                .ok_or_else(|| refuse("has an index.json that is none; move it away")),
            // What an interrupted run left has no index yet.
            None if fs::names(&self.path)?.is_empty() || fs::exists(&self.path.join("oci-layout")) => Ok(new()),
            None => Err(refuse("is a folder with something else in it; give another one")),
        }
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.path.join("blobs/sha256").join(hex)
    }

    /// A leftover of an interrupted run is overwritten.
    fn write(&mut self, hex: &str, content: Content<'_>) -> Result<()> {
        let folder = self.path.join("blobs/sha256");
        if self.lock.is_none() {
            fs::create_dir_all(&RealFs, &self.path, 0o755)?;
            self.lock()?;
        }
        if !fs::is_dir(&folder) {
            fs::create_dir_all(&RealFs, &folder, 0o755)?;
            fs::replace(&RealFs, &self.path.join("oci-layout"), 0o644, MARKER)?;
        }
        let (mut draft, file) = Draft::new(folder.join(format!(".#{hex}")))?;
        let path = self.blob(hex);
        let mut out = BufWriter::with_capacity(COPY, file);
        content(&mut out)?;
        out.flush().map_err(|e| Error::io("write", &path, e))?;
        draft.keep_as(&path)
    }

    fn write_bytes(&mut self, hex: &str, bytes: &[u8]) -> Result<()> {
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

/// Whether a new entry takes the place of one that is there: the one with its name, and the same image without a name.
/// Other images without a name stay; digests tell them apart.
fn replaces(new: &Value, there: &Value) -> bool {
    let name = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(String::from);
    match name(there) {
        None => new["digest"] == there["digest"],
        there => name(new) == there,
    }
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
        let mut index = self.index()?;
        if let Some(entries) = index["manifests"].as_array_mut() {
            entries.retain(|other| !replaces(&entry, other));
            entries.push(entry);
        }
        let text = index.to_string();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::monitor::Quiet;

    fn open(folder: &Path, name: &str) -> Result<Folder> {
        let reference: Reference = format!("oci:{}:{name}", folder.display()).parse()?;
        let Reference::Layout(layout) = &reference else {
            unreachable!("it is one");
        };
        Folder::open(layout, &reference)
    }

    fn finish(folder: &mut Folder, bytes: &[u8]) -> Result<()> {
        let manifest = Outgoing {
            bytes,
            media_type: OCI_MANIFEST,
            digest: ManifestDigest::from_hash(Sha256::digest(bytes).into()),
            original: None,
        };
        folder.finish(&manifest, &Quiet)
    }

    fn names(folder: &Path) -> Vec<String> {
        let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
        let entries = index["manifests"].as_array().unwrap().iter();
        entries
            .map(|entry| entry["annotations"][REF_NAME].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn an_entry_is_replaced_by_one_with_its_name_and_one_without_by_the_same_image() {
        let entry = |name: &str, digest: &str| match name {
            "" => json!({ "digest": digest }),
            name => json!({ "digest": digest, "annotations": { REF_NAME: name } }),
        };
        let of = |new: (&str, &str), there: (&str, &str)| replaces(&entry(new.0, new.1), &entry(there.0, there.1));
        assert!(of(("a", "1"), ("a", "2")) && of(("", "1"), ("", "1")) && of(("a", "1"), ("", "1")));
        assert!(!of(("", "1"), ("", "2")), "another image without a name stays");
        assert!(!of(("", "1"), ("a", "1")), "a name is not lost");
        assert!(!of(("a", "1"), ("b", "1")) && !of(("a", "1"), ("", "2")));
    }

    #[test]
    fn of_two_runs_that_begin_at_the_same_time_neither_loses_what_the_other_entered() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("layout");
        let (mut one, mut two) = (open(&folder, "one").unwrap(), open(&folder, "two").unwrap());
        assert!(!folder.exists(), "looking makes nothing");
        finish(&mut one, b"{}").unwrap();
        assert_eq!(finish(&mut two, b"[]").unwrap_err().kind(), Kind::Busy);
        assert_eq!(open(&folder, "three").unwrap_err().kind(), Kind::Busy);
        drop(one);
        finish(&mut two, b"[]").unwrap();
        drop(two);
        finish(&mut open(&folder, "one").unwrap(), b"[1]").unwrap();
        assert_eq!(names(&folder), ["two", "one"]);
    }
}
