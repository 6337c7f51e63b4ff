//! Promise 3, shown on the whole library: what a machine does with good, bad and broken updates, boot after boot. Its
//! boot loader is a model that takes the entry with the highest generation that has tries left and counts in names, as
//! systemd-boot does; everything else is real.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[allow(dead_code, reason = "made for the end-to-end tests")]
#[path = "e2e/common/mod.rs"]
mod common;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_bootloader::counter::CountedName;
use cfs_core::boot::host::Edit;
use cfs_core::boot::{Tries, cmdline};
use cfs_core::deployment::{Downloaded, FailedDigests, Staged};
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

    fn open(&self) -> Sysroot {
        let options = options(&self.root, Arc::new(RealFs), self.booted);
        let started = self.started;
        Sysroot::open(Options { started, ..options }, "test").unwrap()
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

    fn failed(&self, manifest: &ManifestDigest) -> Option<(String, bool)> {
        let sysroot = self.open();
        let failed = FailedDigests::load(sysroot.deployments().layout()).unwrap();
        failed.get(manifest).map(|failed| (failed.why.clone(), failed.by_admin))
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
    assert_eq!(machine.boot(), old);

    machine.release(3);
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
fn kernel_arguments_of_the_machine_prove_themselves_and_are_in_every_later_deployment() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.arguments("debug console=ttyS0", "").unwrap();
    assert_eq!(machine.tries(old), Tries::Left { left: 3, done: 0 });
    assert_eq!(machine.boot(), old);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.release(2);
    let new = machine.staged(AUTOMATIC).id;
    assert!(
        machine.line(new).ends_with(" debug console=ttyS0"),
        "{}",
        machine.line(new)
    );
    machine.arguments("", "debug").unwrap();
    assert_eq!(machine.boot(), new);
    assert!(machine.line(new).ends_with(" console=ttyS0") && !machine.line(new).contains("debug"));
    assert!(
        machine.line(old).contains(" debug "),
        "an earlier deployment keeps its own"
    );
    assert!(matches!(machine.arguments("", "debug"), Err(Error::Usage(_))));
    assert!(matches!(machine.arguments("console=ttyS0", ""), Err(Error::Nothing(_))));
    rollback::rollback(&machine.open()).unwrap();
    assert_eq!(machine.boot(), old);
    assert!(machine.line(old).contains(" debug "));
    machine.arguments("console=ttyS0", "").unwrap();
    assert!(
        !machine.line(old).contains("debug"),
        "it is made anew, as the machine wants it now"
    );
    machine.fsck();
}

#[test]
fn a_machine_that_does_not_come_up_with_new_arguments_goes_back_and_comes_up_without_them() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let new = machine.staged(Wishes::default());
    assert_eq!(machine.boot(), new.id);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.arguments("init=/bin/false", "").unwrap();
    for _ in 0..3 {
        assert_eq!(machine.boot(), new.id);
    }
    assert_eq!(machine.boot(), old);
    assert_eq!(machine.check(None), Verdict::StillGood);
    machine.arguments("", "init").unwrap();
    let again = machine.staged(RETRY);
    assert_eq!(again.manifest, new.manifest);
    assert_eq!(machine.boot(), again.id);
    assert!(!machine.line(again.id).contains("init="));
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
}

#[test]
fn a_root_that_was_the_machines_wish_is_that_of_the_file_system_again_when_it_is_deleted() {
    let machine = Machine::new();
    let id = machine.booted.unwrap();
    machine.arguments("root=LABEL=other ro", "").unwrap();
    let line = machine.line(id);
    assert!(
        line.ends_with(" root=LABEL=other ro") && !line.contains("LABEL=root") && !line.contains(" rw"),
        "{line}"
    );
    machine.arguments("", "root ro").unwrap();
    let line = machine.line(id);
    assert!(
        line.contains(" root=LABEL=root rw") && !line.contains("other"),
        "{line}"
    );
}

