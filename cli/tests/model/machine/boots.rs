//! Shutting down, booting, checks, and power cuts.

use super::*;

impl Machine {
    pub(super) fn finalize(&mut self) {
        let Some(booted) = self.model.booted.clone() else {
            return;
        };
        let done = finalize::finalize(&self.open(), &Quiet);
        if self.cut_off(&done) {
            return;
        }
        let next = self.model.next().filter(|next| **next != booted).cloned();
        let waits = next.filter(|next| !self.model.deployments[next].ran);
        let done = done.unwrap();
        let own = waits.as_ref().filter(|id| self.model.deployments[*id].is_own());
        if let Some(id) = own {
            assert!(
                matches!(&done, Finalized::Kept { id: found } if found.to_hex() == *id),
                "{id} was changed in a boot of its own: {done:?}"
            );
            return;
        }
        let Some(id) = waits else {
            // What cannot boot may get the merge as well.
            if let Finalized::Merged { id, .. } = done {
                let id = id.to_hex();
                let dead = self.model.deployments[&id].count().is_none_or(Count::is_bad);
                assert!(dead, "{id} does not wait for the /etc of what runs");
                let tree = self.tree(&id);
                self.model.deployments.get_mut(&id).unwrap().merge(tree);
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
        self.model.deployments.get_mut(&id).unwrap().merge(result);
        assert!(matches!(
            finalize::finalize(&self.open(), &Quiet),
            Ok(Finalized::Merged { .. })
        ));
        assert_eq!(self.tree(&id), self.model.deployments[&id].etc, "the same once more");
    }

    /// The boot loader takes an entry and counts.
    fn start(&mut self) -> (String, u64) {
        self.model.fall_back();
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
        (entry.id, entry.generation)
    }

    /// What boots next does not come as far as a command of ours; somebody may mend its /etc.
    pub(super) fn tried(&mut self, mended: Option<EtcEdit>) {
        let (id, _) = self.start();
        if let Some(edit) = mended {
            edit.apply(&self.etc(&id));
            let tree = self.tree(&id);
            self.model.deployments.get_mut(&id).unwrap().etc = tree;
        }
    }

    /// What boots next comes up.
    pub(super) fn boot(&mut self, end: End) {
        let before = self.model.last.clone();
        let (booted, started) = self.start();
        (self.model.booted, self.model.started) = (Some(booted.clone()), Some(started));
        self.model.last = Some(booted.clone());
        let deployment = self.model.deployments.get_mut(&booted).unwrap();
        let first = !std::mem::replace(&mut deployment.ran, true);
        if end == End::Unchecked {
            return;
        }
        let before = before.filter(|before| first && *before != booted && self.model.deployments.contains_key(before));
        if let Some(before) = before {
            self.told_what_it_lacks(&booted, &before);
        }
        self.health(end == End::Good);
    }

    /// It runs for the first time: what was changed in the /etc of what ran before is there, or told; and nothing else
    /// is told.
    fn told_what_it_lacks(&self, booted: &str, before: &str) {
        let missed = finalize::missed(&self.open()).unwrap();
        let told = missed
            .iter()
            .flat_map(|missed| missed.files.iter().chain(&missed.removed));
        let told: BTreeSet<_> = told.cloned().collect();
        let (here, there) = (self.tree(booted), self.tree(before));
        let mut lacking = etc::lacking(&self.image_etc(before), &there, &here);
        let at = |tree: &Tree, path: &Path| tree.get(path.to_str().unwrap()).cloned();
        // What somebody changed in a boot of its own is no loss.
        let merged = &self.model.deployments[booted].merged;
        lacking.retain(|path| at(merged, path) == at(&here, path));
        assert!(told.is_superset(&lacking), "{lacking:?} is missed: {missed:?}");
        for path in &told {
            assert_ne!(at(&here, path), at(&there, path), "{path:?} is not missed: {missed:?}");
        }
    }

    /// What the health service does.
    pub(super) fn health(&mut self, good: bool) {
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

    pub(super) fn judged(&mut self, booted: &str, good: bool, verdict: Verdict) {
        // Where its entry was made since the boot, that boot shows nothing of it.
        let started = self.model.started;
        let counts = |(generation, count)| count != Count::None && Some(generation) == started;
        let counted = self.model.deployments[booted].entry.is_some_and(counts);
        let others: Vec<_> = self
            .model
            .deployments
            .iter()
            .filter(|(id, d)| *id != booted && d.count().is_some_and(|count| !count.is_bad()))
            .map(|(id, d)| (id.clone(), d.count() == Some(Count::None)))
            .collect();
        let changed = self.model.trial.as_ref().is_some_and(|trial| trial.id == booted);
        let running = self.model.deployments.get_mut(booted).unwrap();
        let former = running.former.clone().filter(|_| changed);
        match (good, counted) {
            (true, false) => assert_eq!(verdict, Verdict::StillGood),
            (true, true) => {
                assert!(
                    matches!(verdict, Verdict::Good { by_systemd: false, .. }),
                    "{verdict:?}"
                );
                running.entry = running.entry.map(|(generation, _)| (generation, Count::None));
                // The next entry takes away what was before.
                self.model.untidy |= running.former.take().is_some();
                self.model.failed.remove(&running.manifest);
                self.model.trial.take_if(|_| changed);
            }
            (false, false) => assert!(matches!(verdict, Verdict::NoLongerGood { .. }), "{verdict:?}"),
            (false, true) if former.is_some() => {
                let back = matches!(&verdict, Verdict::GoBack { to, .. } if to.to_hex() == booted);
                assert!(back, "back to what booted well: {verdict:?}");
                let entry = Seen::look(&self.root).boots().unwrap().clone();
                assert!(entry.id == booted && entry.count == Count::None, "{entry:?}");
                (running.entry, running.former) = (Some((entry.generation, entry.count)), None);
                running.arguments = former.unwrap().1;
                self.model.arguments = self.model.trial.take().unwrap().wanted;
            }
            (false, true) if others.is_empty() => assert!(matches!(verdict, Verdict::Alone { .. }), "{verdict:?}"),
            (false, true) => {
                let Verdict::GoBack { to, .. } = verdict else {
                    panic!("{verdict:?}")
                };
                if let Some((generation, Count::Left(_, done))) = running.entry {
                    running.entry = Some((generation, Count::Left(0, done)));
                }
                // Nor is it worth anything then.
                self.model.untidy |= running.former.take().is_some();
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

    /// The power goes while `of` is under way; afterwards the machine boots.
    pub(super) fn cut(&mut self, after: usize, names: bool, of: &Action) {
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
        self.boot(End::Good);
    }
}
