//! Why a machine does not boot, for the person in front of its console.
//!
//! Invariant: every refusal says what was expected, what was found and what to do; one line each, so that the kernel
//! log shows them whole.

use std::fmt;

use cfs_core::{Error, Kind};

/// A boot that ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    what: String,
    expected: String,
    found: String,
    remedy: String,
    trust: bool,
}

impl Refusal {
    /// `what` cannot be had; what was expected and what is there instead.
    pub fn new(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            remedy: String::new(),
            trust: false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// It was refused because it is not what it should be, not because something failed.
    #[must_use]
    pub fn by_trust(mut self) -> Self {
        self.trust = true;
        self
    }

    /// 1, or 3 where trust says no: as for `cfs-update`.
    pub fn exit_code(&self) -> u8 {
        if self.trust { 3 } else { 1 }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            trust: error.kind() == Kind::Trust,
            ..Self::new(error.to_string(), "", "")
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this deployment is not booted: {}", self.what)?;
        let lines = [
            ("expected", &self.expected),
            ("found", &self.found),
            ("to do", &self.remedy),
        ];
        for (title, text) in lines {
            if !text.is_empty() {
                write!(f, "\n  {title}: {text}")?;
            }
        }
        Ok(())
    }
}
