//! What was changed in /etc between staging and the boot.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

#[test]
fn an_update_that_never_ran_gets_the_last_merge_of_etc_by_whatever_way_it_comes_to_boot_next() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.release(3);
    machine.staged(NONE);
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, one);
    rollback::delete(&machine.open(), "rollback").unwrap();
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert_eq!(std::fs::read_to_string(machine.etc(two).join("late")).unwrap(), "late");

    // It ran, so its /etc is its own from then on.
    assert_eq!(machine.boot(), two);
    std::fs::write(machine.etc(two).join("own"), "own").unwrap();
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, one);
    assert_eq!(machine.boot(), one);
    machine.check(None);
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    assert_eq!(finalize::finalize(&machine.open(), &Quiet).unwrap(), Finalized::Nothing);
    assert!(machine.etc(two).join("own").exists());
    machine.fsck();
}

#[test]
fn an_update_whose_predecessor_is_gone_waits_for_no_etc() {
    let mut machine = Machine::installed();
    for _ in 0..3 {
        machine.boot();
    }
    // Looked at from another system, with nothing of it running: the one that does not come up goes.
    machine.booted = None;
    machine.release(2);
    let two = machine.staged(NONE);
    assert_eq!(two.removed.len(), 1);
    assert_eq!(finalize::finalize(&machine.open(), &Quiet).unwrap(), Finalized::Nothing);
    assert_eq!(machine.boot(), two.id);
    assert_eq!(finalize::missed(&machine.open()).unwrap(), None);
}

#[test]
fn what_is_written_in_etc_right_after_staging_or_after_the_last_merge_is_told_when_it_is_missed() {
    for merged in [false, true] {
        let mut machine = Machine::new();
        let one = machine.booted.unwrap();
        machine.release(2);
        let two = machine.staged(NONE).id;
        if merged {
            finalize::finalize(&machine.open(), &Quiet).unwrap();
        }
        std::fs::write(machine.etc(one).join("late"), "late").unwrap();
        assert_eq!(machine.boot(), two);
        machine.misses(one, "late");
    }
}

#[test]
fn an_earlier_update_that_boots_since_a_later_one_does_not_come_up_tells_what_it_misses_of_etc() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    let first = machine.release(1);
    machine.release(2);
    let two = machine.staged(NONE).id;
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    machine.release(1);
    let again = update::switch(&machine.open(), &first.parse().unwrap(), NONE, &Quiet).unwrap();
    assert!(
        matches!(again, Outcome::Staged(done) if done.id == one),
        "what runs has to prove itself again"
    );
    for _ in 0..3 {
        assert_eq!(machine.boot(), one);
    }
    assert_eq!(machine.boot(), two);
    machine.misses(one, "late");
}

#[test]
fn what_is_changed_in_etc_after_staging_is_there_after_the_reboot() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    std::fs::remove_file(machine.etc(one).join("app.conf")).unwrap();
    assert!(!machine.etc(two).join("late").exists());
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert_eq!(std::fs::read_to_string(machine.etc(two).join("late")).unwrap(), "late");
    assert!(!machine.etc(two).join("app.conf").exists(), "a deletion, too");
    assert_eq!(machine.boot(), two);
    assert_eq!(finalize::missed(&machine.open()).unwrap(), None);
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert_eq!(done, Finalized::Nothing, "the new one's own /etc is never merged over");
    machine.fsck();
}

#[test]
fn an_update_that_a_second_rollback_brings_back_gets_the_last_merge_of_etc() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    rollback::rollback(&machine.open()).unwrap();
    std::fs::write(machine.etc(one).join("late"), "late").unwrap();
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert_eq!(done, Finalized::Nothing, "what runs boots next");
    assert!(!machine.etc(two).join("late").exists());
    rollback::rollback(&machine.open()).unwrap();
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert_eq!(std::fs::read_to_string(machine.etc(two).join("late")).unwrap(), "late");
    assert_eq!(machine.boot(), two);
    machine.fsck();
}

#[test]
fn a_power_cut_before_the_last_merge_is_told_with_the_files_it_is_about() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    assert_eq!(machine.boot(), two);
    assert_eq!(
        finalize::missed(&machine.open()).unwrap(),
        None,
        "nothing was changed after staging"
    );
    let late = machine.etc(one).join("late");
    std::fs::write(&late, "late").unwrap();
    let hour = std::time::SystemTime::now() + Duration::from_secs(3600);
    std::fs::File::options()
        .write(true)
        .open(&late)
        .unwrap()
        .set_modified(hour)
        .unwrap();
    let missed = finalize::missed(&machine.open()).unwrap().unwrap();
    assert_eq!(
        (missed.from, missed.files.as_slice(), missed.why),
        (one, &[PathBuf::from("late")][..], None)
    );
}

