//! From a synced image to a deployment: its signature, its record, its /etc and the shared /var.
//!
//! Invariant: a record gets its name only when everything in it is durable, and its /etc is merged into a new folder:
//! the /etc of the deployment that runs is only read. A power cut leaves a leftover that means nothing.

use std::io::Read;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::bootable::{self, Bootable};
use crate::deployment::{Deployment, Origin};
use crate::error::Result;
use crate::etc::{self, Conflict, FolderSource, Listing, Node, Report, Rules, Source, TreeSource};
use crate::ids::{DeploymentId, ObjectId};
use crate::image::reader;
use crate::monitor::{Event, Monitor};
use crate::pull::{IMAGE_LIMIT, Image};
use crate::registry;
use crate::signature::{ImageFacts, SignedImage, next_counter};
use crate::synced::Synced;
use crate::sys::dir::is_privileged;
use crate::sysroot::{Known, Sysroot};
use crate::tree::Tree;

/// Signs a synced image with the machine's key, under a counter that no other has.
pub(crate) fn sign(sysroot: &Sysroot, image: &Synced<Image>, monitor: &dyn Monitor) -> Result<SignedImage> {
    let key = sysroot.key()?;
    let sealed = sysroot.deployments.counters(&sysroot.trust()?)?;
    let next = next_counter(sysroot.fs(), &sysroot.layout().state(), sealed)?;
    if let Some(warning) = next.warning {
        monitor.event(Event::Warning(warning));
    }
    let facts = image.map(|image| ImageFacts {
        id: image.id,
        manifest: image.source.digest,
        reference: image.source.reference.with_transport(),
        erofs_format: 1,
    });
    SignedImage::sign(facts, &key, next.counter, Timestamp::now())
}

/// The version of an image, by its label or by what is in it.
pub(crate) fn version(source: &registry::Image, bootable: &Bootable) -> Option<String> {
    let label = source.config.labels.get("org.opencontainers.image.version");
    label
        .and_then(|label| bootable::shown(label))
        .or_else(|| bootable.version.clone())
}

/// What the record will say.
pub(crate) fn origin(image: &Synced<Image>, bootable: &Bootable, generation: u64) -> Result<Origin> {
    let source = &image.source;
    let mut origin = Origin::new(&source.reference.with_transport(), source.digest);
    origin.boot_digest = Some(bootable.kernel.digest()?.to_string());
    origin.top = Some(source.top);
    origin.version = version(source, bootable);
    origin.created = source.config.created;
    origin.architecture = Some(match &source.config.variant {
        Some(variant) => format!("{}/{variant}", source.config.architecture),
        None => source.config.architecture.clone(),
    });
    origin.deployed = Some(Timestamp::now());
    origin.generation = Some(generation);
    Ok(origin)
}

/// Makes the record with its /etc and, the first time, /var. A deployment that is there already is given the new
/// signature; its /etc is merged afresh unless it runs or is the one that the others are merged from. `current` is
/// where the administrator's /etc is.
pub(crate) fn record(
    sysroot: &Sysroot,
    signed: SignedImage,
    mut origin: Origin,
    tree: &Tree,
    current: Option<&Known>,
    monitor: &dyn Monitor,
) -> Result<(Deployment, Vec<Conflict>)> {
    let (fs, deployments) = (sysroot.fs(), &sysroot.deployments);
    let id = *signed.id();
    fill_var(sysroot, tree, monitor)?;
    if deployments.has_etc(&id) {
        let former = deployments.load(&id);
        if let Err(broken) = &former {
            monitor.event(Event::Warning(format!("{broken}; it is made anew around its /etc")));
        }
        let former = former.as_ref().map(|record| record.origin());
        origin.pinned = former.is_ok_and(|former| former.pinned);
        let mut conflicts = Vec::new();
        if current.is_some_and(|k| k.id == id) || sysroot.options.booted == Some(id) {
            origin.etc_unprivileged = former.map_or(!is_privileged(), |former| former.etc_unprivileged);
            origin.etc_from = former.ok().and_then(|former| former.etc_from);
        } else {
            let draft = deployments.begin_etc(fs, &id)?;
            let (report, found) = write_etc(sysroot, tree, current, draft.path(), monitor)?;
            origin.etc_unprivileged = !report.complete();
            origin.etc_from = current.map(|k| k.id);
            conflicts = found;
            draft.commit_etc(fs)?;
        }
        return Ok((deployments.relabel(fs, signed, origin)?, conflicts));
    }
    deployments.remove(fs, &id)?;
    let draft = deployments.begin(fs, signed)?;
    let (report, conflicts) = write_etc(sysroot, tree, current, &draft.etc(), monitor)?;
    origin.etc_unprivileged = !report.complete();
    origin.etc_from = current.map(|k| k.id);
    Ok((draft.commit(fs, origin)?, conflicts))
}

