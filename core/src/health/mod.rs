//! Whether a deployment that was booted is any good, and what follows from it.
//!
//! [`find`] lists the checks of this system, [`run`] runs them, [`judge`] draws the conclusion: a good boot takes the
//! counter off the entry, a bad one takes its tries and remembers the image, so that the boot loader prefers the last
//! good deployment and no timer installs the bad one again (promise 3).
//!
//! Invariant: an entry loses its tries only while another one is there that boots, so a machine with one deployment
//! never loops; and the reason, where it can be written at all, is written down before the entry is marked, so that a
//! power cut between the two leaves an entry that is tried again, never one that was dropped without a reason.

mod checks;
mod greenboot;
mod report;
mod verdict;

pub use checks::{Check, Limits, Means, find, run};
pub use report::{HealthReport, Outcome, Ran};
pub use verdict::{Verdict, approve, condemn, failed, judge, judge_anyway, settle};

#[cfg(test)]
mod tests;
