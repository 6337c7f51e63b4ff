//! What goes wrong on the way: content that is not what it says, no space, no network, a kill in the middle, a second
//! run. Each time: a clear error with its exit code, nothing half-done visible, and the same command succeeds
//! afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::disk::Tmpfs;
use crate::common::layout::{How, Image, Layer, base, blob_path, compress, digest, noise, small};
use crate::common::registry::{Registry, Silent};
use crate::common::{Cfs, Ran, is_root, list, name, scratch, tool};

/// Nothing that a user, a boot loader or another tool would take for a deployment or an image.
#[track_caller]
fn nothing_half_done(cfs: &Cfs) {
    let root = cfs.sysroot();
    assert_eq!(
        list(&root.join("boot/loader/entries")),
        Vec::<PathBuf>::new(),
        "no boot entry"
    );
    assert_eq!(list(&root.join("state/deploy")), Vec::<PathBuf>::new(), "no deployment");
    // A layer that arrived whole may stay; what would make an image of it may not.
    let named = |dir: &str| {
        list(&root.join(dir))
            .iter()
            .map(|p| name(p))
            .filter(|n| n != "refs")
            .collect::<Vec<_>>()
    };
    assert_eq!(named("composefs/images"), Vec::<String>::new());
    let streams = named("composefs/streams");
    assert!(
        !streams
            .iter()
            .any(|n| n.starts_with("oci-manifest") || n.starts_with("oci-config")),
        "{streams:?}"
    );
}

#[track_caller]
fn says(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(ran.stderr.contains(word), "'{word}' is not in: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
}

// --- Content that is not what it says ---------------------------------------------------------------------------------

/// Switches to what is broken, then to what is sound under the same name.
#[track_caller]
fn refused_then_mended(broken: Image, sound: Image, words: &[&str]) {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let reference = broken.finish().layout(&layout, "os");
    let ran = cfs.run(["switch", &reference]);
    assert_ne!(ran.code, 0, "{ran:?}");
    says(&ran, words);
    nothing_half_done(&cfs);
    let reference = sound.finish().layout(&layout, "os");
    cfs.run(["switch", &reference]).expect(0);
    assert_eq!(cfs.deployments().len(), 1);
    cfs.fsck();
}

fn app() -> Layer {
    Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/app", noise(7, 300_000))
}

#[test]
fn a_truncated_gzip_layer_is_refused_by_name() {
    let whole = compress(&app().finish(), How::Gzip);
    let cut = whole[..whole.len() / 2].to_vec();
    let named = digest(&app().finish());
    let broken = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .raw_layer(cut, How::Gzip, digest(&app().finish()));
    refused_then_mended(broken, small(1, "a", 3, 10_000), &[&named[7..19]]);
}

#[test]
fn a_truncated_zstd_layer_is_refused_by_name() {
    let whole = compress(&app().finish(), How::Zstd);
    let cut = whole[..whole.len() / 2].to_vec();
    let named = digest(&app().finish());
    let broken = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .raw_layer(cut, How::Zstd, digest(&app().finish()));
    refused_then_mended(broken, small(1, "a", 3, 10_000), &[&named[7..19]]);
}

#[test]
fn a_layer_that_is_not_its_diff_id_is_refused_by_name() {
    let claimed = digest(b"something else");
    let blob = compress(&app().finish(), How::Zstd);
    let broken = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .raw_layer(blob, How::Zstd, claimed.clone());
    refused_then_mended(broken, small(1, "a", 3, 10_000), &[&claimed[7..19]]);
}

#[test]
fn hostile_names_are_refused_or_confined() {
    for name in [&b"../../outside"[..], b"usr/../../outside", b"/../outside", b".."] {
        let dir = scratch();
        let cfs = Cfs::new(dir.path());
        let layer = Layer::default().dirs(&["usr"]).raw_name(name, b"outside");
        let image = Image::new("1").layer(base("1", "a"), How::Gzip).layer(layer, How::None);
        let reference = image.finish().layout(&dir.path().join("oci"), "os");
        let ran = cfs.run(["switch", &reference]);
        assert_eq!(ran.code, 1, "{}: {ran:?}", String::from_utf8_lossy(name));
        nothing_half_done(&cfs);
        for place in [dir.path(), dir.path().parent().unwrap(), Path::new("/")] {
            assert!(!place.join("outside").exists(), "{}", place.display());
        }
    }
}

#[test]
fn a_file_below_a_symbolic_link_writes_nowhere() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let layer = Layer::default()
        .dirs(&["usr"])
        .symlink("usr/link", victim.to_str().unwrap())
        .file("usr/link/planted", "planted by the layer");
    let image = Image::new("1").layer(base("1", "a"), How::Gzip).layer(layer, How::Gzip);
    let reference = image.finish().layout(&dir.path().join("oci"), "os");
    let _ = cfs.run(["switch", &reference]);
    assert!(list(&victim).is_empty(), "nothing is written outside the store");
}

