//! The machine: the real library on a real folder, step by step beside the model.

mod boots;
mod commands;
mod tight;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use cfs_core::boot::host::Edit;
use cfs_core::boot::{
    BootEntry, Bootloader, Caps, Entries, Finding, KernelFiles, Mark, NewEntry, PreparedEntry, Removal, Room,
    StagedEntry,
};
use cfs_core::deployment::Staged;
use cfs_core::error::{Error, Kind, Result};
use cfs_core::finalize::{self, Finalized};
use cfs_core::health::{self, HealthReport, Outcome as Checked, Ran, Verdict};
use cfs_core::ids::DeploymentId;
use cfs_core::monitor::Quiet;
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::sysroot::Sysroot;
use cfs_core::testing::{CrashFs, Loss};
use cfs_core::update::{self, Outcome, Wishes};
use cfs_core::{arguments, download, rollback, upkeep};

use super::actions::{ARGUMENTS, Action, Asked, End, Which};
use super::disk::{self, Count, Seen};
use super::etc::{self, Edit as EtcEdit, Tree};
use super::images::{self, CHANNELS, IMAGES};
use super::model::{Expected, Model, Trial};
use super::support::options;
use tight::Tight;

/// Deployment ids by content: what each image becomes on a machine of its own.
pub fn ids() -> &'static [String] {
    static IDS: OnceLock<Vec<String>> = OnceLock::new();
    IDS.get_or_init(|| {
        let mut ids = vec![String::new(); IMAGES];
        for image in (0..IMAGES).filter(|image| images::get(*image).kernel.is_some()) {
            let keep = super::scratch();
            fs::create_dir(keep.path().join("boot")).unwrap();
            let (reference, _) = images::release(&keep.path().join("images"), 0, image);
            let sysroot = Sysroot::open(options(keep.path(), Arc::new(RealFs), None), "test").unwrap();
            let outcome = update::switch(&sysroot, &reference.parse().unwrap(), Wishes::default(), &Quiet).unwrap();
            let Outcome::Staged(done) = outcome else {
                panic!("{outcome:?}")
            };
            let id = &mut ids[images::get(image).content];
            assert!(
                id.is_empty() || *id == done.id.to_hex(),
                "the same content has the same id"
            );
            *id = done.id.to_hex();
        }
        ids
    })
}

/// Which objects a store has that was tidied, by the manifests that it keeps: the same ones, whatever went before.
static TIDY: Mutex<BTreeMap<BTreeSet<String>, BTreeSet<String>>> = Mutex::new(BTreeMap::new());

pub struct Machine {
    _keep: tempfile::TempDir,
    root: PathBuf,
    folder: PathBuf,
    fs: Arc<dyn Fs>,
    model: Model,
    manifests: BTreeMap<String, usize>,
    seen: Seen,
    /// The foreign entries that are there.
    foreign: BTreeMap<&'static str, &'static str>,
}

const FOREIGN: [(&str, &str); 3] = [
    (
        "debian.conf",
        "title Debian\nversion 99\nsort-key debian\nlinux /vmlinuz\noptions root=/dev/sdb1\n",
    ),
    ("old+0-3.conf", "title Old\nlinux /vmlinuz\n"),
    ("cfs-12x.conf", "title nobody's\r\nlinux /vmlinuz\r\n"),
];

const CODES: [(Kind, u8); 7] = [
    (Kind::Failed, 1),
    (Kind::Usage, 2),
    (Kind::Trust, 3),
    (Kind::Space, 4),
    (Kind::Network, 5),
    (Kind::Busy, 6),
    (Kind::Nothing, 77),
];

fn code(error: &Error) -> u8 {
    let text = error.to_string();
    let remedy = [";", "`", "first", "nothing was changed", "already"];
    assert!(remedy.iter().any(|mark| text.contains(mark)), "no remedy in: {text}");
    if std::env::var_os("CFS_MODEL_MESSAGES").is_some() {
        eprintln!("MESSAGE {text}");
    }
    let kind = error.kind();
    CODES.iter().find(|(own, _)| *own == kind).unwrap().1
}

