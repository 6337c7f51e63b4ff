//! What is to be done, decided without doing it.
//!
//! Pure functions over what is there: which deployment boots, which one a rollback takes, which ones an update lets go.
//! They do no I/O, so that `--dry-run`, the update itself and the tests cannot disagree.
//!
//! Invariant: nothing here ever lets go of the default, the booted or a pinned deployment; promise 1 rests on that.

use std::cmp::Reverse;

use crate::boot::{BootEntry, cmdline};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;

/// A deployment as the decisions see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub id: DeploymentId,
    /// The generation of its newest boot entry; `None` without any.
    pub generation: Option<u64>,
    /// Its record, image, signature and kernel are whole, and its tries are not used up.
    pub bootable: bool,
    /// The boot loader would start it: its entry and kernel are whole, and its tries are not used up. It looks at
    /// nothing else.
    pub starts: bool,
    /// The machine runs it now.
    pub booted: bool,
    /// The admin keeps it.
    pub pinned: bool,
    /// It booted well once: its entry is not counted, or no longer.
    pub proven: bool,
    /// It has no boot entry and had one: somebody else took it away, or `$BOOT` is not what it was.
    pub lost: bool,
}

impl Standing {
    /// Sorts newest first; what cannot boot comes after all that can, as the boot loader sorts them.
    pub fn place(&self) -> (bool, Reverse<Option<u64>>, DeploymentId) {
        (
            !(self.bootable && self.generation.is_some()),
            Reverse(self.generation),
            self.id,
        )
    }
}

/// What boots next: the one with the highest generation of those that the boot loader would start, be its seal or its
/// image broken.
pub fn next_to_boot(all: &[Standing]) -> Option<&Standing> {
    all.iter()
        .filter(|d| d.starts && d.generation.is_some())
        .max_by_key(|d| d.generation)
}

/// What `rollback` takes: with an update staged on a running machine the running one, whatever was staged before; on a
/// machine whose default is running, the newest other bootable one.
pub fn rollback_target(all: &[Standing]) -> Result<&Standing> {
    let next = next_to_boot(all).map(|d| d.id);
    all.iter()
        .filter(|d| d.bootable && d.generation.is_some() && Some(d.id) != next)
        .max_by_key(|d| (d.booted, d.generation))
        .ok_or_else(|| Error::Deployment {
            id: "rollback".into(),
            why: "there is no other deployment that could boot; nothing was changed".into(),
        })
}

/// What is to be gone back to, should `new` fail that is to boot next: the running one or, where that is `new`, the
/// newest that proved itself. Given only where it needs a further entry for that: the boot loader would try another
/// one before it that never proved itself, an earlier update, say, that waits or was gone back from.
pub fn overtaken(all: &[Standing], new: DeploymentId) -> Option<DeploymentId> {
    let others = || {
        all.iter()
            .filter(|d| d.id != new && d.bootable && d.generation.is_some())
    };
    let good = others().filter(|d| d.booted || d.proven);
    let good = good.max_by_key(|d| (d.booted, d.generation))?;
    let before = others().any(|d| d.generation > good.generation && !d.proven);
    before.then_some(good.id)
}

/// Whether the boot loader would try a deployment that never proved itself before an entry of `id` with this
/// generation, which booted well.
pub fn is_overtaken(all: &[Standing], id: DeploymentId, generation: u64) -> bool {
    let mut others = all.iter().filter(|d| d.id != id && d.starts && !d.proven);
    others.any(|d| d.generation > Some(generation))
}

/// What an update lets go of once its own entry is durable: all but the next, the booted and the pinned ones, and as
/// many others as make `keep` in all (at least two: one must be there to go back to), those that booted well before
/// those that never did, the newest first. On a running machine an update that has not been booted does not count:
/// should it be bad, there is still something to go back to from where the machine is. Nothing where nothing can boot:
/// then the fault is elsewhere.
pub fn superseded(all: &[Standing], keep: usize) -> Vec<DeploymentId> {
    let Some(next) = next_to_boot(all).map(|d| d.id) else {
        return Vec::new();
    };
    let mut ordered = all.to_vec();
    ordered.sort_by_key(|d| (!d.proven, d.place()));
    let stays = |d: &Standing| d.id == next || d.booted;
    let waits = ordered.iter().any(|d| d.booted && d.id != next);
    let counted = ordered.iter().filter(|d| stays(d)).count() - usize::from(waits);
    let mut room = keep.max(2).saturating_sub(counted);
    let mut gone = Vec::new();
    for deployment in &ordered {
        if stays(deployment) || deployment.pinned || deployment.lost {
            continue;
        }
        if room > 0 && deployment.bootable && deployment.generation.is_some() {
            room -= 1;
        } else {
            gone.push(deployment.id);
        }
    }
    gone
}

