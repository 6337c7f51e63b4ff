//! The one story that everything else is told for: from a reference to the entry that boots next.
//!
//! lock, import, sync, image, sign, record, stage the entry, sync, activate, let go of what is superseded. Invariant
//! (promise 1): each step takes what only the step before can make, and nothing that can boot is removed before the
//! new entry is durable. A power cut anywhere leaves the old entry, or both; what is left over means nothing and the
//! next run removes it.

use jiff::Timestamp;

use crate::activate;
use crate::boot::HostArguments;
use crate::bootable::{self, Bootable};
use crate::bound::{self, Bound};
use crate::deploy;
use crate::deployment::{Deployment, Failed, FailedDigests, Staged};
use crate::error::{Error, Result};
use crate::etc;
use crate::expected;
use crate::forecast::Forecast;
use crate::health;
use crate::ids::{DeploymentId, ManifestDigest};
use crate::monitor::{Event, Monitor, Stage};
use crate::pull::{self, Variant};
use crate::reference::Reference;
use crate::registry::{self, Registry};
use crate::signature::{Freshness, check_downgrade};
use crate::sysroot::{Known, Sysroot};
use crate::tree::Tree;

/// What is asked of an update, beside the reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Take an older image of the same name, too.
    pub allow_downgrade: bool,
    /// Take an image that failed here before, too.
    pub retry: bool,
    /// Nobody is there: what the administrator went back from is left alone as well.
    pub automatic: bool,
}

/// What an update did.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// This deployment boots next.
    Staged(Done),
    /// What the reference leads to boots next already.
    Unchanged {
        /// Which.
        id: DeploymentId,
        /// Its manifest.
        manifest: ManifestDigest,
    },
    /// What the reference leads to failed here before; nothing was done.
    FailedBefore(Failed),
}

/// A new deployment.
#[derive(Clone, Debug)]
pub struct Done {
    /// Its id.
    pub id: DeploymentId,
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// Version of the image, where it has one.
    pub version: Option<String>,
    /// Its boot entry.
    pub entry: String,
    /// Generation of the entry.
    pub generation: u64,
    /// Where the administrator and the image both changed something in /etc.
    pub conflicts: Vec<etc::Conflict>,
    /// Deployments that were let go of.
    pub removed: Vec<DeploymentId>,
}

/// What there is to follow.
#[derive(Clone, Debug)]
pub struct News {
    /// The followed reference.
    pub reference: String,
    /// What it leads to now.
    pub top: ManifestDigest,
    /// Whether that differs from what boots next.
    pub newer: bool,
}

/// Follows another image from the next boot on.
///
/// # Errors
/// [`Error::Trust`] for an older image of the same name; those of the stages. Nothing is changed then that could boot.
pub fn switch(sysroot: &Sysroot, reference: &Reference, wishes: Wishes, monitor: &dyn Monitor) -> Result<Outcome> {
    let known = known(sysroot)?;
    let registry = Registry::open(reference, &sysroot.options.registry)?;
    monitor.event(Event::Stage(Stage::Resolve));
    let image = registry.image(&sysroot.options.platform, monitor)?;
    let same = |k: &&Known| {
        k.manifest() == Some(image.digest) && k.origin().is_some_and(|o| o.reference == reference.with_transport())
    };
    if let Some(next) = Sysroot::next(&known).filter(same) {
        return Ok(unchanged(next, image.digest));
    }
    if let Some(failed) = failures(sysroot, &known)?.of(&image.digest).filter(|f| wishes.heed(f)) {
        return Ok(Outcome::FailedBefore(failed.clone()));
    }
    follow(sysroot, &registry, image, &known, wishes, monitor)
}

/// Takes the newest of the followed image. One request where there is nothing new.
pub fn upgrade(sysroot: &Sysroot, wishes: Wishes, monitor: &dyn Monitor) -> Result<Outcome> {
    let known = known(sysroot)?;
    let (followed, reference) = followed(&known)?;
    let registry = Registry::open(&reference, &sysroot.options.registry)?;
    monitor.event(Event::Stage(Stage::Resolve));
    let top = registry.resolve(monitor)?;
    let origin = followed.origin();
    if origin.is_some_and(|o| o.top == Some(top) || o.top.is_none() && o.manifest == top)
        && let Some(manifest) = followed.manifest()
        && followed.standing.bootable
    {
        return Ok(unchanged(followed, manifest));
    }
    let failures = failures(sysroot, &known)?;
    let failed = |digest| failures.of(digest).filter(|f| wishes.heed(f)).cloned();
    if let Some(failed) = failed(&top) {
        return Ok(Outcome::FailedBefore(failed));
    }
    let image = registry.image(&sysroot.options.platform, monitor)?;
    if let Some(failed) = failed(&image.digest) {
        return Ok(Outcome::FailedBefore(failed));
    }
    if followed.manifest() == Some(image.digest) && followed.standing.bootable {
        let top = image.top;
        sysroot
            .deployments
            .update(sysroot.fs(), &followed.id, |origin| origin.top = Some(top))?;
        return Ok(unchanged(followed, image.digest));
    }
    follow(sysroot, &registry, image, &known, wishes, monitor)
}

