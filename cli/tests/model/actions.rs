//! What may happen to a machine, and how a seed makes a sequence of it.

use super::etc::Edit;
use super::images::{CHANNELS, IMAGES};

/// splitmix64: small, and the same everywhere for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// What is asked of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub retry: bool,
    pub downgrade: bool,
    pub automatic: bool,
    pub download: bool,
}

/// How a deployment is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Booted,
    Staged,
    Rollback,
    Index(usize),
}

/// How a boot ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The checks pass.
    Good,
    /// A required one fails.
    Bad,
    /// They have not run yet.
    Unchecked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The tag moves.
    Release {
        channel: usize,
        image: usize,
    },
    Switch {
        channel: usize,
        asked: Asked,
    },
    Upgrade(Asked),
    FromDownloaded(Asked),
    Rollback,
    Pin {
        which: Which,
        on: bool,
    },
    Delete(Which),
    DeleteDownloaded,
    Append(usize),
    Unset(usize),
    Gc,
    /// In the /etc of what runs.
    Edit(Edit),
    /// In the /var of what runs.
    Var(usize),
    /// The service of the last merge is stopped; `health check` runs once more.
    Finalize,
    Check {
        good: bool,
    },
    Reboot {
        finalize: bool,
        panics: usize,
        /// In the /etc of what panics, by somebody on its console.
        mended: Option<Edit>,
        end: End,
    },
    /// What boots next is started, and what ran before is taken in the menu after that.
    Tried(Option<Edit>),
    /// The machine is looked at from another one from now on, until it boots.
    Off,
    Keep(usize),
    /// No room for another kernel on `$BOOT`.
    Tight(bool),
    Foreign {
        entry: usize,
        there: bool,
    },
    /// The power goes after so many operations of this.
    Cut {
        after: usize,
        names: bool,
        of: Box<Action>,
    },
}

/// Kernel arguments that the machine may want.
pub const ARGUMENTS: [&str; 3] = ["debug", "console=ttyS0", "quiet"];

fn asked(random: &mut Random) -> Asked {
    Asked {
        retry: random.percent(25),
        downgrade: random.percent(25),
        automatic: false,
        download: random.percent(20),
    }
}

fn which(random: &mut Random) -> Which {
    match random.below(6) {
        0 => Which::Booted,
        1 => Which::Staged,
        2 => Which::Rollback,
        _ => Which::Index(random.below(4)),
    }
}

fn reboot(random: &mut Random) -> Action {
    Action::Reboot {
        finalize: random.percent(75),
        panics: if random.percent(25) { random.below(5) } else { 0 },
        mended: random.percent(20).then(|| Edit::any(random)),
        end: match random.below(10) {
            0..=5 => End::Good,
            6..=8 => End::Bad,
            _ => End::Unchecked,
        },
    }
}

/// One that a power cut can come into.
fn command(random: &mut Random) -> Action {
    match random.below(16) {
        0..=2 => Action::Switch {
            channel: random.below(CHANNELS),
            asked: asked(random),
        },
        3..=6 => Action::Upgrade(asked(random)),
        7 => Action::FromDownloaded(asked(random)),
        8..=10 => Action::Rollback,
        11 => Action::Pin {
            which: which(random),
            on: random.percent(60),
        },
        12 => Action::Delete(which(random)),
        13 => Action::Append(random.below(ARGUMENTS.len())),
        14 => Action::Finalize,
        _ => Action::Check {
            good: random.percent(50),
        },
    }
}

/// The sequence of a seed.
pub fn sequence(seed: u64, length: usize) -> Vec<Action> {
    let mut random = Random::new(seed);
    (0..length).map(|_| any(&mut random)).collect()
}

fn any(random: &mut Random) -> Action {
    match random.below(100) {
        0..=13 => Action::Release {
            channel: random.below(CHANNELS),
            image: random.below(IMAGES),
        },
        14..=47 => command(random),
        48..=51 => Action::Upgrade(Asked {
            automatic: true,
            download: random.percent(15),
            ..Asked::default()
        }),
        52..=53 => Action::Unset(random.below(ARGUMENTS.len())),
        54..=56 => Action::Gc,
        57..=66 => Action::Edit(Edit::any(random)),
        67 if random.percent(50) => Action::Var(random.below(4)),
        67 => Action::Tried(random.percent(70).then(|| Edit::any(random))),
        68 => Action::DeleteDownloaded,
        69 => Action::Off,
        70..=71 => Action::Keep(random.below(5)),
        72..=73 => Action::Tight(random.percent(30)),
        74..=75 => Action::Foreign {
            entry: random.below(3),
            there: random.percent(60),
        },
        76..=79 => Action::Cut {
            after: random.below(60),
            names: random.percent(50),
            of: Box::new(command(random)),
        },
        _ => reboot(random),
    }
}
