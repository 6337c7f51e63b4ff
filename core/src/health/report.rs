//! What the checks of the last boot said, kept for `status`: `state/cfs-update/health.json`.
//!
//! Replaced as a whole each time. It tells people; what boots is decided by entries alone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::deployment::Layout;
use crate::deployment::note::{self, Note};
use crate::error::Result;
use crate::ids::DeploymentId;
use crate::sys::fs::Fs;

const NOTE: Note = Note {
    file: "health.json",
    what: "health report",
    limit: 1 << 20,
    remedy: "remove it, the next boot writes it anew",
};

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Outcome {
    /// Exit code 0.
    Passed,
    /// Anything else.
    Failed {
        /// How it ended, and the last line that it said.
        why: String,
    },
    /// It was not run.
    Skipped {
        /// Why, and what to do.
        why: String,
    },
}

/// One check that was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ran {
    /// The program.
    pub check: String,
    /// Whether the boot is bad when it fails.
    pub required: bool,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How often it was run.
    pub attempts: u32,
    /// How long that took, in whole seconds.
    pub seconds: u64,
}

/// What was found out about one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    format_version: u32,
    /// The deployment that ran; `None` for a system that is none of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeploymentId>,
    /// The kernel's id of that boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// When.
    pub time: Timestamp,
    /// Every check.
    pub checks: Vec<Ran>,
    /// What else is to be told of the way here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl HealthReport {
    /// Of this moment.
    pub fn new(id: Option<DeploymentId>, boot_id: Option<String>, checks: Vec<Ran>) -> Self {
        Self {
            format_version: note::VERSION,
            id,
            boot_id,
            time: Timestamp::now(),
            checks,
            notes: Vec::new(),
        }
    }

    /// Whether no required check failed.
    pub fn is_good(&self) -> bool {
        self.failure().is_none()
    }

    /// The first required check that failed, for people.
    pub fn failure(&self) -> Option<String> {
        let mut failed = self.checks.iter().filter(|ran| ran.required);
        failed.find_map(|ran| match &ran.outcome {
            Outcome::Failed { why } => Some(format!("health check {}: {why}", ran.check)),
            _ => None,
        })
    }

    /// Reads the last report; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Settings`](crate::Error::Settings) for a file that cannot be understood.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        NOTE.read(layout)
    }

    /// Writes it, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        NOTE.write(fs, layout, self)
    }
}
