//! What the administrator changed in /etc, through updates, rollbacks and damage; and the seals of deployments.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::layout::{How, Image, Layer, base};
use crate::common::{Cfs, scratch};

/// An image whose /etc has a file that changes with the version, one that does not, one that comes and one that goes.
fn image(version: u32) -> Image {
    let text = version.to_string();
    let mut layer = Layer::default()
        .dirs(&["etc/app.d"])
        .file("etc/changing", format!("version {version}\n"))
        .file("etc/other", format!("version {version}\n"))
        .file("etc/constant", "constant\n")
        .file("etc/app.d/a", "a\n")
        .file(&format!("etc/app.d/only-in-{version}"), "x\n")
        .file("etc/long", "0123456789\n".repeat(100 + version as usize));
    layer = layer.dirs(&["var/lib"]).file("var/lib/from-image", text.as_bytes());
    Image::new(&text)
        .created(&format!("2026-01-{version:02}T00:00:00Z"))
        .layer(base(&text, "same"), How::Gzip)
        .layer(layer, How::Gzip)
}

struct Machine {
    cfs: Cfs,
    layout: PathBuf,
    _dir: tempfile::TempDir,
}

fn machine(make: fn(&Path) -> Cfs) -> Machine {
    let dir = scratch();
    let machine = Machine {
        cfs: make(dir.path()),
        layout: dir.path().join("oci"),
        _dir: dir,
    };
    machine.publish(1);
    machine
}

impl Machine {
    fn publish(&self, version: u32) -> String {
        image(version).finish().layout(&self.layout, "os")
    }

    fn switch(&self) {
        self.cfs.run(["switch", &self.publish(1)]).expect(0);
    }

    /// /etc of what boots next.
    fn etc(&self) -> PathBuf {
        let newest = self
            .cfs
            .entries()
            .into_iter()
            .max_by_key(|entry| entry.version())
            .unwrap();
        self.cfs
            .sysroot()
            .join("state/deploy")
            .join(newest.digest())
            .join("etc")
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.etc().join(name)).ok()
    }
}

fn an_admins_changes_go_through_an_update(machine: &Machine) {
    machine.switch();
    let etc = machine.etc();
    fs::write(etc.join("changing"), "mine\n").unwrap();
    fs::write(etc.join("app.d/mine"), "mine\n").unwrap();
    fs::remove_file(etc.join("constant")).unwrap();
    fs::remove_file(etc.join("long")).unwrap();
    std::os::unix::fs::symlink("/srv/long", etc.join("long")).unwrap();
    machine.publish(2);
    let told = machine.cfs.run(["upgrade"]).expect(0);
    let told = told.stdout + &told.stderr;
    assert!(
        told.contains("changing.cfs-new") && told.contains("long.cfs-new"),
        "{told}"
    );
    assert_eq!(machine.read("changing").as_deref(), Some("mine\n"));
    assert_eq!(machine.read("changing.cfs-new").as_deref(), Some("version 2\n"));
    assert_eq!(machine.read("other").as_deref(), Some("version 2\n"));
    assert_eq!(machine.read("app.d/mine").as_deref(), Some("mine\n"));
    assert_eq!(machine.read("app.d/only-in-2").as_deref(), Some("x\n"));
    for gone in ["constant", "app.d/only-in-1", "other.cfs-new"] {
        assert_eq!(machine.read(gone), None, "{gone}");
    }
    let new = machine.etc();
    assert_eq!(fs::read_link(new.join("long")).unwrap(), Path::new("/srv/long"));
    assert_eq!(fs::read(new.join("long.cfs-new")).unwrap().len(), 11 * 102);
    assert_eq!(
        fs::read(etc.join("changing")).unwrap(),
        b"mine\n",
        "the old /etc is only read"
    );

    // The next one: the same conflict again, and no second copy beside the first.
    machine.publish(3);
    machine.cfs.run(["upgrade"]).expect(0);
    assert_eq!(machine.read("changing.cfs-new").as_deref(), Some("version 3\n"));
    assert_eq!(machine.read("changing.cfs-new-2"), None);
    let var = machine.cfs.sysroot().join("state/os/default/var/lib/from-image");
    assert_eq!(fs::read(var).unwrap(), b"1", "/var is filled once");
    machine.cfs.fsck();
}

#[test]
fn an_admins_changes_go_through_updates_and_conflicts_keep_both_versions() {
    an_admins_changes_go_through_an_update(&machine(Cfs::new));
}

