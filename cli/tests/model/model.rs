//! What must be true of a machine, written down from the documentation (docs/commands.md, docs/boot.md, the promises),
//! not from the code.
//!
//! * What boots next is the entry with the highest generation that has tries left; where none has, the highest of all.
//! * An update is the next to boot as soon as it is staged, with three tries, and an /etc merged from the one that runs.
//! * A rollback makes the previous deployment the next: the one that runs, where an update waits; else the newest other one.
//! * A good boot takes the counter off. A bad one of a counted entry takes its tries and is remembered; the newest one that was
//!   found good, with the arguments that it has, boots then, where there is one. One that was good before, or has nobody
//!   else, stays.
//! * Changed kernel arguments get an entry with three tries; the one that booted well with the former ones stays below it
//!   until the new one has done so. A machine that does not come up with them runs the same deployment as before, and
//!   wants what it wanted then; nobody's image is to blame.
//! * What failed is not taken again but with `--retry`; what was gone back from, not by the timer.
//! * An update waits for the last merge of /etc until it ran: of the one that runs when the machine goes down, whichever
//!   that is, and unless somebody changed its own in a boot of it. What it lacks of that one's changes when it runs first
//!   is told. Nothing else changes anybody's /etc.
//! * What runs, what boots next and what is pinned is never removed, and what a rollback would take only where another one
//!   stays that is known to be good and it is not (docs/commands.md, `keep`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::actions::{Asked, Which};
use super::disk::{Count, Seen};
use super::etc::Tree;
use super::images;

/// A deployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Its image, up to the manifest.
    pub image: usize,
    pub manifest: String,
    pub reference: String,
    /// Of its boot entry, where it has one.
    pub entry: Option<(u64, Count)>,
    /// Of the one below it that booted well with other arguments.
    pub former: Option<(u64, Vec<String>)>,
    pub pinned: bool,
    pub etc: Tree,
    /// As the last merge made it.
    pub merged: Tree,
    /// What the machine wanted when its entry was made.
    pub arguments: Vec<String>,
    /// It ran with this /etc.
    pub ran: bool,
}

/// Changed kernel arguments.
#[derive(Clone, Debug)]
pub struct Trial {
    pub id: String,
    /// What the machine wanted before.
    pub wanted: Vec<String>,
    /// The machine did not come up with them.
    pub failed: bool,
}

/// All that counts.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub deployments: BTreeMap<String, Deployment>,
    pub booted: Option<String>,
    /// The generation of the entry that it was started with.
    pub started: Option<u64>,
    pub trial: Option<Trial>,
    /// What ran last.
    pub last: Option<String>,
    pub failed: BTreeMap<String, bool>,
    pub downloaded: Option<(String, String)>,
    pub arguments: Vec<String>,
    pub keep: usize,
    pub tight: bool,
    /// What the tags lead to: reference, image, manifest.
    pub tags: Vec<(String, usize, String)>,
    pub var: BTreeMap<String, String>,
    /// A power cut may have left something on `$BOOT`, which the next entry takes away.
    pub untidy: bool,
    /// And names and records in the sysroot, for `gc`.
    pub stale: bool,
    pub counter: u64,
    /// What the disk says is staged; it counts where nothing of this machine runs.
    pub noted: Option<String>,
}

/// How a command has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Staged(String),
    Unchanged,
    FailedBefore,
    Downloaded {
        already: bool,
    },
    /// With the exit code.
    Refused(u8),
}

impl Deployment {
    /// The best of its entries.
    fn best(&self) -> Option<(u64, Count)> {
        let former = self.former.as_ref().map(|(generation, _)| (*generation, Count::None));
        self.entry
            .filter(|(_, count)| !count.is_bad())
            .or(former)
            .or(self.entry)
    }

    fn bootable(&self) -> bool {
        self.count().is_some_and(|count| !count.is_bad())
    }

    /// A merge made this.
    pub fn merge(&mut self, etc: Tree) {
        (self.merged, self.etc) = (etc.clone(), etc);
    }

    /// It never ran as far as its commands, but somebody changed something in it.
    pub fn is_own(&self) -> bool {
        !self.ran && self.etc != self.merged
    }

    fn place(&self) -> (bool, Reverse<Option<u64>>) {
        (!self.bootable(), Reverse(self.best().map(|(generation, _)| generation)))
    }

    pub fn count(&self) -> Option<Count> {
        self.best().map(|(_, count)| count)
    }

    /// A further entry that has yet to prove itself, with these arguments: what booted well with others stays.
    pub fn try_with(&mut self, entry: (u64, Count), arguments: Vec<String>) {
        let good = self.entry.filter(|(_, count)| *count == Count::None);
        let good = good.map(|(generation, _)| (generation, self.arguments.clone()));
        let former = good.or(self.former.take());
        self.former = former.filter(|(_, former)| entry.1 != Count::None && *former != arguments);
        (self.entry, self.arguments) = (Some(entry), arguments);
    }
}

