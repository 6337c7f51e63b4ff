//! Images of the store in the real podman of Debian 13, which sees them without a copy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::layout::{self, Finished, How, Image, Layer, noise};
use crate::common::registry::Registry;
use crate::common::{Cfs, Ran, is_root, list, podman, scratch, tool};

mod base;

/// A machine with podman: its settings and containers are in `dir`, which is the same place inside.
struct Machine {
    dir: PathBuf,
    conf: PathBuf,
    cfs: Cfs,
}

impl Machine {
    fn new(dir: &Path) -> Self {
        let conf = dir.join("storage.conf");
        let text = format!(
            "[storage]\ndriver = \"overlay\" # the administrator's\nrunroot = \"/run/containers\"\n\
             graphroot = \"{}\"\n[storage.options]\n# size = \"\"\n",
            dir.join("containers").display()
        );
        fs::write(&conf, text).unwrap();
        Self {
            dir: dir.into(),
            conf,
            cfs: Cfs::new(dir),
        }
    }

    /// Our program, on a machine where podman has these settings.
    #[track_caller]
    fn cfs<const N: usize>(&self, args: [&str; N], code: i32) -> Ran {
        let mut command = self.cfs.command(args);
        command.env("CONTAINERS_STORAGE_CONF", &self.conf);
        Ran::from(command.output().unwrap()).expect(code)
    }

    /// A script with podman in it.
    #[track_caller]
    fn podman(&self, text: &str) -> String {
        let text = format!("export CONTAINERS_STORAGE_CONF={}\n{text}", self.conf.display());
        podman::run(&self.dir, &text)
    }

    fn expose(&self, code: i32) -> Ran {
        self.cfs(
            [
                "image",
                "expose",
                "--storage-conf",
                self.conf.to_str().unwrap(),
                "--json",
            ],
            code,
        )
    }

    fn layers(&self) -> usize {
        list(&self.dir.join("sysroot/state/cfs-update/podman/overlay")).len() - 1
    }
}

/// A program that prints a version and needs nothing else.
fn program(dir: &Path, version: &str) -> Vec<u8> {
    let source = dir.join("hello.c");
    fs::write(
        &source,
        format!("#include <stdio.h>\nint main(void) {{ return puts(\"hello {version}\") < 0; }}\n"),
    )
    .unwrap();
    let program = dir.join("hello");
    tool(
        "gcc",
        [
            "-static",
            "-O1",
            "-o",
            program.to_str().unwrap(),
            source.to_str().unwrap(),
        ],
    );
    fs::read(program).unwrap()
}

/// An image with a program that prints its version.
fn image(dir: &Path, version: &str) -> Finished {
    let below = Layer::default()
        .dirs(&["usr", "usr/bin", "etc"])
        .program_of("usr/bin/hello", &program(dir, version))
        .file("usr/data", noise(version.len() as u64, 100_000))
        .file("etc/gone", "x");
    let above = Layer::default()
        .dirs(&["etc"])
        .file("etc/.wh.gone", "")
        .file("etc/version", version);
    Image::new(version)
        .layer(below, How::Gzip)
        .layer(above, How::Gzip)
        .finish()
}

const RUN: &str = "podman run --rm --network=none --cgroups=disabled";

