//! Our image digests equal what the crates composefs, composefs-oci and composefs-boot compute for the same layers.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod tars;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use cfs_core::ids::Algorithm;
use cfs_core::image::{self, Versions, writer};
use cfs_core::monitor::Quiet;
use cfs_core::store::Store;
use cfs_core::store::import::{self, Compression, LayerSource};
use cfs_core::tree::{Merge, Tree};
use composefs::erofs::format::FormatVersion;
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::{Repository, RepositoryConfig};
use composefs_boot::BootOps;
use proptest::prelude::*;

use tars::{Header, Tar, diff_id, pax_record};

/// What goes into an entry besides its name and type.
#[derive(Clone, Debug)]
struct Attributes {
    mode: u32,
    owner: u32,
    mtime: (u32, u32),
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            mode: 0o755,
            owner: 0,
            mtime: (1_700_000_000, 0),
            xattrs: Vec::new(),
        }
    }
}

fn add(tar: Tar, path: &str, kind: u8, link: &str, content: &[u8], attributes: &Attributes) -> Tar {
    let mut pax = Vec::new();
    if attributes.mtime.1 > 0 {
        let mtime = format!("{}.{:09}", attributes.mtime.0, attributes.mtime.1);
        pax.extend_from_slice(&pax_record("mtime", mtime.as_bytes()));
    }
    for (key, value) in &attributes.xattrs {
        pax.extend_from_slice(&pax_record(&format!("SCHILY.xattr.{key}"), value));
    }
    if path.len() > 99 {
        pax.extend_from_slice(&pax_record("path", path.as_bytes()));
    }
    let tar = if pax.is_empty() {
        tar
    } else {
        tar.header(Header::new("PaxHeaders/x", b'x', pax.len() as u64))
            .content(&pax)
    };
    let mut header = Header::new(&path[..path.len().min(99)], kind, content.len() as u64);
    header
        .put(100, format!("{:07o}\0", attributes.mode).as_bytes())
        .put(108, format!("{:07o}\0", attributes.owner).as_bytes())
        .put(116, format!("{:07o}\0", attributes.owner / 2).as_bytes())
        .put(136, format!("{:011o}\0", attributes.mtime.0).as_bytes())
        .put(157, link.as_bytes());
    if matches!(kind, b'3' | b'4') {
        header.put(329, b"0000001\0").put(337, b"0000003\0");
    }
    tar.header(header).content(content)
}

/// What the crates say: the digest, or their error.
fn theirs<H: FsVerityHashValue>(layers: &[Vec<u8>], boot: bool) -> Result<String, String> {
    their_image::<H>(layers, boot, FormatVersion::V1).map(|(_, digest)| digest)
}

/// The image that the crates make, and its digest.
fn their_image<H: FsVerityHashValue>(
    layers: &[Vec<u8>],
    boot: bool,
    version: FormatVersion,
) -> Result<(Box<[u8]>, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let config = RepositoryConfig::new(H::ALGORITHM).set_insecure();
    let path = folder.path().join("repo");
    let (repo, _) = Repository::<H>::init_path(rustix::fs::CWD, &path, config).unwrap();
    let repo = Arc::new(repo);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut refs = HashMap::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let digest = composefs_oci::sha256_content_digest(layer);
        let import = composefs_oci::import_layer(&repo, &digest, None, &layer[..]);
        let (verity, _) = runtime.block_on(import).map_err(|e| format!("{e:#}"))?;
        refs.insert(digest.to_string().into_boxed_str(), verity);
        diff_ids.push(format!("{:?}", digest.to_string()));
    }
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let (digest, verity) =
        composefs_oci::write_config_raw(&repo, config.as_bytes(), refs, None, None, &HashMap::new()).unwrap();
    let options = composefs::generic_tree::OciTransformOptions::default();
    let mut tree = composefs_oci::image::create_filesystem(&repo, &digest, Some(&verity), &options)
        .map_err(|e| format!("{e:#}"))?;
    if boot {
        tree.transform_for_boot(&repo).map_err(|e| format!("{e:#}"))?;
    }
    let (image, id) = tree.compute_image_bytes(version);
    Ok((image, id.to_hex()))
}

