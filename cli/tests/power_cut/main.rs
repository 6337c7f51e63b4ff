//! Promise 1, shown on the whole update: the power is cut at every operation of an upgrade, a rollback and others, and
//! what was not synced is lost. After each cut old or new boots, the same command succeeds, and `fsck` finds nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod boots;
#[allow(dead_code, reason = "made for the end-to-end tests")]
#[path = "../e2e/common/mod.rs"]
mod common;
mod entries;
mod installation;
mod rollbacks;
#[path = "../support/mod.rs"]
mod support;
mod updates;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use cfs_core::boot::Tries;
use cfs_core::ids::DeploymentId;
use cfs_core::monitor::Quiet;
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::sysroot::{Options, Sysroot};
use cfs_core::testing::{CrashFs, Loss};
use cfs_core::update::{self, Outcome, Wishes};
use cfs_core::{Error, Result, finalize, plan, rollback, upkeep};

use common::{layout, scratch};

/// One test at a time: a child process that starts (`cp`) shares for a moment the lock that the other test holds.
static ALONE: Mutex<()> = Mutex::new(());

fn options(root: &Path, fs: Arc<dyn Fs>) -> Options {
    support::options(root, fs, None)
}

fn upgrade(root: &Path, fs: Arc<dyn Fs>) -> Result<Outcome> {
    let sysroot = Sysroot::open(options(root, fs), "upgrade")?;
    update::upgrade(&sysroot, Wishes::default(), &Quiet)
}

/// A machine that runs this deployment.
fn running(root: &Path, fs: Arc<dyn Fs>, booted: DeploymentId) -> Result<Sysroot> {
    let options = support::options(root, fs, Some(booted));
    Sysroot::open(options, "test")
}

/// What boots next: the boot loader takes the highest generation that has tries left, without asking whether it is
/// whole. So it must be: kernel, initrd, record, signature, image and /etc.
fn next(root: &Path) -> DeploymentId {
    let sysroot = Sysroot::look(options(root, Arc::new(RealFs))).unwrap();
    let known = sysroot.known().unwrap();
    let standing: Vec<_> = known.iter().map(|k| k.standing.clone()).collect();
    let next = plan::next_to_boot(&standing).expect("something boots").id;
    let entries = sysroot.bootloader().entries().unwrap().ours;
    let has_tries = entries.iter().filter(|entry| !matches!(entry.tries, Tries::Bad { .. }));
    let taken = has_tries.max_by_key(|entry| entry.generation).unwrap();
    assert_eq!(
        (taken.id, &taken.problem),
        (Some(next), &None),
        "the boot loader takes a whole entry"
    );
    let found = known.iter().find(|k| k.id == next).unwrap();
    let etc = found.verified.as_ref().unwrap().etc();
    assert!(
        etc.join("app.conf").is_file() && etc.join("mine").is_file(),
        "its /etc is complete"
    );
    let broken: Vec<_> = sysroot.bootloader().check().unwrap();
    let entry = &found.entry.as_ref().unwrap().file;
    assert!(
        !broken
            .iter()
            .any(|finding| finding.damage && finding.what.contains(entry.as_str())),
        "{broken:?}"
    );
    next
}

fn fsck(root: &Path) {
    let sysroot = Sysroot::look(options(root, Arc::new(RealFs))).unwrap();
    let mut findings = Vec::new();
    let checked = upkeep::fsck(&sysroot, &mut |finding| findings.push(finding)).unwrap();
    assert_eq!(checked.damaged, 0, "{findings:?}");
}

struct Bench {
    _keep: tempfile::TempDir,
    base: PathBuf,
    before: PathBuf,
}

impl Bench {
    /// A machine with version 1 and a file of the admin's, and version 2 to be had.
    fn new() -> (Self, DeploymentId) {
        let keep = scratch();
        let base = keep.path().to_path_buf();
        let before = base.join("before");
        std::fs::create_dir_all(before.join("boot")).unwrap();
        let images = base.join("images");
        let reference = layout::small(1, "kernel 1", 3, 5000).finish().layout(&images, "os");
        let sysroot = Sysroot::open(options(&before, Arc::new(RealFs)), "switch").unwrap();
        update::switch(&sysroot, &reference.parse().unwrap(), Wishes::default(), &Quiet).unwrap();
        drop(sysroot);
        let id = {
            let sysroot = Sysroot::look(options(&before, Arc::new(RealFs))).unwrap();
            let known = sysroot.known().unwrap();
            std::fs::write(known[0].verified.as_ref().unwrap().etc().join("mine"), "my own").unwrap();
            known[0].id
        };
        layout::small(2, "kernel 2", 3, 5000).finish().layout(&images, "os");
        let bench = Self {
            _keep: keep,
            base,
            before,
        };
        (bench, id)
    }

    /// The same with version 2 deployed, which boots next; the ids of both.
    fn updated() -> (Self, DeploymentId, DeploymentId) {
        let (mut bench, old) = Self::new();
        let (root, fs) = bench.machine("two");
        upgrade(&root, Arc::new(fs)).unwrap();
        let new = next(&root);
        bench.before = root;
        (bench, old, new)
    }

    /// A fresh copy of the machine, and a file system whose power goes off.
    fn machine(&self, name: &str) -> (PathBuf, CrashFs) {
        let (root, stash) = (self.base.join(name), self.base.join(format!("{name}.stash")));
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&self.before)
            .arg(&root)
            .status()
            .unwrap();
        assert!(copied.success());
        std::fs::create_dir(&stash).unwrap();
        let fs = CrashFs::new(&root, &stash).with_fat(&root.join("boot"));
        (root, fs)
    }

    /// Cuts `run` after each of its operations; `check` sees what is left.
    fn cut_everywhere(&self, run: impl Fn(&Path, Arc<dyn Fs>) -> Result<()>, check: impl Fn(&Path, &str)) -> usize {
        let (root, fs) = self.machine("whole");
        let whole = Arc::new(fs);
        run(&root, whole.clone()).unwrap();
        let operations = whole.log();
        for (at, operation) in operations.iter().enumerate() {
            for loss in [Loss::Content, Loss::Names] {
                let name = format!("cut-{at}-{loss:?}");
                let (root, fs) = self.machine(&name);
                let fs = Arc::new(fs.cut_after(at));
                let _ = run(&root, fs.clone());
                fs.lose(loss);
                check(&root, &format!("{loss:?}, before {operation}"));
                std::fs::remove_dir_all(&root).unwrap();
                std::fs::remove_dir_all(self.base.join(format!("{name}.stash"))).unwrap();
            }
        }
        std::fs::remove_dir_all(&root).unwrap();
        operations.len()
    }
}