#[test]
fn podman_runs_what_was_pulled_without_copying_it_and_follows_what_becomes_of_it() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let from = image(dir.path(), "1").push(&registry, "app", "stable");
    let machine = Machine::new(dir.path());
    let before = fs::read_to_string(&machine.conf).unwrap();
    machine.cfs(["image", "pull", &from], 0);
    let told = machine.expose(0).json();
    assert_eq!(told["images"][0]["names"][0], from);
    assert_eq!(told["changed"], true);
    assert_eq!(machine.expose(0).json()["changed"], false, "once is enough");
    let after = fs::read_to_string(&machine.conf).unwrap();
    assert!(before.lines().all(|line| after.contains(line)), "{after}");

    let out = machine.podman("podman images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}'");
    assert_eq!(out.trim(), format!("{from} true"));
    assert_eq!(
        machine.podman(&format!("{RUN} {from} /usr/bin/hello")).trim(),
        "hello 1"
    );
    let out = machine.podman(&format!(
        "podman create --name kept {from} /usr/bin/hello >/dev/null\n\
         at=$(podman mount kept); cat $at/etc/version; ls $at/etc; sha256sum <$at/usr/data; grep \" $at \" /proc/mounts"
    ));
    let objects = dir.path().join("sysroot/composefs/objects");
    assert!(
        out.contains(&format!("::{}", objects.display())),
        "its files are our objects: {out}"
    );
    assert!(out.starts_with("1version\n") && !out.contains("gone"), "{out}");
    assert!(out.contains(&layout::digest(&noise(1, 100_000))[7..]), "{out}");

    // A container stands on it: it cannot be let go of, and survives that its name means another image.
    let told = machine.cfs(["image", "rm", &from], 6);
    assert!(told.stderr.contains("podman rm"), "{}", told.stderr);
    image(dir.path(), "22").push(&registry, "app", "stable");
    machine.cfs(["image", "pull", &from], 0);
    assert_eq!(machine.layers(), 2 * 2);
    machine.cfs(["gc"], 0);
    assert_eq!(
        machine.podman(&format!("{RUN} {from} /usr/bin/hello")).trim(),
        "hello 22"
    );
    let out = machine.podman("podman start --attach kept 2>&1 || :; cat $(podman mount kept)/etc/version");
    assert!(out.ends_with('1'), "{out}");
    machine.podman("podman rm --force kept");
    // So does an image of podman's own on the same layer.
    machine.podman(&format!("podman tag {from} localhost/mine:1"));
    let told = machine.cfs(["image", "rm", &from], 6);
    assert!(told.stderr.contains("podman rmi"), "{}", told.stderr);
    machine.podman("podman rmi localhost/mine:1");
    machine.podman(&format!("podman rmi {from} || :"));
    let told = machine.cfs(["gc", "--json"], 0).json();
    assert!(!told["objects"].as_array().unwrap().is_empty());
    assert_eq!(machine.layers(), 2);
    machine.cfs.fsck();
    assert_eq!(
        machine.podman(&format!("{RUN} {from} /usr/bin/hello")).trim(),
        "hello 22"
    );

    machine.cfs(["image", "rm", &from], 0);
    assert_eq!(machine.podman("podman images --quiet"), "");
    machine.cfs(
        [
            "image",
            "expose",
            "--remove",
            "--storage-conf",
            machine.conf.to_str().unwrap(),
        ],
        0,
    );
    assert!(!dir.path().join("sysroot/state/cfs-update/podman").exists());
    let told = machine.cfs(["gc", "--json"], 0).json();
    assert!(
        !told["objects"].as_array().unwrap().is_empty(),
        "nothing is kept for podman any more"
    );
    machine.podman("podman images");
}

