//! Images and layers that podman has on this machine. Its storage is made by skopeo, which writes it with podman's
//! library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;

use crate::common::layout::{How, Image, Layer, base, noise};
use crate::common::registry::Registry;
use crate::common::{Cfs, Ran, is_root, list, scratch, tool};

pub(crate) fn image() -> crate::common::layout::Finished {
    let app = Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/app", noise(5, 50_000))
        .file("usr/bin/small", "x")
        .hard_link("usr/bin/again", "usr/bin/app")
        .symlink("usr/bin/link", "/usr/bin/app");
    let large = Layer::default().dirs(&["usr"]).file("usr/large", noise(6, 3_000_000));
    Image::new("1")
        .layer(base("1", "kernel-1"), How::Gzip)
        .layer(app, How::None)
        .layer(large, How::Zstd)
        .finish()
}

/// podman's storage in a folder of its own, with the image `localhost/os:1`.
pub(crate) struct Stored {
    pub(crate) root: PathBuf,
    conf: PathBuf,
}

impl Drop for Stored {
    /// podman's library mounts a folder of its storage on itself, and leaves that.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-q").arg(self.root.join("overlay")).status();
    }
}

impl Stored {
    pub(crate) fn new(dir: &Path, oci: &str) -> Self {
        let root = dir.join("containers");
        let place = format!("[overlay@{}+{}]", root.display(), dir.join("run").display());
        let to = format!("containers-storage:{place}localhost/os:1");
        tool("skopeo", ["copy", "--quiet", "--insecure-policy", oci, &to]);
        let conf = dir.join("storage.conf");
        let text = format!("[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\n", root.display());
        fs::write(&conf, text).unwrap();
        Self { root, conf }
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("containers-storage:[{}]{name}", self.root.display())
    }

    /// Runs with this storage as the machine's own.
    pub(crate) fn run<const N: usize>(&self, cfs: &Cfs, args: [&str; N]) -> Ran {
        let mut command = cfs.command(args);
        command.env("CONTAINERS_STORAGE_CONF", &self.conf);
        Ran::from(command.output().unwrap())
    }

    fn layers(&self) -> PathBuf {
        self.root.join("overlay-layers/layers.json")
    }

    /// The file `name` of whichever layer has it.
    fn file(&self, name: &str) -> PathBuf {
        let folders = list(&self.root.join("overlay"));
        let mut found = folders
            .iter()
            .map(|layer| layer.join("diff").join(name))
            .filter(|path| path.exists());
        found.next().unwrap()
    }
}

pub(crate) fn blobs_fetched(registry: &Registry) -> usize {
    registry
        .requests()
        .iter()
        .filter(|line| line.starts_with("GET") && line.contains("/blobs/"))
        .count()
}

#[test]
fn an_image_of_podman_gives_the_deployment_that_its_registry_gives() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let oci = image().layout(&dir.path().join("oci"), "stable");
    let stored = Stored::new(dir.path(), &oci);
    let expected = Cfs::new(&dir.path().join("a"))
        .run(["switch", &oci, "--json"])
        .expect(0)
        .json();
    for name in ["localhost/os:1", "os:1"] {
        let cfs = Cfs::new(&dir.path().join(name));
        let told = cfs.run(["switch", &stored.reference(name), "--json"]).expect(0);
        assert!(told.stderr.contains("taken from podman: "), "{}", told.stderr);
        assert_eq!(told.json()["deployment"], expected["deployment"]);
        cfs.fsck();
        cfs.run(["upgrade"]).expect(77);
        let out = dir.path().join("out");
        cfs.run(["image", "export", "staged", &format!("oci:{}", out.display())])
            .expect(0);
    }
    // What is followed is the name: a new image of that name is an update.
    let cfs = Cfs::new(&dir.path().join("os:1"));
    let newer = crate::common::layout::small(2, "b", 2, 2000)
        .finish()
        .layout(&dir.path().join("new"), "stable");
    Stored::new(dir.path(), &newer);
    cfs.run(["upgrade"]).expect(0);
    // The machine's own storage needs no place.
    let told = stored.run(
        &Cfs::new(&dir.path().join("b")),
        ["switch", "containers-storage:localhost/os:1"],
    );
    told.expect(0);
    let told = stored.run(&cfs, ["image", "pull", "containers-storage:os:3"]).expect(5);
    assert!(told.stderr.contains("has no image \"os:3\""), "{}", told.stderr);
    let told = cfs
        .run(["image", "inspect", "containers-storage:[/nonexistent]os"])
        .expect(5);
    assert!(told.stderr.contains("no images at /nonexistent"), "{}", told.stderr);
}

