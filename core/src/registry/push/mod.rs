//! Blobs and manifests to a registry: the writing half of the OCI distribution API.
//!
//! Invariant: a blob is announced to nobody before the registry has checked its digest (that is what the last request
//! of an upload asks it for), and the manifest goes last, so that a cut leaves the tag as it was. The registry says
//! where an upload goes on; credentials go there only where that is the registry itself. Memory: one part of a blob, and
//! where a registry takes none, or none that small, a few pieces of it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::{Method, StatusCode, Url};

use super::auth::Places;
use super::config::Place;
use super::fetch::{Content, Fetcher, Payload, Refused, Request, content_length, network, same_origin};
use super::https::{api_host, digest_of, schemes};
use super::login::{Pass, Session};
use super::net::Answer;
use super::{Failure, Options, Retry};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, ManifestDigest};
use crate::manifest::{ACCEPTED, Descriptor};
use crate::monitor::{Event, Monitor};
use crate::reference::{Name, Reference};

mod in_one;
mod upload;

use upload::{Parts, location};

/// An upload that the registry has forgotten is begun anew so many times.
const ANEW: u32 = 2;

/// Why a request was in vain, with the status where there was an answer.
type Refusal = (Option<StatusCode>, Failure);

/// A repository of a registry, to be written to.
#[derive(Debug)]
pub struct Push {
    fetcher: Arc<Fetcher>,
    session: Session,
    /// The configuration calls the registry insecure.
    insecure: bool,
    retry: Retry,
    host: String,
    repository: String,
    tag: String,
    scheme: &'static str,
    /// The registry does not know the upload any more that was under way.
    lost: AtomicBool,
    /// The registry takes no parts of blobs, or none that are held in memory: large ones go in one request.
    in_one: AtomicBool,
}

impl Push {
    /// Reads the configuration and finds out whether the registry is asked with TLS: one request.
    ///
    /// # Errors
    /// [`Error::Reference`] for what is no tag of a registry; [`Error::Network`].
    pub fn open(reference: &Reference, options: &Options, monitor: &dyn Monitor) -> Result<Self> {
        let refuse = |why: &str| Error::Reference {
            reference: reference.to_string(),
            why: why.into(),
        };
        let Reference::Registry(name) = reference else {
            return Err(refuse(
                "is no place in a registry; write one such as docker://quay.io/org/os:41",
            ));
        };
        let tag = match (name.tag(), name.digest()) {
            (Some(tag), None) => tag.to_owned(),
            _ => return Err(refuse("names a digest, which follows from the image; write a tag")),
        };
        let fetcher = Arc::new(Fetcher::new(options)?);
        let place = registry_itself(&fetcher, name)?;
        let places = Places {
            files: options.auth_files.clone(),
            helpers: fetcher.config.helpers.clone(),
        };
        let insecure = place.insecure || fetcher.listed(&place.host);
        let schemes = schemes(&place.host, insecure);
        let mut push = Self {
            session: Session::new(places, &place.host, &place.repository, insecure),
            insecure,
            retry: options.retry.clone(),
            host: api_host(place.host),
            repository: place.repository,
            tag,
            scheme: schemes[0],
            lost: AtomicBool::new(false),
            in_one: AtomicBool::new(false),
            fetcher,
        };
        push.find_scheme(schemes, monitor)?;
        Ok(push)
    }

    /// For messages.
    pub fn name(&self) -> String {
        format!("{}/{}:{}", self.host, self.repository, self.tag)
    }

