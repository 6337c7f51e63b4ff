//! Promise 1, shown on the whole update: the power is cut at every operation of an upgrade, a rollback and others, and
//! what was not synced is lost. After each cut old or new boots, the same command succeeds, and `fsck` finds nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[allow(dead_code, reason = "made for the end-to-end tests")]
#[path = "e2e/common/mod.rs"]
mod common;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use cfs_core::boot::host::Edit;
use cfs_core::boot::{HostArguments, Tries};
use cfs_core::deployment::FailedDigests;
use cfs_core::health::{self, HealthReport, Ran, Verdict};
use cfs_core::ids::DeploymentId;
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::sysroot::{Options, Sysroot};
use cfs_core::testing::{CrashFs, Loss};
use cfs_core::update::{self, Outcome, Wishes};
use cfs_core::{Error, Result, arguments, finalize, install, plan, registry, repair, rollback, upkeep};

use common::kernels;
use common::layout;
use common::scratch;

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

/// What the health service does after a boot whose check failed.
fn judge_bad(root: &Path, fs: Arc<dyn Fs>, booted: DeploymentId) -> Result<Verdict> {
    let ran = Ran {
        check: "check".into(),
        required: true,
        outcome: health::Outcome::Failed { why: "bad".into() },
        attempts: 1,
        seconds: 0,
    };
    let report = HealthReport::new(Some(booted), None, vec![ran]);
    health::judge(&running(root, fs, booted)?, &report, false)
}

