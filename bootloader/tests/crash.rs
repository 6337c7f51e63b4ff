//! Promise 1, checked by cutting the power after every single operation: old or new boots, never neither.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use cfs_bootloader::Kind;
use cfs_core::boot::Bootloader;
use cfs_core::testing::{CrashFs, Loss};
use common::crash::{SCENARIOS, Scenario, check, check_again, next};
use common::{KINDS, delete, folder, install, open, roll_back, snapshot};

/// A `$BOOT` in a folder of its own, with a place for what a cut brings back.
struct Machine {
    _keep: tempfile::TempDir,
    boot: PathBuf,
    stash: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let keep = folder();
        let (base, stash) = (keep.path().join("sysroot"), keep.path().join("stash"));
        for folder in [&base, &stash] {
            std::fs::create_dir(folder).unwrap();
        }
        Self {
            _keep: keep,
            boot: base.join("boot"),
            stash,
        }
    }

    /// Each with a stash of its own.
    fn crash_fs(&self) -> CrashFs {
        let stash = self
            .stash
            .join(std::fs::read_dir(&self.stash).unwrap().count().to_string());
        std::fs::create_dir(&stash).unwrap();
        CrashFs::new(self.boot.parent().unwrap(), &stash).with_fat(&self.boot)
    }

    /// Not cut; syncing costs nothing.
    fn loader(&self, kind: Kind) -> Box<dyn Bootloader> {
        open(kind, &self.boot, Arc::new(self.crash_fs()))
    }
}

/// Runs a scenario, cutting after `cut` operations; whether it was finished before.
fn run(kind: Kind, scenario: &Scenario, cut: usize, loss: Loss) -> bool {
    let at = format!("{}, cut after {cut}, {loss:?}", scenario.name);
    let machine = Machine::new();
    let loader = machine.loader(kind);
    (scenario.before)(&*loader).unwrap();
    let old = next(&*loader);
    let new = new_next(kind, scenario);

    let fs = Arc::new(machine.crash_fs().cut_after(cut));
    let done = (scenario.cut)(&*open(kind, &machine.boot, fs.clone())).is_ok();
    fs.lose(loss);

    check(&*loader, old.as_deref(), &new, done, &at);
    check_again(&*loader, scenario, done, &at);
    done
}

/// What boots next once all is done.
fn new_next(kind: Kind, scenario: &Scenario) -> String {
    let machine = Machine::new();
    let loader = machine.loader(kind);
    (scenario.before)(&*loader).unwrap();
    (scenario.cut)(&*loader).unwrap();
    next(&*loader).unwrap()
}

#[test]
fn old_or_new_boots_wherever_the_power_is_cut() {
    for kind in KINDS {
        for scenario in &SCENARIOS {
            for loss in [Loss::Content, Loss::Names] {
                let operations = (0..200).find(|cut| run(kind, scenario, *cut, loss));
                let operations = operations.unwrap_or_else(|| panic!("{} never ends", scenario.name));
                assert!(
                    operations > 3,
                    "{}: only {operations} operations were cut",
                    scenario.name
                );
            }
        }
    }
}

#[test]
fn staging_and_publishing_write_in_the_golden_order() {
    let machine = Machine::new();
    let fs = Arc::new(machine.crash_fs());
    let loader = open(Kind::SystemdBoot, &machine.boot, fs.clone());
    let mut log = vec!["# first installation".to_owned()];
    let mut seen = 0;
    let mut section = |log: &mut Vec<String>, title: &str| {
        let all = fs.log();
        log.extend(all[seen..].iter().cloned());
        seen = all.len();
        log.push(title.to_owned());
    };
    install(&*loader, 1, "6.1").unwrap();
    section(&mut log, "# upgrade, same kernel");
    install(&*loader, 2, "6.1").unwrap();
    section(&mut log, "# upgrade, another kernel");
    install(&*loader, 3, "6.3").unwrap();
    section(&mut log, "# rollback");
    roll_back(&*loader, 2).unwrap();
    section(&mut log, "# delete");
    delete(&*loader, 3).unwrap();
    section(&mut log, "# end");
    let log = log.join("\n") + "\n";
    let golden = include_str!("../testdata/boot-publish-order.txt");
    assert!(
        log == golden,
        "testdata/boot-publish-order.txt is not what is written now:\n{log}"
    );
}

#[test]
fn a_cut_changes_no_entry_that_was_there() {
    let machine = Machine::new();
    let loader = machine.loader(Kind::SystemdBoot);
    install(&*loader, 1, "6.1").unwrap();
    let before = snapshot(&machine.boot);
    for cut in 0..12 {
        let fs = Arc::new(machine.crash_fs().cut_after(cut));
        let cut_loader = open(Kind::SystemdBoot, &machine.boot, fs.clone());
        let staged = common::stage(&*cut_loader, 2, &common::new_entry(2, 2, "6.2"));
        fs.lose(Loss::Content);
        drop(staged);
        let after = snapshot(&machine.boot);
        assert!(before.iter().all(|file| after.contains(file)), "cut after {cut}");
    }
}
