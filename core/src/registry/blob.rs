//! A blob as a reader that checks itself and goes on after a cut connection.
//!
//! Invariant: the bytes handed out are a prefix of one blob, hashed in the order in which they were handed out, whatever
//! connections they came by; `Ok(0)` is returned only when they were `size` bytes with the digest of the descriptor.

use std::io::{self, BufRead, Read};
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use super::retry::{PROGRESS, Rounds, read_filled};
use super::{Again, Body, Failure, Registry, Retry};
use crate::error::{Error, Result};
use crate::ids::BlobDigest;
use crate::manifest::Descriptor;
use crate::monitor::{Event, Monitor};

/// A blob's bytes. Errors from reading carry the library's own error: [`Error::from_read`].
pub struct Blob<'m> {
    registry: Registry,
    monitor: &'m dyn Monitor,
    digest: BlobDigest,
    size: u64,
    /// Bytes handed out and hashed.
    done: u64,
    hasher: Sha256,
    state: State,
    /// Sources to ask, from this one on, once around.
    source: usize,
    asked: usize,
    failed: u32,
    /// `done` at the last failure.
    failed_at: u64,
}

enum State {
    /// No connection, or a broken one.
    Closed,
    Open(Box<dyn BufRead + Send>),
    /// Checked.
    Done,
    /// Given up, for this reason: a reader that asks again must not find a good end.
    Failed(String),
}

impl<'m> Blob<'m> {
    pub(super) fn new(registry: Registry, blob: &Descriptor, monitor: &'m dyn Monitor) -> Self {
        Self {
            source: registry.inner.good.load(Ordering::Relaxed),
            registry,
            monitor,
            digest: blob.digest,
            size: blob.size,
            done: 0,
            hasher: Sha256::new(),
            state: State::Closed,
            asked: 1,
            failed: 0,
            failed_at: 0,
        }
    }

    /// Bytes handed out so far.
    pub fn position(&self) -> u64 {
        self.done
    }

    fn name(&self) -> String {
        let transport = &self.registry.inner.sources[self.source];
        format!("blob {} of {}", self.digest, transport.url(super::Wanted::Top))
    }

    /// For good: wrong bytes were handed out.
    fn refuse(&mut self, expected: impl ToString, found: impl ToString) -> Failure {
        let error = Error::Mismatch {
            what: self.name(),
            expected: expected.to_string(),
            found: found.to_string(),
        };
        self.give_up(error).into()
    }

    /// Makes sure that there is something to read, or that all is read and right.
    fn fill(&mut self) -> Result<bool> {
        loop {
            match self.try_fill() {
                Ok(more) => return Ok(more),
                Err(failure) => self.recover(failure)?,
            }
        }
    }

    fn try_fill(&mut self) -> Result<bool, Failure> {
        match &self.state {
            State::Done => return Ok(false),
            State::Failed(why) => {
                let (url, why) = (self.name(), why.clone());
                return Err(Error::Network { url, why }.into());
            }
            State::Closed | State::Open(_) => {}
        }
        let mut body = match std::mem::replace(&mut self.state, State::Closed) {
            State::Open(body) => body,
            _ => self.open()?,
        };
        let available = body.fill_buf().map_err(failure_of)?.len() as u64;
        if self.done + available > self.size {
            let (size, found) = (self.size, self.done + available);
            return Err(self.refuse(format_args!("{size} bytes"), format_args!("at least {found} bytes")));
        }
        if available > 0 {
            self.state = State::Open(body);
            return Ok(true);
        }
        if self.done < self.size {
            return Err(self.cut());
        }
        let found = BlobDigest::from_hash(std::mem::take(&mut self.hasher).finalize().into());
        match found == self.digest {
            true => {
                self.state = State::Done;
                Ok(false)
            }
            false => Err(self.refuse(self.digest, found)),
        }
    }

    fn cut(&self) -> Failure {
        Failure {
            error: Error::Network {
                url: self.name(),
                why: format!("ended after {} of {} bytes", self.done, self.size),
            },
            again: Again::Later(None),
        }
    }

    fn open(&mut self) -> Result<Box<dyn BufRead + Send>, Failure> {
        let transport = &self.registry.inner.sources[self.source];
        let body = transport.blob(&self.digest, self.size, self.done, self.monitor)?;
        let Body { mut reader, mut from } = body;
        // The other side could not start in the middle: what was handed out already is passed over.
        while from < self.done {
            let available = reader.fill_buf().map_err(failure_of)?.len();
            if available == 0 {
                return Err(self.cut());
            }
            let skip = available.min(usize::try_from(self.done - from).unwrap_or(usize::MAX));
            reader.consume(skip);
            from += skip as u64;
        }
        Ok(reader)
    }

    /// Waits for another try, or goes on to the next source, or gives up.
    fn recover(&mut self, failure: Failure) -> Result<()> {
        if matches!(self.state, State::Failed(_)) {
            return Err(failure.error);
        }
        let registry = self.registry.clone();
        let retry: &Retry = &registry.inner.retry;
        let sources = registry.inner.sources.len();
        let mut rounds: Rounds<'_> = retry.rounds(true);
        if self.done - self.failed_at < PROGRESS {
            rounds.failed(self.failed);
        }
        self.failed_at = self.done;
        let url = self.name();
        match rounds.wait(failure, &url, self.monitor) {
            Ok(()) => self.failed = rounds.failures(),
            Err(error) if self.asked < sources => {
                self.monitor
                    .event(Event::Warning(format!("going on with the next source: {error}")));
                self.asked += 1;
                self.source = (self.source + 1) % sources;
                self.failed = 0;
            }
            Err(error) => return Err(self.give_up(error)),
        }
        Ok(())
    }

    fn give_up(&mut self, error: Error) -> Error {
        if !matches!(self.state, State::Failed(_)) {
            self.state = State::Failed(format!("was given up: {error}"));
        }
        error
    }
}

pub(super) fn failure_of(error: io::Error) -> Failure {
    error.downcast::<Failure>().unwrap_or_else(|error| Failure {
        error: Error::io("read", "the blob", error),
        again: Again::Never,
    })
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill().map_err(io::Error::other)?;
        match &mut self.state {
            State::Open(body) => body.fill_buf(),
            _ => Ok(&[]),
        }
    }

    fn consume(&mut self, amount: usize) {
        let State::Open(body) = &mut self.state else { return };
        // What `fill_buf` gave is still there: asking again costs nothing and cannot fail.
        let Ok(available) = body.fill_buf() else { return };
        let amount = amount.min(available.len());
        self.hasher.update(&available[..amount]);
        body.consume(amount);
        self.done += amount as u64;
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

impl std::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({}, {} of {} bytes)", self.digest, self.done, self.size)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {}
