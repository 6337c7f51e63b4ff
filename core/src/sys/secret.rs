//! Files that only their owner may read, and files that only their owner may write.
//!
//! Invariant: owner, mode and kind are those of the opened file, not of a name that could be swapped in between.

use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Error, Result};

/// The text of a secret file; `None` where there is none. Fails on more than `limit` bytes.
///
/// # Errors
/// [`Error::Trust`] where it is a link or no regular file, belongs to neither this user nor root nor the owner of its
/// folder, where group or others have any permission on it, or where everybody may write in its folder.
pub fn read(path: &Path, limit: u64) -> Result<Option<String>> {
    let fail = |e| Error::io("read", path, e);
    let refuse = |why: &str| Error::Trust {
        what: format!("secret file {}", path.display()),
        why: why.into(),
    };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = std::fs::File::options()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(refuse("it is a symbolic link; put the file itself there"));
        }
        Err(e) => return Err(fail(e)),
    };
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(refuse("it is not a regular file"));
    }
    let me = rustix::process::geteuid().as_raw();
    // Who owns the folder could put any file of his own there anyway.
    let folder = guarded(crate::sys::fs::parent(path)?)?;
    if ![me, 0, folder.uid()].contains(&meta.uid()) {
        return Err(refuse(&format!(
            "it belongs to user {}; chown it to user {me}",
            meta.uid()
        )));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(refuse(&format!(
            "its mode is {:04o}: others may have read it; chmod it to 0600, better replace it",
            meta.mode() & 0o7777
        )));
    }
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > limit {
        return Err(refuse(&format!("larger than {limit} bytes")));
    }
    Ok(Some(text))
}

/// Fails where everybody may change a file, or what is in a folder: nothing in it can be trusted then.
///
/// # Errors
/// [`Error::Trust`]; [`Error::Io`] where it cannot be looked at.
pub fn guarded(path: &Path) -> Result<std::fs::Metadata> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("look at", path, e))?;
    if meta.mode() & 0o002 != 0 {
        return Err(Error::Trust {
            what: path.display().to_string(),
            why: format!(
                "its mode is {:04o}: everybody may have changed what is trusted; look through it, then chmod o-w",
                meta.mode() & 0o7777
            ),
        });
    }
    Ok(meta)
}
