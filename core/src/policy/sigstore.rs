//! Signatures as cosign, skopeo and podman make them: a small JSON document, signed with a key.
//!
//! Invariant: nothing of the document is looked at before its signature was verified, and a signature counts only for
//! the manifest digest and the name that the document has.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, alg_id};
use serde::Deserialize;
use serde::de::IgnoredAny;
use spki::SubjectPublicKeyInfoRef;
use spki::der::{Decode, Encode};

use super::{Identity, SignedName};
use crate::ids::ManifestDigest;
use crate::reference::Name;

/// The media type of the document's blob.
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of that blob with its signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Documents above this many bytes are refused.
pub const PAYLOAD_LIMIT: u64 = 1 << 20;

const KIND: &str = "cosign container image signature";

/// A public key: ECDSA over P-256 or P-384, RSA from 2048 bits on, or ed25519; with SHA-256 but for the last.
#[derive(Debug)]
pub struct PublicKey {
    algorithms: Vec<&'static dyn SignatureVerificationAlgorithm>,
    key: Vec<u8>,
}

impl PublicKey {
    /// Reads PEM (`-----BEGIN PUBLIC KEY-----`; RFC 7468, 13).
    ///
    /// # Errors
    /// Why it is none that can be used.
    pub fn from_pem(text: &[u8]) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text)
            .map_err(|e| format!("is no public key in PEM ({e}); write one from -----BEGIN PUBLIC KEY-----"))?;
        let broken = |e: spki::der::Error| format!("is no public key ({e})");
        let parsed = SubjectPublicKeyInfoRef::from_der(&der).map_err(broken)?;
        let kind = parsed.algorithm.to_der().map_err(broken)?;
        let key = parsed.subject_public_key.as_bytes().ok_or("is no public key")?.to_vec();
        let hashes = [alg_id::ECDSA_SHA256, alg_id::RSA_PKCS1_SHA256, alg_id::ED25519];
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let fits = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            // Compared with its contents: what identifies an algorithm stands in a sequence of less than 128 bytes.
            kind.get(2..) == Some(algorithm.public_key_alg_id().as_ref())
                && hashes.contains(&algorithm.signature_alg_id())
        };
        let algorithms: Vec<_> = known.all.iter().filter(fits).copied().collect();
        match algorithms.is_empty() {
            true => Err("is a key of a kind that is not supported; use ECDSA P-256 as cosign does".into()),
            false => Ok(Self { algorithms, key }),
        }
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let mut algorithms = self.algorithms.iter();
        algorithms.any(|algorithm| algorithm.verify_signature(&self.key, message, signature).is_ok())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Critical,
    #[serde(default)]
    #[allow(dead_code, reason = "may be there")]
    optional: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Signed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Signed {
    docker_reference: String,
}

/// Whether a document with its signature (base64) vouches for one of `manifests`; the number of the key that signed it.
///
/// # Errors
/// Why it does not.
pub fn verify(
    payload: &[u8],
    signature: &str,
    keys: &[PublicKey],
    identity: &Identity,
    asked: Option<&Name>,
    manifests: &[ManifestDigest],
) -> Result<usize, String> {
    let signature = STANDARD
        .decode(signature.trim())
        .map_err(|_| "a signature is not base64")?;
    let signer = keys.iter().position(|key| key.has_signed(payload, &signature));
    let signer = signer.ok_or("a signature is by none of the keys")?;
    let document: Document = serde_json::from_slice(payload).map_err(|e| format!("a signed document is none: {e}"))?;
    let Critical {
        kind,
        image,
        identity: name,
    } = document.critical;
    if kind != KIND {
        return Err(format!("what was signed is {kind:?}, not {KIND:?}"));
    }
    if !manifests
        .iter()
        .any(|one| one.to_string() == image.docker_manifest_digest)
    {
        return Err(format!(
            "a signature is for the manifest {}",
            image.docker_manifest_digest
        ));
    }
    let signed = SignedName::parse(&name.docker_reference)?;
    match identity.fits(asked, &signed) {
        true => Ok(signer),
        false => Err(format!(
            "a signature is for {}; `signedIdentity` says which name it has to have",
            name.docker_reference
        )),
    }
}
