//! Killed in the middle, at whatever moment.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::common::objects;

#[test]
fn a_run_killed_while_it_made_the_repository_left_none() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    fs::create_dir_all(cfs.sysroot().join("composefs/objects")).unwrap();
    fs::create_dir_all(cfs.sysroot().join("composefs/streams/refs/oci")).unwrap();
    assert_eq!(cfs.status()["status"]["staged"], serde_json::Value::Null);
    let ran = cfs.run(["fsck"]).expect(1);
    says(&ran, &["there is none; `switch` makes one"]);
    let reference = small(1, "a", 1, 1000).finish().layout(&dir.path().join("oci"), "os");
    cfs.run(["switch", &reference]).expect(0);
    cfs.fsck();
}

#[test]
fn killed_at_any_moment_the_same_command_succeeds_afterwards() {
    let dir = scratch();
    let layout = dir.path().join("oci");
    let one = small(1, "a", 150, 200_000).finish();
    let two = small(2, "b", 150, 200_000).finish();

    // How long a whole run takes, so that the moments are spread over it.
    let cfs = Cfs::new(dir.path());
    let reference = one.layout(&layout, "os");
    let timed = |cfs: &Cfs| {
        let started = Instant::now();
        cfs.run(["switch", &reference]).expect(0);
        started.elapsed()
    };
    // On a busy machine the first one may take much longer than those that follow.
    let whole = timed(&cfs).min(timed(&cfs.on(&dir.path().join("once-more"))));
    let first_id = cfs.entries()[0].digest().to_owned();

    let mut killed = 0;
    for moment in 0..12_u32 {
        let root = dir.path().join(format!("killed-{moment}"));
        let cfs = cfs.on(&root);
        let pause = whole * moment / 12 + Duration::from_millis(3);
        one.layout(&layout, "os");

        // The first switch.
        killed += u32::from(kill_after(&cfs, &["switch", &reference], pause));
        consistent(&cfs, &[&first_id]);
        cfs.run(["switch", &reference]);
        assert_eq!(cfs.entries()[0].digest(), first_id);
        cfs.fsck();

        // An upgrade: the old entry stays complete, the new one is there whole or not at all.
        two.layout(&layout, "os");
        killed += u32::from(kill_after(&cfs, &["upgrade"], pause));
        assert!(
            cfs.entries().iter().any(|e| e.digest() == first_id),
            "old or new boots, never neither"
        );
        consistent(&cfs, &[]);
        let again = cfs.run(["upgrade"]);
        assert!([0, 77].contains(&again.code), "{again:?}");
        assert_ne!(cfs.entries()[0].digest(), first_id, "the upgrade arrived");
        cfs.fsck();
        fs::remove_dir_all(&root).unwrap();
    }
    assert!(
        killed >= 8,
        "only {killed} of 24 runs were still running when they were to be killed"
    );
}

/// Whether it was still running.
fn kill_after(cfs: &Cfs, args: &[&str], pause: Duration) -> bool {
    let mut child = cfs.spawn(args);
    thread::sleep(pause);
    let _ = child.kill();
    let status = child.wait().unwrap();
    // What it was starting when it was killed (busctl, asked whether the connection is metered) has its lock until it is
    // that other program.
    let lock = cfs.sysroot().join("state/cfs-update/lock");
    let until = Instant::now() + Duration::from_secs(10);
    let is_held = || {
        let taken = |lock| rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        fs::File::open(&lock).is_ok_and(|lock| taken(lock).is_err())
    };
    while is_held() && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    status.signal() == Some(9)
}

/// Each entry that there is has everything it names.
#[track_caller]
fn consistent(cfs: &Cfs, only: &[&str]) {
    let root = cfs.sysroot();
    for entry in cfs.entries() {
        let id = entry.digest();
        assert!(only.is_empty() || only.contains(&id));
        assert!(root.join("composefs/images").join(id).exists(), "{entry:?}");
        assert!(
            root.join("state/deploy").join(id).join("seal.json").exists(),
            "{entry:?}"
        );
        assert!(
            root.join("state/deploy").join(id).join("etc/hostname").exists(),
            "{entry:?}"
        );
        for key in ["linux", "initrd"] {
            let file = entry.get(key).unwrap().trim_start_matches('/');
            assert!(
                fs::metadata(root.join("boot").join(file)).unwrap().len() > 5000,
                "{entry:?}"
            );
        }
    }
}

#[test]
fn what_a_killed_run_left_behind_is_collected() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let reference = small(1, "a", 3, 3000).finish().layout(&layout, "os");
    cfs.run(["switch", &reference]).expect(0);
    let before = objects(&cfs);
    let silent = Silent::start();
    let mut child = cfs.spawn(["switch", &silent.reference("os:1")]);
    let _held = silent.asked();
    child.kill().unwrap();
    child.wait().unwrap();
    let dry = cfs.run(["gc", "--dry-run"]).expect(0);
    assert!(!dry.stderr.contains("panicked"));
    cfs.run(["gc"]).expect(0);
    assert_eq!(objects(&cfs), before, "gc removes nothing that a deployment needs");
    cfs.fsck();
}
