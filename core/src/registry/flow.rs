//! The body of a request that is made while it is sent: nothing of it is held but a few pieces.
//!
//! Invariant: it goes out once. What fails on the way is made and sent anew from its start; a body that ends too early
//! breaks the connection, since its length was announced, and no registry takes it for the whole.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Limit;

/// Bytes of a piece, and pieces that wait for the network.
const PIECE: usize = 256 << 10;
const AHEAD: usize = 4;
/// Of this much some has to go out in the time that all of it may take.
pub(super) const STEP: u64 = 8 << 20;

/// What a request holds of it; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Flow(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    size: u64,
    pieces: Mutex<mpsc::Receiver<Bytes>>,
    taken: AtomicBool,
    sent: AtomicU64,
}

/// Where the bytes are written; waits for the network.
pub(super) struct Source {
    out: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
    /// Nobody takes any more.
    pub cut: bool,
    limit: Option<(Limit, Handle)>,
}

/// As the HTTP library reads it.
pub(super) struct FlowBody(Arc<Shared>);

/// A body of `size` bytes, with where to write them, at the pace of a limit.
pub(super) fn flow(size: u64, limit: Option<(Limit, Handle)>) -> (Source, Flow) {
    let (out, pieces) = mpsc::channel(AHEAD);
    let shared = Shared {
        size,
        pieces: Mutex::new(pieces),
        taken: AtomicBool::new(false),
        sent: AtomicU64::new(0),
    };
    let piece = limit.as_ref().map_or(PIECE, |(limit, _)| limit.step());
    let source = Source {
        out,
        piece: Vec::with_capacity(piece),
        cut: false,
        limit,
    };
    (source, Flow(Arc::new(shared)))
}

impl Flow {
    /// `None` the second time: what went with the first request is gone.
    pub(super) fn body(&self) -> Option<FlowBody> {
        let first = !self.0.taken.swap(true, Ordering::AcqRel);
        first.then(|| FlowBody(self.0.clone()))
    }

    pub(super) fn size(&self) -> u64 {
        self.0.size
    }

    /// Bytes that went out so far.
    pub(super) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Whoever writes waits for nobody from here on.
    pub(super) fn close(&self) {
        self.0.pieces.lock().unwrap_or_else(PoisonError::into_inner).close();
    }
}

impl Source {
    fn push(&mut self) -> io::Result<()> {
        let piece = Bytes::copy_from_slice(&self.piece);
        self.piece.clear();
        if piece.is_empty() {
            return Ok(());
        }
        if let Some((limit, handle)) = &self.limit {
            handle.block_on(limit.wait(piece.len()));
        }
        self.out.blocking_send(piece).map_err(|_| {
            self.cut = true;
            io::ErrorKind::BrokenPipe.into()
        })
    }
}

impl Write for Source {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == self.piece.capacity() {
            self.push()?;
        }
        let take = bytes.len().min(self.piece.capacity() - self.piece.len());
        self.piece.extend_from_slice(&bytes[..take]);
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}

impl http_body::Body for FlowBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut pieces = self.0.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.poll_recv(context).map(|piece| {
            let piece = piece?;
            self.0.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Some(Ok(Frame::data(piece)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.sent.load(Ordering::Relaxed) >= self.0.size
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.size.saturating_sub(self.0.sent.load(Ordering::Relaxed)))
    }
}
