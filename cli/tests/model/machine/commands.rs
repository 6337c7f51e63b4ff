//! What the commands do, beside what the model expects of them.

use super::*;

impl Machine {
    pub(super) fn wishes(asked: Asked) -> Wishes {
        Wishes {
            allow_downgrade: asked.downgrade,
            retry: asked.retry,
            automatic: asked.automatic,
            download_only: asked.download,
        }
    }

    /// `switch` where there is a channel, else `upgrade`.
    pub(super) fn update(&mut self, channel: Option<usize>, asked: Asked) {
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

    pub(super) fn take_downloaded(&mut self, asked: Asked) {
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

    pub(super) fn updated(
        &mut self,
        outcome: Result<Outcome>,
        expected: &Expected,
        source: Option<(String, usize, String)>,
    ) {
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

    pub(super) fn rollback(&mut self) {
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
        let count = match target.entry {
            Some((_, Count::None)) => Count::None,
            _ => Count::Left(3, 0),
        };
        target.try_with((done.generation, count), target.arguments.clone());
        self.model.untidy = false;
        self.reorder();
    }

    pub(super) fn pin(&mut self, which: Which, on: bool) {
        let done = rollback::pin(&self.open(), &name(which), on);
        if self.cut_off(&done) {
            return;
        }
        match self.model.find(which) {
            Some(id) => {
                assert_eq!(done.unwrap().to_hex(), id);
                self.model.deployments.get_mut(&id).unwrap().pinned = on;
            }
            None => assert_eq!(code(&done.unwrap_err()), 2),
        }
    }

    pub(super) fn delete(&mut self, which: Which) {
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
                let boots = |(own, d): (&String, &crate::model::Deployment)| *own != id && d.entry.is_some();
                if self.model.deployments.iter().any(boots) || self.model.deployments[&id].entry.is_none() {
                    assert_eq!(done.unwrap().to_hex(), id);
                    self.model.deployments.remove(&id);
                } else {
                    assert_eq!(code(&done.unwrap_err()), 1);
                }
            }
            None => {
                let expected = if self.model.find(which).is_some() { 1 } else { 2 };
                assert_eq!(code(&done.unwrap_err()), expected);
                assert_eq!(disk::state(&self.root), before);
            }
        }
    }

    pub(super) fn arguments(&mut self, argument: &str, append: bool) {
        let mut edit = Edit::default();
        let list = if append { &mut edit.append } else { &mut edit.delete };
        list.push(argument.into());
        let sysroot = self.open();
        let done = arguments::change(&sysroot, &edit, &Quiet);
        if self.cut_off(&done) {
            return;
        }
        self.model.settle_arguments();
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
        let had = self.model.arguments.clone();
        if current && wanted == self.model.arguments {
            assert_eq!(code(&done.unwrap_err()), 77);
            return;
        }
        done.unwrap();
        self.model.arguments.clone_from(&wanted);
        if !current {
            let entry = Seen::look(&self.root).boots().unwrap().clone();
            let noted = self.model.trial.as_ref().is_some_and(|trial| trial.id == next);
            let undone = noted && deployment.former.as_ref().is_some_and(|(_, former)| *former == wanted);
            let count = if undone { Count::None } else { Count::Left(3, 0) };
            assert!(entry.id == next && entry.count == count, "{entry:?}");
            let proven = deployment.entry.is_some_and(|(_, count)| count == Count::None);
            deployment.try_with((entry.generation, count), wanted);
            match deployment.former {
                None => drop(self.model.trial.take_if(|trial| trial.id == next)),
                Some(_) if !proven => {}
                Some(_) => {
                    self.model.trial = Some(Trial {
                        id: next,
                        wanted: had,
                        failed: false,
                    });
                }
            }
            self.model.untidy = false;
            self.reorder();
        }
        if append {
            let again = arguments::change(&sysroot, &edit, &Quiet).unwrap_err();
            assert_eq!(code(&again), 77, "the same once more");
        }
    }

    pub(super) fn gc(&mut self) {
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
}
