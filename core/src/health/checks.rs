//! Finding the checks and running them.
//!
//! Ours are in `usr/lib/cfs-update/health.d` and `etc/cfs-update/health.d`: one in /etc replaces the one of the same
//! name in /usr, a link to /dev/null or an empty file masks it. Those of greenboot follow ([`greenboot`]).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::greenboot;
use super::report::{Outcome, Ran};
use crate::error::Result;
use crate::etc;
use crate::sys::fs;
use crate::sys::process::{self, Ended};

/// Ends of names that editors and package managers give to what they keep or put beside a file.
const LEFTOVERS: [&str; 18] = [
    "bak",
    "dpkg-backup",
    "dpkg-bak",
    "dpkg-dist",
    "dpkg-new",
    "dpkg-old",
    "dpkg-remove",
    "dpkg-tmp",
    "orig",
    "pacnew",
    "pacsave",
    "rpmnew",
    "rpmorig",
    "rpmsave",
    "swp",
    "ucf-dist",
    "ucf-new",
    "ucf-old",
];

/// A program that says whether this boot is good: exit code 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Where it is, as the running system sees it.
    pub path: PathBuf,
    /// Whether the boot is bad when it fails; else that is only reported.
    pub required: bool,
    /// How it is run.
    pub means: Means,
}

/// How a check is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// It is a program.
    Itself,
    /// By bash, whatever it is and whether or not it can be executed: a script of greenboot's.
    Bash,
    /// Not at all: greenboot's settings disable it.
    Disabled,
}

/// How long and how often a check may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For one run of one check; then it is killed and has failed.
    pub time: Duration,
    /// How often a failing check is run before it counts, 1 or more: a network that is not up yet is no bad update.
    pub attempts: u32,
    /// Between two attempts.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(120),
            attempts: 3,
            pause: Duration::from_secs(5),
        }
    }
}

/// The checks of the system whose root is `root`, in the order in which they are run: ours by name, then greenboot's
/// required and wanted ones.
///
/// # Errors
/// A folder that is there and cannot be read: its checks cannot be said to have passed.
pub fn find(root: &Path) -> Result<Vec<Check>> {
    let mut ours = BTreeMap::new();
    for folder in ["usr/lib/cfs-update/health.d", "etc/cfs-update/health.d"] {
        let names = names(&root.join(folder))?.into_iter();
        for name in names.filter(|name| !name.starts_with('.') && !is_leftover(name)) {
            ours.insert(name.clone(), root.join(folder).join(name));
        }
    }
    let masked = |path: &Path| std::fs::metadata(path).is_ok_and(|found| !found.is_dir() && found.len() == 0);
    let check = |path| Check {
        path,
        required: true,
        means: Means::Itself,
    };
    let ours = ours.into_values().filter(|path| !masked(path));
    let mut checks: Vec<Check> = ours.map(check).collect();
    checks.extend(greenboot::find(root)?);
    Ok(checks)
}

/// Names in a folder or one that a link leads to, sorted; none where there is none.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    if !fs::leads_to_dir(folder) {
        return Ok(Vec::new());
    }
    let names = fs::names(folder)?.into_iter();
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Whether the name is that of another version of a file: an editor's, a package manager's, or that of a merge of /etc.
pub(super) fn is_leftover(name: &str) -> bool {
    let end = name.rsplit_once('.').map(|(_, end)| end);
    name.ends_with('~') || end.is_some_and(|end| LEFTOVERS.contains(&end)) || etc::is_kept_beside(Path::new(name))
}

/// Runs all checks one after the other, the remaining ones also when one fails; `each` hears of each result at once.
pub fn run(checks: &[Check], limits: Limits, each: &mut dyn FnMut(&Ran)) -> Vec<Ran> {
    let one = |check: &Check| {
        let begun = Instant::now();
        let (outcome, attempts) = attempts(check, limits);
        let ran = Ran {
            check: check.path.display().to_string(),
            required: check.required,
            outcome,
            attempts,
            seconds: begun.elapsed().as_secs(),
        };
        each(&ran);
        ran
    };
    checks.iter().map(one).collect()
}

fn attempts(check: &Check, limits: Limits) -> (Outcome, u32) {
    let mut attempt = 1;
    loop {
        let outcome = once(check, limits.time);
        let again = matches!(outcome, Outcome::Failed { .. }) && attempt < limits.attempts;
        if !again {
            return (outcome, attempt);
        }
        std::thread::sleep(limits.pause);
        attempt += 1;
    }
}

fn once(check: &Check, limit: Duration) -> Outcome {
    let failed = |why: String| Outcome::Failed { why };
    let skipped = |why: &str| Outcome::Skipped { why: why.into() };
    let path = check.path.as_os_str();
    let (program, arguments) = match check.means {
        Means::Disabled => return skipped("DISABLED_HEALTHCHECKS in /etc/greenboot/greenboot.conf names it"),
        Means::Bash => (OsStr::new("bash"), vec![path]),
        Means::Itself => match fs::is_executable(&check.path) {
            Ok(true) => (path, Vec::new()),
            Ok(false) => return skipped("it is no executable file; `chmod +x` it or take it away"),
            Err(e) => return failed(e.to_string()),
        },
    };
    match process::run_for(program, &arguments, limit) {
        Err(e) => failed(e.to_string()),
        Ok((Ended::Exited(0), _)) => Outcome::Passed,
        Ok((ended, said)) => {
            let how = match ended {
                Ended::Exited(code) => format!("exit code {code}"),
                Ended::Signalled(signal) => format!("ended by signal {signal}"),
                Ended::TimedOut => format!("not done after {} s", limit.as_secs()),
            };
            match last_line(&said) {
                None => failed(how),
                Some(line) => failed(format!("{how}: {line}")),
            }
        }
    }
}

/// The last thing that a program said, without control characters, 200 characters at most.
fn last_line(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().rev().find(|line| !line.trim().is_empty())?;
    let clean = line.trim().chars().filter(|c| !c.is_control());
    Some(clean.take(200).collect())
}