impl Machine {
    /// Installed with the first image, never booted.
    pub fn new() -> Self {
        let keep = super::scratch();
        let root = keep.path().join("root");
        fs::create_dir_all(root.join("boot")).unwrap();
        let folder = keep.path().join("images");
        let mut model = Model {
            keep: 2,
            ..Model::default()
        };
        let mut manifests = BTreeMap::new();
        for image in 0..IMAGES {
            let (_, manifest) = images::release(&folder, 0, image);
            manifests.insert(manifest, image);
        }
        for channel in 0..CHANNELS {
            let (reference, manifest) = images::release(&folder, channel, 0);
            model.tags.push((reference, 0, manifest));
        }
        let seen = Seen::look(&root);
        let mut machine = Self {
            _keep: keep,
            root,
            folder,
            fs: Arc::new(RealFs),
            model,
            manifests,
            seen,
            foreign: BTreeMap::new(),
        };
        machine.step(&Action::Switch {
            channel: 0,
            asked: Asked::default(),
        });
        machine
    }

    fn open(&self) -> Sysroot {
        let booted = self.model.booted.as_ref().map(|id| id.parse().unwrap());
        let mut options = options(&self.root, self.fs.clone(), booted);
        options.keep = self.model.keep;
        options.started = self.model.started;
        if self.model.tight {
            options.bootloader = Box::new(Tight(options.bootloader));
        }
        Sysroot::open(options, "test").unwrap()
    }

    fn etc(&self, id: &str) -> PathBuf {
        self.root.join("state/deploy").join(id).join("etc")
    }

    fn tree(&self, id: &str) -> Tree {
        etc::read(&self.etc(id))
    }

    fn image_etc(&self, id: &str) -> Tree {
        images::get(self.model.deployments[id].image).etc()
    }

    /// One step, and all that must be true after it.
    pub fn step(&mut self, action: &Action) {
        match action {
            Action::Cut { after, names, of } => self.cut(*after, *names, of),
            action => self.act(action),
        }
        self.look();
    }

    fn look(&mut self) {
        let before = std::mem::replace(&mut self.seen, Seen::look(&self.root));
        self.model.check(&self.seen);
        assert!(
            self.seen.boots().is_some() || self.model.deployments.is_empty(),
            "something boots"
        );
        self.model.counter = self.seen.counter;
        self.model.noted.clone_from(&self.seen.staged);
        for (file, text) in &self.foreign {
            let found = fs::read_to_string(self.root.join("boot/loader/entries").join(file)).unwrap();
            assert_eq!(found, *text, "foreign entries stay as they are");
        }
        let new: Vec<_> = self.seen.entries.iter().map(|e| e.generation).collect();
        let known: Vec<_> = before.entries.iter().map(|e| e.generation).collect();
        for generation in new.iter().filter(|generation| !known.contains(generation)) {
            assert!(*generation > before.generation(), "generations only grow");
        }
        let sysroot = self.open();
        let mut findings = Vec::new();
        let checked = upkeep::fsck(&sysroot, &mut |finding| findings.push(finding)).unwrap();
        assert_eq!(checked.damaged, 0, "fsck: {findings:#?}");
        if !self.model.untidy && !self.model.stale {
            let odd = findings
                .iter()
                .filter(|f| f.why.ends_with("removes it"))
                .collect::<Vec<_>>();
            assert!(odd.is_empty(), "fsck: {odd:#?}");
        }
        let known = sysroot.known().unwrap();
        let listed: Vec<_> = known.iter().map(|k| k.id.to_hex()).collect();
        assert_eq!(
            listed.iter().collect::<Vec<_>>(),
            self.model.listed(),
            "the order of status"
        );
        assert!(known.iter().all(|k| k.verified.is_ok()));
        let roles = sysroot.roles(&Sysroot::standing(&known));
        let hex = |id: Option<DeploymentId>| id.map(|id| id.to_hex());
        assert_eq!(
            hex(roles.rollback).as_ref(),
            self.model.rollback(),
            "what status says of a rollback"
        );
        if self.model.booted.is_some() {
            assert_eq!(
                hex(roles.staged),
                self.model.find(Which::Staged),
                "what status says is staged"
            );
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Release { channel, image } => self.model.release(&self.folder, *channel, *image),
            Action::Switch { channel, asked } => self.update(Some(*channel), *asked),
            Action::Upgrade(asked) => self.update(None, *asked),
            Action::FromDownloaded(asked) => self.take_downloaded(*asked),
            Action::Rollback => self.rollback(),
            Action::Pin { which, on } => self.pin(*which, *on),
            Action::Delete(which) => self.delete(*which),
            Action::DeleteDownloaded => {
                let had = download::forget(&self.open()).unwrap();
                assert_eq!(had, self.model.downloaded.take().is_some());
            }
            Action::Append(argument) => self.arguments(ARGUMENTS[*argument], true),
            Action::Unset(argument) => self.arguments(ARGUMENTS[*argument], false),
            Action::Gc => self.gc(),
            Action::Edit(edit) => {
                if let Some(booted) = self.model.booted.clone() {
                    edit.apply(&self.etc(&booted));
                    let tree = self.tree(&booted);
                    self.model.deployments.get_mut(&booted).unwrap().etc = tree;
                }
            }
            Action::Var(number) => {
                let name = format!("file-{number}");
                fs::write(self.root.join("state/os/default/var").join(&name), "var").unwrap();
                self.model.var.insert(name, "var".into());
            }
            Action::Finalize => self.finalize(),
            Action::Check { good } => {
                if self.model.booted.is_some() {
                    self.health(*good);
                }
            }
            Action::Reboot {
                finalize,
                panics,
                mended,
                end,
            } => {
                if *finalize {
                    self.finalize();
                }
                (0..*panics).for_each(|_| self.tried(*mended));
                self.boot(*end);
            }
            Action::Tried(mended) => self.tried(*mended),
            Action::Off => {
                (self.model.booted, self.model.started) = (None, None);
                self.model.fall_back();
            }
            Action::Keep(keep) => self.model.keep = *keep,
            Action::Tight(tight) => self.model.tight = *tight,
            Action::Foreign { entry, there } => self.foreign(*entry, *there),
            Action::Cut { .. } => unreachable!(),
        }
    }

