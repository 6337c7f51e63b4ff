//! What is signed: the JSON statement inside a seal.
//!
//! Text only, no file system. Every field is there so that one replay is impossible: the type (a signature made for
//! something else), the image and its format, the manifest, the reference (another image's name), the counter and the
//! time (an older image), the key (another key's signature).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ImageFacts, KeyId};
use crate::error::{Error, Result};
use crate::ids::{DeploymentId, ManifestDigest};

/// The domain: a signature over anything else never counts as one over a deployment.
pub const STATEMENT_TYPE: &str = "cfs-update/deployment-seal";

/// The version that this program writes and the only one that it reads.
pub const STATEMENT_VERSION: u32 = 1;

/// References longer than this are refused; registries allow far less.
const REFERENCE_LIMIT: usize = 4096;

/// One statement, in the order of the JSON fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "type")]
    kind: String,
    /// [`STATEMENT_VERSION`].
    format_version: u32,
    /// EROFS format version of the image: 1.
    pub erofs_format: u32,
    /// `fsverity-sha256-12` or `fsverity-sha512-12`; agrees with the length of `image`.
    algorithm: String,
    /// fs-verity digest of the boot image, hex.
    #[serde(rename = "imageDigest")]
    pub image: DeploymentId,
    /// `sha256:…` of the manifest.
    #[serde(rename = "manifestDigest")]
    pub manifest: ManifestDigest,
    /// The reference that the image was asked for by.
    #[serde(rename = "imageReference")]
    pub reference: String,
    /// When it was signed, RFC 3339 in UTC with whole seconds.
    pub created: Timestamp,
    /// Grows with every signature of this machine.
    pub counter: u64,
    /// The key that signs; must be the one that the envelope names.
    pub key_id: KeyId,
}

impl Statement {
    /// A statement of this version about an image; fractions of a second are dropped.
    pub fn new(facts: &ImageFacts, key_id: KeyId, counter: u64, created: Timestamp) -> Self {
        Self {
            kind: STATEMENT_TYPE.into(),
            format_version: STATEMENT_VERSION,
            erofs_format: facts.erofs_format,
            algorithm: facts.id.algorithm().name().into(),
            image: facts.id,
            manifest: facts.manifest,
            reference: facts.reference.clone(),
            created: Timestamp::from_second(created.as_second()).unwrap_or(created),
            counter,
            key_id,
        }
    }

    /// The payload: compact JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`Error::Trust`] for anything but a complete statement of this type and version: unknown, missing or repeated
    /// fields, trailing data, an algorithm that is not the digest's.
    pub fn parse(payload: &[u8]) -> Result<Self> {
        let refuse = |why: String| Error::Trust {
            what: "signed statement".into(),
            why,
        };
        // The version first: a later one may have other fields, and then that is what to say.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(rename = "type")]
            kind: String,
            format_version: u32,
        }
        let head: Head = serde_json::from_slice(payload).map_err(|e| refuse(format!("not a statement: {e}")))?;
        if head.kind != STATEMENT_TYPE {
            return Err(refuse(format!("it is a {:?}, not a {STATEMENT_TYPE:?}", head.kind)));
        }
        if head.format_version != STATEMENT_VERSION {
            return Err(refuse(format!(
                "it has format version {}, this program reads {STATEMENT_VERSION}; use a newer cfs-update",
                head.format_version
            )));
        }
        let statement: Self = serde_json::from_slice(payload).map_err(|e| refuse(format!("not a statement: {e}")))?;
        if statement.algorithm != statement.image.algorithm().name() {
            return Err(refuse(format!(
                "its image digest is not one of {}",
                statement.algorithm
            )));
        }
        if statement.reference.len() > REFERENCE_LIMIT {
            return Err(refuse("its image reference is too long".into()));
        }
        Ok(statement)
    }
}
