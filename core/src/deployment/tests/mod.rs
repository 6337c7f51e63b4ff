//! Records on disk: made, read, changed and removed, with the power cut at every step.

mod cuts;
mod etc_and_var;
mod notes;
mod records;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::list::{NEXT_SEAL, SEAL};
use super::*;
use crate::error::Result;
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
