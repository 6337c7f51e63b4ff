//! Registries: the OCI distribution API over HTTPS, and over plain HTTP where that is allowed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode, Url};

use super::auth::Places;
use super::client::is_loopback;
use super::config::Place;
use super::fetch::{Fetcher, Refused, Request, content_length, network};
use super::login::{Pass, Session};
use super::net::{Answer, shown};
use super::parts::Answered;
use super::{Body, Failure, Fetched, Options, Transport, Wanted, multipart};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, ManifestDigest};
use crate::manifest::{ACCEPTED, MANIFEST_LIMIT};
use crate::monitor::Monitor;
use crate::reference::Name;

const DIGEST_HEADER: &str = "docker-content-digest";

/// What a request gave, with the address; or why it did not, with the status where there was an answer.
type Asked = Result<(Answer, Url), (Option<StatusCode>, Failure)>;

/// One registry that has the image.
#[derive(Debug)]
pub(super) struct Https {
    fetcher: Arc<Fetcher>,
    session: Session,
    /// `host[:port]` of the API.
    host: String,
    repository: String,
    insecure: bool,
    /// It is a mirror of this host.
    mirror_of: Option<String>,
    /// Tag or digest.
    wanted: String,
    /// To be tried in this order, until one is known to work.
    schemes: &'static [&'static str],
    scheme: AtomicUsize,
    /// HTTP was spoken: it is this scheme.
    known: AtomicBool,
}

/// The mirrors of a registry in order, the registry itself last.
pub(super) fn sources(name: &Name, options: &Options) -> Result<Vec<Box<dyn Transport>>> {
    let fetcher = Arc::new(Fetcher::new(options)?);
    let places = fetcher.config.places(name)?;
    let sources = places
        .into_iter()
        .map(|place| Https::new(&fetcher, place, name, options));
    sources
        .map(|source| Ok(Box::new(source?) as Box<dyn Transport>))
        .collect()
}

/// How a host may be asked, in this order.
pub(super) fn schemes(host: &str, insecure: bool) -> &'static [&'static str] {
    match (is_loopback(host), insecure) {
        (true, _) => &["http", "https"],
        (false, true) => &["https", "http"],
        (false, false) => &["https"],
    }
}

/// Docker Hub's API is elsewhere.
pub(super) fn api_host(host: String) -> String {
    match host.as_str() {
        "docker.io" => "registry-1.docker.io".into(),
        _ => host,
    }
}

impl Https {
    fn new(fetcher: &Arc<Fetcher>, place: Place, name: &Name, options: &Options) -> Result<Self> {
        let insecure = place.insecure || fetcher.listed(&place.host);
        let places = Places {
            files: options.auth_files.clone(),
            helpers: fetcher.config.helpers.clone(),
        };
        let source = Self {
            session: Session::new(places, &place.host, &place.repository, insecure),
            fetcher: fetcher.clone(),
            schemes: schemes(&place.host, insecure),
            host: api_host(place.host),
            repository: place.repository,
            insecure,
            mirror_of: place.mirror_of,
            wanted: name.wanted(),
            scheme: AtomicUsize::new(0),
            known: AtomicBool::new(false),
        };
        match source.repository.is_empty() {
            true => Err(source.no_url("registries.conf gives no path there")),
            false => source.address("https", "manifests", "latest").map(|_| source),
        }
    }

    fn no_url(&self, why: impl Into<String>) -> Error {
        Error::Network {
            url: format!("{}/{}", self.host, self.repository),
            why: why.into(),
        }
    }

    fn address(&self, scheme: &str, kind: &str, what: &str) -> Result<Url> {
        let text = format!("{scheme}://{}/v2/{}/{kind}/{what}", self.host, self.repository);
        text.parse().map_err(|e| self.no_url(format!("is no address: {e}")))
    }

