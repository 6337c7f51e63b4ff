//! What `--dry-run` of `switch`, `upgrade` and `image pull` says.

use cfs_core::boot::cmdline;
use cfs_core::changes::Changes;
use cfs_core::forecast::{Forecast, Part, Way};
use cfs_core::manifest::Platform;
use cfs_core::outlook::{self, Outlook};
use cfs_core::preflight::Figures;
use cfs_core::reference::Reference;
use cfs_core::registry::Registry;
use cfs_core::tree::Differences;
use cfs_core::{Error, Result};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::Context;
use super::updated::{Conflict, did_not_stay};
use crate::args::BootDir;
use crate::output::Report;
use crate::reboot;

/// What would be fetched and written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    image: String,
    image_digest: String,
    /// Bytes that would be fetched.
    bytes: u64,
    /// Bytes that would be fetched layer by layer.
    bytes_of_layers: u64,
    layers: Vec<Layer>,
    /// Images that come along.
    bound_images: Vec<Bound>,
    /// The file system of the store.
    store: Place,
    /// `$BOOT`, where something is expected to be written there.
    boot: Option<Place>,
    /// Whether there is room for it.
    fits: bool,
    /// What would be changed; `None` where that is not known before the layers are here.
    changes: Option<Change>,
    /// Why the command would refuse the image without `--retry`.
    failed: Option<String>,
}

/// What would be other than it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    deployment: String,
    version: Option<String>,
    files: Files,
    kernel: Kernel,
    kernel_arguments: Arguments,
    etc_conflicts: Vec<Conflict>,
    /// `None` where nothing of ours runs.
    soft_reboot: Option<Soft>,
}

/// Paths of the image.
#[derive(Debug, Serialize)]
struct Files {
    added: u64,
    removed: u64,
    changed: u64,
}

#[derive(Debug, Serialize)]
struct Kernel {
    version: String,
    /// `$BOOT` has it.
    stays: bool,
}

#[derive(Debug, Serialize)]
struct Arguments {
    added: Vec<String>,
    removed: Vec<String>,
}

/// Whether restarting user space alone would do.
#[derive(Debug, Serialize)]
struct Soft {
    possible: bool,
    why: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    diff_id: String,
    size: u64,
    fetch: u64,
    /// `here`, `podman`, `parts` or `whole`.
    how: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound {
    image: String,
    image_digest: String,
    bytes: u64,
    bytes_of_layers: u64,
    layers: Vec<Layer>,
}

/// A file system, with what would be written on it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    path: String,
    bytes_at_least: u64,
    bytes_about: u64,
    bytes_free: u64,
    inodes_at_least: u64,
    inodes_about: u64,
    /// `None` where inodes are made as they are needed.
    inodes_free: Option<u64>,
}

fn layers(part: &Part) -> Vec<Layer> {
    let layers = part.layers.iter().map(|layer| Layer {
        diff_id: layer.diff_id.to_string(),
        size: layer.size,
        fetch: layer.fetch,
        how: match layer.way {
            Way::Here => "here",
            Way::Podman => "podman",
            Way::Parts => "parts",
            Way::Whole => "whole",
        },
    });
    layers.collect()
}

impl From<&Figures> for Place {
    fn from(figures: &Figures) -> Self {
        Self {
            path: figures.path.display().to_string(),
            bytes_at_least: figures.at_least.bytes,
            bytes_about: figures.about.bytes,
            bytes_free: figures.free,
            inodes_at_least: figures.at_least.inodes,
            inodes_about: figures.about.inodes,
            inodes_free: figures.free_inodes,
        }
    }
}

impl Place {
    /// `13.02 KiB to 1.20 MiB and 40 to 500 inodes; 1.00 GiB and 100,000 inodes are free`.
    fn human(&self) -> String {
        let range = |least: u64, about: u64, shown: &dyn Fn(u64) -> String| match least == about {
            true => shown(about),
            false if least == 0 => format!("up to {}", shown(about)),
            false => format!("{} to {}", shown(least), shown(about)),
        };
        let bytes = |n| HumanBytes(n).to_string();
        let count = |n| HumanCount(n).to_string();
        let mut text = range(self.bytes_at_least, self.bytes_about, &bytes);
        if self.inodes_about > 0 {
            text.push_str(&format!(
                " and {} inodes",
                range(self.inodes_at_least, self.inodes_about, &count)
            ));
        }
        text.push_str(&format!("; {}", bytes(self.bytes_free)));
        if let Some(free) = self.inodes_free {
            text.push_str(&format!(" and {} inodes", count(free)));
        }
        format!("{text} are free")
    }
}

impl From<&Changes> for Change {
    fn from(changes: &Changes) -> Self {
        let Differences {
            added,
            removed,
            changed,
        } = changes.files;
        Self {
            deployment: changes.id.to_string(),
            version: changes.version.clone(),
            files: Files {
                added,
                removed,
                changed,
            },
            kernel: Kernel {
                version: changes.kernel.clone(),
                stays: changes.kernel_stays,
            },
            kernel_arguments: Arguments {
                added: changes.arguments.clone(),
                removed: changes.arguments_gone.clone(),
            },
            etc_conflicts: changes.conflicts.iter().map(Conflict::from).collect(),
            soft_reboot: changes.soft_reboot.as_ref().map(|answer| Soft {
                possible: answer.is_ok(),
                why: answer.as_ref().err().cloned(),
            }),
        }
    }
}

