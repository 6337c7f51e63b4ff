//! Networks that break, are slow, cost money or are shared: what the program does there, with a real registry and a
//! real message bus.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::disk::Tmpfs;
use crate::common::layout::{Finished, How, Image, Layer, base, digest, noise};
use crate::common::registry::Registry;
use crate::common::{Cfs, Ran, is_root, list, scratch, tool};

const MIB: usize = 1 << 20;

/// An image whose second layer has so many bytes that do not compress; with that layer's digest and size.
fn image(version: u32, size: usize) -> (Finished, String, usize) {
    let seed = u64::from(version) * 100;
    let app = Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/one", noise(seed, size / 2))
        .file("usr/bin/two", noise(seed + 1, size / 2));
    let image = Image::new(&version.to_string())
        .layer(base(&version.to_string(), "kernel"), How::Gzip)
        .layer(app, How::Zstd)
        .finish();
    let (digest, size) = (digest(&image.blobs[1]), image.blobs[1].len());
    (image, digest, size)
}

/// What is kept of downloads: the first byte, and how many there are.
fn parts(cfs: &Cfs) -> Vec<(usize, usize)> {
    let part = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let size = fs::metadata(path).map_or(64, |meta| meta.len());
        (
            name.split('-').nth(1).unwrap().parse().unwrap(),
            usize::try_from(size).unwrap().saturating_sub(64),
        )
    };
    list(&cfs.sysroot().join("composefs/cfs-update/parts"))
        .iter()
        .map(part)
        .collect()
}