    /// A manifest. A mirror of several registries has to be told of which one the tag is meant; as containerd does it,
    /// but only where it does not find the tag by itself.
    fn ask_manifest(&self, method: &Method, what: &str, monitor: &dyn Monitor) -> Asked {
        let ask = |query: &str| {
            let make = |url| Request {
                method: method.clone(),
                accept: &ACCEPTED,
                ..Request::get(url)
            };
            self.ask("manifests", &format!("{what}{query}"), &make, monitor)
        };
        match (ask(""), &self.mirror_of) {
            (Err((Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST), _)), Some(host)) if !what.contains(':') => {
                ask(&format!("?ns={host}"))
            }
            (answered, _) => answered,
        }
    }

    fn ask_blob(&self, digest: &BlobDigest, range: Option<String>, monitor: &dyn Monitor) -> Asked {
        let make = |url| Request {
            range: range.clone(),
            ..Request::get(url)
        };
        self.ask("blobs", &digest.to_string(), &make, monitor)
    }

    /// Asks with the scheme that is known to work, or finds out which does.
    fn ask(&self, kind: &str, what: &str, make: &dyn Fn(Url) -> Request<'static>, monitor: &dyn Monitor) -> Asked {
        let mut first = None;
        for at in self.scheme.load(Ordering::Relaxed)..self.schemes.len() {
            let url = self
                .address(self.schemes[at], kind, what)
                .map_err(|e| (None, e.into()))?;
            let asked = self.ask_logged_in(make(url.clone()), monitor);
            let known = self.known.load(Ordering::Relaxed);
            if let Err(Refused::Scheme(failure) | Refused::Closed(failure)) = asked {
                match known {
                    true => return Err((None, failure)),
                    false => first = Some(first.unwrap_or(failure)),
                }
                continue;
            }
            // Some ports with TLS have an answer for those who speak none: a bad request, to HEAD without a word why.
            if !matches!(asked, Err(Refused::Failed(None | Some(StatusCode::BAD_REQUEST), _))) {
                self.scheme.store(at, Ordering::Relaxed);
                self.known.store(true, Ordering::Relaxed);
            }
            return match asked {
                Ok(answer) => Ok((answer, url)),
                Err(Refused::Login(_, said)) => {
                    let why = self.session.refused(&said, monitor);
                    Err((Some(StatusCode::UNAUTHORIZED), network(&url, why).into()))
                }
                Err(Refused::Failed(status, failure)) => Err((status, failure)),
                Err(Refused::Scheme(failure) | Refused::Closed(failure)) => Err((None, failure)),
            };
        }
        let nothing = || self.no_url("no way to ask it").into();
        Err((None, first.unwrap_or_else(nothing)))
    }

    /// Answers one challenge, not two.
    fn ask_logged_in(&self, request: Request<'_>, monitor: &dyn Monitor) -> Result<Answer, Refused> {
        let failed = |failure| Refused::Failed(None, failure);
        let with = |pass: &Pass| Request {
            authorization: pass.header.clone(),
            insecure: self.insecure,
            ..request.clone()
        };
        let (fetcher, url) = (&self.fetcher, &request.url);
        let pass = self.session.pass(fetcher, url, monitor).map_err(failed)?;
        let (headers, said) = match fetcher.ask(with(&pass)) {
            Err(Refused::Login(headers, said)) => (headers, said),
            done => return done,
        };
        match self
            .session
            .answer(&pass, &headers, fetcher, url, monitor)
            .map_err(failed)?
        {
            Some(pass) => fetcher.ask(with(&pass)),
            None => Err(Refused::Login(headers, said)),
        }
    }

    fn what(&self, wanted: Wanted) -> String {
        match wanted {
            Wanted::Top => self.wanted.clone(),
            Wanted::Digest(digest) => digest.to_string(),
        }
    }
}

impl Transport for Https {
    fn url(&self, wanted: Wanted) -> String {
        let scheme = self.schemes[self.scheme.load(Ordering::Relaxed).min(self.schemes.len() - 1)];
        match self.address(scheme, "manifests", &self.what(wanted)) {
            Ok(url) => shown(&url),
            Err(_) => format!("{}/{}", self.host, self.repository),
        }
    }

