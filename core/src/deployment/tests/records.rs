//! Where a record lies, how it is read, and what is wrong with a broken one.

use std::os::unix::fs::symlink;

use super::*;
use crate::error::Error;

fn tree(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![path.to_path_buf()];
    while let Some(at) = todo.pop() {
        let meta = at.symlink_metadata().unwrap();
        let name = at.strip_prefix(path).unwrap().display();
        let arrow = std::fs::read_link(&at)
            .map(|t| format!(" -> {}", t.display()))
            .unwrap_or_default();
        let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        lines.push(format!("{mode:04o} {name}{arrow}"));
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()));
        }
    }
    lines.sort_by(|a, b| a[5..].cmp(&b[5..]));
    lines
}

#[test]
fn a_deployment_lies_where_bootc_and_the_initramfs_look_for_it() {
    let sandbox = sandbox();
    let made = sandbox.make(&RealFs, 0xaa).unwrap();
    assert_eq!(made.path(), sandbox.path(0xaa));
    let hex = id(0xaa).to_hex();
    let mut expected = vec![
        "0755 ".to_owned(),
        "0700 cfs-update".into(),
        "0755 deploy".into(),
        format!("0755 deploy/{hex}"),
        format!("0644 deploy/{hex}/{hex}.origin"),
        format!("0755 deploy/{hex}/etc"),
        format!("0644 deploy/{hex}/etc/hostname"),
        format!("0644 deploy/{hex}/seal.json"),
        format!("0000 deploy/{hex}/var -> ../../os/default/var"),
        "0755 os".into(),
        "0755 os/default".into(),
    ];
    expected.sort_by(|a, b| a[5..].cmp(&b[5..]));
    assert_eq!(tree(&sandbox.root.join("state")), expected);
    let text = std::fs::read_to_string(sandbox.path(0xaa).join(format!("{hex}.origin"))).unwrap();
    assert!(
        text.starts_with("[origin]\ncontainer-image-reference = ostree-unverified-image:docker://h/os:1\n"),
        "{text}"
    );
    let read = sandbox.deployments.load(&id(0xaa)).unwrap().verify(&trust()).unwrap();
    assert_eq!(read.origin().to_string(), made.origin().to_string());
    assert_eq!(read.signed().verified(), made.signed().verified());
    assert!(
        matches!(sandbox.make(&RealFs, 0xaa), Err(Error::Deployment { .. })),
        "never over an existing one"
    );
}

#[test]
fn one_broken_record_hides_no_other() {
    let sandbox = sandbox();
    for byte in 1..=9 {
        sandbox.make(&RealFs, byte).unwrap();
    }
    let origin = |byte: u8| sandbox.path(byte).join(format!("{}.origin", id(byte)));
    std::fs::remove_file(origin(1)).unwrap();
    std::fs::write(origin(2), "[origin\n").unwrap();
    std::fs::remove_dir_all(sandbox.path(3).join("etc")).unwrap();
    std::fs::remove_file(sandbox.path(4).join(SEAL)).unwrap();
    std::fs::write(sandbox.path(5).join(SEAL), "{}").unwrap();
    std::fs::copy(sandbox.path(7).join(SEAL), sandbox.path(6).join(SEAL)).unwrap();
    std::fs::remove_file(sandbox.path(8).join("var")).unwrap();
    symlink("/tmp", sandbox.path(8).join("var")).unwrap();
    std::fs::write(sandbox.root.join("state/deploy/README"), "").unwrap();
    std::fs::create_dir(sandbox.root.join("state/deploy/.#left")).unwrap();
    symlink(sandbox.path(9), sandbox.path(10)).unwrap();
    std::fs::write(sandbox.path(11), "").unwrap();
    let (good, bad) = sandbox.standing();
    assert_eq!(good, [id(7), id(9)]);
    let whys = [
        ".origin is missing",
        "line 1: \"[origin\" is no section",
        "its etc is missing",
        "seal.json is missing",
        "not a DSSE envelope",
        "it is for the image 07",
        "its var does not link",
        "no folder of its own",
        "no folder of its own",
    ];
    assert_eq!(bad.len(), whys.len(), "{bad:#?}");
    for (error, why) in bad.iter().zip(whys) {
        assert!(error.contains(why), "{error}");
    }
    for byte in 1..=8 {
        sandbox.deployments.remove(&RealFs, &id(byte)).unwrap();
    }
    assert_eq!(sandbox.standing().0, [id(9)]);
}

