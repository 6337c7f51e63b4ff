//! When to ask again, and how long to wait before.

use std::io::{self, BufRead};
use std::time::Duration;

use super::{Again, Failure};
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};

/// After this many bytes a connection counts as one that works: earlier failures are forgotten.
const PROGRESS: u64 = 256 << 10;
/// So often a connection that brought fewer, but some, counts as one that works: a blob of middling size comes where all
/// connections are cut early, and none is asked for byte by byte without end.
const SMALL_STEPS: u32 = 300;

/// Tries and waits. A wait doubles with every failure in a row, with up to a quarter of it taken off at random so that
/// many hosts do not come back at the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all; 1 = none again.
    pub attempts: u32,
    /// Wait after the first failure.
    pub first_wait: Duration,
    /// No wait of ours is longer.
    pub longest_wait: Duration,
    /// A registry that asks for a longer wait than this (`Retry-After`) is given up.
    pub patience: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            patience: Duration::from_secs(300),
        }
    }
}

impl Retry {
    /// Counts the tries of one request. Where another source can be asked instead, there is one only.
    pub(super) fn rounds(&self, patient: bool) -> Rounds<'_> {
        Rounds {
            retry: self,
            attempts: if patient { self.attempts.max(1) } else { 1 },
            failed: 0,
        }
    }

    /// `failed`: failures in a row, from 1; `random`: 0..=255.
    fn wait(&self, failed: u32, random: u8) -> Duration {
        let doubled = self
            .first_wait
            .saturating_mul(1u32.checked_shl(failed - 1).unwrap_or(u32::MAX));
        let wait = doubled.min(self.longest_wait);
        wait - wait / 4 * u32::from(random) / 255
    }
}

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Rounds<'r> {
    retry: &'r Retry,
    attempts: u32,
    failed: u32,
}

impl Rounds<'_> {
    /// Waits, if it is worth trying again; else gives the failure back.
    pub(super) fn wait(&mut self, failure: Failure, url: &str, monitor: &dyn Monitor) -> Result<()> {
        let Again::Later(asked) = failure.again else {
            return Err(failure.error);
        };
        self.failed += 1;
        if self.failed >= self.attempts {
            return Err(match self.attempts {
                1 => failure.error,
                attempts => and(failure.error, &format!("; gave up after {attempts} attempts")),
            });
        }
        if let Some(asked) = asked.filter(|asked| *asked > self.retry.patience) {
            let asks = format!(
                "; the registry asks to wait {} seconds, try again then",
                asked.as_secs()
            );
            return Err(and(failure.error, &asks));
        }
        let own = self.retry.wait(self.failed, random());
        let wait = asked.map_or(own, |asked| asked.max(Duration::from_millis(10)));
        monitor.event(Event::Retry {
            url: url.into(),
            why: format!(
                "{}; trying again in {:.1} s",
                reason(&failure.error),
                wait.as_secs_f32()
            ),
        });
        std::thread::sleep(wait);
        Ok(())
    }
}

/// The tries of a reader that goes on where it broke.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// Failures in a row.
    failed: u32,
    /// Bytes that had come at the last of them.
    failed_at: u64,
    /// Failures so far after which fewer than [`PROGRESS`] bytes, but some, had come.
    small_steps: u32,
}

impl Course {
    /// After a failure when `done` bytes had come: waits, if it is worth trying again here; else gives the failure
    /// back. `last`: no other source can be asked instead. One that can be replaced has one try, but for the rest of
    /// what it had begun to send.
    pub(super) fn wait(
        &mut self,
        (retry, last): (&Retry, bool),
        done: u64,
        failure: Failure,
        url: &str,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let came = done - self.failed_at;
        let worked = came >= PROGRESS;
        let crept = came > 0 && !worked && self.small_steps < SMALL_STEPS;
        self.small_steps += u32::from(crept);
        if worked || crept {
            self.failed = 0;
        }
        self.failed_at = done;
        let mut rounds = retry.rounds(last || worked);
        rounds.failed = self.failed;
        let waited = rounds.wait(failure, url, monitor);
        self.failed = rounds.failed;
        waited
    }

    /// Another source, or another question: what failed before counts no more.
    pub(super) fn anew(&mut self) {
        self.failed = 0;
    }
}

fn random() -> u8 {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

fn reason(error: &Error) -> String {
    match error {
        Error::Network { why, .. } => why.clone(),
        other => other.to_string(),
    }
}

fn and(error: Error, more: &str) -> Error {
    match error {
        Error::Network { url, why } => Error::Network { url, why: why + more },
        other => other,
    }
}

/// The wait that a `Retry-After` header asks for: seconds, or a date of HTTP. `now` is the wall clock, in seconds
/// since 1970. A date that has passed asks for none: the clocks differ.
pub(super) fn retry_after(header: &str, now: i64) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(header).ok()?.timestamp().as_second();
    let wait = u64::try_from(until.checked_sub(now)?).ok().filter(|wait| *wait > 0);
    wait.map(Duration::from_secs)
}

/// `Read::read` of a reader whose `fill_buf` asks again by itself.
pub(super) fn read_filled(reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let available = reader.fill_buf()?;
    let amount = available.len().min(buffer.len());
    buffer[..amount].copy_from_slice(&available[..amount]);
    reader.consume(amount);
    Ok(amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_vary() {
        let retry = Retry::default();
        let waits: Vec<_> = (1..=8).map(|failed| retry.wait(failed, 0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(retry.wait(1, 255), Duration::from_millis(375));
        assert_eq!(retry.wait(4_000, 255), Duration::from_millis(22_500));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let at = |text| retry_after(text, 784_111_777).map(|wait| wait.as_secs());
        assert_eq!(at("120"), Some(120));
        assert_eq!(at(" 0 "), Some(0));
        assert_eq!(at("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:07 GMT"), None);
        assert_eq!(at("soon"), None);
        assert_eq!(at("-1"), None);
    }
}