    fn head(&self, monitor: &dyn Monitor) -> Result<Option<ManifestDigest>, Failure> {
        match self.ask_manifest(&Method::HEAD, &self.wanted, monitor) {
            Ok((answer, _)) => Ok(digest_of(&answer.headers)),
            // HEAD may not be known there, and its errors come without a reason: GET has the last word.
            Err((Some(status), failure))
                if status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 408 | 425 | 429) =>
            {
                tracing::debug!("HEAD refused, GET instead: {}", failure.error);
                Ok(None)
            }
            Err((_, failure)) => Err(failure),
        }
    }

    fn manifest(&self, wanted: Wanted, monitor: &dyn Monitor) -> Result<Fetched, Failure> {
        let asked = self.ask_manifest(&Method::GET, &self.what(wanted), monitor);
        received(asked.map_err(|(_, failure)| failure)?)
    }

    fn signatures(&self, manifest: &ManifestDigest, monitor: &dyn Monitor) -> Result<Option<Vec<u8>>, Failure> {
        let tag = format!("sha256-{}.sig", manifest.to_hex());
        match self.ask_manifest(&Method::GET, &tag, monitor) {
            Ok(answered) => Ok(Some(received(answered)?.bytes)),
            Err((Some(StatusCode::NOT_FOUND), _)) => Ok(None),
            Err((_, failure)) => Err(failure),
        }
    }

    fn blob(&self, digest: &BlobDigest, size: u64, wanted: Range<u64>, monitor: &dyn Monitor) -> Result<Body, Failure> {
        let Range { start: from, end } = wanted;
        let range = match (from, end == size) {
            (0, true) => None,
            (_, true) => Some(format!("bytes={from}-")),
            (_, false) => Some(format!("bytes={from}-{}", end - 1)),
        };
        let ask = |range| self.ask_blob(digest, range, monitor);
        let (answer, url) = match ask(range.clone()) {
            // It does not like ranges, or not this one.
            Err((Some(status), _)) if range.is_some() && refuses_ranges(status) => ask(None),
            answered => answered,
        }
        .map_err(|(_, failure)| failure)?;
        let whole = answer.status != StatusCode::PARTIAL_CONTENT;
        let start = match whole {
            true => Some(0),
            false => range_start(&answer.headers).filter(|start| *start <= from),
        };
        let Some(start) = start else {
            return Err(Failure {
                refused: true,
                ..network(&url, format!("sent another part than the one from byte {from} on")).into()
            });
        };
        let fits = |length: u64| start + length == size || (!whole && start + length == end);
        if let Some(length) = content_length(&answer.headers).filter(|length| !fits(*length)) {
            let error = Error::Mismatch {
                what: format!("blob {}", shown(&url)),
                expected: format!("{size} bytes"),
                found: format!("{} bytes", start + length),
            };
            return Err(error.into());
        }
        Ok(Body {
            reader: Box::new(answer.body),
            from: start,
            whole,
        })
    }

    fn parts(&self, digest: &BlobDigest, ranges: &[Range<u64>], monitor: &dyn Monitor) -> Result<Answered, Failure> {
        let list = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1));
        let header = format!("bytes={}", list.collect::<Vec<_>>().join(","));
        let answer = match self.ask_blob(digest, Some(header), monitor) {
            Ok((answer, _)) => answer,
            Err((Some(status), _)) if refuses_ranges(status) => return Ok(Answered::Not),
            // Firewalls forbid requests for many ranges, which were an attack once.
            Err((Some(StatusCode::FORBIDDEN), _)) if ranges.len() > 1 => return Ok(Answered::Not),
            Err((_, failure)) => return Err(failure),
        };
        if answer.status != StatusCode::PARTIAL_CONTENT {
            return Ok(Answered::Not);
        }
        let text = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let boundary = text(CONTENT_TYPE).and_then(multipart::boundary).map(str::to_owned);
        let range = text(CONTENT_RANGE).and_then(multipart::content_range);
        Ok(match (boundary, range) {
            (Some(boundary), _) => Answered::Several(Box::new(answer.body), boundary),
            (None, Some(range)) => Answered::One(Box::new(answer.body), range),
            (None, None) => Answered::Not,
        })
    }

    fn serves_parts(&self) -> bool {
        true
    }

    fn requests(&self) -> u64 {
        self.fetcher.net.requests()
    }
}

/// A manifest's bytes, bounded.
fn received((answer, url): (Answer, Url)) -> Result<Fetched, Failure> {
    let too_long = || Error::Manifest {
        reference: shown(&url),
        why: format!("is longer than {MANIFEST_LIMIT} bytes; refused"),
    };
    if content_length(&answer.headers).is_some_and(|length| length > MANIFEST_LIMIT) {
        return Err(too_long().into());
    }
    let content_type = answer
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(String::from);
    let bytes = answer.body.up_to(MANIFEST_LIMIT)?.ok_or_else(too_long)?;
    Ok(Fetched { bytes, content_type })
}

pub(super) fn digest_of(headers: &HeaderMap) -> Option<ManifestDigest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.trim().parse().ok()
}

/// Bad request, too long a header, not satisfiable, not implemented.
fn refuses_ranges(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 414 | 416 | 431 | 501)
}

/// `bytes 100-199/200`: 100.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value
        .trim()
        .strip_prefix("bytes")?
        .trim()
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}
