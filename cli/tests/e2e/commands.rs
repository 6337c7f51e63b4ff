//! Every command on small images: what it prints, in which form, and its exit code.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::layout::{self, How, Layer, small};
use crate::common::{Cfs, Entry, is_root, list, name, scratch, tool};

/// Version `version` under the tag `stable` of a layout in `dir`.
pub fn publish(dir: &std::path::Path, version: u32) -> String {
    small(version, &format!("kernel-{version}"), 4, 3000)
        .finish()
        .layout(&dir.join("oci"), "stable")
}

/// A sysroot with version 1 and version 2 deployed.
pub fn updated(dir: &std::path::Path) -> Cfs {
    let cfs = Cfs::new(dir);
    cfs.run(["switch", &publish(dir, 1)]).expect(0);
    publish(dir, 2);
    cfs.run(["upgrade"]).expect(0);
    cfs
}

fn objects(cfs: &Cfs) -> Vec<PathBuf> {
    list(&cfs.sysroot().join("composefs/objects"))
        .iter()
        .flat_map(|folder| list(folder))
        .collect()
}

#[test]
fn status_has_bootcs_shape_and_its_roles_follow_switch_upgrade_and_rollback() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    assert_eq!(
        cfs.status()["status"]["staged"],
        Value::Null,
        "an empty sysroot is no failure"
    );

    let reference = publish(dir.path(), 1);
    let switched = cfs.run(["switch", "--json", &reference]).expect(0).json();
    assert_eq!(switched["result"], "staged");
    let status = cfs.status();
    assert_eq!(status["apiVersion"], "org.containers.bootc/v1");
    assert_eq!(status["kind"], "BootcHost");
    assert_eq!(
        status["spec"]["image"],
        json!({"image": reference.strip_prefix("oci:").unwrap(), "transport": "oci"})
    );
    let staged = &status["status"]["staged"];
    assert_eq!(staged["image"]["imageDigest"], switched["imageDigest"]);
    assert_eq!(staged["image"]["version"], "1");
    assert_eq!(staged["composefs"]["verity"], switched["deployment"]);
    assert_eq!(staged["cfsUpdate"]["bootsNext"], true);
    assert_eq!(staged["cfsUpdate"]["triesLeft"], 3);
    assert!(
        staged["cfsUpdate"]["verifiedBy"]
            .as_str()
            .unwrap()
            .starts_with("host (")
    );

    publish(dir.path(), 2);
    let upgraded = cfs.run(["--json", "upgrade"]).expect(0).json();
    let status = cfs.status();
    assert_eq!(
        status["status"]["staged"]["cfsUpdate"]["deployment"],
        upgraded["deployment"]
    );
    assert_eq!(
        status["status"]["rollback"]["cfsUpdate"]["deployment"],
        switched["deployment"]
    );

    let back = cfs.run(["rollback", "--json"]).expect(0).json();
    assert_eq!(
        (&back["deployment"], &back["insteadOf"]),
        (&switched["deployment"], &upgraded["deployment"])
    );
    let status = cfs.status();
    assert_eq!(
        status["status"]["staged"]["cfsUpdate"]["deployment"],
        switched["deployment"]
    );
    assert_eq!(
        status["status"]["rollback"]["cfsUpdate"]["deployment"],
        upgraded["deployment"]
    );
    assert_eq!(
        cfs.run(["status", "--format-version=1", "--json"]).expect(0).json(),
        status
    );
}

