//! The counter that only grows, and what counts as going back.
//!
//! Invariant: a counter is durable before it is signed, and is larger than every one that this machine's records
//! still show. `counters.json` is replaced whole; where it is lost or damaged, the highest verified seal stands in for
//! it. So neither a power cut nor a restored file makes a number appear twice while one deployment that has it exists.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs};

/// Below `SYSROOT/state/cfs-update/`.
pub const COUNTERS_FILE: &str = "counters.json";

const LIMIT: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Counters {
    format_version: u32,
    /// The highest counter that was ever handed out.
    highest: u64,
}

/// A counter that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// To be signed.
    pub counter: u64,
    /// What was wrong with the file, for the user; it has been replaced.
    pub warning: Option<String>,
}

/// Hands out the next counter, durable when this returns. `state` is `SYSROOT/state/cfs-update`; `sealed` are the
/// counters of all seals that verify.
///
/// # Errors
/// [`Error::Trust`] when no number is left, [`Error::Io`].
pub fn next_counter(fs: &dyn Fs, state: &Path, sealed: impl IntoIterator<Item = u64>) -> Result<Next> {
    let path = state.join(COUNTERS_FILE);
    let (recorded, warning) = match read(&path) {
        Ok(highest) => (highest, None),
        Err(e @ Error::Io { .. }) => return Err(e),
        Err(e) => (
            0,
            Some(format!("{e}; going on after the highest counter of the deployments")),
        ),
    };
    let highest = sealed.into_iter().fold(recorded, u64::max);
    let counter = highest.checked_add(1).ok_or_else(|| Error::Trust {
        what: format!("counter {}", path.display()),
        why: "it has reached its end; it was changed from outside, remove the file".into(),
    })?;
    let content = Counters {
        format_version: 1,
        highest: counter,
    };
    let mut bytes = serde_json::to_vec(&content).unwrap_or_default();
    bytes.push(b'\n');
    fs::replace(fs, &path, 0o600, &bytes)?;
    Ok(Next { counter, warning })
}

fn read(path: &Path) -> Result<u64> {
    let Some(bytes) = fs::read(path, LIMIT)? else {
        return Ok(0);
    };
    let refuse = |why: String| Error::Settings {
        path: path.to_path_buf(),
        why,
    };
    let counters: Counters = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("no counters: {e}")))?;
    if counters.format_version != 1 {
        return Err(refuse(format!("unknown format version {}", counters.format_version)));
    }
    Ok(counters.highest)
}

/// How new an image is, as far as its publisher says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// The publisher's own counter (a signed release counter); decides where both images have one.
    pub counter: Option<u64>,
    /// When the image was made (`created` of the config, or the annotation).
    pub created: Option<Timestamp>,
}

/// Whether `candidate` may follow `current`, both images of the same name. Pure: no clock.
///
/// Older is: a lower publisher's counter where both have one; no counter where there was one; otherwise an earlier
/// creation time. Equal is not older. Where nothing can be compared, nothing is refused.
///
/// # Errors
/// [`Error::Trust`] where it is older and `allow` is not given.
pub fn check_downgrade(current: &Freshness, candidate: &Freshness, allow: bool) -> Result<()> {
    let older = match (current.counter, candidate.counter) {
        (Some(now), Some(new)) if new < now => Some(format!("its counter {new} is lower than {now}")),
        (Some(_), Some(_)) => None,
        (Some(now), None) => Some(format!("it has no counter, the image it would follow has {now}")),
        (None, _) => match (current.created, candidate.created) {
            (Some(now), Some(new)) if new < now => {
                Some(format!("it was made at {new}, the image it would follow at {now}"))
            }
            _ => None,
        },
    };
    match older {
        Some(why) if !allow => Err(Error::Trust {
            what: "older image".into(),
            why: format!("{why}; with --allow-downgrade it is taken nevertheless"),
        }),
        _ => Ok(()),
    }
}