    fn foreign(&mut self, entry: usize, there: bool) {
        let (name, text) = FOREIGN[entry];
        let path = self.root.join("boot/loader/entries").join(name);
        let _ = fs::remove_file(&path);
        self.foreign.remove(name);
        if there {
            fs::write(&path, text).unwrap();
            fs::write(self.root.join("boot/vmlinuz"), "somebody's").unwrap();
            self.foreign.insert(name, text);
        }
    }

    /// One that is good may have got a further entry, below that of the update, so that it is what a bad update goes
    /// back to.
    fn reorder(&mut self) {
        let seen = Seen::look(&self.root);
        let booted = self.model.booted.clone();
        for (id, deployment) in &mut self.model.deployments {
            let entry = seen.best(id, self.model.started);
            // Without an entry it was let go of.
            if let (Some((generation, _)), Some(entry)) = (&mut deployment.former, entry) {
                let below = seen.below(entry).expect("what booted well stays");
                assert!(below.generation >= *generation);
                *generation = below.generation;
            }
            if let (Some(entry), Some((generation, count))) = (entry, &mut deployment.entry)
                && entry.generation > *generation
            {
                let proven = (entry.count == Count::None, *count == Count::None);
                assert!(
                    proven.0 == proven.1 && (proven.0 || booted.as_ref() == Some(id)),
                    "{id}"
                );
                (*generation, *count) = (entry.generation, entry.count);
            }
        }
    }

    /// Whether this came to nothing since the power went, which [`Machine::cut`] deals with.
    fn cut_off<T>(&self, result: &Result<T>) -> bool {
        matches!(result, Err(error) if format!("{error:?}").contains("power cut")) || self.cutting()
    }

    fn cutting(&self) -> bool {
        format!("{:?}", self.fs).contains("CrashFs")
    }
}

pub fn name(which: Which) -> String {
    match which {
        Which::Booted => "booted".into(),
        Which::Staged => "staged".into(),
        Which::Rollback => "rollback".into(),
        Which::Index(index) => index.to_string(),
    }
}