impl Change {
    /// Each with its label.
    fn human(&self, line: &mut dyn FnMut(&str, &str)) {
        let Files {
            added,
            removed,
            changed,
        } = self.files;
        let count = HumanCount;
        line(
            "Files",
            &format!(
                "{} added, {} removed, {} changed",
                count(added),
                count(removed),
                count(changed)
            ),
        );
        let stays = if self.kernel.stays {
            "the one that is here"
        } else {
            "another one"
        };
        line("Kernel", &format!("{}, {stays}", self.kernel.version));
        let Arguments { added, removed } = &self.kernel_arguments;
        for (sign, arguments) in [("added", added), ("gone", removed)] {
            if !arguments.is_empty() {
                line("Arguments", &format!("{sign}: {}", cmdline::join(arguments)));
            }
        }
        for conflict in &self.etc_conflicts {
            line("/etc conflict", &conflict.human());
        }
        match &self.soft_reboot {
            Some(Soft { why: Some(why), .. }) => line("Reboot", &format!("of the machine: {why}")),
            Some(_) => line("Reboot", "of user space is enough (`--apply=soft`)"),
            None => {}
        }
    }
}

impl From<&Forecast> for Planned {
    fn from(forecast: &Forecast) -> Self {
        let bound = forecast.bound.iter().map(|part| Bound {
            image: part.reference.clone(),
            image_digest: part.manifest.to_string(),
            bytes: part.bytes(),
            bytes_of_layers: part.bytes_of_layers(),
            layers: layers(part),
        });
        Self {
            image: forecast.image.reference.clone(),
            image_digest: forecast.image.manifest.to_string(),
            bytes: forecast.bytes(),
            bytes_of_layers: forecast.bytes_of_layers(),
            layers: layers(&forecast.image),
            bound_images: bound.collect(),
            store: Place::from(&forecast.store),
            boot: forecast.boot.as_ref().map(Place::from),
            fits: forecast.store.check().is_ok() && forecast.boot.as_ref().is_none_or(|boot| boot.check().is_ok()),
            changes: None,
            failed: None,
        }
    }
}

impl Report for Planned {
    fn human(&self) -> String {
        let all = || {
            self.bound_images
                .iter()
                .flat_map(|image| &image.layers)
                .chain(&self.layers)
        };
        let count = |how: &str| all().filter(|layer| layer.how == how).count();
        let mut text = format!("Would fetch {}; nothing was changed\n", self.image);
        let mut line = |label: &str, value: &str| text.push_str(&format!("{label:>16}: {value}\n"));
        line("Digest", &self.image_digest);
        for image in &self.bound_images {
            line("Binds", &image.image);
        }
        let (here, parts, whole) = (count("here"), count("parts"), count("whole"));
        let podman = match count("podman") {
            0 => String::new(),
            n => format!(", {n} from podman"),
        };
        line(
            "Layers",
            &format!(
                "{}: {here} here{podman}, {parts} in parts, {whole} as a whole",
                all().count()
            ),
        );
        let (bytes, of) = (HumanBytes(self.bytes), HumanBytes(self.bytes_of_layers));
        line("To fetch", &format!("{bytes}, where the layers have {of}"));
        line("Store", &self.store.human());
        match (&self.boot, &self.changes) {
            (Some(boot), Some(changes)) => {
                line("$BOOT", &boot.human());
                changes.human(&mut line);
            }
            (Some(boot), None) => {
                line("$BOOT", &format!("{}; nothing if the kernel stays", boot.human()));
                line(
                    "Changes",
                    "known when the layers are here: `--download-only` fetches them",
                );
            }
            (None, _) => {}
        }
        if let Some(why) = &self.failed {
            line("Failed", why);
        }
        if !self.fits {
            line("Too little", "there is not enough space; see `cfs-update gc --dry-run`");
        }
        text
    }
}

/// Of an update: what following `reference`, or else the followed image, would fetch.
pub fn of_update(context: &Context, boot: &BootDir, reference: Option<&Reference>) -> anyhow::Result<()> {
    if let (Some(reference), false) = (reference, context.has_repository()?) {
        return of_pull(context, reference, None);
    }
    let sysroot = context.look_anyway(boot)?;
    match outlook::forecast(&sysroot, reference, &reboot::booted_with()?, &context.ui)? {
        Some(Outlook {
            forecast,
            changes,
            failed,
        }) => context.show(&Planned {
            changes: changes.as_ref().map(Change::from),
            failed: failed.as_ref().map(did_not_stay),
            ..Planned::from(&forecast)
        }),
        None => Err(Error::Nothing("nothing would be fetched: what it leads to boots next already".into()).into()),
    }
}

/// Of an image for the store, or for one that is yet to be made.
pub fn of_pull(context: &Context, reference: &Reference, platform: Option<Platform>) -> anyhow::Result<()> {
    let platform = platform.unwrap_or_else(Platform::host);
    context.show(&planned(context, reference, &platform)?)
}

fn planned(context: &Context, reference: &Reference, platform: &Platform) -> Result<Planned> {
    let registry = Registry::open(reference, &context.registry())?;
    let image = registry.image(platform, &context.ui)?;
    let store = context.existing_store()?;
    let path = context.repository()?;
    let forecast = Forecast::new(store.as_ref(), &path, (&registry, &image), &[], &context.ui)?;
    Ok(Planned::from(&forecast))
}
