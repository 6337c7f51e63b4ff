//! Boot entries, whoever reads them: the trait that every boot loader implements, and what goes in and out.
//!
//! Invariant (promise 1): at every instant `$BOOT` holds one complete entry whose kernel and initrd exist and are
//! durable. It holds because of the order that the types ask for: [`Bootloader::prepare`] writes and syncs the kernel
//! files, only that makes a [`StagedEntry`], only a [`StagedEntry`] can be published, publishing adds a file and
//! replaces none, and [`Bootloader::remove`] takes entries away before the files that they name. A power cut between
//! any two of those steps leaves the entries of before.
//!
//! Called by the holder of the sysroot's lock only. Entries that are not ours are listed and never touched.

pub mod cmdline;
pub mod host;
pub mod kargs;
pub mod kernel;
pub mod kernel_files;
pub mod version;

use std::fmt::Debug;
use std::path::Path;

use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::ids::DeploymentId;

pub use host::HostArguments;
pub use kernel_files::{FileSource, KernelDigest, KernelFiles};

/// What a boot loader can do. There is no default: each one says so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// It counts the tries of an entry down before booting it and prefers others once none is left. Without it, no
    /// automatic way back is promised.
    pub counts_tries: bool,
    /// Making an entry the default is one step that a power cut cannot divide.
    pub atomic: bool,
}

/// A boot loader: where entries are written, listed and removed.
pub trait Bootloader: Debug + Send + Sync {
    /// For messages: `systemd-boot`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn caps(&self) -> Caps;

    /// `$BOOT` as mounted: the folder that paths inside entries are relative to.
    fn boot_dir(&self) -> &Path;

    /// All entries. One that is broken is listed with its problem, and is no failure.
    fn entries(&self) -> Result<Entries>;

    /// Whether `$BOOT` can be written now, before anything is fetched for it. Writes nothing.
    ///
    /// # Errors
    /// [`Error::BootEntry`] that says what to do about it.
    fn check_writable(&self) -> Result<()>;

    /// What staging these kernel files would write, and what is free. Writes nothing.
    fn room(&self, kernel: &KernelFiles) -> Result<Room>;

    /// Writes and syncs the kernel files, unless equal ones are there, and says what the entry will be.
    ///
    /// Boot loaders implement this; callers use [`stage`](#method.stage), which makes a [`StagedEntry`] of it.
    ///
    /// # Errors
    /// [`Error::Space`] before anything is written, when `$BOOT` is too full.
    fn prepare(&self, new: &NewEntry) -> Result<PreparedEntry>;

    /// Adds the entry, durable when this returns. From now on it is the one that boots next.
    fn publish(&self, staged: StagedEntry) -> Result<BootEntry>;

    /// What removing the entries of these deployments takes away, kernel files that nobody else needs included.
    ///
    /// # Errors
    /// [`Error::BootEntry`] when no complete entry would be left.
    fn plan_removal(&self, ids: &[DeploymentId]) -> Result<Removal>;

    /// What interrupted or superseded work left behind: temporary files, entries of a deployment that has a newer
    /// complete one, kernel files that no entry names. One that booted well stays until a newer one with another
    /// command line has done so. Not to be called between staging and publishing.
    fn plan_cleanup(&self) -> Result<Removal>;

    /// Beside that, the entries of this system that boot none of the `known` deployments. Of this system are those
    /// whose `root=` is that of a known one's entry; none is taken when no other one would be left that works.
    fn plan_sweep(&self, known: &[DeploymentId]) -> Result<Removal>;

    /// Carries a plan out: entries first, synced, then kernel files that still no entry names.
    fn remove(&self, plan: &Removal) -> Result<()>;

    /// Says of an entry of ours that it booted well, or that it must not be booted any more; durable when this returns.
    /// Returns its new file name. Nothing but its counter changes; marking twice is success.
    fn mark(&self, entry: &BootEntry, mark: Mark) -> Result<String>;

