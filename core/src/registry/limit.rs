//! How many bytes a second may go over the network: one measure for all connections of a run.
//!
//! Invariant: over any stretch of time no more bytes are let through than the rate allows, and [`CREDIT`]'s worth;
//! whoever asks waits in the order of asking, so that no connection takes all.

use std::fmt;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

/// What was not used is lost but for this: a second of silence brings no second of twice the rate.
const CREDIT: Duration = Duration::from_millis(50);
/// Pieces of this time's worth are let through at a time.
const STEP: Duration = Duration::from_millis(25);
/// What is let through at a time is not more than this.
const LARGEST: u64 = 64 << 10;
/// Below it no registry keeps a connection open long enough to get anywhere.
const SMALLEST: u64 = 1 << 10;

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

/// A rate that is kept by all that share it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Limit {
    rate: Rate,
    /// When all that was let through so far has had its time.
    paid: Arc<Mutex<Instant>>,
}

impl Rate {
    /// `None` below 1 KiB.
    pub fn new(bytes: u64) -> Option<Self> {
        NonZeroU64::new(bytes).filter(|bytes| bytes.get() >= SMALLEST).map(Self)
    }

    /// Bytes a second.
    pub fn bytes(self) -> u64 {
        self.0.get()
    }

    /// How long so many bytes take.
    pub(super) fn time(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `500000`, `800K`, `2M`, `1.5M`, `1G`: bytes a second, in units of 1024 as curl and wget have them.
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("{text:?} is no rate: write bytes a second, such as 800K, 2M or 1.5M");
        let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit() && c != '.') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            _ => return Err(why()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| why());
        if fraction.len() > 6 || (shift == 0 && digits.contains('.')) {
            return Err(why());
        }
        let (whole, thousandths) = (number(whole)?, number(fraction)?);
        let parts = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| why())?);
        let bytes = (u128::from(whole) << shift) + ((u128::from(thousandths) << shift) / parts);
        let bytes = u64::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes < 1 << 50)
            .ok_or_else(why)?;
        Self::new(bytes).ok_or_else(|| format!("{text:?} is too slow: {SMALLEST} bytes a second is the least"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        match bytes.trailing_zeros() {
            30.. => write!(f, "{}G", bytes >> 30),
            20.. => write!(f, "{}M", bytes >> 20),
            10.. => write!(f, "{}K", bytes >> 10),
            _ => write!(f, "{bytes}"),
        }
    }
}

impl Limit {
    /// For all that get a clone of it.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            paid: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// What it keeps to.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// How many bytes to ask for at a time.
    pub(super) fn step(&self) -> usize {
        let bytes =
            self.rate.bytes() / u64::try_from(Duration::from_secs(1).as_millis() / STEP.as_millis()).unwrap_or(1);
        usize::try_from(bytes.clamp(256, LARGEST)).unwrap_or(1)
    }

    /// Lets so many bytes through after the time that is returned.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> Duration {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        *paid = (*paid).max(earliest) + self.rate.time(bytes as u64);
        paid.saturating_duration_since(now)
    }

    /// Waits until so many bytes may go.
    pub(super) async fn wait(&self, bytes: usize) {
        let wait = self.take(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Bytes to be sent, piece by piece as the limit allows.
pub(super) struct Paced {
    left: Bytes,
    limit: Limit,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(bytes: Bytes, limit: Limit) -> Self {
        Self {
            left: bytes,
            limit,
            sleep: None,
        }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let step = self.limit.step().min(self.left.len());
        if self.sleep.is_none() {
            let wait = self.limit.take(step, Instant::now());
            self.sleep = Some(Box::pin(tokio::time::sleep(wait)));
        }
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(context));
        }
        self.sleep = None;
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(step)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_for_curl_and_wget() {
        let rate = |text: &str| text.parse::<Rate>().map(Rate::bytes);
        for (text, bytes) in [
            ("2048", 2048),
            ("1K", 1024),
            ("800k", 800 << 10),
            ("2M", 2 << 20),
            ("1.5M", 3 << 19),
            ("0.25m", 1 << 18),
            ("1G", 1 << 30),
        ] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for nonsense in [
            "",
            "0",
            "0K",
            "1023",
            "-1",
            "-2M",
            "M",
            "K2",
            "2MB",
            "2 M",
            " 2M",
            "2T",
            "1.5",
            "1..5M",
            ".5M",
            "1.M",
            "1,5M",
            "2M/s",
            "fast",
            "99999999999999999999",
            "99999999G",
            "1.0000000001M",
            "\u{662}M",
        ] {
            assert!(rate(nonsense).is_err(), "{nonsense:?}");
        }
        for text in ["2M", "800K", "3G", "5000"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bytes_go_at_the_rate_however_they_are_asked_for_and_silence_is_not_made_up_for() {
        let limit = Limit::new("1M".parse().unwrap());
        let start = Instant::now();
        let wait = |bytes: usize, at: u64| limit.take(bytes, start + Duration::from_millis(at)).as_millis();
        // Two connections by turns, then one after ten seconds of silence.
        assert!(wait(1 << 19, 0).abs_diff(500) < 60);
        assert!(wait(1 << 18, 0).abs_diff(750) < 60);
        assert!(wait(1 << 18, 500).abs_diff(500) < 60);
        assert_eq!(wait(1 << 10, 10_000), 0);
        let after = wait(1 << 20, 10_000);
        assert!(after.abs_diff(951) < 3, "{after}");
        assert_eq!(limit.step(), (1 << 20) / 40);
    }
}