fn back(root: &Path, fs: Arc<dyn Fs>) -> Result<()> {
    let sysroot = Sysroot::open(options(root, fs), "rollback")?;
    rollback::rollback(&sysroot).map(drop)
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

#[test]
fn whenever_the_power_is_cut_during_an_upgrade_old_or_new_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old) = Bench::new();
    let (root, fs) = bench.machine("known");
    upgrade(&root, Arc::new(fs)).unwrap();
    let new = next(&root);
    assert_ne!(old, new);
    let operations = bench.cut_everywhere(
        |root, fs| upgrade(root, fs).map(drop),
        |root, cut| {
            let after = next(root);
            assert!(after == old || after == new, "{cut}");
            upgrade(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: the same command again: {e}"));
            assert_eq!(next(root), new, "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 20, "{operations} operations were cut");
}

/// What is new is fetched and kept.
fn download(root: &Path, fs: Arc<dyn Fs>) -> Result<Outcome> {
    let sysroot = Sysroot::open(options(root, fs), "upgrade")?;
    let wishes = Wishes {
        download_only: true,
        ..Wishes::default()
    };
    update::upgrade(&sysroot, wishes, &Quiet)
}

/// What was downloaded boots next.
fn take(root: &Path, fs: Arc<dyn Fs>) -> Result<Outcome> {
    let sysroot = Sysroot::open(options(root, fs), "upgrade")?;
    update::from_downloaded(&sysroot, Wishes::default(), &Quiet)
}

#[test]
fn whenever_the_power_is_cut_during_a_download_the_old_one_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old) = Bench::new();
    let operations = bench.cut_everywhere(
        |root, fs| download(root, fs).map(drop),
        |root, cut| {
            assert_eq!(next(root), old, "{cut}");
            let sysroot = Sysroot::open(options(root, Arc::new(RealFs)), "gc").unwrap();
            upkeep::gc(&sysroot, false).unwrap_or_else(|e| panic!("{cut}: {e}"));
            drop(sysroot);
            fsck(root);
            download(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: the same command again: {e}"));
            let taken = take(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: {e}"));
            assert!(matches!(taken, Outcome::Staged(_)) && next(root) != old, "{cut}");
            fsck(root);
        },
    );
    // Of the note alone: the store has tests of its own for this.
    assert!(operations > 3, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_while_what_was_downloaded_is_taken_it_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("downloaded");
    download(&root, Arc::new(fs)).unwrap();
    bench.before = root;
    let operations = bench.cut_everywhere(
        |root, fs| take(root, fs).map(drop),
        |root, cut| {
            next(root);
            // Where the note is gone, it boots already.
            match take(root, Arc::new(RealFs)) {
                Ok(Outcome::Staged(_)) => {}
                Err(Error::Deployment { .. }) if next(root) != old => {}
                other => panic!("{cut}: the same command again: {other:?}"),
            }
            assert_ne!(next(root), old, "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 10, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_during_a_rollback_either_deployment_boots() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old, new) = Bench::updated();
    let operations = bench.cut_everywhere(back, |root, cut| {
        let after = next(root);
        assert!(after == old || after == new, "{cut}");
        back(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: another rollback: {e}"));
        assert_ne!(next(root), after, "{cut}");
        fsck(root);
    });
    assert!(operations > 5, "{operations} operations were cut");
}

/// Of a machine whose boot is known.
fn in_this_boot(root: &Path, fs: Arc<dyn Fs>) -> Result<Sysroot> {
    let boot_id = Some("this".to_owned());
    let options = Options {
        boot_id,
        ..options(root, fs)
    };
    Sysroot::open(options, "test")
}

#[test]
fn what_is_deployed_after_a_rollback_was_killed_is_not_taken_for_its_entry() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old, new) = Bench::updated();
    let (root, fs) = bench.machine("killed");
    let images = bench.base.join("images");
    let reference = layout::small(1, "kernel 1", 3, 5000).finish().layout(&images, "os");
    let fs = Arc::new(fs);
    rollback::rollback(&in_this_boot(&root, fs.clone()).unwrap()).unwrap();
    let log = fs.log();
    let noted = log
        .iter()
        .position(|o| o.contains("rename") && o.contains("rollback.json"));
    let (root, fs) = bench.machine("again");
    let cut = Arc::new(fs.cut_after(noted.unwrap() + 1));
    rollback::rollback(&in_this_boot(&root, cut).unwrap()).unwrap_err();
    assert_eq!(next(&root), new, "it had no entry yet");
    let wishes = Wishes {
        allow_downgrade: true,
        ..Wishes::default()
    };
    let anew = in_this_boot(&root, Arc::new(RealFs)).unwrap();
    update::switch(&anew, &reference.parse().unwrap(), wishes, &Quiet).unwrap();
    drop(anew);
    assert_eq!(next(&root), old);
    rollback::rollback(&in_this_boot(&root, Arc::new(RealFs)).unwrap()).unwrap();
    assert_eq!(next(&root), new);
    fsck(&root);
}

#[test]
fn a_rollback_that_was_killed_is_finished_by_the_same_command_and_only_the_one_after_goes_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old, new) = Bench::updated();
    let back = |root: &Path, fs: Arc<dyn Fs>| rollback::rollback(&in_this_boot(root, fs)?);
    let (root, fs) = bench.machine("whole");
    let whole = Arc::new(fs);
    back(&root, whole.clone()).unwrap();
    let operations = whole.log();
    let over = operations.iter().rposition(|o| o.contains("rollback.json")).unwrap();
    for (at, operation) in operations[..=over].iter().enumerate() {
        let (root, fs) = bench.machine(&format!("killed-{at}"));
        let _ = back(&root, Arc::new(fs.cut_after(at)));
        let lost = back(&root, Arc::new(RealFs)).unwrap().lost;
        assert!(lost.is_empty(), "{lost:?}");
        assert_eq!(next(&root), old, "before {operation}");
        fsck(&root);
        back(&root, Arc::new(RealFs)).unwrap();
        assert_eq!(next(&root), new, "before {operation}");
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(over > 5, "{operations:?}");
}

/// What `fsck --repair` does.
fn repair(root: &Path, fs: Arc<dyn Fs>) -> Result<repair::Repaired> {
    repair::repair(&Sysroot::open(options(root, fs), "fsck --repair")?, &[], &Quiet)
}

#[test]
fn whenever_the_power_is_cut_while_kernels_are_mended_what_booted_next_still_does_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for copied in [false, true] {
        let (mut bench, old, new) = Bench::updated();
        let (root, _) = bench.machine("damaged");
        match copied {
            true => kernels::copied_damaged(&root, &old.to_hex()),
            false => std::fs::write(&kernels::files_of(&root, &new.to_hex())[1], "short").unwrap(),
        }
        bench.before = root;
        let operations = bench.cut_everywhere(
            |root, fs| repair(root, fs).map(drop),
            |root, cut| {
                assert_eq!(next(root), new, "{cut}");
                let again = repair(root, Arc::new(RealFs)).unwrap();
                assert!(again.failed.is_empty(), "{cut}: {:?}", again.failed);
                assert_eq!(next(root), new, "{cut}");
                fsck(root);
            },
        );
        assert!(operations > 5, "{operations} operations were cut");
    }
}

#[test]
fn whenever_the_power_is_cut_while_a_rollback_brings_an_update_back_what_it_misses_of_etc_is_told() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("waits");
    let fs: Arc<dyn Fs> = Arc::new(fs);
    let back = |root: &Path, fs| rollback::rollback(&running(root, fs, old)?).map(drop);
    update::upgrade(&running(&root, fs.clone(), old).unwrap(), Wishes::default(), &Quiet).unwrap();
    let new = next(&root);
    back(&root, fs).unwrap();
    let etc = |root: &Path, id: DeploymentId| root.join("state/deploy").join(id.to_hex()).join("etc");
    std::fs::write(etc(&root, old).join("late"), "late").unwrap();
    bench.before = root;
    let operations = bench.cut_everywhere(back, |root, cut| {
        let after = next(root);
        assert!(after == old || after == new, "{cut}");
        let missed = finalize::missed(&running(root, Arc::new(RealFs), after).unwrap()).unwrap();
        let files = missed.map(|missed| missed.files).unwrap_or_default();
        assert_eq!(files.contains(&PathBuf::from("late")), after == new, "{cut}: {files:?}");
        fsck(root);
    });
    assert!(operations > 5, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_while_kernel_arguments_change_it_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old) = Bench::new();
    let edit = Edit {
        append: vec!["debug".into()],
        ..Edit::default()
    };
    let change = |root: &Path, fs: Arc<dyn Fs>| {
        let sysroot = Sysroot::open(options(root, fs), "kargs")?;
        arguments::change(&sysroot, &edit, &Quiet).map(drop)
    };
    let operations = bench.cut_everywhere(change, |root, cut| {
        assert_eq!(next(root), old, "{cut}");
        let shown = || arguments::show(&Sysroot::look(options(root, Arc::new(RealFs))).unwrap()).unwrap();
        let has = |list: &[String]| list.contains(&"debug".to_owned());
        assert!(
            has(&shown().machine) || !has(&shown().line),
            "{cut}: what an entry has is in every later one, too"
        );
        match change(root, Arc::new(RealFs)) {
            Ok(()) | Err(Error::Nothing(_)) => {}
            Err(e) => panic!("{cut}: the same command again: {e}"),
        }
        let shown = shown();
        assert!(shown.is_current() && has(&shown.line), "{cut}: {shown:?}");
        assert_eq!(next(root), old, "{cut}");
        fsck(root);
    });
    assert!(operations > 5, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_during_the_last_merge_the_staged_etc_is_whole_and_the_merge_is_made_the_next_time() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("staged");
    upgrade(&root, Arc::new(fs)).unwrap();
    let new = next(&root);
    let etc = |root: &Path, id: DeploymentId| root.join("state/deploy").join(id.to_hex()).join("etc");
    std::fs::write(etc(&root, old).join("late"), "late").unwrap();
    bench.before = root;
    let operations = bench.cut_everywhere(
        |root, fs| finalize::finalize(&running(root, fs, old)?, &Quiet).map(drop),
        |root, cut| {
            assert_eq!(next(root), new, "{cut}: its /etc is whole");
            let again = finalize::finalize(&running(root, Arc::new(RealFs), old).unwrap(), &Quiet);
            let merged = matches!(again, Ok(finalize::Finalized::Merged { .. }));
            assert!(merged, "{cut}: once more, it was made by a merge: {again:?}");
            assert!(etc(root, new).join("late").exists(), "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 5, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_while_a_boot_is_found_bad_it_is_tried_again_or_gone_and_remembered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("bad");
    upgrade(&root, Arc::new(fs)).unwrap();
    let new = next(&root);
    bench.before = root;
    let remembered = |root: &Path| {
        let sysroot = Sysroot::look(options(root, Arc::new(RealFs))).unwrap();
        let failed = FailedDigests::load(sysroot.deployments().layout()).unwrap();
        failed.iter().any(|failed| failed.id == Some(new))
    };
    let operations = bench.cut_everywhere(
        |root, fs| judge_bad(root, fs, new).map(drop),
        |root, cut| {
            let after = next(root);
            assert!(after == new || after == old && remembered(root), "{cut}");
            let verdict = judge_bad(root, Arc::new(RealFs), new).unwrap_or_else(|e| panic!("{cut}: once more: {e}"));
            assert!(
                matches!(verdict, Verdict::GoBack { to, .. } if to == old),
                "{cut}: {verdict:?}"
            );
            assert!(next(root) == old && remembered(root), "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 5, "{operations} operations were cut");
}

/// A root on which nothing is yet, and an image with a boot loader.
fn empty_machine() -> (Bench, String) {
    let keep = scratch();
    let base = keep.path().to_path_buf();
    let before = base.join("before");
    std::fs::create_dir_all(before.join("boot")).unwrap();
    let loader = layout::Layer::default()
        .dirs(&[
            "usr",
            "usr/lib",
            "usr/lib/systemd",
            "usr/lib/systemd/boot",
            "usr/lib/systemd/boot/efi",
        ])
        .file(
            "usr/lib/systemd/boot/efi/systemd-bootx64.efi",
            "MZ #### LoaderInfo: systemd-boot 257 ####",
        )
        .file(
            "usr/lib/systemd/boot/efi/systemd-bootaa64.efi",
            "MZ #### LoaderInfo: systemd-boot 257 ####",
        );
    let image = layout::small(1, "kernel 1", 1, 500).layer(loader, layout::How::None);
    let reference = image.finish().layout(&base.join("images"), "os");
    let bench = Bench {
        _keep: keep,
        base,
        before,
    };
    (bench, reference)
}

fn first(root: &Path, fs: Arc<dyn Fs>, reference: &str) -> Result<()> {
    let registry = registry::Registry::open(&reference.parse()?, &registry::Options::default())?;
    let request = install::Request {
        image: registry.image(&Platform::host(), &Quiet)?,
        registry: &registry,
        host: HostArguments {
            kernel_arguments: vec!["a=b".into()],
            allow_missing_verity: false,
        },
        root_keys: Some(b"ssh-ed25519 AAAA key\n".to_vec()),
    };
    let boot = root.join("boot");
    let place = install::Prepared::given(root.into(), boot.clone(), boot, "LABEL=root".into());
    install::install(&Sysroot::open(options(root, fs), "install")?, &place, request, &Quiet).map(drop)
}

#[test]
fn whenever_the_power_is_cut_during_an_installation_nothing_boots_or_the_whole_system_does() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, reference) = empty_machine();
    let operations = bench.cut_everywhere(
        |root, fs| first(root, fs, &reference),
        |root, cut| {
            let sysroot = Sysroot::look(options(root, Arc::new(RealFs)));
            let entries = sysroot
                .map(|sysroot| sysroot.bootloader().entries().unwrap().ours)
                .unwrap_or_default();
            let again = first(root, Arc::new(RealFs), &reference);
            match entries.as_slice() {
                [] => again.unwrap_or_else(|e| panic!("{cut}: the same command again: {e}")),
                // The entry was the last thing to be made.
                _ => assert!(
                    again.unwrap_err().to_string().contains("installed there already"),
                    "{cut}"
                ),
            }
            fsck(root);
            let sysroot = Sysroot::look(options(root, Arc::new(RealFs))).unwrap();
            let known = sysroot.known().unwrap();
            let installed = known.iter().find(|k| k.standing.bootable).expect(cut);
            assert!(
                installed.entry.as_ref().unwrap().options.contains(&"a=b".into()),
                "{cut}"
            );
            let etc = installed.verified.as_ref().unwrap().etc();
            for path in ["app.conf", "tmpfiles.d/cfs-update-root-ssh.conf"] {
                assert!(etc.join(path).is_file(), "{cut}: {path}");
            }
            for path in [
                "boot/EFI/BOOT/BOOTX64.EFI",
                "boot/loader/random-seed",
                "boot/loader/loader.conf",
            ] {
                let path = root.join(path.replace("X64", if cfg!(target_arch = "aarch64") { "AA64" } else { "X64" }));
                assert!(
                    std::fs::metadata(&path).is_ok_and(|found| found.len() > 0),
                    "{cut}: {}",
                    path.display()
                );
            }
        },
    );
    assert!(operations > 40, "{operations} operations were cut");
}
