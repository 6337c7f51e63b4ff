//! The reference implementation as an oracle: composefs-rs reads our repository, or makes one of its own.

use std::path::Path;
use std::sync::Arc;

use composefs::fsverity::{Algorithm, FsVerityHashValue, Sha256HashValue};
use composefs::repository::{Repository, RepositoryConfig};
use composefs_oci::{OciDigest, OciImage, PullOptions};

type Repo = Repository<Sha256HashValue>;

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// What the peer says of one image of a repository.
#[derive(Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of the image for containers.
    pub plain: Option<String>,
    /// Of the image for booting.
    pub boot: Option<String>,
}

/// The peer imports an OCI layout's tag into a repository of its own below `dir`.
pub fn import(layout: &str, dir: &Path) -> Digests {
    let config = RepositoryConfig::new(Algorithm::SHA256).set_insecure();
    let (repo, _) = Repo::init_path(rustix::fs::CWD, dir, config).unwrap();
    let repo = Arc::new(repo);
    let options = PullOptions {
        bootable: true,
        ..PullOptions::default()
    };
    let pulled = wait(composefs_oci::pull(&repo, layout, Some("os"), options)).unwrap();
    digests(&repo, &pulled.manifest_digest)
}

fn digests(repo: &Repo, manifest: &OciDigest) -> Digests {
    let image = OciImage::open(repo, manifest, None).unwrap();
    Digests {
        plain: image.image_ref_v1().map(FsVerityHashValue::to_hex),
        boot: image.boot_image_ref_v1().map(FsVerityHashValue::to_hex),
    }
}

/// Opens a repository as the peer does, which refuses what it does not understand.
pub fn open(path: &Path) -> Arc<Repo> {
    let mut repo = Repo::open_path(rustix::fs::CWD, path).unwrap();
    repo.set_insecure();
    Arc::new(repo)
}

/// The peer's own check of everything in a repository: objects, streams, links and images.
#[track_caller]
pub fn fsck(repo: &Repo) -> u64 {
    let result = wait(composefs_oci::oci_fsck(repo)).unwrap();
    assert!(result.is_ok(), "composefs-rs finds: {result}");
    result.images_checked()
}

/// The tagged images that the peer lists: manifest digests.
pub fn images(repo: &Repo) -> Vec<String> {
    let mut found: Vec<String> = composefs_oci::list_images(repo)
        .unwrap()
        .into_iter()
        .map(|i| i.manifest_digest.to_string())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// What is recorded in our repository for a manifest, and what the peer computes from the layers kept there.
pub fn recorded_and_computed(repo: &Repo, manifest: &str) -> (Digests, String) {
    let manifest: OciDigest = manifest.to_owned().try_into().unwrap();
    let recorded = digests(repo, &manifest);
    let image = OciImage::open(repo, &manifest, None).unwrap();
    let tree = composefs_oci::image::create_filesystem(repo, image.config_digest(), None, &Default::default()).unwrap();
    let computed = tree
        .compute_image_id(composefs::erofs::format::FormatVersion::V1)
        .to_hex();
    (recorded, computed)
}