/// Asks whether there is something new, and changes nothing.
pub fn check(sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<News> {
    let known = sysroot.known()?;
    let (followed, reference) = followed(&known)?;
    let registry = Registry::open(&reference, &sysroot.options.registry)?;
    let top = registry.resolve(monitor)?;
    let newer = followed.origin().is_none_or(|o| o.top.unwrap_or(o.manifest) != top);
    Ok(News {
        reference: reference.to_string(),
        top,
        newer,
    })
}

/// What following `reference`, or else the newest of the followed image, would fetch and write; `None` where that boots next
/// already. Changes nothing.
pub fn forecast(sysroot: &Sysroot, reference: Option<&Reference>, monitor: &dyn Monitor) -> Result<Option<Forecast>> {
    let known = sysroot.known()?;
    let reference = match reference {
        Some(reference) => reference.clone(),
        None => followed(&known)?.1,
    };
    let registry = Registry::open(&reference, &sysroot.options.registry)?;
    let image = registry.image(&sysroot.options.platform, monitor)?;
    let same = |k: &&Known| {
        k.manifest() == Some(image.digest) && k.origin().is_some_and(|o| o.reference == reference.with_transport())
    };
    if Sysroot::next(&known).filter(same).is_some() {
        return Ok(None);
    }
    let bound = expected::bound(sysroot, &known, monitor)?;
    let store = &sysroot.store;
    let mut forecast = Forecast::new(Some(store), store.path(), (&registry, &image), &bound, monitor)?;
    forecast.boot = expected::boot(sysroot, &known)?;
    Ok(Some(forecast))
}

/// What there is, where an entry for something new can be put beside it.
fn known(sysroot: &Sysroot) -> Result<Vec<Known>> {
    let known = sysroot.known()?;
    if !sysroot.options.boot_named {
        sysroot.check_boot(&known)?;
    }
    Ok(known)
}

fn unchanged(known: &Known, manifest: ManifestDigest) -> Outcome {
    Outcome::Unchanged { id: known.id, manifest }
}

/// What failed here so far, that of the last boots included.
fn failures(sysroot: &Sysroot, known: &[Known]) -> Result<FailedDigests> {
    health::settle(sysroot, known)?;
    FailedDigests::load(sysroot.layout())
}

impl Wishes {
    /// Whether a failure keeps an image away, which nobody asked for all the same.
    fn heed(self, failed: &Failed) -> bool {
        !self.retry && (self.automatic || !failed.by_admin)
    }
}

/// The deployment whose image is followed, and its reference.
fn followed(known: &[Known]) -> Result<(&Known, Reference)> {
    let deployment = Sysroot::next(known).or_else(|| known.iter().find(|k| k.record.is_ok()));
    let found = deployment.and_then(|k| Some((k, k.origin()?.reference.clone())));
    let (known, reference) = found.ok_or_else(|| Error::Deployment {
        id: "upgrade".into(),
        why: "no image is followed yet; say which with `cfs-update switch IMAGE`".into(),
    })?;
    Ok((known, reference.parse()?))
}

/// The whole way, in order.
fn follow(
    sysroot: &Sysroot,
    registry: &Registry,
    source: registry::Image,
    known: &[Known],
    wishes: Wishes,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let fetched = fetch(sysroot, registry, source, known, wishes, monitor)?;
    if known.is_empty() {
        activate::refuse_full_boot(sysroot.bootloader(), &fetched.bootable)?;
    }
    let recorded = record(sysroot, fetched, known, monitor)?;
    publish(sysroot, recorded, known, monitor).map(Outcome::Staged)
}

/// An image whose layers are in the store and which can be booted; nothing refers to them yet.
#[derive(Debug)]
pub struct Fetched {
    imported: pull::Imported,
    tree: Tree,
    bootable: Bootable,
    bound: Bound,
}

impl Fetched {
    /// The merged tree, /boot included.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Kernel, name and kernel arguments.
    pub fn bootable(&self) -> &Bootable {
        &self.bootable
    }

    /// The architecture, as the image's config says it.
    pub fn architecture(&self) -> &str {
        &self.imported.source().config.architecture
    }
}

/// A deployment that is durable with its /etc, and that no entry boots yet.
#[derive(Debug)]
pub struct Recorded {
    deployment: Deployment,
    bootable: Bootable,
    tree: Tree,
    generation: u64,
    conflicts: Vec<etc::Conflict>,
}

impl Recorded {
    /// Its record.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// What is mounted as its root.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }
}

/// Looks whether the image may be taken, imports its layers and finds its kernel.
pub fn fetch(
    sysroot: &Sysroot,
    registry: &Registry,
    source: registry::Image,
    known: &[Known],
    wishes: Wishes,
    monitor: &dyn Monitor,
) -> Result<Fetched> {
    (source.config).check_platform(&sysroot.options.platform, &source.reference.to_string())?;
    refuse_older(&source, sysroot.current(known), wishes)?;
    HostArguments::load(sysroot.layout())?;
    sysroot.bootloader().check_writable()?;
    if let Some(doubt) = expected::boot(sysroot, known)?.and_then(|boot| expected::boot_doubt(&boot)) {
        monitor.event(Event::Warning(doubt));
    }
    let imported = pull::import(&sysroot.store, registry, source, sysroot.options.threads, monitor)?;
    let tree = imported.tree(&sysroot.store)?;
    let bootable = bootable::look(&sysroot.store, &tree, &imported.source().config.architecture)?;
    if let Some(note) = &bootable.note {
        monitor.event(Event::Note(note.clone()));
    }
    for warning in bootable.warnings()? {
        monitor.event(Event::Warning(warning));
    }
    if !known.is_empty() {
        // Before bound images are fetched. Of a first deployment the caller asks: an installation has a rule of its own.
        activate::refuse_full_boot(sysroot.bootloader(), &bootable)?;
    }
    let options = &sysroot.options;
    let wanted = bound::look(&sysroot.store, &tree)?;
    let bound = bound::fetch(
        &sysroot.store,
        &wanted,
        &options.registry,
        &options.platform,
        options.threads,
        monitor,
    )?;
    Ok(Fetched {
        imported,
        tree,
        bootable,
        bound,
    })
}

/// Generates and signs the image; makes the record with its /etc.
pub fn record(sysroot: &Sysroot, fetched: Fetched, known: &[Known], monitor: &dyn Monitor) -> Result<Recorded> {
    let Fetched {
        imported,
        mut tree,
        bootable,
        bound,
    } = fetched;
    let built = imported.build(&sysroot.store, &mut tree, Variant::Boot, monitor)?;
    let id = built.id();
    bound.keep(&sysroot.store, &id)?;
    let image = built.sync(&sysroot.store, &activate::tag(&id), Some(&id.to_hex()), monitor)?;

    monitor.event(Event::Stage(Stage::Deploy));
    let signed = deploy::sign(sysroot, &image, monitor)?;
    let generation = activate::next_generation(sysroot, known)?;
    let origin = deploy::origin(&image, &bootable, generation)?;
    let (deployment, conflicts) = deploy::record(sysroot, signed, origin, &tree, sysroot.with_etc(known), monitor)?;
    Ok(Recorded {
        deployment,
        bootable,
        tree,
        generation,
        conflicts,
    })
}

/// Makes it the one that boots next, and lets go of what is superseded.
pub fn publish(sysroot: &Sysroot, recorded: Recorded, known: &[Known], monitor: &dyn Monitor) -> Result<Done> {
    let Recorded {
        deployment,
        bootable,
        generation,
        conflicts,
        ..
    } = recorded;
    monitor.event(Event::Stage(Stage::Boot));
    let entry = activate::first(sysroot, &deployment, &bootable, generation, known)?;
    let removed = activate::let_go(sysroot, monitor)?;
    note(sysroot, &deployment, sysroot.current(known))?;
    forget_failure(sysroot, &deployment.origin().manifest)?;
    Ok(Done {
        id: *deployment.id(),
        manifest: deployment.origin().manifest,
        version: deployment.origin().version.clone(),
        entry,
        generation,
        conflicts,
        removed,
    })
}

fn refuse_older(source: &registry::Image, current: Option<&Known>, wishes: Wishes) -> Result<()> {
    let Some(origin) = current.and_then(Known::origin) else {
        return Ok(());
    };
    if origin.reference != source.reference.with_transport() {
        return Ok(());
    }
    let freshness = |created| Freshness { counter: None, created };
    check_downgrade(
        &freshness(origin.created),
        &freshness(source.config.created),
        wishes.allow_downgrade,
    )
}

/// The staged note and the history: for people, after everything that counts is durable.
fn note(sysroot: &Sysroot, deployment: &Deployment, current: Option<&Known>) -> Result<()> {
    let now = Timestamp::now();
    let mut staged = Staged::new(*deployment.id(), now);
    staged.merge_from = current.map(|k| k.id).filter(|id| id != deployment.id());
    staged.save(sysroot.fs(), sysroot.layout())?;
    sysroot.remember("deploy", deployment.id(), deployment.origin(), "done")
}

/// It is tried again, or was asked for by name: what is known of it is out of date.
fn forget_failure(sysroot: &Sysroot, manifest: &ManifestDigest) -> Result<()> {
    let mut failed = FailedDigests::load(sysroot.layout())?;
    if failed.remove(manifest) {
        failed.save(sysroot.fs(), sysroot.layout())?;
    }
    Ok(())
}
