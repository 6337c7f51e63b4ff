//! The machine: the real library on a real folder, step by step beside the model.

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
use super::etc::{self, Tree};
use super::images::{self, CHANNELS, IMAGES};
use super::model::{Expected, Model};
use super::support::options;

/// Like the loader it holds, on a `$BOOT` without room for another kernel.
#[derive(Debug)]
struct Tight(Box<dyn Bootloader>);

impl Bootloader for Tight {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn caps(&self) -> Caps {
        self.0.caps()
    }
    fn boot_dir(&self) -> &Path {
        self.0.boot_dir()
    }
    fn entries(&self) -> Result<Entries> {
        self.0.entries()
    }
    fn check_writable(&self) -> Result<()> {
        self.0.check_writable()
    }
    fn room(&self, kernel: &KernelFiles) -> Result<Room> {
        let room = self.0.room(kernel)?;
        Ok(Room {
            free: if room.shared { room.free } else { 0 },
            ..room
        })
    }
    fn prepare(&self, new: &NewEntry) -> Result<PreparedEntry> {
        assert!(self.room(&new.kernel)?.free > 0, "room is asked for before");
        self.0.prepare(new)
    }
    fn publish(&self, staged: StagedEntry) -> Result<BootEntry> {
        self.0.publish(staged)
    }
    fn plan_removal(&self, ids: &[DeploymentId]) -> Result<Removal> {
        self.0.plan_removal(ids)
    }
    fn plan_cleanup(&self) -> Result<Removal> {
        self.0.plan_cleanup()
    }
    fn plan_sweep(&self, known: &[DeploymentId]) -> Result<Removal> {
        self.0.plan_sweep(known)
    }
    fn remove(&self, plan: &Removal) -> Result<()> {
        self.0.remove(plan)
    }
    fn mark(&self, entry: &BootEntry, mark: Mark) -> Result<String> {
        self.0.mark(entry, mark)
    }
    fn check(&self) -> Result<Vec<Finding>> {
        self.0.check()
    }
    fn programs(&self, architecture: &str) -> Vec<String> {
        self.0.programs(architecture)
    }
    fn install(&self, esp: &Path, architecture: &str, program: &[u8]) -> Result<Vec<String>> {
        self.0.install(esp, architecture, program)
    }
}

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
                    let written = edit.apply(&self.etc(&booted));
                    let tree = self.tree(&booted);
                    self.model.deployments.get_mut(&booted).unwrap().etc = tree;
                    let waiting = self.model.deployments.values_mut();
                    for other in waiting.filter(|d| !d.ran && d.from.as_ref() == Some(&booted)) {
                        other.since.extend(written);
                    }
                }
            }
            Action::Var(number) => {
                let name = format!("file-{number}");
                fs::write(self.root.join("state/os/default/var").join(&name), "var").unwrap();
                self.model.var.insert(name, "var".into());
            }
            Action::Finalize => self.finalize(),
            Action::Check { good } => {
                // Where its entry was made since the boot, that boot shows nothing of it.
                let of = |id: &String| self.model.deployments[id].count();
                let untried = |id: &&String| matches!(of(id), Some(Count::Left(_, 0)));
                if self.model.booted.iter().any(|id| !untried(&id)) {
                    self.health(*good);
                }
            }
            Action::Reboot { finalize, panics, end } => {
                if *finalize {
                    self.finalize();
                }
                self.boot(*panics, *end);
            }
            Action::Off => self.model.booted = None,
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

    fn wishes(asked: Asked) -> Wishes {
        Wishes {
            allow_downgrade: asked.downgrade,
            retry: asked.retry,
            automatic: asked.automatic,
            download_only: asked.download,
        }
    }

    /// `switch` where there is a channel, else `upgrade`.
    fn update(&mut self, channel: Option<usize>, asked: Asked) {
        let followed = || {
            self.model
                .listed()
                .first()
                .map(|id| self.model.deployments[*id].reference.clone())
        };
        let of = |reference: String| self.model.tags.iter().position(|(own, ..)| *own == reference).unwrap();
        let channel_of_model = channel.or_else(|| followed().map(of));
        let sysroot = self.open();
        let run = |sysroot: &Sysroot| match channel {
            Some(channel) => {
                let reference = self.model.tags[channel].0.parse().unwrap();
                update::switch(sysroot, &reference, Self::wishes(asked), &Quiet)
            }
            None => update::upgrade(sysroot, Self::wishes(asked), &Quiet),
        };
        let outcome = run(&sysroot);
        if !self.cut_off(&outcome) {
            let again = matches!(outcome, Ok(Outcome::Staged(_))).then(|| run(&sysroot));
            drop(sysroot);
            let expected = match channel_of_model {
                Some(channel) => self.model.update(channel, asked, ids(), &self.seen.kernels),
                None => Expected::Refused(1),
            };
            let source = channel_of_model.map(|channel| self.model.tags[channel].clone());
            self.updated(outcome, &expected, source);
            if let Some(again) = again {
                assert!(
                    matches!(again, Ok(Outcome::Unchanged { .. })),
                    "the same once more: {again:?}"
                );
            }
        }
    }

    fn take_downloaded(&mut self, asked: Asked) {
        let outcome = update::from_downloaded(&self.open(), Self::wishes(asked), &Quiet);
        if self.cut_off(&outcome) {
            return;
        }
        let image_of = |manifest: &str| self.manifests[manifest];
        let source = self.model.downloaded.clone();
        let source = source.map(|(reference, manifest)| (reference, image_of(&manifest), manifest));
        let expected = self.model.take_downloaded(asked, image_of, ids(), &self.seen.kernels);
        self.updated(outcome, &expected, source);
    }

    fn updated(&mut self, outcome: Result<Outcome>, expected: &Expected, source: Option<(String, usize, String)>) {
        let found = match &outcome {
            Ok(Outcome::Staged(done)) => Expected::Staged(done.id.to_hex()),
            Ok(Outcome::Unchanged { .. }) => Expected::Unchanged,
            Ok(Outcome::FailedBefore(_)) => Expected::FailedBefore,
            Ok(Outcome::Downloaded { already, .. }) => Expected::Downloaded { already: *already },
            Err(error) => Expected::Refused(code(error)),
        };
        assert_eq!(found, *expected, "{outcome:?}");
        let (Ok(Outcome::Staged(done)), Some(source)) = (outcome, source) else {
            return;
        };
        let id = done.id.to_hex();
        let result = self.tree(&id);
        let base = self
            .model
            .current()
            .cloned()
            .or_else(|| self.model.listed().first().map(|id| (*id).clone()));
        let new = images::get(source.1).etc();
        match base {
            None => assert_eq!(result, new),
            Some(base) if base == id => assert_eq!(result, self.model.deployments[&id].etc),
            Some(base) => {
                let here = &self.model.deployments[&base].etc;
                etc::merged(&self.image_etc(&base), here, &new, &result).unwrap();
            }
        }
        self.model.stage(&id, source, done.generation, result);
        let gone: BTreeSet<_> = done.removed.iter().map(DeploymentId::to_hex).collect();
        self.model.may_go(&gone).unwrap();
        self.reorder();
        self.model.deployments.retain(|id, _| !gone.contains(id));
        self.model.untidy = false;
    }

    /// One that is good may have got a further entry, below that of the update, so that it is what a bad update goes back to.
    fn reorder(&mut self) {
        let seen = Seen::look(&self.root);
        let booted = self.model.booted.clone();
        for (id, deployment) in &mut self.model.deployments {
            let entry = seen.entries.iter().find(|e| e.id == *id);
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

    fn rollback(&mut self) {
        let done = rollback::rollback(&self.open());
        if self.cut_off(&done) {
            return;
        }
        let Some(target) = self.model.rollback().cloned() else {
            assert_eq!(code(&done.unwrap_err()), 1);
            return;
        };
        let done = done.unwrap();
        let next = self.model.next().cloned();
        let staged = self.model.find(Which::Staged);
        assert_eq!(done.id.to_hex(), target, "the previous one boots next");
        assert_eq!(done.instead_of.map(|id| id.to_hex()), next);
        if self.model.booted.is_some() {
            assert_eq!(done.was_staged, staged.is_some());
        }
        if let Some(left) = next {
            let manifest = self.model.deployments[&left].manifest.clone();
            self.model.failed.remove(&self.model.deployments[&target].manifest);
            self.model.failed.entry(manifest).or_insert(true);
        }
        let target = self.model.deployments.get_mut(&target).unwrap();
        let count = match target.count() {
            Some(Count::None) => Count::None,
            _ => Count::Left(3, 0),
        };
        target.entry = Some((done.generation, count));
        self.model.untidy = false;
    }

    fn pin(&mut self, which: Which, on: bool) {
        let done = rollback::pin(&self.open(), &name(which), on);
        if self.cut_off(&done) {
            return;
        }
        match self.model.find(which) {
            Some(id) => {
                assert_eq!(done.unwrap().to_hex(), id);
                self.model.deployments.get_mut(&id).unwrap().pinned = on;
            }
            None => assert_eq!(code(&done.unwrap_err()), 1),
        }
    }

    fn delete(&mut self, which: Which) {
        let before = disk::state(&self.root);
        let done = rollback::delete(&self.open(), &name(which));
        if self.cut_off(&done) {
            return;
        }
        let refused = |id: &String| {
            let pinned = self.model.deployments[id].pinned;
            self.model.booted.as_ref() == Some(id) || self.model.next() == Some(id) || pinned
        };
        match self.model.find(which).filter(|id| !refused(id)) {
            Some(id) => {
                // Of those that cannot boot the last one stays.
                let boots = |(own, d): (&String, &super::model::Deployment)| *own != id && d.entry.is_some();
                if self.model.deployments.iter().any(boots) || self.model.deployments[&id].entry.is_none() {
                    assert_eq!(done.unwrap().to_hex(), id);
                    self.model.deployments.remove(&id);
                } else {
                    assert_eq!(code(&done.unwrap_err()), 1);
                }
            }
            None => {
                assert_eq!(code(&done.unwrap_err()), 1);
                assert_eq!(disk::state(&self.root), before);
            }
        }
    }

    fn arguments(&mut self, argument: &str, append: bool) {
        let mut edit = Edit::default();
        let list = if append { &mut edit.append } else { &mut edit.delete };
        list.push(argument.into());
        let sysroot = self.open();
        let done = arguments::change(&sysroot, &edit, &Quiet);
        if self.cut_off(&done) {
            return;
        }
        let mut wanted = self.model.arguments.clone();
        let there = wanted.iter().position(|own| own == argument);
        match (append, there) {
            (true, None) => wanted.push(argument.into()),
            (false, Some(at)) => drop(wanted.remove(at)),
            (false, None) => {
                assert_eq!(code(&done.unwrap_err()), 2);
                return;
            }
            (true, Some(_)) => {}
        }
        let Some(next) = self.model.next().cloned() else {
            assert_eq!(code(&done.unwrap_err()), 1);
            return;
        };
        let deployment = self.model.deployments.get_mut(&next).unwrap();
        let current = deployment.arguments == wanted;
        if current && wanted == self.model.arguments {
            assert_eq!(code(&done.unwrap_err()), 77);
            return;
        }
        done.unwrap();
        self.model.arguments.clone_from(&wanted);
        if !current {
            deployment.arguments = wanted;
            let entry = Seen::look(&self.root).boots().unwrap().clone();
            assert!(entry.id == next && entry.count == Count::Left(3, 0), "{entry:?}");
            deployment.entry = Some((entry.generation, entry.count));
            self.model.untidy = false;
            self.reorder();
        }
        if append {
            let again = arguments::change(&sysroot, &edit, &Quiet).unwrap_err();
            assert_eq!(code(&again), 77, "the same once more");
        }
    }

    fn gc(&mut self) {
        let sysroot = self.open();
        upkeep::gc(&sysroot, false).unwrap();
        let again = upkeep::gc(&sysroot, true).unwrap();
        let nothing = again.deployments.is_empty() && again.names.is_empty() && again.leftovers.is_empty();
        assert!(nothing && again.boot.is_empty() && again.store.is_empty(), "{again:#?}");
        drop(sysroot);
        let next = self.model.boots().cloned();
        self.model.deployments.retain(|id, d| {
            assert!(d.entry.is_some() || Some(id) != next.as_ref());
            d.entry.is_some() || d.pinned || self.model.booted.as_ref() == Some(id)
        });
        (self.model.untidy, self.model.stale) = (false, false);
        let kept = self.model.deployments.values().map(|d| d.manifest.clone());
        let kept = kept.chain(self.model.downloaded.iter().map(|(_, manifest)| manifest.clone()));
        let objects = Seen::look(&self.root).objects;
        let mut tidy = TIDY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let former = tidy.entry(kept.collect()).or_insert_with(|| objects.clone());
        assert_eq!(*former, objects, "gc leaves what is needed and nothing else");
    }

    fn finalize(&mut self) {
        let Some(booted) = self.model.booted.clone() else {
            return;
        };
        let done = finalize::finalize(&self.open(), &Quiet);
        if self.cut_off(&done) {
            return;
        }
        let next = self.model.next().filter(|next| **next != booted).cloned();
        let waits = next.filter(|next| {
            let next = &self.model.deployments[next];
            !next.ran && next.from.as_ref() == Some(&booted)
        });
        let done = done.unwrap();
        let Some(id) = waits else {
            // What cannot boot may get the merge as well.
            if let Finalized::Merged { id, .. } = done {
                let id = id.to_hex();
                let dead = self.model.deployments[&id].count().is_none_or(Count::is_bad);
                assert!(dead, "{id} does not wait for the /etc of what runs");
                let tree = self.tree(&id);
                self.model.deployments.get_mut(&id).unwrap().etc = tree;
            }
            return;
        };
        assert!(
            matches!(&done, Finalized::Merged { id: found, .. } if found.to_hex() == id),
            "{id}: {done:?}"
        );
        let result = self.tree(&id);
        let here = &self.model.deployments[&booted].etc;
        etc::merged(&self.image_etc(&booted), here, &self.image_etc(&id), &result).unwrap();
        let deployment = self.model.deployments.get_mut(&id).unwrap();
        deployment.etc = result;
        deployment.since.clear();
        assert!(matches!(
            finalize::finalize(&self.open(), &Quiet),
            Ok(Finalized::Merged { .. })
        ));
        assert_eq!(self.tree(&id), self.model.deployments[&id].etc, "the same once more");
    }

    /// The boot loader takes entries and counts until one comes up.
    fn boot(&mut self, panics: usize, end: End) {
        for panicked in 0..=panics {
            let seen = Seen::look(&self.root);
            let entry = seen.boots().unwrap().clone();
            let folder = self.root.join("boot/loader/entries");
            fs::rename(folder.join(&entry.file), folder.join(disk::tried(&entry.file))).unwrap();
            let deployment = self.model.deployments.get_mut(&entry.id).unwrap();
            if let Some((generation, Count::Left(left, done))) = deployment.entry
                && generation == entry.generation
            {
                deployment.entry = Some((generation, Count::Left(left.saturating_sub(1), done + 1)));
            }
            if panicked == panics {
                self.model.booted = Some(entry.id);
            }
        }
        let booted = self.model.booted.clone().unwrap();
        let deployment = self.model.deployments.get_mut(&booted).unwrap();
        let (since, from) = (std::mem::take(&mut deployment.since), deployment.from.clone());
        let first = !std::mem::replace(&mut deployment.ran, true);
        if end == End::Unchecked {
            return;
        }
        let missed = finalize::missed(&self.open()).unwrap();
        let told: BTreeSet<_> = missed.iter().flat_map(|missed| &missed.files).collect();
        for path in since.iter().filter(|_| first) {
            let there = from
                .as_ref()
                .is_some_and(|from| fs::symlink_metadata(self.etc(from).join(path)).is_ok_and(|f| !f.is_dir()));
            assert!(
                !there || told.contains(&PathBuf::from(path)),
                "{path} is missed: {missed:?}"
            );
        }
        self.health(end == End::Good);
    }

    /// What the health service does.
    fn health(&mut self, good: bool) {
        let booted = self.model.booted.clone().unwrap();
        let sysroot = self.open();
        let layout = sysroot.deployments().layout();
        if Staged::load(layout)
            .unwrap()
            .is_some_and(|staged| staged.id.to_hex() == booted)
        {
            Staged::clear(&RealFs, layout).unwrap();
        }
        let outcome = match good {
            true => Checked::Passed,
            false => Checked::Failed { why: "bad".into() },
        };
        let ran = Ran {
            check: "check".into(),
            required: true,
            outcome,
            attempts: 1,
            seconds: 0,
        };
        let report = HealthReport::new(sysroot.booted(), None, vec![ran]);
        let verdict = health::judge(&sysroot, &report, false);
        drop(sysroot);
        if self.cut_off(&verdict) {
            return;
        }
        self.model.settle();
        self.judged(&booted, good, verdict.unwrap());
    }

    fn judged(&mut self, booted: &str, good: bool, verdict: Verdict) {
        let counted = self.model.deployments[booted]
            .count()
            .is_some_and(|count| count != Count::None);
        let others: Vec<_> = self
            .model
            .deployments
            .iter()
            .filter(|(id, d)| *id != booted && d.count().is_some_and(|count| !count.is_bad()))
            .map(|(id, d)| (id.clone(), d.count() == Some(Count::None)))
            .collect();
        let running = self.model.deployments.get_mut(booted).unwrap();
        match (good, counted) {
            (true, false) => assert_eq!(verdict, Verdict::StillGood),
            (true, true) => {
                assert!(
                    matches!(verdict, Verdict::Good { by_systemd: false, .. }),
                    "{verdict:?}"
                );
                running.entry = running.entry.map(|(generation, _)| (generation, Count::None));
                self.model.failed.remove(&running.manifest);
            }
            (false, false) => assert!(matches!(verdict, Verdict::NoLongerGood { .. }), "{verdict:?}"),
            (false, true) if others.is_empty() => assert!(matches!(verdict, Verdict::Alone { .. }), "{verdict:?}"),
            (false, true) => {
                let Verdict::GoBack { to, .. } = verdict else {
                    panic!("{verdict:?}")
                };
                if let Some((generation, Count::Left(_, done))) = running.entry {
                    running.entry = Some((generation, Count::Left(0, done)));
                }
                self.model.failed.insert(running.manifest.clone(), false);
                self.reorder();
                assert_eq!(Some(&to.to_hex()), self.model.boots(), "what it says boots next");
                let to = to.to_hex();
                let proven = self.model.deployments[&to].count() == Some(Count::None);
                let better = others.iter().any(|(_, good)| *good);
                assert!(proven || !better, "the last good deployment boots next, not {to}");
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

    /// The power goes while `of` is under way; afterwards the machine boots.
    fn cut(&mut self, after: usize, names: bool, of: &Action) {
        let stash = self.root.with_extension("stash");
        let _ = fs::remove_dir_all(&stash);
        fs::create_dir(&stash).unwrap();
        let crash = CrashFs::new(&self.root, &stash)
            .with_fat(&self.root.join("boot"))
            .cut_after(after);
        let crash = Arc::new(crash);
        self.fs = crash.clone();
        let mut could: BTreeSet<_> = self.model.boots().cloned().into_iter().collect();
        could.extend(self.model.rollback().cloned());
        // It may be found good after all.
        could.extend(self.model.booted.clone());
        let before = self.model.clone();
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.act(of)));
        self.fs = Arc::new(RealFs);
        self.model = before;
        if let Err(panic) = opened {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(text.contains("power cut"), "{text}");
        }
        crash.lose(if names { Loss::Names } else { Loss::Content });
        let seen = Seen::look(&self.root);
        could.extend(
            ids()
                .iter()
                .filter(|id| !self.model.deployments.contains_key(*id))
                .cloned(),
        );
        could.extend(match of {
            Action::Switch { .. } | Action::Upgrade(_) | Action::FromDownloaded(_) => ids().to_vec(),
            _ => Vec::new(),
        });
        let boots = &seen.boots().unwrap().id;
        assert!(could.contains(boots), "old or new boots, not {boots}");
        assert!(seen.records.contains_key(boots), "it has a record");
        for (id, former) in &self.model.deployments {
            let kept = former.pinned || self.model.booted.as_ref() == Some(id) || self.model.boots() == Some(id);
            let kept = kept && !matches!(of, Action::Pin { .. });
            assert!(!kept || seen.records.contains_key(id), "{id} was lost");
            if let Some(record) = seen
                .records
                .get(id)
                .filter(|_| former.ran && self.model.booted.as_ref() == Some(id))
            {
                assert_eq!(record.etc, former.etc, "/etc of {id}, which ran");
            }
        }
        let manifests = self.manifests.clone();
        self.model.adopt(&seen, |manifest| manifests[manifest]);
        self.boot(0, End::Good);
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