#[test]
fn what_is_downloaded_changes_nothing_that_boots_is_kept_and_is_staged_without_the_registry() {
    let machine = Machine::new();
    let (entries, names) = (machine.entries(), machine.names());
    let nothing = machine.take_downloaded(NONE).unwrap_err().to_string();
    assert!(nothing.contains("--download-only"), "{nothing}");
    machine.release(2);
    let (image, already) = machine.downloaded();
    assert!(!already && machine.downloaded() == (image.clone(), true));
    assert_eq!((machine.entries(), machine.noted()), (entries, Some(image.clone())));
    upkeep::gc(&machine.open(), false).unwrap();
    machine.fsck();

    std::fs::rename(&machine.images, machine.images.with_extension("away")).unwrap();
    let Outcome::Staged(done) = machine.take_downloaded(NONE).unwrap() else {
        panic!("it is staged");
    };
    assert_eq!(
        (done.id, done.manifest, done.version),
        (image.id, image.manifest, image.version)
    );
    assert_eq!(machine.noted(), None);
    let new = machine.names().into_iter().filter(|name| !names.contains(name));
    assert!(new.clone().all(|name| name.contains(&image.id.to_hex())), "{new:?}");
    machine.fsck();
}

#[test]
fn an_outlook_on_what_is_here_says_whether_restarting_user_space_is_enough() {
    let machine = Machine::new();
    machine.release(2);
    let line = cmdline::split(&machine.line(machine.booted.unwrap()));
    let outlook = || {
        let found = outlook::forecast(&machine.open(), None, &line, &Quiet).unwrap();
        found
            .unwrap()
            .changes
            .map(|changes| (changes.id, changes.soft_reboot.unwrap()))
    };
    assert!(outlook().is_none(), "the layers are not here");
    let (image, _) = machine.downloaded();
    assert_eq!(outlook(), Some((image.id, Ok(()))));
    machine.arguments("debug", "").unwrap();
    let (_, answer) = outlook().unwrap();
    assert!(answer.unwrap_err().contains("kernel arguments"));
    machine.fsck();
}

#[test]
fn a_newer_version_takes_the_place_of_what_was_downloaded() {
    let machine = Machine::new();
    let before = machine.names();
    machine.release(2);
    let (second, _) = machine.downloaded();
    machine.release(3);
    let (third, already) = machine.downloaded();
    assert!(!already && second.manifest != third.manifest);
    let freed = upkeep::gc(&machine.open(), false).unwrap();
    assert!(
        freed.store.objects.iter().any(|(id, _)| *id == second.id),
        "the image of version 2 goes"
    );

    // An update that asks the registry has nothing left to fetch, and the note is done with.
    machine.release(4);
    let newest = machine.staged(NONE);
    assert!(newest.manifest != third.manifest && machine.noted().is_none());
    let left = machine.names().into_iter().filter(|name| !before.contains(name));
    assert!(left.clone().all(|name| name.contains(&newest.id.to_hex())), "{left:?}");
    machine.fsck();
}

#[test]
fn what_was_downloaded_of_another_image_stays_while_the_followed_one_is_updated() {
    let machine = Machine::new();
    let other = layout::small(7, "same kernel", 2, 3000).finish();
    let other = other.layout(&machine.images.with_extension("other"), "os");
    let switched = |wishes| update::switch(&machine.open(), &other.parse().unwrap(), wishes, &Quiet).unwrap();
    let Outcome::Downloaded { image, already: false } = switched(DOWNLOAD) else {
        panic!("it is downloaded");
    };
    machine.release(2);
    machine.staged(AUTOMATIC);
    upkeep::gc(&machine.open(), false).unwrap();
    assert_eq!(machine.noted(), Some(image.clone()));
    let Outcome::Staged(done) = machine.take_downloaded(NONE).unwrap() else {
        panic!("it is staged");
    };
    assert_eq!(done.manifest, image.manifest);
    let known = machine.open().known().unwrap();
    let origin = known.iter().find(|k| k.id == done.id).unwrap().origin().unwrap();
    assert_eq!(origin.reference, other, "it is followed from now on");
    machine.fsck();
}