#[test]
fn nothing_new_is_exit_code_77_and_a_check_changes_nothing() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["upgrade"]).expect(1);
    assert!(
        list(cfs.sysroot()).is_empty(),
        "nothing is made where nothing is followed"
    );
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    let check = cfs.run(["upgrade", "--check", "--json", "-q"]).expect(77);
    assert_eq!(check.json()["available"], false);
    let failure: Value = serde_json::from_str(&check.stderr).unwrap();
    assert_eq!(failure["error"]["kind"], "nothing-to-do");
    publish(dir.path(), 2);
    let check = cfs.run(["upgrade", "--check", "--json"]).expect(0).json();
    assert_eq!(check["available"], true);
    assert_eq!(cfs.deployments().len(), 1);
    cfs.run(["upgrade"]).expect(0);
    assert_eq!(
        cfs.run(["--json", "-q", "upgrade"]).expect(77).json()["result"],
        "unchanged"
    );
    cfs.run(["switch", &publish(dir.path(), 2)]).expect(0);
    assert_eq!(cfs.deployments().len(), 2);
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_of_what_was_done_all_the_same() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let switched = cfs
        .command(["switch", &publish(dir.path(), 1)])
        .stdout(full)
        .output()
        .unwrap();
    let told = String::from_utf8(switched.stderr).unwrap();
    assert_eq!(switched.status.code(), Some(1), "no lack of space in the store: {told}");
    assert!(told.contains("standard output"), "{told}");
    assert_eq!(cfs.entries().len(), 1);
}

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
fn a_name_that_an_image_cannot_be_kept_by_is_refused_before_anybody_is_asked_for_it() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let path = "team-x/".repeat(20);
    // Nobody listens there, which would be 5.
    for extra in [&[][..], &["--dry-run"]] {
        let command = ["image", "pull", &format!("127.0.0.1:1/{path}app:{}", "t".repeat(100))];
        let told = cfs.run(command.iter().chain(extra)).expect(2);
        assert!(told.stderr.contains("too long: 255 bytes at most"), "{}", told.stderr);
    }
    assert!(!cfs.sysroot().join("composefs").exists(), "nothing is left of it");
}

#[test]
fn gc_lists_first_and_removes_only_what_nothing_needs() {
    let dir = scratch();
    let cfs = updated(dir.path());
    cfs.run(["image", "pull", &publish(dir.path(), 3)]).expect(0);
    let before = objects(&cfs);
    let nothing = cfs.run(["gc", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(nothing["objects"], json!([]), "all of it is needed");
    cfs.run(["delete", "rollback"]).expect(0);
    cfs.run([
        "image",
        "rm",
        &format!("oci:{}:stable", dir.path().join("oci").display()),
    ])
    .expect(0);
    let listed = cfs.run(["gc", "--dry-run", "--json"]).expect(0).json();
    let gone = listed["objects"].as_array().unwrap().len();
    assert!(gone > 8, "files of two versions: {listed}");
    assert_eq!(objects(&cfs), before);
    let removed = cfs.run(["gc", "--json"]).expect(0).json();
    assert_eq!(removed["objects"], listed["objects"]);
    assert_eq!(objects(&cfs).len(), before.len() - gone);
    cfs.fsck();
}

#[test]
fn fsck_names_a_broken_object_and_exits_1() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let object = objects(&cfs)
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&object).unwrap();
    fs::write(&object, bytes).unwrap();
    let name = object.file_name().unwrap().to_str().unwrap();
    let checked = cfs.run(["fsck"]).expect(1);
    assert!(checked.stdout.contains(name), "{}", checked.stdout);
    let json = cfs.run(["fsck", "--json"]).expect(1).json();
    assert!(
        json["problems"].as_u64().unwrap() > 0 && json["findings"].to_string().contains(name),
        "{json}"
    );
    cfs.status();
}

/// Another content of the same size.
fn damage(object: &std::path::Path) {
    let mut content = fs::read(object).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::remove_file(object).unwrap();
    fs::write(object, content).unwrap();
}

/// Puts something that is no file in an object's place.
fn obstruct(object: &std::path::Path, kind: usize) {
    fs::remove_file(object).unwrap();
    match kind % 3 {
        0 => std::os::unix::fs::symlink("/etc/hostname", object).unwrap(),
        1 => drop(tool("mkfifo", [object])),
        _ => fs::create_dir_all(object.join("below")).unwrap(),
    }
}

