//! Updates that are downloaded now and taken later, by an administrator or the timer.

use super::*;

#[test]
fn an_update_is_downloaded_now_and_taken_later_without_the_registry() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    let before = cfs.status();
    assert_eq!(before["status"]["cfsUpdate"]["downloaded"], Value::Null);
    let nothing = cfs.run(["upgrade", "--download-only"]).expect(77).stderr;
    assert!(nothing.contains("boots next already"), "{nothing}");
    let from = publish(dir.path(), 2);
    let told = cfs.run(["upgrade", "--download-only"]).expect(0).stdout;
    assert!(
        told.contains("(version 2)") && told.contains("upgrade --from-downloaded"),
        "{told}"
    );
    let again = cfs.run(["upgrade", "--download-only"]).expect(77).stderr;
    assert!(again.contains("is downloaded already"), "{again}");

    let mut status = cfs.status();
    let downloaded = status["status"]["cfsUpdate"]["downloaded"].take();
    assert_eq!(
        (&downloaded["version"], &downloaded["image"]),
        (&json!("2"), &json!(from))
    );
    assert_eq!(status, before, "nothing else changed");
    let human = cfs.run(["status"]).expect(0).stdout;
    assert!(human.contains("Downloaded, ") && human.contains(&from), "{human}");
    let listed = |arguments: &[&str]| cfs.run(arguments).expect(0).json().as_array().unwrap().len();
    assert_eq!(
        (
            listed(&["image", "ls", "--json"]),
            listed(&["image", "ls", "--all", "--json"])
        ),
        (0, 2)
    );
    cfs.run(["gc"]).expect(0);
    cfs.fsck();

    for wrong in [["--apply"], ["--check"], ["--dry-run"], ["--from-downloaded"]] {
        cfs.run(["upgrade", "--download-only", wrong[0]]).expect(2);
    }
    fs::rename(dir.path().join("oci"), dir.path().join("away")).unwrap();
    let taken = cfs.run(["upgrade", "--from-downloaded", "--json"]).expect(0).json();
    assert_eq!((&taken["result"], &taken["version"]), (&json!("staged"), &json!("2")));
    let missing = cfs.run(["upgrade", "--from-downloaded"]).expect(1).stderr;
    assert!(missing.contains("--download-only"), "{missing}");
    fs::rename(dir.path().join("away"), dir.path().join("oci")).unwrap();

    // What is not wanted any more.
    publish(dir.path(), 3);
    let json = cfs.run(["upgrade", "--download-only", "--json"]).expect(0).json();
    assert_eq!(json["result"], "downloaded");
    cfs.run(["delete", "downloaded"]).expect(0);
    cfs.run(["delete", "downloaded"]).expect(2);
    assert_eq!(cfs.status()["status"]["cfsUpdate"]["downloaded"], Value::Null);

    // A note that cannot be read is said, and no other one is in its way.
    let note = cfs.sysroot().join("state/cfs-update/downloaded.json");
    fs::write(&note, "{").unwrap();
    let problems = cfs.status()["status"]["cfsUpdate"]["problems"].to_string();
    assert!(problems.contains("downloaded.json"), "{problems}");
    cfs.run(["upgrade", "--from-downloaded"]).expect(1);
    cfs.run(["upgrade", "--download-only"]).expect(0);
    assert_eq!(cfs.status()["status"]["cfsUpdate"]["downloaded"]["version"], "3");
    fs::write(&note, "{").unwrap();
    cfs.run(["delete", "downloaded"]).expect(0);
    assert!(!note.exists());
    cfs.run(["gc"]).expect(0);
    cfs.fsck();
}

#[test]
fn automatic_updates_may_fetch_and_leave_the_rest_to_somebody() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let root = dir.path().join("config");
    let etc = root.join("etc/cfs-update");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("config.toml"), "[auto]\napply = true\ndownload-only = true\n").unwrap();
    let with = |args: &[&str]| cfs.run([&["--config-root", root.to_str().unwrap()], args].concat());
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    publish(dir.path(), 2);
    let entries = cfs.entries().len();
    let told = with(&["auto", "run", "--json"]).expect(0).json();
    assert_eq!(told["result"], "downloaded");
    with(&["auto", "run"]).expect(77);
    assert_eq!(cfs.entries().len(), entries);
    let policy = with(&["auto", "status", "--json"]).expect(0).json();
    assert_eq!(
        (&policy["downloadOnly"], &policy["apply"]),
        (&json!(true), &json!(false))
    );
    let human = with(&["auto", "status"]).expect(0).stdout;
    assert!(human.contains("upgrade --from-downloaded"), "{human}");
    let status = with(&["status", "--json"]).expect(0).json();
    assert_eq!(status["status"]["cfsUpdate"]["automaticUpdates"], "download");
    let taken = cfs.run(["upgrade", "--from-downloaded", "--json"]).expect(0).json();
    assert_eq!(taken["deployment"], told["deployment"]);
    with(&["auto", "run"]).expect(77);
    cfs.fsck();
}
