//! What of a blob is on this machine already, and when what arrives of one is kept.
//!
//! A blob goes from the network through its importer without ever lying on disk as a whole, and on a fast network
//! nothing else is done: fetching it again costs less than writing it twice. Where the network is what is waited for,
//! the bytes that arrive from then on are handed to a [`Kept`], which has them for the next run should this one be
//! interrupted. So what is kept is `[a, b)` of the blob, not its beginning: that was fetched in a moment, and is
//! again.
//!
//! Invariant: what was kept is read in the place of the same bytes from the network and hashed like these; it is
//! trusted no more than a registry is.

use std::io::BufRead;
use std::ops::Range;
use std::time::Duration;

/// So long the network was waited for in all: what would be lost by an interruption is worth keeping.
const LONG: Duration = Duration::from_secs(2);
/// So long the network was waited for, and it is slower than [`FAST`].
const SOON: Duration = Duration::from_millis(250);
/// Bytes a second. Below it (a quarter of what 1 Gbit/s brings) an import waits for the network, and the disk has time.
const FAST: u128 = 32 << 20;

/// Bytes of one blob that outlive the run: one stretch of it, which grows at its end.
pub trait Kept: Send {
    /// Which bytes of the blob are here; empty where there are none.
    fn range(&self) -> Range<u64>;
    /// Those from `from`, which is in the range, to the end that the range has now. A reader that fails or ends too
    /// early is one that is not asked again.
    fn reader(&self, from: u64) -> Box<dyn BufRead + Send>;
    /// These bytes arrived, and they go on where the range ends, or begin it where it is empty.
    fn arrived(&mut self, at: u64, bytes: &[u8]);
    /// All of it is of no use.
    fn forget(&mut self);
}

/// How long the network was waited for, and what it brought in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    waited: Duration,
    received: u64,
}

impl Pace {
    /// So much more.
    pub(crate) fn more(&mut self, waited: Duration, received: u64) {
        self.waited += waited;
        self.received += received;
    }

    /// Whether it pays to keep what comes.
    pub(crate) fn is_slow(&self) -> bool {
        let slow = || u128::from(self.received) * 1000 < FAST * self.waited.as_millis();
        self.waited >= LONG || (self.waited >= SOON && slow())
    }
}

/// A [`Kept`], and whether it pays to add to it.
pub(super) struct Keeping {
    kept: Box<dyn Kept>,
    pace: Pace,
    announced: bool,
}

impl Keeping {
    pub(super) fn new(kept: Box<dyn Kept>) -> Self {
        Self {
            kept,
            pace: Pace::default(),
            announced: false,
        }
    }

    /// What is here, if anything is.
    pub(super) fn here(&self) -> Option<Range<u64>> {
        Some(self.kept.range()).filter(|range| !range.is_empty())
    }

    pub(super) fn reader(&self, from: u64) -> Box<dyn BufRead + Send> {
        self.kept.reader(from)
    }

    pub(super) fn forget(mut self) {
        self.kept.forget();
    }

    /// The network was waited for.
    pub(super) fn waited(&mut self, time: Duration) {
        self.pace.more(time, 0);
    }

    /// These bytes came from the network.
    pub(super) fn arrived(&mut self, at: u64, bytes: &[u8]) {
        self.pace.more(Duration::ZERO, bytes.len() as u64);
        let wanted = match self.here() {
            Some(here) => here.end == at,
            None => self.pace.is_slow(),
        };
        if wanted {
            self.kept.arrived(at, bytes);
        }
    }

    /// Whether this is the first time that somebody asks.
    pub(super) fn announce(&mut self) -> bool {
        !std::mem::replace(&mut self.announced, true)
    }
}

/// Bytes as people write them.
pub(super) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.saturating_add(50_000) / 100_000;
    match tenths % 10 {
        0 => format!("{} MB", tenths / 10),
        rest => format!("{}.{rest} MB", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_network_keeps_nothing_and_a_slow_one_soon() {
        let ms = Duration::from_millis;
        for (waited, received, keep) in [
            (ms(0), 900 << 20, false),
            (ms(1999), 900 << 20, false),
            (ms(2000), 900 << 20, true),
            (ms(249), 0, false),
            (ms(250), 7 << 20, true),
            (ms(250), 9 << 20, false),
            (ms(1000), 31 << 20, true),
            (ms(1000), 33 << 20, false),
        ] {
            assert_eq!(Pace { waited, received }.is_slow(), keep, "{waited:?} {received}");
        }
    }

    #[test]
    fn bytes_are_shown_as_people_write_them() {
        let shown: Vec<_> = [0, 49_999, 123_000_000, 400_049_999, 1_950_000].map(megabytes).into();
        assert_eq!(shown, ["0 MB", "0 MB", "123 MB", "400 MB", "2 MB"]);
        assert_eq!(megabytes(1_500_000), "1.5 MB");
    }
}
