//! How a command opens the sysroot: which one, where `$BOOT` is, what runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs_bootloader::esp::{self, Place};
use cfs_bootloader::{Kind, cmdline, variables};
use cfs_core::deployment::Layout;
use cfs_core::ids::{Algorithm, DeploymentId};
use cfs_core::manifest::Platform;
use cfs_core::monitor::{Event, Monitor};
use cfs_core::store::Store;
use cfs_core::sys::fs::{self, RealFs};
use cfs_core::sys::lock::Lock;
use cfs_core::sysroot::{Options, Sysroot, repository};
use cfs_core::{Error, Result, upkeep};

use super::Context;
use crate::args::{BootDir, SpaceArgs};
use crate::reboot;

const PROC_LIMIT: u64 = 16 << 20;
/// How long another run is waited for, where that is done at all.
const WAIT: Duration = Duration::from_secs(60);

/// A place to work on.
struct Target {
    root: PathBuf,
    /// It is that of the running system.
    host: bool,
}

impl Context {
    /// For changes to what is there; takes the lock. Where nothing was ever deployed, nothing is made.
    pub fn open(&self, boot: &BootDir, purpose: &str) -> Result<Sysroot> {
        self.refuse_empty()?;
        Sysroot::open(self.options(boot, None)?, purpose)
    }

    /// Like [`Context::open`], also where `meta.json` of the repository is damaged, which is written anew then.
    pub fn open_to_repair(&self, boot: &BootDir, purpose: &str) -> Result<Sysroot> {
        self.refuse_empty()?;
        Sysroot::open_to_repair(self.options(boot, None)?, purpose)
    }

    /// Like [`Context::open`], but waits for another run to end: for what a shutdown does, which nobody repeats.
    pub fn open_waiting(&self, boot: &BootDir, purpose: &str) -> Result<Sysroot> {
        waiting(|| self.open(boot, purpose))
    }

    /// Like [`Context::open_waiting`], also where nothing but `$BOOT` can be written: for the verdict on a boot.
    pub fn open_to_mark(&self, boot: &BootDir, purpose: &str) -> Result<Sysroot> {
        self.refuse_empty()?;
        waiting(|| Sysroot::open_to_mark(self.options(boot, None)?, purpose))
    }

    /// For changes; a repository that is yet to be made gets this algorithm, an existing one must have it.
    pub fn open_with(&self, boot: &BootDir, algorithm: Option<Algorithm>, purpose: &str) -> Result<Sysroot> {
        Sysroot::open(self.options(boot, algorithm)?, purpose)
    }

    /// To look at it.
    pub fn look(&self, boot: &BootDir) -> Result<Sysroot> {
        Sysroot::look(self.options(boot, None)?)
    }

    /// To look at what there is, also where `$BOOT` cannot be found: then that is a warning, and nothing has an entry.
    pub fn look_anyway(&self, boot: &BootDir) -> Result<Sysroot> {
        let given = boot.boot.is_some() || self.boot.boot.is_some();
        let options = match self.options(boot, None) {
            Err(missing @ Error::BootEntry { .. }) if !given => {
                self.ui.event(Event::Warning(missing.to_string()));
                // Of the running system; there is nothing in its folder /boot while nothing is mounted there.
                self.options_at(&self.target()?, Place::Sysroot(Path::new("/")), None)?
            }
            options => options?,
        };
        Sysroot::look(options)
    }

    /// For changes to the store and nothing else, wherever `$BOOT` is; takes the lock.
    pub fn open_store(&self, algorithm: Option<Algorithm>, purpose: &str) -> Result<Sysroot> {
        let target = self.target()?;
        let place = Place::Sysroot(&target.root);
        Sysroot::open(self.options_at(&target, place, algorithm)?, purpose)
    }

    /// Runs `work`, which fetches into the store; where there is no room, says what would help. What is to be fetched
    /// is compared with what is free unless the user or the settings do not want that.
    pub fn fetching<T>(
        &self,
        sysroot: &Sysroot,
        space: SpaceArgs,
        work: impl FnOnce(&Sysroot) -> Result<T>,
    ) -> Result<T> {
        if space.ignore_space || !self.settings.store.check_space {
            sysroot.store().ignore_space();
        }
        work(sysroot).map_err(|error| upkeep::without_room(sysroot, error))
    }

