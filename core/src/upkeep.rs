//! Keeping a SYSROOT small and sound: `gc` and `fsck`, over store, records and boot entries together.
//!
//! Invariant: `gc` removes only what no deployment, no named image and no other tool's reference leads to; it works
//! while nothing else does, under the lock. `fsck` changes nothing, looks at everything, and never stops at what is
//! broken.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::activate::{remove, tag};
use crate::boot::{HostArguments, Removal};
use crate::bound;
use crate::deployment::{Downloaded, FailedDigests, Staged};
use crate::download;
use crate::error::{Error, Kind, Result};
use crate::expose;
use crate::ids::DeploymentId;
use crate::kernels;
use crate::plan;
use crate::store::{fsck as store_check, gc as collection, manifest_name};
use crate::sys::space::Space;
use crate::sysroot::{Known, Sysroot};
use crate::wanted::{self, objects_of};

/// What a collection removes, or would.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Records that never got a boot entry.
    pub deployments: Vec<DeploymentId>,
    /// Names in the store of deployments that are gone.
    pub names: Vec<String>,
    /// Files and folders of $BOOT.
    pub boot: Removal,
    /// Leftovers of interrupted runs.
    pub leftovers: Vec<PathBuf>,
    /// Objects, images and streams.
    pub store: collection::Plan,
}

/// What is wrong, and what was looked at.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Objects, images and streams that were looked at.
    pub store: store_check::Summary,
    /// Deployments that were looked at.
    pub deployments: usize,
    /// Boot entries that were looked at.
    pub entries: usize,
    /// Findings that are damage.
    pub damaged: usize,
}

/// One finding of `fsck`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `object`, `image`, `stream`, `deployment`, `boot entry`.
    pub what: &'static str,
    /// Path, digest or file name.
    pub name: String,
    /// What is wrong, and what to do.
    pub why: String,
    /// Damage; otherwise only worth knowing.
    pub damage: bool,
    /// What [`crate::repair`] would do about it.
    pub mend: Option<store_check::Mend>,
}

impl Finding {
    fn damage(what: &'static str, name: String, why: String) -> Self {
        Self {
            what,
            name,
            why,
            damage: true,
            mend: None,
        }
    }
}

/// Removes what no deployment needs and nothing else; with `dry_run` only says what that is.
pub fn gc(sysroot: &Sysroot, dry_run: bool) -> Result<Collected> {
    let known = sysroot.known()?;
    sysroot.check_boot(&known)?;
    let standing = Sysroot::standing(&known);
    let gone = plan::unfinished(&standing);
    let kept: BTreeSet<_> = known.iter().map(|k| k.id).filter(|id| !gone.contains(id)).collect();
    let names = stale_names(sysroot, &kept)?;
    let bootloader = sysroot.bootloader();
    let mut collected = Collected {
        leftovers: sysroot.deployments.leftovers()?,
        boot: bootloader.plan_sweep(&kept.iter().copied().collect::<Vec<_>>())?,
        deployments: gone,
        names,
        store: collection::Plan::default(),
    };
    if !dry_run {
        // Entries before what they lead to.
        bootloader.remove(&collected.boot)?;
        remove(sysroot, &collected.deployments)?;
        remove_names(sysroot, &collected.names)?;
        collected.leftovers = sysroot.deployments.clean(sysroot.fs())?;
    }
    // A plan sees the store as it will be without the stale names.
    let without_image_names = collected
        .names
        .iter()
        .map(|name| name.trim_start_matches("cfs-update/").into());
    let roots = collection::Roots {
        streams: manifests(sysroot, &known, &kept),
        images: kept.into_iter().collect(),
        without_image_names: without_image_names.collect(),
        without_tags: collected.names.clone(),
    };
    collected.store = match dry_run {
        true => collection::plan(&sysroot.store, &roots, &objects_of)?,
        false => collection::run(&sysroot.store, &roots, &objects_of)?,
    };
    Ok(collected)
}

/// The manifests that kept deployments were made from, as far as they are here, whatever became of the names that lead
/// to them.
fn manifests(sysroot: &Sysroot, known: &[Known], kept: &BTreeSet<DeploymentId>) -> Vec<String> {
    let kept = known.iter().filter(|k| kept.contains(&k.id));
    let manifests = kept.filter_map(Known::manifest);
    let here = manifests.filter(|manifest| sysroot.store.manifest(manifest).is_ok_and(|found| found.is_some()));
    here.map(|manifest| manifest_name(&manifest)).collect()
}

