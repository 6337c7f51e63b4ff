//! What the tests on the whole library share: a sysroot whose boot loader is ours, and no host around it.

use std::path::Path;
use std::sync::Arc;

use cfs_bootloader::Kind;
use cfs_bootloader::esp::{self, Place};
use cfs_core::ids::{Algorithm, DeploymentId};
use cfs_core::manifest::Platform;
use cfs_core::registry;
use cfs_core::sys::fs::Fs;
use cfs_core::sysroot::Options;

/// With `$BOOT` in its folder `boot`, of a machine that runs `booted`.
pub fn options(root: &Path, fs: Arc<dyn Fs>, booted: Option<DeploymentId>) -> Options {
    let boot = esp::locate(Place::Given(&root.join("boot"))).unwrap();
    Options {
        root: root.into(),
        bootloader: cfs_bootloader::open(Kind::default(), boot, fs.clone()),
        fs,
        algorithm: Algorithm::Sha256,
        threads: 1,
        keep: 2,
        tries: Some(3),
        platform: Platform::host(),
        booted,
        started: None,
        boot_id: None,
        root_argument: Some("LABEL=root".into()),
        boot_named: false,
        kernel_arguments: Vec::new(),
        trust: Vec::new(),
        registry: registry::Options::default(),
    }
}
