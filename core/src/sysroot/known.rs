//! Deployments as they stand: record, seal, image and boot entry of each, read together, and which of them has which
//! role.
//!
//! Invariant: nothing is written. What is broken is in the list with what is wrong with it, and is no failure of the
//! others; kernels are not read, their sizes are looked at.

use std::fmt;

use super::{REMOVED, Sysroot};
use crate::boot::{BootEntry, Entries, KernelFiles, Tries};
use crate::deployment::{Choice, Deployment, Event, History, Origin, Record, Roles, Staged, select};
use crate::error::{Error, Result};
use crate::ids::{DeploymentId, ManifestDigest};
use crate::plan::{self, Standing};
use crate::reference::Reference;

/// A deployment as it stands: record, signature and entry read together.
#[derive(Debug)]
pub struct Known {
    /// Which.
    pub id: DeploymentId,
    /// The record, or what is wrong with it.
    pub record: Result<Record>,
    /// The record with its signature verified, or why it is not trusted.
    pub verified: Result<Deployment>,
    /// Its best boot entry; of what runs the one that it was started with, should that be newer and in its last try.
    pub entry: Option<BootEntry>,
    /// Image and repository: why it could not be mounted.
    pub problem: Option<String>,
    /// As the decisions see it.
    pub standing: Standing,
}

/// The image that the manifest of a deployment gives, which is another one than the deployment's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remade(pub DeploymentId);

impl fmt::Display for Remade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "holds other files than its image, whose layers give {} now: `cfs-update upgrade`, or `switch` to its \
             image, deploys that",
            self.0.short()
        )
    }
}

impl Sysroot {
    /// Every deployment, newest first, those that cannot boot last. One that is broken is in the list with what is
    /// wrong, and is no failure.
    pub fn known(&self) -> Result<Vec<Known>> {
        let entries = self.bootloader().entries()?;
        let trust = self.trust();
        let images = self.store.images()?;
        let mut known = Vec::new();
        for found in self.deployments.list()? {
            let verified = match (&found.record, &trust) {
                (Ok(record), Ok(trust)) => record.verify(trust),
                (Err(e), _) | (_, Err(e)) => Err(Error::Deployment {
                    id: found.id.short(),
                    why: e.to_string(),
                }),
            };
            let problem = (!images.contains(&found.id) || !self.store.has_object(&found.id))
                .then(|| "its image is not in the repository; deploy it again".to_owned());
            known.push(self.stand(found.id, found.record, verified, problem, &entries));
        }
        self.find_lost(&mut known);
        known.sort_by_key(|k| k.standing.place());
        Ok(known)
    }

    /// Which of those without an entry had one: what the history says last of them is not that they are let go of.
    /// Where it cannot be read, all of them may have had one.
    fn find_lost(&self, known: &mut [Known]) {
        if known.iter().all(|k| k.entry.is_some()) {
            return;
        }
        let history = History::load(self.layout()).ok();
        for without in known.iter_mut().filter(|k| k.entry.is_none()) {
            let of_it = |event: &&Event| event.id == Some(without.id);
            without.standing.lost = history.as_ref().is_none_or(|history| {
                let last = history.events.iter().rev().find(of_it);
                last.is_some_and(|event| event.event != REMOVED)
            });
        }
    }

    /// Fails where `$BOOT` has no entry of any deployment of this sysroot although some had one: then it is not
    /// mounted, or another one. What has no entry there is needed all the same, and a new entry would boot nothing.
    ///
    /// # Errors
    /// [`Error::BootEntry`] with what to do.
    pub(crate) fn check_boot(&self, known: &[Known]) -> Result<()> {
        let bootloader = self.bootloader();
        match known.iter().any(|k| k.entry.is_some()) || !known.iter().any(|k| k.standing.lost) {
            true => Ok(()),
            false => Err(Error::BootEntry {
                entry: format!("folder {}", bootloader.boot_dir().display()),
                why:
                    "has no entry of this system, whose deployments had some: mount the boot partition there, or give \
                      another --boot DIR; where it was lost, `cfs-update upgrade --boot DIR` begins a new one"
                        .into(),
            }),
        }
    }

    fn stand(
        &self,
        id: DeploymentId,
        record: Result<Record>,
        verified: Result<Deployment>,
        problem: Option<String>,
        entries: &Entries,
    ) -> Known {
        let best = entries.of(&id);
        let works = best.is_some_and(BootEntry::works);
        let cut = |entry: &BootEntry| self.cut_kernel(entry, record.as_ref().ok()?.origin());
        let is_cut = best.and_then(cut).is_some();
        let standing = Standing {
            id,
            generation: best.map(|e| e.generation),
            bootable: verified.is_ok() && problem.is_none() && works && !is_cut,
            starts: works,
            booted: self.options.booted == Some(id),
            pinned: record.as_ref().is_ok_and(|r| r.origin().pinned),
            proven: best.is_some_and(|e| e.tries == Tries::Good),
            lost: false,
        };
        let started = self.started(&id, entries);
        let newer = started.filter(|started| best.is_none_or(|best| best.generation < started.generation));
        let mut entry = newer.or(best).cloned();
        if let Some(entry) = entry.as_mut().filter(|entry| entry.is_complete()) {
            entry.problem = cut(entry);
        }
        Known {
            id,
            record,
            verified,
            entry,
            problem,
            standing,
        }
    }