impl Model {
    /// A tag leads to this image from now on, in the layouts in `folder`.
    pub fn release(&mut self, folder: &Path, channel: usize, image: usize) {
        let (reference, manifest) = images::release(folder, channel, image);
        self.tags[channel] = (reference, image, manifest);
    }

    /// In the order of `status`.
    pub fn listed(&self) -> Vec<&String> {
        let mut ids: Vec<_> = self.deployments.keys().collect();
        ids.sort_by_key(|id| (self.deployments[*id].place(), (*id).clone()));
        ids
    }

    /// What boots next, as commands see it: with tries left.
    pub fn next(&self) -> Option<&String> {
        self.listed().into_iter().find(|id| self.deployments[*id].bootable())
    }

    /// What boots.
    pub fn boots(&self) -> Option<&String> {
        self.listed()
            .into_iter()
            .find(|id| self.deployments[*id].entry.is_some())
    }

    pub fn rollback(&self) -> Option<&String> {
        let next = self.next();
        let could = |id: &&String| Some(*id) != next && self.deployments[*id].bootable();
        self.booted
            .as_ref()
            .filter(could)
            .or_else(|| self.listed().into_iter().find(could))
    }

    /// What an update follows.
    pub fn current(&self) -> Option<&String> {
        self.booted.as_ref().or_else(|| self.next())
    }

    pub fn find(&self, which: Which) -> Option<String> {
        let waits = |next: &&String| match &self.booted {
            Some(booted) => booted != *next,
            None => self.noted.as_ref() == Some(next),
        };
        let staged = || self.next().filter(waits);
        match which {
            Which::Booted => self.booted.clone(),
            Which::Staged => staged().cloned(),
            Which::Rollback => self.rollback().cloned(),
            Which::Index(index) => self.listed().get(index).map(|id| (*id).clone()),
        }
    }

    /// Nothing runs: what has no tries left, and something to go back to in its own deployment, means nothing.
    pub fn fall_back(&mut self) {
        for (id, deployment) in &mut self.deployments {
            if deployment.entry.is_some_and(|(_, count)| count.is_bad())
                && let Some((generation, arguments)) = deployment.former.take()
            {
                (deployment.entry, deployment.arguments) = (Some((generation, Count::None)), arguments);
                self.trial
                    .iter_mut()
                    .filter(|trial| trial.id == *id)
                    .for_each(|trial| trial.failed = true);
            }
        }
    }

    /// What the boot loader gave up is remembered before anything is decided.
    pub fn settle(&mut self) {
        self.settle_arguments();
        for (id, deployment) in &self.deployments {
            if deployment.count().is_some_and(Count::is_bad) && self.booted.as_ref() != Some(id) {
                self.failed.insert(deployment.manifest.clone(), false);
            }
        }
    }

    /// The machine wants again what it wanted before what it did not come up with.
    pub fn settle_arguments(&mut self) {
        let given_up = |trial: &mut Trial| trial.failed && self.booted.as_ref() == Some(&trial.id);
        if let Some(trial) = self.trial.take_if(given_up) {
            self.arguments = trial.wanted;
        }
    }

    fn heeded(&self, manifest: &str, asked: Asked) -> bool {
        let failed = self.failed.get(manifest);
        failed.is_some_and(|by_admin| !asked.retry && (asked.automatic || !by_admin))
    }

    fn is_older(&self, reference: &str, image: usize, asked: Asked) -> bool {
        let current = self.current().map(|id| &self.deployments[id]);
        current.is_some_and(|current| {
            let created = images::get(image).created < images::get(current.image).created;
            current.reference == reference && created && !asked.downgrade
        })
    }

    /// What an update to this has to come to; `kernels` are those on `$BOOT`.
    pub fn update(&mut self, channel: usize, asked: Asked, ids: &[String], kernels: &BTreeSet<String>) -> Expected {
        let (reference, image, manifest) = self.tags[channel].clone();
        let next = self.next().map(|id| &self.deployments[id]);
        if next.is_some_and(|next| next.reference == reference && next.manifest == manifest) {
            return Expected::Unchanged;
        }
        self.settle();
        if self.heeded(&manifest, asked) {
            return Expected::FailedBefore;
        }
        let download = (reference.clone(), manifest.clone());
        if asked.download && self.downloaded.as_ref() == Some(&download) {
            return Expected::Downloaded { already: true };
        }
        match self.admit(&reference, image, asked, kernels) {
            Some(code) => Expected::Refused(code),
            None if asked.download => {
                self.downloaded = Some(download);
                Expected::Downloaded { already: false }
            }
            None => Expected::Staged(ids[images::get(image).content].clone()),
        }
    }

