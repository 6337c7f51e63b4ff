//! The program at its command line, on the root of a machine that does not run: exit codes, documents, and that
//! nothing is changed by what does not succeed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::actions::{ARGUMENTS, Action, Asked, End};
use super::common::Cfs;
use super::disk::{self, Seen};
use super::images::{self, CHANNELS, IMAGES};
use super::machine::{ids, name};
use super::model::{Expected, Model};

pub struct Program {
    _keep: tempfile::TempDir,
    cfs: Cfs,
    folder: PathBuf,
    model: Model,
    manifests: BTreeMap<String, usize>,
}

/// What an error document says, by exit code (docs/commands.md).
const KINDS: [(i32, &str); 7] = [
    (1, "failed"),
    (2, "usage"),
    (3, "trust"),
    (4, "space"),
    (5, "network"),
    (6, "busy"),
    (77, "nothing-to-do"),
];

impl Program {
    pub fn new() -> Self {
        let keep = super::scratch();
        let folder = keep.path().join("images");
        let mut model = Model {
            keep: 2,
            ..Model::default()
        };
        let manifests = (0..IMAGES).map(|image| (images::release(&folder, 0, image).1, image));
        let manifests = manifests.collect();
        for channel in 0..CHANNELS {
            let (reference, manifest) = images::release(&folder, channel, 0);
            model.tags.push((reference, 0, manifest));
        }
        let cfs = Cfs::new(keep.path());
        fs::create_dir_all(cfs.sysroot().join("boot")).unwrap();
        let mut program = Self {
            cfs,
            _keep: keep,
            folder,
            model,
            manifests,
        };
        program.update(Some(0), Asked::default());
        program.look();
        program
    }

    fn seen(&self) -> Seen {
        Seen::look(self.cfs.sysroot())
    }

    /// Runs a command; what does not succeed says so in a document with a remedy, and changes nothing.
    fn run(&self, arguments: &[&str]) -> i32 {
        let before = disk::state(self.cfs.sysroot());
        let ran = self
            .cfs
            .run(arguments.iter().copied().chain(["--json", "--progress", "none"]));
        if ran.code == 0 {
            if !ran.stdout.is_empty() {
                ran.json();
            }
            return 0;
        }
        let last = ran.stderr.lines().last().unwrap_or_default();
        let document: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {ran:?}"));
        let error = &document["error"];
        assert_eq!(error["code"], ran.code, "{arguments:?}: {ran:?}");
        let kind = KINDS.iter().find(|(code, _)| *code == ran.code).map(|(_, kind)| *kind);
        assert_eq!(error["kind"].as_str(), kind, "{arguments:?}");
        let after = disk::state(self.cfs.sysroot());
        assert!(after == before, "{arguments:?} changed something: {ran:?}");
        ran.code
    }

    pub fn step(&mut self, action: &Action) {
        match action {
            Action::Release { channel, image } => self.model.release(&self.folder, *channel, *image),
            Action::Switch { channel, asked } => self.update(Some(*channel), *asked),
            Action::Upgrade(asked) => self.update(None, *asked),
            Action::FromDownloaded(asked) => self.take_downloaded(*asked),
            Action::Rollback => {
                let expected = i32::from(self.model.rollback().is_none());
                assert_eq!(self.run(&["rollback"]), expected);
            }
            Action::Pin { which, on } => {
                let expected = if self.model.find(*which).is_some() { 0 } else { 2 };
                let command = if *on { "pin" } else { "unpin" };
                assert_eq!(self.run(&[command, &name(*which)]), expected);
            }
            Action::Delete(which) => {
                let found = self.model.find(*which);
                let stays = |id: &String| Some(id) == self.model.next() || self.model.deployments[id].pinned;
                let code = self.run(&["delete", &name(*which)]);
                let refused = if found.is_some() { 1 } else { 2 };
                assert!(
                    code == refused || found.as_ref().is_some_and(|id| !stays(id)),
                    "{found:?}"
                );
            }
            Action::DeleteDownloaded => {
                let expected = if self.model.downloaded.is_some() { 0 } else { 2 };
                assert_eq!(self.run(&["delete", "downloaded"]), expected);
            }
            Action::Append(argument) => self.arguments("--append", ARGUMENTS[*argument]),
            Action::Unset(argument) => self.arguments("--delete", ARGUMENTS[*argument]),
            Action::Gc => {
                assert_eq!(self.run(&["gc"]), 0);
                let again = self.cfs.run(["gc", "--dry-run", "--json"]).expect(0).json();
                assert_eq!(again["bytes"], 0, "{again}");
            }
            Action::Edit(edit) => {
                if let Some(next) = self.model.next() {
                    edit.apply(&self.cfs.sysroot().join("state/deploy").join(next).join("etc"));
                }
            }
            Action::Check { .. } => assert_eq!(self.run(&["health", "good"]), 1),
            Action::Finalize => assert_eq!(self.run(&["finalize"]), 0),
            Action::Off => assert_eq!(self.run(&["rollback", "--apply"]), 2),
            Action::Reboot { panics, end, .. } => self.boot(*panics, *end),
            _ => return,
        }
        self.look();
    }