#[test]
fn an_admins_changes_go_through_updates_without_privileges_too() {
    an_admins_changes_go_through_an_update(&machine(Cfs::unprivileged));
}

#[test]
fn an_etc_that_nobody_touched_is_the_images_after_any_number_of_updates() {
    for make in [Cfs::new, Cfs::unprivileged] {
        let machine = machine(make);
        machine.switch();
        for version in 2..5 {
            machine.publish(version);
            let told = machine.cfs.run(["upgrade"]).expect(0);
            assert!(!(told.stdout + &told.stderr).contains("conflict"));
            let mut names: Vec<_> = fs::read_dir(machine.etc())
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            assert_eq!(
                names,
                [
                    "app.d",
                    "changing",
                    "constant",
                    "hostname",
                    "long",
                    "os-release",
                    "other"
                ]
            );
            assert_eq!(machine.read("changing"), Some(format!("version {version}\n")));
        }
    }
}

/// A name, and what it does to a record (its folder and id).
type Damage = (&'static str, fn(&Path, &str));

const DAMAGES: [Damage; 7] = [
    ("no seal", |record, _| {
        fs::remove_file(record.join("seal.json")).unwrap()
    }),
    ("a byte of the seal", |record, _| {
        let mut seal = fs::read(record.join("seal.json")).unwrap();
        seal[200] ^= 4;
        fs::write(record.join("seal.json"), seal).unwrap();
    }),
    ("an empty seal", |record, _| {
        fs::write(record.join("seal.json"), "").unwrap()
    }),
    ("no origin", |record, id| {
        fs::remove_file(record.join(format!("{id}.origin"))).unwrap()
    }),
    ("half an origin", |record, id| {
        let path = record.join(format!("{id}.origin"));
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
    }),
    ("a byte of the origin", |record, id| {
        let path = record.join(format!("{id}.origin"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("sha256:", "sha256;", 1)).unwrap();
    }),
    ("no var", |record, _| fs::remove_file(record.join("var")).unwrap()),
];

#[test]
fn however_a_record_is_damaged_it_is_named_not_booted_and_its_etc_lives_on() {
    for (what, damage) in DAMAGES {
        let machine = machine(Cfs::new);
        machine.switch();
        let (cfs, etc) = (&machine.cfs, machine.etc());
        fs::write(etc.join("changing"), "mine\n").unwrap();
        let record = etc.parent().unwrap().to_path_buf();
        let id = record.file_name().unwrap().to_str().unwrap().to_owned();
        damage(&record, &id);

        let status = cfs.run(["status"]).expect(0);
        assert!((status.stdout + &status.stderr).contains(&id[..12]), "{what}");
        cfs.run(["fsck"]).expect(1);
        cfs.run(["rollback"]).expect(1);

        // The same image again mends it; a new one takes its /etc over.
        let mended = cfs.run(["switch", &machine.publish(1)]).expect(0);
        assert_eq!(
            machine.read("changing").as_deref(),
            Some("mine\n"),
            "{what}: {mended:?}"
        );
        cfs.fsck();
        damage(&record, &id);
        cfs.run(["switch", &machine.publish(2)]).expect(0);
        assert_eq!(machine.read("changing").as_deref(), Some("mine\n"), "{what}");
        assert_eq!(
            machine.read("changing.cfs-new").as_deref(),
            Some("version 2\n"),
            "{what}"
        );
    }
}

#[test]
fn a_machine_key_that_others_could_read_seals_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let machine = machine(Cfs::new);
    machine.switch();
    let key = machine.cfs.sysroot().join("state/cfs-update/keys/host.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let before = machine.cfs.entries().len();
    machine.publish(2);
    let refused = machine.cfs.run(["upgrade"]).expect(3);
    assert!(refused.stderr.contains("host.key"), "{}", refused.stderr);
    assert_eq!(machine.cfs.entries().len(), before);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    machine.cfs.run(["upgrade"]).expect(0);
    machine.cfs.fsck();
}

#[test]
fn an_older_image_of_the_same_name_needs_the_admins_word() {
    let machine = machine(Cfs::new);
    machine.cfs.run(["switch", &machine.publish(2)]).expect(0);
    machine.publish(1);
    let refused = machine.cfs.run(["upgrade"]).expect(3);
    assert!(refused.stderr.contains("--allow-downgrade"), "{}", refused.stderr);
    assert_eq!(machine.cfs.deployments().len(), 1);
    machine.cfs.run(["upgrade", "--allow-downgrade"]).expect(0);
    assert_eq!(machine.read("changing").as_deref(), Some("version 1\n"));
}