    /// Reads everything that entries refer to and names what is broken.
    fn check(&self) -> Result<Vec<Finding>>;

    /// Where an image for this architecture (as its config says it: `amd64`) keeps the loader's own program, best
    /// first; none where none is known.
    fn programs(&self, architecture: &str) -> Vec<String>;

    /// Puts the loader's own program with its settings onto the EFI system partition mounted at `esp`, durable when
    /// this returns; what belongs to others stays. No entry is made. What is worth a note comes back.
    fn install(&self, esp: &Path, architecture: &str, program: &[u8]) -> Result<Vec<String>>;
}

impl dyn Bootloader + '_ {
    /// Writes and syncs the kernel files of `new` and prepares its entry; [`Bootloader::publish`] makes it visible.
    /// The deployment is the permission: its record is durable and its signature was verified.
    ///
    /// # Errors
    /// [`Error::Space`] before anything is written, when `$BOOT` is too full; [`Error::BootEntry`] for an entry of
    /// another deployment, or options that cannot be written into an entry.
    pub fn stage(&self, deployment: &Deployment, new: &NewEntry) -> Result<StagedEntry> {
        new.validate()?;
        if *deployment.id() != new.id {
            return Err(Error::BootEntry {
                entry: format!("of deployment {}", new.id.short()),
                why: format!("it was to be staged as that of deployment {}", deployment.id().short()),
            });
        }
        Ok(StagedEntry {
            id: new.id,
            generation: new.generation,
            prepared: self.prepare(new).map_err(|e| new.explain(e))?,
        })
    }
}

/// An entry to be made.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// What it boots.
    pub id: DeploymentId,
    /// Higher than that of every other entry: [`Entries::next_generation`].
    pub generation: u64,
    /// For the menu: `PRETTY_NAME` of the image's os-release, without version or id.
    pub title: String,
    /// The image's version for the menu; empty where it has none.
    pub version: String,
    /// The kernel command line, one argument an item, quoted as on the command line
    /// ([`cmdline::split`]); the `composefs.digest=` argument included.
    pub options: Vec<String>,
    /// Kernel and initrd.
    pub kernel: KernelFiles,
    /// How often it may be tried before it counts as bad, 1..=99; `None` for one that is known to be good.
    pub tries: Option<u8>,
}

impl NewEntry {
    /// A further entry for the deployment of `old`, as a rollback makes it: same kernel, same options, same title.
    ///
    /// One that was changed since it was written has to prove itself whatever `tries` says, with 3 tries.
    ///
    /// # Errors
    /// [`Error::BootEntry`] when `old` is broken.
    pub fn again(old: &BootEntry, boot_dir: &Path, generation: u64, tries: Option<u8>) -> Result<Self> {
        let refuse = |why: &str| Error::BootEntry {
            entry: old.file.clone(),
            why: why.into(),
        };
        if let Some(problem) = &old.problem {
            return Err(refuse(&format!("{problem}; no further entry can be made from it")));
        }
        let id = old
            .id
            .ok_or_else(|| refuse("it does not say which deployment it boots"))?;
        if cmdline::digests(&old.options).len() != 1 {
            return Err(refuse(
                "it names more than one image; delete its deployment and deploy it again",
            ));
        }
        Ok(Self {
            id,
            generation,
            title: old.title.clone(),
            version: String::new(),
            options: old.options.clone(),
            kernel: KernelFiles::on_boot(old, boot_dir),
            tries: tries.or(old.changed.then_some(3)),
        })
    }

    /// What the boot loader shows: title, version and the short id.
    pub fn menu_title(&self) -> String {
        let short = self.id.short();
        if self.title.contains(&short) {
            return self.title.clone();
        }
        let version = match self.version.trim() {
            "" => String::new(),
            version if self.title.contains(version) => String::new(),
            version => format!(" {version}"),
        };
        format!("{}{version} ({short})", self.title.trim())
    }