    fn admit(&self, reference: &str, image: usize, asked: Asked, kernels: &BTreeSet<String>) -> Option<u8> {
        if self.is_older(reference, image, asked) {
            return Some(3);
        }
        let Some(kernel) = images::get(image).kernel_bytes() else {
            return Some(1);
        };
        (self.tight && !kernels.contains(&super::disk::sha256(&kernel))).then_some(4)
    }

    /// What `--from-downloaded` has to come to.
    pub fn take_downloaded(
        &mut self,
        asked: Asked,
        of: impl Fn(&str) -> usize,
        ids: &[String],
        kernels: &BTreeSet<String>,
    ) -> Expected {
        let Some((reference, manifest)) = self.downloaded.clone() else {
            return Expected::Refused(1);
        };
        self.settle();
        if self.heeded(&manifest, asked) {
            return Expected::FailedBefore;
        }
        let image = of(&manifest);
        match self.admit(&reference, image, asked, kernels) {
            Some(code) => Expected::Refused(code),
            None => Expected::Staged(ids[images::get(image).content].clone()),
        }
    }

    /// The record and the entry of what was staged; what is let go of is [`Model::may_go`]'s.
    pub fn stage(
        &mut self,
        id: &str,
        (reference, image, manifest): (String, usize, String),
        generation: u64,
        etc: Tree,
    ) {
        let current = self.current().cloned();
        let keeps = current.as_deref() == Some(id);
        let former = self.deployments.get(id);
        self.failed.remove(&manifest);
        if self.downloaded.as_ref().is_some_and(|(own, _)| *own == reference) {
            self.downloaded = None;
        }
        let new = Deployment {
            image,
            manifest,
            reference,
            entry: former.and_then(|former| former.entry),
            former: former.and_then(|former| former.former.clone()),
            pinned: former.is_some_and(|former| former.pinned),
            merged: former
                .filter(|_| keeps)
                .map_or_else(|| etc.clone(), |former| former.merged.clone()),
            etc,
            arguments: former.map_or(Vec::new(), |former| former.arguments.clone()),
            // The first one has the image's /etc, which is as good as its own.
            ran: self.deployments.is_empty() || keeps && former.is_some_and(|former| former.ran),
        };
        self.deployments.insert(id.to_owned(), new);
        let deployment = self.deployments.get_mut(id).unwrap();
        deployment.try_with((generation, Count::Left(3, 0)), self.arguments.clone());
        let waits = deployment.former.is_some();
        self.trial.take_if(|trial| trial.id == id && !waits);
        // What failed once is tried again, where the machine still wants it.
        self.trial
            .iter_mut()
            .filter(|trial| trial.id == id)
            .for_each(|trial| trial.failed = false);
    }

    /// Whether these may have gone for what boots next now.
    pub fn may_go(&self, gone: &BTreeSet<String>) -> Result<(), String> {
        let stays = |id: &String| Some(id) == self.next() || Some(id) == self.booted.as_ref();
        let proven = |d: &Deployment| d.count() == Some(Count::None);
        for id in gone {
            let pinned = self.deployments[id].pinned;
            let better = |(other, d): (&String, &Deployment)| !gone.contains(other) && !stays(other) && proven(d);
            let better = !proven(&self.deployments[id]) && self.deployments.iter().any(better);
            if stays(id) || pinned || Some(id) == self.rollback() && !better {
                return Err(format!("{id} was removed (pinned: {pinned})"));
            }
        }
        let others = self.deployments.iter().filter(|(id, d)| !stays(id) && !d.pinned);
        let (out, left): (Vec<_>, Vec<_>) = others.partition(|(id, _)| gone.contains(*id));
        let waits = self.booted.is_some() && self.booted.as_ref() != self.next();
        let standing = self.deployments.keys().filter(|id| stays(id)).count() - usize::from(waits);
        let room = self.keep.max(2).saturating_sub(standing);
        if left.len() > room || left.len() < room && out.iter().any(|(_, d)| d.bootable()) {
            return Err(format!("{} others are kept, there is room for {room}", left.len()));
        }
        match out.iter().any(|(_, d)| proven(d)) && left.iter().any(|(_, d)| !proven(d)) {
            true => Err("a proven one was removed and one that is not was kept".into()),
            false => Ok(()),
        }
    }

