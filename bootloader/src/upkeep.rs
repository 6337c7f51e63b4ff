//! What is to be removed from `$BOOT`, removing it, and checking what stays.
//!
//! Invariant: an entry goes before the files that it names, with a sync between, and kernel files go only when no file
//! among the entries mentions them, of whomever it is. Planning writes nothing, so that a plan can be shown instead.

use std::collections::BTreeSet;
use std::path::Path;

use cfs_core::boot::{BootEntry, Entries, FileSource, Finding, KernelDigest, KernelFiles, Removal, Tries, cmdline};
use cfs_core::error::{Error, Result};
use cfs_core::ids::DeploymentId;
use cfs_core::sys::fs::{self, Fs};

use crate::listing::{self, entries_folder, kernels_folder};
use crate::name::KERNEL_FOLDER;
use crate::publish::TEMPORARY;

/// The entries of these deployments and what only they need.
///
/// # Errors
/// [`Error::BootEntry`] when that would take the last entry that boots.
pub fn plan_removal(boot: &Path, ids: &[DeploymentId]) -> Result<Removal> {
    let entries = listing::entries(boot)?;
    let goes = |entry: &&BootEntry| ids.iter().any(|id| entry.belongs_to(id));
    let gone: Vec<&BootEntry> = entries.ours.iter().filter(goes).collect();
    let refuse = |last: &BootEntry, why: &str| Error::BootEntry {
        entry: last.file.clone(),
        why: format!("{why}; switch or upgrade first"),
    };
    let stays = || entries.ours.iter().filter(|entry| !goes(entry));
    if let Some(last) = gone
        .iter()
        .find(|entry| entry.works())
        .filter(|_| !stays().any(BootEntry::works))
    {
        return Err(refuse(
            last,
            "without it nothing would be left that boots and has tries left",
        ));
    }
    if let Some(last) = gone
        .iter()
        .find(|entry| entry.is_complete())
        .filter(|_| !stays().any(BootEntry::is_complete))
    {
        return Err(refuse(last, "without it nothing would be left that boots"));
    }
    plan(boot, gone.into_iter().map(|entry| entry.file.clone()).collect())
}

/// What interrupted or superseded work left behind.
pub fn plan_cleanup(boot: &Path) -> Result<Removal> {
    let entries = listing::entries(boot)?;
    plan(boot, leftovers(boot, &entries)?)
}

/// That, and this system's entries of deployments that are not known.
pub fn plan_sweep(boot: &Path, known: &[DeploymentId]) -> Result<Removal> {
    let entries = listing::entries(boot)?;
    let mut files = leftovers(boot, &entries)?;
    let is_known = |entry: &&BootEntry| known.iter().any(|id| entry.belongs_to(id));
    if entries.ours.iter().filter(is_known).any(BootEntry::works) {
        let roots: Vec<_> = entries.ours.iter().filter(is_known).map(root).collect();
        let orphans = entries
            .ours
            .iter()
            .filter(|entry| !is_known(entry) && roots.contains(&root(entry)));
        files.extend(orphans.map(|entry| entry.file.clone()));
    }
    plan(boot, files)
}

fn leftovers(boot: &Path, entries: &Entries) -> Result<Vec<String>> {
    let superseded = entries.ours.iter().filter(|old| is_superseded(entries, old));
    let mut files: Vec<String> = superseded.map(|old| old.file.clone()).collect();
    for name in fs::names(&entries_folder(boot))? {
        files.extend(
            name.to_str()
                .filter(|name| listing::is_own_temporary(name))
                .map(str::to_owned),
        );
    }
    Ok(files)
}

/// What tells the systems on one `$BOOT` apart.
fn root(entry: &BootEntry) -> Vec<String> {
    cmdline::values(&entry.options, "root")
}

/// Whether a complete entry does the same: a newer one of the same deployment, or the same one marked good. One with
/// another `root=` does not: it is that of another system on the same `$BOOT`. Nor does one with another command line
/// for an entry that booted well, before it has done so itself.
fn is_superseded(entries: &Entries, old: &BootEntry) -> bool {
    entries.ours.iter().any(|new| {
        let same_deployment = old.id.map_or(new.short == old.short, |id| new.belongs_to(&id));
        let marked = new.generation == old.generation && new.tries == Tries::Good && old.tries != Tries::Good;
        let same_system = old.changed || !old.is_complete() || root(new) == root(old);
        let proven = old.tries == Tries::Good && old.is_complete() && !old.changed;
        let proves = new.tries == Tries::Good || !proven || new.options == old.options;
        let newer = new.generation > old.generation && proves;
        new.is_complete() && same_deployment && same_system && (newer || marked)
    })
}

/// These files among the entries and every kernel folder that is not mentioned without them.
fn plan(boot: &Path, names: Vec<String>) -> Result<Removal> {
    let gone: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut removal = Removal::default();
    for name in &gone {
        removal.bytes += length(&entries_folder(boot).join(name));
        removal.files.push(path_of(name));
    }
    let Some(kept) = listing::referenced(boot, &gone)? else {
        return Ok(removal);
    };
    for name in kernel_folders(boot)? {
        let folder = kernels_folder(boot).join(&name);
        let files: Vec<String> = fs::names(&folder)?
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        if !kept.contains(&name) {
            removal.bytes += files.iter().map(|file| length(&folder.join(file))).sum::<u64>();
            removal.folders.push(format!("{KERNEL_FOLDER}/{name}"));
            continue;
        }
        for file in files.iter().filter(|file| file.starts_with(TEMPORARY)) {
            removal.bytes += length(&folder.join(file));
            removal.files.push(format!("{KERNEL_FOLDER}/{name}/{file}"));
        }
    }
    Ok(removal)
}

