//! Kernels on `$BOOT` that were damaged since they were written: they are not gone back to, and can be written anew
//! whatever runs.

use std::fs;

use cfs_core::repair;

use super::*;

/// Cuts the initrd of a deployment's entry short.
fn damage(machine: &Machine, id: DeploymentId) {
    let [_, initrd] = common::kernels::files_of(&machine.root, &id.to_hex());
    let file = fs::File::options().write(true).open(initrd).unwrap();
    file.set_len(3).unwrap();
}

/// A machine that runs version `versions`, the ones before it found good; the ids of all.
fn running(versions: u32) -> (Machine, Vec<DeploymentId>) {
    let mut machine = Machine::new();
    let mut ids = vec![machine.booted.unwrap()];
    for version in 2..=versions {
        machine.release_with_kernel(version);
        rollback::pin(&machine.open(), "booted", true).unwrap();
        ids.push(machine.staged(NONE).id);
        machine.boot();
        if version < versions {
            assert!(matches!(machine.check(None), Verdict::Good { .. }));
        }
    }
    (machine, ids)
}

#[test]
fn a_bad_boot_stays_where_the_only_other_kernel_is_damaged() {
    let (mut machine, ids) = running(2);
    damage(&machine, ids[0]);
    let entries = machine.entries();
    assert!(matches!(machine.check(Some("bad")), Verdict::Alone { .. }));
    let known = machine.open().known().unwrap();
    let verdict = health::condemn(&machine.open(), &known, ids[1], "by hand", &mut Vec::new()).unwrap();
    assert!(matches!(verdict, Verdict::Alone { .. }), "{verdict:?}");
    assert_eq!(machine.entries(), entries);
    assert_eq!(machine.boot(), ids[1]);
}

#[test]
fn a_bad_boot_leads_past_a_damaged_kernel_to_one_that_is_whole() {
    let (mut machine, ids) = running(3);
    damage(&machine, ids[1]);
    let Verdict::GoBack { to, .. } = machine.check(Some("bad")) else {
        panic!("there is a whole one");
    };
    assert_eq!(to, ids[0]);
    assert_eq!(machine.boot(), ids[0], "it got an entry above the damaged one");
}

#[test]
fn the_kernel_of_what_runs_is_written_anew_and_the_update_still_boots_next() {
    let (mut machine, ids) = running(2);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    machine.release_with_kernel(3);
    let update = machine.staged(NONE).id;
    let entries = machine.entries();
    for id in [ids[1], update] {
        damage(&machine, id);
        let mended = repair::repair(&machine.open(), &[], &Quiet).unwrap();
        assert_eq!((mended.mended.len(), mended.failed.len()), (1, 0), "{mended:?}");
        machine.fsck();
        assert_eq!(machine.entries(), entries);
    }
    assert_eq!(machine.boot(), update);
}

/// Entries with a kernel that is none of their image's, as `fsck` finds them.
fn not_of_their_image(machine: &Machine) -> Vec<String> {
    let mut wrong = Vec::new();
    let sink = &mut |finding: upkeep::Finding| {
        if finding.damage {
            assert!(finding.why.contains("none of its image"), "{finding:?}");
            wrong.push(finding.name);
        }
    };
    upkeep::fsck(&machine.open(), sink).unwrap();
    wrong
}

#[test]
fn a_wrong_kernel_of_the_entry_to_go_back_to_from_new_arguments_is_found_beside_that_of_the_entry_that_has_them() {
    let (mut machine, ids) = running(2);
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    common::kernels::copied_damaged(&machine.root, &ids[1].to_hex());
    let former = not_of_their_image(&machine);
    assert_eq!(former.len(), 1);
    machine.arguments("debug", "").unwrap();
    let both = not_of_their_image(&machine);
    assert!(both.len() == 2 && both.contains(&former[0]), "{both:?}");

    let mended = repair::repair(&machine.open(), &[], &Quiet).unwrap();
    assert_eq!((mended.mended.len(), mended.failed.len()), (1, 1), "{mended:?}");
    let why = mended.failed[0].1.to_string();
    assert!(why.contains("come up with the new kernel arguments"), "{why}");
    assert_eq!(not_of_their_image(&machine), former);
    assert_eq!(machine.boot(), ids[1]);
    assert!(machine.line(ids[1]).ends_with(" debug"));
    assert!(matches!(machine.check(None), Verdict::Good { .. }));
    upkeep::gc(&machine.open(), false).unwrap();
    machine.fsck();
}
