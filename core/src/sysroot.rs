//! An opened SYSROOT: its store, its deployments, its boot loader, and the lock on all three.
//!
//! Invariant: who holds a [`Sysroot`] that was opened with [`Sysroot::open`] is its only writer; one from
//! [`Sysroot::look`] changes nothing. What [`Sysroot::known`] says is read afresh from disk each time: after a
//! power cut there is no other state that could disagree with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::boot::{BootEntry, Bootloader, Entries, KernelFiles, Tries};
use crate::deployment::{
    Choice, Deployment, Deployments, Event, History, Layout, Origin, Record, Roles, Running, Staged, select,
};
use crate::error::{Error, Result};
use crate::ids::{Algorithm, DeploymentId, ManifestDigest};
use crate::manifest::Platform;
use crate::plan::{self, Standing};
use crate::reference::Reference;
use crate::registry;
use crate::signature::{SigningKey, TrustStore};
use crate::store::Store;
use crate::sys::fs::{self, Fs};
use crate::sys::lock::Lock;

/// How a SYSROOT is opened.
#[derive(Debug)]
pub struct Options {
    /// SYSROOT; exists.
    pub root: PathBuf,
    /// Writes the boot entries.
    pub bootloader: Box<dyn Bootloader>,
    /// Makes the changes.
    pub fs: Arc<dyn Fs>,
    /// For a repository that is yet to be made.
    pub algorithm: Algorithm,
    /// Layers that are imported side by side; 0 = as many as there are cores.
    pub threads: usize,
    /// How many deployments stay, beside pinned ones; at least 2.
    pub keep: usize,
    /// How often a new entry may be tried; `None` = no counting.
    pub tries: Option<u8>,
    /// Which image of an index.
    pub platform: Platform,
    /// What runs now, if SYSROOT is that of the running system.
    pub booted: Option<DeploymentId>,
    /// The generation of the boot entry that it was started with, where that is known.
    pub started: Option<u64>,
    /// Which boot of the machine this is: what was begun in another one is over. Without it nothing counts as begun.
    pub boot_id: Option<String>,
    /// Value of `root=` for boot entries; `None` = found out.
    pub root_argument: Option<String>,
    /// `$BOOT` was named for this run, so it may be a new one without an entry of any deployment.
    pub boot_named: bool,
    /// Further kernel arguments for every new entry.
    pub kernel_arguments: Vec<String>,
    /// Folders with further trusted and revoked keys.
    pub trust: Vec<PathBuf>,
    /// For registries.
    pub registry: registry::Options,
}

/// What the history says of a deployment whose entry is about to go.
pub(crate) const REMOVED: &str = "remove";

/// How long another run is waited for by who only wants to look.
const PATIENCE: Duration = Duration::from_secs(5);

/// An opened SYSROOT.
#[derive(Debug)]
pub struct Sysroot {
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) deployments: Deployments,
    _lock: Option<Lock>,
}

/// A deployment as it stands: record, signature and entry read together.
#[derive(Debug)]
pub struct Known {
    /// Which.
    pub id: DeploymentId,
    /// The record, or what is wrong with it.
    pub record: Result<Record>,
    /// The record with its signature verified, or why it is not trusted.
    pub verified: Result<Deployment>,
    /// Its best boot entry; of what runs the one that it was started with, should that be newer and in its last try.
    pub entry: Option<BootEntry>,
    /// Image and repository: why it could not be mounted.
    pub problem: Option<String>,
    /// As the decisions see it.
    pub standing: Standing,
}

/// The image that the manifest of a deployment gives, which is another one than the deployment's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remade(pub DeploymentId);

impl fmt::Display for Remade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "holds other files than its image, whose layers give {} now: `cfs-update upgrade`, or `switch` to its \
             image, deploys that",
            self.0.short()
        )
    }
}

impl Sysroot {
    /// Opens SYSROOT for changes, making what is missing; `purpose` is shown to a second run.
    ///
    /// # Errors
    /// [`Error::Busy`] where another run holds the lock.
    pub fn open(options: Options, purpose: &str) -> Result<Self> {
        let layout = prepared(&options)?;
        let lock = Lock::exclusive(&layout.lock(), purpose)?;
        let store = Store::open_or_create(&repository(layout.root()), options.algorithm)?;
        let deployments = Deployments::new(layout);
        deployments.clean(&*options.fs)?;
        Ok(Self::locked(options, store, deployments, lock))
    }

    /// As [`Sysroot::open`] where there is a repository, whose `meta.json` is written anew where it is damaged.
    ///
    /// # Errors
    /// As [`Sysroot::open`]; those of [`Store::mend_meta`].
    pub fn open_to_repair(options: Options, purpose: &str) -> Result<Self> {
        let layout = prepared(&options)?;
        let lock = Lock::exclusive(&layout.lock(), purpose)?;
        let path = repository(layout.root());
        Store::mend_meta(&*options.fs, &path, options.algorithm)?;
        let store = Store::open(&path)?;
        let deployments = Deployments::new(layout);
        deployments.clean(&*options.fs)?;
        Ok(Self::locked(options, store, deployments, lock))
    }

