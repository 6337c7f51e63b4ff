//! Where everything below SYSROOT/state is.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::signature::KEYS_DIR;
use crate::sys::fs::{self, Fs};

/// The folders of one SYSROOT.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Of this SYSROOT; nothing is read or made.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// SYSROOT.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `state/deploy`.
    pub fn deployments(&self) -> PathBuf {
        self.root.join("state/deploy")
    }

    /// `state/deploy/<id>`.
    pub fn record(&self, id: &DeploymentId) -> PathBuf {
        self.deployments().join(id.to_hex())
    }

    /// `state/deploy/<id>/etc`.
    pub fn etc(&self, id: &DeploymentId) -> PathBuf {
        self.record(id).join("etc")
    }

    /// `state/os/default`, the folder that holds `var`.
    pub fn os(&self) -> PathBuf {
        self.root.join("state/os/default")
    }

    /// `state/os/default/var`, shared by all deployments.
    pub fn var(&self) -> PathBuf {
        self.os().join("var")
    }

    /// `state/cfs-update`, 0700: what only this program reads.
    pub fn state(&self) -> PathBuf {
        self.root.join("state/cfs-update")
    }

    /// `state/cfs-update/keys`, 0700.
    pub fn keys(&self) -> PathBuf {
        self.state().join(KEYS_DIR)
    }

    /// `state/cfs-update/lock`.
    pub fn lock(&self) -> PathBuf {
        self.state().join("lock")
    }

    /// Makes the folders that are missing, durable when this returns. SYSROOT itself exists.
    ///
    /// # Errors
    /// [`Error::Io`]; also where one of them is a symbolic link: writing through it would leave SYSROOT.
    pub fn prepare(&self, fs: &dyn Fs) -> Result<()> {
        let folders = [
            ("state", 0o755),
            ("state/deploy", 0o755),
            ("state/os", 0o755),
            ("state/os/default", 0o755),
            ("state/cfs-update", 0o700),
        ];
        for (folder, mode) in folders {
            let path = self.root.join(folder);
            if fs::is_dir(&path) {
                continue;
            }
            if fs::exists(&path) {
                return Err(not_a_folder(&path));
            }
            fs.create_dir(&path, mode)?;
            fs.sync_dir(fs::parent(&path)?)?;
        }
        Ok(())
    }

    /// Fails unless every folder from SYSROOT down to `path` is a real one.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let below = path.strip_prefix(&self.root).map_err(|_| not_a_folder(path))?;
        let mut at = self.root.clone();
        for component in below.components() {
            at.push(component);
            if !fs::is_dir(&at) {
                return Err(not_a_folder(&at));
            }
        }
        Ok(())
    }
}

fn not_a_folder(path: &Path) -> Error {
    Error::io(
        "use the folder",
        path,
        std::io::Error::new(
            std::io::ErrorKind::NotADirectory,
            "it is no folder of its own (a link or a file); move it away",
        ),
    )
}