    /// The layout of the sysroot.
    pub fn layout(&self) -> Result<Layout> {
        Ok(Layout::new(&self.target()?.root))
    }

    /// The layout of the sysroot and its lock, for changes to its state and nothing else.
    pub fn lock(&self, purpose: &str) -> Result<(Layout, Lock)> {
        let layout = Layout::new(&self.target()?.root);
        layout.prepare(&RealFs)?;
        let lock = Lock::exclusive(&layout.lock(), purpose)?;
        Ok((layout, lock))
    }

    /// The repository, to look at it; `None` where there is none.
    pub fn existing_store(&self) -> Result<Option<Store>> {
        match self.has_repository()? {
            true => Store::open(&repository(&self.target()?.root)).map(Some),
            false => Ok(None),
        }
    }

    /// Where the repository is, or would be.
    pub fn repository(&self) -> Result<PathBuf> {
        self.target().map(|target| repository(&target.root))
    }

    /// Whether a repository was ever made here.
    pub fn has_repository(&self) -> Result<bool> {
        let root = self.target()?.root;
        if !root.is_dir() {
            return Err(Error::Usage(format!(
                "{} is not a folder; give another --sysroot",
                root.display()
            )));
        }
        let path = repository(&root);
        Ok(fs::exists(&path) && !Store::is_unfinished(&path))
    }

    /// The store alone, for looking at images.
    pub fn store(&self) -> Result<Store> {
        Store::open(&repository(&self.target()?.root))
    }

    /// Refuses a sysroot where nothing was ever deployed.
    fn refuse_empty(&self) -> Result<()> {
        if self.has_repository()? {
            return Ok(());
        }
        let why = "nothing is deployed here; `cfs-update switch IMAGE` makes the first deployment";
        Err(Error::Repository {
            path: repository(&self.target()?.root),
            why: why.into(),
        })
    }

    /// Whether the sysroot is the running system's.
    pub fn is_host(&self) -> bool {
        self.target().is_ok_and(|target| target.host)
    }

    /// Refuses to reboot for a sysroot that is not the running system's.
    pub fn check_apply(&self, apply: bool) -> Result<()> {
        if apply && !self.target()?.host {
            let why = "--apply reboots this machine, but --sysroot is that of another system";
            return Err(Error::Usage(why.into()));
        }
        Ok(())
    }

    /// For a root that is being installed, with its `$BOOT`.
    pub fn options_for(&self, root: &Path, boot: &Path, algorithm: Option<Algorithm>) -> Result<Options> {
        let target = Target {
            root: root.to_path_buf(),
            host: false,
        };
        self.options_at(&target, Place::Given(boot), algorithm)
    }

    fn target(&self) -> Result<Target> {
        let booted = default_root();
        let root = match &self.sysroot {
            None => booted.clone(),
            Some(given) => std::path::absolute(given).map_err(|e| Error::io("find", given, e))?,
        };
        let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        Ok(Target {
            host: same(&root, &booted),
            root,
        })
    }

    fn options(&self, boot: &BootDir, algorithm: Option<Algorithm>) -> Result<Options> {
        let target = self.target()?;
        let given = boot.boot.as_deref().or(self.boot.boot.as_deref());
        let set = self.settings.boot.dir.as_deref().filter(|_| target.host);
        let place = match given.or(set) {
            Some(path) => Place::Given(path),
            None if target.host => Place::Host(Path::new("/")),
            None => Place::Sysroot(&target.root),
        };
        Ok(Options {
            boot_named: given.is_some(),
            ..self.options_at(&target, place, algorithm)?
        })
    }

