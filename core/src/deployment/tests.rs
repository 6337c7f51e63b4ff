//! Records on disk: made, read, changed and removed, with the power cut at every step.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::list::{NEXT_SEAL, SEAL};
use super::*;
use crate::boot::HostArguments;
use crate::error::{Error, Kind, Result};
use crate::ids::{Algorithm, DeploymentId, ManifestDigest};
use crate::signature::{ImageFacts, SignedImage, SigningKey, TrustStore};
use crate::sys::fs::{Fs, RealFs};
use crate::testing::{CrashFs, Loss};

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32], "host")
}

fn trust() -> TrustStore {
    TrustStore::only(key().public())
}

fn id(byte: u8) -> DeploymentId {
    DeploymentId::from_bytes(Algorithm::Sha256, &[byte; 32]).unwrap()
}

fn signed(byte: u8, tag: &str) -> SignedImage {
    let facts = ImageFacts {
        id: id(byte),
        manifest: ManifestDigest::from_hash([byte; 32]),
        reference: format!("docker://h/os:{tag}"),
        erofs_format: 1,
    };
    SignedImage::sign(
        crate::testing::synced(facts),
        &key(),
        u64::from(byte),
        Timestamp::UNIX_EPOCH,
    )
    .unwrap()
}

fn origin(byte: u8) -> Origin {
    Origin::new("docker://replaced/by:seal", ManifestDigest::from_hash([byte; 32]))
}

struct Sandbox {
    _folder: tempfile::TempDir,
    root: PathBuf,
    stash: PathBuf,
    deployments: Deployments,
}

