//! Making, changing and removing records, each in one step that a power cut cannot halve.
//!
//! Every step ends with one rename: of a folder that was built under a name starting with `.#` and synced as a whole
//! (a deployment, /var, a merged /etc), or of a file ([`fs::replace`]). A deployment is removed the other way round:
//! renamed to a leftover, synced, then taken apart.

use std::io;
use std::path::{Path, PathBuf};

use super::list::{NEXT_SEAL, SEAL, VAR_TARGET, origin_name};
use super::{Deployment, Deployments, Origin};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::signature::SignedImage;
use crate::sys::dir;
use crate::sys::fs::{self, Fs};

/// Beside `var`: it was filled from an image once, and never is again.
const POPULATED: &str = ".var-populated";

/// A deployment that is being built, under a temporary name.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    place: PathBuf,
    signed: SignedImage,
}

/// A new /etc of an existing deployment, or the shared /var, that is being built beside its place.
#[derive(Debug)]
pub struct EtcDraft {
    path: PathBuf,
    place: PathBuf,
}

impl Deployments {
    /// Begins a deployment of a signed image. Fill [`Draft::etc`] (made by the writer of /etc), then
    /// [`Draft::commit`].
    ///
    /// # Errors
    /// [`Error::Deployment`] where it exists already; see [`Deployments::exists`] and [`Deployments::relabel`].
    pub fn begin(&self, fs: &dyn Fs, signed: SignedImage) -> Result<Draft> {
        self.layout.check(&self.layout.deployments())?;
        let place = self.layout.record(signed.id());
        if fs::exists(&place) {
            return Err(Error::Deployment {
                id: signed.id().to_hex(),
                why: "it exists already".into(),
            });
        }
        let path = temporary(&place)?;
        discard(fs, &path)?;
        fs.create_dir(&path, 0o755)?;
        Ok(Draft { path, place, signed })
    }

    /// Changes what a record says beside reference and manifest, which stay those of the seal: pinned, generation.
    ///
    /// # Errors
    /// [`Error::Deployment`] where the record cannot be read.
    pub fn update(&self, fs: &dyn Fs, id: &DeploymentId, change: impl FnOnce(&mut Origin)) -> Result<Origin> {
        let record = self.load(id)?;
        let mut origin = record.origin().clone();
        change(&mut origin);
        origin.reference.clone_from(&record.origin().reference);
        origin.manifest = record.origin().manifest;
        let path = record.path().join(origin_name(id));
        if origin != *record.origin() {
            fs::replace(fs, &path, 0o644, origin.to_string().as_bytes())?;
        }
        Ok(origin)
    }

    /// Gives an existing deployment a new seal, with the reference and manifest of that seal: the same image under
    /// another name. At every instant origin and one of the two seals agree. A record that cannot be read is written
    /// anew around its /etc, which stays as it is.
    ///
    /// # Errors
    /// [`Error::Deployment`] where there is no such deployment, or none with an /etc.
    pub fn relabel(&self, fs: &dyn Fs, signed: SignedImage, mut origin: Origin) -> Result<Deployment> {
        let id = *signed.id();
        let path = self.layout.record(&id);
        if !self.has_etc(&id) {
            return Err(Error::Deployment {
                id: id.to_hex(),
                why: "its etc is missing; delete the deployment".into(),
            });
        }
        label(&mut origin, &signed);
        match self.load(&id) {
            Ok(record) if record.waiting_seal_counts() => {
                // A power cut came after the origin was changed: that seal may not be overwritten before it has its
                // place.
                fs.rename(&path.join(NEXT_SEAL), &path.join(SEAL))?;
                fs.sync_dir(&path)?;
            }
            Ok(_) => {}
            Err(_) => mend_var(fs, &path)?,
        }
        fs::replace(fs, &path.join(NEXT_SEAL), 0o644, signed.seal())?;
        let name = path.join(origin_name(&id));
        fs::replace(fs, &name, 0o644, origin.to_string().as_bytes())?;
        fs.rename(&path.join(NEXT_SEAL), &path.join(SEAL))?;
        fs.sync_dir(&path)?;
        Ok(Deployment { path, origin, signed })
    }

    /// Whether a deployment has an /etc, whatever else of its record is broken: something of the administrator's that
    /// must not get lost.
    pub fn has_etc(&self, id: &DeploymentId) -> bool {
        self.layout.check(&self.layout.etc(id)).is_ok()
    }

    /// Begins a new /etc of an existing deployment (the merge at shutdown).
    pub fn begin_etc(&self, fs: &dyn Fs, id: &DeploymentId) -> Result<EtcDraft> {
        let place = self.layout.etc(id);
        self.layout.check(&place)?;
        let path = temporary(&place)?;
        discard(fs, &path)?;
        Ok(EtcDraft { path, place })
    }

    /// Begins the shared /var, where it was never filled from an image; `None` where it was, or where it holds
    /// something already.
    pub fn begin_var(&self, fs: &dyn Fs) -> Result<Option<EtcDraft>> {
        let (os, place) = (self.layout.os(), self.layout.var());
        self.layout.check(&os)?;
        if fs::exists(&place) {
            self.layout.check(&place)?;
            if fs::exists(&os.join(POPULATED)) {
                return Ok(None);
            }
            if !fs::names(&place)?.is_empty() {
                self.mark_populated(fs)?;
                return Ok(None);
            }
        }
        let path = temporary(&place)?;
        discard(fs, &path)?;
        Ok(Some(EtcDraft { path, place }))
    }

