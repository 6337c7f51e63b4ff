//! `[root] require-signature`: the deployment's seal against the keys in the initramfs.
//!
//! Invariant: fails closed. No key, no seal, a seal of another image, a key list that cannot be read: refused. The
//! keys on the disk do not count, since whoever can change the image can change them.

use std::path::PathBuf;

use cfs_core::Error;
use cfs_core::deployment::Layout;
use cfs_core::ids::ObjectId;
use cfs_core::signature::{SEAL_LIMIT, TrustStore, verify};
use cfs_core::sys::dir::Dir;
use cfs_core::sys::fs;

use crate::refusal::Refusal;

const FILE: &str = "seal.json";

/// The name of the key that vouches for the image.
pub fn check(sysroot: &Dir, id: &ObjectId, folders: &[PathBuf]) -> Result<String, Refusal> {
    let names: Vec<String> = folders
        .iter()
        .map(|f| f.join("trusted.d").display().to_string())
        .collect();
    let path = Layout::new(sysroot.path()).record(id).join(FILE);
    let refuse = |found: String| {
        Refusal::new(
            format!("[root] require-signature: the signature of {id} does not count"),
            format!("{} by a key in {} of the initramfs", path.display(), names.join(" or ")),
            found,
        )
        .by_trust()
        .remedy("deploy the image again with a trusted key, or put the key's public half into the image's initramfs")
    };
    let trust = trusted(folders).map_err(|e| refuse(e.to_string()))?;
    if trust
        .all()
        .iter()
        .all(|(_, trusted, revoked)| trusted.is_none() || revoked.is_some())
    {
        return Err(refuse("no key that is not revoked".into()));
    }
    let seal = fs::read(&path, SEAL_LIMIT).map_err(|e| refuse(e.to_string()))?;
    let seal = seal.ok_or_else(|| refuse("no such file".into()))?;
    let verified = verify(&seal, &trust).map_err(|e| refuse(why(e)))?;
    let signed = verified.statement().image;
    if signed != *id {
        return Err(refuse(format!("a signature of image {signed}")));
    }
    Ok(format!("{} ({})", verified.key().name(), verified.key().id()))
}

fn trusted(folders: &[PathBuf]) -> cfs_core::Result<TrustStore> {
    match folders.split_first() {
        Some((first, further)) => TrustStore::load(first, further),
        None => Ok(TrustStore::default()),
    }
}

/// Without the prefix that repeats what this refusal is about.
fn why(error: Error) -> String {
    match error {
        Error::Trust { why, .. } => why,
        other => other.to_string(),
    }
}
