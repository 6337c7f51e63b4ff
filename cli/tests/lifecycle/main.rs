//! Promise 3, shown on the whole library: what a machine does with good, bad and broken updates, boot after boot. Its
//! boot loader is a model that takes the entry with the highest generation that has tries left and counts in names, as
//! systemd-boot does; everything else is real.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[allow(dead_code, reason = "made for the end-to-end tests")]
#[path = "../e2e/common/mod.rs"]
mod common;
mod downloads;
mod etc;
mod kernel_arguments;
mod kernels;
mod last_merge;
mod rollbacks;
#[path = "../support/mod.rs"]
mod support;
mod unwritable;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs_bootloader::counter::CountedName;
use cfs_core::boot::host::Edit;
use cfs_core::boot::{Tries, cmdline};
use cfs_core::deployment::{Downloaded, Failed, FailedDigests, Staged};
use cfs_core::finalize::{self, Finalized};
use cfs_core::health::{self, HealthReport, Outcome as Checked, Ran, Verdict};
use cfs_core::ids::{DeploymentId, ManifestDigest};
use cfs_core::monitor::Quiet;
use cfs_core::sys::fs::RealFs;
use cfs_core::sysroot::{Options, Sysroot};
use cfs_core::update::{self, Done, Outcome, Wishes};
use cfs_core::{Error, arguments, deploy, outlook, rollback, upkeep};

use common::layout;
use common::scratch;
use support::options;

const NONE: Wishes = Wishes {
    allow_downgrade: false,
    retry: false,
    automatic: false,
    download_only: false,
};
const AUTOMATIC: Wishes = Wishes {
    automatic: true,
    ..NONE
};
const RETRY: Wishes = Wishes { retry: true, ..NONE };
const DOWNLOAD: Wishes = Wishes {
    download_only: true,
    ..NONE
};

struct Machine {
    _keep: tempfile::TempDir,
    root: PathBuf,
    images: PathBuf,
    booted: Option<DeploymentId>,
    /// The generation of the entry that it was started with.
    started: Option<u64>,
}

impl Machine {
    /// Installed with version 1, which was booted and found good.
    fn new() -> Self {
        let mut machine = Self::installed();
        machine.boot();
        assert!(matches!(machine.check(None), Verdict::Good { .. }));
        machine
    }

    /// Installed with version 1, which was never booted.
    fn installed() -> Self {
        let keep = scratch();
        let machine = Self {
            root: keep.path().join("root"),
            images: keep.path().join("images"),
            _keep: keep,
            booted: None,
            started: None,
        };
        std::fs::create_dir_all(machine.root.join("boot")).unwrap();
        let reference = machine.release(1);
        update::switch(&machine.open(), &reference.parse().unwrap(), Wishes::default(), &Quiet).unwrap();
        machine
    }

    /// Moves the tag to this version.
    fn release(&self, version: u32) -> String {
        layout::small(version, "same kernel", 2, 3000)
            .finish()
            .layout(&self.images, "os")
    }

    /// The same with a kernel of its own.
    fn release_with_kernel(&self, version: u32) -> String {
        layout::small(version, &format!("kernel {version}"), 2, 3000)
            .finish()
            .layout(&self.images, "os")
    }