#[test]
fn a_last_merge_that_fails_leaves_the_staged_etc_and_is_told_after_the_boot() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default()).id;
    let before = std::fs::read_to_string(machine.etc(two).join("app.conf")).unwrap();
    // Its image is needed for the merge.
    let image = machine.root.join("composefs/objects").join(object(two));
    std::fs::rename(&image, image.with_extension("away")).unwrap();
    finalize::finalize(&machine.open(), &Quiet).unwrap_err();
    std::fs::rename(image.with_extension("away"), &image).unwrap();
    assert_eq!(
        std::fs::read_to_string(machine.etc(two).join("app.conf")).unwrap(),
        before
    );
    let staged = Staged::load(machine.open().deployments().layout()).unwrap().unwrap();
    assert!(staged.finalize_failed.is_some() && staged.finalized.is_none());
    assert_eq!(machine.boot(), two);
    let missed = finalize::missed(&machine.open()).unwrap().unwrap();
    assert_eq!(missed.from, one);
    assert!(missed.why.is_some());
}

#[test]
fn whatever_kind_of_change_a_power_cut_keeps_from_an_update_is_told_and_nothing_else() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    let etc = machine.etc(one);
    for name in ["secret", "gone", "moved", "plain", "settled"] {
        std::fs::write(etc.join(name), name).unwrap();
    }
    std::fs::create_dir_all(etc.join("d/inner")).unwrap();
    symlink("here", etc.join("link")).unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    std::fs::set_permissions(etc.join("secret"), Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(etc.join("gone")).unwrap();
    std::fs::rename(etc.join("moved"), etc.join("moved2")).unwrap();
    std::fs::write(etc.join("copied"), "with its times").unwrap();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1);
    for name in ["copied", "settled"] {
        let file = std::fs::File::options().write(true).open(etc.join(name)).unwrap();
        file.set_modified(old).unwrap();
    }
    std::fs::create_dir(etc.join("folder")).unwrap();
    std::fs::remove_dir_all(etc.join("d/inner")).unwrap();
    std::fs::remove_file(etc.join("link")).unwrap();
    symlink("there", etc.join("link")).unwrap();
    // Made here in the same way before anybody could tell of it.
    std::fs::write(etc.join("both"), "same").unwrap();
    assert_eq!(machine.boot(), two);
    std::fs::write(machine.etc(two).join("both"), "same").unwrap();
    std::fs::write(machine.etc(two).join("own"), "no loss").unwrap();
    let missed = finalize::missed(&machine.open()).unwrap().unwrap();
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(
        missed.files,
        paths(&["copied", "folder", "link", "moved2", "secret"]),
        "times alone are no change"
    );
    assert_eq!(missed.removed, paths(&["d/inner", "gone", "moved"]));
    assert_eq!((missed.from, missed.why), (one, None));
    finalize::told(&machine.open()).unwrap();
    assert_eq!(finalize::missed(&machine.open()).unwrap(), None, "once");
    assert!(!machine.etc(two).with_file_name("etc-merged.json").exists());
}

#[test]
fn an_etc_that_was_changed_in_a_boot_that_no_command_saw_is_never_merged_over() {
    for noted in [true, false] {
        let mut machine = Machine::new();
        let one = machine.booted.unwrap();
        machine.release(2);
        let two = machine.staged(NONE).id;
        finalize::finalize(&machine.open(), &Quiet).unwrap();
        // It ends in emergency mode, where somebody mends it; then the first one is taken in the menu.
        machine.boot_unseen();
        std::fs::write(machine.etc(two).join("app.conf"), "mended").unwrap();
        if !noted {
            std::fs::remove_file(machine.etc(two).with_file_name("etc-merged.json")).unwrap();
        }
        assert_eq!(machine.booted, Some(one));
        std::fs::write(machine.etc(one).join("late"), "late").unwrap();
        let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
        assert_eq!(done, Finalized::Kept { id: two });
        let own = std::fs::read_to_string(machine.etc(two).join("app.conf")).unwrap();
        assert_eq!(own, "mended");
        let staged = Staged::load(machine.open().deployments().layout()).unwrap().unwrap();
        assert!(staged.finalize_failed.is_some(), "something is missed");
        assert_eq!(machine.boot(), two);
        let missed = finalize::missed(&machine.open()).unwrap().unwrap();
        assert!(missed.why.unwrap().contains("was changed"));
        assert_eq!((missed.from, missed.files), (one, vec![PathBuf::from("late")]));
    }
}

#[test]
fn what_keeps_its_own_etc_and_misses_nothing_says_nothing() {
    let mut machine = Machine::new();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.boot_unseen();
    std::fs::write(machine.etc(two).join(".updated"), "by systemd").unwrap();
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert_eq!(done, Finalized::Kept { id: two });
    assert_eq!(machine.boot(), two);
    assert_eq!(finalize::missed(&machine.open()).unwrap(), None);
}

#[test]
fn an_update_that_died_before_it_changed_anything_still_gets_the_last_merge() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.boot_unseen();
    std::fs::write(machine.etc(one).join("mended"), "so that it comes up").unwrap();
    let done = finalize::finalize(&machine.open(), &Quiet).unwrap();
    assert!(matches!(done, Finalized::Merged { id, .. } if id == two), "{done:?}");
    assert!(machine.etc(two).join("mended").exists());
}
