//! An opened SYSROOT: its store, its deployments, its boot loader, and the lock on all three.
//!
//! Invariant: who holds a [`Sysroot`] that was opened with [`Sysroot::open`] is its only writer; one from
//! [`Sysroot::look`] changes nothing. What [`Sysroot::known`] says is read afresh from disk each time: after a
//! power cut there is no other state that could disagree with it.

mod known;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::boot::Bootloader;
use crate::deployment::{Deployments, Event, History, Layout, Origin, Record, Running, Staged};
use crate::error::{Error, Result};
use crate::ids::{Algorithm, DeploymentId};
use crate::manifest::Platform;
use crate::registry;
use crate::signature::{SigningKey, TrustStore};
use crate::store::Store;
use crate::sys::fs::{self, Fs};
use crate::sys::lock::Lock;

pub use known::{Known, Remade};

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