#[test]
fn a_blob_that_the_registry_garbled_is_refused_and_fetched_anew() {
    let registry = Registry::start();
    let image = small(1, "a", 5, 100_000).finish();
    let reference = image.push(&registry, "os", "1");
    let layer = digest(&image.blobs[1]);
    let file = registry.blob_file(&layer);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["switch", &reference]);
    assert!([1, 5].contains(&ran.code), "{ran:?}");
    says(&ran, &[&layer[7..19]]);
    nothing_half_done(&cfs);
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    cfs.run(["switch", &reference]).expect(0);
    cfs.fsck();
}

#[test]
fn a_manifest_that_is_not_its_digest_is_refused() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let image = small(1, "a", 1, 1000).finish();
    let reference = image.layout(&layout, "os");
    let path = blob_path(&layout, &image.digest());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("schemaVersion\":2", "schemaVersion\":3")).unwrap();
    let ran = cfs.run(["switch", &reference]);
    assert_ne!(ran.code, 0);
    says(&ran, &[&image.digest()[7..19]]);
    nothing_half_done(&cfs);
}

#[test]
fn an_image_without_a_kernel_is_refused_and_says_where_one_was_looked_for() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layer = Layer::default()
        .dirs(&["boot", "etc", "sysroot", "usr", "usr/lib"])
        .file("usr/lib/os-release", "ID=x\n");
    let reference = Image::new("1")
        .layer(layer, How::Gzip)
        .finish()
        .layout(&dir.path().join("oci"), "os");
    let ran = cfs.run(["switch", &reference]).expect(1);
    says(&ran, &["usr/lib/modules"]);
    assert!(cfs.entries().is_empty());
}

#[test]
fn an_image_without_a_folder_for_etc_or_var_is_taken_with_a_warning() {
    for missing in ["etc", "var"] {
        let dir = scratch();
        let cfs = Cfs::new(dir.path());
        let reference = Image::new("1")
            .layer(base("1", "kernel"), How::Gzip)
            .layer(Layer::default().file(&format!(".wh.{missing}"), ""), How::Gzip)
            .finish()
            .layout(&dir.path().join("oci"), "os");
        let ran = cfs.run(["switch", &reference]).expect(0);
        says(
            &ran,
            &[&format!("no folder /{missing}"), "to do without; make the folder"],
        );
    }
}

#[test]
fn what_is_not_there_is_a_network_error_or_a_plain_one() {
    let registry = Registry::start();
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["switch", &registry.reference("nothing:here")]).expect(5);
    says(&ran, &["nothing"]);
    let ran = cfs.run(["switch", &format!("oci:{}:os", dir.path().join("no-layout").display())]);
    assert!([1, 5].contains(&ran.code), "{ran:?}");
    says(&ran, &["no-layout"]);
    // Nobody listens there any more.
    let gone = registry.reference("os:1");
    drop(registry);
    let ran = cfs.run(["switch", &gone]).expect(5);
    says(&ran, &["127.0.0.1"]);
    cfs.run(["switch", "no reference at all"]).expect(2);
}

// --- The sysroot -------------------------------------------------------------------------------------------------------

#[test]
fn a_second_run_is_told_who_holds_the_lock() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let sound = small(1, "a", 2, 2000).finish().layout(&dir.path().join("oci"), "os");
    cfs.run(["switch", &sound]).expect(0);

    let silent = Silent::start();
    let mut first = cfs.spawn(["switch", &silent.reference("os:1")]);
    let held = silent.asked();
    let second = cfs.run(["switch", &sound]).expect(6);
    says(&second, &[&first.id().to_string()]);
    cfs.run(["status"]).expect(0);
    first.kill().unwrap();
    first.wait().unwrap();
    drop(held);
    // A lock dies with its holder.
    assert_ne!(cfs.run(["switch", &sound]).code, 6);
}

#[test]
fn a_full_disk_is_exit_code_4_and_leaves_nothing_half_done() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = small(1, "a", 40, 500_000)
        .finish()
        .layout(&dir.path().join("oci"), "os");
    for megabytes in [1, 4, 12] {
        let disk = Tmpfs::mount(cfs.sysroot(), megabytes);
        let ran = cfs.run(["switch", &reference]).expect(4);
        // Found out beforehand, or by the kernel on the way: both name the place.
        says(&ran, &[cfs.sysroot().to_str().unwrap()]);
        nothing_half_done(&cfs);
        disk.resize(200);
        cfs.run(["switch", &reference]).expect(0);
        assert_eq!(cfs.entries().len(), 1);
        cfs.fsck();
    }
}

