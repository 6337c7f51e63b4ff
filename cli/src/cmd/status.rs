//! `status`.

use anyhow::Result;
use cfs_core::boot::{BootEntry, Tries, cmdline};
use cfs_core::deployment::{BootType, Downloaded, FailedDigests, Layout, Origin, Staged};
use cfs_core::health::HealthReport;
use cfs_core::ids::DeploymentId;
use cfs_core::plan;
use cfs_core::registry::signature_demanded;
use cfs_core::sysroot::{Known, Sysroot};

use super::Context;
use crate::args::BootDir;
use crate::host::{Composefs, DownloadedImage, Entry, FailedImage, Health, Host, Image, ImageReference, Ours, System};

/// Show deployments: booted, staged, kept; their versions, signatures and tries
///
/// JSON and YAML have the shape of `bootc status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Show only the booted deployment
    #[arg(long)]
    booted: bool,
    /// Version of the JSON and YAML documents
    #[arg(long, value_name = "N", default_value = "1", value_parser = ["0", "1"])]
    format_version: String,
    #[command(flatten)]
    boot: BootDir,
}

impl Status {
    pub fn run(self, context: &Context) -> Result<()> {
        let mut host = match context.has_repository()? {
            true => {
                let sysroot = context.look_anyway(&self.boot)?;
                let mut host = host(&sysroot)?;
                host.status.cfs_update = system(sysroot.deployments().layout());
                host.status.cfs_update.overrides = sysroot.bootloader().entries()?.overrides;
                policy(context, &mut host);
                host
            }
            false => Host::new(None),
        };
        let auto = &context.settings.auto;
        host.status.cfs_update.automatic_updates = match (auto.enabled, auto.download_only, auto.apply) {
            (false, ..) => "off",
            (true, true, _) => "download",
            (true, false, false) => "stage",
            (true, false, true) => "apply",
        };
        if self.booted {
            host.status.staged = None;
            host.status.rollback = None;
            host.status.other_deployments.clear();
        }
        context.show(&host)
    }
}

/// Which place in the document each deployment has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Slots {
    staged: Option<DeploymentId>,
    booted: Option<DeploymentId>,
    rollback: Option<DeploymentId>,
    /// The rollback deployment boots next.
    queued: bool,
}

impl Slots {
    /// `noted` is the update that was staged last and not yet booted. On a machine that runs none of these
    /// deployments, what boots next is the staged one.
    fn new(
        booted: Option<DeploymentId>,
        next: Option<DeploymentId>,
        noted: Option<DeploymentId>,
        rollback: Option<DeploymentId>,
    ) -> Self {
        let other = next.filter(|_| next != booted);
        let queued = booted.is_some() && other.is_some() && noted != other;
        Self {
            staged: other.filter(|_| !queued),
            booted,
            rollback: if queued {
                other
            } else {
                rollback.filter(|_| rollback != booted)
            },
            queued,
        }
    }
}

fn host(sysroot: &Sysroot) -> Result<Host> {
    let known = sysroot.known()?;
    let standing = Sysroot::standing(&known);
    let next = plan::next_to_boot(&standing).map(|d| d.id);
    let noted = Staged::load(sysroot.deployments().layout()).ok().flatten();
    let roles = sysroot.roles(&standing);
    let slots = Slots::new(roles.booted, next, noted.as_ref().map(|n| n.id), roles.rollback);

    let followed = known.iter().find(|k| Some(k.id) == next).or(known.first());
    let mut host = Host::new(followed.and_then(Known::origin).map(reference));
    host.spec.boot_order = if slots.queued { "rollback" } else { "default" };
    host.status.rollback_queued = slots.queued;
    for (index, known) in known.iter().enumerate() {
        let mut entry = entry(sysroot, known, index);
        entry.cfs_update.boots_next = Some(known.id) == next;
        let id = Some(known.id);
        if id == slots.booted {
            host.status.booted = Some(entry);
        } else if id == slots.staged {
            host.status.staged = Some(entry);
        } else if id == slots.rollback {
            host.status.rollback = Some(entry);
        } else {
            host.status.other_deployments.push(entry);
        }
    }
    Ok(host)
}

/// What is remembered beside the deployments. What cannot be read is a problem, and no failure.
fn system(layout: &Layout) -> System {
    let mut system = System::default();
    let time = |time: jiff::Timestamp| time.round(jiff::Unit::Second).unwrap_or(time).to_string();
    match FailedDigests::load(layout) {
        Ok(failed) => {
            let images = failed.iter().map(|failed| FailedImage {
                image_digest: failed.digest.to_string(),
                time: time(failed.time),
                why: failed.why.clone(),
                by_administrator: failed.by_admin,
            });
            system.failed_images = images.collect();
        }
        Err(e) => system.problems.push(e.to_string()),
    }
    match HealthReport::load(layout) {
        Ok(report) => {
            system.health = report.map(|report| Health {
                result: if report.is_good() { "good" } else { "bad" },
                deployment: report.id.map(|id| id.to_string()),
                time: time(report.time),
                checks: report.checks,
                notes: report.notes,
            });
        }
        Err(e) => system.problems.push(e.to_string()),
    }
    match Downloaded::load(layout) {
        Ok(found) => {
            system.downloaded = found.map(|found| DownloadedImage {
                image: found.reference.trim_start_matches("docker://").into(),
                image_digest: found.manifest.to_string(),
                version: found.version,
                since: time(found.since),
            });
        }
        Err(e) => system.problems.push(e.to_string()),
    }
    match Staged::load(layout) {
        Ok(staged) => {
            let failed = staged.and_then(|staged| staged.finalize_failed);
            let note = |why| format!("the last merge of /etc failed: {why}");
            system.problems.extend(failed.map(note));
        }
        Err(e) => system.problems.push(e.to_string()),
    }
    system
}