    /// What is wrong with kernel and initrd of an entry where their sizes show it, which the record has as they were
    /// written. Of another kernel than the record's, and in one of an earlier version, nobody knows.
    fn cut_kernel(&self, entry: &BootEntry, origin: &Origin) -> Option<String> {
        let written = origin.kernel_sizes?;
        let digest = entry.kernel?.to_string();
        let files = KernelFiles::on_boot(entry, self.bootloader().boot_dir());
        let found = files
            .sizes()
            .ok()
            .filter(|_| origin.boot_digest.as_ref() == Some(&digest))?;
        let differ = [
            ("linux", &entry.linux, found.linux, written.linux),
            ("initrd", &entry.initrd, found.initrd, written.initrd),
        ];
        let (key, path, found, written) = differ.into_iter().find(|(.., found, written)| found != written)?;
        Some(format!(
            "its {key}, {path}, has {found} bytes and not {written}, as it was written; `cfs-update fsck --repair` \
             writes it anew"
        ))
    }

    /// The entry that the running system was started with, if it is one of this deployment.
    fn started<'e>(&self, id: &DeploymentId, entries: &'e Entries) -> Option<&'e BootEntry> {
        let generation = self.options.started.filter(|_| self.options.booted == Some(*id))?;
        let mut own = entries.ours.iter().filter(|entry| entry.belongs_to(id));
        own.find(|entry| entry.generation == generation && entry.is_complete())
    }

    /// Which deployments have a role of their own.
    pub fn roles(&self, standing: &[Standing]) -> Roles {
        let next = plan::next_to_boot(standing).map(|d| d.id);
        let booted = self.options.booted;
        let noted = Staged::load(self.layout()).ok().flatten().map(|s| s.id);
        let never_ran = |id: &DeploymentId| Some(*id) != booted && (booted.is_some() || noted == Some(*id));
        Roles {
            booted,
            staged: next.filter(never_ran),
            rollback: plan::rollback_target(standing).ok().map(|d| d.id),
        }
    }

    /// The deployment that a user means, with all others.
    ///
    /// # Errors
    /// [`Error::Deployment`] where none or more than one fits.
    pub fn find(&self, text: &str) -> Result<(DeploymentId, Vec<Known>)> {
        let known = self.known()?;
        let standing = Self::standing(&known);
        let choices: Vec<_> = known.iter().map(Known::choice).collect();
        let id = select(text, &choices, &self.roles(&standing))?;
        Ok((id, known))
    }

    /// The deployment that a new one follows: the running one, or the one that boots next.
    pub fn current<'k>(&self, known: &'k [Known]) -> Option<&'k Known> {
        let booted = known.iter().find(|k| k.standing.booted);
        booted.or_else(|| Self::next(known))
    }

    /// Deployments, in the order of [`Sysroot::known`], as the decisions see them.
    pub fn standing(known: &[Known]) -> Vec<Standing> {
        known.iter().map(|k| k.standing.clone()).collect()
    }

    /// What boots next, of what [`Sysroot::known`] gives.
    pub(crate) fn next(known: &[Known]) -> Option<&Known> {
        let starts = known.iter().filter(|k| k.standing.starts);
        starts.max_by_key(|k| k.standing.generation)
    }

    /// Whether there is nothing to do for a deployment while its image is what is followed: it boots, and is what its
    /// manifest gives.
    pub(crate) fn is_sound(&self, known: &Known) -> bool {
        known.standing.bootable && self.remade(known).is_none()
    }

    /// What its manifest gives now, where that is another image than the deployment: it was made of a layer that was
    /// not what it should be, and is now (`fsck --repair`). Reads manifest and config, and no layer.
    pub fn remade(&self, known: &Known) -> Option<Remade> {
        let config = self.store.config_of(&known.manifest()?).ok().flatten()?;
        config.remade(&known.id).map(Remade)
    }

    /// The deployment whose /etc the administrator changed: the current one, or, where that is broken, the newest that
    /// has one. However broken its record is, what he did there goes on.
    pub(crate) fn with_etc<'k>(&self, known: &'k [Known]) -> Option<&'k Known> {
        let has_etc = |k: &&Known| self.deployments.has_etc(&k.id);
        self.current(known)
            .filter(has_etc)
            .or_else(|| known.iter().find(has_etc))
    }
}

impl Known {
    /// Its record, where it can be read.
    pub fn origin(&self) -> Option<&Origin> {
        self.record.as_ref().ok().map(Record::origin)
    }

    /// Whether the running system was started with its entry, not with one that has been replaced since.
    pub(crate) fn is_started(&self, sysroot: &Sysroot) -> bool {
        let entry = self.entry.as_ref().map(|entry| entry.generation);
        sysroot.options.started.is_none_or(|started| entry == Some(started))
    }

    /// The manifest that it was made from, where the record can be read.
    pub fn manifest(&self) -> Option<ManifestDigest> {
        self.origin().map(|origin| origin.manifest)
    }

    /// Whether it is of this image, followed by this name.
    pub(crate) fn is_of(&self, reference: &Reference, manifest: &ManifestDigest) -> bool {
        let of = |origin: &Origin| origin.manifest == *manifest && origin.reference == reference.with_transport();
        self.origin().is_some_and(of)
    }

    fn choice(&self) -> Choice<'_> {
        Choice {
            id: self.id,
            reference: self.origin().map(|origin| origin.reference.as_str()),
            manifest: self.manifest(),
        }
    }
}