#[test]
fn a_full_boot_partition_is_exit_code_4_and_the_old_entry_stays() {
    if !is_root("a file system of its own") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let boot = Tmpfs::mount(&cfs.sysroot().join("boot"), 1);
    let layout = dir.path().join("oci");
    cfs.run(["switch", &small(1, "a", 2, 2000).finish().layout(&layout, "os")])
        .expect(0);
    let old = cfs.entries().remove(0);
    // A kernel that does not fit beside the first.
    let mut kernel = base("2", "b");
    kernel = kernel.file("usr/lib/modules/6.1.0/vmlinuz", noise(3, 2_000_000));
    Image::new("2").layer(kernel, How::Gzip).finish().layout(&layout, "os");
    let ran = cfs.run(["upgrade"]).expect(4);
    says(&ran, &["free"]);
    let entries = cfs.entries();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].path, &entries[0].text), (&old.path, &old.text));
    assert_eq!(
        list(&cfs.sysroot().join("boot/cfs-update")).len(),
        1,
        "nothing is left of the kernel that did not fit"
    );
    boot.resize(16);
    cfs.run(["upgrade"]).expect(0);
    assert_eq!(cfs.entries().len(), 2);
    cfs.fsck();
}

#[test]
fn a_read_only_or_foreign_sysroot_is_named() {
    let dir = scratch();
    let cfs = Cfs::unprivileged(dir.path());
    let reference = small(1, "a", 1, 1000).finish().layout(&dir.path().join("oci"), "os");
    tool("chmod", ["-R", "a+rX", dir.path().join("oci").to_str().unwrap()]);
    fs::set_permissions(cfs.sysroot(), fs::Permissions::from_mode(0o555)).unwrap();
    let ran = cfs.run(["switch", &reference]).expect(1);
    says(&ran, &[cfs.sysroot().to_str().unwrap()]);
}

// --- Killed in the middle ----------------------------------------------------------------------------------------------

#[test]
fn a_run_killed_while_it_made_the_repository_left_none() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    fs::create_dir_all(cfs.sysroot().join("composefs/objects")).unwrap();
    fs::create_dir_all(cfs.sysroot().join("composefs/streams/refs/oci")).unwrap();
    assert_eq!(cfs.status()["status"]["staged"], serde_json::Value::Null);
    let ran = cfs.run(["fsck"]).expect(1);
    says(&ran, &["there is none; `switch` makes one"]);
    let reference = small(1, "a", 1, 1000).finish().layout(&dir.path().join("oci"), "os");
    cfs.run(["switch", &reference]).expect(0);
    cfs.fsck();
}

#[test]
fn killed_at_any_moment_the_same_command_succeeds_afterwards() {
    let dir = scratch();
    let layout = dir.path().join("oci");
    let one = small(1, "a", 150, 200_000).finish();
    let two = small(2, "b", 150, 200_000).finish();

    // How long a whole run takes, so that the moments are spread over it.
    let cfs = Cfs::new(dir.path());
    let reference = one.layout(&layout, "os");
    let timed = |cfs: &Cfs| {
        let started = Instant::now();
        cfs.run(["switch", &reference]).expect(0);
        started.elapsed()
    };
    // On a busy machine the first one may take much longer than those that follow.
    let whole = timed(&cfs).min(timed(&cfs.on(&dir.path().join("once-more"))));
    let first_id = cfs.entries()[0].digest().to_owned();

    let mut killed = 0;
    for moment in 0..12_u32 {
        let root = dir.path().join(format!("killed-{moment}"));
        let cfs = cfs.on(&root);
        let pause = whole * moment / 12 + Duration::from_millis(3);
        one.layout(&layout, "os");

        // The first switch.
        killed += u32::from(kill_after(&cfs, &["switch", &reference], pause));
        consistent(&cfs, &[&first_id]);
        cfs.run(["switch", &reference]);
        assert_eq!(cfs.entries()[0].digest(), first_id);
        cfs.fsck();

        // An upgrade: the old entry stays complete, the new one is there whole or not at all.
        two.layout(&layout, "os");
        killed += u32::from(kill_after(&cfs, &["upgrade"], pause));
        assert!(
            cfs.entries().iter().any(|e| e.digest() == first_id),
            "old or new boots, never neither"
        );
        consistent(&cfs, &[]);
        let again = cfs.run(["upgrade"]);
        assert!([0, 77].contains(&again.code), "{again:?}");
        assert_ne!(cfs.entries()[0].digest(), first_id, "the upgrade arrived");
        cfs.fsck();
        fs::remove_dir_all(&root).unwrap();
    }
    assert!(
        killed >= 8,
        "only {killed} of 24 runs were still running when they were to be killed"
    );
}