/// What the machine's policy says of the image that is followed. Where it would not be taken, that is a problem, and
/// no failure.
fn policy(context: &Context, host: &mut Host) {
    let Some(image) = &mut host.spec.image else { return };
    let asked = image
        .full()
        .parse()
        .and_then(|reference| signature_demanded(&reference, &context.registry()));
    match asked {
        Ok(demanded) => image.signature = demanded.then_some("containerPolicy"),
        Err(e) => host.status.cfs_update.problems.push(e.to_string()),
    }
}

fn entry(sysroot: &Sysroot, known: &Known, index: usize) -> Entry {
    let origin = known.origin();
    let boot = known.entry.as_ref();
    let verified = known.verified.as_ref();
    let mut problems: Vec<String> = known
        .record
        .as_ref()
        .err()
        .map(ToString::to_string)
        .into_iter()
        .collect();
    if known.record.is_ok() {
        problems.extend(verified.err().map(ToString::to_string));
    }
    problems.extend(known.problem.clone());
    problems.extend(sysroot.remade(known).map(|remade| remade.to_string()));
    problems.extend(
        boot.and_then(|e| e.problem.as_ref())
            .map(|why| format!("boot entry: {why}")),
    );
    let bad = boot.is_some_and(BootEntry::is_bad);
    let digest = boot.and_then(|e| cmdline::digests(&e.options).into_iter().next());
    Entry {
        image: origin.map(image),
        cached_update: None,
        incompatible: known.record.is_err(),
        pinned: known.standing.pinned,
        soft_reboot_capable: false,
        download_only: false,
        store: None,
        ostree: None,
        composefs: Some(Composefs {
            verity: known.id.to_string(),
            boot_type: match origin.map(|o| o.boot_type) {
                Some(BootType::Uki) => "Uki",
                _ => "Bls",
            },
            bootloader: bootloader(sysroot.bootloader().name()),
            boot_digest: origin.and_then(|o| o.boot_digest.clone()),
            missing_verity_allowed: digest.is_some_and(|d| d.optional),
        }),
        cfs_update: Ours {
            index,
            deployment: known.id.to_string(),
            boots_next: false,
            generation: known.standing.generation,
            boot_entry: boot.map(|e| e.file.clone()),
            tries_left: match boot.map(|e| e.tries) {
                Some(Tries::Left { left, .. }) => Some(left),
                Some(Tries::Bad { .. }) => Some(0),
                _ => None,
            },
            verified_by: verified.ok().map(|d| {
                let key = d.signed().verified().key();
                format!("{} ({})", key.name(), key.id())
            }),
            failed: bad,
            problems,
        },
    }
}

/// As bootc calls it.
fn bootloader(name: &str) -> &'static str {
    match name {
        "grub" => "grub",
        "systemd-boot" => "systemd",
        _ => "none",
    }
}

fn image(origin: &Origin) -> Image {
    Image {
        image: reference(origin),
        version: origin.version.clone(),
        timestamp: origin.created.map(|time| time.to_string()),
        image_digest: origin.manifest.to_string(),
        architecture: origin.architecture.clone().unwrap_or_default(),
    }
}

/// `docker://NAME` is bootc's transport `registry`; all others are called as they are written.
fn reference(origin: &Origin) -> ImageReference {
    let (transport, image) = match origin.reference.strip_prefix("docker://") {
        Some(name) => ("registry", name),
        None => origin
            .reference
            .split_once(':')
            .unwrap_or(("registry", &origin.reference)),
    };
    ImageReference {
        image: image.into(),
        transport: transport.into(),
        signature: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cfs_core::ids::Algorithm;

    fn id(n: u8) -> Option<DeploymentId> {
        DeploymentId::from_bytes(Algorithm::Sha256, &[n; 32])
    }

    #[test]
    fn without_a_running_deployment_the_next_one_is_staged() {
        let slots = Slots::new(None, id(2), id(2), id(1));
        assert_eq!((slots.staged, slots.booted, slots.rollback), (id(2), None, id(1)));
        let after_rollback = Slots::new(None, id(1), None, id(2));
        assert_eq!(
            (after_rollback.staged, after_rollback.rollback, after_rollback.queued),
            (id(1), id(2), false)
        );
    }

    #[test]
    fn on_a_running_machine_an_update_is_staged_and_a_rollback_is_queued() {
        let updated = Slots::new(id(1), id(2), id(2), id(1));
        assert_eq!((updated.staged, updated.booted, updated.rollback), (id(2), id(1), None));
        let back = Slots::new(id(2), id(1), None, id(2));
        assert_eq!((back.staged, back.rollback, back.queued), (None, id(1), true));
        let quiet = Slots::new(id(2), id(2), None, id(1));
        assert_eq!(
            (quiet.staged, quiet.booted, quiet.rollback, quiet.queued),
            (None, id(2), id(1), false)
        );
    }
}
