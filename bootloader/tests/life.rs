//! Long lives of a machine: installing, going back, deleting, booting well or badly, power cuts, in any order.
//!
//! A model of systemd-boot boots what the entries say, counting tries in names as it does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_bootloader::Kind;
use cfs_bootloader::counter::CountedName;
use cfs_core::boot::{BootEntry, Bootloader, Tries};
use cfs_core::error::Result;
use cfs_core::testing::{CrashFs, Loss};
use common::{delete, folder, id, new_entry, open, roll_back, stage};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Install { n: u8, kernel: u8 },
    RollBack(u8),
    Delete(u8),
    CleanUp,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Do(Step),
    /// The power goes after so many operations.
    Cut(Step, usize, Loss),
    /// The machine boots; the health checks say this.
    Boot {
        good: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..5, 1u8..4).prop_map(|(n, kernel)| Step::Install { n, kernel }),
        2 => (1u8..5).prop_map(Step::RollBack),
        2 => (1u8..5).prop_map(Step::Delete),
        1 => Just(Step::CleanUp),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let loss = prop_oneof![Just(Loss::Content), Just(Loss::Names)];
    prop_oneof![
        3 => step().prop_map(Event::Do),
        2 => (step(), 0usize..26, loss).prop_map(|(step, cut, loss)| Event::Cut(step, cut, loss)),
        2 => any::<bool>().prop_map(|good| Event::Boot { good }),
    ]
}

struct Machine {
    _keep: tempfile::TempDir,
    base: PathBuf,
    stashes: usize,
    /// The highest generation given out, as the caller keeps it.
    highest: u64,
}

impl Machine {
    fn new() -> Self {
        let keep = folder();
        let base = keep.path().join("sysroot");
        std::fs::create_dir(&base).unwrap();
        Self {
            _keep: keep,
            base,
            stashes: 0,
            highest: 0,
        }
    }

    fn fs(&mut self) -> CrashFs {
        self.stashes += 1;
        let stash = self.base.with_file_name(format!("stash-{}", self.stashes));
        std::fs::create_dir(&stash).unwrap();
        CrashFs::new(&self.base, &stash).with_fat(&self.base.join("boot"))
    }

    fn loader(&mut self) -> Box<dyn Bootloader> {
        let fs = Arc::new(self.fs());
        open(Kind::SystemdBoot, &self.base.join("boot"), fs)
    }

    /// Whether it was done; `false` where it was refused, as the last entry that works is not deleted.
    fn run(&mut self, loader: &dyn Bootloader, step: Step) -> Result<bool> {
        match step {
            Step::Install { n, kernel } => {
                let generation = loader.entries()?.next_generation(self.highest)?;
                self.highest = generation;
                let new = new_entry(n, generation, &format!("6.{kernel}"));
                loader.publish(stage(loader, n, &new)?)?;
            }
            Step::RollBack(n) => {
                let whole = |entry: &BootEntry| entry.is_complete();
                if !loader.entries()?.of(&id(n)).is_some_and(whole) {
                    return Ok(false);
                }
                self.highest = self.highest.max(roll_back(loader, n)?.generation);
            }
            Step::Delete(n) => {
                let last = loader.plan_removal(&[id(n)]).is_err();
                return if last {
                    Ok(false)
                } else {
                    delete(loader, n).map(|()| true)
                };
            }
            Step::CleanUp => loader.remove(&loader.plan_cleanup()?)?,
        }
        Ok(true)
    }

    /// What systemd-boot and then systemd-bless-boot do; the entry that was booted.
    fn boot(&mut self, good: bool) -> Option<BootEntry> {
        let booted = self.loader().entries().unwrap().next_entry()?.clone();
        let folder = self.base.join("boot/loader/entries");
        let tried = CountedName::parse(&booted.file).tried();
        rename(&folder, &booted.file, &tried.to_string());
        if good {
            rename(&folder, &tried.to_string(), &tried.good().to_string());
        }
        Some(booted)
    }
}

fn rename(folder: &Path, from: &str, to: &str) {
    std::fs::rename(folder.join(from), folder.join(to)).unwrap();
}

/// Some entries stand where a deployment was installed once; what is listed is whole.
fn check(loader: &dyn Bootloader, installed: bool) {
    let entries = loader.entries().unwrap();
    assert!(entries.next_entry().is_some() || !installed, "nothing boots");
    for entry in &entries.ours {
        assert!(entry.is_complete() && !entry.changed, "{entry:?}");
    }
    let damage: Vec<_> = loader
        .check()
        .unwrap()
        .into_iter()
        .filter(|finding| finding.damage)
        .collect();
    assert!(damage.is_empty(), "{damage:?}");
    // Bad entries come last, and below them the newest first.
    let rank = |entry: &BootEntry| (!matches!(entry.tries, Tries::Bad { .. }), entry.generation);
    assert!(
        entries.ours.is_sorted_by(|a, b| rank(a) > rank(b)),
        "{:?}",
        entries.ours
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn something_whole_always_boots(events in prop::collection::vec(event(), 1..24)) {
        let mut machine = Machine::new();
        let mut installed = false;
        for event in events {
            match event {
                Event::Do(step) => {
                    let loader = machine.loader();
                    let done = machine.run(&*loader, step).unwrap();
                    let next = loader.entries().unwrap().next_entry().and_then(|entry| entry.id);
                    match step {
                        Step::Install { n, .. } | Step::RollBack(n) if done => prop_assert_eq!(next, Some(id(n))),
                        Step::Delete(n) if done => prop_assert_ne!(next, Some(id(n))),
                        _ => {}
                    }
                    installed |= matches!(step, Step::Install { .. });
                }
                Event::Cut(step, cut, loss) => {
                    let fs = Arc::new(machine.fs().cut_after(cut));
                    let loader = open(Kind::SystemdBoot, &machine.base.join("boot"), fs.clone());
                    let done = machine.run(&*loader, step);
                    fs.lose(loss);
                    installed |= done.is_ok() && matches!(step, Step::Install { .. });
                }
                Event::Boot { good } => {
                    let before = machine.loader().entries().unwrap();
                    let booted = machine.boot(good);
                    if let Some(booted) = booted.filter(|_| !good) {
                        // Three failures at most, then another one, if any is left that was not bad.
                        for _ in 0..4 {
                            machine.boot(false);
                        }
                        let next = machine.loader().entries().unwrap().next_entry().cloned().unwrap();
                        let works = |entry: &&BootEntry| !matches!(entry.tries, Tries::Bad { .. });
                        let good = |entry: &&BootEntry| entry.tries == Tries::Good;
                        let left = before.ours.iter().filter(works).count();
                        if booted.tries == Tries::Good {
                            prop_assert_eq!(next.file, booted.file);
                        } else if left > 1 && before.ours.iter().any(|entry| good(&entry)) {
                            prop_assert_ne!(next.generation, booted.generation);
                        }
                    }
                }
            }
            check(&*machine.loader(), installed);
        }
        let loader = machine.loader();
        loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
        prop_assert_eq!(loader.check().unwrap(), []);
    }
}
