//! From a synced image to a deployment: its signature, its record, its /etc and the shared /var.
//!
//! Invariant: a record gets its name only when everything in it is durable, and its /etc is merged into a new folder:
//! the /etc of the deployment that runs is only read. A power cut leaves a leftover that means nothing.

use std::io::Read;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::bootable::{self, Bootable};
use crate::deployment::{Deployment, EtcDraft, Origin};
use crate::error::Result;
use crate::etc::{self, Change, Conflict, FolderSource, Listing, Merged, Report, Rules, Source, TreeSource};
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
    origin.kernel_sizes = Some(bootable.kernel.sizes()?);
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
            let written = write_etc(sysroot, tree, current, draft.path(), monitor)?;
            swap_etc(sysroot, &id, draft, written.merged.as_ref())?;
            origin.etc_unprivileged = !written.complete;
            origin.etc_from = current.map(|k| k.id);
            conflicts = written.conflicts;
        }
        return Ok((deployments.relabel(fs, signed, origin)?, conflicts));
    }
    deployments.remove(fs, &id)?;
    let draft = deployments.begin(fs, signed)?;
    let written = write_etc(sysroot, tree, current, &draft.etc(), monitor)?;
    if let Some(merged) = &written.merged {
        merged.save(fs, draft.path())?;
    }
    origin.etc_unprivileged = !written.complete;
    origin.etc_from = current.map(|k| k.id);
    Ok((draft.commit(fs, origin)?, written.conflicts))
}

/// An /etc that was written beside its place.
struct Written {
    /// With all owners and attributes.
    complete: bool,
    conflicts: Vec<Conflict>,
    /// Where it was merged with another one.
    merged: Option<Merged>,
}

/// The new image's /etc, with what the administrator made of the current one.
fn write_etc(
    sysroot: &Sysroot,
    tree: &Tree,
    current: Option<&Known>,
    to: &Path,
    monitor: &dyn Monitor,
) -> Result<Written> {
    let algorithm = sysroot.store.algorithm();
    let open = |id: &ObjectId| open_object(sysroot, id);
    let new = TreeSource::new(tree, "etc", algorithm, &open)?;
    let Some(current) = current else {
        let report = tell("/etc", etc::write(&new, to)?, monitor);
        return Ok(Written {
            complete: report.complete(),
            conflicts: Vec::new(),
            merged: None,
        });
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
    let report = tell("/etc", etc::apply(&plan, &here, &new, to)?, monitor);
    let made = FolderSource::scan(to, algorithm)?;
    Ok(Written {
        complete: report.complete(),
        conflicts: plan.conflicts,
        merged: Some(Merged::new(current.id, here.listing(), made.listing())),
    })
}

/// Gives a merged /etc its place. Whichever of the two is there when the power goes, it is known for a merge's.
fn swap_etc(sysroot: &Sysroot, id: &DeploymentId, draft: EtcDraft, merged: Option<&Merged>) -> Result<()> {
    let (fs, layout) = (sysroot.fs(), sysroot.layout());
    let former = Merged::load(layout, id).ok().flatten();
    if let Some((former, merged)) = former.zip(merged) {
        former.or(merged).save(fs, &layout.record(id))?;
    }
    draft.commit_etc(fs)?;
    match merged {
        Some(merged) => merged.save(fs, &layout.record(id)),
        None => Merged::clear(fs, layout, id),
    }
}

/// Merges the administrator's /etc once more into a deployment that waits to be booted, and swaps the result in. What
/// was in its /etc before came from such a merge, too ([`is_as_merged`]).
pub(crate) fn merge_etc(
    sysroot: &Sysroot,
    id: &DeploymentId,
    current: &Known,
    monitor: &dyn Monitor,
) -> Result<Vec<Conflict>> {
    let (fs, deployments) = (sysroot.fs(), &sysroot.deployments);
    let tree = image_etc(sysroot, id)?;
    let draft = deployments.begin_etc(fs, id)?;
    let written = write_etc(sysroot, &tree, Some(current), draft.path(), monitor)?;
    swap_etc(sysroot, id, draft, written.merged.as_ref())?;
    deployments.update(fs, id, |origin| {
        origin.etc_unprivileged = !written.complete;
        origin.etc_from = Some(current.id);
    })?;
    Ok(written.conflicts)
}

/// Whether a deployment's /etc is what its merge made; `None` where nothing tells.
pub(crate) fn is_as_merged(sysroot: &Sysroot, id: &DeploymentId) -> Result<Option<bool>> {
    let Some(merged) = Merged::load(sysroot.layout(), id).ok().flatten() else {
        return Ok(None);
    };
    let own = FolderSource::scan(&sysroot.layout().etc(id), sysroot.store.algorithm())?;
    Ok(Some(merged.made(own.listing())))
}

/// What was changed in the /etc of `from` since it was merged into that of `id`, and is not so there.
pub(crate) fn etc_lacking(sysroot: &Sysroot, id: &DeploymentId, from: &DeploymentId) -> Result<Vec<(PathBuf, Change)>> {
    let (layout, algorithm) = (sysroot.layout(), sysroot.store.algorithm());
    let there = FolderSource::scan(&layout.etc(from), algorithm)?;
    let here = FolderSource::scan(&layout.etc(id), algorithm)?;
    let (there, here) = (there.listing(), here.listing());
    let of = |id: &DeploymentId| {
        let record = sysroot.deployments.load(id);
        Rules {
            ownership: record.is_ok_and(|record| !record.origin().etc_unprivileged),
        }
    };
    let (rules_there, rules_here) = (of(from), of(id));
    let merged = Merged::load(layout, id).ok().flatten();
    let changes = match merged {
        Some(merged) if merged.from == *from => merged.since(there),
        merged => {
            // It was merged from another one's: all that is the administrator's counts, in either of the two.
            let image = |id: &DeploymentId| image_listing(sysroot, id).unwrap_or_else(|_| Listing::empty());
            let mut changes = etc::diff(&image(from), there, rules_there);
            if let Some(merged) = merged {
                let inherited = etc::diff(&image(id), here, rules_here);
                changes.extend(merged.undone(inherited, there));
            }
            changes.retain(|(path, _)| !etc::is_kept_beside(path));
            changes.sort();
            changes.dedup_by(|a, b| a.0 == b.0);
            changes
        }
    };
    let both = Rules {
        ownership: rules_there.ownership && rules_here.ownership,
    };
    Ok(etc::lacking(changes, there, here, both))
}

/// What differs in a deployment's /etc from what its image has there.
///
/// # Errors
/// Where its record, image or /etc cannot be read.
pub fn etc_changes(sysroot: &Sysroot, known: &Known) -> Result<Vec<(PathBuf, Change)>> {
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
