//! `key list`, `key trust`, `key revoke`: whose seals count.

use std::fs;

use serde_json::{Value, json};

use crate::common::layout;
use crate::common::{Cfs, scratch};

/// The public key whose secret one has 32 times the byte 7 as its seed.
const ONE: &str = "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";
const ONE_ID: &str = "fe812c12f3ab4ce6";

fn publish(dir: &std::path::Path, version: u32) -> String {
    layout::small(version, "a kernel", 2, 3000)
        .finish()
        .layout(&dir.join("images"), "os")
}

fn keys(cfs: &Cfs) -> Vec<Value> {
    let list = cfs.run(["key", "list", "--json"]).expect(0).json();
    list["keys"].as_array().unwrap().clone()
}

#[test]
fn a_key_that_is_trusted_is_listed_and_one_that_is_revoked_comes_back_by_no_command() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    assert_eq!(keys(&cfs), [Value::Null; 0]);
    let trusted = cfs
        .run(["key", "trust", ONE, "--name", "fleet", "--json"])
        .expect(0)
        .json();
    assert_eq!(trusted, json!({"result": "trusted", "keys": [ONE_ID]}));
    cfs.run(["key", "trust", ONE]).expect(77);
    let listed = &keys(&cfs)[0];
    assert_eq!((&listed["id"], &listed["name"]), (&json!(ONE_ID), &json!("fleet")));
    assert_eq!((&listed["own"], &listed["revokedBy"]), (&json!(false), &Value::Null));
    assert!(cfs.run(["key", "list"]).expect(0).stdout.contains("trusted by"));

    cfs.run(["key", "revoke", ONE_ID]).expect(0);
    cfs.run(["key", "revoke", ONE_ID]).expect(77);
    let refused = cfs.run(["key", "trust", ONE]).expect(3).stderr;
    assert!(
        refused.contains("revoked.d/fleet.pub; remove it there first"),
        "{refused}"
    );
    assert!(
        keys(&cfs)[0]["revokedBy"]
            .as_str()
            .unwrap()
            .ends_with("revoked.d/fleet.pub")
    );

    let file = dir.path().join("keys.pub");
    fs::write(&file, "# nobody's\n").unwrap();
    for wrong in [file.to_str().unwrap(), "AAAA", "/no/such/file", "0123456789abcdef"] {
        cfs.run(["key", "trust", wrong]).expect(2);
        cfs.run(["key", "revoke", wrong]).expect(2);
    }
    cfs.run([
        "key",
        "trust",
        "--name",
        "../up",
        "/RckOFqgx1tk+3jNYC+h2ZH96/drE8WO1wLqyDXp9hg=",
    ])
    .expect(2);
}

#[test]
fn the_machines_key_is_revoked_by_force_only_and_the_next_update_seals_with_a_new_one() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = publish(dir.path(), 1);
    cfs.run(["switch", &reference]).expect(0);
    let first = keys(&cfs)[0].clone();
    let id = first["id"].as_str().unwrap();
    let staged = || cfs.status()["status"]["staged"]["cfsUpdate"].clone();
    assert_eq!(
        (&first["own"], &first["sealed"]),
        (&json!(true), &json!([staged()["deployment"]]))
    );

    let refused = cfs.run(["key", "revoke", id]).expect(1).stderr;
    assert!(
        refused.contains("--force") && refused.contains("nothing was changed"),
        "{refused}"
    );
    assert_eq!(keys(&cfs)[0], first);
    let revoked = cfs.run(["key", "revoke", id, "--force"]).expect(0).stdout;
    assert!(revoked.contains("cfs-update upgrade"), "{revoked}");
    assert!(!cfs.sysroot().join("state/cfs-update/keys/host.key").exists());
    assert!(cfs.run(["fsck"]).expect(1).stdout.contains("is revoked"));

    cfs.run(["upgrade"]).expect(0);
    let listed = keys(&cfs);
    let own = listed.iter().find(|key| key["own"] == true).unwrap();
    assert_ne!(own["id"], first["id"]);
    assert_eq!(own["sealed"], json!([staged()["deployment"]]));
    assert!(
        listed
            .iter()
            .any(|key| key["id"] == first["id"] && !key["revokedBy"].is_null())
    );
    assert!(
        staged()["verifiedBy"]
            .as_str()
            .unwrap()
            .contains(own["id"].as_str().unwrap())
    );
    cfs.fsck();
}

#[test]
fn a_revocation_of_the_machines_key_that_was_interrupted_is_finished_by_the_same_command() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let made = cfs.run(["key", "generate", "--json"]).expect(0).json();
    let (id, folder) = (made["id"].as_str().unwrap(), made["folder"].as_str().unwrap());
    let revoked = std::path::Path::new(folder).join("revoked.d");
    fs::create_dir(&revoked).unwrap();
    fs::copy(std::path::Path::new(folder).join("host.pub"), revoked.join("old.pub")).unwrap();
    cfs.run(["key", "revoke", id]).expect(0);
    assert!(!std::path::Path::new(folder).join("host.key").exists());
    cfs.run(["key", "revoke", id]).expect(77);
}

#[test]
fn a_file_of_keys_that_cannot_be_read_is_not_taken_for_a_key() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let (large, text) = (dir.path().join("large.pub"), dir.path().join("text.pub"));
    fs::write(&large, "#\n".repeat(600_000)).unwrap();
    fs::write(&text, [b'#', 0xff, b'\n']).unwrap();
    for (file, why) in [(&large, "larger than"), (&text, "not UTF-8")] {
        for command in ["trust", "revoke"] {
            let said = cfs.run(["key", command, file.to_str().unwrap()]).expect(1).stderr;
            assert!(said.contains(file.to_str().unwrap()) && said.contains(why), "{said}");
        }
    }
}
