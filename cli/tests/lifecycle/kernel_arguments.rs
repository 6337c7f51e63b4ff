//! Kernel arguments of the machine, from a change to the boot that proves them.

use super::*;

#[test]
fn kernel_arguments_of_the_machine_prove_themselves_and_are_in_every_later_deployment() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.arguments("debug console=ttyS0", "").unwrap();
    assert_eq!(machine.tries(old), Tries::Left { left: 3, done: 0 });
    assert_eq!(machine.boot(), old);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.release(2);
    let new = machine.staged(AUTOMATIC).id;
    assert!(
        machine.line(new).ends_with(" debug console=ttyS0"),
        "{}",
        machine.line(new)
    );
    machine.arguments("", "debug").unwrap();
    assert_eq!(machine.boot(), new);
    assert!(machine.line(new).ends_with(" console=ttyS0") && !machine.line(new).contains("debug"));
    assert!(
        machine.line(old).contains(" debug "),
        "an earlier deployment keeps its own"
    );
    assert!(matches!(machine.arguments("", "debug"), Err(Error::Usage(_))));
    assert!(matches!(machine.arguments("console=ttyS0", ""), Err(Error::Nothing(_))));
    rollback::rollback(&machine.open()).unwrap();
    assert_eq!(machine.boot(), old);
    assert!(machine.line(old).contains(" debug "));
    machine.arguments("console=ttyS0", "").unwrap();
    assert!(
        !machine.line(old).contains("debug"),
        "it is made anew, as the machine wants it now"
    );
    machine.fsck();
}

impl Machine {
    fn manifest(&self, id: DeploymentId) -> ManifestDigest {
        let known = self.open().known().unwrap();
        known.iter().find(|k| k.id == id).unwrap().manifest().unwrap()
    }
}

/// A good second version runs, and the first one is there.
fn with_two_good_ones() -> (Machine, DeploymentId, DeploymentId) {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let new = machine.staged(Wishes::default()).id;
    assert_eq!(machine.boot(), new);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    (machine, old, new)
}

#[test]
fn a_machine_that_does_not_come_up_with_new_arguments_comes_up_with_the_former_ones_and_wants_them_again() {
    let (mut machine, _, new) = with_two_good_ones();
    machine.arguments("quiet", "").unwrap();
    assert_eq!(machine.boot(), new);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.arguments("init=/bin/false", "").unwrap();
    for _ in 0..3 {
        assert_eq!(machine.boot(), new);
        assert!(machine.line(new).contains("init="), "it may be in its last try");
    }
    assert_eq!(machine.boot(), new);
    assert!(machine.line(new).ends_with(" quiet"), "{}", machine.line(new));
    assert_eq!(machine.wishes(), ["quiet"], "before anything was written");
    assert_eq!(machine.check(None), Verdict::StillGood);
    assert_eq!(machine.wishes(), ["quiet"]);
    assert_eq!(machine.failed(&machine.manifest(new)), None);
    machine.release(3);
    let newer = machine.staged(AUTOMATIC).id;
    assert!(machine.line(newer).ends_with(" quiet"), "{}", machine.line(newer));
    machine.fsck();
}

#[test]
fn new_arguments_with_which_the_machine_comes_up_in_its_last_try_are_good() {
    let (mut machine, _, new) = with_two_good_ones();
    machine.arguments("debug", "").unwrap();
    for _ in 0..3 {
        assert_eq!(machine.boot(), new);
    }
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    assert_eq!(machine.boot(), new);
    assert!(machine.line(new).ends_with(" debug"));
    assert_eq!(machine.wishes(), ["debug"]);
    upkeep::gc(&machine.open(), false).unwrap();
    assert_eq!(
        machine.entries().len(),
        2,
        "the entry of before is gone: {:?}",
        machine.entries()
    );
}

#[test]
fn new_arguments_with_which_the_checks_fail_are_gone_back_from_and_the_image_is_not_to_blame() {
    for unproven in [false, true] {
        let (mut machine, old, new) = with_two_good_ones();
        if unproven {
            // Never booted, and above the entry that would be gone back to.
            machine.release(3);
            machine.staged(Wishes::default());
            rollback::rollback(&machine.open()).unwrap();
        }
        machine.arguments("debug", "").unwrap();
        machine.arguments("more", "").unwrap();
        assert_eq!(machine.boot(), new);
        assert!(machine.line(new).ends_with(" debug more"));
        let verdict = machine.check(Some("no network"));
        assert!(
            matches!(verdict, Verdict::GoBack { to, .. } if to == new),
            "{verdict:?}"
        );
        assert_eq!(machine.boot(), new);
        assert!(!machine.line(new).contains("debug"), "{}", machine.line(new));
        assert_eq!(machine.wishes(), [""; 0]);
        assert!(matches!(
            machine.check(Some("still none")),
            Verdict::NoLongerGood { .. }
        ));
        assert_eq!(machine.failed(&machine.manifest(new)), None);
        assert!(unproven || rollback::rollback(&machine.open()).unwrap().id == old);
        machine.fsck();
    }
}

#[test]
fn arguments_that_are_taken_back_before_a_boot_leave_the_entry_that_booted_well() {
    let (mut machine, _, new) = with_two_good_ones();
    let entries = machine.entries().len();
    machine.arguments("debug", "").unwrap();
    assert_eq!(machine.entries().len(), entries + 1, "both are there");
    machine.arguments("", "debug").unwrap();
    assert_eq!(machine.tries(new), Tries::Good);
    assert_eq!(machine.entries().len(), entries);
    assert_eq!(machine.boot(), new);
    assert_eq!(machine.check(None), Verdict::StillGood);
}

#[test]
fn a_single_deployment_survives_arguments_that_it_does_not_come_up_with() {
    let mut machine = Machine::new();
    let only = machine.booted.unwrap();
    machine.arguments("init=/bin/false", "").unwrap();
    for _ in 0..4 {
        assert_eq!(machine.boot(), only);
    }
    assert!(!machine.line(only).contains("init="));
    assert_eq!(machine.check(None), Verdict::StillGood);
    assert_eq!(machine.wishes(), [""; 0]);
}

#[test]
fn a_root_that_was_the_machines_wish_is_that_of_the_file_system_again_when_it_is_deleted() {
    let machine = Machine::new();
    let id = machine.booted.unwrap();
    machine.arguments("root=LABEL=other ro", "").unwrap();
    let line = machine.line(id);
    assert!(
        line.ends_with(" root=LABEL=other ro") && !line.contains("LABEL=root") && !line.contains(" rw"),
        "{line}"
    );
    machine.arguments("", "root ro").unwrap();
    let line = machine.line(id);
    assert!(
        line.contains(" root=LABEL=root rw") && !line.contains("other"),
        "{line}"
    );
}
