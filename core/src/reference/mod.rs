//! What the user follows: a repository of a registry, or a folder or archive with images.
//!
//! Text in, values out; nothing here touches a file or the network. Invariant: a [`Reference`] is fully qualified (a
//! registry, a repository, and a tag or digest), it never holds white space or control characters where a line-based
//! record could be broken by them, and `Display` reads back as the same value.
//!
//! Grammar: distribution's reference grammar for registries, containers-transports(5) for the rest.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::ids::ManifestDigest;

mod layout;
mod name;

pub use layout::{Choice, Layout};
pub use name::{Name, check_host};

/// An image, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// `quay.io/org/os:41`, with or without `docker://`.
    Registry(Name),
    /// `oci:DIR[:NAME]`: a folder in OCI image layout.
    Layout(Layout),
    /// `oci-archive:FILE[:NAME]`: such a folder as a tar file, compressed or not.
    OciArchive(Layout),
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes, compressed or not.
    DockerArchive(Layout),
    /// `containers-storage:NAME`: an image of podman on this machine. The text after the transport.
    ContainersStorage(String),
}

/// Transports of containers-transports(5) that no image to boot comes from.
const FOREIGN: [&str; 8] = [
    "dir:",
    "docker-daemon:",
    "sif:",
    "tarball:",
    "ostree:",
    "atomic:",
    "ostree-image-signed:",
    "ostree-unverified-image:",
];

impl Reference {
    /// `registry`, `oci`, `oci-archive`, `docker-archive` or `containers-storage`: the names of bootc's `transport`.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Registry(_) => "registry",
            Self::Layout(_) => "oci",
            Self::OciArchive(_) => "oci-archive",
            Self::DockerArchive(_) => "docker-archive",
            Self::ContainersStorage(_) => "containers-storage",
        }
    }

    /// With its transport always written out, as skopeo and the origin file want it: `docker://quay.io/org/os:41`.
    pub fn with_transport(&self) -> String {
        match self {
            Self::Registry(name) => format!("docker://{name}"),
            other => other.to_string(),
        }
    }

    /// The digest that the user asked for, if any: it pins the image.
    pub fn digest(&self) -> Option<ManifestDigest> {
        match self {
            Self::Registry(name) => name.digest,
            Self::Layout(layout) | Self::OciArchive(layout) | Self::DockerArchive(layout) => layout.digest,
            Self::ContainersStorage(_) => None,
        }
    }

    /// The same image pinned to `digest`; transports that have no digests stay as they are.
    pub fn pinned(&self, digest: ManifestDigest) -> Self {
        let mut pinned = self.clone();
        match &mut pinned {
            Self::Registry(name) => name.digest = Some(digest),
            Self::Layout(layout) | Self::OciArchive(layout) => layout.digest = Some(digest),
            // Its manifest is made from it each time.
            Self::DockerArchive(_) | Self::ContainersStorage(_) => {}
        }
        pinned
    }

    /// The same with a relative folder or file made absolute against `base`, so that it can be recorded.
    pub fn absolute(&self, base: &Path) -> Self {
        let join = |layout: &Layout| Layout {
            path: base.join(&layout.path),
            ..layout.clone()
        };
        match self {
            Self::Layout(layout) => Self::Layout(join(layout)),
            Self::OciArchive(layout) => Self::OciArchive(join(layout)),
            Self::DockerArchive(layout) => Self::DockerArchive(join(layout)),
            other => other.clone(),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: String| Error::Reference {
            reference: text.escape_debug().to_string(),
            why,
        };
        if text.is_empty() {
            return Err(fail("is empty; write one such as quay.io/org/os:41".into()));
        }
        if text.chars().any(char::is_control) {
            return Err(fail("has a control character in it".into()));
        }
        parse(text).map_err(fail)
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if let Some(rest) = text.strip_prefix("docker://") {
        return Ok(Reference::Registry(name::parse(rest, true)?));
    }
    type Make = fn(Layout) -> Reference;
    let files: [(&str, Make); 3] = [
        ("oci:", Reference::Layout),
        ("oci-archive:", Reference::OciArchive),
        ("docker-archive:", Reference::DockerArchive),
    ];
    for (prefix, make) in files {
        if let Some(rest) = text.strip_prefix(prefix) {
            return layout::parse(rest).map(make);
        }
    }
    match text.strip_prefix("containers-storage:") {
        Some("") => return Err("nothing follows containers-storage:".into()),
        Some(rest) => return Ok(Reference::ContainersStorage(rest.into())),
        None => {}
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(match scheme {
            "http" | "https" => format!("is an address; write {rest} without {scheme}://"),
            _ => format!("{scheme}:// is no known transport; write docker://, oci: or no transport at all"),
        });
    }
    if let Some(prefix) = FOREIGN.iter().find(|prefix| text.starts_with(**prefix)) {
        let known = "docker://, oci:, oci-archive:, docker-archive: and containers-storage: are";
        return Err(format!("the transport {prefix} is not supported; {known}"));
    }
    Ok(Reference::Registry(name::parse(text, false)?))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(name) => name.fmt(f),
            Self::Layout(layout) => write!(f, "oci:{layout}"),
            Self::OciArchive(rest) => write!(f, "oci-archive:{rest}"),
            Self::DockerArchive(rest) => write!(f, "docker-archive:{rest}"),
            Self::ContainersStorage(rest) => write!(f, "containers-storage:{rest}"),
        }
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<ManifestDigest>), String> {
    let Some((rest, digest)) = text.split_once('@') else {
        return Ok((text, None));
    };
    Ok((rest, Some(parse_digest(digest)?)))
}

fn parse_digest(digest: &str) -> Result<ManifestDigest, String> {
    let why = match digest.split_once(':') {
        Some(("sha256", _)) => "is not sha256: and 64 lower-case hex digits",
        Some(("sha384" | "sha512" | "blake3", _)) => "is of an algorithm that is not supported; give the sha256 digest",
        _ => "is not a digest; write @sha256: and 64 lower-case hex digits",
    };
    digest.parse().map_err(|_| format!("{digest:?} {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
