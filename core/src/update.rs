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
use crate::deployment::{Deployment, Downloaded, Failed, FailedDigests, Staged};
use crate::download;
use crate::error::{Error, Result};
use crate::etc;
use crate::expected;
use crate::health;
use crate::ids::{DeploymentId, ManifestDigest};
use crate::monitor::{Event, Monitor, Stage};
use crate::pull::{self, Imported, Variant};
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
    /// Fetch it and keep it; what boots next stays what it is.
    pub download_only: bool,
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
    /// This image is here, and what boots next is what it was.
    Downloaded {
        /// Which.
        image: Downloaded,
        /// It was here before.
        already: bool,
    },
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

/// Follows another image from the next boot on.
///
/// # Errors
/// [`Error::Trust`] for an older image of the same name; those of the stages. Nothing is changed then that could boot.
pub fn switch(sysroot: &Sysroot, reference: &Reference, wishes: Wishes, monitor: &dyn Monitor) -> Result<Outcome> {
    let known = known(sysroot)?;
    let registry = Registry::open(reference, &sysroot.options.registry)?;
    monitor.event(Event::Stage(Stage::Resolve));
    let image = registry.image(&sysroot.options.platform, monitor)?;
    let is_it = |k: &&Known| sysroot.is_sound(k) && k.is_of(reference, &image.digest);
    if let Some(next) = Sysroot::next(&known).filter(is_it) {
        return Ok(unchanged(next, image.digest));
    }
    if let Some(failed) = failures(sysroot, &known)?.of(&image.digest).filter(|f| wishes.heed(f)) {
        return Ok(Outcome::FailedBefore(failed.clone()));
    }
    if let Some(here) = wishes.downloaded(sysroot, reference, &image.digest) {
        return Ok(here);
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
        && sysroot.is_sound(followed)
    {
        return Ok(unchanged(followed, manifest));
    }
    let failures = failures(sysroot, &known)?;
    let failed = |digest| failures.of(digest).filter(|f| wishes.heed(f)).cloned();
    if let Some(failed) = failed(&top) {
        return Ok(Outcome::FailedBefore(failed));
    }
    if let Some(here) = wishes.downloaded(sysroot, &reference, &top) {
        return Ok(here);
    }
    let image = registry.image(&sysroot.options.platform, monitor)?;
    if let Some(failed) = failed(&image.digest) {
        return Ok(Outcome::FailedBefore(failed));
    }
    if followed.manifest() == Some(image.digest) && sysroot.is_sound(followed) {
        let top = image.top;
        sysroot
            .deployments
            .update(sysroot.fs(), &followed.id, |origin| origin.top = Some(top))?;
        return Ok(unchanged(followed, image.digest));
    }
    follow(sysroot, &registry, image, &known, wishes, monitor)
}

/// Takes what was downloaded, and asks no registry.
///
/// # Errors
/// [`Error::Deployment`] where nothing was downloaded, or something of it is gone; those of the stages.
pub fn from_downloaded(sysroot: &Sysroot, wishes: Wishes, monitor: &dyn Monitor) -> Result<Outcome> {
    let known = known(sysroot)?;
    let (source, bound) = download::found(sysroot)?.ok_or_else(|| Error::Deployment {
        id: download::NAME.into(),
        why: "nothing was downloaded; `cfs-update upgrade --download-only` does that".into(),
    })?;
    if let Some(failed) = failures(sysroot, &known)?.of(&source.digest).filter(|f| wishes.heed(f)) {
        return Ok(Outcome::FailedBefore(failed.clone()));
    }
    admit(sysroot, &source, &known, wishes)?;
    let imported = Imported::complete(source);
    let (tree, bootable) = look(sysroot, &imported, monitor)?;
    activate::refuse_full_boot(sysroot.bootloader(), &bootable)?;
    let fetched = Fetched {
        imported,
        tree,
        bootable,
        bound,
    };
    let recorded = record(sysroot, fetched, &known, monitor)?;
    publish(sysroot, recorded, &known, monitor).map(Outcome::Staged)
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
    pub(crate) fn heed(self, failed: &Failed) -> bool {
        !self.retry && (self.automatic || !failed.by_admin)
    }

    /// Where downloading is all that is wanted, and was done.
    fn downloaded(self, sysroot: &Sysroot, reference: &Reference, digest: &ManifestDigest) -> Option<Outcome> {
        let noted = || download::noted(sysroot, &reference.with_transport(), digest);
        let image = self.download_only.then(noted)??;
        Some(Outcome::Downloaded { image, already: true })
    }
}

/// The deployment whose image is followed, and its reference.
pub(crate) fn followed(known: &[Known]) -> Result<(&Known, Reference)> {
    let readable = |k: &&Known| k.record.is_ok();
    let deployment = Sysroot::next(known)
        .filter(readable)
        .or_else(|| known.iter().find(readable));
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
    if wishes.download_only {
        let Fetched {
            imported,
            tree,
            bootable,
            bound,
        } = fetched;
        let version = deploy::version(imported.source(), &bootable);
        let image = download::keep(sysroot, imported, tree, &bound, version, monitor)?;
        return Ok(Outcome::Downloaded { image, already: false });
    }
    if known.is_empty() {
        activate::refuse_full_boot(sysroot.bootloader(), &fetched.bootable)?;
    }
    let recorded = record(sysroot, fetched, known, monitor)?;
    publish(sysroot, recorded, known, monitor).map(Outcome::Staged)
}

/// An image whose layers are in the store and which can be booted; nothing refers to them yet.
#[derive(Debug)]
pub struct Fetched {
    imported: Imported,
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
    conflicts: Vec<etc::Conflict>,
    /// There was no record of it before.
    is_new: bool,
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
    admit(sysroot, &source, known, wishes)?;
    if let Some(doubt) = expected::boot(sysroot, known)?.and_then(|boot| expected::boot_doubt(&boot)) {
        monitor.event(Event::Warning(doubt));
    }
    let imported = pull::import(&sysroot.store, registry, source, sysroot.options.threads, monitor)?;
    let (tree, bootable) = look(sysroot, &imported, monitor)?;
    if !known.is_empty() {
        // Before bound images are fetched. Of a first deployment the caller asks: an installation has a rule of its
        // own.
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

/// Whether the image may be taken, and what has to be changed for it can be.
fn admit(sysroot: &Sysroot, source: &registry::Image, known: &[Known], wishes: Wishes) -> Result<()> {
    (source.config).check_platform(&sysroot.options.platform, &source.reference.to_string())?;
    refuse_older(source, sysroot.current(known), wishes)?;
    HostArguments::load(sysroot.layout())?;
    sysroot.bootloader().check_writable()
}

/// The tree of an image that is here, and its kernel; says what is to be said of it.
fn look(sysroot: &Sysroot, imported: &Imported, monitor: &dyn Monitor) -> Result<(Tree, Bootable)> {
    let tree = imported.tree(&sysroot.store)?;
    let bootable = bootable::look(&sysroot.store, &tree, &imported.source().config.architecture)?;
    if let Some(note) = &bootable.note {
        monitor.event(Event::Note(note.clone()));
    }
    for warning in bootable.warnings()? {
        monitor.event(Event::Warning(warning));
    }
    Ok((tree, bootable))
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
    bound.keep(&sysroot.store, &id.short())?;
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
        conflicts,
        is_new: known.iter().all(|k| k.id != id),
    })
}

/// Makes it the one that boots next, and lets go of what is superseded.
pub fn publish(sysroot: &Sysroot, recorded: Recorded, known: &[Known], monitor: &dyn Monitor) -> Result<Done> {
    monitor.event(Event::Stage(Stage::Boot));
    let entered = enter(sysroot, &recorded, known);
    let (entry, generation) = entered.inspect_err(|_| take_back(sysroot, &recorded))?;
    let Recorded {
        deployment, conflicts, ..
    } = recorded;
    let removed = match sysroot.check_boot(known) {
        Ok(()) => activate::let_go(sysroot, monitor)?,
        // A new $BOOT was named: what the old one boots stays.
        Err(_) => Vec::new(),
    };
    note(sysroot, &deployment, sysroot.current(known))?;
    forget_failure(sysroot, &deployment.origin().manifest)?;
    download::superseded(sysroot, &deployment.origin().reference)?;
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

/// The entry and its generation.
fn enter(sysroot: &Sysroot, recorded: &Recorded, known: &[Known]) -> Result<(String, u64)> {
    let Recorded {
        deployment, bootable, ..
    } = recorded;
    let id = deployment.id();
    activate::keep_good_next(sysroot, known, *id)?;
    let generation = activate::next_generation(sysroot, known)?;
    if deployment.origin().generation != Some(generation) {
        sysroot
            .deployments
            .update(sysroot.fs(), id, |origin| origin.generation = Some(generation))?;
    }
    let entry = activate::first(sysroot, deployment, bootable, generation, known)?;
    Ok((entry, generation))
}

/// Removes the record that got no entry, if this run made it, with the names of its image; what was fetched stays for
/// the next attempt. What cannot be removed, `gc` removes.
fn take_back(sysroot: &Sysroot, recorded: &Recorded) {
    let id = *recorded.deployment.id();
    let entries = sysroot.bootloader().entries();
    let refers = entries.map_or(true, |entries| entries.of(&id).is_some());
    if recorded.is_new && !refers {
        let _ = activate::remove(sysroot, &[id]);
    }
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
    // What is written in /etc from then on may have come too late for the merge.
    let since = deployment.origin().deployed.unwrap_or_else(Timestamp::now);
    let mut staged = Staged::new(*deployment.id(), since);
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
