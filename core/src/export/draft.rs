//! A file under a temporary name, until it is complete.
//!
//! Invariant: one run at a time writes it and takes its name, under a lock on the file itself, which is taken over
//! only while that file has the name. So what gets the lasting name is what this run wrote, whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs, RealFs};
use crate::sys::lock;

#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    /// Has the lock.
    _file: File,
    /// It has its lasting name.
    kept: bool,
}

impl Draft {
    /// An empty file at `path`, to be written by what is returned beside it. A leftover of an interrupted run goes.
    ///
    /// # Errors
    /// [`Error::Busy`] where another run writes it.
    pub(super) fn new(path: PathBuf) -> Result<(Self, File)> {
        let leftover = match std::fs::symlink_metadata(&path) {
            Ok(there) if there.is_file() => Some(take(fs::open_to_change(&path, false)?, &path)?),
            _ => None,
        };
        RealFs.remove_file(&path)?;
        let made = match fs::new_file(&path, 0o644) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => return Err(busy(&path)),
            made => take(made?, &path)?,
        };
        drop(leftover);
        let out = made.try_clone().map_err(|e| Error::io("write", &path, e))?;
        let draft = Self {
            path,
            _file: made,
            kept: false,
        };
        Ok((draft, out))
    }

    /// Brings it to the disk.
    pub(super) fn sync(&self) -> Result<()> {
        RealFs.sync_file(&self.path)
    }

    /// It is complete.
    pub(super) fn keep_as(&mut self, path: &Path) -> Result<()> {
        RealFs.rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename the name may be another run's.
        if !self.kept {
            let _ = RealFs.remove_file(&self.path);
        }
    }
}

/// Of what the file is to be.
fn busy(path: &Path) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Error::Busy {
        path: path.with_file_name(name.trim_start_matches(".#")),
        holder: "another export".into(),
    }
}

/// The lock on `file`, which was opened at `path` and may have been renamed or removed since.
fn take(file: File, path: &Path) -> Result<File> {
    let opened = file.metadata().map_err(|e| Error::io("look at", path, e))?;
    let same = |there: std::fs::Metadata| (there.dev(), there.ino()) == (opened.dev(), opened.ino());
    match lock::ours(&file) && std::fs::symlink_metadata(path).is_ok_and(same) {
        true => Ok(file),
        false => Err(busy(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_file_that_another_run_writes_is_left_to_it_and_what_a_killed_one_left_is_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, lasting) = (scratch.path().join(".#file"), scratch.path().join("file"));
        std::fs::write(&path, "what a killed run has left").unwrap();
        let (mut one, mut out) = Draft::new(path.clone()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"", "nothing of the leftover");
        out.write_all(b"one").unwrap();
        let busy = Draft::new(path.clone()).unwrap_err();
        assert_eq!(busy.kind(), Kind::Busy);
        assert!(
            busy.to_string().starts_with(&format!("{} ", lasting.display())),
            "{busy}"
        );
        out.write_all(b" whole").unwrap();
        one.keep_as(&lasting).unwrap();
        // Before the first one is dropped: the name is free.
        let (two, _) = Draft::new(path.clone()).unwrap();
        drop((one, out));
        assert!(path.exists(), "the second's is not the first's to remove");
        drop(two);
        assert!(!path.exists());
        assert_eq!(std::fs::read(&lasting).unwrap(), b"one whole");
    }

    #[test]
    fn the_lock_of_a_file_that_has_its_lasting_name_by_now_is_not_taken_for_that_of_the_next() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(".#file");
        let (mut one, out) = Draft::new(path.clone()).unwrap();
        let seen = fs::open_to_change(&path, false).unwrap();
        one.keep_as(&scratch.path().join("file")).unwrap();
        drop((one, out));
        let (_two, _) = Draft::new(path.clone()).unwrap();
        assert_eq!(take(seen, &path).unwrap_err().kind(), Kind::Busy);
        assert!(path.exists());
    }
}
