//! Restarting the machine from a place where nothing else can: the initramfs, before there is a system to shut down.

use std::path::Path;

use rustix::system::RebootCommand;

use crate::error::{Error, Result};

/// Writes out what is not on the disks yet, then restarts. Returns only where the kernel refuses.
///
/// # Errors
/// What the kernel answers to anybody but root.
pub fn reboot() -> Result<()> {
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::Restart).map_err(|e| Error::io("restart", Path::new("the machine"), e))
}