    /// What another test starts (mount) has our lock from the fork until it is that program, so it is waited for.
    fn open(&self) -> Sysroot {
        let started = self.started;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let options = options(&self.root, Arc::new(RealFs), self.booted);
            match Sysroot::open(Options { started, ..options }, "test") {
                Err(Error::Busy { .. }) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                opened => return opened.unwrap(),
            }
        }
    }

    fn upgrade(&self, wishes: Wishes) -> Outcome {
        update::upgrade(&self.open(), wishes, &Quiet).unwrap()
    }

    fn staged(&self, wishes: Wishes) -> Done {
        match self.upgrade(wishes) {
            Outcome::Staged(done) => done,
            other => panic!("{other:?}"),
        }
    }

    /// Whether it was here before.
    fn downloaded(&self) -> (Downloaded, bool) {
        match self.upgrade(DOWNLOAD) {
            Outcome::Downloaded { image, already } => (image, already),
            other => panic!("{other:?}"),
        }
    }

    fn take_downloaded(&self, wishes: Wishes) -> Result<Outcome, Error> {
        update::from_downloaded(&self.open(), wishes, &Quiet)
    }

    fn noted(&self) -> Option<Downloaded> {
        Downloaded::load(self.open().deployments().layout()).unwrap()
    }

    /// All names of our own in the store.
    fn names(&self) -> Vec<String> {
        let sysroot = self.open();
        let (tags, images) = (sysroot.store().tags().unwrap(), sysroot.store().image_names().unwrap());
        let images = images.into_keys().map(|name| format!("image {name}"));
        tags.into_keys().chain(images).collect()
    }

    fn entries(&self) -> Vec<String> {
        let entries = self.open().bootloader().entries().unwrap().ours;
        entries.into_iter().map(|entry| entry.file).collect()
    }

    /// The boot loader takes an entry and counts.
    fn boot(&mut self) -> DeploymentId {
        let sysroot = self.open();
        let entries = sysroot.bootloader().entries().unwrap();
        let entry = entries.next_entry().expect("something boots");
        let folder = self.root.join("boot/loader/entries");
        let tried = CountedName::parse(&entry.file).tried().to_string();
        std::fs::rename(folder.join(&entry.file), folder.join(tried)).unwrap();
        let (id, generation) = (entry.id.unwrap(), entry.generation);
        drop(sysroot);
        (self.booted, self.started) = (Some(id), Some(generation));
        id
    }

    /// What boots next is started and counted, and is gone before a command of ours is run in it.
    fn boot_unseen(&mut self) {
        let before = (self.booted, self.started);
        self.boot();
        (self.booted, self.started) = before;
    }

    /// What the health service does; `failure`: the check fails with this.
    fn check(&self, failure: Option<&str>) -> Verdict {
        let outcome = failure.map_or(Checked::Passed, |why| Checked::Failed { why: why.into() });
        let ran = Ran {
            check: "/etc/cfs-update/health.d/10-app".into(),
            required: true,
            outcome,
            attempts: 1,
            seconds: 0,
        };
        let report = HealthReport::new(self.booted, None, vec![ran]);
        health::judge(&self.open(), &report, false).unwrap()
    }

    fn tries(&self, id: DeploymentId) -> Tries {
        let known = self.open().known().unwrap();
        known.iter().find(|k| k.id == id).unwrap().entry.as_ref().unwrap().tries
    }

    /// What `kargs` does, with words to append and to delete.
    fn arguments(&self, append: &str, delete: &str) -> Result<arguments::Done, Error> {
        let edit = Edit {
            append: cmdline::split(append),
            delete: cmdline::split(delete),
            replace: Vec::new(),
        };
        arguments::change(&self.open(), &edit, &Quiet)
    }

    fn line(&self, id: DeploymentId) -> String {
        let known = self.open().known().unwrap();
        let entry = known.iter().find(|k| k.id == id).unwrap().entry.clone();
        cmdline::join(&entry.unwrap().options)
    }

    /// What the machine wants on every command line.
    fn wishes(&self) -> Vec<String> {
        arguments::show(&self.open()).unwrap().machine
    }

    fn failed(&self, manifest: &ManifestDigest) -> Option<(String, bool)> {
        let sysroot = self.open();
        let failed = FailedDigests::load(sysroot.deployments().layout()).unwrap();
        failed.get(manifest).map(|failed| (failed.why.clone(), failed.by_admin))
    }

    /// The failure for which an upgrade would leave the newest image alone, as `--check` and `--dry-run` say it.
    fn foretold(&self) -> Option<(ManifestDigest, String)> {
        let sysroot = self.open();
        let checked = outlook::check(&sysroot, &Quiet).unwrap().failed;
        let planned = outlook::forecast(&sysroot, None, &[], &Quiet).unwrap().unwrap().failed;
        let shown = |failed: Failed| (failed.digest, failed.why);
        let (checked, planned) = (checked.map(shown), planned.map(shown));
        assert_eq!(checked, planned);
        checked
    }

    fn etc(&self, id: DeploymentId) -> PathBuf {
        self.root.join("state/deploy").join(id.to_hex()).join("etc")
    }

    /// What runs says that it lacks this file, which was written in the /etc of `from`.
    #[track_caller]
    fn misses(&self, from: DeploymentId, file: &str) {
        let missed = finalize::missed(&self.open()).unwrap().unwrap();
        assert_eq!(
            (missed.from, missed.files.as_slice()),
            (from, &[PathBuf::from(file)][..])
        );
    }

    fn fsck(&self) {
        let mut findings = Vec::new();
        let checked = upkeep::fsck(&self.open(), &mut |finding| findings.push(finding)).unwrap();
        assert_eq!(checked.damaged, 0, "{findings:?}");
    }
}

fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::GoBack { why, .. } | Verdict::Alone { why } | Verdict::NoLongerGood { why } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_update_proves_itself_once_and_is_counted_no_longer() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let new = machine.staged(Wishes::default()).id;
    assert_eq!(machine.tries(new), Tries::Left { left: 3, done: 0 });
    assert_eq!(machine.boot(), new);
    assert_eq!(machine.tries(new), Tries::Left { left: 2, done: 1 });
    assert!(matches!(machine.check(None), Verdict::Good { by_systemd: false, .. }));
    assert_eq!(machine.tries(new), Tries::Good);
    assert_eq!(machine.boot(), new);
    assert_eq!(machine.check(None), Verdict::StillGood);
    assert_ne!(old, new);
    machine.fsck();
}

#[test]
fn a_bad_update_goes_away_is_remembered_and_comes_back_only_when_it_is_asked_for() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let bad = machine.staged(AUTOMATIC);
    assert_eq!(machine.boot(), bad.id);
    let verdict = machine.check(Some("exit code 1: no database"));
    assert_eq!(
        verdict,
        Verdict::GoBack {
            to: old,
            why: "health check /etc/cfs-update/health.d/10-app: exit code 1: no database".into()
        }
    );
    assert_eq!(machine.boot(), old, "the last good one boots");
    assert_eq!(machine.check(None), Verdict::StillGood);
    assert!(machine.failed(&bad.manifest).unwrap().0.contains("no database"));
    for wishes in [AUTOMATIC, Wishes::default()] {
        let Outcome::FailedBefore(failed) = machine.upgrade(wishes) else {
            panic!("it is not installed again");
        };
        assert_eq!(failed.digest, bad.manifest);
    }
    assert_eq!(machine.foretold().unwrap().0, bad.manifest);
    assert_eq!(machine.boot(), old);

    machine.release(3);
    assert_eq!(machine.foretold(), None);
    let mended = machine.staged(AUTOMATIC);
    assert_eq!(machine.boot(), mended.id);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.release(2);
    assert!(
        matches!(machine.upgrade(AUTOMATIC), Outcome::FailedBefore(_)),
        "it is still remembered"
    );
    let again = machine.staged(RETRY);
    assert_eq!(again.manifest, bad.manifest);
    assert_eq!(machine.failed(&bad.manifest), None);
    assert_eq!(machine.boot(), again.id);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.fsck();
}

#[test]
fn an_update_that_never_comes_up_uses_its_tries_up_and_is_remembered_too() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let dead = machine.staged(Wishes::default());
    for _ in 0..3 {
        assert_eq!(machine.boot(), dead.id);
    }
    assert_eq!(machine.boot(), old);
    assert!(machine.foretold().unwrap().1.contains("tried 3 times"));
    assert_eq!(machine.failed(&dead.manifest), None, "asking writes nothing down");
    assert_eq!(machine.check(None), Verdict::StillGood);
    let (why, by_admin) = machine.failed(&dead.manifest).unwrap();
    assert!(why.contains("tried 3 times") && !by_admin, "{why}");
    assert!(matches!(machine.upgrade(AUTOMATIC), Outcome::FailedBefore(_)));
}

#[test]
fn the_last_try_counts_when_it_is_good() {
    let mut machine = Machine::new();
    machine.release(2);
    let slow = machine.staged(Wishes::default());
    for _ in 0..3 {
        assert_eq!(machine.boot(), slow.id);
    }
    assert_eq!(machine.tries(slow.id), Tries::Bad { done: 3 });
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    assert_eq!(machine.tries(slow.id), Tries::Good);
    assert_eq!(machine.failed(&slow.manifest), None);
    assert_eq!(machine.boot(), slow.id);
}

#[test]
fn a_machine_with_one_deployment_stays_and_says_so() {
    let mut machine = Machine::installed();
    let only = machine.boot();
    for _ in 0..5 {
        assert!(matches!(machine.check(Some("exit code 1")), Verdict::Alone { .. }));
        assert_eq!(machine.boot(), only);
    }
}

#[test]
fn a_deployment_that_was_good_once_is_not_left_because_of_a_bad_day() {
    let mut machine = Machine::new();
    machine.release(2);
    let new = machine.staged(Wishes::default()).id;
    machine.boot();
    machine.check(None);
    assert!(why(machine.check(Some("no network"))).contains("no network"));
    assert_eq!(machine.tries(new), Tries::Good);
    assert_eq!(machine.boot(), new);
}