    /// As [`Sysroot::open`] where there is a repository, also where SYSROOT is read-only or full: for a verdict, whose
    /// mark is on `$BOOT`. What an interrupted run left is tidied up by the next one that writes.
    ///
    /// # Errors
    /// [`Error::Busy`] where another run holds the lock.
    pub fn open_to_mark(options: Options, purpose: &str) -> Result<Self> {
        let layout = prepared(&options)?;
        let lock = Lock::exclusive_anyway(&layout.lock(), purpose)?;
        let store = Store::open(&repository(layout.root()))?;
        let deployments = Deployments::new(layout);
        let _ = deployments.clean(&*options.fs);
        Ok(Self::locked(options, store, deployments, lock))
    }

    fn locked(options: Options, store: Store, deployments: Deployments, lock: Lock) -> Self {
        let _ = arrived(&options, &deployments);
        Self {
            options,
            store,
            deployments,
            _lock: Some(lock),
        }
    }

    /// Opens SYSROOT to look at it, without lock and without changing anything.
    ///
    /// # Errors
    /// [`Error::Repository`] where there is none yet.
    pub fn look(options: Options) -> Result<Self> {
        let layout = Layout::new(&options.root);
        let store = Store::open(&repository(layout.root()))?;
        Ok(Self {
            options,
            store,
            deployments: Deployments::new(layout),
            _lock: None,
        })
    }

    /// Does what only looks while no other run changes anything: where this one has no lock itself, it has it for that
    /// long, or looks all the same after [`PATIENCE`].
    pub(crate) fn undisturbed<T>(&self, look: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let lock = || Lock::to_look(&self.layout().lock());
        let mut taken = self._lock.is_none().then(lock);
        while let Some(Err(Error::Busy { .. })) = taken
            && start.elapsed() < PATIENCE
        {
            std::thread::sleep(Duration::from_millis(20));
            taken = Some(lock());
        }
        look()
    }

