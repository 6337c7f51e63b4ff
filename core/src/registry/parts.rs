//! Parts of a blob as one reader, in as few requests as pay off.
//!
//! Invariant: the bytes handed out are those that the other side says are at the positions asked for, in order, none
//! left out and none twice, whatever connections they came by. They are **not** checked against anything: a part of a
//! blob has no digest of its own, so whoever asks for parts has digests for them.
//!
//! Several ranges go into one request. A registry that answers such a request with one range, with the whole blob or
//! with a refusal is asked for one range at a time, then with wider gaps read along; one that answers that with the
//! whole blob serves no parts at all, which is remembered for all layers of the image. Where another place may have the
//! parts, it is asked for what is left. Requests are made ahead of the reader. Whoever has yet to decide which parts
//! to ask for knows by [`Registry::gap`] what is read along.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use super::blob::failure_of;
use super::multipart::Multipart;
use super::retry::{Course, read_filled};
use super::{Again, Failure, Inner, Registry};
use crate::error::{Error, Result};
use crate::ids::BlobDigest;
use crate::manifest::Descriptor;
use crate::monitor::{Event, Monitor, Quiet};

/// Ranges in one request: the header stays below the 4 KiB that proxies take without being told.
const RANGES: usize = 120;
/// Bytes in one request, more or less: enough to be worth it, and several are under way.
const BYTES: u64 = 4 << 20;
/// Requests under way at the same time.
const AHEAD: usize = 3;
/// So much between two ranges is read along rather than asked for apart: where they go into one request, and where
/// each is a request of its own.
const GAP: u64 = 1 << 10;
const GAP_OF_REQUESTS: u64 = 48 << 10;

/// A source's way with ranges, as far as known: several in a request, one, or none at all.
pub(super) const SEVERAL: u8 = 0;
pub(super) const SINGLE: u8 = 1;
pub(super) const NONE: u8 = 2;

/// What a transport answers to a request for ranges.
pub(super) enum Answered {
    /// `multipart/byteranges`.
    Several(Box<dyn BufRead + Send>, String),
    /// One range.
    One(Box<dyn BufRead + Send>, Range<u64>),
    /// The whole blob, or a refusal: not like this.
    Not,
}

/// Bytes of some ranges of a blob, one after the other. Errors carry the library's own error: [`Error::from_read`].
pub struct Parts<'m> {
    registry: Registry,
    monitor: &'m dyn Monitor,
    digest: BlobDigest,
    source: usize,
    /// What is yet to be handed out.
    wanted: VecDeque<Range<u64>>,
    /// Requests that were made and not looked at, in order.
    flights: VecDeque<Flight>,
    current: Option<Current>,
    /// Bytes handed out.
    done: u64,
    course: Course,
    given_up: Option<String>,
}

/// A request for all that is wanted from `begin` to `end`.
struct Flight {
    begin: u64,
    end: u64,
    several: bool,
    answer: Receiver<Result<Answered, Failure>>,
}

/// The answer that is being read.
struct Current {
    body: Body,
    /// The bytes of the blob that come next from it.
    segment: Range<u64>,
    /// What was asked for ends here.
    end: u64,
    /// Several ranges were asked for.
    several: bool,
}

enum Body {
    Several(Multipart<Box<dyn BufRead + Send>>),
    One(Box<dyn BufRead + Send>),
}

impl Body {
    fn reader(&mut self) -> &mut (dyn BufRead + Send) {
        match self {
            Self::Several(parts) => &mut **parts.reader(),
            Self::One(reader) => &mut **reader,
        }
    }
}

impl Inner {
    /// The first source, from this one on, that may be asked for parts.
    pub(super) fn serving_parts(&self, from: usize) -> Option<usize> {
        let serves = |at: &usize| self.sources[*at].serves_parts() && self.ranges[*at].load(Ordering::Relaxed) != NONE;
        (from..self.sources.len()).find(serves)
    }

    /// So many bytes between two ranges are better read along than asked for apart, for all that is known of the
    /// places that may be asked.
    pub(super) fn gap(&self) -> u64 {
        let good = self.good.load(Ordering::Relaxed);
        let mut ways = self.ranges[good..].iter().map(|way| way.load(Ordering::Relaxed));
        match ways.any(|way| way == SINGLE) {
            true => GAP_OF_REQUESTS,
            false => GAP,
        }
    }
}

