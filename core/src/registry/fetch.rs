//! Requests with their redirects, and what a refusal means.
//!
//! Invariant: credentials go to the scheme, host and port that they were given for and nowhere else, nor is anybody
//! else's challenge answered; and nothing is asked for without TLS but on this machine or where the configuration
//! calls the place insecure. Both hold for every hop of a redirect.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RETRY_AFTER};
use reqwest::{Body, Method, RequestBuilder, StatusCode, Url};

use super::client::{Clients, authority, is_loopback};
use super::config::Config;
use super::flow::{Flow, STEP, Source, flow};
use super::limit::Paced;
use super::net::{Answer, Net, Trouble, shown};
use super::retry::retry_after;
use super::{Again, Failure, Limit, Options};
use crate::error::{Error, Result};

const REDIRECTS: usize = 10;
/// Of an error's body, this much is read, and a part of that is shown.
const ERROR_BODY: u64 = 8 << 10;
const ERROR_TEXT: usize = 300;
/// Bytes a second that an upload makes at least, or its connection counts as dead.
const SLOWEST_UPLOAD: u64 = 16 << 10;
/// Connections that may have to share a limit.
const SHARES: u32 = 8;

/// What is shared by all sources of an image.
#[derive(Debug)]
pub(super) struct Fetcher {
    pub net: Net,
    limit: Option<Limit>,
    clients: Clients,
    pub config: Config,
    insecure: Vec<String>,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Request<'r> {
    pub method: Method,
    pub url: Url,
    /// The configuration calls this place insecure: no TLS, or a certificate that nobody vouches for, is enough for
    /// its host.
    pub insecure: bool,
    /// The registry that named this address; its certificates of certs.d count here, too.
    pub named_by: Option<Url>,
    pub authorization: Option<HeaderValue>,
    pub accept: &'r [&'r str],
    /// Bytes wanted, as the header `Range` has them, if not all.
    pub range: Option<String>,
    /// `application/x-www-form-urlencoded`, for POST.
    pub form: Option<String>,
    /// What is sent to the registry.
    pub content: Option<Content>,
}

/// The body of a request that changes something.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub media_type: String,
    pub payload: Payload,
    /// Where in the whole it starts, for a part of one.
    pub at: Option<u64>,
}

/// What is sent.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    Bytes(Bytes),
    /// Made on the way; a request with it can be sent once.
    Flow(Flow),
}

/// Why there is no usable answer.
pub(super) enum Refused {
    /// 401: the challenge is in the headers. With what the registry says.
    Login(Box<HeaderMap>, String),
    /// No HTTP was spoken, so another scheme may do.
    Scheme(Failure),
    /// The connection was closed without an answer: so does a port with TLS that is asked without, and a server in
    /// trouble.
    Closed(Failure),
    /// With the status, where there was an answer.
    Failed(Option<StatusCode>, Failure),
}

impl Payload {
    /// Bytes after which something has to have moved.
    fn step(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Flow(flow) => flow.size().min(STEP),
        }
    }
}

impl<'r> Request<'r> {
    pub(super) fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            insecure: false,
            named_by: None,
            authorization: None,
            accept: &[],
            range: None,
            form: None,
            content: None,
        }
    }
}

