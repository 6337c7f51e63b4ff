//! What is cut in the crash tests, and what has to hold after each cut.

use cfs_core::boot::{BootEntry, Bootloader};
use cfs_core::error::Result;

use super::{delete, install, roll_back};

pub type Step = fn(&dyn Bootloader) -> Result<()>;

/// What is there before, and what is then done and cut.
pub struct Scenario {
    pub name: &'static str,
    pub before: Step,
    pub cut: Step,
}

pub const SCENARIOS: [Scenario; 7] = [
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
pub fn bootable(loader: &dyn Bootloader) -> Vec<BootEntry> {
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

/// Old or new boots: `old` and `new` are the entries that boot next before and after; `done` when the work had been
/// reported as done before the cut.
pub fn check(loader: &dyn Bootloader, old: Option<&str>, new: &str, done: bool, at: &str) {
    let found = bootable(loader);
    let entries = loader.entries().unwrap();
    let Some(next) = entries.next_entry() else {
        assert!(old.is_none() && !done, "{at}: nothing boots");
        return;
    };
    assert!(found.contains(next), "{at}: what boots next is not whole: {next:?}");
    let expected = next.file == new || !done && Some(next.file.as_str()) == old;
    assert!(expected, "{at}: {} boots next, not {old:?} or {new}", next.file);
    for entry in &entries.ours {
        assert!(entry.is_complete() && !entry.changed, "{at}: half an entry: {entry:?}");
    }
}

/// The same command again succeeds, and cleaning up leaves nothing that is not needed.
pub fn check_again(loader: &dyn Bootloader, scenario: &Scenario, done: bool, at: &str) {
    if !done {
        (scenario.cut)(loader).unwrap_or_else(|e| panic!("{at}: again: {e}"));
    }
    loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
    let findings = loader.check().unwrap();
    assert!(findings.is_empty(), "{at}: {findings:?}");
    assert!(loader.plan_cleanup().unwrap().is_empty(), "{at}");
}

pub fn next(loader: &dyn Bootloader) -> Option<String> {
    loader.entries().unwrap().next
}