fn our_tree(store: &Store, layers: &[Vec<u8>], boot: bool) -> cfs_core::Result<Tree> {
    let mut merge = Merge::new();
    for layer in layers {
        let id = diff_id(layer);
        if !store.has_layer(&id) {
            let blob = layer.clone();
            let source = LayerSource {
                partial: None,
                remote: None,
                diff_id: id,
                size: blob.len() as u64,
                compression: Compression::None,
                open: Box::new(move || Ok(Box::new(std::io::Cursor::new(blob)) as Box<dyn std::io::BufRead + Send>)),
            };
            import::layers(store, vec![source], 1, &Quiet)?;
        }
        merge.layer(store.entries(&id)?)?;
    }
    let mut tree = merge.finish()?;
    tree.transform_for_oci()?;
    if boot {
        tree.transform_for_boot(&|id| store.read_object(id, 1 << 24))?;
    }
    Ok(tree)
}

fn ours(layers: &[Vec<u8>], algorithm: Algorithm, boot: bool) -> cfs_core::Result<String> {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(&folder.path().join("composefs"), algorithm)?;
    let tree = our_tree(&store, layers, boot)?;
    Ok(image::digest(&writer::build(&tree, Versions::V1)?, algorithm).to_hex())
}

fn assert_same(layers: &[Vec<u8>]) {
    for boot in [false, true] {
        let wanted = theirs::<Sha256HashValue>(layers, boot).unwrap();
        assert_eq!(
            ours(layers, Algorithm::Sha256, boot).unwrap(),
            wanted,
            "SHA-256, boot: {boot}"
        );
        let wanted = theirs::<Sha512HashValue>(layers, boot).unwrap();
        assert_eq!(
            ours(layers, Algorithm::Sha512, boot).unwrap(),
            wanted,
            "SHA-512, boot: {boot}"
        );
    }
}

const CONTEXTS: &str = "\
# a comment
/.*\tsystem_u:object_r:default_t:s0
/ -d system_u:object_r:root_t:s0
/usr(/.*)?  system_u:object_r:usr_t:s0
/usr/(.*/)?bin(/.*)? system_u:object_r:bin_t:s0
/usr/bin/a\\.b -- system_u:object_r:dotted_t:s0
/etc(/.*)? system_u:object_r:etc_t:s0
/etc/sh[ab]dow -- system_u:object_r:shadow_t:s0
/var/(log|tmp)/.+ system_u:object_r:log_t:s0
/dev/[^/]+ -c system_u:object_r:device_t:s0
/dev/sd.* -b system_u:object_r:disk_t:s0
/etc/private(/.*)? <<none>>
/usr/lib/(?!special).*\\.so -- system_u:object_r:lib_t:s0
/usr/lib/x -l system_u:object_r:link_t:s0
/run system_u:object_r:run_t:s0
/d0/?.* system_u:object_r:d_t:s0
/d1/f1|/d2/f2 system_u:object_r:either_t:s0
/d[12]/.* -p system_u:object_r:pipe_t:s0
";

fn policy(tar: Tar) -> Tar {
    let a = Attributes::default();
    let mut tar = add(tar, "etc/selinux/", b'5', "", b"", &a);
    tar = add(
        tar,
        "etc/selinux/config",
        b'0',
        "",
        b"# SELINUXTYPE=none\nselinux=enforcing\n SELinuxType = targeted \n",
        &a,
    );
    for folder in ["targeted/", "targeted/contexts/", "targeted/contexts/files/"] {
        tar = add(tar, &format!("etc/selinux/{folder}"), b'5', "", b"", &a);
    }
    for (name, text) in [
        ("file_contexts", CONTEXTS),
        ("file_contexts.local", "/d3/f0 -- system_u:object_r:local_t:s0\n"),
        ("file_contexts.homedirs", "/home/[^/]+ -d system_u:object_r:home_t:s0\n"),
        ("file_contexts.subs", "/opt /usr\n"),
        ("file_contexts.subs_dist", "/d4 /etc/private\n/d5/d0 /var/log\n"),
    ] {
        tar = add(
            tar,
            &format!("etc/selinux/targeted/contexts/files/{name}"),
            b'0',
            "",
            text.as_bytes(),
            &a,
        );
    }
    tar
}

