//! A verdict where it cannot be written down.

use super::*;

/// A folder that is read-only while this lives, as a file system is that was found damaged.
struct ReadOnly(PathBuf);

impl ReadOnly {
    /// `None` where this user may not mount.
    fn new(folder: PathBuf) -> Option<Self> {
        let mount = |options: &str| {
            let mut command = std::process::Command::new("mount");
            command.args(["-o", options]).args([&folder, &folder]);
            command.stderr(std::process::Stdio::null()).status().unwrap().success()
        };
        if !mount("bind") {
            println!("not tested: mounting needs root");
            return None;
        }
        assert!(mount("remount,bind,ro"));
        Some(Self(folder))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
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
fn on_a_read_only_root_the_entry_is_marked_all_the_same() {
    for good in [true, false] {
        let mut machine = Machine::new();
        machine.release(2);
        let new = machine.staged(Wishes::default()).id;
        machine.boot();
        let folders = ["state", "composefs"].map(|folder| ReadOnly::new(machine.root.join(folder)));
        if folders.iter().any(Option::is_none) {
            return;
        }
        let options = || options(&machine.root, Arc::new(RealFs), machine.booted);
        let refusal = Sysroot::open(options(), "upgrade").unwrap_err().to_string();
        assert!(refusal.contains("lock"), "{refusal}");
        let sysroot = Sysroot::open_to_mark(options(), "health").unwrap();
        let second = Sysroot::open_to_mark(options(), "health").unwrap_err();
        assert!(matches!(second, Error::Busy { .. }), "{second}");
        let mut lost = Vec::new();
        if good {
            assert!(matches!(health::approve(&sysroot).unwrap(), Verdict::Good { .. }));
        } else {
            let known = sysroot.known().unwrap();
            let verdict = health::condemn(&sysroot, &known, new, "no", &mut lost).unwrap();
            assert!(matches!(verdict, Verdict::GoBack { .. }), "{verdict:?}");
            assert!(!lost.is_empty(), "the reason is not kept");
        }
        drop((sysroot, folders));
        assert_eq!(machine.tries(new) == Tries::Good, good);
        assert_eq!(matches!(machine.tries(new), Tries::Bad { .. }), !good);
    }
}
