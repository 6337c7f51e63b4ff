//! What is downloaded now and staged later.

use super::*;

#[test]
fn what_is_downloaded_changes_nothing_that_boots_is_kept_and_is_staged_without_the_registry() {
    let machine = Machine::new();
    let (entries, names) = (machine.entries(), machine.names());
    let nothing = machine.take_downloaded(NONE).unwrap_err().to_string();
    assert!(nothing.contains("--download-only"), "{nothing}");
    machine.release(2);
    let (image, already) = machine.downloaded();
    assert!(!already && machine.downloaded() == (image.clone(), true));
    assert_eq!((machine.entries(), machine.noted()), (entries, Some(image.clone())));
    upkeep::gc(&machine.open(), false).unwrap();
    machine.fsck();

    std::fs::rename(&machine.images, machine.images.with_extension("away")).unwrap();
    let Outcome::Staged(done) = machine.take_downloaded(NONE).unwrap() else {
        panic!("it is staged");
    };
    assert_eq!(
        (done.id, done.manifest, done.version),
        (image.id, image.manifest, image.version)
    );
    assert_eq!(machine.noted(), None);
    let new = machine.names().into_iter().filter(|name| !names.contains(name));
    assert!(new.clone().all(|name| name.contains(&image.id.to_hex())), "{new:?}");
    machine.fsck();
}

#[test]
fn an_outlook_on_what_is_here_says_whether_restarting_user_space_is_enough() {
    let machine = Machine::new();
    machine.release(2);
    let line = cmdline::split(&machine.line(machine.booted.unwrap()));
    let outlook = || {
        let found = outlook::forecast(&machine.open(), None, &line, &Quiet).unwrap();
        found
            .unwrap()
            .changes
            .map(|changes| (changes.id, changes.soft_reboot.unwrap()))
    };
    assert!(outlook().is_none(), "the layers are not here");
    let (image, _) = machine.downloaded();
    assert_eq!(outlook(), Some((image.id, Ok(()))));
    machine.arguments("debug", "").unwrap();
    let (_, answer) = outlook().unwrap();
    assert!(answer.unwrap_err().contains("kernel arguments"));
    machine.fsck();
}

#[test]
fn a_newer_version_takes_the_place_of_what_was_downloaded() {
    let machine = Machine::new();
    let before = machine.names();
    machine.release(2);
    let (second, _) = machine.downloaded();
    machine.release(3);
    let (third, already) = machine.downloaded();
    assert!(!already && second.manifest != third.manifest);
    let freed = upkeep::gc(&machine.open(), false).unwrap();
    assert!(
        freed.store.objects.iter().any(|(id, _)| *id == second.id),
        "the image of version 2 goes"
    );

    // An update that asks the registry has nothing left to fetch, and the note is done with.
    machine.release(4);
    let newest = machine.staged(NONE);
    assert!(newest.manifest != third.manifest && machine.noted().is_none());
    let left = machine.names().into_iter().filter(|name| !before.contains(name));
    assert!(left.clone().all(|name| name.contains(&newest.id.to_hex())), "{left:?}");
    machine.fsck();
}

#[test]
fn what_was_downloaded_of_another_image_stays_while_the_followed_one_is_updated() {
    let machine = Machine::new();
    let other = layout::small(7, "same kernel", 2, 3000).finish();
    let other = other.layout(&machine.images.with_extension("other"), "os");
    let switched = |wishes| update::switch(&machine.open(), &other.parse().unwrap(), wishes, &Quiet).unwrap();
    let Outcome::Downloaded { image, already: false } = switched(DOWNLOAD) else {
        panic!("it is downloaded");
    };
    machine.release(2);
    machine.staged(AUTOMATIC);
    upkeep::gc(&machine.open(), false).unwrap();
    assert_eq!(machine.noted(), Some(image.clone()));
    let Outcome::Staged(done) = machine.take_downloaded(NONE).unwrap() else {
        panic!("it is staged");
    };
    assert_eq!(done.manifest, image.manifest);
    let known = machine.open().known().unwrap();
    let origin = known.iter().find(|k| k.id == done.id).unwrap().origin().unwrap();
    assert_eq!(origin.reference, other, "it is followed from now on");
    machine.fsck();
}

#[test]
fn a_download_that_is_damaged_is_said_and_mended_and_one_that_failed_here_is_not_taken() {
    let mut machine = Machine::new();
    machine.release(2);
    let bad = machine.staged(NONE);
    assert_eq!(machine.boot(), bad.id);
    machine.check(Some("exit code 1"));
    machine.boot();
    machine.check(None);
    let kept = machine.open().known().unwrap().iter().any(|k| k.id == bad.id);
    let Outcome::FailedBefore(_) = machine.upgrade(DOWNLOAD) else {
        panic!("it failed before");
    };
    let wanted = Wishes {
        retry: true,
        ..DOWNLOAD
    };
    let Outcome::Downloaded { image, .. } = machine.upgrade(wanted) else {
        panic!("it was asked for");
    };
    assert!(matches!(
        machine.take_downloaded(NONE).unwrap(),
        Outcome::FailedBefore(_)
    ));

    // An object that version 1 has not got.
    let objects = |sysroot: &Sysroot, id: &DeploymentId| -> std::collections::BTreeSet<_> {
        let image = sysroot.store().read_object(id, 1 << 30).unwrap();
        cfs_core::image::reader::read(&image).unwrap().objects().collect()
    };
    let sysroot = machine.open();
    let old = objects(&sysroot, &machine.booted.unwrap());
    let new = objects(&sysroot, &image.id);
    let only = *new.difference(&old).next().unwrap();
    std::fs::remove_file(sysroot.store().object_path(&only)).unwrap();
    drop(sysroot);
    let said = machine.take_downloaded(RETRY).unwrap_err().to_string();
    assert!(said.contains("not in the store"), "{said}");
    let repaired = cfs_core::repair::repair(&machine.open(), &[], &Quiet).unwrap();
    assert!(
        !repaired.mended.is_empty() && repaired.failed.is_empty(),
        "{repaired:?}"
    );
    assert_eq!(machine.noted(), Some(image.clone()));
    assert!(
        matches!(machine.take_downloaded(RETRY).unwrap(), Outcome::Staged(_)),
        "{kept}"
    );
    machine.fsck();
}
