//! The names by which manifests and images are kept: links in `streams/refs/oci` and `images/refs/cfs-update`.
//!
//! As composefs-oci has them. Invariant: they are made by `publish` alone, when what they lead to is durable; removing
//! one is durable at once, and what it led to stays until garbage is collected.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::ids::{ManifestDigest, ObjectId};
use crate::store::Store;
use crate::sys::fs;

/// A name as a file name: `%` and `/` escaped, as composefs-oci does.
pub(super) fn encode(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn decode(file: &str) -> String {
    file.replace("%2F", "/").replace("%25", "%")
}

/// Refuses what cannot be a name.
pub(super) fn name_problem(name: &str) -> Result<()> {
    let why = match name {
        "" | "." | ".." => "is no name",
        _ if name.starts_with('@') => "starts with @, which marks a digest",
        _ if name.contains(['\0', '\n']) => "has a control character",
        _ if encode(name).len() > 255 => "is too long: 255 bytes at most, / as three; give a shorter one",
        _ => return Ok(()),
    };
    Err(Error::Usage(format!("the image name {name:?} {why}")))
}

impl Store {
    /// Whether a manifest can be named so.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that cannot be one.
    pub fn check_name(name: &str) -> Result<()> {
        name_problem(name)
    }

    /// Removes a name of a manifest, durably; a missing one is success. Objects stay until garbage is collected.
    ///
    /// # Errors
    /// What removing gives.
    pub fn untag(&self, name: &str) -> Result<()> {
        self.remove_name("streams/refs/oci", name)
    }

    /// Removes one of our names of an image, durably; a missing one is success.
    ///
    /// # Errors
    /// What removing gives.
    pub fn unname_image(&self, name: &str) -> Result<()> {
        self.remove_name("images/refs/cfs-update", name)
    }

    /// All names of manifests.
    ///
    /// # Errors
    /// What listing gives; names that lead to no manifest are left out.
    pub fn tags(&self) -> Result<BTreeMap<String, ManifestDigest>> {
        self.names("streams/refs/oci", |target| {
            target.strip_prefix("oci-manifest-")?.parse().ok()
        })
    }

    /// Our names of images.
    ///
    /// # Errors
    /// What listing gives; names that lead to no image are left out.
    pub fn image_names(&self) -> Result<BTreeMap<String, ObjectId>> {
        self.names("images/refs/cfs-update", |target| target.parse().ok())
    }

    fn names<T>(&self, folder: &str, parse: impl Fn(&str) -> Option<T>) -> Result<BTreeMap<String, T>> {
        let folder = self.path.join(folder);
        let mut names = BTreeMap::new();
        for file in fs::names(&folder)? {
            let target = fs::read_link(&folder.join(&file)).ok().flatten();
            let last = target
                .as_deref()
                .and_then(Path::file_name)
                .and_then(|name| name.to_str());
            if let (Some(file), Some(value)) = (file.to_str(), last.and_then(&parse)) {
                names.insert(decode(file), value);
            }
        }
        Ok(names)
    }

    fn remove_name(&self, folder: &str, name: &str) -> Result<()> {
        name_problem(name)?;
        let folder = self.path.join(folder);
        let path = folder.join(encode(name));
        if !fs::exists(&path) {
            return Ok(());
        }
        self.fs.remove_file(&path)?;
        self.fs.sync_dir(&folder)
    }
}
