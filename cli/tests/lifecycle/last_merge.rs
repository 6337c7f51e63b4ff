//! In whatever order updates, rollbacks, shutdowns and power cuts come: what boots and never ran has the changes of the
//! /etc that ran before it, or says which it lacks; and what ran keeps its own.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A path and its permissions and content; folders have none.
type Tree = BTreeMap<PathBuf, (u32, Option<String>)>;

fn tree(etc: &Path) -> Tree {
    fn below(etc: &Path, at: &Path, tree: &mut Tree) {
        for entry in std::fs::read_dir(etc.join(at)).unwrap() {
            let path = at.join(entry.unwrap().file_name());
            let found = etc.join(&path).symlink_metadata().unwrap();
            let content = found
                .is_file()
                .then(|| std::fs::read_to_string(etc.join(&path)).unwrap());
            tree.insert(path.clone(), (found.permissions().mode(), content));
            if found.is_dir() {
                below(etc, &path, tree);
            }
        }
    }
    let mut found = Tree::new();
    below(etc, Path::new(""), &mut found);
    found
}

/// A machine whose administrator changes something in every way before each step.
struct Story {
    machine: Machine,
    told: String,
    versions: u32,
    steps: u32,
    /// The /etc of each that ran, as it was left.
    left: BTreeMap<DeploymentId, Tree>,
    /// What the administrator did in the /etc of each that ran, by path: what has to be there, or nothing.
    changes: BTreeMap<DeploymentId, BTreeSet<PathBuf>>,
}

impl Story {
    fn new() -> Self {
        let machine = Machine::new();
        let one = machine.booted.unwrap();
        Self {
            told: String::new(),
            versions: 1,
            steps: 0,
            left: BTreeMap::from([(one, tree(&machine.etc(one)))]),
            changes: BTreeMap::from([(one, BTreeSet::new())]),
            machine,
        }
    }

    fn booted(&self) -> DeploymentId {
        self.machine.booted.unwrap()
    }

    /// Adds a file, removes the one before it, and changes what an image has.
    fn administer(&mut self) {
        self.steps += 1;
        let booted = self.booted();
        let etc = self.machine.etc(booted);
        let (new, old) = (format!("new-{}", self.steps), format!("new-{}", self.steps - 1));
        std::fs::write(etc.join(&new), "new").unwrap();
        let _ = std::fs::remove_file(etc.join(&old));
        std::fs::write(etc.join("app.conf"), format!("mine {}", self.steps)).unwrap();
        let mode = std::fs::Permissions::from_mode(0o600 + self.steps % 8);
        std::fs::set_permissions(etc.join("app.conf"), mode).unwrap();
        let changes = self.changes.get_mut(&booted).unwrap();
        changes.extend([new, old, "app.conf".into()].map(PathBuf::from));
    }

    fn step(&mut self, step: char) {
        self.administer();
        self.told.push(step);
        match step {
            'U' => {
                self.versions += 1;
                self.machine.release(self.versions);
                self.machine.staged(NONE);
            }
            // There may be nothing to go back to.
            'R' => drop(rollback::rollback(&self.machine.open())),
            // What is not gone back to is let go of, so that the next rollback finds what is below it.
            'D' => drop(rollback::delete(&self.machine.open(), "rollback")),
            'S' => {
                finalize::finalize(&self.machine.open(), &Quiet).unwrap();
                self.boot();
            }
            'P' => self.boot(),
            other => panic!("{other}"),
        }
    }

    fn boot(&mut self) {
        let before = self.booted();
        self.left.insert(before, tree(&self.machine.etc(before)));
        let booted = self.machine.boot();
        let missed = finalize::missed(&self.machine.open()).unwrap();
        let here = tree(&self.machine.etc(booted));
        match self.left.get(&booted) {
            Some(left) => {
                assert_eq!(*left, here, "{}: what ran keeps its own /etc", self.told);
                assert_eq!(missed, None, "{}", self.told);
            }
            None => {
                let merged = self.told.ends_with('S');
                self.arrived(before, &here, missed, merged);
                let inherited = self.changes[&before].clone();
                self.changes.insert(booted, inherited);
            }
        }
        finalize::told(&self.machine.open()).unwrap();
        self.machine.check(None);
    }

    fn arrived(&self, before: DeploymentId, here: &Tree, missed: Option<finalize::Missed>, merged: bool) {
        let there = &self.left[&before];
        let differs = |path: &&PathBuf| there.get(*path) != here.get(*path);
        let lacks: BTreeSet<_> = self.changes[&before].iter().filter(differs).cloned().collect();
        let told = missed
            .iter()
            .flat_map(|missed| missed.files.iter().chain(&missed.removed));
        let told: BTreeSet<_> = told.cloned().collect();
        assert_eq!(told, lacks, "{}: {missed:?}", self.told);
        assert!(!merged || lacks.is_empty(), "{}: {lacks:?}", self.told);
        assert!(missed.is_none_or(|missed| missed.from == before), "{}", self.told);
    }
}

fn all(steps: &str) {
    let mut story = Story::new();
    for step in steps.chars() {
        story.step(step);
    }
    story.machine.fsck();
}

#[test]
fn two_updates_and_two_rollbacks_in_any_order_end_with_the_last_merge_or_say_what_is_missed() {
    for order in ["UURR", "URUR", "URRU", "RUUR", "RURU", "RRUU"] {
        all(&format!("{order}SRP"));
        all(&format!("{order}PRS"));
    }
}

#[test]
fn an_update_that_comes_back_from_a_third_deployment_gets_the_etc_that_runs_then_or_says_what_it_lacks() {
    // The second update runs; what the first update was merged from is let go of; the first update comes back.
    for story in ["UUSDRS", "UUPDRP", "UUSDRRRP"] {
        all(story);
    }
}

#[test]
fn an_update_that_nobody_made_the_next_gets_no_merge_and_says_what_it_lacks_of_what_ran_before() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.release(3);
    let three = machine.staged(NONE).id;
    finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert_eq!(machine.boot(), three);
    machine.check(None);
    std::fs::write(machine.etc(three).join("late"), "late").unwrap();
    // Taken in the menu of the boot loader.
    machine.booted = Some(two);
    machine.misses(three, "late");
    assert!(!machine.etc(two).join("late").exists() && machine.etc(one).exists());
}