impl<'m> Parts<'m> {
    /// `ranges` are in order, do not overlap and are not empty.
    pub(super) fn new(
        registry: Registry,
        blob: &Descriptor,
        ranges: Vec<Range<u64>>,
        monitor: &'m dyn Monitor,
    ) -> Self {
        let good = registry.inner.good.load(Ordering::Relaxed);
        Self {
            source: registry.inner.serving_parts(good).unwrap_or(good),
            registry,
            monitor,
            digest: blob.digest,
            wanted: ranges.into(),
            flights: VecDeque::new(),
            current: None,
            done: 0,
            course: Course::default(),
            given_up: None,
        }
    }

    /// The way with ranges of the source that is asked.
    fn way(&self) -> &AtomicU8 {
        &self.registry.inner.ranges[self.source]
    }

    fn name(&self) -> String {
        let transport = &self.registry.inner.sources[self.source];
        format!("blob {} of {}", self.digest, transport.url(super::Wanted::Top))
    }

    /// Makes sure that there is something to read; `false` at the end.
    fn fill(&mut self) -> Result<bool> {
        if let Some(why) = &self.given_up {
            let (url, why) = (self.name(), why.clone());
            return Err(Error::Network { url, why });
        }
        loop {
            match self.try_fill() {
                Ok(more) => return Ok(more),
                Err(failure) => self.recover(failure)?,
            }
        }
    }