/// What to say, and what to do, where something that was to be written on the store or on $BOOT had no room: what this
/// run had written is taken back, and the error tells what would help, in numbers. Other errors stay as they are.
pub fn without_room(sysroot: &Sysroot, error: Error) -> Error {
    if error.kind() != Kind::Space {
        return error;
    }
    let of_boot = match &error {
        Error::Io { path, .. } | Error::Space { path, .. } | Error::Inodes { path, .. } => {
            path.starts_with(sysroot.bootloader().boot_dir())
        }
        _ => false,
    };
    let mut told = Vec::new();
    if !of_boot {
        told.extend(taken_back(sysroot));
    }
    if matches!(error, Error::Io { .. })
        && !of_boot
        && let Ok(space) = Space::of(sysroot.store.path())
    {
        if let Some((expected, free)) = sysroot.store.expected() {
            told.push(format!("up to {expected} bytes were expected and {free} free before"));
        }
        told.push(format!("{} are free now", amount(space.bytes, space.inodes)));
    }
    told.extend(what_gc_frees(sysroot, of_boot));
    told.extend(what_could_go(sysroot));
    if matches!(&error, Error::Space { path, .. } | Error::Inodes { path, .. } if path == sysroot.store.path()) {
        told.push("`--ignore-space` tries it all the same".into());
    }
    with_remedy(error, &told.join("; "))
}

fn amount(bytes: u64, inodes: Option<u64>) -> String {
    match inodes {
        Some(inodes) => format!("{bytes} bytes and {inodes} inodes"),
        None => format!("{bytes} bytes"),
    }
}

/// Removes what the run has written that nothing refers to: leftovers of a record that was not finished, names of a
/// deployment that did not come to be, objects.
fn taken_back(sysroot: &Sysroot) -> Option<String> {
    let take_back = || {
        let kept: BTreeSet<_> = sysroot.known()?.iter().map(|known| known.id).collect();
        sysroot.deployments.clean(sysroot.fs())?;
        if sysroot.store.has_written() {
            remove_names(sysroot, &stale_names(sysroot, &kept)?)?;
        }
        let roots = collection::Roots {
            images: kept.into_iter().collect(),
            ..Default::default()
        };
        collection::take_back(&sysroot.store, &roots, &objects_of)
    };
    match take_back() {
        Ok(gone) => (!gone.is_empty()).then(|| format!("what was written, {} bytes, was removed again", gone.bytes())),
        Err(error) => Some(format!(
            "what was written stays until `cfs-update gc` removes it ({error})"
        )),
    }
}

fn remove_names(sysroot: &Sysroot, names: &[String]) -> Result<()> {
    for name in names {
        sysroot.store.untag(name)?;
        sysroot.store.unname_image(name.trim_start_matches("cfs-update/"))?;
    }
    Ok(())
}

fn what_gc_frees(sysroot: &Sysroot, of_boot: bool) -> Option<String> {
    let collected = gc(sysroot, true).ok()?;
    let (bytes, inodes) = match of_boot {
        true => (collected.boot.bytes, None),
        false => (collected.store.bytes(), Some(collected.store.objects.len() as u64)),
    };
    Some(match bytes {
        0 => "`cfs-update gc` would free nothing there".into(),
        _ => format!("`cfs-update gc` would free {} there", amount(bytes, inodes)),
    })
}

/// What the administrator keeps and may be able to do without.
fn what_could_go(sysroot: &Sysroot) -> Option<String> {
    let known = sysroot.known().ok()?;
    let standing = Sysroot::standing(&known);
    let next = plan::next_to_boot(&standing).map(|deployment| deployment.id);
    let spare = standing.iter().filter(|d| !d.booted && Some(d.id) != next);
    let spare: Vec<_> = spare
        .map(|d| format!("{}{}", d.id.short(), if d.pinned { " (pinned)" } else { "" }))
        .collect();
    let pulled = sysroot.store.tags().ok()?;
    let pulled = pulled.keys().filter(|name| !name.starts_with("cfs-update/")).count();
    let mut could = Vec::new();
    if !spare.is_empty() {
        could.push(format!("`cfs-update delete` of {} and then `gc`", spare.join(", ")));
    }
    if pulled > 0 {
        could.push(format!(
            "`cfs-update image rm` of {pulled} pulled image(s) and then `gc`"
        ));
    }
    (!could.is_empty()).then(|| format!("more is freed by {}", could.join(", or ")))
}

fn with_remedy(error: Error, more: &str) -> Error {
    if more.is_empty() {
        return error;
    }
    match error {
        Error::Space {
            path,
            needed,
            free,
            remedy,
        } => Error::Space {
            path,
            needed,
            free,
            remedy: format!("{remedy}; {more}"),
        },
        Error::Inodes {
            path,
            needed,
            free,
            remedy,
        } => Error::Inodes {
            path,
            needed,
            free,
            remedy: format!("{remedy}; {more}"),
        },
        error => Error::Full {
            error: Box::new(error),
            remedy: more.into(),
        },
    }
}