#[test]
fn layers_that_podman_has_are_not_fetched() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let stored = Stored::new(dir.path(), &finished.layout(&dir.path().join("oci"), "stable"));
    let from = finished.push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    let told = stored
        .run(&cfs, ["switch", "--dry-run", "--json", &from])
        .expect(0)
        .json();
    let how: Vec<_> = told["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["how"])
        .collect();
    assert_eq!(how, ["podman", "podman", "podman"], "{told}");
    assert_eq!(
        (&told["bytes"], &told["bytesOfLayers"]),
        (&0.into(), &0.into()),
        "{told}"
    );
    let told = stored.run(&cfs, ["switch", "--dry-run", &from]).expect(0).stdout;
    assert!(told.contains("3: 0 here, 3 from podman, 0 in parts"), "{told}");
    let asked = blobs_fetched(&registry);
    let told = stored.run(&cfs, ["switch", &from]).expect(0);
    assert_eq!(told.stderr.matches("taken from podman: ").count(), 3, "{}", told.stderr);
    assert!(
        told.stderr.contains("3 layers, 0 of them here already"),
        "{}",
        told.stderr
    );
    assert!(told.stderr.contains(" done (3 of 3)"), "{}", told.stderr);
    assert_eq!(
        blobs_fetched(&registry) - asked,
        1,
        "the config alone: {:?}",
        registry.requests()
    );
    cfs.fsck();
    let plain = Cfs::new(&dir.path().join("plain"));
    plain.run(["switch", &from]).expect(0);
    assert_eq!(cfs.deployments(), plain.deployments());
    // podman's files are as they were, and its storage still holds the image.
    let back = format!("oci:{}", dir.path().join("back").display());
    let place = format!(
        "containers-storage:[overlay@{}+{}]localhost/os:1",
        stored.root.display(),
        dir.path().join("run").display()
    );
    tool("skopeo", ["copy", "--quiet", "--insecure-policy", &place, &back]);
}

#[test]
fn what_podman_has_broken_is_fetched_and_said_and_never_believed() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let oci = finished.layout(&dir.path().join("oci"), "stable");
    let from = finished.push(&registry, "os", "1");
    let expected = Cfs::new(&dir.path().join("plain"))
        .run(["switch", &from, "--json"])
        .expect(0)
        .json();
    type Break = fn(&Stored);
    let breaks: [(&str, Break, &str, i32); 7] = [
        (
            "changed",
            |s| {
                let file = s.file("usr/large");
                let mut bytes = fs::read(&file).unwrap();
                bytes[5] ^= 1;
                fs::write(file, bytes).unwrap();
            },
            "expected sha256:",
            1,
        ),
        (
            "missing",
            |s| fs::remove_file(s.file("usr/bin/app")).unwrap(),
            "usr/bin/app: is missing there",
            1,
        ),
        (
            "shorter",
            |s| fs::write(s.file("usr/large"), "x").unwrap(),
            "usr/large: is another file there",
            1,
        ),
        (
            "a pipe",
            |s| {
                let file = s.file("usr/large");
                fs::remove_file(&file).unwrap();
                tool("mkfifo", [&file]);
            },
            "usr/large: is another file there",
            1,
        ),
        (
            "tar-split",
            |s| {
                for file in list(&s.root.join("overlay-layers"))
                    .iter()
                    .filter(|p| p.to_string_lossy().ends_with(".gz"))
                {
                    let bytes = fs::read(file).unwrap();
                    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
                }
            },
            "its tar-split data: damaged",
            1,
        ),
        (
            "records",
            |s| fs::write(s.layers(), "[{").unwrap(),
            "layers.json: is damaged",
            1,
        ),
        (
            "partial",
            |s| {
                let text = fs::read_to_string(s.layers())
                    .unwrap()
                    .replace("diff-digest", "toc-digest");
                fs::write(s.layers(), text).unwrap();
            },
            "podman cannot rebuild the layer",
            1,
        ),
    ];
    for (name, damage, why, code) in breaks {
        let here = dir.path().join(name.replace(' ', "-"));
        fs::create_dir(&here).unwrap();
        let stored = Stored::new(&here, &oci);
        damage(&stored);
        let told = stored.run(&Cfs::new(&here), ["switch", &from, "--json"]).expect(0);
        assert!(
            name == "partial" || told.stderr.contains(why),
            "{name}: {}",
            told.stderr
        );
        assert_eq!(told.json()["deployment"], expected["deployment"], "{name}");
        let cfs = Cfs::new(&here.join("only"));
        let told = cfs.run(["switch", &stored.reference("os:1")]).expect(code);
        assert!(told.stderr.contains(why), "{name}: {}", told.stderr);
        let remedies = ["again with podman", "may mend it", "podman save"];
        assert!(
            remedies.iter().any(|remedy| told.stderr.contains(remedy)),
            "{}",
            told.stderr
        );
        assert!(cfs.deployments().is_empty());
    }
}

