//! containers-policy.json(5): whom an image has to be signed by before anything of it is taken.
//!
//! The same file that podman, skopeo and bootc obey. Text in, decisions out: [`Policy::parse`] reads it,
//! [`Policy::demands`] finds what counts for one image, [`sigstore`] tells whether a signature is one that is wanted.
//! What is fetched for that is `registry/signatures.rs`'s affair.
//!
//! Invariant: fails closed. A file that is not understood to the last field is an error and no policy; so is a
//! requirement of a kind that this program cannot check, where it counts. Of several requirements all have to be met.
//! Nothing is written, so a power cut has nothing to break.

mod identity;
mod scopes;
pub mod sigstore;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::fs;

pub use identity::{Identity, SignedName};
pub use scopes::Scopes;

/// Policies and keys are refused above this many bytes.
pub const FILE_LIMIT: u64 = 1 << 20;

/// Where the machine's policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// In the first of these that exists. Where none does, there is none.
    First(Vec<PathBuf>),
    /// In this one, which has to be there.
    Only(PathBuf),
}

/// A policy, and where it came from.
#[derive(Clone, Debug)]
pub struct Policy {
    path: PathBuf,
    default: Vec<Requirement>,
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// What has to hold of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// `insecureAcceptAnything`
    Nothing,
    /// `reject`
    Reject,
    /// `sigstoreSigned` with keys.
    Sigstore {
        /// One of them has to have signed.
        keys: Vec<KeySource>,
        /// What has to be signed.
        identity: Identity,
    },
    /// What this program does not check: its name, such as `signedBy`.
    Unsupported(&'static str),
}

/// Where a public key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In this file, PEM.
    File(PathBuf),
    /// In the policy itself: PEM.
    Inline(Vec<u8>),
}

/// What a policy demands of one image.
#[derive(Clone, Debug)]
pub struct Demands<'p> {
    /// The scope that says so, as it stands in the file: `docker: quay.io/org`, `default`.
    pub scope: String,
    /// All of them; at least one.
    pub requirements: &'p [Requirement],
}

impl Policy {
    /// Reads the machine's; `None` where it has none, and nothing is demanded then.
    ///
    /// # Errors
    /// [`Error::Trust`] for one that cannot be read or understood, and where [`Files::Only`] is not there.
    pub fn load(files: &Files) -> Result<Option<Self>> {
        let read = |path: &Path| fs::read_text(path, FILE_LIMIT).map_err(|error| refused(path, &error.to_string()));
        match files {
            Files::First(paths) => {
                for path in paths {
                    if let Some(text) = read(path)? {
                        return Self::parse(&text, path).map(Some);
                    }
                }
                Ok(None)
            }
            Files::Only(path) => {
                let text = read(path)?.ok_or_else(|| refused(path, "is not there, and the settings name it"))?;
                Self::parse(&text, path).map(Some)
            }
        }
    }

    /// Reads one; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Trust`] for anything that is not as the manual has it: unknown or repeated fields, empty lists.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let (default, transports) = wire::parse(text).map_err(|why| refused(path, &why))?;
        Ok(Self {
            path: path.into(),
            default,
            transports,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What counts for an image: the most specific scope that there is, else the transport's default, else that of all.
    pub fn demands(&self, scopes: &Scopes) -> Demands<'_> {
        let transport = self.transports.get(scopes.transport);
        let narrow = scopes.names.iter().map(String::as_str).chain([""]);
        let found = transport.and_then(|known| narrow.into_iter().find_map(|name| Some((name, known.get(name)?))));
        let (scope, requirements) = match found {
            Some((name, requirements)) => (format!("{}: {name:?}", scopes.transport), requirements),
            None => ("default".into(), &self.default),
        };
        Demands { scope, requirements }
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::Trust {
        what: format!("policy {}", path.display()),
        why: format!("{why}; no image is taken until it is mended"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