/// Whether user space alone can be restarted from one deployment into another; else why the machine has to be rebooted.
/// `line`: what the kernel that runs was booted with, which is not what its entry has where that was changed since.
pub fn soft_reboot(running: &BootEntry, next: &BootEntry, line: &[String]) -> Result<(), String> {
    if running.id == next.id {
        return Err("the deployment that boots next runs already".into());
    }
    if running.kernel.is_none() || running.kernel != next.kernel {
        return Err("kernel or initrd differ from those that run, and a soft reboot keeps them".into());
    }
    let own = |entry: &BootEntry| -> Vec<String> {
        let options = entry.options.iter();
        options
            .filter(|option| !cmdline::names_image(option))
            .cloned()
            .collect()
    };
    let wanted = own(next);
    match own(running) == wanted && wanted.iter().all(|argument| line.contains(argument)) {
        true => Ok(()),
        false => Err("kernel arguments differ from those that the machine was booted with".into()),
    }
}

/// Records that never got a boot entry, as an interrupted update leaves them: what `gc` removes.
pub fn unfinished(all: &[Standing]) -> Vec<DeploymentId> {
    let never = |d: &&Standing| d.generation.is_none() && !d.lost;
    let unfinished = all.iter().filter(never).filter(|d| !d.booted && !d.pinned);
    unfinished.map(|d| d.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Tries;
    use proptest::prelude::*;

    fn id(n: u8) -> DeploymentId {
        DeploymentId::from_bytes(crate::ids::Algorithm::Sha256, &[n; 32]).unwrap()
    }

    fn standing(n: u8, generation: u64) -> Standing {
        Standing {
            id: id(n),
            generation: Some(generation),
            bootable: true,
            starts: true,
            booted: false,
            pinned: false,
            proven: false,
            lost: false,
        }
    }

    #[test]
    fn a_rollback_twice_comes_back_to_where_it_began() {
        let mut all = [standing(1, 1), standing(2, 2)];
        let first = rollback_target(&all).unwrap().id;
        assert_eq!(first, id(1));
        all[0].generation = Some(3);
        assert_eq!(rollback_target(&all).unwrap().id, id(2));
    }

    #[test]
    fn a_rollback_never_takes_what_cannot_boot() {
        let mut all = [standing(1, 1), standing(2, 2), standing(3, 3)];
        all[1].bootable = false;
        assert_eq!(rollback_target(&all).unwrap().id, id(1));
        all[0].generation = None;
        assert!(rollback_target(&all).is_err());
    }

    #[test]
    fn a_rollback_with_two_updates_staged_takes_what_runs() {
        let mut all = [standing(1, 1), standing(2, 2), standing(3, 3)];
        (all[0].booted, all[0].proven) = (true, true);
        assert_eq!(rollback_target(&all).unwrap().id, id(1));
        all[0].bootable = false;
        assert_eq!(rollback_target(&all).unwrap().id, id(2));
    }

    #[test]
    fn what_is_gone_back_to_is_overtaken_by_what_never_proved_itself_and_not_by_the_update_itself() {
        let mut all = [standing(1, 1), standing(2, 2)];
        (all[0].booted, all[0].proven) = (true, true);
        assert_eq!(overtaken(&all, id(3)), Some(id(1)));
        assert_eq!(overtaken(&all, id(2)), None, "it gets another entry");
        assert_eq!(
            overtaken(&all, id(1)),
            None,
            "there is nothing better than the other one"
        );
        all[1].proven = true;
        assert_eq!(overtaken(&all, id(3)), None, "it is good as well");
        let mut all = [standing(1, 1), standing(2, 2), standing(3, 3)];
        (all[0].proven, all[2].booted) = (true, true);
        assert_eq!(
            overtaken(&all, id(3)),
            Some(id(1)),
            "what runs is the one that may fail"
        );
    }

    #[test]
    fn an_update_keeps_what_runs_and_what_is_pinned() {
        let mut all = [standing(1, 1), standing(2, 2), standing(3, 3), standing(4, 4)];
        assert_eq!(superseded(&all, 2), [id(2), id(1)]);
        all[0].booted = true;
        all[1].pinned = true;
        assert_eq!(superseded(&all, 2), [], "4 waits to be booted and does not count");
        all[0].booted = false;
        all[3].booted = true;
        assert_eq!(superseded(&all, 2), [id(1)]);
        assert_eq!(superseded(&all, 3), []);
    }

    #[test]
    fn a_good_deployment_to_go_back_to_outlives_updates_that_never_ran() {
        let mut all = [standing(1, 1), standing(2, 2), standing(3, 3), standing(4, 4)];
        (all[0].proven, all[1].proven, all[1].booted) = (true, true, true);
        assert_eq!(
            superseded(&all, 2),
            [id(3)],
            "the update before this one goes, not the good one"
        );
    }

    #[test]
    fn a_soft_reboot_keeps_kernel_and_arguments_those_of_the_running_kernel_included() {
        let entry = |n: u8, line: &str| BootEntry {
            id: Some(id(n)),
            short: id(n).short(),
            generation: u64::from(n),
            tries: Tries::Good,
            title: String::new(),
            linux: "/linux".into(),
            initrd: "/initrd".into(),
            kernel: Some("ab".repeat(32).parse().unwrap()),
            options: cmdline::split(&format!("composefs.digest=v1-sha256-12:{} {line}", id(n))),
            file: String::new(),
            changed: false,
            problem: None,
        };
        let line = cmdline::split("initrd=\\initrd composefs.digest=any root=LABEL=r quiet");
        let soft = |from: &str, to: &str| soft_reboot(&entry(1, from), &entry(2, to), &line);
        assert_eq!(soft("root=LABEL=r quiet", "root=LABEL=r quiet"), Ok(()));
        let differ = |why: Result<(), String>| assert!(why.unwrap_err().contains("kernel arguments differ"));
        differ(soft("root=LABEL=r quiet", "root=LABEL=r"));
        differ(soft("root=LABEL=r quiet debug", "root=LABEL=r quiet debug"));
        let same = entry(1, "root=LABEL=r");
        assert!(soft_reboot(&same, &same, &line).is_err());
        let other = BootEntry {
            kernel: None,
            ..entry(2, "root=LABEL=r")
        };
        assert!(soft_reboot(&same, &other, &line).unwrap_err().contains("initrd"));
    }

    fn any_standing() -> impl Strategy<Value = Vec<Standing>> {
        let one = (proptest::option::of(0..9u64), any::<[bool; 4]>());
        proptest::collection::vec(one, 0..8).prop_map(|list| {
            let flags =
                |(n, (generation, [bootable, booted, pinned, proven])): (usize, (Option<u64>, [bool; 4]))| Standing {
                    id: id(u8::try_from(n).unwrap()),
                    generation,
                    bootable,
                    starts: bootable,
                    lost: false,
                    booted,
                    pinned,
                    proven,
                };
            list.into_iter().enumerate().map(flags).collect()
        })
    }

    proptest! {
        #[test]
        fn what_boots_next_what_runs_and_what_is_pinned_is_never_let_go(all in any_standing(), keep in 0..5usize) {
            let gone = superseded(&all, keep);
            let next = next_to_boot(&all).map(|d| d.id);
            prop_assert!(next.is_some() || gone.is_empty());
            for d in &all {
                let stays = Some(d.id) == next || d.booted || d.pinned;
                prop_assert!(!(stays && gone.contains(&d.id)));
            }
            let left: Vec<_> = all.iter().filter(|d| !gone.contains(&d.id)).cloned().collect();
            prop_assert!(
                rollback_target(&all).is_err() || rollback_target(&left).is_ok() || all.iter().any(|d| d.booted),
                "an update always leaves something to go back to"
            );
        }
    }
}