#[test]
fn a_download_that_is_damaged_is_said_and_mended_and_one_that_failed_here_is_not_taken() {
    let mut machine = Machine::new();
    machine.release(2);
    let bad = machine.staged(NONE);
    assert_eq!(machine.boot(), bad.id);
    machine.check(Some("exit code 1"));
    machine.boot();
    machine.check(None);
    let kept = machine.open().known().unwrap().iter().any(|k| k.id == bad.id);
    let Outcome::FailedBefore(_) = machine.upgrade(DOWNLOAD) else {
        panic!("it failed before");
    };
    let wanted = Wishes {
        retry: true,
        ..DOWNLOAD
    };
    let Outcome::Downloaded { image, .. } = machine.upgrade(wanted) else {
        panic!("it was asked for");
    };
    assert!(matches!(
        machine.take_downloaded(NONE).unwrap(),
        Outcome::FailedBefore(_)
    ));

    // An object that version 1 has not got.
    let objects = |sysroot: &Sysroot, id: &DeploymentId| -> std::collections::BTreeSet<_> {
        let image = sysroot.store().read_object(id, 1 << 30).unwrap();
        cfs_core::image::reader::read(&image).unwrap().objects().collect()
    };
    let sysroot = machine.open();
    let old = objects(&sysroot, &machine.booted.unwrap());
    let new = objects(&sysroot, &image.id);
    let only = *new.difference(&old).next().unwrap();
    std::fs::remove_file(sysroot.store().object_path(&only)).unwrap();
    drop(sysroot);
    let said = machine.take_downloaded(RETRY).unwrap_err().to_string();
    assert!(said.contains("not in the store"), "{said}");
    let repaired = cfs_core::repair::repair(&machine.open(), &[], &Quiet).unwrap();
    assert!(
        !repaired.mended.is_empty() && repaired.failed.is_empty(),
        "{repaired:?}"
    );
    assert_eq!(machine.noted(), Some(image.clone()));
    assert!(
        matches!(machine.take_downloaded(RETRY).unwrap(), Outcome::Staged(_)),
        "{kept}"
    );
    machine.fsck();
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
    assert!(matches!(machine.check(Some("no network")), Verdict::GoBack { to, .. } if to == first));
}

#[test]
fn a_boot_is_judged_also_where_nothing_can_be_written_down() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let bad = machine.staged(Wishes::default()).id;
    machine.boot();
    // Whoever is root can write wherever there is room, but not over a folder.
    let notes = machine.root.join("state/cfs-update");
    for name in ["health.json", "failed.json", "history.jsonl"] {
        std::fs::remove_file(notes.join(name)).ok();
        std::fs::create_dir_all(notes.join(name).join("in the way")).unwrap();
    }
    let judge = |machine: &Machine, outcome: Checked| {
        let ran = Ran {
            check: "10-app".into(),
            required: true,
            outcome,
            attempts: 1,
            seconds: 0,
        };
        let report = HealthReport::new(machine.booted, None, vec![ran]);
        let mut lost = Vec::new();
        let verdict = health::judge_anyway(&machine.open(), &report, false, &mut lost).unwrap();
        assert!(lost.iter().any(|e| e.to_string().contains("health.json")), "{lost:?}");
        verdict
    };
    assert!(matches!(judge(&machine, Checked::Failed { why: "no".into() }), Verdict::GoBack { to, .. } if to == old));
    assert!(matches!(machine.tries(bad), Tries::Bad { .. }));
    assert_eq!(machine.boot(), old);
    let mut machine = Machine::installed();
    let good = machine.boot();
    std::fs::create_dir_all(machine.root.join("state/cfs-update/health.json/in the way")).unwrap();
    assert!(matches!(judge(&machine, Checked::Passed), Verdict::Good { .. }));
    assert_eq!(machine.tries(good), Tries::Good);
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

#[test]
fn a_rollback_does_what_it_says_twice_with_an_update_staged_and_after_a_failed_one() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default());
    // Staged and not booted: the running one boots next again, and the update is not lost.
    let back = rollback::rollback(&machine.open()).unwrap();
    assert_eq!((back.id, back.instead_of, back.was_staged), (one, Some(two.id), true));
    assert!(
        matches!(machine.upgrade(AUTOMATIC), Outcome::FailedBefore(f) if f.by_admin),
        "the timer leaves it alone"
    );
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two.id);
    assert_eq!(machine.failed(&two.manifest), None, "he wants it after all");
    assert_eq!(machine.boot(), two.id);
    machine.check(None);
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, one);
    assert_eq!(machine.boot(), one);
    assert_eq!(machine.check(None), Verdict::StillGood, "what was good stays good");
    assert!(matches!(machine.upgrade(AUTOMATIC), Outcome::FailedBefore(_)));
    let again = machine.staged(Wishes::default());
    assert_eq!(again.manifest, two.manifest, "the administrator himself may have it");

    machine.boot();
    machine.check(None);
    machine.release(3);
    let bad = machine.staged(Wishes::default());
    machine.boot();
    machine.check(Some("bad"));
    assert_eq!(machine.boot(), two.id);
    let done = rollback::rollback(&machine.open()).unwrap();
    assert_eq!(
        (done.id, done.instead_of),
        (one, Some(two.id)),
        "the one before, never the bad one"
    );
    assert_ne!(done.id, bad.id);
    machine.fsck();
}

