//! An image of podman's by what people call it, its manifest and its config.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::{DATA_LIMIT, Image, ImageRecord, SHORTEST_ID, Storage, is_id};
use crate::error::{Error, Result};
use crate::ids::ManifestDigest;
use crate::sys::fs;

/// What a name asks for.
enum Asked<'n> {
    Name(&'n str),
    Id(&'n str),
    Digest(&'n str),
}

impl<'n> Asked<'n> {
    fn of(name: &'n str) -> Self {
        let is_id = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match name.rsplit_once('@') {
            Some((_, id)) if is_id(id) => Self::Id(id),
            Some((_, digest)) => Self::Digest(digest),
            None => match name.strip_prefix("sha256:") {
                Some(id) if is_id(id) => Self::Id(id),
                _ => Self::Name(name),
            },
        }
    }
}

impl Storage {
    /// The image that podman calls so: a name with or without its tag, an id or its beginning, `NAME@ID`,
    /// `NAME@sha256:…`.
    ///
    /// # Errors
    /// [`Error::Network`] where there is none, or more than one; [`Error::File`] where its manifest is missing;
    /// [`Error::Mismatch`] where that is not what it was.
    pub fn image(&self, name: &str) -> Result<Image> {
        let asked = Asked::of(name);
        let record = self.find(&asked, name)?;
        let missing = || Error::File {
            path: self.reference().into(),
            why: format!("image {name} has no manifest; pull it again"),
        };
        let manifest = match asked {
            Asked::Digest(digest) => match self.manifest_of(record, digest)? {
                Some(manifest) => manifest,
                None => {
                    let found = self.data(record, "manifest")?.ok_or_else(missing)?;
                    return Err(mismatch(name, digest, &found));
                }
            },
            _ => self.data(record, "manifest")?.ok_or_else(missing)?,
        };
        // A list has no config, so that nothing else would tell.
        if let Some(digest) = record
            .data_digest("manifest")
            .filter(|_| !matches!(asked, Asked::Digest(_)))
            && digest != digest_of(&manifest)
        {
            return Err(mismatch(name, digest, &manifest));
        }
        Ok(Image {
            manifest,
            id: record.id.clone(),
        })
    }

    /// A manifest that an index names: of the image itself, or of another one.
    ///
    /// # Errors
    /// What reading gives.
    pub fn manifest(&self, image: &Image, digest: &ManifestDigest) -> Result<Option<Vec<u8>>> {
        let digest = digest.to_string();
        for record in self
            .of(&image.id)
            .chain(&self.images)
            .filter(|record| is_id(&record.id))
        {
            if record.has_manifest(&digest)
                && let Some(manifest) = self.manifest_of(record, &digest)?
            {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// The config of an image, by its digest in hex; `None` where there is none.
    ///
    /// # Errors
    /// What reading gives.
    pub fn config(&self, id: &str, digest_hex: &str) -> Result<Option<Vec<u8>>> {
        let key = format!("sha256:{digest_hex}");
        for record in self.of(id).chain(self.of(digest_hex)) {
            if let Some(config) = self.data(record, &key)? {
                return Ok(Some(config));
            }
        }
        Ok(None)
    }

    fn of<'s>(&'s self, id: &'s str) -> impl Iterator<Item = &'s ImageRecord> {
        self.images.iter().filter(move |image| image.id == id && is_id(id))
    }

    fn find(&self, asked: &Asked<'_>, name: &str) -> Result<&ImageRecord> {
        let images = || self.images.iter().filter(|image| is_id(&image.id));
        let found = match *asked {
            Asked::Digest(digest) => images()
                .find(|image| image.digest.as_deref() == Some(digest))
                .or_else(|| images().find(|image| image.has_manifest(digest))),
            Asked::Id(id) => images().find(|image| image.id == id),
            Asked::Name(name) => match self.named(name)? {
                Some(found) => Some(found),
                None => self.by_beginning(name)?,
            },
        };
        found.ok_or_else(|| {
            let mut why = format!("has no image {name:?}; `podman images` lists what is there");
            for passed in &self.passed_over {
                why.push_str(&format!(" (not looked into: {passed})"));
            }
            self.lacks(why)
        })
    }

    fn named(&self, name: &str) -> Result<Option<&ImageRecord>> {
        let tagged = match name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
            true => name.to_owned(),
            false => format!("{name}:latest"),
        };
        let candidates = [
            tagged.clone(),
            format!("localhost/{tagged}"),
            format!("docker.io/{tagged}"),
            format!("docker.io/library/{tagged}"),
        ];
        let images = || self.images.iter().filter(|image| is_id(&image.id));
        let names = |image: &ImageRecord, fits: &dyn Fn(&str) -> bool| image.names.iter().flatten().any(|n| fits(n));
        let mut exact = candidates
            .iter()
            .filter_map(|wanted| images().find(|image| names(image, &|name| name == wanted)));
        if let Some(found) = exact.next() {
            return Ok(Some(found));
        }
        // As podman: an image whose name ends so.
        let end = format!("/{tagged}");
        let mut ending = images().filter(|image| names(image, &|name| name.ends_with(&end)));
        let found = ending.next();
        match (
            found,
            ending.find(|other| found.is_some_and(|found| other.id != found.id)),
        ) {
            (_, Some(_)) => Err(self.lacks(format!(
                "has several images whose names end with {end}; give all of one"
            ))),
            (found, None) => Ok(found),
        }
    }

    fn by_beginning(&self, name: &str) -> Result<Option<&ImageRecord>> {
        if name.len() < SHORTEST_ID || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut found = self
            .images
            .iter()
            .filter(|image| is_id(&image.id) && image.id.starts_with(name));
        let only = found.next();
        match found.find(|other| only.is_some_and(|only| other.id != only.id)) {
            Some(_) => Err(self.lacks(format!("has several images whose id begins with {name}"))),
            None => Ok(only),
        }
    }

    /// The manifest of this digest, as podman keeps it.
    fn manifest_of(&self, record: &ImageRecord, digest: &str) -> Result<Option<Vec<u8>>> {
        for key in [&format!("manifest-{digest}"), "manifest"] {
            if let Some(manifest) = self.data(record, key)?
                && digest_of(&manifest) == digest
            {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    fn data(&self, image: &ImageRecord, key: &str) -> Result<Option<Vec<u8>>> {
        let name = match key
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.')
        {
            true => key.to_owned(),
            false => format!("={}", STANDARD.encode(key)),
        };
        let folder = self.stores[image.store].of("images");
        fs::read(&folder.join(&image.id).join(name), DATA_LIMIT)
    }

    /// For messages.
    fn reference(&self) -> String {
        let place = self.stores.first();
        let place = place.map(|store| format!("[{}@{}]", store.driver, store.root.display()));
        format!("containers-storage:{}", place.unwrap_or_default())
    }

    /// It has not the image that is meant, as a registry may not have it.
    fn lacks(&self, why: String) -> Error {
        Error::Network {
            url: self.reference(),
            why,
        }
    }
}

impl ImageRecord {
    fn data_digest(&self, key: &str) -> Option<&str> {
        self.data_digests.as_ref()?.get(key).map(String::as_str)
    }

    fn has_manifest(&self, digest: &str) -> bool {
        let known = self.data_digests.iter().flatten();
        let mut manifests = known.filter(|(key, _)| key.starts_with("manifest"));
        self.digest.as_deref() == Some(digest) || manifests.any(|(_, found)| found == digest)
    }
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn mismatch(name: &str, expected: &str, found: &[u8]) -> Error {
    Error::Mismatch {
        what: format!("podman's manifest of {name}"),
        expected: expected.into(),
        found: digest_of(found),
    }
}