fn sandbox() -> Sandbox {
    let folder = tempfile::tempdir().unwrap();
    let (root, stash) = (folder.path().join("root"), folder.path().join("stash"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&stash).unwrap();
    let layout = Layout::new(&root);
    layout.prepare(&RealFs).unwrap();
    Sandbox {
        _folder: folder,
        root,
        stash,
        deployments: Deployments::new(layout),
    }
}

/// A second one, where a test calls its first `sandbox`.
fn another() -> Sandbox {
    sandbox()
}

impl Sandbox {
    fn make(&self, fs: &dyn Fs, byte: u8) -> Result<Deployment> {
        let draft = self.deployments.begin(fs, signed(byte, "1"))?;
        fs.create_dir(&draft.etc(), 0o755)?;
        fs.create(&draft.etc().join("hostname"), 0o644, &mut &b"box\n"[..])?;
        draft.commit(fs, origin(byte))
    }

    fn path(&self, byte: u8) -> PathBuf {
        self.root.join("state/deploy").join(id(byte).to_hex())
    }

    /// Ids of the records that verify, and the errors of the others.
    fn standing(&self) -> (Vec<DeploymentId>, Vec<String>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for found in self.deployments.list().unwrap() {
            match found.record.and_then(|record| record.verify(&trust())) {
                Ok(deployment) => good.push(*deployment.id()),
                Err(error) => bad.push(error.to_string()),
            }
        }
        (good, bad)
    }
}

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

/// Runs `step` with the power cut after every operation, in both ways, and `check`s what is left.
fn cut_everywhere(
    prepare: impl Fn(&Sandbox),
    step: impl Fn(&Sandbox, &dyn Fs) -> Result<()>,
    check: impl Fn(&Sandbox, bool, &str),
) {
    for loss in [Loss::Content, Loss::Names] {
        for cut in 0.. {
            let sandbox = sandbox();
            prepare(&sandbox);
            let fs = CrashFs::new(&sandbox.root, &sandbox.stash).cut_after(cut);
            let done = step(&sandbox, &fs).is_ok();
            fs.lose(loss);
            check(&sandbox, done, &format!("{loss:?} after {cut}: {:#?}", fs.log()));
            sandbox.deployments.clean(&RealFs).unwrap();
            assert_eq!(sandbox.deployments.leftovers().unwrap(), Vec::<PathBuf>::new());
            check(&sandbox, done, "after cleaning");
            if done {
                assert!(cut >= 3, "the step does something");
                break;
            }
        }
    }
}

#[test]
fn a_power_cut_leaves_a_whole_new_deployment_or_none_and_the_others_as_they_were() {
    cut_everywhere(
        |sandbox| drop(sandbox.make(&RealFs, 1).unwrap()),
        |sandbox, fs| sandbox.make(fs, 2).map(drop),
        |sandbox, done, context| {
            let (good, bad) = sandbox.standing();
            assert!(bad.is_empty(), "{bad:?} {context}");
            assert!(
                good == [id(1), id(2)] || (!done && good == [id(1)]),
                "{good:?} {context}"
            );
            let whole = |byte| std::fs::read(sandbox.path(byte).join("etc/hostname")).unwrap() == b"box\n";
            assert!(good.iter().all(|id| whole(id.as_bytes()[0])), "{context}");
        },
    );
}

#[test]
fn a_power_cut_leaves_a_removed_deployment_whole_or_gone() {
    cut_everywhere(
        |sandbox| {
            sandbox.make(&RealFs, 1).unwrap();
            sandbox.make(&RealFs, 2).unwrap();
        },
        |sandbox, fs| sandbox.deployments.remove(fs, &id(2)),
        |sandbox, done, context| {
            let (good, bad) = sandbox.standing();
            assert!(bad.is_empty(), "{bad:?} {context}");
            assert!(
                good == [id(1)] || (!done && good == [id(1), id(2)]),
                "{good:?} {context}"
            );
        },
    );
}

#[test]
fn a_power_cut_while_an_image_gets_another_name_leaves_one_that_is_sealed() {
    cut_everywhere(
        |sandbox| drop(sandbox.make(&RealFs, 1).unwrap()),
        |sandbox, fs| {
            let origin = sandbox.deployments.load(&id(1))?.origin().clone();
            sandbox.deployments.relabel(fs, signed(1, "2"), origin).map(drop)
        },
        |sandbox, done, context| {
            let read = sandbox.deployments.load(&id(1)).unwrap().verify(&trust()).unwrap();
            let reference = read.origin().reference.as_str();
            assert!(
                reference == "docker://h/os:2" || (!done && reference == "docker://h/os:1"),
                "{context}"
            );
            assert_eq!(read.signed().facts().reference, reference);
            assert!(!done || !read.path().join(NEXT_SEAL).exists(), "{context}");
        },
    );
}

#[test]
fn a_second_power_cut_while_an_image_gets_a_third_name_leaves_one_that_is_sealed() {
    cut_everywhere(
        |sandbox| {
            let origin = sandbox.make(&RealFs, 1).unwrap().origin().clone();
            sandbox.deployments.relabel(&RealFs, signed(1, "2"), origin).unwrap();
            // As the first cut left it: the origin is new, the seal has not got its place.
            let path = sandbox.path(1);
            std::fs::rename(path.join(SEAL), path.join(NEXT_SEAL)).unwrap();
            std::fs::write(path.join(SEAL), signed(1, "1").seal()).unwrap();
        },
        |sandbox, fs| {
            let origin = sandbox.deployments.load(&id(1))?.origin().clone();
            sandbox.deployments.relabel(fs, signed(1, "3"), origin).map(drop)
        },
        |sandbox, done, context| {
            let read = sandbox.deployments.load(&id(1)).unwrap().verify(&trust());
            let reference = read
                .unwrap_or_else(|e| panic!("{e} {context}"))
                .origin()
                .reference
                .clone();
            assert!(
                reference == "docker://h/os:3" || (!done && reference == "docker://h/os:2"),
                "{context}"
            );
        },
    );
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
fn a_merged_etc_takes_the_place_of_the_old_one_whole() {
    let sandbox = sandbox();
    sandbox.make(&RealFs, 1).unwrap();
    let etc = sandbox.path(1).join("etc");
    let draft = sandbox.deployments.begin_etc(&RealFs, &id(1)).unwrap();
    std::fs::create_dir(draft.path()).unwrap();
    std::fs::write(draft.path().join("hostname"), "merged\n").unwrap();
    assert_eq!(std::fs::read(etc.join("hostname")).unwrap(), b"box\n");
    draft.commit_etc(&RealFs).unwrap();
    assert_eq!(std::fs::read(etc.join("hostname")).unwrap(), b"merged\n");
    assert_eq!(sandbox.deployments.leftovers().unwrap(), Vec::<PathBuf>::new());
    let draft = sandbox.deployments.begin_etc(&RealFs, &id(1)).unwrap();
    std::fs::create_dir(draft.path()).unwrap();
    draft.abandon(&RealFs).unwrap();
    assert_eq!(std::fs::read(etc.join("hostname")).unwrap(), b"merged\n");
}

#[test]
fn a_power_cut_while_etc_is_merged_again_leaves_the_old_one_or_the_new_one_whole() {
    cut_everywhere(
        |sandbox| drop(sandbox.make(&RealFs, 1).unwrap()),
        |sandbox, fs| {
            let draft = sandbox.deployments.begin_etc(fs, &id(1))?;
            fs.create_dir(draft.path(), 0o755)?;
            for name in ["hostname", "new"] {
                fs.create(&draft.path().join(name), 0o644, &mut &b"merged\n"[..])?;
            }
            draft.commit_etc(fs)
        },
        |sandbox, done, context| {
            let etc = sandbox.path(1).join("etc");
            let read = |name| std::fs::read_to_string(etc.join(name)).ok();
            let found = [read("hostname"), read("new")];
            let merged = Some("merged\n".to_owned());
            let old = [Some("box\n".to_owned()), None];
            assert!(
                found == [merged.clone(), merged] || (!done && found == old),
                "{found:?} {context}"
            );
            assert_eq!(sandbox.standing(), (vec![id(1)], vec![]), "{context}");
        },
    );
}

#[test]
fn var_is_filled_once_and_never_again() {
    let sandbox = sandbox();
    let var = sandbox.root.join("state/os/default/var");
    let fill = |text: &str| {
        let draft = sandbox.deployments.begin_var(&RealFs).unwrap()?;
        std::fs::create_dir(draft.path()).unwrap();
        std::fs::write(draft.path().join("lib"), text).unwrap();
        sandbox.deployments.commit_var(&RealFs, &draft).unwrap();
        Some(())
    };
    assert!(fill("first").is_some());
    assert!(fill("second").is_none());
    assert_eq!(std::fs::read(var.join("lib")).unwrap(), b"first");
    std::fs::remove_file(var.join("lib")).unwrap();
    assert!(fill("third").is_none(), "an admin who empties /var wants it empty");
    std::fs::remove_dir(&var).unwrap();
    assert!(fill("reset").is_some(), "who removes it wants it anew");

    // bootc made it, empty or filled.
    let other = another();
    let var = other.root.join("state/os/default/var");
    std::fs::create_dir(&var).unwrap();
    assert!(other.deployments.begin_var(&RealFs).unwrap().is_some());
    std::fs::write(var.join("mine"), "").unwrap();
    assert!(other.deployments.begin_var(&RealFs).unwrap().is_none());
    std::fs::remove_file(var.join("mine")).unwrap();
    assert!(other.deployments.begin_var(&RealFs).unwrap().is_none());
}

#[test]
fn a_power_cut_leaves_a_whole_var_or_none() {
    cut_everywhere(
        |_| {},
        |sandbox, fs| {
            let draft = sandbox.deployments.begin_var(fs)?.unwrap();
            fs.create_dir(draft.path(), 0o755)?;
            fs.create(&draft.path().join("lib"), 0o644, &mut &b"x"[..])?;
            sandbox.deployments.commit_var(fs, &draft)
        },
        |sandbox, done, context| {
            let lib = sandbox.root.join("state/os/default/var/lib");
            let content = std::fs::read(&lib).ok();
            assert!(
                content.as_deref() == Some(b"x") || (!done && content.is_none()),
                "{content:?} {context}"
            );
            assert!(
                content.is_some() || !sandbox.root.join("state/os/default/.var-populated").exists(),
                "{context}"
            );
        },
    );
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

#[test]
fn the_staged_note_is_written_read_and_cleared() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    assert_eq!(Staged::load(layout).unwrap(), None);
    let mut staged = Staged::new(id(1), Timestamp::UNIX_EPOCH);
    staged.boot_id = Some("b".into());
    staged.merge_from = Some(id(2));
    staged.save(&RealFs, layout).unwrap();
    assert_eq!(Staged::load(layout).unwrap(), Some(staged));
    let path = layout.state().join("staged.json");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    for bad in [
        "",
        "{}",
        "{\"formatVersion\":2,\"id\":\"00\",\"since\":\"1970-01-01T00:00:00Z\"}",
    ] {
        std::fs::write(&path, bad).unwrap();
        assert!(Staged::load(layout).unwrap_err().to_string().contains("staged.json"));
    }
    Staged::clear(&RealFs, layout).unwrap();
    Staged::clear(&RealFs, layout).unwrap();
    assert_eq!(Staged::load(layout).unwrap(), None);
}

#[test]
fn history_keeps_its_newest_events_and_skips_what_it_cannot_read() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    let event = |n: i64| Event {
        event: "upgrade".into(),
        time: Timestamp::from_second(n).unwrap(),
        id: Some(id(1)),
        digest: None,
        reference: None,
        result: "done".into(),
    };
    let path = layout.state().join("history.jsonl");
    let mut lines: Vec<u8> = Vec::new();
    for n in 0..history::HISTORY_LINES as i64 {
        lines.extend(serde_json::to_vec(&event(n)).unwrap());
        lines.push(b'\n');
    }
    lines.extend(b"{\"torn");
    std::fs::write(&path, lines).unwrap();
    History::append(&RealFs, layout, &event(5000)).unwrap();
    let history = History::load(layout).unwrap();
    assert_eq!(
        (history.events.len(), history.unreadable),
        (history::HISTORY_LINES - 1, 1)
    );
    assert_eq!(history.events[0], event(2));
    assert_eq!(history.events.last(), Some(&event(5000)));
    for _ in 0..2 {
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("not a file")).unwrap();
        assert!(History::load(layout).is_err());
        History::append(&RealFs, layout, &event(6000)).unwrap();
        assert_eq!(History::load(layout).unwrap().events, [event(6000)]);
    }
}