    /// Says what to do where the kernel on `$BOOT` is not what it should be.
    fn explain(&self, error: Error) -> Error {
        match (error, self.kernel.expected) {
            (Error::Mismatch { what, .. }, Some(digest)) => Error::BootEntry {
                entry: format!("of deployment {}", self.id.short()),
                why: format!(
                    "{what}, on $BOOT in cfs-update/{digest}, are damaged; `cfs-update fsck --repair` writes them anew"
                ),
            },
            (error, _) => error,
        }
    }

    fn validate(&self) -> Result<()> {
        let refuse = |why: String| Error::BootEntry {
            entry: format!("of deployment {}", self.id.short()),
            why,
        };
        if self.tries.is_some_and(|tries| !(1..=99).contains(&tries)) {
            return Err(refuse("tries must be 1 to 99".into()));
        }
        for text in [&self.title, &self.version] {
            if text.chars().any(char::is_control) {
                return Err(refuse(format!(
                    "{text:?} has a control character and cannot be shown in a menu"
                )));
            }
        }
        if self.options.first().is_some_and(|first| first.starts_with('"')) {
            // systemd-boot takes a pair of quotes around the whole line off.
            return Err(refuse(
                "its first kernel argument begins with a quote; put another one first".into(),
            ));
        }
        for option in &self.options {
            cmdline::check(option).map_err(|why| refuse(format!("kernel argument {option:?}: {why}")))?;
        }
        let named = cmdline::digests(&self.options);
        if !named.iter().any(|digest| digest.id == self.id) {
            return Err(refuse("its kernel arguments do not name its image".into()));
        }
        Ok(())
    }
}

/// What a boot loader is about to publish; made by [`Bootloader::prepare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedEntry {
    /// Its file name or, where entries are no files, its key.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
    /// The kernel files it needs, as paths below `$BOOT`; they are durable.
    pub needs: Vec<String>,
}

/// An entry whose kernel files are durable: the permission to publish it.
///
/// Made by [`stage`](trait.Bootloader.html#method.stage) only.
#[derive(Debug)]
pub struct StagedEntry {
    id: DeploymentId,
    generation: u64,
    prepared: PreparedEntry,
}

impl StagedEntry {
    /// What it boots.
    pub fn id(&self) -> DeploymentId {
        self.id
    }

    /// Its generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What will be published.
    pub fn prepared(&self) -> &PreparedEntry {
        &self.prepared
    }
}

/// What the tries of an entry say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tries {
    /// Not counted, or no longer: it has booted well.
    Good,
    /// It may be tried `left` more times and was tried `done` times.
    Left {
        /// 1 or more.
        left: u32,
        /// 0 as long as it was never booted.
        done: u32,
    },
    /// None is left: it boots only where nothing else can.
    Bad {
        /// How often it was tried.
        done: u32,
    },
}

/// What a boot showed of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It booted well: its tries are counted no longer.
    Good,
    /// It did not: no try is left.
    Bad,
}

/// An entry of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// What it boots: the digest in its options that fits its name. `None` where there is none.
    pub id: Option<DeploymentId>,
    /// The first 12 digits of the id, from its name.
    pub short: String,
    /// The higher, the newer.
    pub generation: u64,
    /// Good, bad or not known yet.
    pub tries: Tries,
    /// As shown in the menu.
    pub title: String,
    /// Path of the kernel, relative to `$BOOT`; empty where the entry names none.
    pub linux: String,
    /// Path of the initrd, relative to `$BOOT`; empty where the entry names none.
    pub initrd: String,
    /// The digest of both that its folder is named by.
    pub kernel: Option<KernelDigest>,
    /// Kernel arguments, as written.
    pub options: Vec<String>,
    /// File name below `loader/entries`.
    pub file: String,
    /// Whether it is no longer as it was written: edited, or damaged. It may boot all the same.
    pub changed: bool,
    /// Why it cannot boot; `None` for a complete one.
    pub problem: Option<String>,
}