impl Fetcher {
    pub(super) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            net: Net::start(&options.timeouts, options.limit.clone())?,
            limit: options.limit.clone(),
            clients: Clients::new(options),
            config: Config::load(options)?,
            insecure: options.insecure.iter().map(|host| host.to_lowercase()).collect(),
        })
    }

    /// Whether the settings name `host[:port]` as insecure.
    pub(super) fn listed(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        self.insecure.iter().any(|listed| listed == host || listed == name)
    }

    /// Whether `to` may be asked without TLS or with any certificate on the way from `from`, which is `insecure` or
    /// not: the same host as `from` itself, every other one where it is insecure as a whole.
    pub(super) fn insecure(&self, from: &Url, insecure: bool, to: &Url) -> bool {
        let host = authority(to);
        match authority(from) == host {
            true => insecure,
            false => self.listed(&host) || self.config.insecure(&host),
        }
    }

    /// Asks, and follows redirects. The answer's status is a success.
    pub(super) fn ask(&self, request: Request<'_>) -> Result<Answer, Refused> {
        let origin = request.url.clone();
        let mut url = origin.clone();
        for _ in 0..=REDIRECTS {
            let answer = self.hop(&request, &origin, &url)?;
            if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return match accept(answer, &request.method, &url) {
                    Err(Refused::Login(_, said)) if !same_origin(&origin, &url) => Err(stranger(&origin, &url, &said)),
                    accepted => accepted,
                };
            }
            url = self
                .redirect(&request, &url, &answer)
                .map_err(|error| Refused::Failed(Some(answer.status), error.into()))?;
        }
        let why = format!("more than {REDIRECTS} redirects");
        Err(Refused::Failed(None, network(&origin, why).into()))
    }

    fn hop(&self, request: &Request<'_>, origin: &Url, url: &Url) -> Result<Answer, Refused> {
        let unverified = self.insecure(origin, request.insecure, url);
        let client = self
            .clients
            .get(url, unverified, request.named_by.as_ref().unwrap_or(origin));
        let client = client.map_err(|error| Refused::Failed(None, error.into()))?;
        let mut builder = client
            .request(request.method.clone(), url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = request.authorization.as_ref().filter(|_| same_origin(origin, url)) {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        for accept in request.accept {
            builder = builder.header(ACCEPT, *accept);
        }
        if let Some(range) = &request.range {
            builder = builder.header(RANGE, range);
        }
        if let Some(form) = request.form.as_ref().filter(|_| same_origin(origin, url)) {
            builder = builder
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone());
        }
        let (mut patience, mut flow) = (Duration::ZERO, None);
        if let Some(content) = &request.content {
            patience = self.patience(content.payload.step());
            builder = self.with_content(builder, content, url)?;
            if let Payload::Flow(own) = &content.payload {
                flow = Some(own.clone());
            }
        } else if matches!(request.method, Method::POST | Method::PUT) && request.form.is_none() {
            builder = builder.header(CONTENT_LENGTH, "0");
        }
        let again = match request.method {
            Method::GET | Method::HEAD => builder.try_clone(),
            _ => None,
        };
        let answered = match (self.net.send(builder, patience, flow), again) {
            // Perhaps one that was kept open, and was closed just then: that says nothing of who is asked.
            (Err(trouble), Some(again)) if trouble.closed => self.net.send(again, patience, None),
            (answered, _) => answered,
        };
        answered.map_err(|trouble| unanswered(url, trouble))
    }

    fn with_content(&self, builder: RequestBuilder, content: &Content, url: &Url) -> Result<RequestBuilder, Refused> {
        let mut builder = builder.header(CONTENT_TYPE, &content.media_type);
        match &content.payload {
            Payload::Bytes(bytes) => {
                if let Some(at) = content.at {
                    // Of registries' own kind: no unit, no size of the whole.
                    let last = at + (bytes.len() as u64).saturating_sub(1);
                    builder = builder.header(CONTENT_RANGE, format!("{at}-{last}"));
                }
                Ok(match &self.limit {
                    Some(limit) => builder.body(Body::wrap(Paced::new(bytes.clone(), limit.clone()))),
                    None => builder.body(bytes.clone()),
                })
            }
            Payload::Flow(flow) => {
                let failure = || Failure {
                    error: network(url, "the upload is asked for once more, from its beginning"),
                    again: Again::Later(None),
                    refused: false,
                };
                let body = flow.body().ok_or_else(|| Refused::Failed(None, failure()))?;
                Ok(builder.body(Body::wrap(body)))
            }
        }
    }

    /// Where to write a body of `size` bytes that is made on the way, and what a request holds of it.
    pub(super) fn flow(&self, size: u64) -> (Source, Flow) {
        flow(size, self.limit.clone().map(|limit| (limit, self.net.handle())))
    }

    /// How long an upload may take.
    fn patience(&self, bytes: u64) -> Duration {
        let paced = self.limit.as_ref().map(|limit| limit.rate().time(bytes) * SHARES);
        Duration::from_secs(bytes / SLOWEST_UPLOAD) + paced.unwrap_or_default()
    }

    fn redirect(&self, request: &Request<'_>, url: &Url, answer: &Answer) -> Result<Url> {
        let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| network(url, format!("{} without a location", answer.status)))?;
        let mut next = url
            .join(location)
            .map_err(|e| network(url, format!("redirect to nowhere: {e}")))?;
        let _ = next.set_username("");
        let _ = next.set_password(None);
        let plain_allowed = url.scheme() == "http" && self.plain_allowed(&request.url, request.insecure, &next);
        match next.scheme() {
            "https" => Ok(next),
            "http" if plain_allowed => Ok(next),
            _ => Err(network(
                url,
                format!("redirects to {}, which is not safe: refused", shown(&next)),
            )),
        }
    }

    /// Whether `to` may be asked over plain HTTP; otherwise as [`Self::insecure`].
    pub(super) fn plain_allowed(&self, from: &Url, insecure: bool, to: &Url) -> bool {
        is_loopback(&authority(to)) || self.insecure(from, insecure, to)
    }
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

