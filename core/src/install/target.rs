//! A root with its boot partition, mounted and empty, that a system can be installed to.

use std::path::PathBuf;

use super::table::Partition;
use crate::error::Result;
use crate::sys::filesystem::{MountPoint, Mounted};
use crate::sys::fs::{Fs, RealFs};
use crate::sys::loop_device::LoopDevice;

/// What is said of a root whose files cannot have it.
pub(super) const WITHOUT_VERITY: &str = "without fs-verity nothing proves at boot what is read from the root";

/// Where to install to.
#[derive(Debug)]
pub struct Prepared {
    /// SYSROOT.
    pub root: PathBuf,
    /// `$BOOT`.
    pub boot: PathBuf,
    /// The EFI system partition; the same as `boot` where there is no extended boot partition.
    pub esp: PathBuf,
    /// Value of `root=`.
    pub root_argument: String,
    /// What this root needs on the kernel command line beside `root=`.
    pub kernel_arguments: Vec<String>,
    /// Whether files on it can have fs-verity.
    pub has_verity: bool,
    /// What was made of a disk; empty for a file system that was there.
    pub partitions: Vec<Partition>,
    /// For the user, no failures.
    pub notes: Vec<String>,
    /// Of [`super::format::Plan::execute`]: what is taken away again.
    pub(super) held: Held,
}

/// Mounts and devices of this process. Dropped in this order.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Inner ones last.
    pub mounts: Vec<Mounted>,
    pub loops: Vec<LoopDevice>,
    pub place: Option<MountPoint>,
}

impl Prepared {
    /// A root that is mounted already and stays so.
    pub fn given(root: PathBuf, boot: PathBuf, esp: PathBuf, root_argument: String) -> Self {
        Self {
            root,
            boot,
            esp,
            root_argument,
            kernel_arguments: Vec::new(),
            has_verity: true,
            partitions: Vec::new(),
            notes: Vec::new(),
            held: Held::default(),
        }
    }

    /// Makes everything durable and takes away what was mounted for the installation. A failure here means that
    /// something may not be on the disk.
    pub fn finish(mut self) -> Result<()> {
        let mut paths = vec![self.root.as_path(), &self.boot, &self.esp];
        paths.dedup();
        for path in paths {
            RealFs.sync_all(path)?;
        }
        while let Some(mounted) = self.held.mounts.pop() {
            mounted.unmount()?;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The last one mounted goes first.
        while self.mounts.pop().is_some() {}
    }
}
