//! An image in a folder in OCI image layout, or in an archive: containers-transports(5).

use std::fmt;
use std::path::{Path, PathBuf};

use super::parse_digest;
use crate::ids::ManifestDigest;

/// An image in a folder or archive with several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Layout {
    pub(super) path: PathBuf,
    pub(super) choice: Choice,
    pub(super) digest: Option<ManifestDigest>,
}

/// Which image of a layout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Choice {
    /// The only one.
    #[default]
    Only,
    /// By its `org.opencontainers.image.ref.name`.
    Named(String),
    /// By its place in `index.json`, from 0.
    At(usize),
}

impl Layout {
    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which of its images.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The digest, if the image is pinned.
    pub fn digest(&self) -> Option<ManifestDigest> {
        self.digest
    }
}

/// As containers/image reads it: folder or file ends at the first `:`. A digest may follow at the end of either part.
pub(super) fn parse(text: &str) -> Result<Layout, String> {
    let (rest, digest) = match text.rfind("@sha256:").or_else(|| text.rfind("@sha512:")) {
        Some(at) => (&text[..at], Some(parse_digest(&text[at + 1..])?)),
        None => (text, None),
    };
    let (path, image) = rest.split_once(':').unwrap_or((rest, ""));
    if path.is_empty() {
        return Err(
            "names no folder or file; write it behind the transport, as in oci:DIR or oci-archive:FILE:NAME".into(),
        );
    }
    let choice = match image {
        "" => Choice::Only,
        image => match image.strip_prefix('@') {
            Some(number) => Choice::At(number.parse().map_err(|_| {
                format!("{image:?} is neither a place in index.json such as @0 nor a digest such as @sha256:…")
            })?),
            None if image.contains(char::is_whitespace) => {
                return Err(format!("the image name {image:?} has white space in it"));
            }
            None => Choice::Named(image.into()),
        },
    };
    Ok(Layout {
        path: path.into(),
        choice,
        digest,
    })
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.choice {
            Choice::Only => {}
            Choice::Named(name) => write!(f, ":{name}")?,
            Choice::At(place) => write!(f, ":@{place}")?,
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}
