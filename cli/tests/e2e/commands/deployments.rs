//! Deployments: what may be deleted, what is pinned, what was changed in their /etc.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

#[test]
fn what_boots_next_and_what_is_pinned_cannot_be_deleted() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let status = cfs.status();
    let id = |role: &str| {
        status["status"][role]["cfsUpdate"]["deployment"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    cfs.run(["delete", &id("staged")]).expect(1);
    for command in [&["pin", "nonsense"][..], &["delete", "7"], &["etc", "diff", "booted"]] {
        let refused = cfs.run(command).expect(2).stderr;
        assert!(refused.contains("`cfs-update status`"), "{refused}");
    }
    cfs.run(["pin", "rollback"]).expect(0);
    assert_eq!(cfs.status()["status"]["rollback"]["pinned"], true);
    let refused = cfs.run(["delete", &id("rollback")[..8]]).expect(1);
    assert!(refused.stderr.contains("unpin"), "{}", refused.stderr);
    cfs.run(["unpin", "1"]).expect(0);
    cfs.run(["delete", &id("rollback")]).expect(0);
    assert_eq!(cfs.deployments(), [id("staged")]);
    assert_eq!(cfs.entries().len(), 1);
    cfs.run(["rollback"]).expect(1);
    cfs.fsck();
}

#[test]
fn etc_diff_shows_what_was_changed_here() {
    let dir = scratch();
    let cfs = updated(dir.path());
    assert_eq!(cfs.run(["etc", "diff"]).expect(0).stdout, "");
    let next = cfs.run(["etc", "diff", "--json"]).expect(0).json()["deployment"].clone();
    let etc = cfs
        .sysroot()
        .join("state/deploy")
        .join(next.as_str().unwrap())
        .join("etc");
    fs::write(etc.join("app.conf"), "mine").unwrap();
    fs::write(etc.join("app.conf.cfs-new"), "theirs").unwrap();
    let told = cfs.run(["etc", "diff", "0"]).expect(0).stdout;
    assert!(
        told.starts_with("~ /etc/app.conf\n+ /etc/app.conf.cfs-new (the image's version"),
        "{told}"
    );
    fs::write(etc.join(OsStr::from_bytes(b"b\xff\n+ c")), "").unwrap();
    let told = cfs.run(["etc", "diff"]).expect(0).stdout;
    assert!(told.ends_with("+ /etc/b\u{fffd}\\n+ c\n"), "{told}");
    let document = cfs.run(["etc", "diff", "--json"]).expect(0).json();
    assert_eq!(document["changes"][2]["path"], "b\u{fffd}\n+ c");
    assert_eq!(
        cfs.run(["etc", "diff", "1"]).expect(0).stdout,
        "",
        "the other one is as it was"
    );
}
