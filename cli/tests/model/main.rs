//! The life of a machine as a whole: random sequences of everything that may happen to one, on the real library, beside a
//! model of what the documentation promises (`model.rs`). After every step everything is compared and `fsck` runs.
//!
//! `CFS_MODEL_SECONDS` says for how long sequences are tried (10 where it is not set), `CFS_MODEL_SEED` which one is the
//! first; one that fails is made shorter as long as it fails, and printed with its seed.

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
#[path = "../support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use actions::Action;
use common::scratch;
use machine::Machine;

const LENGTH: usize = 60;

/// What is wrong with a sequence, and at which step; `None` where all holds.
fn failure(actions: &[Action]) -> Option<(usize, String)> {
    let mut at = 0;
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut machine = Machine::new();
        for (index, action) in actions.iter().enumerate() {
            at = index;
            machine.step(action);
        }
    }));
    let panic = run.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some((at, text.unwrap_or_default()))
}

/// The shortest sequence found that still fails.
fn shrunk(mut actions: Vec<Action>, at: usize) -> Vec<Action> {
    actions.truncate(at + 1);
    let mut piece = actions.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < actions.len() {
            let mut shorter = actions.clone();
            shorter.drain(from..(from + piece).min(shorter.len()));
            match failure(&shorter) {
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

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn whatever_happens_to_a_machine_it_does_what_the_documentation_says() {
    let until = Instant::now() + Duration::from_secs(setting("CFS_MODEL_SECONDS", 10));
    let first = setting("CFS_MODEL_SEED", 1);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut sequences, mut failed) = (0, None);
    for seed in first.. {
        let actions = actions::sequence(seed, LENGTH);
        if let Some((at, _)) = failure(&actions) {
            let short = shrunk(actions, at);
            let why = failure(&short).map(|(_, why)| why);
            failed = Some((seed, short, why));
            break;
        }
        sequences += 1;
        if Instant::now() > until {
            break;
        }
    }
    std::panic::set_hook(hook);
    println!("{sequences} sequences of {LENGTH} steps from seed {first} on");
    if let Some((seed, short, why)) = failed {
        let steps: Vec<_> = short.iter().map(|action| format!("{action:?}")).collect();
        let why = why.unwrap_or_else(|| "not when it is tried again".into());
        panic!("seed {seed}: {why}\n{}", steps.join("\n"));
    }
}