#[test]
fn whatever_is_no_file_in_an_objects_place_fsck_repair_mends_it() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let objects = objects(&cfs);
    for (n, object) in objects.iter().enumerate() {
        obstruct(object, n);
        let found = cfs.run(["fsck"]).expect(1).stdout;
        assert!(
            found.contains("no regular file") && found.contains("fsck --repair"),
            "{found}"
        );
        let repaired = cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"].clone();
        assert_eq!(repaired["failed"], json!([]), "{n}");
        cfs.fsck();
    }
    assert_eq!(self::objects(&cfs), objects);
}

#[test]
fn whatever_object_is_damaged_or_gone_fsck_repair_mends_it() {
    let dir = scratch();
    let cfs = updated(dir.path());
    cfs.run(["image", "pull", &publish(dir.path(), 3)]).expect(0);
    let objects = objects(&cfs);
    assert!(objects.len() > 15, "{objects:?}");
    for object in &objects {
        let id = format!("{}{}", name(object.parent().unwrap()), name(object));
        damage(object);
        let found = cfs.run(["fsck"]).expect(1).stdout;
        assert!(found.contains("fsck --repair"), "{found}");
        let repaired = cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"].clone();
        assert_eq!(repaired["removed"], json!([id]));
        assert_eq!(repaired["failed"], json!([]));
        cfs.fsck();
        fs::remove_file(object).unwrap();
        cfs.run(["fsck"]).expect(1);
        let repaired = cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"].clone();
        assert_eq!(repaired["removed"], json!([]));
        cfs.fsck();
    }
    assert_eq!(self::objects(&cfs), objects);
    assert_eq!(
        cfs.run(["fsck", "--repair", "--json"]).expect(0).json()["repaired"],
        Value::Null
    );
}

#[test]
fn what_cannot_be_fetched_is_named_and_mended_when_it_can() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let largest = objects(&cfs)
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    damage(&largest);
    let (layout, away) = (dir.path().join("oci"), dir.path().join("away"));
    fs::rename(&layout, &away).unwrap();
    let ran = cfs.run(["fsck", "--repair"]).expect(1);
    assert!(
        ran.stderr.contains("not mended: oci:") && ran.stdout.contains("Removed object"),
        "{ran:?}"
    );
    assert!(!largest.exists(), "nothing reads what is broken");
    fs::rename(&away, &layout).unwrap();
    let ran = cfs.run(["fsck", "--repair"]).expect(0);
    assert!(ran.stdout.contains("Mended oci:"), "{ran:?}");
    assert!(largest.exists());
    cfs.fsck();
}

#[test]
fn a_digest_needs_no_sysroot_and_is_that_of_the_pulled_and_of_the_deployed_image() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = publish(dir.path(), 1);
    let nowhere = cfs.on(&dir.path().join("nowhere"));
    let digest = |more: &[&str]| {
        let ran = nowhere.run([&["image", "digest", &reference], more].concat()).expect(0);
        assert_eq!(ran.stdout.lines().count(), 1);
        ran.stdout.trim().to_owned()
    };
    let (container, boot) = (digest(&[]), digest(&["--boot"]));
    assert_eq!(list(&dir.path().join("nowhere")).len(), 0);
    let pulled = cfs.run(["image", "pull", "--json", &reference]).expect(0).json();
    assert_eq!(pulled["digest"], container);
    let deployed = cfs.run(["switch", "--json", &reference]).expect(0).json();
    assert_eq!(deployed["deployment"], boot);
    assert_eq!(digest(&["--boot", "--algorithm", "sha512"]).len(), 128);

    let images = cfs.run(["image", "ls", "--json"]).expect(0).json();
    assert_eq!(
        (&images[0]["name"], &images[0]["digest"]),
        (&json!(reference), &json!(container))
    );
    let from = |source: &str| cfs.run(["image", "dump", source]).expect(0).stdout;
    assert_eq!(from(&container), from(&reference), "of the store and of the reference");
    assert!(from(&container).contains("/usr/bin/app-0 3000 "));
    let summary = cfs.run(["image", "inspect", "--json", &container]).expect(0).json();
    assert_eq!(
        (&summary["digest"], &summary["formatVersion"]),
        (&json!(container), &json!(1))
    );
    let manifest = cfs.run(["image", "inspect", "--json", &reference]).expect(0).json();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["bootDigest"], boot);
}