    /// Puts a filled /var in its place.
    pub fn commit_var(&self, fs: &dyn Fs, draft: &EtcDraft) -> Result<()> {
        fs.sync_all(&draft.path)?;
        fs.rename(&draft.path, &draft.place)?;
        fs.sync_dir(&self.layout.os())?;
        self.mark_populated(fs)
    }

    fn mark_populated(&self, fs: &dyn Fs) -> Result<()> {
        fs::replace(fs, &self.layout.os().join(POPULATED), 0o644, b"")
    }

    /// Removes a deployment with its /etc; /var is shared and stays. A missing one is success.
    pub fn remove(&self, fs: &dyn Fs, id: &DeploymentId) -> Result<()> {
        self.layout.check(&self.layout.deployments())?;
        let place = self.layout.record(id);
        if !fs::exists(&place) {
            return Ok(());
        }
        let path = temporary(&place)?;
        discard(fs, &path)?;
        fs.rename(&place, &path)?;
        fs.sync_dir(fs::parent(&place)?)?;
        discard(fs, &path)
    }

    /// What an interrupted run left: paths whose name starts with `.#`. They mean nothing and may be removed with
    /// [`Deployments::clean`] while the lock is held.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let layout = &self.layout;
        let mut folders = vec![layout.deployments(), layout.os(), layout.state(), layout.keys()];
        folders.extend(self.list()?.iter().map(|found| layout.record(&found.id)));
        let mut leftovers = Vec::new();
        for folder in folders.iter().filter(|folder| layout.check(folder).is_ok()) {
            let names = fs::names(folder)?;
            let ours = names.iter().filter(|name| name.to_string_lossy().starts_with(".#"));
            leftovers.extend(ours.map(|name| folder.join(name)));
        }
        Ok(leftovers)
    }

    /// Removes what an interrupted run left; returns what it removed.
    pub fn clean(&self, fs: &dyn Fs) -> Result<Vec<PathBuf>> {
        self.layout.check(&self.layout.deployments())?;
        let leftovers = self.leftovers()?;
        for path in &leftovers {
            discard(fs, path)?;
        }
        Ok(leftovers)
    }
}

impl Draft {
    /// Where /etc is to be made; nothing is there yet.
    pub fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    /// What becomes the record, for what is noted beside /etc.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Completes the record, makes everything durable and gives it its name. Reference and manifest of `origin` become
    /// those of the seal.
    ///
    /// # Errors
    /// [`Error::Deployment`] where no /etc was made.
    pub fn commit(self, fs: &dyn Fs, mut origin: Origin) -> Result<Deployment> {
        let id = *self.signed.id();
        if !fs::is_dir(&self.etc()) {
            return Err(Error::Deployment {
                id: id.to_hex(),
                why: "its etc was not made".into(),
            });
        }
        label(&mut origin, &self.signed);
        let text = origin.to_string();
        fs.symlink(Path::new(VAR_TARGET), &self.path.join("var"))?;
        fs.create(&self.path.join(origin_name(&id)), 0o644, &mut text.as_bytes())?;
        fs.create(&self.path.join(SEAL), 0o644, &mut self.signed.seal())?;
        fs.sync_all(&self.path)?;
        fs.rename(&self.path, &self.place)?;
        fs.sync_dir(fs::parent(&self.place)?)?;
        Ok(Deployment {
            path: self.place,
            origin,
            signed: self.signed,
        })
    }

    /// Gives up: removes what was built.
    pub fn abandon(self, fs: &dyn Fs) -> Result<()> {
        discard(fs, &self.path)
    }
}

impl EtcDraft {
    /// Where the folder is to be made; nothing is there yet.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Swaps the new /etc with the old one in one step, then removes the old one.
    pub fn commit_etc(self, fs: &dyn Fs) -> Result<()> {
        fs.sync_all(&self.path)?;
        fs.exchange(&self.path, &self.place)?;
        fs.sync_dir(fs::parent(&self.place)?)?;
        discard(fs, &self.path)
    }

    /// Gives up: removes what was built.
    pub fn abandon(self, fs: &dyn Fs) -> Result<()> {
        discard(fs, &self.path)
    }
}

/// Makes the link to the shared /var again, where it is anything else.
fn mend_var(fs: &dyn Fs, path: &Path) -> Result<()> {
    let var = path.join("var");
    if fs::read_link(&var).ok().flatten().as_deref() == Some(Path::new(VAR_TARGET)) {
        return Ok(());
    }
    if fs::is_dir(&var) {
        // Whatever was put there is kept, under a name that means nothing to us.
        fs.rename(&var, &path.join("var.broken"))?;
    }
    fs.remove_file(&var)?;
    fs.symlink(Path::new(VAR_TARGET), &var)
}

fn label(origin: &mut Origin, signed: &SignedImage) {
    origin.reference.clone_from(&signed.facts().reference);
    origin.manifest = signed.facts().manifest;
}

/// The name that something is built under before it gets its own.
fn temporary(place: &Path) -> Result<PathBuf> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    Ok(fs::parent(place)?.join(format!(".#{name}")))
}

/// Removes a leftover of any kind. An unprivileged user's own folders may be read-only: they are opened up first.
fn discard(fs: &dyn Fs, path: &Path) -> Result<()> {
    if !fs::is_dir(path) {
        return fs.remove_file(path);
    }
    match fs.remove_dir_all(path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            dir::make_removable(path)?;
            fs.remove_dir_all(path)
        }
        done => done,
    }
}