/// Starts a run and waits until so many bytes of a layer are kept.
fn run_to(cfs: &Cfs, args: &[&str], bytes: usize) -> Child {
    let mut child = cfs.spawn(args);
    let start = Instant::now();
    loop {
        if let [(_, kept)] = parts(cfs)[..]
            && kept >= bytes
        {
            break;
        }
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Kills a run there.
fn kill_at(cfs: &Cfs, args: &[&str], bytes: usize) -> (usize, usize) {
    let mut child = run_to(cfs, args, bytes);
    child.kill().unwrap();
    child.wait().unwrap();
    parts(cfs)[0]
}

#[test]
fn a_killed_switch_goes_on_where_it_was_and_fetches_no_byte_twice_but_the_first() {
    for privileged in [true, false] {
        let registry = Registry::start();
        let (image, layer, size) = image(1, 4 * MIB);
        let reference = image.push(&registry, "os", "1");
        let dir = scratch();
        let cfs = if privileged {
            Cfs::new(dir.path())
        } else {
            Cfs::unprivileged(dir.path())
        };
        let (start, kept) = kill_at(&cfs, &["switch", "--limit-rate", "1M", &reference], 2 * MIB);
        assert!(start < MIB, "{start}");
        let before = registry.blob_answers(&layer).len();
        let ran = cfs.run(["switch", &reference]).expect(0);
        assert!(ran.stderr.contains("goes on at"), "{}", ran.stderr);
        let answers = &registry.blob_answers(&layer)[before..];
        let sent: u64 = answers.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(sent, (size - kept) as u64, "{answers:?}");
        assert!(answers.iter().all(|(status, _)| *status == 206), "{answers:?}");
        assert!(parts(&cfs).is_empty());
        assert_eq!(cfs.deployments().len(), 1);
        cfs.fsck();
    }
}

#[test]
fn what_is_kept_of_a_download_is_listed_by_gc_when_it_is_old_and_is_no_finding_of_fsck() {
    let registry = Registry::start();
    let (image, ..) = image(1, 4 * MIB);
    let reference = image.push(&registry, "os", "1");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    kill_at(&cfs, &["image", "pull", "--limit-rate", "2M", &reference], MIB);
    cfs.fsck();
    assert_eq!(
        cfs.run(["gc", "--json"]).expect(0).json()["parts"],
        serde_json::json!([])
    );
    let part = &list(&cfs.sysroot().join("composefs/cfs-update/parts"))[0];
    let then = std::time::SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    let file = fs::File::options().write(true).open(part).unwrap();
    file.set_modified(then).unwrap();
    let planned = cfs.run(["gc", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(planned["parts"].as_array().unwrap().len(), 1, "{planned}");
    assert!(planned["bytes"].as_u64().unwrap() >= MIB as u64);
    assert!(cfs.run(["gc"]).expect(0).stdout.contains("part "));
    assert!(parts(&cfs).is_empty());
    cfs.run(["image", "pull", &reference]).expect(0);
    cfs.fsck();
}

#[test]
fn what_is_kept_of_a_download_gives_way_where_the_disk_gets_full() {
    if !is_root("a file system of its own") {
        return;
    }
    let registry = Registry::start();
    let (image, ..) = image(1, 6 * MIB);
    let reference = image.push(&registry, "os", "1");
    let dir = scratch();
    // What is still to come takes less than 6 MiB: it fits into the first, but not together with what is kept of it.
    for (left, code) in [(7 * MIB, 0), (2 * MIB, 4)] {
        let disk = Tmpfs::mount(&dir.path().join("disk"), 200);
        let cfs = Cfs::new(&dir.path().join("disk"));
        let child = run_to(&cfs, &["switch", "--limit-rate", "2M", &reference], MIB);
        disk.leave(left as u64);
        let ran = Ran::from(child.wait_with_output().unwrap()).expect(code);
        assert!(parts(&cfs).is_empty(), "{}", ran.stderr);
        assert_eq!(cfs.deployments().len(), usize::from(code == 0));
        cfs.fsck();
    }
}

#[test]
fn a_rate_holds_for_fetching_and_sending_and_comes_from_the_settings_as_well() {
    let registry = Registry::start();
    let (image, _, size) = image(1, 2 * MIB);
    let reference = image.push(&registry, "os", "1");
    let took = |cfs: &Cfs, args: &[&str]| {
        let start = Instant::now();
        cfs.run(args).expect(0);
        start.elapsed().as_secs_f64()
    };
    let least = size as f64 / MIB as f64 * 0.9;
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let fast = took(&cfs.on(&dir.path().join("fast")), &["image", "pull", &reference]);
    let slow = took(&cfs, &["image", "pull", "--limit-rate", "1M", &reference]);
    assert!((least..least * 3.0).contains(&slow), "{slow} s, {fast} s without");

    let config = dir.path().join("config");
    let folder = config.join("etc/cfs-update/config.toml.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("50-slow.toml"), "[registry]\nlimit-rate = \"1M\"\n").unwrap();
    let with = ["--config-root", config.to_str().unwrap()];
    let second = cfs.on(&dir.path().join("second"));
    let slow = took(&second, &[&with[..], &["image", "pull", &reference]].concat());
    assert!((least..least * 3.0).contains(&slow), "{slow} s by the settings");
    let third = cfs.on(&dir.path().join("third"));
    let lifted = took(
        &third,
        &[&with[..], &["image", "pull", "--limit-rate=none", &reference]].concat(),
    );
    assert!(lifted < least, "{lifted} s with the limit lifted");

    let other = Registry::start();
    let target = other.reference("copy:1");
    let to = format!("docker://{target}");
    let slow = took(
        &cfs,
        &[
            "image",
            "push",
            "--offline",
            "--compression=none",
            "--limit-rate",
            "1M",
            &reference,
            &to,
        ],
    );
    assert!((least..least * 3.0).contains(&slow), "{slow} s to send");
    cfs.on(&dir.path().join("fourth"))
        .run(["image", "pull", &target])
        .expect(0);
}

#[test]
fn a_rate_that_is_none_is_bad_usage() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    for nonsense in ["0", "-1", "fast", "2MB", "1.2.3M", "", "100", "9999999999G"] {
        for command in [
            &["switch", "x.example/os:1"][..],
            &["upgrade"],
            &["auto", "run"],
            &["image", "pull", "x.example/os:1"],
            &["image", "push", "x", "docker://x.example/os:1"],
            &["install", "to-filesystem", "/nonexistent", "x.example/os:1"],
        ] {
            let rate = format!("--limit-rate={nonsense}");
            let ran = cfs.run([command, &[&rate]].concat()).expect(2);
            assert!(ran.stderr.contains("limit-rate"), "{}", ran.stderr);
        }
    }
    let config = dir.path().join("config");
    fs::create_dir_all(config.join("etc/cfs-update")).unwrap();
    let file = config.join("etc/cfs-update/config.toml");
    fs::write(&file, "[registry]\n\nlimit-rate = \"fast\"\n").unwrap();
    let ran = cfs.run(["--config-root", config.to_str().unwrap(), "status"]).expect(1);
    assert!(
        ran.stderr.contains("config.toml") && ran.stderr.contains("line 3"),
        "{}",
        ran.stderr
    );
}

// --- Metered connections ----------------------------------------------------------------------------------------------

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=PATH</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
"#;

/// Says what is in a file.
const NETWORK_MANAGER: &str = r#"
import sys, dbus, dbus.bus, dbus.service, dbus.mainloop.glib
from gi.repository import GLib
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(sys.argv[1])
name = dbus.service.BusName("org.freedesktop.NetworkManager", bus)
class Manager(dbus.service.Object):
    @dbus.service.method("org.freedesktop.DBus.Properties", in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        assert (interface, name) == ("org.freedesktop.NetworkManager", "Metered")
        return dbus.UInt32(int(open(sys.argv[2]).read()))
manager = Manager(bus, "/org/freedesktop/NetworkManager")
print("ready", flush=True)
GLib.MainLoop().run()
"#;

/// A message bus of our own with a NetworkManager on it.
struct Bus {
    /// The daemon, and the manager once it runs.
    processes: Vec<Child>,
    address: String,
    metered: PathBuf,
}

impl Bus {
    fn start(dir: &Path) -> Self {
        let (socket, config, metered) = (dir.join("bus"), dir.join("bus.conf"), dir.join("metered"));
        fs::write(&config, BUS.replace("PATH", socket.to_str().unwrap())).unwrap();
        fs::write(&metered, "0").unwrap();
        let missing = "'make install-deps' installs what the tests need";
        let address = format!("unix:path={}", socket.display());
        let mut bus = Self {
            processes: Vec::new(),
            address,
            metered,
        };
        let daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .arg("--nofork")
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("dbus-daemon: {e}; {missing}"));
        bus.processes.push(daemon);
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "no bus");
            thread::sleep(Duration::from_millis(10));
        }
        let mut manager = Command::new("/usr/bin/python3")
            .args(["-c", NETWORK_MANAGER, &bus.address])
            .arg(&bus.metered)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("python3: {e}; {missing}"));
        let mut line = String::new();
        let mut said = BufReader::new(manager.stdout.take().unwrap());
        bus.processes.push(manager);
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "python3-dbus and python3-gi; {missing}");
        bus
    }

    /// Ends the one that was started last.
    fn end(&mut self) {
        if let Some(mut child) = self.processes.pop() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn set(&self, value: u32) {
        fs::write(&self.metered, value.to_string()).unwrap();
    }

    /// Runs the program with this as the system's bus.
    fn run(&self, cfs: &Cfs, args: &[&str]) -> Ran {
        let mut command = cfs.command(args);
        Ran::from(command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).output().unwrap())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        while !self.processes.is_empty() {
            self.end();
        }
    }
}

