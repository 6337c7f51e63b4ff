//! The DSSE envelope around a statement (github.com/secure-systems-lab/dsse, protocol and envelope v1.0.0).
//!
//! What is signed is not the JSON but its pre-authentication encoding, so that no parser stands between the bytes and
//! the signature. Text only, no file system.
//!
//! Invariant: [`verify`] accepts exactly one spelling of an envelope, the one that [`Envelope::to_bytes`] writes. So a
//! change of any byte of `seal.json`, white space and the hint `keyid` included, is noticed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::{KeyId, PublicKey, SigningKey, Statement, TrustStore};
use crate::error::{Error, Result};

/// The media type of a seal's payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.cfs-update.seal.v1+json";

/// Seals larger than this many bytes are refused unread.
pub const SEAL_LIMIT: u64 = 64 * 1024;

/// One signature of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: KeyId,
    sig: String,
}

/// A DSSE envelope: payload type, payload, signatures. Not verified by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

/// A statement whose signature was checked; made by [`verify`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    statement: Statement,
    key: PublicKey,
}

impl Verified {
    /// What was signed.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The key that signed, with its name: `verified by NAME`.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// `DSSEv1 LEN(type) type LEN(payload) payload`, lengths in bytes as decimal numbers.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut text = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    text.extend_from_slice(payload);
    text
}

impl Envelope {
    /// Signs a statement.
    pub fn sign(statement: &Statement, key: &SigningKey) -> Self {
        let payload = statement.to_bytes();
        let signature = key.sign(&pre_authentication_encoding(PAYLOAD_TYPE, &payload));
        Self {
            payload_type: PAYLOAD_TYPE.into(),
            payload: BASE64.encode(payload),
            signatures: vec![Signature {
                keyid: key.public().id(),
                sig: BASE64.encode(signature),
            }],
        }
    }

    /// The one spelling: compact JSON and a line feed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// What a seal says, unverified: good for finding out what it was meant for, and for nothing else.
pub(crate) fn claimed(seal: &[u8]) -> Option<Statement> {
    let envelope: Envelope = serde_json::from_slice(seal).ok()?;
    Statement::parse(&BASE64.decode(&envelope.payload).ok()?).ok()
}

fn refuse(why: impl std::fmt::Display) -> Error {
    Error::Trust {
        what: "signature".into(),
        why: format!("{why}; the seal was changed, deploy the image again"),
    }
}

/// Checks a seal: spelling, payload type, one signature of 64 bytes by a key that is trusted and not revoked, and that
/// the statement names that key. What the statement says is for the caller to compare
/// ([`SignedImage::verify`](super::SignedImage::verify) does).
///
/// # Errors
/// [`Error::Trust`]; nothing of an envelope that fails is handed out.
pub fn verify(seal: &[u8], trust: &TrustStore) -> Result<Verified> {
    if seal.len() as u64 > SEAL_LIMIT {
        return Err(refuse(format!("larger than {SEAL_LIMIT} bytes")));
    }
    let envelope: Envelope = serde_json::from_slice(seal).map_err(|e| refuse(format!("not a DSSE envelope: {e}")))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(refuse(format!(
            "payload type {:?}, expected {PAYLOAD_TYPE:?}",
            envelope.payload_type
        )));
    }
    if envelope.to_bytes() != seal {
        return Err(refuse("it is not spelled as it was written"));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(refuse(format!(
            "{} signatures where one is expected",
            envelope.signatures.len()
        )));
    };
    let payload = BASE64
        .decode(&envelope.payload)
        .map_err(|e| refuse(format!("payload: {e}")))?;
    let raw = BASE64
        .decode(&signature.sig)
        .map_err(|e| refuse(format!("signature: {e}")))?;
    let raw: [u8; 64] = raw
        .try_into()
        .map_err(|raw: Vec<u8>| refuse(format!("a signature of {} bytes instead of 64", raw.len())))?;
    let key = trust.key(&signature.keyid)?;
    key.verify(&pre_authentication_encoding(&envelope.payload_type, &payload), &raw)?;
    let statement = Statement::parse(&payload)?;
    if statement.key_id != key.id() {
        return Err(refuse(format!(
            "made with key {}, but the statement names {}",
            key.id(),
            statement.key_id
        )));
    }
    Ok(Verified {
        statement,
        key: key.clone(),
    })
}
