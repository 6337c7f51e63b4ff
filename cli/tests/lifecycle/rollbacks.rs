//! What a rollback or a failed boot leads to.

use super::*;

#[test]
fn a_rollback_does_what_it_says_twice_with_an_update_staged_and_after_a_failed_one() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(Wishes::default());
    // Staged and not booted: the running one boots next again, and the update is not lost.
    let back = rollback::rollback(&machine.open()).unwrap();
    assert_eq!((back.id, back.instead_of, back.was_staged), (one, Some(two.id), true));
    assert!(
        matches!(machine.upgrade(AUTOMATIC), Outcome::FailedBefore(f) if f.by_admin),
        "the timer leaves it alone"
    );
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two.id);
    assert_eq!(machine.failed(&two.manifest), None, "he wants it after all");
    assert_eq!(machine.boot(), two.id);
    machine.check(None);
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, one);
    assert_eq!(machine.boot(), one);
    assert_eq!(machine.check(None), Verdict::StillGood, "what was good stays good");
    assert!(matches!(machine.upgrade(AUTOMATIC), Outcome::FailedBefore(_)));
    let again = machine.staged(Wishes::default());
    assert_eq!(again.manifest, two.manifest, "the administrator himself may have it");

    machine.boot();
    machine.check(None);
    machine.release(3);
    let bad = machine.staged(Wishes::default());
    machine.boot();
    machine.check(Some("bad"));
    assert_eq!(machine.boot(), two.id);
    let done = rollback::rollback(&machine.open()).unwrap();
    assert_eq!(
        (done.id, done.instead_of),
        (one, Some(two.id)),
        "the one before, never the bad one"
    );
    assert_ne!(done.id, bad.id);
    machine.fsck();
}

#[test]
fn with_an_earlier_update_still_staged_a_rollback_takes_what_runs_and_so_does_a_bad_update() {
    for pinned in [false, true] {
        let mut machine = Machine::new();
        let one = machine.booted.unwrap();
        machine.release(2);
        let two = machine.staged(NONE).id;
        if pinned {
            rollback::pin(&machine.open(), "staged", true).unwrap();
        }
        machine.release(3);
        let three = machine.staged(NONE).id;
        let known = machine.open().known().unwrap();
        assert!(known.iter().any(|k| k.id == two), "it is kept");
        assert_eq!(
            rollback::rollback(&machine.open()).unwrap().id,
            one,
            "what runs, not {two}"
        );
        assert_eq!(rollback::rollback(&machine.open()).unwrap().id, three);

        assert_eq!(machine.boot(), three);
        let Verdict::GoBack { to, .. } = machine.check(Some("bad")) else {
            panic!("it is left");
        };
        assert_eq!(to, one, "the last good one, not {two}, which never ran");
        assert_eq!(machine.boot(), one);
        machine.fsck();
    }
}

#[test]
fn what_fails_after_a_rollback_to_it_leads_to_the_last_good_one_not_to_what_was_gone_back_from() {
    let mut machine = Machine::new();
    let one = machine.booted.unwrap();
    machine.release(2);
    let two = machine.staged(NONE).id;
    assert_eq!(machine.boot(), two);
    machine.release(3);
    machine.staged(NONE);
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    assert_eq!(machine.boot(), two);
    let Verdict::GoBack { to, .. } = machine.check(Some("bad")) else {
        panic!("it is left");
    };
    assert_eq!(to, one);
    assert_eq!(machine.boot(), one);
    assert_eq!(machine.check(None), Verdict::StillGood);
    machine.fsck();
}

#[test]
fn new_arguments_that_do_not_come_up_lead_to_the_former_ones_not_to_an_update_gone_back_from() {
    let mut machine = Machine::new();
    machine.release(2);
    let two = machine.staged(NONE).id;
    machine.boot();
    machine.check(None);
    machine.release(3);
    machine.arguments("init=/bin/false", "").unwrap();
    let three = machine.staged(NONE).id;
    assert_eq!(rollback::rollback(&machine.open()).unwrap().id, two);
    for _ in 0..3 {
        assert_eq!(machine.boot(), two);
        assert!(machine.line(two).contains("init="));
    }
    assert_eq!(machine.boot(), two, "not {three}");
    assert!(!machine.line(two).contains("init="));
    assert_eq!(machine.check(None), Verdict::StillGood);
    machine.fsck();
}