#[test]
fn containers_have_what_their_layers_hold_in_run_and_need_no_usr() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let machine = Machine::new(dir.path());
    let service = Layer::default()
        .dirs(&["usr", "run", "run/service"])
        .attribute("user.note", b"kept")
        .file("run/service/pid", noise(1, 200));
    let service = Image::new("1").layer(service, How::Gzip).finish();
    let service = service.layout(&dir.path().join("service"), "1");
    let alone = Layer::default().program_of("hello", &program(dir.path(), "alone"));
    let alone = Image::new("1").layer(alone, How::Gzip).finish();
    let alone = alone.layout(&dir.path().join("alone"), "1");
    for image in [&service, &alone] {
        machine.cfs(["image", "pull", image], 0);
        assert_eq!(machine.cfs(["image", "digest", image], 0).stdout.trim().len(), 64);
    }
    machine.expose(0);
    let out = machine.podman("podman create --name kept localhost/service:1 /x >/dev/null; cat /$(podman mount kept)/run/service/pid | sha256sum");
    assert_eq!(out[..64], layout::digest(&noise(1, 200))[7..]);
    let layers = fs::read(
        dir.path()
            .join("sysroot/state/cfs-update/podman/overlay-layers/layers.json"),
    )
    .unwrap();
    let layers: serde_json::Value = serde_json::from_slice(&layers).unwrap();
    let shown = |at: usize| layers[at]["cfs-update-image"].as_str().unwrap().to_owned();
    let dumps = [0, 1].map(|at| machine.cfs(["image", "dump", &shown(at)], 0).stdout);
    assert!(dumps.iter().any(|dump| dump.contains(" user.note=kept")), "{dumps:?}");
    let out = machine.podman(&format!("{RUN} localhost/alone:1 /hello"));
    assert_eq!(out.trim(), "hello alone");
    machine.cfs.fsck();
    // As a host's root it is refused, by what it lacks.
    let refused = machine.cfs(["switch", &alone], 1);
    assert!(refused.stderr.contains("/usr"), "{}", refused.stderr);
}

/// What the process that read a file had to fetch from the disk for it, of the lines of /proc/PID/io.
fn from_disk(io: &str) -> Vec<u64> {
    let lines = io.lines().filter_map(|line| line.strip_prefix("read_bytes: "));
    lines.map(|bytes| bytes.trim().parse().unwrap()).collect()
}

#[test]
fn two_containers_and_the_host_have_one_copy_of_a_file_in_memory() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let from = image(dir.path(), "1").push(&registry, "app", "stable");
    let machine = Machine::new(dir.path());
    machine.cfs(["image", "pull", &from], 0);
    machine.expose(0);
    let objects = dir.path().join("sysroot/composefs/objects");
    let on_disk = tool(
        "findmnt",
        [
            "--noheadings",
            "--output",
            "FSTYPE",
            "--target",
            objects.to_str().unwrap(),
        ],
    );
    if on_disk.trim() == "tmpfs" {
        println!("not tested: {} is in memory anyway", objects.display());
        return;
    }
    tool("sync", [] as [&str; 0]);
    let forget = format!(
        "find {} -type f -exec dd if={{}} iflag=nocache count=0 status=none \\;",
        objects.display()
    );
    // A mount of its own may have to read of what its folders hold.
    let little = 16 << 10;
    machine.podman(&format!(
        "for name in one two; do podman create --name $name {from} /usr/bin/hello >/dev/null; done"
    ));
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    machine.cfs(["image", "mount", &from, at.to_str().unwrap(), "--verity", "try"], 0);
    // cat's own account stands behind the file that it has read. Where the kernel takes the pages away in between (for
    // want of memory, or since it thinks them idle) it is fetched again, but not each time.
    let read = "usr/data /proc/self/io | grep -a ^read_bytes";
    let once = || {
        tool("sh", ["-c", &forget]);
        let containers = machine.podman(&format!(
            "cat /proc/self/io >/dev/null\nfor name in one two; do cat $(podman mount $name)/{read}; done"
        ));
        let host = tool("sh", ["-c", &format!("cat {}/{read}", at.display())]);
        let seen = from_disk(&(containers + &host));
        assert!(
            seen.len() == 3 && seen[0] >= 100_000,
            "the first to read it fetches it: {seen:?}"
        );
        seen
    };
    let seen: Vec<_> = (0..8).map(|_| once()).collect();
    let shared = |seen: &Vec<u64>| seen[1] <= little && seen[2] <= little;
    assert!(
        seen.iter().any(shared),
        "the second container and the host read the same pages: {seen:?}"
    );
    tool("umount", [at.to_str().unwrap()]);
    machine.podman("podman rm --force one two");
}

