//! Reading records: all of them, the broken ones with what is wrong.

use std::path::{Path, PathBuf};

use super::{Layout, Origin};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::signature::{ImageFacts, SEAL_LIMIT, SignedImage, TrustStore, claimed};
use crate::sys::fs;

/// Origin files larger than this many bytes are refused.
const ORIGIN_LIMIT: u64 = 64 * 1024;
/// The target of every record's `var`.
pub(super) const VAR_TARGET: &str = "../../os/default/var";
pub(super) const SEAL: &str = "seal.json";
/// A seal that will be `seal.json` soon: it counts where the origin already is the one it was made for.
pub(super) const NEXT_SEAL: &str = "seal.json.next";
/// The EROFS format of every image that is deployed.
const EROFS_FORMAT: u32 = 1;

/// The records of one SYSROOT.
#[derive(Clone, Debug)]
pub struct Deployments {
    pub(super) layout: Layout,
}

/// A folder under `state/deploy` that is named like a deployment.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub id: DeploymentId,
    /// The record, or what is wrong with it.
    pub record: Result<Record>,
}

/// A record whose files can be read. What it says is not trusted before [`Record::verify`].
#[derive(Clone, Debug)]
pub struct Record {
    id: DeploymentId,
    path: PathBuf,
    origin: Origin,
    seals: Vec<Vec<u8>>,
}

/// A complete, durable deployment whose signature was verified: what a boot entry may be written for.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
    pub(super) signed: SignedImage,
}

impl Deployments {
    /// Of this SYSROOT; reads nothing yet.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Every deployment, by id. A broken record is in the list with its error; names that are no digest (leftovers of
    /// an interrupted run among them) are not.
    ///
    /// # Errors
    /// [`Error::Io`] only where `state/deploy` itself cannot be listed.
    pub fn list(&self) -> Result<Vec<Found>> {
        let names = fs::names(&self.layout.deployments())?;
        let ids = names
            .iter()
            .filter_map(|name| name.to_str()?.parse::<DeploymentId>().ok());
        Ok(ids
            .map(|id| Found {
                id,
                record: self.load(&id),
            })
            .collect())
    }

    /// Whether a complete record of this name is there, broken or not.
    pub fn exists(&self, id: &DeploymentId) -> bool {
        fs::is_dir(&self.layout.record(id))
    }

    /// One record.
    ///
    /// # Errors
    /// [`Error::Deployment`] with what is missing or cannot be understood.
    pub fn load(&self, id: &DeploymentId) -> Result<Record> {
        let path = self.layout.record(id);
        let fail = |why: String| Error::Deployment { id: id.to_hex(), why };
        if !fs::exists(&path) {
            return Err(fail("there is no such deployment".into()));
        }
        self.layout.check(&path).map_err(|e| fail(e.to_string()))?;
        let name = origin_name(id);
        let text = fs::read_text(&path.join(&name), ORIGIN_LIMIT).map_err(|e| fail(e.to_string()))?;
        let text = text.ok_or_else(|| fail(format!("{name} is missing; delete the deployment")))?;
        let origin = Origin::parse(&text).map_err(|why| fail(format!("{name}: {why}; delete the deployment")))?;
        if !fs::is_dir(&path.join("etc")) {
            return Err(fail("its etc is missing; delete the deployment".into()));
        }
        if fs::read_link(&path.join("var")).ok().flatten().as_deref() != Some(Path::new(VAR_TARGET)) {
            return Err(fail(format!("its var does not link to {VAR_TARGET}; repair the link")));
        }
        let mut seals = Vec::new();
        for seal in [SEAL, NEXT_SEAL] {
            match fs::read(&path.join(seal), SEAL_LIMIT) {
                Ok(bytes) => seals.extend(bytes),
                Err(e) => return Err(fail(e.to_string())),
            }
        }
        Ok(Record {
            id: *id,
            path,
            origin,
            seals,
        })
    }

    /// The counters of all seals that verify: what the next one has to be above
    /// ([`next_counter`](crate::signature::next_counter)).
    pub fn counters(&self, trust: &TrustStore) -> Result<Vec<u64>> {
        let records = self.list()?.into_iter().filter_map(|found| found.record.ok());
        let counters = records.flat_map(|record| record.counters(trust));
        Ok(counters.collect())
    }
}

impl Record {
    /// The deployment's id.
    pub fn id(&self) -> &DeploymentId {
        &self.id
    }

    /// `state/deploy/<id>`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the record says it is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Checks the seal: by a trusted key, for this image, manifest and reference.
    ///
    /// # Errors
    /// [`Error::Trust`] where it is missing or does not hold.
    pub fn verify(&self, trust: &TrustStore) -> Result<Deployment> {
        let facts = ImageFacts {
            id: self.id,
            manifest: self.origin.manifest,
            reference: self.origin.reference.clone(),
            erofs_format: EROFS_FORMAT,
        };
        let mut refusal = Error::Trust {
            what: format!("deployment {}", self.id),
            why: format!("{SEAL} is missing: nobody vouches for it; deploy the image again"),
        };
        for (index, seal) in self.seals.iter().enumerate() {
            match SignedImage::verify(facts.clone(), seal.clone(), trust) {
                Ok(signed) => {
                    return Ok(Deployment {
                        path: self.path.clone(),
                        origin: self.origin.clone(),
                        signed,
                    });
                }
                Err(e) if index == 0 => refusal = e,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// Whether the seal that waits is the one that was made for the origin as it is, and the other is not.
    pub(super) fn waiting_seal_counts(&self) -> bool {
        let fits = |seal: &Vec<u8>| {
            claimed(seal).is_some_and(|statement| {
                statement.reference == self.origin.reference && statement.manifest == self.origin.manifest
            })
        };
        self.path.join(NEXT_SEAL).exists()
            && self.seals.last().is_some_and(fits)
            && !self.seals.first().is_some_and(fits)
    }

    fn counters(&self, trust: &TrustStore) -> Vec<u64> {
        let verified = self
            .seals
            .iter()
            .filter_map(|seal| crate::signature::verify(seal, trust).ok());
        verified.map(|verified| verified.statement().counter).collect()
    }
}

impl Deployment {
    /// The deployment's id: the digest of its boot image.
    pub fn id(&self) -> &DeploymentId {
        self.signed.id()
    }

    /// `state/deploy/<id>`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its /etc.
    pub fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    /// What it was made from; reference and manifest are those of the signature.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The verified signature.
    pub fn signed(&self) -> &SignedImage {
        &self.signed
    }
}

pub(super) fn origin_name(id: &DeploymentId) -> String {
    format!("{id}.origin")
}
