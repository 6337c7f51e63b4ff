//! Whether an image may be taken: what the machine's policy demands of it, and the signatures that a registry has for
//! that.
//!
//! Signatures lie where cosign puts them: in the image's repository, in a manifest with the tag `sha256-HEX.sig`, each
//! as a blob with the signed document and the signature in an annotation. They are asked for only where a policy wants
//! one.
//!
//! Invariant: a [`Guard`] is made before the first request and asked before config and layers: of an image that the
//! policy does not allow nothing but its manifest is ever fetched.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Deserialize;

use super::{Blob, Options, Registry, Wanted, check_limit};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, ManifestDigest};
use crate::manifest::Descriptor;
use crate::monitor::{Event, Monitor};
use crate::podman as storage;
use crate::policy::sigstore::{self, PAYLOAD_LIMIT, PAYLOAD_TYPE, PublicKey, SIGNATURE};
use crate::policy::{FILE_LIMIT, Identity, KeySource, Policy, Requirement, Scopes};
use crate::reference::{Name, Reference};
use crate::sys::fs;

/// Signatures of one image that are looked at.
const MOST: usize = 100;

/// Whether the machine's policy takes the image only with a signature. Asks nobody.
///
/// # Errors
/// [`Error::Trust`] where it would not be taken at all.
pub fn signature_demanded(reference: &Reference, options: &Options) -> Result<bool> {
    Ok(!Guard::new(reference, options)?.wanted.is_empty())
}

/// What has to be proven of an image before it is taken.
#[derive(Debug, Default)]
pub(super) struct Guard {
    wanted: Vec<Signed>,
    /// Who demands it: the policy and its scope.
    by: String,
}

/// A signature that has to be there.
#[derive(Debug)]
struct Signed {
    keys: Vec<PublicKey>,
    /// What they are called in messages.
    names: Vec<String>,
    identity: Identity,
}

