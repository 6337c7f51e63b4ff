//! Where it all lies: the repository and its algorithm, how the sysroot is named, a boot partition that is not mounted.

use super::*;

#[test]
fn a_repository_of_the_other_algorithm_works_and_stays_so() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let deployed = cfs.run([
        "switch",
        "--json",
        "--algorithm",
        "fsverity-sha512-12",
        &publish(dir.path(), 1),
    ]);
    assert_eq!(deployed.expect(0).json()["deployment"].as_str().unwrap().len(), 128);
    publish(dir.path(), 2);
    cfs.run(["upgrade"]).expect(0);
    cfs.run(["switch", "--algorithm", "fsverity-sha256-12", &publish(dir.path(), 3)])
        .expect(1);
    cfs.fsck();
}

#[test]
fn a_switch_that_failed_before_its_first_object_does_not_decide_the_algorithm() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let image = publish(dir.path(), 1);
    cfs.run(["switch", &format!("{image}-mistyped")]).expect(5);
    let deployed = cfs.run(["switch", "--json", "--algorithm", "fsverity-sha512-12", &image]);
    assert_eq!(deployed.expect(0).json()["deployment"].as_str().unwrap().len(), 128);
    cfs.fsck();
}

#[test]
fn a_sysroot_may_be_named_by_a_link_or_with_a_slash_behind_it() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(cfs.sysroot(), &link).unwrap();
    let slash = format!("{}/", cfs.sysroot().display());
    for (version, root) in [(1, link.as_os_str()), (2, slash.as_ref()), (3, link.as_os_str())] {
        let cfs = cfs.on(std::path::Path::new(root));
        cfs.run(["switch", &publish(dir.path(), version)]).expect(0);
        cfs.fsck();
    }
    assert_eq!(cfs.entries().len(), 2);
}

#[test]
fn where_the_boot_partition_is_not_mounted_nothing_is_staged_or_removed() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let boot = cfs.sysroot().join("boot");
    let away = dir.path().join("away");
    fs::rename(&boot, &away).unwrap();
    fs::create_dir(&boot).unwrap();
    let before = objects(&cfs);
    for command in [
        &["gc"][..],
        &["gc", "--dry-run"],
        &["delete", "1"],
        &["upgrade"],
        &["switch", &publish(dir.path(), 3)],
        &["fsck"],
    ] {
        let ran = cfs.run(command).expect(1);
        let said = ran.stdout + &ran.stderr;
        assert!(
            said.contains(boot.to_str().unwrap()) && said.contains("mount"),
            "{command:?}: {said}"
        );
        assert_eq!(cfs.status()["status"]["otherDeployments"].as_array().unwrap().len(), 2);
    }
    assert_eq!(objects(&cfs), before);
    assert_eq!(fs::read_dir(&boot).unwrap().count(), 0);
    fs::remove_dir(&boot).unwrap();
    fs::rename(&away, &boot).unwrap();
    cfs.fsck();

    // One that was lost begins anew where that is said; what only the old one boots stays until it is deleted.
    fs::rename(&boot, &away).unwrap();
    fs::create_dir(&boot).unwrap();
    cfs.run(["upgrade", "--boot", boot.to_str().unwrap()]).expect(0);
    cfs.run(["gc"]).expect(0);
    let ran = cfs.run(["fsck"]).expect(1);
    assert_eq!(
        ran.stdout.matches("has no boot entry any more").count(),
        2,
        "{}",
        ran.stdout
    );
    for lost in cfs.status()["status"]["otherDeployments"].as_array().unwrap() {
        let id = lost["cfsUpdate"]["deployment"].as_str().unwrap();
        if ran.stdout.contains(id) {
            cfs.run(["delete", id]).expect(0);
        }
    }
    cfs.run(["gc"]).expect(0);
    cfs.fsck();
}