/// Carries a plan out: files, synced, then the folders that are still not mentioned.
pub fn remove(fs: &dyn Fs, boot: &Path, plan: &Removal) -> Result<()> {
    let mut touched = BTreeSet::new();
    for file in &plan.files {
        let path = boot.join(file);
        fs.remove_file(&path)?;
        touched.insert(fs::parent(&path)?.to_path_buf());
    }
    for folder in &touched {
        fs.sync_dir(folder)?;
    }
    if plan.folders.is_empty() {
        return Ok(());
    }
    let Some(kept) = listing::referenced(boot, &BTreeSet::new())? else {
        return Ok(());
    };
    let unused = |folder: &&String| folder.rsplit('/').next().is_some_and(|digest| !kept.contains(digest));
    for folder in plan.folders.iter().filter(unused) {
        fs.remove_dir_all(&boot.join(folder))?;
    }
    fs.sync_dir(&kernels_folder(boot))
}

/// Everything that is wrong: entries, kernel files against the digest they are named by, leftovers. Each thing is named
/// once.
pub fn check(boot: &Path, entries: &Entries) -> Result<Vec<Finding>> {
    let mut findings = damaged_entries(boot, entries);
    let mut add = |what: String, why: String, damage| findings.push(Finding { what, why, damage });
    for entry in entries.foreign.iter().filter(|entry| entry.problem.is_some()) {
        add(path_of(&entry.file), entry.problem.clone().unwrap_or_default(), false);
    }
    let told = |warning: &&String| {
        let mut wrong = entries
            .ours
            .iter()
            .filter(|entry| entry.changed || !entry.is_complete());
        !wrong.any(|entry| warning.starts_with(&entry.file))
    };
    for warning in entries.overrides.iter().chain(&entries.warnings).filter(told) {
        add("loader".into(), warning.clone(), false);
    }
    let leftovers = plan_cleanup(boot)?;
    for path in leftovers.files.iter().chain(&leftovers.folders) {
        add(path.clone(), "nothing needs it any more; gc removes it".into(), false);
    }
    let of_broken = |name: &String| {
        let mut broken = entries.ours.iter().filter(|entry| !entry.is_complete());
        broken.any(|entry| entry.kernel.is_some_and(|digest| digest.to_string() == *name))
    };
    for name in kernel_folders(boot)?.into_iter().filter(|name| !of_broken(name)) {
        let path = format!("{KERNEL_FOLDER}/{name}");
        if let Some(why) = damage(boot, &name).filter(|_| !leftovers.folders.contains(&path)) {
            add(path, format!("{why}; `cfs-update fsck --repair` writes it anew"), true);
        }
    }
    Ok(findings)
}

/// Entries of ours that cannot boot, or may not boot what they should.
fn damaged_entries(boot: &Path, entries: &Entries) -> Vec<Finding> {
    let finding = |what: String, why: String| Finding {
        what,
        why,
        damage: true,
    };
    let mut findings = Vec::new();
    for entry in &entries.ours {
        let next = if entries.next.as_ref() == Some(&entry.file) {
            ", and it boots next"
        } else {
            ""
        };
        let why = match &entry.problem {
            Some(problem) if entry.kernel.is_some() && !has_files(boot, entry) => {
                format!("{problem}{next}; `cfs-update fsck --repair` writes it anew")
            }
            Some(problem) => format!("{problem}{next}; make another deployment boot next, or deploy this one again"),
            None if entry.changed => {
                format!(
                    "it was changed since it was written{next}; if that was not you, remove it and run `cfs-update upgrade`"
                )
            }
            None => continue,
        };
        findings.push(finding(path_of(&entry.file), why));
    }
    if !entries.ours.is_empty() && !entries.ours.iter().any(BootEntry::is_complete) {
        let why = "no entry is complete: the next boot may fail; run upgrade or switch now";
        findings.push(finding("loader/entries".into(), why.into()));
    }
    findings
}

fn has_files(boot: &Path, entry: &BootEntry) -> bool {
    [&entry.linux, &entry.initrd]
        .into_iter()
        .all(|path| listing::size(boot, path).is_some())
}

fn path_of(file: &str) -> String {
    format!("loader/entries/{file}")
}

/// Whether the files in a kernel folder are those that it is named by; reads them.
pub fn damage(boot: &Path, digest: &str) -> Option<String> {
    let folder = kernels_folder(boot).join(digest);
    let file = |name| FileSource::Path(folder.join(name));
    let mut kernel = KernelFiles::new("", file("linux"), file("initrd"));
    kernel.expected = digest.parse::<KernelDigest>().ok();
    match kernel.digest() {
        Ok(_) => None,
        Err(Error::Mismatch { .. }) => Some("kernel or initrd is not what it was when it was written".into()),
        Err(e) => Some(e.to_string()),
    }
}

/// Names of the folders that hold kernels of ours; anything else there is not ours.
fn kernel_folders(boot: &Path) -> Result<Vec<String>> {
    let names = fs::names(&kernels_folder(boot))?;
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    Ok(names.filter(|name| name.parse::<KernelDigest>().is_ok()).collect())
}

fn length(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |found| found.len())
}

/// The entry of ours that has this generation or a higher one.
pub fn not_older(entries: &Entries, generation: u64) -> Option<&BootEntry> {
    entries.ours.iter().find(|entry| entry.generation >= generation)
}