    /// All that must be true; the model takes over what is there.
    fn look(&mut self) {
        let seen = self.seen();
        assert_eq!(seen.kernels, seen.named(), "kernels are those that entries name");
        assert!(seen.entries.iter().all(|entry| seen.records.contains_key(&entry.id)));
        for id in seen.records.keys() {
            // The one that is to prove itself, and one that has, or had no tries left.
            assert!((1..=2).contains(&seen.counting(id, None).len()), "{:#?}", seen.entries);
        }
        let manifests = self.manifests.clone();
        self.model.adopt(&seen, |manifest| manifests[manifest]);
        self.model.noted.clone_from(&seen.staged);
        self.cfs.fsck();
        let status = self.cfs.status();
        let boots = &status["status"];
        let places = ["staged", "booted", "rollback"]
            .iter()
            .filter(|place| !boots[**place].is_null())
            .count();
        let others = boots["otherDeployments"].as_array().map_or(0, Vec::len);
        assert_eq!(places + others, seen.records.len(), "{status:#}");
    }

    fn update(&mut self, channel: Option<usize>, asked: Asked) {
        let followed = self
            .model
            .listed()
            .first()
            .map(|id| self.model.deployments[*id].reference.clone());
        let of = |reference: String| self.model.tags.iter().position(|(own, ..)| *own == reference).unwrap();
        let of_model = channel.or_else(|| followed.map(of)).unwrap();
        let reference = self.model.tags[of_model].0.clone();
        // What the timer fetches only is a setting.
        let asked = Asked {
            download: asked.download && !asked.automatic,
            ..asked
        };
        let mut command = match (channel, asked.automatic) {
            (Some(_), _) => vec!["switch", &reference],
            (None, true) => vec!["auto", "run"],
            (None, false) => vec!["upgrade"],
        };
        let flags = [
            (asked.retry, "--retry"),
            (asked.downgrade, "--allow-downgrade"),
            (asked.download, "--download-only"),
        ];
        command.extend(flags.iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| *flag));
        let kernels = self.seen().kernels;
        let expected = self.model.update(of_model, asked, ids(), &kernels);
        let nothing = if channel.is_some() { 0 } else { 77 };
        let code = match expected {
            Expected::Staged(_) | Expected::Downloaded { already: false } => 0,
            Expected::Unchanged | Expected::Downloaded { already: true } => nothing,
            Expected::FailedBefore if asked.automatic => 77,
            Expected::FailedBefore => 1,
            Expected::Refused(code) => code.into(),
        };
        assert_eq!(self.run(&command), code, "{command:?}: {expected:?}");
        if matches!(expected, Expected::Staged(_)) {
            assert_eq!(self.run(&["upgrade"]), 77, "the same once more");
            assert_eq!(self.run(&["upgrade", "--check"]), 77);
        }
    }

    fn take_downloaded(&mut self, asked: Asked) {
        let manifests = self.manifests.clone();
        let kernels = self.seen().kernels;
        let expected = self
            .model
            .take_downloaded(asked, |manifest| manifests[manifest], ids(), &kernels);
        let mut command = vec!["upgrade", "--from-downloaded"];
        let flags = [(asked.retry, "--retry"), (asked.downgrade, "--allow-downgrade")];
        command.extend(flags.iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| *flag));
        let code = match expected {
            Expected::Staged(_) => 0,
            Expected::Refused(code) => code.into(),
            _ => 1,
        };
        assert_eq!(self.run(&command), code, "{command:?}: {expected:?}");
    }

    fn arguments(&self, how: &str, argument: &str) {
        let there = self.model.arguments.iter().any(|own| own == argument);
        let next = self.model.next().map(|id| &self.model.deployments[id]);
        let current = next.is_some_and(|next| next.arguments == self.model.arguments);
        let code = match (how, there) {
            ("--delete", false) => 2,
            _ if next.is_none() => 1,
            ("--append", true) if current => 77,
            _ => 0,
        };
        assert_eq!(self.run(&["kargs", how, argument]), code, "{how} {argument}");
    }

    /// The boot loader counts, and systemd-bless-boot marks.
    fn boot(&self, panics: usize, end: End) {
        let folder = self.cfs.sysroot().join("boot/loader/entries");
        for panicked in 0..=panics {
            let file = self.seen().boots().unwrap().file.clone();
            let tried = disk::tried(&file);
            fs::rename(folder.join(&file), folder.join(&tried)).unwrap();
            if let (true, Some((stem, counter))) = (panicked == panics, tried.split_once('+')) {
                let marked = match end {
                    End::Good => format!("{stem}.conf"),
                    End::Bad => format!("{stem}+00-{}", counter.split_once('-').unwrap().1),
                    End::Unchecked => continue,
                };
                fs::rename(folder.join(&tried), folder.join(marked)).unwrap();
            }
        }
    }
}