#[test]
fn a_boot_digest_follows_the_policy_in_the_image_also_where_it_is_a_hard_link() {
    let dir = scratch();
    let contexts = format!(
        "{}\n/usr/lib(/.*)?\tsystem_u:object_r:bin_t:s0\n",
        "# a comment\n".repeat(20)
    );
    let policy = || {
        Layer::default()
            .dirs(&[
                "etc",
                "etc/selinux",
                "etc/selinux/test",
                "etc/selinux/test/contexts",
                "etc/selinux/test/contexts/files",
            ])
            .file("etc/selinux/config", "SELINUXTYPE=test\n")
    };
    let files = "etc/selinux/test/contexts/files/file_contexts";
    let plain = policy().file(files, &contexts);
    let linked = policy()
        .file("usr/contexts", &contexts)
        .hard_link(files, "usr/contexts");
    let mut digests = Vec::new();
    for (tag, layer) in [("plain", plain), ("linked", linked)] {
        let base = layout::base("1", "kernel");
        let image = layout::Image::new("1")
            .layer(base, How::Gzip)
            .layer(layer, How::None)
            .finish();
        let reference = image.layout(&dir.path().join(tag), tag);
        let nowhere = Cfs::new(&dir.path().join("nowhere"));
        let digest = nowhere
            .run(["-q", "image", "digest", "--boot", &reference])
            .expect(0)
            .stdout;
        let cfs = Cfs::new(&dir.path().join(format!("{tag}-sysroot")));
        let deployed = cfs.run(["switch", "--json", &reference]).expect(0).json();
        assert_eq!(deployed["deployment"], digest.trim());
        let container = nowhere.run(["-q", "image", "digest", &reference]).expect(0).stdout;
        assert_ne!(container, digest, "labels make a difference");
        digests.push(digest);
    }
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn a_mounted_container_image_has_the_digests_of_its_reference() {
    if !is_root("mounting") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = publish(dir.path(), 1);
    let digest = |more: &[&str]| {
        let ran = cfs.run([&["-q", "image", "digest"], more].concat()).expect(0);
        ran.stdout.trim().to_owned()
    };
    let (container, boot) = (digest(&[&reference]), digest(&["--boot", &reference]));
    cfs.run(["image", "pull", &reference]).expect(0);
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    cfs.run(["image", "mount", &reference, at]).expect(0);
    let found = std::panic::catch_unwind(|| (digest(&["--hard-links", at]), digest(&["--boot", at])));
    tool("umount", [at]);
    assert_eq!(found.unwrap(), (container, boot));
}

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
fn a_name_that_is_removed_where_there_is_no_repository_makes_none() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["image", "rm", "quay.io/org/app:1"]).expect(2);
    assert!(ran.stderr.contains("is not in the store"), "{}", ran.stderr);
    assert!(!cfs.sysroot().join("composefs").exists());
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

#[test]
fn kargs_shows_where_arguments_are_from_and_changes_those_of_the_machine() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let shown = cfs.run(["kargs", "--json"]).expect(0).json();
    assert_eq!(shown["machine"], json!([]));
    assert_eq!((&shown["current"], &shown["change"]), (&json!(true), &Value::Null));
    let next = &cfs.status()["status"]["staged"]["cfsUpdate"]["deployment"];
    assert_eq!(&shown["deployment"], next);

    let arguments = ["kargs", "--append", "console=tty0", "--append=console=ttyS0", "--json"];
    let changed = cfs.run(arguments).expect(0).json();
    let both = json!(["console=tty0", "console=ttyS0"]);
    assert_eq!(changed["change"], json!({"added": both, "removed": []}));
    cfs.run(arguments).expect(77);
    let human = cfs.run(["kargs"]).expect(0).stdout;
    assert!(human.contains("Machine: console=tty0 console=ttyS0\n"), "{human}");
    let newest = cfs.entries().into_iter().max_by_key(Entry::version).unwrap();
    assert!(newest.get("options").unwrap().ends_with(" console=tty0 console=ttyS0"));

    let replaced = cfs
        .run(["kargs", "--replace", "console=hvc0", "--json"])
        .expect(0)
        .json();
    assert_eq!(replaced["change"], json!({"added": ["console=hvc0"], "removed": both}));
    let refused = cfs.run(["kargs", "--delete", "quiet"]).expect(2).stderr;
    assert!(
        refused.contains("\"quiet\"") && refused.contains("console=hvc0"),
        "{refused}"
    );
    cfs.run(["kargs", "--append", "composefs=x"]).expect(2);
    cfs.run(["kargs", "--append", "a b"]).expect(2);
    cfs.run(["kargs", "--delete", "console"]).expect(0);
    assert_eq!(
        cfs.run(["kargs", "--json"]).expect(0).json()["commandLine"],
        shown["commandLine"]
    );
    cfs.fsck();
}