#[test]
fn while_podman_changes_its_storage_layers_are_fetched_and_its_images_are_waited_for() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let stored = Stored::new(dir.path(), &finished.layout(&dir.path().join("oci"), "stable"));
    let from = finished.push(&registry, "os", "1");
    // As podman locks: a record lock for writing, of this process.
    let lock = fs::File::options()
        .write(true)
        .open(stored.root.join("overlay-layers/layers.lock"))
        .unwrap();
    rustix::fs::fcntl_lock(&lock, FlockOperation::LockExclusive).unwrap();
    let told = stored
        .run(&Cfs::new(&dir.path().join("a")), ["switch", &from])
        .expect(0);
    let pid = format!("in use by process {}", std::process::id());
    assert!(
        told.stderr.contains("podman's images are passed over") && told.stderr.contains(&pid),
        "{}",
        told.stderr
    );
    let mut waiting = Cfs::new(&dir.path().join("b")).spawn(["switch", &stored.reference("os:1")]);
    std::thread::sleep(std::time::Duration::from_millis(2000));
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    drop(lock);
    let told = Ran::from(waiting.wait_with_output().unwrap()).expect(0);
    let said = format!("layers.lock, which process {} has locked", std::process::id());
    assert!(told.stderr.contains(&said), "it says for what: {}", told.stderr);
}

#[test]
fn a_layer_that_podman_pulled_in_part_is_taken_where_it_is_what_it_should_be() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let stored = Stored::new(dir.path(), &image().layout(&dir.path().join("oci"), "stable"));
    // As podman notes it with `insecure_allow_unpredictable_image_contents`.
    let mut layers: serde_json::Value = serde_json::from_slice(&fs::read(stored.layers()).unwrap()).unwrap();
    for layer in layers.as_array_mut().unwrap() {
        let diff_id = layer.as_object_mut().unwrap().remove("diff-digest").unwrap();
        layer["flags"] = serde_json::json!({ "expected-layer-diffid": diff_id });
    }
    fs::write(stored.layers(), layers.to_string()).unwrap();
    let from = stored.reference("os:1");
    let told = Cfs::new(&dir.path().join("a")).run(["switch", &from]).expect(0);
    assert_eq!(told.stderr.matches("taken from podman: ").count(), 3, "{}", told.stderr);
    fs::write(stored.file("usr/large"), noise(8, 3_000_000)).unwrap();
    Cfs::new(&dir.path().join("b")).run(["switch", &from]).expect(1);
}

#[test]
fn podman_waits_for_what_is_taken_from_it_and_not_for_the_network() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let stored = Stored::new(dir.path(), &image().layout(&dir.path().join("oci"), "stable"));
    let below = Layer::default().dirs(&["usr"]).file("usr/large", noise(6, 3_000_000));
    let above = Layer::default().file("usr/other", noise(7, 600_000));
    let more = Image::new("1").layer(below, How::Zstd).layer(above, How::Gzip).finish();
    let from = more.push(&registry, "more", "1");
    let cfs = Cfs::new(dir.path());
    let mut command = cfs.command(["image", "pull", "--limit-rate", "100K", &from]);
    let mut pulling = command.env("CONTAINERS_STORAGE_CONF", &stored.conf).spawn().unwrap();
    let lock = fs::File::options()
        .write(true)
        .open(stored.root.join("overlay-layers/layers.lock"))
        .unwrap();
    // The layer is here when its stream is: the other one is being fetched then.
    while list(&cfs.sysroot().join("composefs/cfs-update/parts")).is_empty() && pulling.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).expect("podman may change its images");
    assert!(pulling.try_wait().unwrap().is_none(), "it is still being fetched");
    assert!(pulling.wait().unwrap().success());
    cfs.fsck();
}