    /// The deployment that runs, where SYSROOT is that of the running system and one does.
    pub fn booted(&self) -> Option<DeploymentId> {
        self.options.booted
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The boot loader.
    pub fn bootloader(&self) -> &dyn Bootloader {
        &*self.options.bootloader
    }

    /// Where the records are.
    pub fn deployments(&self) -> &Deployments {
        &self.deployments
    }

    /// What makes the changes.
    pub fn fs(&self) -> &dyn Fs {
        &*self.options.fs
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        self.deployments.layout()
    }

    /// The machine's key, made where there is none.
    pub(crate) fn key(&self) -> Result<SigningKey> {
        SigningKey::load_or_generate(self.fs(), &self.layout().keys())
    }

    /// Writes a line of history.
    pub(crate) fn remember(&self, event: &str, id: &DeploymentId, origin: &Origin, result: &str) -> Result<()> {
        let past = Event {
            time: jiff::Timestamp::now(),
            event: event.into(),
            id: Some(*id),
            digest: Some(origin.manifest),
            reference: Some(origin.reference.clone()),
            result: result.into(),
        };
        History::append(self.fs(), self.layout(), &past)
    }

    /// Whose signatures count.
    pub fn trust(&self) -> Result<TrustStore> {
        TrustStore::load(&self.layout().keys(), &self.options.trust)
    }

    /// Every deployment, newest first, those that cannot boot last. One that is broken is in the list with what is
    /// wrong, and is no failure.
    pub fn known(&self) -> Result<Vec<Known>> {
        let entries = self.bootloader().entries()?;
        let trust = self.trust();
        let images = self.store.images()?;
        let mut known = Vec::new();
        for found in self.deployments.list()? {
            let verified = match (&found.record, &trust) {
                (Ok(record), Ok(trust)) => record.verify(trust),
                (Err(e), _) | (_, Err(e)) => Err(Error::Deployment {
                    id: found.id.short(),
                    why: e.to_string(),
                }),
            };
            let problem = (!images.contains(&found.id) || !self.store.has_object(&found.id))
                .then(|| "its image is not in the repository; deploy it again".to_owned());
            known.push(self.stand(found.id, found.record, verified, problem, &entries));
        }
        self.find_lost(&mut known);
        known.sort_by_key(|k| k.standing.place());
        Ok(known)
    }

    /// Which of those without an entry had one: what the history says last of them is not that they are let go of.
    /// Where it cannot be read, all of them may have had one.
    fn find_lost(&self, known: &mut [Known]) {
        if known.iter().all(|k| k.entry.is_some()) {
            return;
        }
        let history = History::load(self.layout()).ok();
        for without in known.iter_mut().filter(|k| k.entry.is_none()) {
            let of_it = |event: &&Event| event.id == Some(without.id);
            without.standing.lost = history.as_ref().is_none_or(|history| {
                let last = history.events.iter().rev().find(of_it);
                last.is_some_and(|event| event.event != REMOVED)
            });
        }
    }

    /// Fails where `$BOOT` has no entry of any deployment of this sysroot although some had one: then it is not
    /// mounted, or another one. What has no entry there is needed all the same, and a new entry would boot nothing.
    ///
    /// # Errors
    /// [`Error::BootEntry`] with what to do.
    pub(crate) fn check_boot(&self, known: &[Known]) -> Result<()> {
        let bootloader = self.bootloader();
        match known.iter().any(|k| k.entry.is_some()) || !known.iter().any(|k| k.standing.lost) {
            true => Ok(()),
            false => Err(Error::BootEntry {
                entry: format!("folder {}", bootloader.boot_dir().display()),
                why:
                    "has no entry of this system, whose deployments had some: mount the boot partition there, or give \
                      another --boot DIR; where it was lost, `cfs-update upgrade --boot DIR` begins a new one"
                        .into(),
            }),
        }
    }

    fn stand(
        &self,
        id: DeploymentId,
        record: Result<Record>,
        verified: Result<Deployment>,
        problem: Option<String>,
        entries: &Entries,
    ) -> Known {
        let best = entries.of(&id);
        let works = best.is_some_and(BootEntry::works);
        let cut = |entry: &BootEntry| self.cut_kernel(entry, record.as_ref().ok()?.origin());
        let is_cut = best.and_then(cut).is_some();
        let standing = Standing {
            id,
            generation: best.map(|e| e.generation),
            bootable: verified.is_ok() && problem.is_none() && works && !is_cut,
            starts: works,
            booted: self.options.booted == Some(id),
            pinned: record.as_ref().is_ok_and(|r| r.origin().pinned),
            proven: best.is_some_and(|e| e.tries == Tries::Good),
            lost: false,
        };
        let started = self.started(&id, entries);
        let newer = started.filter(|started| best.is_none_or(|best| best.generation < started.generation));
        let mut entry = newer.or(best).cloned();
        if let Some(entry) = entry.as_mut().filter(|entry| entry.is_complete()) {
            entry.problem = cut(entry);
        }
        Known {
            id,
            record,
            verified,
            entry,
            problem,
            standing,
        }
    }

    /// What is wrong with kernel and initrd of an entry where their sizes show it, which the record has as they were
    /// written. Of another kernel than the record's, and in one of an earlier version, nobody knows.
    fn cut_kernel(&self, entry: &BootEntry, origin: &Origin) -> Option<String> {
        let written = origin.kernel_sizes?;
        let digest = entry.kernel?.to_string();
        let files = KernelFiles::on_boot(entry, self.bootloader().boot_dir());
        let found = files
            .sizes()
            .ok()
            .filter(|_| origin.boot_digest.as_ref() == Some(&digest))?;
        let differ = [
            ("linux", &entry.linux, found.linux, written.linux),
            ("initrd", &entry.initrd, found.initrd, written.initrd),
        ];
        let (key, path, found, written) = differ.into_iter().find(|(.., found, written)| found != written)?;
        Some(format!(
            "its {key}, {path}, has {found} bytes and not {written}, as it was written; `cfs-update fsck --repair` \
             writes it anew"
        ))
    }

    /// The entry that the running system was started with, if it is one of this deployment.
    fn started<'e>(&self, id: &DeploymentId, entries: &'e Entries) -> Option<&'e BootEntry> {
        let generation = self.options.started.filter(|_| self.options.booted == Some(*id))?;
        let mut own = entries.ours.iter().filter(|entry| entry.belongs_to(id));
        own.find(|entry| entry.generation == generation && entry.is_complete())
    }

    /// Which deployments have a role of their own.
    pub fn roles(&self, standing: &[Standing]) -> Roles {
        let next = plan::next_to_boot(standing).map(|d| d.id);
        let booted = self.options.booted;
        let noted = Staged::load(self.layout()).ok().flatten().map(|s| s.id);
        let never_ran = |id: &DeploymentId| Some(*id) != booted && (booted.is_some() || noted == Some(*id));
        Roles {
            booted,
            staged: next.filter(never_ran),
            rollback: plan::rollback_target(standing).ok().map(|d| d.id),
        }
    }

    /// The deployment that a user means, with all others.
    ///
    /// # Errors
    /// [`Error::Deployment`] where none or more than one fits.
    pub fn find(&self, text: &str) -> Result<(DeploymentId, Vec<Known>)> {
        let known = self.known()?;
        let standing = Self::standing(&known);
        let choices: Vec<_> = known.iter().map(Known::choice).collect();
        let id = select(text, &choices, &self.roles(&standing))?;
        Ok((id, known))
    }

    /// The deployment that a new one follows: the running one, or the one that boots next.
    pub fn current<'k>(&self, known: &'k [Known]) -> Option<&'k Known> {
        let booted = known.iter().find(|k| k.standing.booted);
        booted.or_else(|| Self::next(known))
    }

    /// Deployments, in the order of [`Sysroot::known`], as the decisions see them.
    pub fn standing(known: &[Known]) -> Vec<Standing> {
        known.iter().map(|k| k.standing.clone()).collect()
    }

    /// What boots next, of what [`Sysroot::known`] gives.
    pub(crate) fn next(known: &[Known]) -> Option<&Known> {
        let starts = known.iter().filter(|k| k.standing.starts);
        starts.max_by_key(|k| k.standing.generation)
    }

    /// Whether there is nothing to do for a deployment while its image is what is followed: it boots, and is what its
    /// manifest gives.
    pub(crate) fn is_sound(&self, known: &Known) -> bool {
        known.standing.bootable && self.remade(known).is_none()
    }

    /// What its manifest gives now, where that is another image than the deployment: it was made of a layer that was
    /// not what it should be, and is now (`fsck --repair`). Reads manifest and config, and no layer.
    pub fn remade(&self, known: &Known) -> Option<Remade> {
        let config = self.store.config_of(&known.manifest()?).ok().flatten()?;
        config.remade(&known.id).map(Remade)
    }

    /// The deployment whose /etc the administrator changed: the current one, or, where that is broken, the newest that
    /// has one. However broken its record is, what he did there goes on.
    pub(crate) fn with_etc<'k>(&self, known: &'k [Known]) -> Option<&'k Known> {
        let has_etc = |k: &&Known| self.deployments.has_etc(&k.id);
        self.current(known)
            .filter(has_etc)
            .or_else(|| known.iter().find(has_etc))
    }
}