#[test]
fn a_failed_image_is_remembered_until_the_admin_wants_it() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    let digest = ManifestDigest::from_hash([1; 32]);
    let failed = |why: &str| Failed {
        digest,
        id: None,
        time: Timestamp::UNIX_EPOCH,
        why: why.into(),
        top: None,
        by_admin: false,
    };
    let mut list = FailedDigests::load(layout).unwrap();
    list.add(failed("first"));
    list.add(failed("second"));
    list.save(&RealFs, layout).unwrap();
    let mut list = FailedDigests::load(layout).unwrap();
    assert_eq!(list.iter().count(), 1);
    assert_eq!(list.get(&digest).unwrap().why, "second");
    assert!(list.remove(&digest) && !list.remove(&digest));
    std::fs::write(layout.state().join("failed.json"), "{").unwrap();
    let error = FailedDigests::load(layout).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
}

/// Frozen: what version 1 wrote is read, and written again byte for byte.
#[test]
fn every_file_of_state_format_1_is_read_and_written_as_ever() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/state-v1");
    let sample = |name: &str| std::fs::read_to_string(samples.join(name)).unwrap();
    let put = |name: &str| std::fs::write(layout.state().join(name), sample(name)).unwrap();
    let now = |name: &str| std::fs::read_to_string(layout.state().join(name)).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&samples)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "boot.toml",
            "counters.json",
            "deployment.origin",
            "downloaded.json",
            "etc-merged.json",
            "failed.json",
            "history.jsonl",
            "kargs.json",
            "running.json",
            "staged.json"
        ]
    );
    // Those of a record: `etc::merged` tests the other one.
    let of_record = ["deployment.origin", "etc-merged.json"];
    names
        .iter()
        .filter(|name| !of_record.iter().any(|own| name == own))
        .for_each(|name| put(name.to_str().unwrap()));

    let origin = Origin::parse(&sample("deployment.origin")).unwrap();
    assert_eq!(origin.to_string(), sample("deployment.origin"));
    assert!(origin.pinned && origin.etc_unprivileged && origin.generation == Some(7));

    let staged = Staged::load(layout).unwrap().unwrap();
    assert!(staged.merge_from == Some(id(0xab)) && staged.boot_id.is_some());
    staged.save(&RealFs, layout).unwrap();
    assert_eq!(now("staged.json"), sample("staged.json"));

    let running = Running::load(layout).unwrap().unwrap();
    assert_eq!(running, Running::new(id(0xab)));
    running.save(&RealFs, layout).unwrap();
    assert_eq!(now("running.json"), sample("running.json"));

    let downloaded = Downloaded::load(layout).unwrap().unwrap();
    assert!(downloaded.id == id(0xab) && downloaded.manifest != downloaded.top);
    downloaded.save(&RealFs, layout).unwrap();
    assert_eq!(now("downloaded.json"), sample("downloaded.json"));

    let failed = FailedDigests::load(layout).unwrap();
    assert_eq!(failed.iter().next().unwrap().why, "health checks");
    failed.save(&RealFs, layout).unwrap();
    assert_eq!(now("failed.json"), sample("failed.json"));

    let trial = Trial::load(layout).unwrap();
    assert_eq!(
        (trial.line.len(), trial.former.len(), trial.wanted.as_slice()),
        (5, 4, &["quiet".to_owned()][..])
    );
    trial.save(&RealFs, layout).unwrap();
    assert_eq!(now("kargs.json"), sample("kargs.json"));

    let history = History::load(layout).unwrap();
    assert_eq!((history.events.len(), history.unreadable), (2, 0));
    History::append(&RealFs, layout, &history.events[1]).unwrap();
    let last = sample("history.jsonl").lines().last().unwrap().to_owned() + "\n";
    assert_eq!(now("history.jsonl"), sample("history.jsonl") + &last);

    let host = HostArguments::load(layout).unwrap();
    assert_eq!(
        host.kernel_arguments,
        ["console=ttyS0,115200", "dyndbg=\"file a.c +p\""]
    );
    assert!(host.allow_missing_verity);
    host.save(&RealFs, layout).unwrap();
    assert_eq!(now("boot.toml"), sample("boot.toml"));

    let next = crate::signature::next_counter(&RealFs, &layout.state(), []).unwrap();
    assert_eq!((next.counter, next.warning), (42, None));
    assert_eq!(now("counters.json"), sample("counters.json").replace("41", "42"));
}