#[test]
fn a_change_of_any_byte_of_the_origin_that_matters_is_noticed() {
    let sandbox = sandbox();
    sandbox.make(&RealFs, 1).unwrap();
    let path = sandbox.path(1).join(format!("{}.origin", id(1)));
    let good = std::fs::read(&path).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let reference = text.find("docker://").unwrap()..text.find("os:1").unwrap() + 4;
    let manifest = text.find("sha256:").unwrap()..text.find("sha256:").unwrap() + 71;
    for at in reference.chain(manifest) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let (good, bad) = sandbox.standing();
        assert!(good.is_empty() && bad.len() == 1, "byte {at}");
    }
}

#[test]
fn pinning_keeps_the_seal_and_what_others_wrote() {
    let sandbox = sandbox();
    sandbox.make(&RealFs, 1).unwrap();
    let path = sandbox.path(1).join(format!("{}.origin", id(1)));
    let text = std::fs::read_to_string(&path).unwrap() + "[theirs]\nx = 1\n";
    std::fs::write(&path, &text).unwrap();
    let changed = sandbox.deployments.update(&RealFs, &id(1), |origin| {
        origin.pinned = true;
        origin.reference = "docker://evil/os:1".into();
    });
    assert!(changed.unwrap().pinned);
    let read = sandbox.deployments.load(&id(1)).unwrap().verify(&trust()).unwrap();
    assert!(read.origin().pinned);
    assert_eq!(read.origin().reference, "docker://h/os:1", "that needs a new seal");
    assert!(std::fs::read_to_string(&path).unwrap().contains("[theirs]\nx = 1\n"));
}

#[test]
fn a_broken_record_is_written_anew_around_its_etc() {
    let sandbox = sandbox();
    for byte in 1..=5 {
        sandbox.make(&RealFs, byte).unwrap();
        std::fs::write(sandbox.path(byte).join("etc/admin"), "mine").unwrap();
    }
    std::fs::write(sandbox.path(1).join(format!("{}.origin", id(1))), "[origin").unwrap();
    std::fs::remove_file(sandbox.path(2).join(SEAL)).unwrap();
    std::fs::remove_file(sandbox.path(3).join("var")).unwrap();
    std::fs::remove_file(sandbox.path(4).join("var")).unwrap();
    std::fs::create_dir(sandbox.path(4).join("var")).unwrap();
    std::fs::write(sandbox.path(4).join("var/data"), "mine").unwrap();
    std::fs::remove_dir_all(sandbox.path(5).join("etc")).unwrap();
    for byte in 1..=4 {
        assert!(sandbox.deployments.has_etc(&id(byte)));
        sandbox
            .deployments
            .relabel(&RealFs, signed(byte, "1"), origin(byte))
            .unwrap();
        assert_eq!(std::fs::read(sandbox.path(byte).join("etc/admin")).unwrap(), b"mine");
    }
    assert_eq!(std::fs::read(sandbox.path(4).join("var.broken/data")).unwrap(), b"mine");
    assert!(!sandbox.deployments.has_etc(&id(5)));
    assert!(sandbox.deployments.relabel(&RealFs, signed(5, "1"), origin(5)).is_err());
    assert_eq!(sandbox.standing().0, [1, 2, 3, 4].map(id));
}

