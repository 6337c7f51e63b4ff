//! Boot entries that change: their kernels are mended, their arguments edited.

use cfs_core::boot::host::Edit;
use cfs_core::{arguments, repair};

use super::*;
use crate::common::kernels;

/// What `fsck --repair` does.
fn repair(root: &Path, fs: Arc<dyn Fs>) -> Result<repair::Repaired> {
    repair::repair(&Sysroot::open(options(root, fs), "fsck --repair")?, &[], &Quiet)
}

#[test]
fn whenever_the_power_is_cut_while_kernels_are_mended_what_booted_next_still_does_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for copied in [false, true] {
        let (mut bench, old, new) = Bench::updated();
        let (root, _) = bench.machine("damaged");
        match copied {
            true => kernels::copied_damaged(&root, &old.to_hex()),
            false => std::fs::write(&kernels::files_of(&root, &new.to_hex())[1], "short").unwrap(),
        }
        bench.before = root;
        let operations = bench.cut_everywhere(
            |root, fs| repair(root, fs).map(drop),
            |root, cut| {
                assert_eq!(next(root), new, "{cut}");
                let again = repair(root, Arc::new(RealFs)).unwrap();
                assert!(again.failed.is_empty(), "{cut}: {:?}", again.failed);
                assert_eq!(next(root), new, "{cut}");
                fsck(root);
            },
        );
        assert!(operations > 5, "{operations} operations were cut");
    }
}

#[test]
fn whenever_the_power_is_cut_while_kernel_arguments_change_it_boots_and_the_same_command_finishes_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, old) = Bench::new();
    let edit = Edit {
        append: vec!["debug".into()],
        ..Edit::default()
    };
    let change = |root: &Path, fs: Arc<dyn Fs>| {
        let sysroot = Sysroot::open(options(root, fs), "kargs")?;
        arguments::change(&sysroot, &edit, &Quiet).map(drop)
    };
    let operations = bench.cut_everywhere(change, |root, cut| {
        assert_eq!(next(root), old, "{cut}");
        let shown = || arguments::show(&Sysroot::look(options(root, Arc::new(RealFs))).unwrap()).unwrap();
        let has = |list: &[String]| list.contains(&"debug".to_owned());
        assert!(
            has(&shown().machine) || !has(&shown().line),
            "{cut}: what an entry has is in every later one, too"
        );
        match change(root, Arc::new(RealFs)) {
            Ok(()) | Err(Error::Nothing(_)) => {}
            Err(e) => panic!("{cut}: the same command again: {e}"),
        }
        let shown = shown();
        assert!(shown.is_current() && has(&shown.line), "{cut}: {shown:?}");
        assert_eq!(next(root), old, "{cut}");
        fsck(root);
    });
    assert!(operations > 5, "{operations} operations were cut");
}
