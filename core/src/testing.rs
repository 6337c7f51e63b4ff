//! A file system that records what is done to it and whose power can be cut.
//!
//! It is what makes promise 1 checkable: run an update once and count its operations, then once for each operation and
//! cut there; after each cut, old or new must boot. Not used by the program itself.
//!
//! The cut is the worst that a journalling file system may do: what was not synced is lost. Content written without
//! [`Fs::sync_file`] is empty afterwards; a name made, renamed or removed without [`Fs::sync_dir`] is as it was before
//! ([`Loss::Names`]) or stays ([`Loss::Content`]), because either can happen.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test tool: a failure here is a failed test"
)]

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::synced::Synced;
use crate::sys::fs::{Fs, RealFs};

/// Claims that something is durable, for tests of what comes after.
pub fn synced<T>(value: T) -> Synced<T> {
    Synced::after_publish(value)
}

/// What a cut does to names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Names stay, content that was not synced is lost: the empty file after a crash.
    Content,
    /// Names are as they were at the last sync of their folder, too.
    Names,
}

/// The real file system below one folder, recorded and cut.
pub struct CrashFs {
    base: PathBuf,
    stash: PathBuf,
    fat: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    log: Vec<String>,
    cut_at: Option<usize>,
    unsynced: HashMap<u64, PathBuf>,
    /// Files on FAT that were renamed and not synced since.
    renamed: HashMap<u64, PathBuf>,
    undo: Vec<Undo>,
    stashed: usize,
}

/// One change of names that is not durable yet.
struct Undo {
    folder: PathBuf,
    path: PathBuf,
    /// Where the content came from (a rename), so that it goes back there.
    from: Option<PathBuf>,
    /// What stood at `path` before.
    before: Option<PathBuf>,
    /// `path` and `from` were swapped.
    swapped: bool,
}

impl CrashFs {
    /// Records everything below `base`; `stash` is an empty folder beside it, on the same file system.
    pub fn new(base: &Path, stash: &Path) -> Self {
        Self {
            base: base.to_path_buf(),
            stash: stash.to_path_buf(),
            fat: None,
            state: Mutex::default(),
        }
    }

    /// What is below `folder` is FAT: syncing a folder makes the new name of a renamed file durable with a size of 0,
    /// unless the file was synced under that name before (Linux, fs/fat/namei_vfat.c: the inode fills the new slot
    /// when it is written).
    #[must_use]
    pub fn with_fat(self, folder: &Path) -> Self {
        let fat = Some(folder.to_path_buf());
        Self { fat, ..self }
    }

    /// Lets `operations` more operations succeed; every later one fails.
    #[must_use]
    pub fn cut_after(self, operations: usize) -> Self {
        self.lock().cut_at = Some(operations);
        self
    }

    /// What was done so far, one line an operation, paths relative to the base.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// Does to the folder what a power cut now would do.
    pub fn lose(&self, loss: Loss) {
        let mut state = self.lock();
        // While the folder was not synced either, its block is written once, with the size or with the old name.
        let pending = |path: &&PathBuf| state.undo.iter().any(|undo| undo.path == **path);
        let renamed = state.renamed.values().filter(|path| !pending(path));
        for path in state.unsynced.values().chain(renamed) {
            if let Ok(file) = std::fs::File::options().write(true).open(path) {
                file.set_len(0).unwrap();
            }
        }
        state.unsynced.clear();
        state.renamed.clear();
        let undo = std::mem::take(&mut state.undo);
        if loss == Loss::Names {
            undo.into_iter().rev().for_each(Undo::revert);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.base).unwrap_or(path).display().to_string()
    }

    /// Counts and records one operation; fails it when the power is off.
    fn operation(&self, name: &str, path: &Path) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if state.cut_at.is_some_and(|limit| state.log.len() >= limit) {
            return Err(Error::io(
                "reach after the power cut",
                path,
                std::io::Error::other("power cut"),
            ));
        }
        let line = format!("{name} {}", self.shown(path));
        state.log.push(line);
        Ok(state)
    }

    /// Moves what is at `path` aside, so that a cut can bring it back.
    fn put_aside(&self, state: &mut State, path: &Path) -> Option<PathBuf> {
        std::fs::symlink_metadata(path).ok()?;
        state.stashed += 1;
        let aside = self.stash.join(state.stashed.to_string());
        std::fs::rename(path, &aside).unwrap();
        Some(aside)
    }
}

impl Undo {
    fn new(path: &Path, from: Option<&Path>, before: Option<PathBuf>) -> Self {
        Self {
            folder: path.parent().unwrap().to_path_buf(),
            path: path.to_path_buf(),
            from: from.map(Path::to_path_buf),
            before,
            swapped: false,
        }
    }

    fn revert(self) {
        match self.from {
            Some(from) if self.swapped => drop(crate::sys::fs::exchange(&self.path, &from)),
            Some(from) => drop(std::fs::rename(&self.path, from)),
            None if self.path.is_dir() && !self.path.is_symlink() => drop(std::fs::remove_dir_all(&self.path)),
            None => drop(std::fs::remove_file(&self.path)),
        }
        if let Some(before) = self.before {
            drop(std::fs::rename(before, &self.path));
        }
    }
}

impl Fs for CrashFs {
    fn create_dir(&self, path: &Path, mode: u32) -> Result<()> {
        let mut state = self.operation("mkdir", path)?;
        let new = !path.exists();
        RealFs.create_dir(path, mode)?;
        if new {
            state.undo.push(Undo::new(path, None, None));
        }
        Ok(())
    }

