//! Some ranges of a blob, read as the frames that are in them are needed, from the first byte on.

use std::io::{self, BufRead};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Ranges of a blob that come one after the other.
pub(super) struct Frames<'a> {
    reader: Box<dyn BufRead + Send + 'a>,
    ranges: std::vec::IntoIter<Range<u64>>,
    /// The current range from where it is read.
    here: Range<u64>,
    pub(super) fetched: u64,
    /// How long the blob was waited for.
    pub(super) waited: Duration,
}

impl<'a> Frames<'a> {
    pub(super) fn new(reader: Box<dyn BufRead + Send + 'a>, ranges: Vec<Range<u64>>) -> Self {
        Self {
            reader,
            ranges: ranges.into_iter(),
            here: 0..0,
            fetched: 0,
            waited: Duration::ZERO,
        }
    }

    /// Goes on to a byte of the blob.
    pub(super) fn seek(&mut self, to: u64) -> io::Result<()> {
        loop {
            let skip = to.min(self.here.end).saturating_sub(self.here.start);
            self.skip(skip)?;
            if self.here.contains(&to) {
                return Ok(());
            }
            let left = self.here.end - self.here.start;
            self.skip(left)?;
            self.here = self.ranges.next().ok_or_else(|| invalid("the table is not in order"))?;
            if self.here.start > to {
                return Err(invalid("the table is not in order"));
            }
        }
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let n = self.piece(left)?.len();
            self.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    /// Up to `limit` of the next bytes; at least one unless that is 0.
    pub(super) fn piece(&mut self, limit: u64) -> io::Result<&[u8]> {
        if limit == 0 {
            return Ok(&[]);
        }
        let most = limit.min(self.here.end - self.here.start);
        let began = Instant::now();
        let here = self.reader.fill_buf()?;
        self.waited += began.elapsed();
        let most = here.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        match most {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a part of the blob is cut",
            )),
            _ => Ok(&here[..most]),
        }
    }

    pub(super) fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
        self.here.start += amount as u64;
        self.fetched += amount as u64;
    }

    /// Reads a range to the end of `bytes`; after each piece `each` is told how many bytes it has, and how long it was
    /// waited for.
    pub(super) fn read(
        &mut self,
        range: &Range<u64>,
        bytes: &mut Vec<u8>,
        mut each: impl FnMut(&[u8], usize, Duration),
    ) -> io::Result<()> {
        self.seek(range.start)?;
        while self.here.start < range.end {
            let waited = self.waited;
            let piece = self.piece(range.end - self.here.start)?;
            bytes.extend_from_slice(piece);
            let n = piece.len();
            self.consume(n);
            each(bytes, n, self.waited - waited);
        }
        Ok(())
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