pub(super) fn network(url: &Url, why: impl Into<String>) -> Error {
    Error::Network {
        url: shown(url),
        why: why.into(),
    }
}

/// Who was redirected to asks for a login: ours is the registry's, and is not for him.
fn stranger(origin: &Url, url: &Url, said: &str) -> Refused {
    let why = format!(
        "401 Unauthorized{said}; {} redirects there, and what is there wants a login of its own: no credentials were sent",
        shown(origin)
    );
    Refused::Failed(Some(StatusCode::UNAUTHORIZED), network(url, why).into())
}

fn unanswered(url: &Url, trouble: Trouble) -> Refused {
    let again = match trouble.transient {
        true => Again::Later(None),
        false => Again::Never,
    };
    let mut why = trouble.why;
    if !trouble.transient && url.scheme() == "https" {
        why += &format!(
            "; if its certificate is right, put the CA's into /etc/containers/certs.d/{}/",
            authority(url)
        );
    }
    let failure = Failure {
        error: network(url, why),
        again,
        refused: false,
    };
    match trouble.unconnected || trouble.garbage {
        true => Refused::Scheme(failure),
        false if trouble.closed => Refused::Closed(failure),
        false => Refused::Failed(None, failure),
    }
}

/// Sorts what came by its status.
fn accept(answer: Answer, method: &Method, url: &Url) -> Result<Answer, Refused> {
    let (status, headers) = (answer.status, answer.headers.clone());
    if status.is_success() {
        return Ok(answer);
    }
    let said = match method == Method::HEAD {
        true => String::new(),
        false => answer
            .body
            .up_to(ERROR_BODY)
            .ok()
            .flatten()
            .map(|body| said(&body))
            .unwrap_or_default(),
    };
    if status == StatusCode::UNAUTHORIZED {
        return Err(Refused::Login(Box::new(headers), said));
    }
    let mut why = format!("{status}{said}");
    if status == StatusCode::BAD_REQUEST && url.scheme() == "http" && said.contains("HTTPS") {
        return Err(Refused::Scheme(network(url, why).into()));
    }
    let again = match status.as_u16() {
        408 | 425 | 429 | 500 | 502..=599 => Again::Later(wait_asked(&headers)),
        _ => Again::Never,
    };
    why += match status.as_u16() {
        403 => "; the credentials do not allow it",
        404 => "; there is no such image, or it may not be seen without logging in",
        _ => "",
    };
    let error = network(url, why);
    let failure = Failure {
        error,
        again,
        refused: !matches!(status.as_u16(), 401 | 403 | 404 | 408 | 425 | 429 | 502..=504),
    };
    Err(Refused::Failed(Some(status), failure))
}

fn wait_asked(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    retry_after(value, jiff::Timestamp::now().as_second())
}

/// `: ` and what the registry says in its error, on one line.
fn said(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) => {
            let one = |one: One| match one.message.is_empty() {
                true => one.code,
                false => one.message,
            };
            errors.into_iter().map(one).collect::<Vec<_>>().join(", ")
        }
        // A page for people says nothing that the status does not.
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).take(ERROR_TEXT).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

/// The length that the answer announces.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_shown_on_one_line_and_pages_are_not() {
        let json =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown","detail":{}},{"code":"X"}]}"#;
        assert_eq!(said(json), ": manifest unknown, X");
        assert_eq!(said(b"too\x1b[31m fast\n"), ": too[31m fast");
        assert_eq!(said(b" <html>no</html>"), "");
        assert_eq!(said(b""), "");
        assert_eq!(said(&[b'x'; 5000]).len(), ERROR_TEXT + 2);
    }

    #[test]
    fn a_url_is_shown_without_what_could_be_a_credential() {
        let url: Url = "https://u:p@cdn.example/blob?X-Amz-Signature=abc#x".parse().unwrap();
        assert_eq!(shown(&url), "https://cdn.example/blob");
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        assert!(same_origin(&url("https://a/x"), &url("https://a:443/y")));
        for other in ["http://a/x", "https://a:444/x", "https://b/x", "http://a:443/x"] {
            assert!(!same_origin(&url("https://a/x"), &url(other)), "{other}");
        }
    }
}