    /// The path of the repository, if it is on `host` as references write it: blobs of one repository of a registry can
    /// be made another's without sending them.
    pub fn sibling<'n>(&self, name: &'n Name) -> Option<&'n str> {
        let same = api_host(name.host().into()) == self.host && name.repository() != self.repository;
        same.then(|| name.repository())
    }

    /// What the tag names now; `None` where it names nothing, or the registry does not say.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn current(&self, monitor: &dyn Monitor) -> Result<Option<ManifestDigest>> {
        let url = self.url(&format!("manifests/{}", self.tag))?;
        let request = Request {
            method: Method::HEAD,
            accept: &ACCEPTED,
            ..Request::get(url)
        };
        Ok(self
            .ask(&request, monitor)?
            .and_then(|answer| digest_of(&answer.headers)))
    }

    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn has(&self, blob: &Descriptor, monitor: &dyn Monitor) -> Result<bool> {
        let request = Request {
            method: Method::HEAD,
            ..Request::get(self.url(&format!("blobs/{}", blob.digest))?)
        };
        // A size that is another one is of something else.
        let fits = |answer: &Answer| content_length(&answer.headers).is_none_or(|length| length == blob.size);
        Ok(self.ask(&request, monitor)?.is_some_and(|answer| fits(&answer)))
    }

    /// Makes a blob of another repository of this registry one of this, where the registry does that.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn mount(&self, digest: &BlobDigest, from: &str, monitor: &dyn Monitor) -> Result<bool> {
        let mut url = self.url("blobs/uploads/")?;
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
        let request = Request {
            method: Method::POST,
            ..Request::get(url.clone())
        };
        // One that may not be seen there, or no such way at all: then it is sent.
        let Ok(answer) = self.patient(&request, monitor) else {
            return Ok(false);
        };
        if answer.status == StatusCode::CREATED {
            return Ok(true);
        }
        if let Some(begun) = location(&url, &answer.headers) {
            self.forget(begun, monitor);
        }
        Ok(false)
    }

    /// An upload that does not go on; the registry forgets it some day anyway.
    fn forget(&self, begun: Url, monitor: &dyn Monitor) {
        let request = Request {
            method: Method::DELETE,
            ..Request::get(begun)
        };
        let _ = self.send(&request, monitor);
    }

    /// Sends a blob that `content` writes, from its start each time that it is called; the registry checks its digest.
    ///
    /// # Errors
    /// What `content` gives, and [`Error::Network`]; nothing of the blob can be seen there then.
    pub fn put(
        &self,
        blob: &Descriptor,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let mut anew = 0;
        let begins_anew = |why: String| {
            monitor.event(Event::Retry {
                url: format!("blob {} to {}", blob.digest, self.name()),
                why,
            });
        };
        loop {
            self.lost.store(false, Ordering::Relaxed);
            let in_one = self.goes_in_one(blob);
            let sent = match in_one {
                true => self.put_in_one(blob, content, monitor),
                false => {
                    let mut parts = Parts::new(self, blob.size, monitor);
                    content(&mut parts).and_then(|()| parts.finish(blob))
                }
            };
            match sent {
                Err(error) if !in_one && self.goes_in_one(blob) => {
                    begins_anew(format!(
                        "the registry takes no such parts, so it goes in one request: {error}"
                    ));
                }
                Err(error) if self.lost.load(Ordering::Relaxed) && anew < ANEW => {
                    anew += 1;
                    begins_anew(format!(
                        "the registry has forgotten the upload, which begins anew: {error}"
                    ));
                }
                done => return done,
            }
        }
    }

    /// Sends a manifest and lets the tag name it.
    ///
    /// # Errors
    /// [`Error::Network`]; [`Error::Mismatch`] where the registry made another manifest of it.
    pub fn put_manifest(
        &self,
        bytes: &[u8],
        media_type: &str,
        digest: ManifestDigest,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let request = Request {
            method: Method::PUT,
            content: Some(Content {
                media_type: media_type.into(),
                payload: Payload::Bytes(Bytes::copy_from_slice(bytes)),
                at: None,
            }),
            ..Request::get(self.url(&format!("manifests/{}", self.tag))?)
        };
        let answer = self.patient(&request, monitor)?;
        match digest_of(&answer.headers) {
            Some(found) if found != digest => Err(Error::Mismatch {
                what: format!("manifest at {}", self.name()),
                expected: digest.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.url_with(self.scheme, &format!("{}/{path}", self.repository))
    }

    fn url_with(&self, scheme: &str, path: &str) -> Result<Url> {
        let text = format!("{scheme}://{}/v2/{path}", self.host);
        text.parse().map_err(|e| Error::Network {
            url: text.clone(),
            why: format!("is no address: {e}"),
        })
    }

    fn find_scheme(&mut self, schemes: &[&'static str], monitor: &dyn Monitor) -> Result<()> {
        let (mut first, mut closed) = (None, None);
        for scheme in schemes {
            self.scheme = scheme;
            let url = self.url(&format!("manifests/{}", self.tag))?;
            let request = Request {
                method: Method::HEAD,
                accept: &ACCEPTED,
                ..Request::get(url)
            };
            match self.send_ours(&request, monitor) {
                Err(Refused::Scheme(failure)) => first = first.or(Some(failure.error)),
                Err(Refused::Closed(_)) => closed = closed.or(Some(*scheme)),
                // Whether this very request is allowed is found out later, with all tries.
                _ => return Ok(()),
            }
        }
        match closed {
            Some(scheme) => {
                self.scheme = scheme;
                Ok(())
            }
            None => first.map_or(Ok(()), Err),
        }
    }

    /// An answer, or `None` where there is no such thing.
    fn ask(&self, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Option<Answer>> {
        let mut rounds = self.retry.rounds(true);
        loop {
            match self.send(request, monitor) {
                Ok(answer) => return Ok(Some(answer)),
                // Or it does not know HEAD.
                Err((
                    Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED),
                    _,
                )) => {
                    return Ok(None);
                }
                Err((_, failure)) => rounds.wait(failure, request.url.as_str(), monitor)?,
            }
        }
    }

    fn patient(&self, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Answer> {
        let mut rounds = self.retry.rounds(true);
        loop {
            match self.send(request, monitor) {
                Ok(answer) => return Ok(answer),
                Err((status, failure)) => {
                    self.note(status);
                    rounds.wait(failure, request.url.as_str(), monitor)?;
                }
            }
        }
    }

    fn note(&self, status: Option<StatusCode>) {
        self.lost
            .store(status == Some(StatusCode::NOT_FOUND), Ordering::Relaxed);
    }

    /// One attempt, logged in where it goes to the registry itself.
    fn send(&self, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Answer, Refusal> {
        let base = self.url("").map_err(|e| (None, e.into()))?;
        let sent = match same_origin(&base, &request.url) {
            true => self.send_ours(request, monitor),
            false => {
                let plain = base.scheme() == "http" && self.fetcher.plain_allowed(&base, self.insecure, &request.url);
                if request.url.scheme() != "https" && !plain {
                    let why = "the upload was to go on there, which is not safe: refused";
                    return Err((None, network(&request.url, why).into()));
                }
                self.fetcher.ask(request.clone())
            }
        };
        sent.map_err(|refused| match refused {
            Refused::Scheme(failure) | Refused::Closed(failure) => (None, failure),
            Refused::Failed(status, failure) => (status, failure),
            Refused::Login(_, said) => {
                let why = self.session.refused(&said, monitor);
                (Some(StatusCode::UNAUTHORIZED), network(&request.url, why).into())
            }
        })
    }

    /// Answers a challenge; a second one only where a token is to be had for more than the first was.
    fn send_ours(&self, request: &Request<'_>, monitor: &dyn Monitor) -> Result<Answer, Refused> {
        let failed = |failure| Refused::Failed(None, failure);
        let (fetcher, url) = (&self.fetcher, &request.url);
        let with = |pass: &Pass| Request {
            authorization: pass.header.clone(),
            insecure: self.insecure,
            ..request.clone()
        };
        let pass = self.session.pass(fetcher, url, monitor).map_err(failed)?;
        let (headers, said) = match fetcher.ask(with(&pass)) {
            Err(Refused::Login(headers, said)) => (headers, said),
            done => return done,
        };
        let answer = self.session.answer(&pass, &headers, fetcher, url, monitor);
        match answer.map_err(failed)? {
            Some(pass) => fetcher.ask(with(&pass)),
            None => Err(Refused::Login(headers, said)),
        }
    }
}

/// Images are pushed to the registry itself, not to its mirrors.
fn registry_itself(fetcher: &Fetcher, name: &Name) -> Result<Place> {
    let none = || Error::Reference {
        reference: name.to_string(),
        why: "registries.conf gives no place for it".into(),
    };
    let place = fetcher.config.places(name)?.pop().ok_or_else(none)?;
    match place.repository.is_empty() || place.mirror_of.is_some() {
        true => Err(none()),
        false => Ok(place),
    }
}
