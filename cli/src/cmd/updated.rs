//! What `switch` and `upgrade` say at their end.

use cfs_core::deployment::Failed;
use cfs_core::error::one_line;
use cfs_core::etc::{self, What};
use cfs_core::sysroot::Sysroot;
use cfs_core::update::{Done, Outcome};
use cfs_core::{Error, Result};
use serde::Serialize;

use crate::output::Report;

/// The result of an update.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Updated {
    /// `staged`, `downloaded` or `unchanged`.
    result: &'static str,
    /// The id that a downloaded one will have.
    deployment: String,
    image_digest: String,
    #[serde(flatten)]
    staged: Option<Staged>,
    #[serde(skip)]
    downloaded: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Staged {
    version: Option<String>,
    boot_entry: String,
    generation: u64,
    etc_conflicts: Vec<Conflict>,
    removed: Vec<String>,
}

/// Something in /etc that both sides changed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    path: String,
    what: &'static str,
    /// Where the image's version is.
    kept_as: Option<String>,
}

impl Conflict {
    /// In one line.
    pub fn human(&self) -> String {
        let Self { path, what, kept_as } = self;
        let other = kept_as
            .as_ref()
            .map(|path| format!(", the image's version is {}", one_line(path)))
            .unwrap_or_default();
        format!("{}: {what}{other}", one_line(path))
    }
}

impl From<&etc::Conflict> for Conflict {
    fn from(conflict: &etc::Conflict) -> Self {
        Self {
            path: conflict.path.display().to_string(),
            what: match conflict.what {
                What::BothChanged => "changed here and in the image; yours stays",
                What::BothChangedFolder => "permissions or owner changed here and in the image; yours stay",
                What::DeletedHere => "deleted here, changed in the image; stays deleted",
                What::RemovedInImage => "changed here, removed from the image; yours stays",
            },
            kept_as: conflict.kept_as.as_ref().map(|path| path.display().to_string()),
        }
    }
}

impl Updated {
    /// What came of an update.
    ///
    /// # Errors
    /// [`Error::Deployment`] where the image failed here before.
    pub fn of(outcome: Outcome) -> Result<Self> {
        Ok(match outcome {
            Outcome::FailedBefore(failed) => return Err(failed_before(&failed)),
            Outcome::Staged(done) => {
                let Done {
                    id,
                    manifest,
                    version,
                    entry,
                    generation,
                    conflicts,
                    removed,
                    ..
                } = done;
                Self {
                    result: "staged",
                    deployment: id.to_string(),
                    image_digest: manifest.to_string(),
                    staged: Some(Staged {
                        version,
                        boot_entry: entry,
                        generation,
                        etc_conflicts: conflicts.iter().map(Conflict::from).collect(),
                        removed: removed.iter().map(ToString::to_string).collect(),
                    }),
                    downloaded: None,
                }
            }
            Outcome::Downloaded { image, already } => Self {
                result: if already { "unchanged" } else { "downloaded" },
                deployment: image.id.to_string(),
                image_digest: image.manifest.to_string(),
                staged: None,
                downloaded: Some(image.version.unwrap_or_default()),
            },
            Outcome::Unchanged { id, manifest } => Self {
                result: "unchanged",
                deployment: id.to_string(),
                image_digest: manifest.to_string(),
                staged: None,
                downloaded: None,
            },
        })
    }

    /// Whether something was staged or downloaded.
    pub fn is_new(&self) -> bool {
        self.result != "unchanged"
    }

    /// Whether a boot entry was made.
    pub fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Whether `--apply` has something to do: what boots next, staged now or before, is not what runs.
    pub fn waits(&self, sysroot: &Sysroot) -> bool {
        sysroot
            .booted()
            .is_some_and(|booted| booted.to_string() != self.deployment)
    }
}

/// Says what is known of an image that is not installed again by itself.
pub fn failed_before(failed: &Failed) -> Error {
    Error::Deployment {
        id: failed.digest.to_string(),
        why: did_not_stay(failed),
    }
}

/// When and why an image failed here, and how to take it.
pub fn did_not_stay(failed: &Failed) -> String {
    format!(
        "this image was deployed here and did not stay, at {}: {}; `--retry` takes it all the same",
        failed.time.round(jiff::Unit::Second).unwrap_or(failed.time),
        failed.why
    )
}

impl Report for Updated {
    fn human(&self) -> String {
        let shown = |version: &str| match version {
            "" => String::new(),
            version => format!(" (version {version})"),
        };
        let Some(staged) = &self.staged else {
            let digest = &self.image_digest;
            return match &self.downloaded {
                Some(version) if self.is_new() => format!(
                    "Downloaded {digest}{}; `cfs-update upgrade --from-downloaded` lets it boot next\n",
                    shown(version)
                ),
                Some(version) => format!("Nothing new: {digest}{} is downloaded already\n", shown(version)),
                None => format!("Nothing new: {digest} boots next already\n"),
            };
        };
        let version = shown(staged.version.as_deref().unwrap_or_default());
        let mut text = format!("Staged {}{version}; it boots next\n", self.image_digest);
        let mut line = |label: &str, value: &str| text.push_str(&format!("{label:>16}: {value}\n"));
        line("Deployment", &self.deployment);
        line("Boot entry", &staged.boot_entry);
        for conflict in &staged.etc_conflicts {
            line("/etc conflict", &conflict.human());
        }
        for id in &staged.removed {
            line("Removed", id);
        }
        text
    }
}