#[test]
fn automatic_updates_wait_on_a_metered_connection_and_nobody_else_does() {
    let registry = Registry::start();
    let reference = image(1, 20_000).0.push(&registry, "os", "stable");
    let dir = scratch();
    let (cfs, bus) = (Cfs::new(dir.path()), Bus::start(dir.path()));
    bus.set(3);
    let ran = bus.run(&cfs, &["switch", &reference]).expect(0);
    assert!(
        ran.stderr
            .contains("the connection is metered; it is used all the same"),
        "{}",
        ran.stderr
    );
    let nothing = bus.run(&cfs, &["auto", "run"]).expect(77);
    assert!(
        !nothing.stderr.contains("metered"),
        "there is nothing that could wait: {}",
        nothing.stderr
    );

    image(2, 20_000).0.push(&registry, "os", "stable");
    for metered in [1, 3] {
        bus.set(metered);
        let before = registry.requests().len();
        let ran = bus.run(&cfs, &["auto", "run"]).expect(77);
        assert!(
            ran.stderr.contains("metered") && ran.stderr.contains("os:stable"),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("error"), "{}", ran.stderr);
        assert_eq!(registry.requests().len(), before + 1, "one request tells");
        assert_eq!(cfs.deployments().len(), 1);
        let status = bus.run(&cfs, &["auto", "status", "--json"]).expect(0).json();
        assert_eq!(
            status,
            serde_json::json!({"enabled": true, "apply": false, "downloadOnly": false, "metered": "wait", "connection": "metered",
                "waits": true})
        );
        let told = bus.run(&cfs, &["auto", "status"]).expect(0).stdout;
        assert!(told.contains("The connection is metered"), "{told}");
    }
    assert!(
        bus.run(&cfs, &["upgrade", "--check"])
            .expect(0)
            .stdout
            .contains("available")
    );

    // Where the administrator says so, and where it is not metered.
    let config = dir.path().join("config");
    fs::create_dir_all(config.join("etc/cfs-update")).unwrap();
    let file = config.join("etc/cfs-update/config.toml");
    fs::write(&file, "[auto]\nmetered = \"allow\"\n").unwrap();
    let with = ["--config-root", config.to_str().unwrap()];
    let status = bus.run(&cfs, &[&with[..], &["auto", "status", "--json"]].concat());
    assert_eq!(status.expect(0).json()["waits"], false);
    bus.run(&cfs, &[&with[..], &["auto", "run"]].concat()).expect(0);
    assert_eq!(cfs.deployments().len(), 2);
    for (version, metered) in [(3, 0), (4, 2), (5, 4)] {
        image(version, 20_000).0.push(&registry, "os", "stable");
        bus.set(metered);
        let ran = bus.run(&cfs, &["auto", "run"]).expect(0);
        assert!(!ran.stderr.contains("metered"), "{}", ran.stderr);
    }
}