#[test]
fn kargs_says_that_an_entry_was_edited_and_makes_it_anew() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let newest = cfs.entries().into_iter().max_by_key(Entry::version).unwrap();
    fs::write(&newest.path, newest.text.replace(" rw", " rw by-hand=1")).unwrap();
    let shown = cfs.run(["kargs", "--json"]).expect(0).json();
    assert_eq!(shown["current"], false);
    let human = cfs.run(["kargs"]).expect(0).stdout;
    assert!(human.contains("by-hand=1") && human.contains("was edited"), "{human}");
    let changed = cfs.run(["kargs", "--append", "debug", "--json"]).expect(0).json();
    assert_eq!(changed["change"], json!({"added": ["debug"], "removed": ["by-hand=1"]}));
    assert_eq!(changed["current"], true);
}

#[test]
fn the_machines_key_is_made_once() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let key = cfs.run(["key", "generate", "--json"]).expect(0).json();
    cfs.run(["key", "generate"]).expect(2);
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    let signer = &cfs.status()["status"]["staged"]["cfsUpdate"]["verifiedBy"];
    assert!(
        signer.as_str().unwrap().contains(key["id"].as_str().unwrap()),
        "{signer}"
    );
}

#[test]
fn settings_decide_tries_algorithm_and_how_many_stay() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let config = dir.path().join("config/etc/cfs-update/config.toml.d");
    fs::create_dir_all(&config).unwrap();
    let text = "[boot]\ntries = 7\n[store]\nalgorithm = \"fsverity-sha512-12\"\n[deployments]\nkeep = 3\n";
    fs::write(config.join("10-test.toml"), text).unwrap();
    let config = dir.path().join("config");
    let run = |args: &[&str]| {
        cfs.run([&["--config-root", config.to_str().unwrap()], args].concat())
            .expect(0)
    };
    run(&["switch", &publish(dir.path(), 1)]);
    for version in 2..5 {
        publish(dir.path(), version);
        run(&["upgrade"]);
    }
    assert_eq!(cfs.deployments().len(), 3);
    assert!(cfs.deployments().iter().all(|id| id.len() == 128));
    assert!(cfs.entries()[0].path.to_str().unwrap().ends_with("+07-00.conf"));
}

#[test]
fn progress_can_go_to_a_descriptor_of_its_own() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let lines = dir.path().join("progress");
    let script = "exec 3>\"$1\"; exec \"$CFS_UPDATE\" --sysroot \"$2\" --progress-fd 3 switch \"$3\"";
    let mut command = cfs.wrap("sh");
    command
        .args(["-c", script, "sh"])
        .arg(&lines)
        .arg(cfs.sysroot())
        .arg(publish(dir.path(), 1));
    let output = command.output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = fs::read_to_string(&lines).unwrap();
    let types: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(types.len() > 5 && types[0]["type"] == "Start");
}

