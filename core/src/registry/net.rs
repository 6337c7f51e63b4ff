//! One request, one answer: the only asynchronous part of the library.
//!
//! A thread of its own runs the event loop; callers wait for the head of an answer and read its body from a channel
//! that holds a few pieces, so that the network goes on while the reader decompresses, in bounded memory: at most
//! [`AHEAD`] pieces of up to 400 KiB (what the HTTP library reads at once) for each open body.

use std::error::Error as _;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::flow::Flow;
use super::{Again, Failure, Limit, Timeouts};
use crate::error::{Error, Result};

/// Pieces of a body that are fetched before they are asked for.
const AHEAD: usize = 4;

/// The event loop.
#[derive(Debug)]
pub(super) struct Net {
    handle: Handle,
    /// Ends the loop when dropped.
    _stop: oneshot::Sender<()>,
    timeouts: Timeouts,
    limit: Option<Limit>,
    requests: AtomicU64,
}

/// The head of an answer, with its body to be read.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: BodyReader,
}

/// Why there was no answer.
#[derive(Debug)]
pub(super) struct Trouble {
    /// What happened, without the URL.
    pub why: String,
    /// It may be different the next time.
    pub transient: bool,
    /// No connection was made, or none that both sides understand: nothing was asked.
    pub unconnected: bool,
    /// What came was no HTTP.
    pub garbage: bool,
    /// The connection ended before anything came.
    pub closed: bool,
}

impl Net {
    pub(super) fn start(timeouts: &Timeouts, limit: Option<Limit>) -> Result<Self> {
        let fail = |e| Error::io("start", "the network thread", e);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(fail)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            let _ = runtime.block_on(stopped);
            // A name that is still being looked up may take its time; nobody waits for it.
            runtime.shutdown_background();
        };
        std::thread::Builder::new()
            .name("cfs-net".into())
            .spawn(run)
            .map_err(fail)?;
        Ok(Self {
            handle,
            _stop: stop,
            timeouts: timeouts.clone(),
            limit,
            requests: AtomicU64::new(0),
        })
    }

    /// Requests made so far, those that failed included.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The event loop's, to wait in.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Sends one request, whose own body may take `more` time; redirects are answers like others. A body that is made
    /// on the way may take that long for each step of it.
    pub(super) fn send(&self, request: RequestBuilder, more: Duration, flow: Option<Flow>) -> Result<Answer, Trouble> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (head, answer) = oneshot::channel();
        let (timeouts, limit) = (self.timeouts.clone(), self.limit.clone());
        self.handle.spawn(async move {
            let patience = timeouts.idle + more;
            let response = match answered(request, patience, flow.as_ref()).await {
                Ok(response) => response,
                Err(trouble) => return drop(head.send(Err(trouble))),
            };
            let (pieces, body) = mpsc::channel(AHEAD);
            let answer = Answer {
                status: response.status(),
                headers: response.headers().clone(),
                body: BodyReader::new(response.url(), body),
            };
            if head.send(Ok(answer)).is_ok() {
                pump(response, pieces, &timeouts, limit.as_ref()).await;
            }
        });
        answer.blocking_recv().unwrap_or_else(|_| {
            Err(Trouble {
                why: "the network thread has ended".into(),
                transient: false,
                unconnected: true,
                garbage: false,
                closed: false,
            })
        })
    }
}

/// The head of the answer; gives up where nothing moves for as long as `patience`.
async fn answered(request: RequestBuilder, patience: Duration, flow: Option<&Flow>) -> Result<Response, Trouble> {
    let mut sending = std::pin::pin!(request.send());
    let sent = || flow.map_or(0, Flow::sent);
    loop {
        let before = sent();
        match tokio::time::timeout(patience, &mut sending).await {
            Ok(answer) => return answer.map_err(|e| trouble(&e)),
            Err(_) if sent() > before => {}
            Err(_) => return Err(silent(patience)),
        }
    }
}

/// The pieces of a body, or why there are no more.
type Pieces = mpsc::Sender<Result<Bytes, String>>;