#[test]
fn with_an_earlier_update_still_staged_a_rollback_takes_what_runs_and_so_does_a_bad_update() {
    for pinned in [false, true] {
        let mut machine = Machine::new();
        let one = machine.booted.unwrap();
        machine.release(2);
        let two = machine.staged(NONE).id;
        if pinned {
            rollback::pin(&machine.open(), "staged", true).unwrap();
        }
        machine.release(3);
        let three = machine.staged(NONE).id;
        let known = machine.open().known().unwrap();
        assert!(known.iter().any(|k| k.id == two), "it is kept");
        assert_eq!(
            rollback::rollback(&machine.open()).unwrap().id,
            one,
            "what runs, not {two}"
        );
        assert_eq!(rollback::rollback(&machine.open()).unwrap().id, three);

        assert_eq!(machine.boot(), three);
        let Verdict::GoBack { to, .. } = machine.check(Some("bad")) else {
            panic!("it is left");
        };
        assert_eq!(to, one, "the last good one, not {two}, which never ran");
        assert_eq!(machine.boot(), one);
        machine.fsck();
    }
}

#[test]
fn what_fails_after_a_rollback_to_it_leads_to_the_last_good_one_not_to_what_was_gone_back_from() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    assert_eq!(machine.boot(), two);
    machine.release(3);
    machine.staged(NONE);
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    assert_eq!(machine.boot(), two);
    let Verdict::GoBack { to, .. } = machine.check(Some("bad")) else {
        panic!("it is left");
    };
    assert_eq!(to, one);
    assert_eq!(machine.boot(), one);
    assert_eq!(machine.check(None), Verdict::StillGood);
    machine.fsck();
}

#[test]
fn new_arguments_that_do_not_come_up_lead_to_the_last_good_deployment_not_to_an_update_gone_back_from() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.boot();
    machine.check(None);
    machine.release(3);
    let three = machine.staged(NONE).id;
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    machine.arguments("init=/bin/false", "").unwrap();
    for _ in 0..3 {
        assert_eq!(machine.boot(), two);
    }
    assert_eq!(machine.boot(), one, "not {three}");
    assert_eq!(machine.check(None), Verdict::StillGood);
    machine.fsck();
}

#[test]
fn an_update_that_never_ran_gets_the_last_merge_of_etc_by_whatever_way_it_comes_to_boot_next() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.release(3);
    machine.staged(NONE);
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, one);
    rollback::delete(&machine.open(), "rollback").unwrap();
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert_eq!(std::fs::read_to_string(machine.etc(two).join("late")).unwrap(), "late");

    // It ran, so its /etc is its own from then on.
    assert_eq!(machine.boot(), two);
    std::fs::write(machine.etc(two).join("own"), "own").unwrap();
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, one);
    assert_eq!(machine.boot(), one);
    machine.check(None);
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    assert_eq!(finalize::finalize(&machine.open(), &Quiet).unwrap(), Finalized::Nothing);
    assert!(machine.etc(two).join("own").exists());
    machine.fsck();
}

#[test]
fn an_update_whose_predecessor_is_gone_waits_for_no_etc() {
    let mut machine = Machine::installed();
    for _ in 0..3 {
        machine.boot();
    }
    // Looked at from another system, with nothing of it running: the one that does not come up goes.
    machine.booted = None;
    machine.release(2);
    let two = machine.staged(NONE);
    assert_eq!(two.removed.len(), 1);
    assert_eq!(finalize::finalize(&machine.open(), &Quiet).unwrap(), Finalized::Nothing);
    assert_eq!(machine.boot(), two.id);
    assert_eq!(finalize::missed(&machine.open()).unwrap(), None);
}

#[test]
fn what_is_written_in_etc_right_after_staging_or_after_the_last_merge_is_told_when_it_is_missed() {
    for merged in [false, true] {
        let mut machine = Machine::new();
        let one = machine.booted.unwrap();
        machine.release(2);
        let two = machine.staged(NONE).id;
        if merged {
            finalize::finalize(&machine.open(), &Quiet).unwrap();
        }
        std::fs::write(machine.etc(one).join("late"), "late").unwrap();
        assert_eq!(machine.boot(), two);
        machine.misses(one, "late");
    }
}

