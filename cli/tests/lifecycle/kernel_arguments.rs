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

#[test]
fn a_machine_that_does_not_come_up_with_new_arguments_goes_back_and_comes_up_without_them() {
    let mut machine = Machine::new();
    let old = machine.booted.unwrap();
    machine.release(2);
    let new = machine.staged(Wishes::default());
    assert_eq!(machine.boot(), new.id);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.arguments("init=/bin/false", "").unwrap();
    for _ in 0..3 {
        assert_eq!(machine.boot(), new.id);
    }
    assert_eq!(machine.boot(), old);
    assert_eq!(machine.check(None), Verdict::StillGood);
    machine.arguments("", "init").unwrap();
    let again = machine.staged(RETRY);
    assert_eq!(again.manifest, new.manifest);
    assert_eq!(machine.boot(), again.id);
    assert!(!machine.line(again.id).contains("init="));
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
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
