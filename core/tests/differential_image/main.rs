//! Our image digests equal what the crates composefs, composefs-oci and composefs-boot compute for the same layers.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod generated;
mod small;
#[path = "../tars/mod.rs"]
mod tars;

use std::collections::HashMap;
use std::sync::Arc;

use cfs_core::ids::Algorithm;
use cfs_core::image::{self, Versions, writer};
use cfs_core::monitor::Quiet;
use cfs_core::store::Store;
use cfs_core::store::import::{self, Compression};
use cfs_core::tree::{Merge, Tree};
use composefs::erofs::format::FormatVersion;
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::{Repository, RepositoryConfig};
use composefs_boot::BootOps;

use tars::{Header, Tar, diff_id, pax_record, source};

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
            let source = source(id, Compression::None, layer.clone());
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