    /// The names in the store that deployments and a download need.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let owners = self.deployments.keys().cloned();
        for owner in owners.chain(self.downloaded.iter().map(|_| "downloaded".to_owned())) {
            names.insert(format!("stream cfs-update%2F{owner}"));
            names.insert(format!("image {owner}"));
        }
        names
    }

    /// Compares with the disk.
    pub fn check(&self, seen: &Seen) {
        let ids = |list: Vec<&String>| list.into_iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(
            ids(seen.records.keys().collect()),
            ids(self.deployments.keys().collect()),
            "records are those of the deployments"
        );
        for (id, record) in &seen.records {
            self.check_one(id, &self.deployments[id], record, seen);
        }
        assert_eq!(seen.failed, self.failed, "what failed here is remembered");
        assert_eq!(seen.downloaded, self.downloaded, "the note of a download");
        assert_eq!(
            seen.arguments, self.arguments,
            "what the machine wants on the command line"
        );
        assert_eq!(seen.var, self.var, "/var is shared and left alone");
        assert!(seen.counter >= self.counter, "counters only grow");
        if !self.untidy {
            assert_eq!(seen.boots().map(|e| &e.id), self.boots(), "what boots");
            for (id, deployment) in &self.deployments {
                let entries = [deployment.entry.map(|(generation, _)| generation)];
                let former = deployment.former.as_ref().map(|(generation, _)| *generation);
                let wanted: BTreeSet<_> = entries.into_iter().chain([former]).flatten().collect();
                assert_eq!(seen.counting(id, self.started), wanted, "{id}: {:#?}", seen.entries);
            }
            let known = |e: &&super::disk::Entry| self.deployments.contains_key(&e.id);
            assert!(seen.entries.iter().all(|e| known(&e)), "{:#?}", seen.entries);
            assert_eq!(seen.kernels, seen.named(), "kernels are those that entries name");
        }
        match self.stale {
            true => assert!(seen.names.is_superset(&self.names()), "names in the store"),
            false => assert_eq!(seen.names, self.names(), "names in the store"),
        }
        assert!(seen.named().is_subset(&seen.kernels));
    }

    fn check_one(&self, id: &str, wanted: &Deployment, record: &super::disk::Record, seen: &Seen) {
        assert_eq!(record.etc, wanted.etc, "/etc of {id}");
        assert_eq!(record.pinned, wanted.pinned, "{id} is pinned");
        assert_eq!(
            (&record.manifest, &record.reference),
            (&wanted.manifest, &wanted.reference),
            "{id}"
        );
        let entry = seen.best(id, self.started);
        let found = entry.map(|e| (e.generation, e.count));
        assert_eq!(found, wanted.entry, "boot entry of {id}");
        if let Some(entry) = entry {
            let own = images::get(wanted.image).arguments.iter().map(|a| (*a).to_owned());
            let arguments: Vec<_> = own.chain(wanted.arguments.iter().cloned()).collect();
            assert_eq!(entry.arguments, arguments, "command line of {id}");
            assert!(
                seen.kernels
                    .contains(&super::disk::sha256(&images::get(wanted.image).kernel_bytes().unwrap()))
            );
        }
    }

    /// Takes over what a power cut left, once it is known to be allowed.
    pub fn adopt(&mut self, seen: &Seen, image_of: impl Fn(&str) -> usize) {
        let before = std::mem::take(&mut self.deployments);
        for (id, record) in &seen.records {
            let image = image_of(&record.manifest);
            let entry = seen.best(id, None);
            let former = before.get(id);
            let own = images::get(image).arguments.len();
            let arguments = entry.map_or(Vec::new(), |entry| entry.arguments[own..].to_vec());
            let below = entry.and_then(|entry| seen.below(entry));
            // What waits for another one's /etc says so; a merge may give what was there.
            let same = record.etc_from.is_none() && former.is_some_and(|former| former.etc == record.etc);
            let adopted = Deployment {
                image,
                manifest: record.manifest.clone(),
                reference: record.reference.clone(),
                entry: entry.map(|e| (e.generation, e.count)),
                former: below.map(|e| (e.generation, e.arguments[own..].to_vec())),
                pinned: record.pinned,
                etc: record.etc.clone(),
                merged: former
                    .filter(|former| former.etc == record.etc)
                    .map_or_else(|| record.etc.clone(), |former| former.merged.clone()),
                arguments,
                // A power cut before its record was written leaves an /etc that counts as its own.
                ran: former
                    .filter(|_| same)
                    .map_or(record.etc_from.is_none(), |former| former.ran),
            };
            self.deployments.insert(id.clone(), adopted);
        }
        self.trial = seen.trial.clone().and_then(|(id, former, wanted)| {
            let deployment = self.deployments.get(&id)?;
            let own = &images::get(deployment.image).arguments;
            let (_, former) = former.split_at(own.len());
            let is_former = deployment.count() == Some(Count::None) && deployment.arguments == former;
            let waits = deployment.former.as_ref().is_some_and(|(_, below)| below == former);
            let failed = is_former && !waits;
            (failed || waits).then_some(Trial { id, wanted, failed })
        });
        self.failed.clone_from(&seen.failed);
        self.downloaded.clone_from(&seen.downloaded);
        self.arguments.clone_from(&seen.arguments);
        (self.untidy, self.stale) = (true, true);
    }
}