/// The new image's /etc, with what the administrator made of the current one.
fn write_etc(
    sysroot: &Sysroot,
    tree: &Tree,
    current: Option<&Known>,
    to: &std::path::Path,
    monitor: &dyn Monitor,
) -> Result<(Report, Vec<Conflict>)> {
    let algorithm = sysroot.store.algorithm();
    let open = |id: &ObjectId| open_object(sysroot, id);
    let new = TreeSource::new(tree, "etc", algorithm, &open)?;
    let Some(current) = current else {
        return Ok((tell("/etc", etc::write(&new, to)?, monitor), Vec::new()));
    };
    let here = FolderSource::scan(&sysroot.layout().etc(&current.id), algorithm)?;
    let old = match image_listing(sysroot, &current.id) {
        Ok(old) => old,
        Err(e) => {
            monitor.event(Event::Warning(format!(
                "{e}; every file of the /etc of deployment {} is kept as if it had been changed",
                current.id.short()
            )));
            Listing::empty()
        }
    };
    let plan = etc::plan(&old, here.listing(), new.listing(), rules(current));
    let report = etc::apply(&plan, &here, &new, to)?;
    Ok((tell("/etc", report, monitor), plan.conflicts))
}

/// Merges the administrator's /etc once more into a deployment that waits to be booted, and swaps the result in. What
/// was in its /etc before came from such a merge, too.
pub(crate) fn merge_etc(
    sysroot: &Sysroot,
    id: &DeploymentId,
    current: &Known,
    monitor: &dyn Monitor,
) -> Result<Vec<Conflict>> {
    let (fs, deployments) = (sysroot.fs(), &sysroot.deployments);
    let tree = image_etc(sysroot, id)?;
    let draft = deployments.begin_etc(fs, id)?;
    let (report, conflicts) = write_etc(sysroot, &tree, Some(current), draft.path(), monitor)?;
    draft.commit_etc(fs)?;
    deployments.update(fs, id, |origin| origin.etc_unprivileged = !report.complete())?;
    Ok(conflicts)
}

/// What differs in a deployment's /etc from what its image has there.
///
/// # Errors
/// Where its record, image or /etc cannot be read.
pub fn etc_changes(sysroot: &Sysroot, known: &Known) -> Result<Vec<(PathBuf, etc::Change)>> {
    let algorithm = sysroot.store.algorithm();
    let image = image_listing(sysroot, &known.id)?;
    let here = FolderSource::scan(&sysroot.layout().etc(&known.id), algorithm)?;
    Ok(etc::diff(&image, here.listing(), rules(known)))
}

/// Where what the administrator made of the current /etc and what a new image brings there do not go together.
pub(crate) fn etc_conflicts(sysroot: &Sysroot, tree: &Tree, current: Option<&Known>) -> Result<Vec<Conflict>> {
    let Some(current) = current else {
        return Ok(Vec::new());
    };
    let algorithm = sysroot.store.algorithm();
    let open = |id: &ObjectId| open_object(sysroot, id);
    let new = TreeSource::new(tree, "etc", algorithm, &open)?;
    let here = FolderSource::scan(&sysroot.layout().etc(&current.id), algorithm)?;
    let old = image_listing(sysroot, &current.id).unwrap_or_else(|_| Listing::empty());
    Ok(etc::plan(&old, here.listing(), new.listing(), rules(current)).conflicts)
}

/// What was written without privileges has lost its owners.
fn rules(known: &Known) -> Rules {
    Rules {
        ownership: !known.origin().is_some_and(|origin| origin.etc_unprivileged),
    }
}

/// /etc as a deployment's image has it.
fn image_listing(sysroot: &Sysroot, id: &ObjectId) -> Result<Listing> {
    let tree = image_etc(sysroot, id)?;
    let open = |id: &ObjectId| open_object(sysroot, id);
    Ok(TreeSource::new(&tree, "etc", sysroot.store.algorithm(), &open)?
        .listing()
        .clone())
}

/// Files in a deployment's /etc that were written after `since`, by path relative to it.
pub(crate) fn etc_written_since(sysroot: &Sysroot, id: &DeploymentId, since: Timestamp) -> Result<Vec<PathBuf>> {
    let here = FolderSource::scan(&sysroot.layout().etc(id), sysroot.store.algorithm())?;
    let nodes = here.listing().iter();
    let since = (since.as_second(), since.subsec_nanosecond());
    let written = |node: &Node| (node.meta.mtime.sec, i32::try_from(node.meta.mtime.nsec).unwrap_or(0));
    let late = nodes.filter(|(_, node)| !node.is_dir() && written(node) > since);
    Ok(late.map(|(path, _)| path.to_path_buf()).collect())
}

/// What the image brings in /var, the first time only.
fn fill_var(sysroot: &Sysroot, tree: &Tree, monitor: &dyn Monitor) -> Result<()> {
    let Some(draft) = sysroot.deployments.begin_var(sysroot.fs())? else {
        return Ok(());
    };
    let open = |id: &ObjectId| open_object(sysroot, id);
    let source = TreeSource::new(tree, "var", sysroot.store.algorithm(), &open)?;
    tell("/var", etc::write(&source, draft.path())?, monitor);
    sysroot.deployments.commit_var(sysroot.fs(), &draft)
}

fn tell(folder: &str, report: Report, monitor: &dyn Monitor) -> Report {
    for note in report.notes() {
        monitor.event(Event::Note(format!("{folder}: {note}")));
    }
    report
}

/// The tree of a deployment's image, as the image itself has it, with nothing but /etc in it.
fn image_etc(sysroot: &Sysroot, id: &ObjectId) -> Result<Tree> {
    reader::read_part(&sysroot.store.read_object(id, IMAGE_LIMIT)?, b"etc")
}

fn open_object(sysroot: &Sysroot, id: &ObjectId) -> Result<Box<dyn Read>> {
    Ok(Box::new(sysroot.store.open_object(id)?))
}