/// What a registry has: documents with their signatures.
struct Found {
    payload: Vec<u8>,
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attached {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: BlobDigest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Guard {
    /// Reads the policy and the keys that it names.
    ///
    /// # Errors
    /// [`Error::Trust`] where the policy rejects the image, or demands what cannot be checked.
    pub(super) fn new(reference: &Reference, options: &Options) -> Result<Self> {
        let Some(policy) = Policy::load(&options.policy)? else {
            return Ok(Self::default());
        };
        let demands = policy.demands(&scopes(reference, options)?);
        let by = format!("policy {} ({})", policy.path().display(), demands.scope);
        let refuse = |why: String| Error::Trust {
            what: reference.with_transport(),
            why,
        };
        let mut wanted = Vec::new();
        for requirement in demands.requirements {
            match requirement {
                Requirement::Nothing => {}
                Requirement::Reject => {
                    return Err(refuse(format!(
                        "{by} rejects it; allow it there, or follow another image"
                    )));
                }
                Requirement::Unsupported(what) => {
                    return Err(refuse(format!(
                        "{by} demands {what}, which cannot be checked here; demand sigstoreSigned with keyPath, \
                         there or in a policy that `[registry] policy` names"
                    )));
                }
                Requirement::Sigstore { .. } if !matches!(reference, Reference::Registry(_)) => {
                    return Err(refuse(format!(
                        "{by} demands a signature, and only images in registries have one that can be checked"
                    )));
                }
                Requirement::Sigstore { keys, identity } => wanted.push(Signed::new(keys, identity)?),
            }
        }
        Ok(Self { wanted, by })
    }
}

impl Signed {
    fn new(sources: &[KeySource], identity: &Identity) -> Result<Self> {
        let mut keys = Vec::new();
        let mut names = Vec::new();
        for source in sources {
            let (name, text) = match source {
                KeySource::File(path) => (path.display().to_string(), read(path)?),
                KeySource::Inline(text) => ("the key in the policy".to_owned(), text.clone()),
            };
            let key = PublicKey::from_pem(&text).map_err(|why| Error::Trust {
                what: format!("key {name}"),
                why,
            })?;
            keys.push(key);
            names.push(name);
        }
        Ok(Self {
            keys,
            names,
            identity: identity.clone(),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let refuse = |why: String| Error::Trust {
        what: format!("key {}", path.display()),
        why: format!("{why}; the policy names it"),
    };
    let content = fs::read(path, FILE_LIMIT).map_err(|e| refuse(e.to_string()))?;
    content.ok_or_else(|| refuse("is not there".into()))
}

/// What a policy may call the image.
fn scopes(reference: &Reference, options: &Options) -> Result<Scopes> {
    Ok(match reference {
        Reference::Registry(name) => Scopes::registry(name),
        Reference::Layout(layout) => Scopes::file("oci", &fs::resolved(layout.path())),
        Reference::OciArchive(layout) => Scopes::file("oci-archive", &fs::resolved(layout.path())),
        Reference::DockerArchive(_) => Scopes::docker_archive(),
        Reference::ContainersStorage(text) => {
            let (place, image) = storage::split(text).map_err(|why| Error::Reference {
                reference: reference.to_string(),
                why,
            })?;
            let place = match place {
                Some(place) => place,
                None => options.podman.place()?.unwrap_or_default(),
            };
            let driver = place.driver.as_deref().unwrap_or("overlay");
            let name = match format!("docker://{image}").parse() {
                Ok(Reference::Registry(name)) => Some(name),
                _ => None,
            };
            Scopes::storage(driver, &place.root, name.as_ref())
        }
    })
}

impl Registry {
    /// Whether the policy lets this manifest be taken, by a signature for it or for the index that named it.
    ///
    /// # Errors
    /// [`Error::Trust`] where a signature is demanded and none counts; [`Error::Network`] where they cannot be had.
    pub(super) fn allowed(&self, top: ManifestDigest, manifest: ManifestDigest, monitor: &dyn Monitor) -> Result<()> {
        let guard = &self.inner.guard;
        if guard.wanted.is_empty() {
            return Ok(());
        }
        let Reference::Registry(name) = &self.inner.reference else {
            return Err(self.unsigned(&manifest, "it has no name to be signed by"));
        };
        let mut manifests = vec![manifest, top];
        manifests.dedup();
        let mut found = Vec::new();
        for digest in &manifests {
            self.collect(digest, &mut found, monitor)?;
        }
        for signed in &guard.wanted {
            let by = self.signer(signed, name, &manifests, &found)?;
            monitor.event(Event::Note(format!("manifest {manifest} is signed: {by}")));
        }
        Ok(())
    }

    /// Which key made the signature that counts.
    fn signer<'s>(
        &self,
        signed: &'s Signed,
        name: &Name,
        manifests: &[ManifestDigest],
        found: &[Found],
    ) -> Result<&'s str> {
        let mut why = "there is none".to_owned();
        for Found { payload, signature } in found {
            match sigstore::verify(
                payload,
                signature,
                &signed.keys,
                &signed.identity,
                Some(name),
                manifests,
            ) {
                Ok(key) => return Ok(&signed.names[key]),
                Err(this) => why = this,
            }
        }
        let keys = signed.names.join(" or ");
        Err(self.unsigned(&manifests[0], &format!("{why} (key: {keys})")))
    }

    fn unsigned(&self, manifest: &ManifestDigest, why: &str) -> Error {
        Error::Trust {
            what: self.inner.reference.with_transport(),
            why: format!(
                "{} demands a signature of manifest {manifest}, and {why}; have it signed, or follow another image",
                self.inner.guard.by
            ),
        }
    }

    /// The signatures that the first source which has some has for a manifest.
    fn collect(&self, digest: &ManifestDigest, found: &mut Vec<Found>, monitor: &dyn Monitor) -> Result<()> {
        let Some(bytes) = self.attached(digest, monitor)? else {
            return Ok(());
        };
        let what = format!("signatures of {digest}");
        let attached: Attached = serde_json::from_slice(&bytes).map_err(|e| Error::Manifest {
            reference: what.clone(),
            why: format!("is no manifest: {e}"),
        })?;
        let documents = attached
            .layers
            .into_iter()
            .filter(|layer| layer.media_type == PAYLOAD_TYPE);
        for layer in documents.take(MOST) {
            let Some(signature) = layer.annotations.get(SIGNATURE).cloned() else {
                continue;
            };
            check_limit(&what, layer.size, PAYLOAD_LIMIT)?;
            let descriptor = Descriptor {
                media_type: layer.media_type,
                digest: layer.digest,
                size: layer.size,
                annotations: layer.annotations,
            };
            let mut payload = Vec::new();
            let read = Blob::new(self.clone(), &descriptor, monitor).read_to_end(&mut payload);
            read.map_err(|e| Error::from_read(&what, e))?;
            found.push(Found { payload, signature });
        }
        Ok(())
    }

    fn attached(&self, digest: &ManifestDigest, monitor: &dyn Monitor) -> Result<Option<Vec<u8>>> {
        let sources = self.inner.sources.len();
        let good = self.inner.good.load(Ordering::Relaxed);
        for turn in 0..sources {
            let (at, last) = ((good + turn) % sources, turn + 1 == sources);
            let asked = self.attempt(at, Wanted::Digest(*digest), last, monitor, |transport| {
                transport.signatures(digest, monitor)
            });
            match asked {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) if last => return Err(error),
                Err(error) => monitor.event(Event::Warning(format!("mirror passed over: {error}"))),
            }
        }
        Ok(None)
    }
}
