//! What comes before a boot and after it: the last merge of /etc, and the verdict.

use cfs_core::deployment::FailedDigests;
use cfs_core::health::{self, HealthReport, Ran, Verdict};

use super::*;

/// What the health service does after a boot whose check failed.
fn judge_bad(root: &Path, fs: Arc<dyn Fs>, booted: DeploymentId) -> Result<Verdict> {
    let ran = Ran {
        check: "check".into(),
        required: true,
        outcome: health::Outcome::Failed { why: "bad".into() },
        attempts: 1,
        seconds: 0,
    };
    let report = HealthReport::new(Some(booted), None, vec![ran]);
    health::judge(&running(root, fs, booted)?, &report, false)
}

#[test]
fn whenever_the_power_is_cut_during_the_last_merge_the_staged_etc_is_whole_and_the_merge_is_made_the_next_time() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("staged");
    upgrade(&root, Arc::new(fs)).unwrap();
    let new = next(&root);
    let etc = |root: &Path, id: DeploymentId| root.join("state/deploy").join(id.to_hex()).join("etc");
    std::fs::write(etc(&root, old).join("late"), "late").unwrap();
    bench.before = root;
    let operations = bench.cut_everywhere(
        |root, fs| finalize::finalize(&running(root, fs, old)?, &Quiet).map(drop),
        |root, cut| {
            assert_eq!(next(root), new, "{cut}: its /etc is whole");
            let again = finalize::finalize(&running(root, Arc::new(RealFs), old).unwrap(), &Quiet);
            let merged = matches!(again, Ok(finalize::Finalized::Merged { .. }));
            assert!(merged, "{cut}: once more, it was made by a merge: {again:?}");
            assert!(etc(root, new).join("late").exists(), "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 5, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_while_a_boot_is_found_bad_it_is_tried_again_or_gone_and_remembered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("bad");
    upgrade(&root, Arc::new(fs)).unwrap();
    let new = next(&root);
    bench.before = root;
    let remembered = |root: &Path| {
        let sysroot = Sysroot::look(options(root, Arc::new(RealFs))).unwrap();
        let failed = FailedDigests::load(sysroot.deployments().layout()).unwrap();
        failed.iter().any(|failed| failed.id == Some(new))
    };
    let operations = bench.cut_everywhere(
        |root, fs| judge_bad(root, fs, new).map(drop),
        |root, cut| {
            let after = next(root);
            assert!(after == new || after == old && remembered(root), "{cut}");
            let verdict = judge_bad(root, Arc::new(RealFs), new).unwrap_or_else(|e| panic!("{cut}: once more: {e}"));
            assert!(
                matches!(verdict, Verdict::GoBack { to, .. } if to == old),
                "{cut}: {verdict:?}"
            );
            assert!(next(root) == old && remembered(root), "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 5, "{operations} operations were cut");
}