#[test]
fn of_a_layer_that_podman_has_twice_the_one_that_is_whole_is_taken() {
    if !is_root("podman's storage") {
        return;
    }
    let dir = scratch();
    let large = || Layer::default().dirs(&["usr"]).file("usr/large", noise(6, 3_000_000));
    let other = Image::new("2")
        .layer(base("2", "kernel-2"), How::Gzip)
        .layer(large(), How::Gzip);
    Stored::new(dir.path(), &other.finish().layout(&dir.path().join("other"), "stable"));
    let oci = image().layout(&dir.path().join("oci"), "stable");
    let stored = Stored::new(dir.path(), &oci);
    let records: serde_json::Value = serde_json::from_slice(&fs::read(stored.layers()).unwrap()).unwrap();
    let records = records.as_array().unwrap();
    let last = &records.last().unwrap()["diff-digest"];
    let found: Vec<_> = records.iter().filter(|layer| layer["diff-digest"] == *last).collect();
    assert_eq!(found.len(), 2, "{records:?}");
    let folder = stored.root.join("overlay").join(found[0]["id"].as_str().unwrap());
    fs::write(folder.join("diff/usr/large"), noise(8, 3_000_000)).unwrap();
    let told = Cfs::new(dir.path())
        .run(["switch", &stored.reference("os:1")])
        .expect(0);
    assert!(
        told.stderr.contains("podman has that layer once more"),
        "{}",
        told.stderr
    );
    assert_eq!(told.stderr.matches("taken from podman: ").count(), 3, "{}", told.stderr);
}

#[test]
fn a_storage_that_may_not_be_read_is_said() {
    if !is_root("a storage of somebody else's") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let stored = Stored::new(dir.path(), &finished.layout(&dir.path().join("oci"), "stable"));
    let from = finished.push(&registry, "os", "1");
    tool(
        "chmod",
        ["-R", "go-rwx", stored.root.join("overlay-layers").to_str().unwrap()],
    );
    let user = dir.path().join("user");
    fs::create_dir(&user).unwrap();
    let cfs = Cfs::unprivileged(&user);
    let told = stored.run(&cfs, ["switch", &from]).expect(0);
    assert!(
        told.stderr.contains("podman's images are passed over: cannot read"),
        "{}",
        told.stderr
    );
    let told = cfs.run(["switch", &stored.reference("os:1")]).expect(1);
    assert!(told.stderr.contains("Permission denied"), "{}", told.stderr);
}

#[test]
fn on_a_file_system_with_reflinks_nothing_is_copied() {
    if !is_root("a btrfs of its own") {
        return;
    }
    let dir = scratch();
    let (file, place) = (dir.path().join("disk"), dir.path().join("mnt"));
    fs::create_dir(&place).unwrap();
    tool("truncate", ["-s", "300M", file.to_str().unwrap()]);
    tool("mkfs.btrfs", ["-q", file.to_str().unwrap()]);
    let mounted = Command::new("mount")
        .args(["-o", "loop"])
        .arg(&file)
        .arg(&place)
        .status()
        .unwrap();
    if !mounted.success() {
        eprintln!("NOT RUN: this kernel mounts no btrfs");
        return;
    }
    let ended = std::panic::catch_unwind(|| {
        let oci = image().layout(&dir.path().join("oci"), "stable");
        let stored = Stored::new(&place, &oci);
        let cfs = Cfs::new(&place);
        let told = cfs.run(["switch", &stored.reference("os:1")]).expect(0);
        let notes: Vec<&str> = told
            .stderr
            .lines()
            .filter(|line| line.contains("taken from podman"))
            .collect();
        assert!(
            notes
                .iter()
                .any(|note| note.contains("1 files reflinked, 0 hard linked, 0 copied")),
            "{notes:?}"
        );
        assert!(notes.iter().all(|note| note.contains(" 0 copied")), "{notes:?}");
        cfs.fsck();
        // A change of podman's file does not reach ours.
        fs::write(stored.file("usr/large"), "changed").unwrap();
        cfs.fsck();
    });
    tool("umount", [&place]);
    ended.unwrap();
}
