//! Files first, entry last.
//!
//! Invariant: a file that an entry names is complete and durable under its name before the entry is; an entry appears
//! complete or not at all. Every step syncs what it made even where it was there already: an earlier run that was
//! killed may have left names that are not on the disk yet. A renamed file is synced under its new name, too: FAT has a
//! size of 0 there until then (see [`fs::replace`]).

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cfs_core::boot::{KernelDigest, KernelFiles, Mark};
use cfs_core::error::{Error, Result};
use cfs_core::sys::fs::{self, Fs};
use sha2::{Digest, Sha256};

use crate::counter::CountedName;

/// What the name of a file begins with until it is complete.
pub const TEMPORARY: &str = ".#";

/// No entry of ours is longer.
const ENTRY_LIMIT: u64 = 64 << 10;

/// The files of a kernel folder.
const NAMES: [&str; 2] = ["linux", "initrd"];

/// Makes the folders of `below` in `base`, one after another, each name durable in the one above.
pub fn folders(fs: &dyn Fs, base: &Path, below: &[&str]) -> Result<()> {
    let mut path = base.to_path_buf();
    for name in below {
        let above = path.clone();
        path.push(name);
        fs.create_dir(&path, 0o755)?;
        fs.sync_dir(&above)?;
    }
    Ok(())
}

/// Writes kernel and initrd into `folder`, which exists, as `linux` and `initrd`; durable when this returns.
///
/// # Errors
/// [`Error::Mismatch`] when the bytes are not those that `digest` was computed from. Whatever fails, no half file is
/// left under either name; a damaged one that was there may be gone.
pub fn kernel(fs: &dyn Fs, folder: &Path, kernel: &KernelFiles, digest: KernelDigest) -> Result<()> {
    let written = temporaries(fs, folder, kernel, digest);
    if let Err(e) = written {
        // A full $BOOT must not stay full of files that nobody can use; what fails here, cleaning up removes later.
        for name in NAMES {
            let _ = fs.remove_file(&temporary(folder, name));
        }
        return Err(e);
    }
    for name in NAMES {
        fs.rename(&temporary(folder, name), &folder.join(name))?;
    }
    sync_kernel(fs, folder)
}

/// Both files under their temporary names, synced and compared with the digest.
fn temporaries(fs: &dyn Fs, folder: &Path, kernel: &KernelFiles, digest: KernelDigest) -> Result<()> {
    let mut hasher = Sha256::new();
    for (name, mode, source) in [(NAMES[0], 0o644, &kernel.linux), (NAMES[1], 0o600, &kernel.initrd)] {
        let path = temporary(folder, name);
        fs.remove_file(&path)?;
        let mut content = source.open()?;
        let mut content = Tee {
            inner: &mut *content,
            hasher: &mut hasher,
        };
        fs.create(&path, mode, &mut content)?;
        fs.sync_file(&path)?;
    }
    let found = hex::encode(hasher.finalize());
    if found == digest.to_string() {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: format!("kernel and initrd {}, changed while they were copied", kernel.version),
        expected: digest.to_string(),
        found,
    })
}

fn temporary(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{TEMPORARY}{name}"))
}

/// Makes kernel files durable that are there already.
pub fn sync_kernel(fs: &dyn Fs, folder: &Path) -> Result<()> {
    for name in NAMES {
        fs.sync_file(&folder.join(name))?;
    }
    fs.sync_dir(folder)
}

/// Adds an entry; durable when this returns.
///
/// # Errors
/// [`Error::BootEntry`] when there is one of that name: entries are added, never replaced.
pub fn entry(fs: &dyn Fs, folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = folder.join(name);
    if fs::exists(&path) {
        return Err(Error::BootEntry {
            entry: name.into(),
            why: "it exists already; run the command again to make one with a higher generation".into(),
        });
    }
    let done = fs::replace(fs, &path, 0o644, content);
    if done.is_err() {
        let _ = fs.remove_file(&temporary(folder, name));
    }
    done
}

/// Gives an entry the name that its counter has after `mark`; durable when this returns.
///
/// Not by a rename: on FAT the file is empty under its new name until it is synced there, and this may be the only
/// entry that boots. A copy appears first, then the counted one goes; a power cut between leaves both, with the same
/// content.
pub fn mark(fs: &dyn Fs, folder: &Path, file: &str, mark: Mark) -> Result<String> {
    let counted = CountedName::parse(file);
    let marked = match mark {
        Mark::Good => counted.good(),
        Mark::Bad => counted.bad(),
    }
    .to_string();
    if marked == file {
        fs.sync_file(&folder.join(file))?;
    } else {
        let missing = || Error::BootEntry {
            entry: file.into(),
            why: "it has gone; run the command again".into(),
        };
        let content = fs::read(&folder.join(file), ENTRY_LIMIT)?.ok_or_else(missing)?;
        fs::replace(fs, &folder.join(&marked), 0o644, &content)?;
        fs.remove_file(&folder.join(file))?;
    }
    fs.sync_dir(folder)?;
    Ok(marked)
}

struct Tee<'a> {
    inner: &'a mut dyn Read,
    hasher: &'a mut Sha256,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
