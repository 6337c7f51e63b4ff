//! The kernel's log, for what must be seen on a console when there is no journal yet.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// The kernel cuts longer records.
const LONGEST: usize = 900;

/// Adds one line, an error, to the log at `path` (`/dev/kmsg`); a file there is appended to.
///
/// # Errors
/// What opening and writing give.
pub fn write(path: &Path, line: &str) -> Result<()> {
    let never_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = std::fs::File::options()
        .append(true)
        .custom_flags(never_wait)
        .open(path)
        .map_err(|e| Error::io("open", path, e))?;
    let end = (0..=LONGEST.min(line.len()))
        .rev()
        .find(|&at| line.is_char_boundary(at));
    // A record is what one call writes: facility 3 (daemons), level 3 (error: shown with `quiet`, too).
    let record = format!("<{}>{}\n", (3 << 3) | 3, &line[..end.unwrap_or_default()]);
    log.write_all(record.as_bytes())
        .map_err(|e| Error::io("write to", path, e))
}
