//! A rollback, and the command after one that was killed.

use super::*;

fn back(root: &Path, fs: Arc<dyn Fs>) -> Result<()> {
    let sysroot = Sysroot::open(options(root, fs), "rollback")?;
    rollback::rollback(&sysroot).map(drop)
}

#[test]
fn whenever_the_power_is_cut_during_a_rollback_either_deployment_boots() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old, new) = Bench::updated();
    let operations = bench.cut_everywhere(back, |root, cut| {
        let after = next(root);
        assert!(after == old || after == new, "{cut}");
        back(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: another rollback: {e}"));
        assert_ne!(next(root), after, "{cut}");
        fsck(root);
    });
    assert!(operations > 5, "{operations} operations were cut");
}

/// Of a machine whose boot is known.
fn in_this_boot(root: &Path, fs: Arc<dyn Fs>) -> Result<Sysroot> {
    let boot_id = Some("this".to_owned());
    let options = Options {
        boot_id,
        ..options(root, fs)
    };
    Sysroot::open(options, "test")
}

#[test]
fn what_is_deployed_after_a_rollback_was_killed_is_not_taken_for_its_entry() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old, new) = Bench::updated();
    let (root, fs) = bench.machine("killed");
    let images = bench.base.join("images");
    let reference = layout::small(1, "kernel 1", 3, 5000).finish().layout(&images, "os");
    let fs = Arc::new(fs);
    rollback::rollback(&in_this_boot(&root, fs.clone()).unwrap()).unwrap();
    let log = fs.log();
    let noted = log
        .iter()
        .position(|o| o.contains("rename") && o.contains("rollback.json"));
    let (root, fs) = bench.machine("again");
    let cut = Arc::new(fs.cut_after(noted.unwrap() + 1));
    rollback::rollback(&in_this_boot(&root, cut).unwrap()).unwrap_err();
    assert_eq!(next(&root), new, "it had no entry yet");
    let wishes = Wishes {
        allow_downgrade: true,
        ..Wishes::default()
    };
    let anew = in_this_boot(&root, Arc::new(RealFs)).unwrap();
    update::switch(&anew, &reference.parse().unwrap(), wishes, &Quiet).unwrap();
    drop(anew);
    assert_eq!(next(&root), old);
    rollback::rollback(&in_this_boot(&root, Arc::new(RealFs)).unwrap()).unwrap();
    assert_eq!(next(&root), new);
    fsck(&root);
}

#[test]
fn a_rollback_that_was_killed_is_finished_by_the_same_command_and_only_the_one_after_goes_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old, new) = Bench::updated();
    let back = |root: &Path, fs: Arc<dyn Fs>| rollback::rollback(&in_this_boot(root, fs)?);
    let (root, fs) = bench.machine("whole");
    let whole = Arc::new(fs);
    back(&root, whole.clone()).unwrap();
    let operations = whole.log();
    let over = operations.iter().rposition(|o| o.contains("rollback.json")).unwrap();
    for (at, operation) in operations[..=over].iter().enumerate() {
        let (root, fs) = bench.machine(&format!("killed-{at}"));
        let _ = back(&root, Arc::new(fs.cut_after(at)));
        let lost = back(&root, Arc::new(RealFs)).unwrap().lost;
        assert!(lost.is_empty(), "{lost:?}");
        assert_eq!(next(&root), old, "before {operation}");
        fsck(&root);
        back(&root, Arc::new(RealFs)).unwrap();
        assert_eq!(next(&root), new, "before {operation}");
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(over > 5, "{operations:?}");
}

#[test]
fn whenever_the_power_is_cut_while_a_rollback_brings_an_update_back_what_it_misses_of_etc_is_told() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("waits");
    let fs: Arc<dyn Fs> = Arc::new(fs);
    let back = |root: &Path, fs| rollback::rollback(&running(root, fs, old)?).map(drop);
    update::upgrade(&running(&root, fs.clone(), old).unwrap(), Wishes::default(), &Quiet).unwrap();
    let new = next(&root);
    back(&root, fs).unwrap();
    let etc = |root: &Path, id: DeploymentId| root.join("state/deploy").join(id.to_hex()).join("etc");
    std::fs::write(etc(&root, old).join("late"), "late").unwrap();
    bench.before = root;
    let operations = bench.cut_everywhere(back, |root, cut| {
        let after = next(root);
        assert!(after == old || after == new, "{cut}");
        let missed = finalize::missed(&running(root, Arc::new(RealFs), after).unwrap()).unwrap();
        let files = missed.map(|missed| missed.files).unwrap_or_default();
        assert_eq!(files.contains(&PathBuf::from("late")), after == new, "{cut}: {files:?}");
        fsck(root);
    });
    assert!(operations > 5, "{operations} operations were cut");
}
