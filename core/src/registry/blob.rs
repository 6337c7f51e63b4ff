//! A blob as a reader that checks itself and goes on after a cut connection, or after an interrupted run.
//!
//! Invariant: the bytes handed out are a prefix of one blob, hashed in the order in which they were handed out,
//! whatever connections they came by and whether some of them were kept by an earlier run; `Ok(0)` is returned only
//! when they were `size` bytes with the digest of the descriptor.
//!
//! Where `[a, b)` was kept, `[0, a)` is fetched by range, `[a, b)` read from the disk and the rest fetched by range. A
//! registry that answers the first of these with the whole blob has no ranges: what was kept is forgotten then.

use std::io::{self, BufRead, Read};
use std::sync::atomic::Ordering;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::kept::{Keeping, megabytes};
use super::retry::{Course, read_filled};
use super::{Again, Body, Failure, Kept, Registry};
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
    /// Where the body that is open ends for us: what follows comes from elsewhere, unless it is the blob's end.
    until: u64,
    /// That body is what an earlier run kept.
    local: bool,
    keeping: Option<Keeping>,
    /// Sources to ask, from this one on, once around.
    source: usize,
    asked: usize,
    course: Course,
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
            until: blob.size,
            local: false,
            keeping: None,
            asked: 1,
            course: Course::default(),
        }
    }

    /// Takes what `kept` has of the blob from there, and lets it keep what arrives where the network is slow.
    pub fn with_kept(self, kept: Box<dyn Kept>) -> Self {
        let keeping = Some(Keeping::new(kept));
        Self { keeping, ..self }
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
        if self.done == self.until && self.until < self.size {
            self.state = State::Closed;
        }
        let mut body = match std::mem::replace(&mut self.state, State::Closed) {
            State::Open(body) => body,
            _ => self.open()?,
        };
        let mut available = self.look(&mut *body)?;
        match self.until == self.size {
            true if self.done + available > self.size => {
                let (size, found) = (self.size, self.done + available);
                return Err(self.refuse(format_args!("{size} bytes"), format_args!("at least {found} bytes")));
            }
            true => {}
            false => available = available.min(self.until - self.done),
        }
        if available > 0 {
            self.state = State::Open(body);
            return Ok(true);
        }
        if self.done < self.until && self.local {
            self.forget_kept();
            return self.try_fill();
        }
        if self.done < self.until {
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

    /// How many bytes can be read at once. What an earlier run kept and cannot be read ends there.
    fn look(&mut self, body: &mut dyn BufRead) -> Result<u64, Failure> {
        if self.local {
            return Ok(body.fill_buf().map_or(0, |bytes| bytes.len() as u64));
        }
        let start = self.keeping.is_some().then(Instant::now);
        let available = body.fill_buf().map_err(failure_of)?.len() as u64;
        if let (Some(start), Some(keeping)) = (start, &mut self.keeping) {
            keeping.waited(start.elapsed());
        }
        Ok(available)
    }

    fn forget_kept(&mut self) {
        if let Some(keeping) = self.keeping.take() {
            keeping.forget();
        }
    }

    fn cut(&self) -> Failure {
        Failure {
            error: Error::Network {
                url: self.name(),
                why: format!("ended after {} of {} bytes", self.done, self.size),
            },
            again: Again::Later(None),
            refused: false,
        }
    }

    fn open(&mut self) -> Result<Box<dyn BufRead + Send>, Failure> {
        let here = self.keeping.as_ref().and_then(Keeping::here);
        let here = here.filter(|here| self.done < here.end);
        self.local = here.as_ref().is_some_and(|here| here.start <= self.done);
        self.until = match &here {
            Some(here) if self.local => here.end,
            Some(here) => here.start,
            None => self.size,
        };
        if let (Some(here), Some(keeping)) = (&here, &mut self.keeping) {
            if keeping.announce() {
                let (blob, at, size) = (&self.digest, megabytes(here.end), megabytes(self.size));
                let kept = megabytes(here.end - here.start);
                let note = format!("blob {blob} goes on at {at} of {size}: an interrupted run kept {kept}");
                self.monitor.event(Event::Note(note));
            }
            if self.local {
                return Ok(keeping.reader(self.done));
            }
        }
        let wanted = self.done..self.until;
        let transport = &self.registry.inner.sources[self.source];
        let body = transport.blob(&self.digest, self.size, wanted.clone(), self.monitor)?;
        let Body {
            mut reader,
            mut from,
            whole,
        } = body;
        if whole && wanted != (0..self.size) {
            // Without ranges nothing is saved, the next time neither.
            self.forget_kept();
            self.until = self.size;
        }
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
        let sources = registry.inner.sources.len();
        let last = self.source + 1 == sources;
        let url = self.name();
        let refused = failure.refused;
        let course = (&registry.inner.retry, last);
        match self.course.wait(course, self.done, failure, &url, self.monitor) {
            Ok(()) => {}
            Err(_) if refused && (last || self.asked == sources) && self.done == 0 && self.until < self.size => {
                // It does not give what comes before what was kept: perhaps it gives the whole.
                self.forget_kept();
                self.course.anew();
            }
            Err(error) if self.asked < sources => {
                self.monitor
                    .event(Event::Warning(format!("going on with the next source: {error}")));
                self.asked += 1;
                self.source = (self.source + 1) % sources;
                self.course.anew();
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
        refused: false,
    })
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill().map_err(io::Error::other)?;
        let most = usize::try_from(self.until - self.done).unwrap_or(usize::MAX);
        match &mut self.state {
            State::Open(body) => body.fill_buf().map(|bytes| &bytes[..bytes.len().min(most)]),
            _ => Ok(&[]),
        }
    }

    fn consume(&mut self, amount: usize) {
        let most = usize::try_from(self.until - self.done).unwrap_or(usize::MAX);
        let State::Open(body) = &mut self.state else { return };
        // What `fill_buf` gave is still there: asking again costs nothing and cannot fail.
        let Ok(available) = body.fill_buf() else { return };
        let amount = amount.min(available.len()).min(most);
        self.hasher.update(&available[..amount]);
        if let (false, Some(keeping)) = (self.local, &mut self.keeping) {
            keeping.arrived(self.done, &available[..amount]);
        }
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