fn base(with_policy: bool) -> Tar {
    let mut tar = Tar::new();
    for (at, name) in [
        "./", "usr/", "usr/bin/", "usr/lib/", "etc/", "var/", "var/log/", "boot/", "sysroot/", "run/", "dev/", "home/",
        "opt/",
    ]
    .into_iter()
    .enumerate()
    {
        let attributes = Attributes {
            mtime: (
                1_600_000_000 + u32::try_from(at).unwrap() % 3,
                u32::try_from(at).unwrap() % 2 * 500,
            ),
            ..Attributes::default()
        };
        tar = add(tar, name, b'5', "", b"", &attributes);
    }
    if with_policy { policy(tar) } else { tar }
}

#[test]
fn a_small_os_image_has_the_digest_that_composefs_rs_computes() {
    let a = Attributes::default();
    let capability = Attributes {
        mode: 0o4755,
        xattrs: vec![
            ("security.capability", vec![1, 0, 0, 2, 0, 32, 0, 0]),
            ("user.dropped", b"x".to_vec()),
            ("security.selinux", b"system_u:object_r:container_t:s0\0".to_vec()),
        ],
        mtime: (1_700_000_001, 123_456_789),
        ..Attributes::default()
    };
    for with_policy in [false, true] {
        let mut one = base(with_policy);
        one = add(one, "bin", b'2', "usr/bin", b"", &a);
        one = add(one, "usr/bin/ping", b'0', "", &[7; 1000], &capability);
        one = add(one, "usr/bin/ping6", b'1', "usr/bin/ping", b"", &a);
        one = add(one, "usr/bin/a.b", b'0', "", b"small", &capability);
        one = add(one, "etc/shadow", b'0', "", &[b'x'; 64], &a);
        one = add(one, "etc/shbdow", b'1', "./etc/shadow", b"", &a);
        one = add(one, "var/log/one", b'1', "/etc/shadow", b"", &a);
        one = add(one, "dev/null", b'3', "", b"", &a);
        one = add(one, "dev/sda", b'4', "", b"", &a);
        one = add(one, "run/left", b'0', "", b"behind", &a);
        one = add(one, "boot/vmlinuz", b'0', "", &[1; 5000], &a);
        one = add(one, "usr/lib/old", b'5', "", b"", &a);
        one = add(one, "usr/lib/old/file", b'0', "", &[2; 65], &a);
        let mut two = Tar::new();
        two = add(two, "usr/lib/.wh.old", b'0', "", b"", &a);
        two = add(two, "var/log/.wh..wh..opq", b'0', "", b"", &a);
        two = add(two, "var/log/new", b'1', "usr/bin/ping", b"", &a);
        two = add(two, "etc", b'5', "", b"", &capability);
        two = add(two, "dev/sda", b'6', "", b"", &a);
        two = add(two, &format!("usr/lib/{}", "n".repeat(200)), b'0', "", b"", &a);
        assert_same(&[one.finish(), two.finish()]);
    }
}

/// Format 2 has no nanoseconds, so the layers have none.
#[test]
fn images_of_composefs_rs_in_all_its_formats_read_back_as_the_tree_of_the_layers() {
    let a = Attributes::default();
    let special = Attributes {
        mode: 0o4755,
        owner: 100_000,
        mtime: (5, 0),
        xattrs: vec![("security.capability", vec![1, 2, 3])],
    };
    let mut tar = Tar::new();
    for name in ["usr/", "boot/", "sysroot/", "usr/many/"] {
        tar = add(tar, name, b'5', "", b"", &a);
    }
    for at in 0..300_u32 {
        let attributes = if at % 7 == 0 { &special } else { &a };
        tar = add(
            tar,
            &format!("usr/many/file-{at}"),
            b'0',
            "",
            &vec![b'x'; at as usize],
            attributes,
        );
    }
    tar = add(tar, "usr/hard", b'1', "usr/many/file-299", b"", &a);
    tar = add(tar, "link", b'2', "usr/many", b"", &a);
    tar = add(tar, "null", b'3', "", b"", &special);
    tar = add(tar, "pipe", b'6', "", b"", &a);
    let layers = [policy(add(tar, "etc/", b'5', "", b"", &a)).finish()];
    let wanted = ours(&layers, Algorithm::Sha512, true).unwrap();
    for version in [FormatVersion::V1, FormatVersion::V2] {
        let (image, _) = their_image::<Sha512HashValue>(&layers, true, version).unwrap();
        let tree = image::reader::read(&image).unwrap();
        let again = writer::build(&tree, Versions::V1).unwrap();
        assert_eq!(image::digest(&again, Algorithm::Sha512).to_hex(), wanted, "{version:?}");
    }
}