    fn options_at(&self, target: &Target, boot: Place<'_>, algorithm: Option<Algorithm>) -> Result<Options> {
        let fs: Arc<RealFs> = Arc::default();
        // One that cannot be opened says so when the sysroot is.
        let existing = || {
            Store::open(&repository(&target.root))
                .ok()
                .map(|store| store.algorithm())
        };
        let tries = u8::try_from(self.settings.boot.tries).unwrap_or(u8::MAX);
        Ok(Options {
            root: target.root.clone(),
            bootloader: cfs_bootloader::open(Kind::default(), esp::locate(boot)?, fs.clone()),
            fs,
            algorithm: algorithm.or_else(existing).unwrap_or(self.settings.store.algorithm),
            threads: self.threads(),
            keep: self.settings.deployments.keep,
            tries: Some(tries),
            platform: Platform::host(),
            booted: if target.host { running()? } else { None },
            started: self.started().filter(|_| target.host),
            boot_id: super::health::boot_id().ok().flatten(),
            root_argument: None,
            boot_named: false,
            kernel_arguments: Vec::new(),
            trust: self.key_folders(),
            registry: self.registry(),
        })
    }

    /// The administrator's and the vendor's folders of keys.
    pub fn key_folders(&self) -> Vec<PathBuf> {
        let of = |top| self.config_root.join(top).join("cfs-update/keys");
        ["etc", "usr/lib"].map(of).into()
    }

    /// The generation of the boot entry that was started; after a soft reboot that is another deployment's.
    fn started(&self) -> Option<u64> {
        let folder = self.config_root.join(variables::FOLDER);
        variables::started(&folder).filter(|_| !reboot::was_soft())
    }
}

/// Opens, for as long as another run has the lock and there is patience left.
fn waiting(open: impl Fn() -> Result<Sysroot>) -> Result<Sysroot> {
    let deadline = Instant::now() + WAIT;
    loop {
        match open() {
            Err(Error::Busy { .. }) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            opened => return opened,
        }
    }
}

fn default_root() -> PathBuf {
    let physical = Path::new("/sysroot");
    if fs::is_dir(physical) {
        physical.into()
    } else {
        "/".into()
    }
}

/// The deployment that runs, if one does.
fn running() -> Result<Option<DeploymentId>> {
    let mounts = fs::read_text(Path::new("/proc/self/mountinfo"), PROC_LIMIT)?.unwrap_or_default();
    let arguments = fs::read_text(Path::new("/proc/cmdline"), PROC_LIMIT)?.unwrap_or_default();
    Ok(booted(&mounts, &arguments))
}

/// From `/proc/self/mountinfo`, where the root's source names the image also after a soft reboot (which leaves the
/// kernel's command line as it was); else from the command line, unless the root is plainly something else.
fn booted(mountinfo: &str, command_line: &str) -> Option<DeploymentId> {
    let root = mountinfo
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == Some("/"))?;
    let mut behind = root.split(" - ").nth(1)?.split(' ');
    let (kind, source) = (behind.next()?, behind.next()?);
    let named = ["composefs:", "transient:composefs="]
        .iter()
        .find_map(|p| source.strip_prefix(p));
    if let Some(id) = named.and_then(|hex| hex.parse().ok()) {
        return Some(id);
    }
    if kind != "overlay" {
        return None;
    }
    cmdline::digests(&cmdline::split(command_line.trim()))
        .first()
        .map(|argument| argument.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str) -> String {
        format!("21 1 0:20 / /proc rw - proc proc rw\n30 1 0:33 / / ro,relatime shared:1 - {kind} {source} ro\n")
    }

    #[test]
    fn the_mounted_root_wins_over_a_stale_command_line() {
        let (old, new) = ("ab".repeat(32), "cd".repeat(32));
        let line = format!("quiet composefs.digest=v1-sha256-12:{old}\n");
        let booted = |kind: &str, source: &str| booted(&mount(kind, source), &line).map(|id| id.to_hex());
        assert_eq!(booted("overlay", &format!("composefs:{new}")), Some(new.clone()));
        assert_eq!(booted("overlay", &format!("transient:composefs={new}")), Some(new));
        assert_eq!(booted("overlay", "composefs"), Some(old));
        assert_eq!(booted("ext4", "/dev/sda1"), None);
    }
}
