//! The life of a machine as a whole: random sequences of everything that may happen to one, on the real library and,
//! as far as another system's root can be worked on, with the real program, beside a model of what the documentation
//! promises (`model.rs`). After every step everything is compared and `fsck` runs.
//!
//! `CFS_MODEL_SECONDS` says for how long sequences are tried (6 where it is not set, for each of the two),
//! `CFS_MODEL_SEED` which one is the first; one that fails is made shorter as long as it fails, and printed with its
//! seed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod actions;
#[allow(dead_code, reason = "made for the end-to-end tests")]
#[path = "../e2e/common/mod.rs"]
mod common;
mod disk;
mod etc;
mod images;
mod machine;
mod model;
mod program;
#[path = "../support/mod.rs"]
mod support;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use actions::Action;
use machine::Machine;
use program::Program;

const LENGTH: usize = 60;

/// One test at a time: a child process that starts shares for a moment the lock that the other test holds.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Failures of sequences are told by the test.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What is wrong with a sequence, and at which step; `None` where all holds.
fn failure(actions: &[Action], run: fn(&[Action], &mut usize)) -> Option<(usize, String)> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                hook(info);
            }
        }));
    });
    let mut at = 0;
    QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(|| run(actions, &mut at)));
    QUIET.set(false);
    let panic = done.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some((at, text.unwrap_or_default()))
}

/// The shortest sequence found that still fails.
fn shrunk(mut actions: Vec<Action>, at: usize, run: fn(&[Action], &mut usize)) -> Vec<Action> {
    actions.truncate(at + 1);
    let mut piece = actions.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < actions.len() {
            let mut shorter = actions.clone();
            shorter.drain(from..(from + piece).min(shorter.len()));
            match failure(&shorter, run) {
                Some((at, _)) => {
                    shorter.truncate(at + 1);
                    actions = shorter;
                }
                None => from += piece,
            }
        }
        piece /= 2;
    }
    actions
}

/// A folder in memory, where there is one: power cuts are made, not waited for.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(folder) => folder,
        Err(_) => common::scratch(),
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Tries sequences as long as there is time.
fn explore(run: fn(&[Action], &mut usize)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let until = Instant::now() + Duration::from_secs(setting("CFS_MODEL_SECONDS", 6));
    let first = setting("CFS_MODEL_SEED", 1);
    let mut sequences = 0;
    for seed in first.. {
        let actions = actions::sequence(seed, LENGTH);
        if let Some((at, _)) = failure(&actions, run) {
            let short = shrunk(actions, at, run);
            let why = failure(&short, run).map(|(_, why)| why);
            let steps: Vec<_> = short.iter().map(|action| format!("{action:?}")).collect();
            let why = why.unwrap_or_else(|| "not when it is tried again".into());
            panic!("seed {seed}: {why}\n{}", steps.join("\n"));
        }
        sequences += 1;
        if Instant::now() > until {
            break;
        }
    }
    println!("{sequences} sequences of {LENGTH} steps from seed {first} on");
}

#[test]
fn whatever_happens_to_a_machine_it_does_what_the_documentation_says() {
    explore(|actions, at| {
        let mut machine = Machine::new();
        for (index, action) in actions.iter().enumerate() {
            *at = index;
            machine.step(action);
        }
    });
}

/// Its record has the one manifest then, and the name that keeps it leads to the other.
#[test]
fn a_switch_to_another_image_of_the_same_content_may_lose_its_power_at_any_moment() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = actions::Asked::default();
    for after in (0..60).step_by(3) {
        let mut machine = Machine::new();
        machine.step(&Action::Release { channel: 0, image: 1 });
        machine.step(&Action::Upgrade(asked));
        machine.step(&Action::Release { channel: 1, image: 4 });
        machine.step(&Action::Cut {
            after,
            names: after % 2 == 0,
            of: Box::new(Action::Switch { channel: 1, asked }),
        });
    }
}

#[test]
fn whatever_the_program_is_told_it_ends_as_documented_and_a_failure_leaves_all_as_it_was() {
    explore(|actions, at| {
        let mut program = Program::new();
        for (index, action) in actions.iter().enumerate() {
            *at = index;
            program.step(action);
        }
    });
}