/// One step of a generated layer; numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Folder(u8, u8, Attributes),
    File(u8, u8, u16, Attributes),
    Symlink(u8, u8, u16, Attributes),
    Special(u8, u8, u8, Attributes),
    Hardlink(u8, u8, u16),
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let xattr = prop_oneof![
        (0..4_u8).prop_map(|v| ("security.capability", vec![v; 20])),
        (0..3_u8).prop_map(|v| ("user.x", vec![v])),
        Just(("trusted.overlay.opaque", b"y".to_vec())),
        Just(("system.posix_acl_access", vec![2, 0, 0, 0])),
    ];
    let nsec = prop_oneof![3 => Just(0), 1 => Just(1_u32), 1 => 0..1_000_000_000_u32];
    (
        0..0o10000_u32,
        prop_oneof![Just(0), Just(65_536), 0..2_000_000_u32],
        (1..5_u32, nsec),
        prop::collection::vec(xattr, 0..3),
    )
        .prop_map(|(mode, owner, mtime, xattrs)| Attributes {
            mode,
            owner,
            mtime,
            xattrs,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (any::<u8>(), 0..7_u8);
    prop_oneof![
        3 => (place(), attributes()).prop_map(|((f, n), a)| Step::Folder(f, n, a)),
        4 => (place(), 0..300_u16, attributes()).prop_map(|((f, n), s, a)| Step::File(f, n, s, a)),
        1 => (place(), 1..100_u16, attributes()).prop_map(|((f, n), s, a)| Step::Symlink(f, n, s, a)),
        1 => (place(), 0..3_u8, attributes()).prop_map(|((f, n), k, a)| Step::Special(f, n, k, a)),
        2 => (place(), any::<u16>()).prop_map(|((f, n), t)| Step::Hardlink(f, n, t)),
    ]
}

type Layer = (Vec<u16>, Vec<u16>, Vec<Step>);

fn layer() -> impl Strategy<Value = Layer> {
    (
        prop::collection::vec(any::<u16>(), 0..4),
        prop::collection::vec(any::<u16>(), 0..2),
        prop::collection::vec(step(), 1..25),
    )
}

/// Makes tars of generated layers: whiteouts come first and parents are there, where both programs must agree.
fn tars_of(layers: &[Layer], with_policy: bool) -> Vec<Vec<u8>> {
    let mut there: BTreeMap<String, bool> = BTreeMap::new();
    for name in ["", "etc/private/", "usr/bin/", "usr/lib/"] {
        there.insert(name.into(), true);
    }
    let mut base = base(with_policy);
    base = add(base, "etc/private/", b'5', "", b"", &Attributes::default());
    for at in 0..6 {
        base = add(base, &format!("d{at}/"), b'5', "", b"", &Attributes::default());
        there.insert(format!("d{at}/"), true);
    }
    let mut out = vec![base.finish()];
    for (whiteouts, opaque, steps) in layers {
        let mut tar = Tar::new();
        for number in whiteouts {
            let Some(path) = there
                .keys()
                .filter(|p| p.starts_with('d'))
                .nth(usize::from(*number) % there.len())
                .cloned()
            else {
                continue;
            };
            let (folder, name) = split(&path);
            tar = add(
                tar,
                &format!("{folder}.wh.{name}"),
                b'0',
                "",
                b"",
                &Attributes::default(),
            );
            there.retain(|p, _| !is_below(p, &path));
        }
        for number in opaque {
            let folders: Vec<String> = there
                .iter()
                .filter(|(p, d)| **d && p.starts_with('d'))
                .map(|(p, _)| p.clone())
                .collect();
            let Some(path) = folders.get(usize::from(*number) % folders.len().max(1)) else {
                continue;
            };
            tar = add(
                tar,
                &format!("{path}.wh..wh..opq"),
                b'0',
                "",
                b"",
                &Attributes::default(),
            );
            there.retain(|p, _| p == path || !is_below(p, path));
        }
        for step in steps {
            tar = apply(tar, step, &mut there);
        }
        out.push(tar.finish());
    }
    out
}

fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    path.rfind('/').map_or(("", path), |at| path.split_at(at + 1))
}

