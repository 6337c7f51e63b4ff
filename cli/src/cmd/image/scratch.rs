//! A folder for the length of a command.
//!
//! Invariant: it goes with the command, also where SIGINT or SIGTERM ends it; only SIGKILL or a power cut leave it, and
//! then it is in a folder for temporary files, where the system removes it.

use std::path::Path;
use std::thread;

use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use tempfile::TempDir;

/// While another thread still writes into the folder, removing it may fail for a moment.
const TRIES: usize = 20;

/// Makes the folder; it is removed when the value is dropped.
pub fn folder(parent: &Path) -> Result<TempDir> {
    let fail = |e| Error::io("make a temporary folder in", parent, e);
    let folder = tempfile::Builder::new()
        .prefix("cfs-update-")
        .tempdir_in(parent)
        .map_err(fail)?;
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(fail)?;
    let path = folder.path().to_path_buf();
    // Waits as long as the process lives: a signal without a listener would be ignored from now on.
    thread::spawn(move || {
        for signal in signals.forever() {
            (0..TRIES).any(|_| RealFs.remove_dir_all(&path).is_ok());
            // Ends the process as the signal would have done.
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(folder)
}
