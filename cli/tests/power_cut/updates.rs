//! An upgrade, at once or in two steps.

use super::*;

#[test]
fn whenever_the_power_is_cut_during_an_upgrade_old_or_new_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old) = Bench::new();
    let (root, fs) = bench.machine("known");
    upgrade(&root, Arc::new(fs)).unwrap();
    let new = next(&root);
    assert_ne!(old, new);
    let operations = bench.cut_everywhere(
        |root, fs| upgrade(root, fs).map(drop),
        |root, cut| {
            let after = next(root);
            assert!(after == old || after == new, "{cut}");
            upgrade(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: the same command again: {e}"));
            assert_eq!(next(root), new, "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 20, "{operations} operations were cut");
}

/// What is new is fetched and kept.
fn download(root: &Path, fs: Arc<dyn Fs>) -> Result<Outcome> {
    let sysroot = Sysroot::open(options(root, fs), "upgrade")?;
    let wishes = Wishes {
        download_only: true,
        ..Wishes::default()
    };
    update::upgrade(&sysroot, wishes, &Quiet)
}

/// What was downloaded boots next.
fn take(root: &Path, fs: Arc<dyn Fs>) -> Result<Outcome> {
    let sysroot = Sysroot::open(options(root, fs), "upgrade")?;
    update::from_downloaded(&sysroot, Wishes::default(), &Quiet)
}

#[test]
fn whenever_the_power_is_cut_during_a_download_the_old_one_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old) = Bench::new();
    let operations = bench.cut_everywhere(
        |root, fs| download(root, fs).map(drop),
        |root, cut| {
            assert_eq!(next(root), old, "{cut}");
            let sysroot = Sysroot::open(options(root, Arc::new(RealFs)), "gc").unwrap();
            upkeep::gc(&sysroot, false).unwrap_or_else(|e| panic!("{cut}: {e}"));
            drop(sysroot);
            fsck(root);
            download(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: the same command again: {e}"));
            let taken = take(root, Arc::new(RealFs)).unwrap_or_else(|e| panic!("{cut}: {e}"));
            assert!(matches!(taken, Outcome::Staged(_)) && next(root) != old, "{cut}");
            fsck(root);
        },
    );
    // Of the note alone: the store has tests of its own for this.
    assert!(operations > 3, "{operations} operations were cut");
}

#[test]
fn whenever_the_power_is_cut_while_what_was_downloaded_is_taken_it_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut bench, old) = Bench::new();
    let (root, fs) = bench.machine("downloaded");
    download(&root, Arc::new(fs)).unwrap();
    bench.before = root;
    let operations = bench.cut_everywhere(
        |root, fs| take(root, fs).map(drop),
        |root, cut| {
            next(root);
            // Where the note is gone, it boots already.
            match take(root, Arc::new(RealFs)) {
                Ok(Outcome::Staged(_)) => {}
                Err(Error::Deployment { .. }) if next(root) != old => {}
                other => panic!("{cut}: the same command again: {other:?}"),
            }
            assert_ne!(next(root), old, "{cut}");
            fsck(root);
        },
    );
    assert!(operations > 10, "{operations} operations were cut");
}