fn is_below(path: &str, above: &str) -> bool {
    path == above || (above.ends_with('/') && path.starts_with(above))
}

fn apply(tar: Tar, step: &Step, there: &mut BTreeMap<String, bool>) -> Tar {
    let (folder, name) = match step {
        Step::Folder(f, n, _)
        | Step::File(f, n, ..)
        | Step::Symlink(f, n, ..)
        | Step::Special(f, n, ..)
        | Step::Hardlink(f, n, _) => (*f, *n),
    };
    let folders: Vec<&String> = there
        .iter()
        .filter(|(p, is_dir)| **is_dir && !p.is_empty())
        .map(|(p, _)| p)
        .collect();
    let Some(folder) = folders.get(usize::from(folder) % folders.len().max(1)) else {
        return tar;
    };
    let names = ["d0", "f1", "f2", "a.b", "x", "lib.so", "\u{e4}\u{f6}"];
    let path = format!("{folder}{}", names[usize::from(name)]);
    let forget =
        |there: &mut BTreeMap<String, bool>| there.retain(|p, _| *p != path && !is_below(p, &format!("{path}/")));
    match step {
        Step::Folder(_, _, a) => {
            if there.remove(&path).is_some() {
                forget(there);
            }
            there.insert(format!("{path}/"), true);
            add(tar, &format!("{path}/"), b'5', "", b"", a)
        }
        Step::Hardlink(_, _, target) => {
            let files: Vec<String> = there
                .iter()
                .filter(|(p, d)| !**d && **p != path)
                .map(|(p, _)| p.clone())
                .collect();
            let Some(target) = files.get(usize::from(*target) % files.len().max(1)) else {
                return tar;
            };
            if target.len() > 99 || is_below(target, &format!("{path}/")) {
                return tar;
            }
            forget(there);
            there.insert(path.clone(), false);
            add(tar, &path, b'1', target, b"", &Attributes::default())
        }
        Step::File(_, _, size, a) => {
            forget(there);
            there.insert(path.clone(), false);
            let content: Vec<u8> = (0..*size).map(|at| (at % 251) as u8).collect();
            add(tar, &path, b'0', "", &content, a)
        }
        Step::Symlink(_, _, len, a) => {
            forget(there);
            there.insert(path.clone(), false);
            let mut target = String::new();
            (0..*len).for_each(|at| write!(target, "{}", at % 10).unwrap());
            add(tar, &path, b'2', &target[..usize::from(*len).min(99)], b"", a)
        }
        Step::Special(_, _, kind, a) => {
            forget(there);
            there.insert(path.clone(), false);
            add(tar, &path, b"346"[usize::from(*kind)], "", b"", a)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn generated_layers_have_the_digests_that_composefs_rs_computes(
        layers in prop::collection::vec(layer(), 1..4),
        with_policy: bool,
        long: bool,
    ) {
        let tars = tars_of(&layers, with_policy);
        let boot = with_policy || long;
        if long {
            let wanted = theirs::<Sha512HashValue>(&tars, boot).unwrap();
            prop_assert_eq!(ours(&tars, Algorithm::Sha512, boot).unwrap(), wanted);
        } else {
            let wanted = theirs::<Sha256HashValue>(&tars, boot).unwrap();
            prop_assert_eq!(ours(&tars, Algorithm::Sha256, boot).unwrap(), wanted);
        }
    }
}