/// Passes a body on, piece by piece. Only time spent waiting for the network counts as slow.
async fn pump(mut response: Response, pieces: Pieces, timeouts: &Timeouts, limit: Option<&Limit>) {
    let (mut waited, mut received) = (Duration::ZERO, 0);
    loop {
        let start = Instant::now();
        let piece = match tokio::time::timeout(timeouts.idle, response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => return drop(pieces.send(Err(trouble(&error).why)).await),
            Err(_) => return drop(pieces.send(Err(silent(timeouts.idle).why)).await),
        };
        waited += start.elapsed();
        received += piece.len() as u64;
        if waited >= timeouts.slow_after {
            if received < timeouts.slow_rate.saturating_mul(waited.as_secs().max(1)) {
                let why = format!("only {received} bytes came in {} seconds", waited.as_secs());
                return drop(pieces.send(Err(why)).await);
            }
            (waited, received) = (Duration::ZERO, 0);
        }
        if !pass(piece, &pieces, limit).await {
            return;
        }
    }
}

/// Passes a piece on, in smaller ones where a limit is to be kept: what is not taken from the connection in time holds
/// the other side up. Whether anybody takes it.
async fn pass(mut piece: Bytes, pieces: &Pieces, limit: Option<&Limit>) -> bool {
    let Some(limit) = limit else {
        return pieces.send(Ok(piece)).await.is_ok();
    };
    while !piece.is_empty() {
        let part = piece.split_to(limit.step().min(piece.len()));
        limit.wait(part.len()).await;
        if pieces.send(Ok(part)).await.is_err() {
            return false;
        }
    }
    true
}

fn silent(idle: Duration) -> Trouble {
    Trouble {
        why: format!("no answer within {} seconds", idle.as_secs_f32()),
        transient: true,
        unconnected: false,
        garbage: false,
        closed: false,
    }
}

fn trouble(error: &reqwest::Error) -> Trouble {
    let mut causes = Vec::new();
    let (mut certificate, mut garbage, mut closed) = (false, false, false);
    let mut next = error.source();
    while let Some(cause) = next {
        certificate |= matches!(tls_error(cause), Some(rustls::Error::InvalidCertificate(_)));
        let text = cause.to_string();
        garbage |= text.contains("invalid HTTP version") || text.contains("HTTP/2 frame");
        closed |= text.contains("closed before message completed") || is_reset(cause);
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    // The outer ones say "client error (Connect)" and the like; the inner ones say what happened.
    let keep = causes.len().saturating_sub(2);
    let why = match causes.split_off(keep) {
        none if none.is_empty() => error.to_string(),
        causes => causes.join(": "),
    };
    Trouble {
        why: if error.is_connect() {
            format!("cannot connect: {why}")
        } else {
            why
        },
        transient: !certificate && !error.is_builder(),
        // Whoever shows a certificate does speak TLS.
        unconnected: error.is_connect() && !certificate,
        garbage,
        closed,
    }
}

fn is_reset(error: &(dyn std::error::Error + 'static)) -> bool {
    let kinds = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::ConnectionAborted,
    ];
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| kinds.contains(&error.kind()))
}

/// An I/O error does not name what it carries as its source; it may carry another one.
fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(io) => tls_error(io.get_ref()?),
        None => error.downcast_ref(),
    }
}

/// A body as it comes.
pub(super) struct BodyReader {
    url: String,
    pieces: mpsc::Receiver<Result<Bytes, String>>,
    piece: Bytes,
}

impl BodyReader {
    fn new(url: &Url, pieces: mpsc::Receiver<Result<Bytes, String>>) -> Self {
        Self {
            url: shown(url),
            pieces,
            piece: Bytes::new(),
        }
    }

    /// Up to `limit` bytes; `None` where there are more.
    pub(super) fn up_to(mut self, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        let read = Read::take(&mut self, limit + 1).read_to_end(&mut bytes);
        match read {
            Ok(_) if bytes.len() as u64 > limit => Ok(None),
            Ok(_) => Ok(Some(bytes)),
            Err(error) => Err(error.downcast::<Failure>().unwrap_or_else(|error| {
                let error = Error::io("read", &self.url, error);
                error.into()
            })),
        }
    }
}

impl BufRead for BodyReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                None => break,
                Some(Err(why)) => {
                    let url = self.url.clone();
                    let error = Error::Network { url, why };
                    return Err(io::Error::other(Failure {
                        error,
                        again: Again::Later(None),
                        refused: false,
                    }));
                }
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount.min(self.piece.len()));
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

/// A URL as it may be shown: what follows `?` is often a credential in itself.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}