#[test]
fn automatic_updates_ask_whether_the_connection_is_metered_before_they_have_the_lock() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &image(1, 3000).0.layout(&dir.path().join("oci"), "os")])
        .expect(0);
    let (lock, said) = (cfs.sysroot().join("state/cfs-update/lock"), dir.path().join("said"));
    let (script, bin) = (dir.path().join("script"), dir.path().join("bin"));
    let (lock, log) = (lock.display(), said.display());
    let look = format!("flock --nonblock {lock} echo free >> {log} || echo held >> {log}");
    fs::write(&script, format!("#!/bin/sh\n{look}\necho v u 4\n")).unwrap();
    // Not by ourselves: a child that another test starts meanwhile would hold it open for writing.
    tool(
        "install",
        [
            "-D",
            "-m",
            "755",
            script.to_str().unwrap(),
            bin.join("busctl").to_str().unwrap(),
        ],
    );
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let ran = Ran::from(cfs.command(["auto", "run"]).env("PATH", path).output().unwrap());
    ran.expect(77);
    assert_eq!(fs::read_to_string(&said).unwrap(), "free\n");
}

#[test]
fn without_networkmanager_or_without_a_bus_nothing_is_metered() {
    let registry = Registry::start();
    let reference = image(1, 20_000).0.push(&registry, "os", "stable");
    let dir = scratch();
    let (cfs, mut bus) = (Cfs::new(dir.path()), Bus::start(dir.path()));
    cfs.run(["switch", &reference]).expect(0);
    bus.set(1);
    bus.end();
    let unknown = |ran: Ran| assert_eq!(ran.expect(0).json()["connection"], "unknown");
    unknown(bus.run(&cfs, &["auto", "status", "--json"]));
    image(2, 20_000).0.push(&registry, "os", "stable");
    bus.run(&cfs, &["auto", "run"]).expect(0);
    bus.end();
    unknown(bus.run(&cfs, &["auto", "status", "--json"]));
    let mut command = cfs.command(["auto", "status", "--json"]);
    unknown(Ran::from(command.env("PATH", dir.path()).output().unwrap()));
}