/// Whether it was still running.
fn kill_after(cfs: &Cfs, args: &[&str], pause: Duration) -> bool {
    let mut child = cfs.spawn(args);
    thread::sleep(pause);
    let _ = child.kill();
    let status = child.wait().unwrap();
    // What it was starting when it was killed (busctl, asked whether the connection is metered) has its lock until it is
    // that other program.
    let lock = cfs.sysroot().join("state/cfs-update/lock");
    let until = Instant::now() + Duration::from_secs(10);
    let is_held = || {
        let taken = |lock| rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        fs::File::open(&lock).is_ok_and(|lock| taken(lock).is_err())
    };
    while is_held() && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    status.signal() == Some(9)
}

/// Each entry that there is has everything it names.
#[track_caller]
fn consistent(cfs: &Cfs, only: &[&str]) {
    let root = cfs.sysroot();
    for entry in cfs.entries() {
        let id = entry.digest();
        assert!(only.is_empty() || only.contains(&id));
        assert!(root.join("composefs/images").join(id).exists(), "{entry:?}");
        assert!(
            root.join("state/deploy").join(id).join("seal.json").exists(),
            "{entry:?}"
        );
        assert!(
            root.join("state/deploy").join(id).join("etc/hostname").exists(),
            "{entry:?}"
        );
        for key in ["linux", "initrd"] {
            let file = entry.get(key).unwrap().trim_start_matches('/');
            assert!(
                fs::metadata(root.join("boot").join(file)).unwrap().len() > 5000,
                "{entry:?}"
            );
        }
    }
}

#[test]
fn what_a_killed_run_left_behind_is_collected() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let reference = small(1, "a", 3, 3000).finish().layout(&layout, "os");
    cfs.run(["switch", &reference]).expect(0);
    let before = list_objects(&cfs);
    let silent = Silent::start();
    let mut child = cfs.spawn(["switch", &silent.reference("os:1")]);
    let _held = silent.asked();
    child.kill().unwrap();
    child.wait().unwrap();
    let dry = cfs.run(["gc", "--dry-run"]).expect(0);
    assert!(!dry.stderr.contains("panicked"));
    cfs.run(["gc"]).expect(0);
    assert_eq!(list_objects(&cfs), before, "gc removes nothing that a deployment needs");
    cfs.fsck();
}

fn list_objects(cfs: &Cfs) -> Vec<PathBuf> {
    list(&cfs.sysroot().join("composefs/objects"))
        .iter()
        .flat_map(|d| list(d))
        .collect()
}

/// `health check` in this configuration root, which has one check and, as `by_systemd` says, systemd-bless-boot on a
/// boot that is counted.
fn judged(cfs: &Cfs, root: &Path, check: &str, by_systemd: bool) -> Ran {
    let _ = fs::remove_dir_all(root);
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("etc/cfs-update/health.d/10-check", &format!("#!/bin/sh\n{check}\n"));
    write("etc/cfs-update/config.toml", "[health]\nattempts = 1\n");
    write(
        "etc/cfs-update/config.toml.d/20-typing-error.toml",
        "[boot]\ntrys = 3\n",
    );
    if by_systemd {
        write("usr/lib/systemd/systemd-bless-boot", "");
        write(
            "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
            "",
        );
    }
    cfs.run(["--config-root", root.to_str().unwrap(), "health", "check"])
}

#[test]
fn checks_decide_whether_a_boot_was_good_and_neither_a_damaged_store_nor_a_typing_error() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let root = dir.path().join("config");
    cfs.run([
        "switch",
        &small(1, "a", 2, 2000).finish().layout(&dir.path().join("oci"), "os"),
    ])
    .expect(0);
    let ran = judged(&cfs, &root, "exit 0", true);
    says(&ran.expect(0), &["20-typing-error.toml"]);
    fs::write(cfs.sysroot().join("composefs/meta.json"), "{").unwrap();
    let ran = judged(&cfs, &root, "exit 0", true).expect(0);
    assert!(
        ran.stdout.contains("nothing else could be done") && ran.stdout.contains("meta.json"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("This boot is good"), "{}", ran.stdout);
    // Nobody else would mark it, or nobody should.
    judged(&cfs, &root, "exit 0", false).expect(1);
    judged(&cfs, &root, "exit 1", true).expect(1);
}
