//! Networks that break, are slow, cost money or are shared: what the program does there, with a real registry and a
//! real message bus.

mod fleet;
mod metered;

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
        let told = cfs.run(["switch", "--dry-run", "--json", &reference]).expect(0).json();
        assert_eq!(told["layers"][1]["fetch"], size - kept, "{told}");
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