#[test]
fn progress_is_json_lines_where_asked_for_and_boot_may_be_elsewhere() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let boot = dir.path().join("esp");
    fs::create_dir(&boot).unwrap();
    let boot = boot.to_str().unwrap();
    let ran = cfs
        .run(["--boot", boot, "--progress", "json", "switch", &publish(dir.path(), 1)])
        .expect(0);
    let lines: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["type"], "Start");
    let tasks: Vec<_> = lines.iter().filter_map(|line| line["task"].as_str()).collect();
    for task in ["pulling", "importing", "staging"] {
        assert!(tasks.contains(&task), "{tasks:?}");
    }
    assert_eq!(list(&dir.path().join("esp/loader/entries")).len(), 1);
    let status = cfs.run(["status", "--boot", boot, "--json"]).expect(0).json();
    assert_eq!(status["status"]["staged"]["cfsUpdate"]["bootsNext"], true);
    assert!(!cfs.sysroot().join("boot").exists());
    cfs.run(["--boot", "/no/such/boot", "status"]).expect(1);
}

#[test]
fn without_a_running_deployment_health_and_finalize_have_nothing_to_mark() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let failing = dir.path().join("config/etc/cfs-update/health.d/10-bad");
    fs::create_dir_all(failing.parent().unwrap()).unwrap();
    fs::write(&failing, "#!/bin/sh\necho no database\nexit 4\n").unwrap();
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = dir.path().join("config/etc/cfs-update/config.toml");
    fs::write(settings, "[health]\nattempts = 2\npause = 1\n[auto]\nenabled = false\n").unwrap();
    let root = dir.path().join("config");
    let with = |args: &[&str]| {
        let mut all = vec!["--config-root", root.to_str().unwrap()];
        all.extend(args);
        cfs.run(all)
    };
    let entries = cfs.entries().len();
    let told = with(&["health", "check"]).expect(1).stderr;
    assert!(told.contains("10-bad: exit code 4: no database"), "{told}");
    let bad = with(&["health", "check", "--json"]).expect(1).json();
    assert_eq!(
        (&bad["result"], &bad["checks"][0]["attempts"]),
        (&json!("bad"), &json!(2))
    );
    fs::remove_file(&failing).unwrap();
    let good = with(&["health", "check", "--json"]).expect(0).json();
    assert_eq!(good["result"], "good");
    for command in [&["health", "good"][..], &["health", "bad"]] {
        let told = with(command).expect(1).stderr;
        assert!(told.contains("no deployment of this sysroot runs"), "{told}");
    }
    with(&["health", "check", "--apply"]).expect(2);
    assert!(with(&["auto", "run"]).expect(77).stderr.contains("enabled = false"));
    assert_eq!(with(&["auto", "status", "--json"]).expect(0).json()["enabled"], false);
    assert_eq!(cfs.run(["auto", "run"]).expect(77).stdout, "");
    let merged = cfs.run(["finalize", "--json"]).expect(0).json();
    assert!(merged["deployment"].is_string(), "an update waits: {merged}");
    assert_eq!(cfs.entries().len(), entries);
    let status = cfs.status();
    assert_eq!(status["status"]["cfsUpdate"]["health"]["result"], "good");
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

#[test]
fn a_root_that_an_image_wished_goes_with_it() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let switch = |version: u32, arguments: &str| {
        let folders = ["usr/lib/bootc", "usr/lib/bootc/kargs.d"];
        let file = format!("kargs = [\"{arguments}\"]\n");
        let wishes = Layer::default()
            .dirs(&folders)
            .file("usr/lib/bootc/kargs.d/10.toml", file);
        let image = small(version, "kernel", 2, 3000).layer(wishes, How::Gzip).finish();
        cfs.run(["switch", &image.layout(&dir.path().join("oci"), "stable")])
            .expect(0);
        cfs.entries()[0].get("options").unwrap().to_owned()
    };
    assert!(switch(1, "root=LABEL=image quiet").ends_with(" rw root=LABEL=image quiet"));
    let own = switch(2, "quiet");
    assert!(
        own.contains(" root=") && own.ends_with(" rw quiet") && !own.contains("LABEL=image"),
        "{own}"
    );
    let (_, root) = own.split_once(" root=").unwrap();
    assert!(switch(3, "root=LABEL=image").ends_with(" rw root=LABEL=image"));
    assert!(
        switch(4, "quiet").ends_with(&format!(" root={root}")),
        "that of the entry before"
    );
}

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
