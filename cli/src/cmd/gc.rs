//! `gc`.

use anyhow::Result;
use cfs_core::upkeep::{self, Collected};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::Report;

/// Remove what no deployment and no named image needs
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Only list what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Removed {
    dry_run: bool,
    deployments: Vec<String>,
    names: Vec<String>,
    boot_files: Vec<String>,
    leftovers: Vec<String>,
    images: Vec<String>,
    streams: Vec<String>,
    objects: Vec<Object>,
    /// Of interrupted downloads.
    parts: Vec<String>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Object {
    digest: String,
    bytes: u64,
}

impl Gc {
    pub fn run(self, context: &Context) -> Result<()> {
        let sysroot = match self.dry_run {
            true => context.look(&self.boot)?,
            false => context.open(&self.boot, "gc")?,
        };
        if !self.dry_run {
            super::image::expose::refresh(context, &sysroot);
        }
        let collected = upkeep::gc(&sysroot, self.dry_run)?;
        // What was bound by deployments that are gone is shown no longer.
        if !self.dry_run && !collected.names.is_empty() {
            super::image::expose::refresh(context, &sysroot);
        }
        context.show(&Removed::new(self.dry_run, collected))
    }
}

impl Removed {
    fn new(dry_run: bool, collected: Collected) -> Self {
        let Collected {
            deployments,
            names,
            boot,
            leftovers,
            store,
        } = collected;
        Self {
            dry_run,
            deployments: deployments.iter().map(ToString::to_string).collect(),
            names,
            bytes: boot.bytes + store.bytes(),
            boot_files: boot.files.into_iter().chain(boot.folders).collect(),
            leftovers: leftovers.iter().map(|path| path.display().to_string()).collect(),
            images: store.images,
            streams: store.streams,
            parts: store.parts.into_iter().map(|(name, _)| name).collect(),
            objects: store
                .objects
                .into_iter()
                .map(|(id, bytes)| Object {
                    digest: id.to_string(),
                    bytes,
                })
                .collect(),
        }
    }
}

impl Report for Removed {
    fn human(&self) -> String {
        let mut text = String::new();
        let mut list = |what: &str, names: &[String]| {
            names.iter().for_each(|name| text.push_str(&format!("{what} {name}\n")));
        };
        list("deployment", &self.deployments);
        list("name", &self.names);
        list("boot", &self.boot_files);
        list("leftover", &self.leftovers);
        list("image", &self.images);
        list("stream", &self.streams);
        list("part", &self.parts);
        if self.dry_run {
            self.objects
                .iter()
                .for_each(|object| text.push_str(&format!("object {}\n", object.digest)));
        }
        let done = if self.dry_run { "would be removed" } else { "removed" };
        let objects = HumanCount(self.objects.len() as u64);
        text.push_str(&format!(
            "{objects} objects {done}, {} freed in all\n",
            HumanBytes(self.bytes)
        ));
        text
    }
}