    fn create(&self, path: &Path, mode: u32, content: &mut dyn Read) -> Result<u64> {
        let mut state = self.operation("create", path)?;
        let written = RealFs.create(path, mode, content)?;
        let inode = std::fs::symlink_metadata(path).unwrap().ino();
        state.unsynced.insert(inode, path.to_path_buf());
        state.undo.push(Undo::new(path, None, None));
        Ok(written)
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<()> {
        let mut state = self.operation("symlink", path)?;
        RealFs.symlink(target, path)?;
        state.undo.push(Undo::new(path, None, None));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.operation("rename", to)?;
        std::fs::symlink_metadata(from).map_err(|e| Error::io("rename", from, e))?;
        let before = self.put_aside(&mut state, to);
        RealFs.rename(from, to)?;
        for path in state.unsynced.values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() {
                    to.to_path_buf()
                } else {
                    to.join(rest)
                };
            }
        }
        let moved = std::fs::symlink_metadata(to).unwrap();
        if moved.is_file() && self.fat.as_ref().is_some_and(|fat| to.starts_with(fat)) {
            state.renamed.insert(moved.ino(), to.to_path_buf());
        }
        state.undo.push(Undo::new(to, Some(from), before));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        if std::fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let mut state = self.operation("remove", path)?;
        let before = self.put_aside(&mut state, path);
        state.undo.push(Undo::new(path, None, before));
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        if std::fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let mut state = self.operation("remove-all", path)?;
        let before = self.put_aside(&mut state, path);
        state.undo.push(Undo::new(path, None, before));
        Ok(())
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        let mut state = self.operation("sync", path)?;
        let inode = std::fs::metadata(path).map_err(|e| Error::io("sync", path, e))?.ino();
        state.unsynced.remove(&inode);
        state.renamed.remove(&inode);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.operation("sync-dir", path)?;
        std::fs::metadata(path).map_err(|e| Error::io("sync", path, e))?;
        state.undo.retain(|undo| undo.folder != path);
        Ok(())
    }

    fn sync_all(&self, path: &Path) -> Result<()> {
        let mut state = self.operation("sync-all", path)?;
        state.unsynced.clear();
        state.renamed.clear();
        state.undo.clear();
        Ok(())
    }

    fn exchange(&self, a: &Path, b: &Path) -> Result<()> {
        let mut state = self.operation("exchange", b)?;
        RealFs.exchange(a, b)?;
        for path in state.unsynced.values_mut() {
            if let Ok(rest) = path.strip_prefix(a) {
                *path = b.join(rest);
            } else if let Ok(rest) = path.strip_prefix(b) {
                *path = a.join(rest);
            }
        }
        let swapped = true;
        let undo = Undo::new(a, Some(b), None);
        state.undo.push(Undo { swapped, ..undo });
        Ok(())
    }
}

impl fmt::Debug for CrashFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CrashFs({})", self.base.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::replace;

    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (base, stash) = (folder.path().join("base"), folder.path().join("stash"));
        std::fs::create_dir(&base).unwrap();
        std::fs::create_dir(&stash).unwrap();
        (folder, base, stash)
    }

    #[test]
    fn replacing_a_file_leaves_the_old_or_the_new_content_wherever_it_is_cut() {
        for loss in [Loss::Content, Loss::Names] {
            for cut in 0..6 {
                let (_keep, base, stash) = folders();
                let path = base.join("file");
                std::fs::write(&path, "old").unwrap();
                let fs = CrashFs::new(&base, &stash).cut_after(cut);
                let done = replace(&fs, &path, 0o644, b"new").is_ok();
                fs.lose(loss);
                let found = std::fs::read_to_string(&path).unwrap();
                assert!(
                    found == "new" || found == "old" && !done,
                    "cut {cut} {loss:?}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn content_that_was_not_synced_is_lost() {
        let (_keep, base, stash) = folders();
        let fs = CrashFs::new(&base, &stash);
        fs.create(&base.join("a"), 0o644, &mut &b"content"[..]).unwrap();
        fs.rename(&base.join("a"), &base.join("b")).unwrap();
        fs.lose(Loss::Content);
        assert_eq!(std::fs::read(base.join("b")).unwrap(), b"");
        assert_eq!(fs.log(), ["create a", "rename b"]);
    }

    #[test]
    fn on_fat_a_renamed_file_is_empty_until_it_is_synced_under_its_new_name() {
        for (synced, expected) in [(false, &b""[..]), (true, b"content")] {
            let (_keep, base, stash) = folders();
            let fs = CrashFs::new(&base, &stash).with_fat(&base);
            fs.create(&base.join("a"), 0o644, &mut &b"content"[..]).unwrap();
            fs.sync_file(&base.join("a")).unwrap();
            fs.rename(&base.join("a"), &base.join("b")).unwrap();
            if synced {
                fs.sync_file(&base.join("b")).unwrap();
            }
            fs.sync_dir(&base).unwrap();
            fs.lose(Loss::Names);
            assert_eq!(std::fs::read(base.join("b")).unwrap(), expected);
        }
    }

    #[test]
    fn names_that_were_not_synced_go_back() {
        let (_keep, base, stash) = folders();
        std::fs::write(base.join("keep"), "kept").unwrap();
        let fs = CrashFs::new(&base, &stash);
        fs.remove_file(&base.join("keep")).unwrap();
        fs.create_dir(&base.join("d"), 0o755).unwrap();
        fs.lose(Loss::Names);
        assert_eq!(std::fs::read(base.join("keep")).unwrap(), b"kept");
        assert!(!base.join("d").exists());
    }
}