#[test]
fn a_pipe_in_place_of_a_file_keeps_nobody_waiting() {
    let sandbox = sandbox();
    for byte in 1..=2 {
        sandbox.make(&RealFs, byte).unwrap();
    }
    let folder = crate::sys::dir::Dir::open(&sandbox.path(1)).unwrap();
    for name in [SEAL.to_owned(), format!("{}.origin", id(1))] {
        std::fs::remove_file(sandbox.path(1).join(&name)).unwrap();
        folder.make_node(name.as_ref(), rustix::fs::FileType::Fifo, 0).unwrap();
    }
    let (good, bad) = sandbox.standing();
    assert_eq!((good, bad.len()), (vec![id(2)], 1));
}

#[test]
fn the_seal_that_waits_does_not_vouch_for_the_old_name() {
    let sandbox = sandbox();
    sandbox.make(&RealFs, 1).unwrap();
    std::fs::write(sandbox.path(1).join(SEAL), signed(1, "2").seal()).unwrap();
    let (good, bad) = sandbox.standing();
    assert!(
        good.is_empty() && bad[0].contains("it is for the reference docker://h/os:2"),
        "{bad:?}"
    );
    std::fs::write(sandbox.path(1).join(NEXT_SEAL), signed(1, "1").seal()).unwrap();
    assert_eq!(sandbox.standing().0, [id(1)]);
    assert_eq!(sandbox.deployments.counters(&trust()).unwrap(), [1, 1]);
}

#[test]
fn nothing_is_written_through_a_link_in_the_state_folder() {
    for link in [
        "state",
        "state/deploy",
        "state/os",
        "state/os/default",
        "state/cfs-update",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        std::fs::create_dir_all(root.join(link).parent().unwrap()).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join(link)).unwrap();
        let error = Layout::new(&root).prepare(&RealFs).unwrap_err().to_string();
        assert!(error.contains("no folder of its own"), "{error}");
        let deployments = Deployments::new(Layout::new(&root));
        let none = |made: bool| assert!(!made || std::fs::read_dir(&outside).unwrap().count() == 0, "{link}");
        none(deployments.begin(&RealFs, signed(1, "1")).is_ok());
        none(deployments.begin_var(&RealFs).is_ok());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{link}");
        for folder in ["", "deploy", "default", "os/default", "cfs-update/keys", "keys"] {
            std::fs::create_dir_all(outside.join(folder)).unwrap();
            std::fs::write(outside.join(folder).join(".#theirs"), "").unwrap();
        }
        let _ = deployments.clean(&RealFs);
        for folder in ["", "deploy", "default", "os/default", "cfs-update/keys", "keys"] {
            assert!(outside.join(folder).join(".#theirs").exists(), "{link}: {folder}");
        }
    }
}

#[test]
fn a_leftover_that_is_read_only_or_immutable_is_removed_too() {
    let sandbox = sandbox();
    let left = sandbox.root.join(format!("state/deploy/.#{}", id(1)));
    std::fs::create_dir_all(left.join("etc/sudoers.d/x")).unwrap();
    std::fs::write(left.join("etc/sudoers.d/x/y"), "").unwrap();
    for path in ["etc/sudoers.d/x", "etc/sudoers.d"] {
        std::fs::set_permissions(left.join(path), std::fs::Permissions::from_mode(0o500)).unwrap();
    }
    let key = sandbox.root.join("state/cfs-update/keys/.#host.key");
    std::fs::create_dir(key.parent().unwrap()).unwrap();
    std::fs::write(&key, "half a secret").unwrap();
    assert_eq!(sandbox.deployments.clean(&RealFs).unwrap(), [left.clone(), key.clone()]);
    assert!(!left.exists() && !key.exists());
    // An immutable resolv.conf is a habit of administrators; only root can have one.
    std::fs::create_dir_all(left.join("etc")).unwrap();
    std::fs::write(left.join("etc/resolv.conf"), "").unwrap();
    let file = std::fs::File::open(left.join("etc/resolv.conf")).unwrap();
    if rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).is_ok() {
        assert!(std::fs::remove_dir_all(&left).is_err());
        sandbox.deployments.clean(&RealFs).unwrap();
        assert!(!left.exists());
    }
}