// --- A fleet ----------------------------------------------------------------------------------------------------------

#[test]
fn behind_a_pull_through_cache_a_fleet_fetches_each_blob_once() {
    let upstream = Registry::start();
    let cache = Registry::in_front_of(&upstream);
    let (first, layer, size) = image(1, 2 * MIB);
    let reference = first.push(&upstream, "os", "stable");
    let dir = scratch();
    let conf = dir.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        upstream.host(),
        cache.host()
    );
    fs::write(&conf, text).unwrap();
    let run = |cfs: &Cfs, args: &[&str]| {
        let mut command = cfs.command(args);
        Ran::from(command.env("CONTAINERS_REGISTRIES_CONF", &conf).output().unwrap())
    };
    let hosts: Vec<_> = (0..3)
        .map(|n| {
            let dir = dir.path().join(format!("host{n}"));
            fs::create_dir(&dir).unwrap();
            Cfs::new(&dir)
        })
        .collect();
    // Debian's docker-registry fetches what it does not have twice at once: for whoever asks, and for itself.
    let twice = vec![(200, size as u64); 2];
    for cfs in &hosts {
        let ran = run(cfs, &["switch", &reference]).expect(0);
        assert!(!ran.stderr.contains("passed over"), "{}", ran.stderr);
        assert_eq!(upstream.blob_answers(&layer), twice, "by the cache, for the first host");
    }
    assert_eq!(cache.blob_answers(&layer).len(), hosts.len());

    // The tag moves, and the fleet with it.
    let (second, layer, _) = image(2, MIB);
    second.push(&upstream, "os", "stable");
    for cfs in &hosts {
        run(cfs, &["upgrade"]).expect(0);
        assert!(cfs.status().to_string().contains(&second.digest()));
        assert_eq!(
            cfs.status()["spec"]["image"]["image"],
            reference,
            "it follows the registry, not the cache"
        );
    }
    assert_eq!(upstream.blob_answers(&layer).len(), 2);

    // Without the cache the registry itself is asked.
    drop(cache);
    let (third, layer, _) = image(3, MIB);
    third.push(&upstream, "os", "stable");
    let ran = run(&hosts[0], &["upgrade"]).expect(0);
    assert!(ran.stderr.contains("mirror passed over"), "{}", ran.stderr);
    assert_eq!(upstream.blob_answers(&layer).len(), 1);
}

#[test]
fn an_interrupted_download_goes_on_behind_a_pull_through_cache() {
    let upstream = Registry::start();
    let cache = Registry::in_front_of(&upstream);
    let (image, layer, size) = image(1, 4 * MIB);
    image.push(&upstream, "os", "1");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = cache.reference("os:1");
    // Somebody else's download has filled the cache.
    cfs.on(&dir.path().join("other"))
        .run(["image", "pull", &reference])
        .expect(0);
    let (_, kept) = kill_at(&cfs, &["image", "pull", "--limit-rate", "1M", &reference], MIB);
    let before = cache.blob_answers(&layer).len();
    let ran = cfs.run(["image", "pull", &reference]).expect(0);
    assert!(ran.stderr.contains("goes on at"), "{}", ran.stderr);
    let sent: u64 = cache.blob_answers(&layer)[before..]
        .iter()
        .map(|(_, bytes)| bytes)
        .sum();
    assert_eq!(sent, (size - kept) as u64);
}
