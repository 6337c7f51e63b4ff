//! Keys, envelopes and trust: known answers, and everything that has to be refused.

mod counters;
mod keys;
mod seals;
mod trusted;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;

use super::*;
use crate::error::Kind;
use crate::ids::Algorithm;
use crate::sys::fs::RealFs;

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32], "host")
}

fn facts() -> ImageFacts {
    ImageFacts {
        id: DeploymentId::from_bytes(Algorithm::Sha256, &[0xab; 32]).unwrap(),
        manifest: ManifestDigest::from_hash([0xcd; 32]),
        reference: "docker://quay.io/org/os:41".into(),
        erofs_format: 1,
    }
}

fn time() -> Timestamp {
    "2026-11-21T18:00:00.987654321Z".parse().unwrap()
}

fn sealed() -> Vec<u8> {
    SignedImage::sign(crate::testing::synced(facts()), &key(), 5, time())
        .unwrap()
        .seal()
        .to_vec()
}

fn trust() -> TrustStore {
    TrustStore::only(key().public())
}
