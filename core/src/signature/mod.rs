//! Signatures of deployments: who vouches that this image is what that manifest became.
//!
//! The `sign` stage: [`ImageFacts`] of a synced image go in, a [`SignedImage`] comes out, and only a `SignedImage`
//! can become a deployment. Its proof is `seal.json`, a DSSE envelope ([`Envelope`]) over a [`Statement`].
//!
//! Invariants: a [`SignedImage`] exists only after its signature was verified, also one that was made a moment ago;
//! a [`Verified`] statement was signed by exactly the key that it names, and that key is trusted and not revoked.
//! Whatever cannot be read, has another length, a field more or less, or is spelled otherwise than this program spells
//! it, is refused. A power cut cannot leave half a key or a counter that goes back: both are replaced whole and synced
//! before their first use.

mod counter;
mod envelope;
mod key;
mod statement;
mod trust;

pub use counter::{COUNTERS_FILE, Freshness, Next, check_downgrade, next_counter};
pub(crate) use envelope::claimed;
pub use envelope::{Envelope, PAYLOAD_TYPE, SEAL_LIMIT, Verified, pre_authentication_encoding, verify};
pub use key::{HOST_KEY, HOST_PUBLIC_KEY, KEYS_DIR, KeyId, PublicKey, SigningKey};
pub use statement::{STATEMENT_TYPE, STATEMENT_VERSION, Statement};
pub use trust::{REVOKED_DIR, TRUSTED_DIR, TrustStore, add as add_key, read as read_keys};

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::ids::{DeploymentId, ManifestDigest};
use crate::synced::Synced;

/// What is known of an image that is complete and durable in the store: the input of signing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// fs-verity digest of the boot image.
    pub id: DeploymentId,
    /// Digest of the manifest (of this architecture, not of the index) that it was made from.
    pub manifest: ManifestDigest,
    /// The reference that it was asked for by, canonical: `docker://quay.io/org/os:41`, `oci:/dir:tag`.
    pub reference: String,
    /// EROFS format version of the image; 1.
    pub erofs_format: u32,
}

impl ImageFacts {
    fn agree(&self, statement: &Statement) -> Result<()> {
        let differ = |field: &str, signed: String, here: String| {
            Err(Error::Trust {
                what: format!("signature of {}", self.id),
                why: format!("it is for the {field} {signed}, but this is {here}; deploy the image again"),
            })
        };
        if statement.image != self.id {
            return differ("image", statement.image.to_string(), self.id.to_string());
        }
        if statement.manifest != self.manifest {
            return differ("manifest", statement.manifest.to_string(), self.manifest.to_string());
        }
        if statement.reference != self.reference {
            return differ("reference", statement.reference.clone(), self.reference.clone());
        }
        if statement.erofs_format != self.erofs_format {
            return differ(
                "EROFS format",
                statement.erofs_format.to_string(),
                self.erofs_format.to_string(),
            );
        }
        Ok(())
    }
}

/// An image with a signature that was verified: the only thing that can become a deployment or get a boot entry.
#[derive(Clone, Debug)]
pub struct SignedImage {
    facts: ImageFacts,
    verified: Verified,
    seal: Vec<u8>,
}

impl SignedImage {
    /// Signs a synced image. `counter` comes from [`next_counter`], `created` is the clock now.
    ///
    /// # Errors
    /// [`Error::Trust`] where the fresh signature does not verify (a broken key file).
    pub fn sign(image: Synced<ImageFacts>, key: &SigningKey, counter: u64, created: Timestamp) -> Result<Self> {
        let facts = image.into_inner();
        let statement = Statement::new(&facts, key.public().id(), counter, created);
        let seal = Envelope::sign(&statement, key).to_bytes();
        Self::verify(facts, seal, &TrustStore::only(key.public()))
    }

    /// Takes an existing seal: verified against `trust` and compared with what it should be for.
    ///
    /// # Errors
    /// [`Error::Trust`] where anything does not hold.
    pub fn verify(facts: ImageFacts, seal: Vec<u8>, trust: &TrustStore) -> Result<Self> {
        let verified = verify(&seal, trust).map_err(|e| match e {
            Error::Trust { why, .. } => Error::Trust {
                what: format!("signature of {}", facts.id),
                why,
            },
            other => other,
        })?;
        facts.agree(verified.statement())?;
        Ok(Self { facts, verified, seal })
    }

    /// The image's digest, the deployment's id.
    pub fn id(&self) -> &DeploymentId {
        &self.facts.id
    }

    /// What it is an image of.
    pub fn facts(&self) -> &ImageFacts {
        &self.facts
    }

    /// What was signed, and the name of the key.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// The bytes of `seal.json`.
    pub fn seal(&self) -> &[u8] {
        &self.seal
    }
}

#[cfg(test)]
mod tests;
