//! Promise 1, checked by cutting the power after every single operation: old or new boots, never neither.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use cfs_bootloader::Kind;
use cfs_core::boot::{BootEntry, Bootloader};
use cfs_core::error::Result;
use cfs_core::testing::{CrashFs, Loss};
use common::{KINDS, delete, install, open, roll_back, snapshot};

/// A `$BOOT` in a folder of its own, with a place for what a cut brings back.
struct Machine {
    _keep: tempfile::TempDir,
    boot: PathBuf,
    stash: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
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
        CrashFs::new(self.boot.parent().unwrap(), &stash)
    }

    /// Not cut; syncing costs nothing.
    fn loader(&self, kind: Kind) -> Box<dyn Bootloader> {
        open(kind, &self.boot, Arc::new(self.crash_fs()))
    }
}

type Step = fn(&dyn Bootloader) -> Result<()>;

/// What is there before, and what is then done and cut.
struct Scenario {
    name: &'static str,
    before: Step,
    cut: Step,
}

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "first installation",
        before: |_| Ok(()),
        cut: |loader| install(loader, 1, "6.1").map(drop),
    },
    Scenario {
        name: "upgrade with another kernel",
        before: |loader| install(loader, 1, "6.1").map(drop),
        cut: |loader| install(loader, 2, "6.2").map(drop),
    },
    Scenario {
        name: "upgrade with the same kernel",
        before: |loader| install(loader, 1, "6.1").map(drop),
        cut: |loader| install(loader, 2, "6.1").map(drop),
    },
    Scenario {
        name: "rollback",
        before: |loader| {
            install(loader, 1, "6.1")
                .and_then(|_| install(loader, 2, "6.2"))
                .map(drop)
        },
        cut: |loader| roll_back(loader, 1).map(drop),
    },
    Scenario {
        name: "delete",
        before: |loader| {
            install(loader, 1, "6.1")
                .and_then(|_| install(loader, 2, "6.2"))
                .map(drop)
        },
        cut: |loader| delete(loader, 1),
    },
    Scenario {
        name: "third deployment, then the first goes",
        before: |loader| {
            install(loader, 1, "6.1")
                .and_then(|_| install(loader, 2, "6.2"))
                .map(drop)
        },
        cut: |loader| install(loader, 3, "6.3").and_then(|_| delete(loader, 1)),
    },
    Scenario {
        name: "a damaged kernel is written anew",
        before: |loader| {
            let entry = install(loader, 1, "6.1")?;
            install(loader, 2, "6.2")?;
            std::fs::write(loader.boot_dir().join(entry.linux.trim_start_matches('/')), "flipped").unwrap();
            Ok(())
        },
        cut: |loader| install(loader, 3, "6.1").map(drop),
    },
];

/// Entries that the loader could boot, with kernel and initrd as they were written.
fn bootable(loader: &dyn Bootloader) -> Vec<BootEntry> {
    let damaged: Vec<String> = loader
        .check()
        .unwrap()
        .into_iter()
        .filter(|f| f.damage)
        .map(|f| f.what)
        .collect();
    let whole = |entry: &BootEntry| {
        let folder = entry.linux.trim_start_matches('/').trim_end_matches("/linux");
        entry.is_complete() && !damaged.iter().any(|what| what == folder)
    };
    loader.entries().unwrap().ours.into_iter().filter(whole).collect()
}

/// Runs a scenario, cutting after `cut` operations; whether it was finished before.
fn run(kind: Kind, scenario: &Scenario, cut: usize, loss: Loss) -> bool {
    let at = format!("{}, cut after {cut}, {loss:?}", scenario.name);
    let machine = Machine::new();
    let loader = machine.loader(kind);
    (scenario.before)(&*loader).unwrap();
    let old = bootable(&*loader);

    let fs = Arc::new(machine.crash_fs().cut_after(cut));
    let done = (scenario.cut)(&*open(kind, &machine.boot, fs.clone())).is_ok();
    fs.lose(loss);

    let found = bootable(&*loader);
    let entries = loader.entries().unwrap();
    assert!(!found.is_empty() || old.is_empty() && !done, "{at}: nothing boots");
    let next = entries.next_entry();
    assert!(next.is_some() || old.is_empty() && !done, "{at}: nothing boots next");
    if let Some(next) = next {
        assert!(found.contains(next), "{at}: what boots next is not whole: {next:?}");
    }
    for entry in &entries.ours {
        assert!(entry.is_complete(), "{at}: half an entry: {entry:?}");
    }

    // The same command again succeeds, and cleaning up leaves nothing that is not needed.
    if !done {
        (scenario.cut)(&*loader).unwrap_or_else(|e| panic!("{at}: again: {e}"));
    }
    loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
    let findings = loader.check().unwrap();
    assert!(findings.is_empty(), "{at}: {findings:?}");
    assert!(loader.plan_cleanup().unwrap().is_empty(), "{at}");
    done
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