#[test]
fn an_earlier_update_that_boots_since_a_later_one_does_not_come_up_tells_what_it_misses_of_etc() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    let first = machine.release(1);
    machine.release(2);
    let two = machine.staged(NONE).id;
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    machine.release(1);
    let again = update::switch(&machine.open(), &first.parse().unwrap(), NONE, &Quiet).unwrap();
    assert!(
        matches!(again, Outcome::Staged(done) if done.id == one),
        "what runs has to prove itself again"
    );
    for _ in 0..3 {
        assert_eq!(machine.boot(), one);
    }
    assert_eq!(machine.boot(), two);
    machine.misses(one, "late");
}

#[test]
fn what_is_changed_in_etc_after_staging_is_there_after_the_reboot() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    std::fs::remove_file(machine.etc(one).join("app.conf")).unwrap();
    assert!(!machine.etc(two).join("late").exists());
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert_eq!(std::fs::read_to_string(machine.etc(two).join("late")).unwrap(), "late");
    assert!(!machine.etc(two).join("app.conf").exists(), "a deletion, too");
    assert_eq!(machine.boot(), two);
    assert_eq!(finalize::missed(&machine.open()).unwrap(), None);
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert_eq!(done, Finalized::Nothing, "the new one's own /etc is never merged over");
    machine.fsck();
}

#[test]
fn an_update_that_a_second_rollback_brings_back_gets_the_last_merge_of_etc() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    rollback::rollback(&machine.open()).unwrap();
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert_eq!(done, Finalized::Nothing, "what runs boots next");
    assert!(!machine.etc(two).join("late").exists());
    rollback::rollback(&machine.open()).unwrap();
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert_eq!(std::fs::read_to_string(machine.etc(two).join("late")).unwrap(), "late");
    assert_eq!(machine.boot(), two);
    machine.fsck();
}

#[test]
fn a_power_cut_before_the_last_merge_is_told_with_the_files_it_is_about() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    assert_eq!(machine.boot(), two);
    assert_eq!(
        finalize::missed(&machine.open()).unwrap(),
        None,
        "nothing was changed after staging"
    );
    let late = machine.etc(one).join("late");
    std::fs::write(&late, "late").unwrap();
    let hour = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    std::fs::File::options()
        .write(true)
        .open(&late)
        .unwrap()
        .set_modified(hour)
        .unwrap();
    let missed = finalize::missed(&machine.open()).unwrap().unwrap();
    assert_eq!(
        (missed.from, missed.files.as_slice(), missed.why),
        (one, &[PathBuf::from("late")][..], None)
    );
}

#[test]
fn a_last_merge_that_fails_leaves_the_staged_etc_and_is_told_after_the_boot() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    let before = std::fs::read_to_string(machine.etc(two).join("app.conf")).unwrap();
    // Its image is needed for the merge.
    let image = machine.root.join("composefs/objects").join(object(two));
    std::fs::rename(&image, image.with_extension("away")).unwrap();
    finalize::finalize(&machine.open(), &Quiet).unwrap_err();
    std::fs::rename(image.with_extension("away"), &image).unwrap();
    assert_eq!(
        std::fs::read_to_string(machine.etc(two).join("app.conf")).unwrap(),
        before
    );
    let staged = Staged::load(machine.open().deployments().layout()).unwrap().unwrap();
    assert!(staged.finalize_failed.is_some() && staged.finalized.is_none());
    assert_eq!(machine.boot(), two);
    let missed = finalize::missed(&machine.open()).unwrap().unwrap();
    assert_eq!(missed.from, one);
    assert!(missed.why.is_some());
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
    rollback::pin(&machine.open(), &two.to_hex(), true).unwrap();
    assert!(said().unwrap().contains("unpin"));
    assert_eq!(upkeep::gc(&machine.open(), false).unwrap().deployments, []);
    rollback::pin(&machine.open(), &two.to_hex(), false).unwrap();
    assert!(said().unwrap().ends_with("`cfs-update gc` removes it"));
    assert_eq!(upkeep::gc(&machine.open(), false).unwrap().deployments, [two]);
    assert_eq!(said(), None);
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
