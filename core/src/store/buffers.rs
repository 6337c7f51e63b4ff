//! Buffers between the two threads of a layer: one makes a tar's bytes, the other imports them.
//!
//! Invariant: a few buffers go round, so memory is bounded whatever the layer holds; the end of the tar, good or bad,
//! is told once and is the last that is told.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::store::decompress::Decompressor;
use crate::store::layer::Pieces;

/// Bytes of a buffer, and how many there are.
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 4;

/// The two ends. What is made is given up when `stop` is set.
pub(super) fn pair(stop: &AtomicBool) -> (Outlet<'_>, Inlet) {
    let (full, from_full) = sync_channel(BUFFERS);
    let (empty, from_empty) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        let _ = empty.try_send(Vec::with_capacity(BUFFER));
    }
    let inlet = Inlet {
        from_full,
        empty,
        current: Buffer::default(),
        ended: false,
    };
    (Outlet { full, from_empty, stop }, inlet)
}

/// Bytes of a tar, and where in them the content of a file begins that is an object already.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    known: Vec<(usize, ObjectId)>,
}

/// A message to the second thread: a filled buffer, or how it ended.
type Message = Result<Option<Buffer>>;

/// The first thread's end of the buffers.
pub(super) struct Outlet<'a> {
    full: SyncSender<Message>,
    from_empty: Receiver<Vec<u8>>,
    stop: &'a AtomicBool,
}

/// Seen by nobody: the error that came first is the one that is returned.
fn given_up() -> Error {
    Error::Usage("given up because another layer failed".into())
}

/// The second thread's end of the buffers.
pub(super) struct Inlet {
    from_full: Receiver<Message>,
    empty: SyncSender<Vec<u8>>,
    current: Buffer,
    ended: bool,
}

impl Outlet<'_> {
    /// An empty buffer of full length; an error where the second thread or another layer has failed.
    fn buffer(&self) -> Result<Buffer> {
        let mut bytes = self.from_empty.recv().map_err(|_| given_up())?;
        bytes.resize(BUFFER, 0);
        if self.stop.load(Ordering::Relaxed) {
            Err(given_up())
        } else {
            Ok(Buffer {
                bytes,
                known: Vec::new(),
            })
        }
    }

    fn send(&self, buffer: Buffer) -> Result<()> {
        self.full.send(Ok(Some(buffer))).map_err(|_| given_up())
    }

    pub(super) fn end(self, result: Result<()>) {
        let _ = self.full.send(result.map(|()| None));
    }
}

impl Pieces for Inlet {
    fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.ended {
            return Ok(None);
        }
        let done = std::mem::take(&mut self.current).bytes;
        if done.capacity() > 0 {
            let _ = self.empty.send(done);
        }
        let message = self.from_full.recv();
        match message.map_err(|_| Error::Usage("the decompressing thread ended without a word".into()))?? {
            Some(buffer) => {
                self.current = buffer;
                Ok(Some(&self.current.bytes))
            }
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    fn current(&self) -> &[u8] {
        &self.current.bytes
    }

    fn known(&self, at: usize) -> Option<ObjectId> {
        let known = &self.current.known;
        let place = known.binary_search_by_key(&at, |(at, _)| *at).ok()?;
        known.get(place).map(|(_, id)| *id)
    }
}

/// The buffer that is being filled.
pub(super) struct Filling {
    buffer: Buffer,
    written: usize,
}

impl Filling {
    pub(super) fn new(out: &Outlet<'_>) -> Result<Self> {
        Ok(Self {
            buffer: out.buffer()?,
            written: 0,
        })
    }

    /// Where the next bytes go; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes[self.written..]
    }

    /// So many bytes were written there.
    pub(super) fn filled(&mut self, count: usize, out: &Outlet<'_>) -> Result<()> {
        self.written += count;
        if self.written == BUFFER {
            self.written = 0;
            out.send(std::mem::replace(&mut self.buffer, out.buffer()?))?;
        }
        Ok(())
    }

    /// The next bytes.
    pub(super) fn put(&mut self, mut bytes: &[u8], out: &Outlet<'_>) -> Result<()> {
        while !bytes.is_empty() {
            let space = self.space();
            let take = bytes.len().min(space.len());
            space[..take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            self.filled(take, out)?;
        }
        Ok(())
    }

    /// What comes next is the content of this object.
    pub(super) fn mark(&mut self, id: ObjectId) {
        self.buffer.known.push((self.written, id));
    }

    pub(super) fn decompress(
        &mut self,
        decompressor: &mut Decompressor,
        mut input: &[u8],
        out: &Outlet<'_>,
        broken: &dyn Fn(io::Error) -> Error,
    ) -> Result<()> {
        loop {
            let n = decompressor.run(&mut input, self.space()).map_err(broken)?;
            let full = n == self.space().len();
            self.filled(n, out)?;
            if !full && (input.is_empty() || n == 0) {
                return Ok(());
            }
        }
    }

    pub(super) fn end(mut self, out: &Outlet<'_>) -> Result<()> {
        self.buffer.bytes.truncate(self.written);
        if self.written > 0 {
            out.send(self.buffer)
        } else {
            Ok(())
        }
    }
}
