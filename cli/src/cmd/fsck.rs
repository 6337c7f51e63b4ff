//! `fsck`.

use anyhow::Result;
use cfs_core::Error;
use cfs_core::upkeep::{self, Checked};
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::{self, Report};

/// Check every object, image, stream, record and boot entry
///
/// Exit code 1 if something is broken. Nothing is changed.
#[derive(Debug, clap::Args)]
pub struct Fsck {
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    objects: u64,
    images: u64,
    streams: u64,
    deployments: usize,
    boot_entries: usize,
    problems: usize,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    what: &'static str,
    name: String,
    why: String,
    damage: bool,
}

impl Fsck {
    pub fn run(self, context: &Context) -> Result<()> {
        let sysroot = context.look(&self.boot)?;
        let human = context.output.is_human();
        let mut findings = Vec::new();
        let checked = upkeep::fsck(&sysroot, &mut |finding| {
            let upkeep::Finding {
                what,
                name,
                why,
                damage,
            } = finding;
            let finding = Finding {
                what,
                name,
                why,
                damage,
            };
            if human {
                // A check may take long: each finding is shown when it is found. A closed pipe is seen at the end.
                let _ = output::write(output::printable(&finding.line()).as_bytes());
            }
            findings.push(finding);
        })?;
        let Checked {
            store,
            deployments,
            entries,
            damaged,
        } = checked;
        context.show(&Summary {
            objects: store.objects,
            images: store.images,
            streams: store.streams,
            deployments,
            boot_entries: entries,
            problems: damaged,
            findings,
        })?;
        match damaged {
            0 => Ok(()),
            count => Err(Error::Damaged { count }.into()),
        }
    }
}

impl Finding {
    fn line(&self) -> String {
        let mark = if self.damage { "" } else { "note: " };
        format!("{mark}{} {}: {}\n", self.what, self.name, self.why)
    }
}

impl Report for Summary {
    fn human(&self) -> String {
        let Self {
            objects,
            images,
            streams,
            deployments,
            boot_entries,
            ..
        } = self;
        format!(
            "Checked {objects} objects, {images} images, {streams} streams, {deployments} deployments and \
             {boot_entries} boot entries\n"
        )
    }
}