    fn try_fill(&mut self) -> Result<bool, Failure> {
        while let Some(want) = self.wanted.front() {
            let want = want.start;
            let Some(current) = &mut self.current else {
                self.open(want)?;
                continue;
            };
            if want >= current.end {
                self.current = None;
            } else if current.segment.is_empty() {
                self.next_segment(want)?;
            } else if self.skip_to(want)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes to the next part of the answer, which begins with the byte `want`. What is left of one range is asked for
    /// again.
    fn next_segment(&mut self, want: u64) -> Result<(), Failure> {
        let next = match &mut self.current {
            Some(Current {
                body: Body::Several(parts),
                ..
            }) => parts.next(),
            _ => {
                self.current = None;
                return Ok(());
            }
        };
        match next {
            Ok(Some(segment)) if segment.start == want => {
                if let Some(current) = &mut self.current {
                    current.segment = segment;
                }
                Ok(())
            }
            Ok(_) => Err(self.not_asked_for()),
            Err(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof => Err(self.cut()),
                io::ErrorKind::InvalidData => Err(self.not_asked_for()),
                _ => Err(failure_of(error)),
            },
        }
    }

    /// Passes over what comes before `want`; whether the next byte is that one.
    fn skip_to(&mut self, want: u64) -> Result<bool, Failure> {
        let Some(current) = &mut self.current else {
            return Ok(false);
        };
        let here = current.body.reader().fill_buf().map_err(failure_of)?.len() as u64;
        if here == 0 {
            return Err(self.cut());
        }
        let skip = (want.min(current.segment.end) - current.segment.start).min(here);
        current
            .body
            .reader()
            .consume(usize::try_from(skip).unwrap_or(usize::MAX));
        current.segment.start += skip;
        Ok(skip == 0)
    }

    fn cut(&self) -> Failure {
        Failure {
            error: Error::Network {
                url: self.name(),
                why: format!("the connection ended after {} bytes of what was asked for", self.done),
            },
            again: Again::Later(None),
            refused: false,
        }
    }

    /// The answer that is being read was not what was asked for.
    fn not_asked_for(&mut self) -> Failure {
        let several = self.current.as_ref().is_some_and(|current| current.several);
        self.other_way(several)
    }

    /// The answer was not what was asked for: another way from now on, or none.
    fn other_way(&mut self, several: bool) -> Failure {
        let way = if several { SINGLE } else { NONE };
        self.way().fetch_max(way, Ordering::Relaxed);
        self.current = None;
        self.flights.clear();
        Failure {
            error: Error::Network {
                url: self.name(),
                why: "the registry does not send the parts of a blob that it is asked for".into(),
            },
            again: if several { Again::OtherWay } else { Again::Never },
            refused: false,
        }
    }

    /// Looks at the answer that has the byte `want`, and sees to it that others are under way.
    fn open(&mut self, want: u64) -> Result<(), Failure> {
        while self
            .flights
            .front()
            .is_some_and(|flight| flight.end <= want || flight.begin < want)
        {
            self.flights.pop_front();
        }
        let next = self.flights.front().map(|flight| flight.begin);
        if next != Some(want) {
            let flight = self.request(want, next.unwrap_or(u64::MAX));
            self.flights.extend(flight);
            self.flights.rotate_right(1);
        }
        while let Some(last) = self.flights.back().filter(|_| self.flights.len() < AHEAD) {
            match self.request(last.end, u64::MAX) {
                Some(flight) => self.flights.push_back(flight),
                None => break,
            }
        }
        let Some(flight) = self.flights.pop_front() else {
            return Err(self.cut());
        };
        let answered = match flight.answer.recv().map_err(|_| self.cut())? {
            // Some proxies fail on what they do not know.
            Err(failure) if flight.several && failure.refused => Answered::Not,
            answered => answered?,
        };
        let (body, segment) = match answered {
            Answered::Several(reader, boundary) => (Body::Several(Multipart::new(reader, &boundary)), 0..0),
            Answered::One(reader, segment) if segment.start == want => {
                if flight.several && segment.end < flight.end {
                    self.way().fetch_max(SINGLE, Ordering::Relaxed);
                }
                (Body::One(reader), segment)
            }
            Answered::One(..) | Answered::Not => return Err(self.other_way(flight.several)),
        };
        self.current = Some(Current {
            body,
            segment,
            end: flight.end,
            several: flight.several,
        });
        Ok(())
    }

    /// Makes a request for what is wanted from `from` on, but before `limit`; the answer is waited for elsewhere.
    fn request(&self, from: u64, limit: u64) -> Option<Flight> {
        let first = self.wanted.partition_point(|range| range.end <= from);
        let several = self.way().load(Ordering::Relaxed) == SEVERAL;
        let mut ranges = Vec::<Range<u64>>::new();
        let mut bytes = 0;
        for range in self.wanted.range(first..) {
            let range = range.start.max(from)..range.end.min(limit);
            if range.is_empty() || bytes >= BYTES || ranges.len() == RANGES {
                break;
            }
            bytes += range.end - range.start;
            match ranges.last_mut() {
                Some(last) if !several && range.start - last.end > GAP_OF_REQUESTS => break,
                Some(last) if !several => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        let (begin, end) = (ranges.first()?.start, ranges.last()?.end);
        let (answered, answer) = sync_channel(1);
        let several = ranges.len() > 1;
        let (registry, source, digest) = (self.registry.clone(), self.source, self.digest);
        // Whoever gave up waiting makes the answer's connection close.
        std::thread::spawn(move || {
            let _ = answered.send(registry.inner.sources[source].parts(&digest, &ranges, &Quiet));
        });
        Some(Flight {
            begin,
            end,
            several,
            answer,
        })
    }

    /// Waits for another try, or goes on to the next source, or gives up.
    fn recover(&mut self, failure: Failure) -> Result<()> {
        self.current = None;
        if failure.again == Again::OtherWay {
            return Ok(());
        }
        let registry = self.registry.clone();
        let last = self.source + 1 == registry.inner.sources.len();
        let course = (&registry.inner.retry, last);
        let url = self.name();
        let Err(error) = self.course.wait(course, self.done, failure, &url, self.monitor) else {
            return Ok(());
        };
        let Some(next) = registry.inner.serving_parts(self.source + 1) else {
            self.given_up = Some(format!("was given up: {error}"));
            return Err(error);
        };
        self.monitor
            .event(Event::Warning(format!("going on with the next source: {error}")));
        self.source = next;
        self.flights.clear();
        self.course.anew();
        Ok(())
    }

    /// How much of the current piece is wanted next.
    fn wanted_here(&self, available: usize) -> usize {
        let (Some(want), Some(current)) = (self.wanted.front(), &self.current) else {
            return 0;
        };
        let most = want.end.min(current.segment.end) - want.start;
        available.min(usize::try_from(most).unwrap_or(usize::MAX))
    }
}

impl BufRead for Parts<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.fill().map_err(io::Error::other)? {
            return Ok(&[]);
        }
        // What `fill` has seen is still there: asking again costs nothing.
        let available = match &mut self.current {
            Some(current) => current.body.reader().fill_buf()?.len(),
            None => 0,
        };
        let most = self.wanted_here(available);
        match &mut self.current {
            Some(current) => Ok(&current.body.reader().fill_buf()?[..most]),
            None => Ok(&[]),
        }
    }

    fn consume(&mut self, amount: usize) {
        let amount = self.wanted_here(amount);
        let (Some(want), Some(current)) = (self.wanted.front_mut(), &mut self.current) else {
            return;
        };
        current.body.reader().consume(amount);
        current.segment.start += amount as u64;
        want.start += amount as u64;
        self.done += amount as u64;
        if want.is_empty() {
            self.wanted.pop_front();
        }
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts({}, {} ranges left)", self.digest, self.wanted.len())
    }
}
