//! Promise 1 on a file system without a journal: FAT may keep any part of what was not synced, in any order.
//!
//! What is done is recorded. For every operation at which the power may go, every state is made that such a file
//! system may be in: of the changes of names that no sync covers, any subset; a rename may leave both names or
//! neither; content that was not synced is cut short. In each of them old or new boots.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cfs_core::error::{Error, Result};
use cfs_core::sys::fs::{Fs, RealFs};
use common::crash::{SCENARIOS, Scenario, check, check_again, next};
use common::{KINDS, folder, open, snapshot};

/// A change of one name, or a sync.
#[derive(Clone, Debug)]
enum Change {
    /// This name leads to this file or, with `None`, to a folder.
    Link(PathBuf, Option<usize>),
    Unlink(PathBuf),
    SyncFile(usize),
    SyncFolder(PathBuf),
}

impl Change {
    fn name(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) => Some(path),
            Self::SyncFile(_) | Self::SyncFolder(_) => None,
        }
    }
}

/// Does everything for real and writes it down, one group for each operation.
#[derive(Debug, Default)]
struct Recorder {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    groups: Vec<Vec<Change>>,
    /// Contents of files, by number.
    files: Vec<Vec<u8>>,
    /// What the names lead to now.
    names: BTreeMap<PathBuf, Option<usize>>,
}

impl Recorder {
    /// Everything that is below `base` is durable.
    fn starting_from(base: &Path) -> Self {
        let mut state = State::default();
        for (path, content) in snapshot(base) {
            let path = base.join(path);
            let file = path.is_file().then(|| {
                state.files.push(content);
                state.files.len() - 1
            });
            state.names.insert(path, file);
        }
        Self {
            state: Mutex::new(state),
        }
    }

    fn record(&self, make: impl FnOnce(&mut State) -> Vec<Change>) {
        let mut state = self.state.lock().unwrap();
        let group = make(&mut state);
        for change in &group {
            match change {
                Change::Link(path, file) => drop(state.names.insert(path.clone(), *file)),
                Change::Unlink(path) => drop(state.names.remove(path)),
                Change::SyncFile(_) | Change::SyncFolder(_) => {}
            }
        }
        state.groups.push(group);
    }
}

impl Fs for Recorder {
    fn create_dir(&self, path: &Path, mode: u32) -> Result<()> {
        let new = !path.exists();
        RealFs.create_dir(path, mode)?;
        self.record(|_| {
            if new {
                vec![Change::Link(path.into(), None)]
            } else {
                Vec::new()
            }
        });
        Ok(())
    }

    fn create(&self, path: &Path, mode: u32, content: &mut dyn Read) -> Result<u64> {
        let mut bytes = Vec::new();
        content
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", path, e))?;
        let written = RealFs.create(path, mode, &mut bytes.as_slice())?;
        self.record(|state| {
            state.files.push(bytes);
            vec![Change::Link(path.into(), Some(state.files.len() - 1))]
        });
        Ok(written)
    }

    fn symlink(&self, _: &Path, path: &Path) -> Result<()> {
        panic!("no links on FAT: {}", path.display())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        RealFs.rename(from, to)?;
        self.record(|state| vec![Change::Link(to.into(), state.names[from]), Change::Unlink(from.into())]);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        let there = path.exists();
        RealFs.remove_file(path)?;
        self.record(|_| {
            if there {
                vec![Change::Unlink(path.into())]
            } else {
                Vec::new()
            }
        });
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        RealFs.remove_dir_all(path)?;
        self.record(|state| {
            let below = state.names.keys().filter(|name| name.starts_with(path)).rev();
            below.map(|name| Change::Unlink(name.clone())).collect()
        });
        Ok(())
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        self.record(|state| state.names[path].map(Change::SyncFile).into_iter().collect());
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.record(|_| vec![Change::SyncFolder(path.into())]);
        Ok(())
    }

    fn sync_all(&self, path: &Path) -> Result<()> {
        panic!("boot loaders sync what they wrote, not all of {}", path.display())
    }
}

