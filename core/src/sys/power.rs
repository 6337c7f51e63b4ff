//! Restarting the machine from a place where nothing else can: the initramfs, before there is a system to shut down;
//! and letting the kernel restart it where it cannot go on.

use std::io::Write;
use std::path::Path;

use rustix::system::RebootCommand;

use crate::error::{Error, Result};
use crate::sys::fs;

/// How many seconds the kernel waits after a panic before it restarts; 0, its own default: for ever.
const PANIC: &str = "kernel/panic";

/// From now on the kernel restarts this many seconds after a panic, unless it was told otherwise already. `sysctl`:
/// `/proc/sys`. Whether anything was changed.
///
/// # Errors
/// What reading and writing give.
pub fn restart_after_panic(sysctl: &Path, seconds: u32) -> Result<bool> {
    let path = sysctl.join(PANIC);
    if fs::read_text(&path, 64)?.is_none_or(|now| now.trim() != "0") {
        return Ok(false);
    }
    let written = fs::open_to_change(&path, false)?.write_all(seconds.to_string().as_bytes());
    written.map(|()| true).map_err(|e| Error::io("write to", &path, e))
}

/// Writes out what is not on the disks yet, then restarts. Returns only where the kernel refuses.
///
/// # Errors
/// What the kernel answers to anybody but root.
pub fn reboot() -> Result<()> {
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::Restart).map_err(|e| Error::io("restart", Path::new("the machine"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_that_would_wait_for_ever_is_told_to_restart_after_a_panic() {
        let sysctl = tempfile::tempdir().unwrap();
        let path = sysctl.path().join(PANIC);
        // As in a container that hides it.
        assert!(!restart_after_panic(sysctl.path(), 10).unwrap());
        std::fs::create_dir(sysctl.path().join("kernel")).unwrap();
        for (before, after) in [("0\n", "10"), ("1\n", "1\n"), ("-1\n", "-1\n")] {
            std::fs::write(&path, before).unwrap();
            assert_eq!(restart_after_panic(sysctl.path(), 10).unwrap(), before != after);
            assert!(std::fs::read_to_string(&path).unwrap().starts_with(after), "{before}");
        }
    }
}