#[test]
fn a_name_that_two_images_have_is_the_first_ones_and_podman_goes_on_working() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let machine = Machine::new(dir.path());
    for version in ["1", "22"] {
        let from = image(dir.path(), version).layout(&dir.path().join(version).join("app"), "stable");
        machine.cfs(["image", "pull", &from], 0);
    }
    let told = machine.expose(0).json();
    let names: Vec<_> = told["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| &image["names"])
        .collect();
    assert_eq!(names.len(), 2, "{told}");
    let digest = image(dir.path(), "22").digest();
    let run = |name: &str| machine.podman(&format!("{RUN} {name} /usr/bin/hello"));
    assert_eq!(run("localhost/app:stable").trim(), "hello 1");
    assert_eq!(run(&format!("localhost/app@{digest}")).trim(), "hello 22");
}

#[test]
fn settings_are_changed_where_a_link_leads_and_keep_their_permissions() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let os = layout::small(1, "kernel-1", 2, 2000).finish();
    cfs.run(["image", "pull", &os.layout(&dir.path().join("images"), "stable")])
        .expect(0);
    let (real, link) = (dir.path().join("real.conf"), dir.path().join("link.conf"));
    let before = "[storage]\r\ndriver = \"vfs\"\r\n[storage.options]\r\n";
    fs::write(&real, before).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("real.conf", &link).unwrap();
    let link = link.to_str().unwrap();
    let told = cfs.run(["image", "expose", "--storage-conf", link]).expect(0);
    assert!(told.stderr.contains("driver \"overlay\" only"), "{}", told.stderr);
    assert!(fs::symlink_metadata(link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
    let changed = fs::read_to_string(&real).unwrap();
    assert!(changed.starts_with(before), "{changed}");
    fs::write(&real, changed.replace("= [", "= [\"/nonexistent/store\", ")).unwrap();
    let told = cfs.run(["image", "expose", "--storage-conf", link]).expect(0);
    assert!(
        told.stderr.contains("/nonexistent/store is not there"),
        "{}",
        told.stderr
    );
    // A new file goes again when nobody changed it; one that cannot be made is an error that says what it needs.
    let new = dir.path().join("new/storage.conf");
    for remove in [&[] as &[_], &["--remove"]] {
        let args = ["image", "expose", "--storage-conf", new.to_str().unwrap()];
        cfs.run(args.iter().chain(remove)).expect(0);
        assert_eq!(new.exists(), remove.is_empty());
    }
    let told = cfs
        .run(["image", "expose", "--storage-conf", "/proc/nothing/storage.conf"])
        .expect(1);
    assert!(told.stderr.contains("additionalimagestores") && told.stderr.contains("/proc/nothing"));
}

#[test]
fn the_system_that_boots_next_is_shown_and_settings_that_are_not_understood_are_left_alone() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let os = layout::small(1, "kernel-1", 2, 2000).finish();
    let from = os.layout(&dir.path().join("images"), "stable");
    cfs.run(["switch", &from]).expect(0);
    let told = cfs.run(["image", "expose", "--json"]).expect(0).json();
    assert_eq!(told["images"][0]["names"][0], "localhost/images:stable");
    assert_eq!(told["images"][0]["imageDigest"], os.digest());
    let line = told["byHand"].as_str().unwrap();
    assert!(
        line.starts_with("additionalimagestores = [\"/"),
        "another system's settings are not ours: {line}"
    );
    cfs.run(["gc"]).expect(0);
    cfs.fsck();
    assert_eq!(cfs.deployments().len(), 1);
    let conf = dir.path().join("odd.conf");
    fs::write(&conf, "[storage]\noptions = {additionalimagestores = [\"/a\"]}\n").unwrap();
    let told = cfs
        .run(["image", "expose", "--storage-conf", conf.to_str().unwrap()])
        .expect(1);
    assert!(told.stderr.contains("by hand"), "{}", told.stderr);
    let text = fs::read_to_string(&conf).unwrap();
    assert!(text.starts_with("[storage]\noptions") && text.ends_with("]}\n"));
}
