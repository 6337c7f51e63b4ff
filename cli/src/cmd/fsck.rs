//! `fsck`.

use anyhow::Result;
use cfs_core::Error;
use cfs_core::ids::ObjectId;
use cfs_core::monitor::{Event, Monitor};
use cfs_core::repair;
use cfs_core::store::fsck::Mend;
use cfs_core::sysroot::Sysroot;
use cfs_core::upkeep::{self, Checked};
use serde::Serialize;

use super::Context;
use crate::args::{BootDir, Network, SpaceArgs};
use crate::output::{self, Report};

/// Check every object, image, stream, record and boot entry
///
/// Exit code 1 if something is broken. Nothing is changed without --repair.
#[derive(Debug, clap::Args)]
pub struct Fsck {
    /// Remove objects whose content is wrong, enable fs-verity where it is missing, fetch what deployments and pulled
    /// images need from where they came from, and check once more
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    space: SpaceArgs,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Mended>,
}

/// What a repair did, before the check that the summary is of.
#[derive(Debug, Serialize)]
struct Mended {
    removed: Vec<String>,
    sealed: Vec<String>,
    mended: Vec<String>,
    failed: Vec<String>,
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
        if !self.repair {
            let (summary, _) = check(context, &context.look(&self.boot)?)?;
            return summary.show(context);
        }
        let sysroot = context.open_to_repair(&self.boot, "fsck --repair")?;
        let (summary, needed) = check(context, &sysroot)?;
        if summary.problems == 0 {
            return summary.show(context);
        }
        let work = |sysroot: &Sysroot| repair::repair(sysroot, &needed, &context.ui);
        let repaired = context.fetching(&sysroot, self.space, work)?;
        super::image::expose::refresh(context, &sysroot);
        let failed = repaired.failed.iter().map(|(image, error)| format!("{image}: {error}"));
        let failed: Vec<_> = failed.collect();
        for why in &failed {
            context.ui.event(Event::Warning(format!("not mended: {why}")));
        }
        let hex = |ids: &[ObjectId]| ids.iter().map(ToString::to_string).collect();
        context.ui.finish(true);
        let (mut summary, _) = check(context, &sysroot)?;
        summary.repaired = Some(Mended {
            removed: hex(&repaired.removed),
            sealed: hex(&repaired.sealed),
            mended: repaired.mended,
            failed,
        });
        summary.show(context)
    }
}

/// Looks at everything; with what objects need. A check may take long: to people each finding is shown
/// when it is found. A closed pipe is seen at the end.
fn check(context: &Context, sysroot: &Sysroot) -> Result<(Summary, Vec<Mend>)> {
    let mut findings = Vec::new();
    let mut needed = Vec::new();
    let checked = upkeep::fsck(sysroot, &mut |found| {
        needed.extend(found.mend);
        let finding = Finding {
            what: found.what,
            name: found.name,
            why: found.why,
            damage: found.damage,
        };
        if context.is_human() {
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
    let summary = Summary {
        objects: store.objects,
        images: store.images,
        streams: store.streams,
        deployments,
        boot_entries: entries,
        problems: damaged,
        findings,
        repaired: None,
    };
    Ok((summary, needed))
}

impl Summary {
    /// Prints it; fails where something is broken.
    fn show(self, context: &Context) -> Result<()> {
        context.show(&self)?;
        match self.problems {
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
        let mut text = String::new();
        if let Some(Mended {
            removed,
            sealed,
            mended,
            ..
        }) = &self.repaired
        {
            let mut list =
                |what: &str, names: &[String]| names.iter().for_each(|name| text.push_str(&format!("{what} {name}\n")));
            list("Removed object", removed);
            list("Sealed object", sealed);
            list("Mended", mended);
        }
        text + &format!(
            "Checked {objects} objects, {images} images, {streams} streams, {deployments} deployments and \
             {boot_entries} boot entries\n"
        )
    }
}