/// Our names of deployments and downloads that are no longer there.
fn stale_names(sysroot: &Sysroot, kept: &BTreeSet<DeploymentId>) -> Result<Vec<String>> {
    // One that cannot be read may be of something that is to be kept.
    let noted = !matches!(Downloaded::load(sysroot.layout()), Ok(None));
    let downloaded = noted.then(download::tag);
    let wanted: BTreeSet<_> = kept.iter().map(tag).chain(downloaded.clone()).collect();
    let owns = |owner: &str| match owner {
        download::NAME => downloaded.is_some(),
        short => kept.iter().any(|id| id.short() == short),
    };
    let tags = sysroot
        .store
        .tags()?
        .into_keys()
        .filter(|name| name.starts_with("cfs-update/"))
        .filter(|name| !bound::name(name).is_some_and(|(owner, _)| owns(owner)));
    let images = sysroot
        .store
        .image_names()?
        .into_keys()
        .filter(|name| !name.starts_with(expose::NAMES))
        .map(|name| format!("cfs-update/{name}"));
    let all: BTreeSet<_> = tags.chain(images).filter(|name| !wanted.contains(name)).collect();
    Ok(all.into_iter().collect())
}

/// Checks every object, image, stream, record and entry. Findings go to `sink` one by one.
pub fn fsck(sysroot: &Sysroot, sink: &mut dyn FnMut(Finding)) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut report = |finding: Finding| {
        checked.damaged += usize::from(finding.damage);
        sink(finding);
    };
    let store = store_check::check(&sysroot.store, &objects_of, &mut |f| {
        report(Finding {
            mend: f.mend,
            ..Finding::damage("repository", f.path, f.why)
        })
    })?;
    let mut records = Records::look(sysroot)?;
    if records.findings.iter().any(|finding| finding.damage) {
        // Another run makes and removes them one after the other, and may have been at it.
        records = sysroot.undisturbed(|| Records::look(sysroot))?;
    }
    records.findings.into_iter().for_each(&mut report);
    checked.store = store;
    checked.deployments = records.deployments;
    checked.entries = records.entries;
    Ok(checked)
}

/// What was found beside the store: in records, names, notes and boot entries.
struct Records {
    deployments: usize,
    entries: usize,
    findings: Vec<Finding>,
}

impl Records {
    fn look(sysroot: &Sysroot) -> Result<Self> {
        let mut findings = Vec::new();
        let known = sysroot.known()?;
        let lost = sysroot.check_boot(&known).err();
        let lost = lost.map(|e| Finding::damage("boot entry", "all".into(), e.to_string()));
        let is_lost = lost.is_some();
        findings.extend(lost);
        findings.extend(known.iter().flat_map(|k| of_deployment(k, is_lost)));
        findings.extend(notes(sysroot));
        for (name, why) in wanted::lacking(sysroot)? {
            findings.push(Finding::damage("image", name, why));
        }
        let entries = sysroot.bootloader().entries()?;
        for entry in &entries.ours {
            if !known.iter().any(|k| entry.belongs_to(&k.id)) {
                let why = "boots a deployment that is not there; `cfs-update gc` removes it";
                findings.push(Finding::damage("boot entry", entry.file.clone(), why.into()));
            }
        }
        for (entry, remedy) in kernels::not_of_their_image(sysroot, &known)? {
            let why = format!(
                "its kernel and initrd on $BOOT are none of its image: they were damaged when they were copied; \
                 {remedy}"
            );
            findings.push(Finding::damage("boot entry", entry.file, why));
        }
        let of_boot = |finding: crate::boot::Finding| Finding {
            damage: finding.damage,
            ..Finding::damage("boot entry", finding.what, finding.why)
        };
        findings.extend(sysroot.bootloader().check()?.into_iter().map(of_boot));
        Ok(Self {
            deployments: known.len(),
            entries: entries.ours.len(),
            findings,
        })
    }
}

/// What of this machine's own notes cannot be read.
fn notes(sysroot: &Sysroot) -> Vec<Finding> {
    let layout = sysroot.layout();
    let read = [
        HostArguments::load(layout).map(drop),
        Downloaded::load(layout).map(drop),
        Staged::load(layout).map(drop),
        FailedDigests::load(layout).map(drop),
    ];
    let wrong = read.into_iter().filter_map(Result::err);
    wrong
        .map(|error| Finding::damage("note", "of this machine".into(), error.to_string()))
        .collect()
}

/// What is wrong with a deployment. `lost`: nothing has a boot entry, which is told already.
fn of_deployment(known: &Known, lost: bool) -> Vec<Finding> {
    let name = || known.id.to_hex();
    let wrong = match (&known.record, &known.verified) {
        (Err(e), _) | (Ok(_), Err(e)) => Some(e.to_string()),
        (Ok(_), Ok(_)) => None,
    };
    let wrong = wrong.into_iter().chain(known.problem.clone());
    let mut findings: Vec<_> = wrong.map(|why| Finding::damage("deployment", name(), why)).collect();
    if known.entry.is_none() && !lost {
        let why = match (known.standing.booted || known.standing.lost, known.standing.pinned) {
            (true, _) => "has no boot entry any more; deploy its image again, or `cfs-update delete` it",
            (_, true) => {
                "has no boot entry and is pinned; deploy its image again, or `cfs-update unpin` it, and `gc` takes it"
            }
            _ => "has no boot entry; `cfs-update gc` removes it",
        };
        findings.push(Finding {
            damage: known.standing.booted || known.standing.lost,
            ..Finding::damage("deployment", name(), why.into())
        });
    }
    findings
}