impl BootEntry {
    /// Whether it boots this deployment.
    pub fn belongs_to(&self, id: &DeploymentId) -> bool {
        match &self.id {
            Some(own) => own == id,
            None => self.short == id.short(),
        }
    }

    /// Whether kernel and initrd are there and all is well formed.
    pub fn is_complete(&self) -> bool {
        self.problem.is_none()
    }

    /// Whether its tries are used up.
    pub fn is_bad(&self) -> bool {
        matches!(self.tries, Tries::Bad { .. })
    }

    /// Whether it boots and has not been found bad.
    pub fn works(&self) -> bool {
        self.is_complete() && !self.is_bad()
    }
}

/// An entry of somebody else; never changed, never removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignEntry {
    /// File name.
    pub file: String,
    /// As shown in the menu.
    pub title: String,
    /// What is odd about it.
    pub problem: Option<String>,
}

/// All entries of `$BOOT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Ours, in the order in which the boot loader prefers them: the first complete one boots next, unless another
    /// one is chosen in the menu.
    pub ours: Vec<BootEntry>,
    /// Those of others, in the same order.
    pub foreign: Vec<ForeignEntry>,
    /// File name of the entry that boots next, as far as files tell.
    pub next: Option<String>,
    /// What makes the boot loader take something else than the newest entry of ours, or will after an update: settings
    /// and variables of its own, entries of others; each with what to do.
    pub overrides: Vec<String>,
    /// What else the administrator should know: entries that were edited, leftovers.
    pub warnings: Vec<String>,
}

impl Entries {
    /// The entry that boots next, if it is ours.
    pub fn next_entry(&self) -> Option<&BootEntry> {
        self.ours.iter().find(|entry| Some(&entry.file) == self.next.as_ref())
    }

    /// The best entry of a deployment: complete before broken, one with tries left before one without, then the newest;
    /// of two copies of one, as a power cut while it was marked may leave them, the one that the boot loader prefers.
    pub fn of(&self, id: &DeploymentId) -> Option<&BootEntry> {
        let own = self.ours.iter().filter(|entry| entry.belongs_to(id));
        let rank = |entry: &BootEntry| match entry.tries {
            Tries::Bad { .. } => 0,
            Tries::Left { .. } => 1,
            Tries::Good => 2,
        };
        own.max_by_key(|entry| (entry.is_complete(), rank(entry) > 0, entry.generation, rank(entry)))
    }

    /// A generation higher than that of every entry, broken ones included, and than `highest`, the highest that was
    /// ever given out here.
    ///
    /// # Errors
    /// [`Error::BootEntry`] when there is no higher number.
    pub fn next_generation(&self, highest: u64) -> Result<u64> {
        let newest = self
            .ours
            .iter()
            .map(|entry| entry.generation)
            .max()
            .unwrap_or(0)
            .max(highest);
        newest.checked_add(1).ok_or_else(|| Error::BootEntry {
            entry: format!("of generation {newest}"),
            why: "there is no higher generation; remove that entry".into(),
        })
    }
}

/// Bytes on `$BOOT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What would be written, in whole blocks; nothing for kernel files that are there already.
    pub needed: u64,
    /// What is free.
    pub free: u64,
    /// Whether equal kernel files are there already.
    pub shared: bool,
}

/// What is to be removed from `$BOOT`; paths relative to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Entries and temporary files, removed and synced first.
    pub files: Vec<String>,
    /// Folders of kernel files.
    pub folders: Vec<String>,
    /// Bytes that become free.
    pub bytes: u64,
}

impl Removal {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folders.is_empty()
    }
}

/// Something that `fsck` says about `$BOOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The entry, file or folder, relative to `$BOOT`.
    pub what: String,
    /// What is wrong with it, and what to do.
    pub why: String,
    /// Whether an entry cannot boot because of it; otherwise it is only worth knowing.
    pub damage: bool,
}

#[cfg(test)]
mod tests;