impl Known {
    /// Its record, where it can be read.
    pub fn origin(&self) -> Option<&Origin> {
        self.record.as_ref().ok().map(Record::origin)
    }

    /// Whether the running system was started with its entry, not with one that has been replaced since.
    pub(crate) fn is_started(&self, sysroot: &Sysroot) -> bool {
        let entry = self.entry.as_ref().map(|entry| entry.generation);
        sysroot.options.started.is_none_or(|started| entry == Some(started))
    }

    /// The manifest that it was made from, where the record can be read.
    pub fn manifest(&self) -> Option<ManifestDigest> {
        self.origin().map(|origin| origin.manifest)
    }

    /// Whether it is of this image, followed by this name.
    pub(crate) fn is_of(&self, reference: &Reference, manifest: &ManifestDigest) -> bool {
        let of = |origin: &Origin| origin.manifest == *manifest && origin.reference == reference.with_transport();
        self.origin().is_some_and(of)
    }

    fn choice(&self) -> Choice<'_> {
        Choice {
            id: self.id,
            reference: self.origin().map(|origin| origin.reference.as_str()),
            manifest: self.manifest(),
        }
    }
}

/// The layout of SYSROOT, with its folders.
fn prepared(options: &Options) -> Result<Layout> {
    let layout = Layout::new(&options.root);
    if !fs::leads_to_dir(layout.root()) {
        return Err(Error::Usage(format!(
            "{} is not a folder; make it first, or give another --sysroot",
            layout.root().display()
        )));
    }
    layout.prepare(&*options.fs)?;
    Ok(layout)
}

/// What runs has an /etc of its own from now on; the note, which says what it may lack, is about it, and about the /etc
/// of what ran before. Where that cannot be written, the next time is early enough.
fn arrived(options: &Options, deployments: &Deployments) -> Result<()> {
    let Some(id) = options.booted else {
        return Ok(());
    };
    let (fs, layout) = (&*options.fs, deployments.layout());
    let before = Running::load(layout).ok().flatten().map(|running| running.id);
    let record = deployments.load(&id).ok();
    let origin = record.as_ref().map(Record::origin);
    if let Some(from) = origin.and_then(|origin| origin.etc_from) {
        let before = before.filter(|before| *before != id && deployments.has_etc(before));
        Staged::turn_to(fs, layout, id, before.unwrap_or(from), origin)?;
        deployments.update(fs, &id, |origin| origin.etc_from = None)?;
    }
    match before == Some(id) {
        true => Ok(()),
        false => Running::new(id).save(fs, layout),
    }
}

/// The repository of a SYSROOT.
pub fn repository(root: &Path) -> PathBuf {
    root.join("composefs")
}