/// The states in which the names and files may be found when the power goes after `cut` operations.
fn states(start: &State, end: &State, cut: usize) -> BTreeSet<BTreeMap<PathBuf, Option<Vec<u8>>>> {
    let changes: Vec<&Change> = end.groups[..cut].iter().flatten().collect();
    let synced_after = |at: usize, path: &Path| {
        let folder = path.parent().unwrap();
        changes[at..]
            .iter()
            .any(|later| matches!(later, Change::SyncFolder(synced) if synced == folder))
    };
    let durable = |at: usize| changes[at].name().is_some_and(|path| synced_after(at, path));
    let pending: Vec<usize> = (0..changes.len())
        .filter(|at| changes[*at].name().is_some() && !durable(*at))
        .collect();
    assert!(pending.len() < 12, "too much at once without a sync: {pending:?}");
    let written = |file: usize| {
        file < start.files.len()
            || changes
                .iter()
                .any(|change| matches!(change, Change::SyncFile(n) if *n == file))
    };

    let mut states = BTreeSet::new();
    for mask in 0..1usize << pending.len() {
        let kept = |at: usize| {
            durable(at)
                || pending
                    .iter()
                    .position(|own| *own == at)
                    .is_some_and(|bit| mask >> bit & 1 == 1)
        };
        let mut names = start.names.clone();
        for at in (0..changes.len()).filter(|at| kept(*at)) {
            match changes[at] {
                Change::Link(path, file) => drop(names.insert(path.clone(), *file)),
                Change::Unlink(path) => drop(names.remove(path)),
                Change::SyncFile(_) | Change::SyncFolder(_) => {}
            }
        }
        let content = |file: usize| {
            let whole = &end.files[file];
            if written(file) {
                whole.clone()
            } else {
                whole[..whole.len() / 2].to_vec()
            }
        };
        states.insert(
            names
                .into_iter()
                .map(|(path, file)| (path, file.map(content)))
                .collect(),
        );
    }
    states
}

/// Makes a state below `base`, which is empty; what is in a folder that got lost is lost as well.
fn materialize(state: &BTreeMap<PathBuf, Option<Vec<u8>>>, was: &Path, base: &Path) {
    for (path, content) in state {
        let path = base.join(path.strip_prefix(was).unwrap());
        match content {
            _ if !path.parent().unwrap().is_dir() => {}
            None => std::fs::create_dir(&path).unwrap(),
            Some(content) => std::fs::write(&path, content).unwrap(),
        }
    }
}

fn run(kind: cfs_bootloader::Kind, scenario: &Scenario) -> usize {
    let keep = folder();
    let boot = keep.path().join("boot");
    let loader = open(kind, &boot, Arc::new(Recorder::default()));
    (scenario.before)(&*loader).unwrap();
    let old = next(&*loader);

    let recorder = Arc::new(Recorder::starting_from(keep.path()));
    let start = recorder.state.lock().unwrap().clone();
    (scenario.cut)(&*open(kind, &boot, recorder.clone())).unwrap();
    let end = recorder.state.lock().unwrap().clone();
    let new = next(&*loader).unwrap();

    let mut seen = 0;
    for cut in 0..=end.groups.len() {
        let done = cut == end.groups.len();
        for state in states(&start, &end, cut) {
            let at = format!("{}, cut after {cut}, state {state:?}", scenario.name);
            let after = folder();
            materialize(&state, keep.path(), after.path());
            let loader = open(
                kind,
                &after.path().join("boot"),
                Arc::new(Recorder::starting_from(after.path())),
            );
            check(&*loader, old.as_deref(), &new, done, &at);
            check_again(&*loader, scenario, done, &at);
            seen += 1;
        }
    }
    seen
}

#[test]
fn old_or_new_boots_whatever_part_of_the_unsynced_was_kept() {
    for kind in KINDS {
        for scenario in &SCENARIOS {
            let seen = run(kind, scenario);
            assert!(seen > 5, "{}: only {seen} states", scenario.name);
        }
    }
}

#[test]
fn the_recorder_loses_what_was_not_synced() {
    let keep = folder();
    let base = keep.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::write(base.join("old"), "kept").unwrap();
    let fs = Recorder::starting_from(&base);
    let start = fs.state.lock().unwrap().clone();
    fs.create(&base.join(".#a"), 0o644, &mut &b"12"[..]).unwrap();
    fs.rename(&base.join(".#a"), &base.join("a")).unwrap();
    let shown = |cut| {
        let end = fs.state.lock().unwrap().clone();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let one = |state: BTreeMap<PathBuf, Option<Vec<u8>>>| {
            let each = state.iter().map(|(path, content)| {
                format!("{}={}", name(path), String::from_utf8_lossy(content.as_ref().unwrap()))
            });
            each.collect::<Vec<_>>().join(" ")
        };
        states(&start, &end, cut).into_iter().map(one).collect::<BTreeSet<_>>()
    };
    // Neither name, either, both; never more than half the content.
    assert_eq!(
        shown(2).into_iter().collect::<Vec<_>>(),
        [".#a=1 a=1 old=kept", ".#a=1 old=kept", "a=1 old=kept", "old=kept"]
    );
    fs.sync_file(&base.join("a")).unwrap();
    fs.sync_dir(&base).unwrap();
    assert_eq!(shown(4).into_iter().collect::<Vec<_>>(), ["a=12 old=kept"]);
}