#[test]
fn a_boot_says_nothing_of_an_entry_that_was_made_during_it() {
    let mut machine = Machine::new();
    let first = machine.booted.unwrap();
    machine.release(2);
    let id = machine.staged(Wishes::default()).id;
    machine.boot();
    machine.check(None);
    machine.arguments("quiet", "").unwrap();
    let untried = Tries::Left { left: 3, done: 0 };
    assert_eq!(machine.tries(id), untried);
    assert_eq!(machine.check(None), Verdict::StillGood);
    assert_eq!(health::approve(&machine.open()).unwrap(), Verdict::StillGood);
    assert!(matches!(
        machine.check(Some("no network")),
        Verdict::NoLongerGood { .. }
    ));
    assert_eq!(machine.tries(id), untried, "it still has to show that it boots");
    // And then it counts.
    assert_eq!(machine.boot(), id);
    assert!(matches!(machine.check(Some("no network")), Verdict::GoBack { to, .. } if to == id));
    assert!(!machine.line(id).contains("quiet"));
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, first);
}

#[test]
fn wanted_checks_that_fail_are_told_and_change_nothing() {
    let machine = Machine::new();
    let ran = Ran {
        check: "wanted".into(),
        required: false,
        outcome: Checked::Failed { why: "slow".into() },
        attempts: 3,
        seconds: 1,
    };
    let report = HealthReport::new(machine.booted, None, vec![ran]);
    let sysroot = machine.open();
    assert_eq!(health::judge(&sysroot, &report, false).unwrap(), Verdict::StillGood);
    assert_eq!(
        HealthReport::load(sysroot.deployments().layout()).unwrap(),
        Some(report)
    );
}

fn object(id: DeploymentId) -> PathBuf {
    let hex = id.to_hex();
    Path::new(&hex[..2]).join(&hex[2..])
}

#[test]
fn fsck_says_that_gc_removes_only_what_gc_removes() {
    let machine = Machine::new();
    machine.release(2);
    let two = machine.staged(NONE).id;
    let entry = machine.entries().into_iter().find(|file| file.contains(&two.short()));
    std::fs::remove_file(machine.root.join("boot/loader/entries").join(entry.unwrap())).unwrap();
    let said = || {
        let mut said = Vec::new();
        upkeep::fsck(&machine.open(), &mut |finding| said.push(finding)).unwrap();
        said.retain(|finding| finding.what == "deployment");
        said.pop().map(|finding| finding.why)
    };
    // It had one: whatever took it away, the deployment is not for gc to remove.
    assert!(said().unwrap().contains("any more"));
    assert_eq!(upkeep::gc(&machine.open(), false).unwrap().deployments, []);
    std::fs::remove_file(machine.root.join("state/cfs-update/history.jsonl")).unwrap();
    rollback::pin(&machine.open(), &two.to_hex(), true).unwrap();
    assert!(said().unwrap().contains("unpin"));
    assert_eq!(upkeep::gc(&machine.open(), false).unwrap().deployments, []);
    rollback::pin(&machine.open(), &two.to_hex(), false).unwrap();
    assert!(said().unwrap().ends_with("`cfs-update gc` removes it"));
    assert_eq!(upkeep::gc(&machine.open(), false).unwrap().deployments, [two]);
    assert_eq!(said(), None);
}

#[test]
fn fsck_does_not_take_for_damage_what_another_run_is_about_to_finish() {
    let machine = Machine::new();
    let entry = machine.entries().pop().unwrap();
    let entry = machine.root.join("boot/loader/entries").join(entry);
    let other = machine.open();
    std::fs::rename(&entry, machine.root.join("entry")).unwrap();
    let damaged = std::thread::scope(|scope| {
        let fsck = scope.spawn(|| {
            let sysroot = Sysroot::look(options(&machine.root, Arc::new(RealFs), machine.booted)).unwrap();
            upkeep::fsck(&sysroot, &mut |_| {}).unwrap().damaged
        });
        std::thread::sleep(Duration::from_secs(2));
        std::fs::rename(machine.root.join("entry"), &entry).unwrap();
        drop(other);
        fsck.join().unwrap()
    });
    assert_eq!(damaged, 0);
    let sysroot = machine.open();
    std::fs::remove_file(&entry).unwrap();
    assert!(upkeep::fsck(&sysroot, &mut |_| {}).unwrap().damaged > 0);
}

#[test]
fn what_differs_in_etc_is_listed() {
    let machine = Machine::new();
    let id = machine.booted.unwrap();
    std::fs::write(machine.etc(id).join("mine"), "x").unwrap();
    std::fs::write(machine.etc(id).join("app.conf"), "changed").unwrap();
    let sysroot = machine.open();
    let known = sysroot.known().unwrap();
    let changes = deploy::etc_changes(&sysroot, &known[0]).unwrap();
    let paths: Vec<_> = changes.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["app.conf", "mine"]);
}
