//! What was put and is not published yet, and the mark that survives a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;

use crate::error::{Error, Result};
use crate::ids::{DiffId, ManifestDigest, ObjectId};
use crate::store::Store;
use crate::store::index::INDEX;
use crate::store::names::{encode, name_problem};
use crate::store::part::PARTS;
use crate::store::streams::{layer_name, manifest_name};
use crate::sys::fs;

/// Our own folder in the repository.
pub(super) const OWN: &str = "cfs-update";
/// Says that there may be objects that no `syncfs` has made durable.
pub(super) const MARK: &str = "cfs-update/unsynced";
/// Layers that were imported and not published: a file for each, named by diff_id, with its stream's object.
pub(super) const LAYERS: &str = "cfs-update/layers";

/// Whether a folder in our own one is there, and no link to what is somebody else's. What is only a help (the index,
/// the parts) does without such a one: through a link nothing is read, written or removed.
pub(super) fn is_own(folder: &Path) -> bool {
    folder.ancestors().take(2).all(fs::is_dir)
}

/// The names in a folder of ours; none where it is not.
pub(super) fn own_names(folder: &Path) -> Result<Vec<OsString>> {
    match is_own(folder) {
        true => fs::names(folder),
        false => Ok(Vec::new()),
    }
}

/// Put, and to be made visible by the next [`Store::publish`].
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The mark is there and durable: objects may be written.
    begun: bool,
    /// Name below `streams/` to object.
    pub(super) streams: BTreeMap<String, ObjectId>,
    pub(super) images: BTreeSet<ObjectId>,
    tags: BTreeMap<String, ManifestDigest>,
    image_names: BTreeMap<String, ObjectId>,
}

impl Pending {
    /// Nothing was put.
    pub(super) fn is_empty(&self) -> bool {
        !self.begun && self.streams.is_empty() && self.images.is_empty() && self.has_no_names()
    }

    fn has_no_names(&self) -> bool {
        self.tags.is_empty() && self.image_names.is_empty()
    }

    /// Every object that is to be named.
    pub(super) fn roots(&self) -> (Vec<ObjectId>, Vec<ObjectId>) {
        let images = self.images.iter().chain(self.image_names.values()).copied().collect();
        (self.streams.values().copied().collect(), images)
    }

    /// Manifests that get a name.
    pub(super) fn tagged(&self) -> impl Iterator<Item = &ManifestDigest> {
        self.tags.values()
    }
}

impl Store {
    /// Called before the first object of a run is written: makes the mark durable.
    pub(super) fn begin(&self) -> Result<()> {
        let mut pending = self.pending();
        if pending.begun {
            return Ok(());
        }
        if let Some(why) = &self.read_only {
            return Err(Error::Repository {
                path: self.path.clone(),
                why: why.clone(),
            });
        }
        let mark = self.path.join(MARK);
        self.objects.remove_leftovers()?;
        self.fs.create_dir(&self.path.join(OWN), 0o700)?;
        if !fs::exists(&mark) {
            self.fs.create(&mark, 0o600, &mut std::io::empty())?;
            self.fs.sync_file(&mark)?;
            self.fs.sync_dir(&self.path.join(OWN))?;
            self.fs.sync_dir(&self.path)?;
        }
        let marked = fs::metadata(&mark)?;
        self.since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert((marked.ctime(), marked.ctime_nsec()));
        pending.begun = true;
        Ok(())
    }

    /// Remembers a complete layer, for this run and for the next one should this one be killed.
    pub(super) fn add_layer(&self, diff_id: &DiffId, stream: ObjectId) -> Result<()> {
        let folder = self.path.join(LAYERS);
        let note = folder.join(diff_id.to_hex());
        let mut pending = self.pending();
        pending.streams.insert(layer_name(diff_id), stream);
        self.fs.create_dir(&folder, 0o700)?;
        self.remove_own(&note)?;
        self.fs.create(&note, 0o600, &mut stream.to_hex().as_bytes())?;
        Ok(())
    }

    /// Takes over a layer that an interrupted run completed, if every object of it is here and right.
    ///
    /// The note, the stream and the objects were never synced, so all of them are read and hashed: that costs less
    /// than fetching them.
    pub(super) fn resume_layer(&self, diff_id: &DiffId) -> Result<bool> {
        let note = self.path.join(LAYERS).join(diff_id.to_hex());
        let Some(text) = fs::read(&note, 256)? else {
            return Ok(false);
        };
        let stream = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.parse::<ObjectId>().ok());
        let Some(stream) = stream.filter(|id| id.algorithm() == self.algorithm) else {
            return Ok(false);
        };
        if self.read_only.is_some() || !self.has_object(&stream) {
            return Ok(false);
        }
        let reader = self.open_stream(&layer_name(diff_id), &stream)?;
        let objects: BTreeSet<_> = reader.object_refs().iter().chain(reader.names().values()).collect();
        for id in objects {
            if !self.has_object(id) || !self.objects.is_intact(id)? {
                return Ok(false);
            }
        }
        self.begin()?;
        self.pending().streams.insert(layer_name(diff_id), stream);
        Ok(true)
    }

    /// Names a manifest `streams/refs/oci/NAME` at the next `publish`; such a name keeps all that the manifest needs.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that cannot be one; [`Error::Stream`] where the manifest is not here.
    pub fn tag(&self, name: &str, manifest: &ManifestDigest) -> Result<()> {
        name_problem(name)?;
        self.need_stream(&manifest_name(manifest))?;
        self.pending().tags.insert(name.into(), *manifest);
        Ok(())
    }

    /// Names an image `images/refs/cfs-update/NAME` at the next `publish`; such a name keeps the image and its objects.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that cannot be one; [`Error::Object`] where the image is not here; [`Error::Image`]
    /// where it is there as an object alone, which may lack what it needs.
    pub fn name_image(&self, name: &str, image: &ObjectId) -> Result<()> {
        name_problem(name)?;
        self.open_object(image)?;
        if !self.is_image(image) {
            return Err(Error::Image {
                image: image.to_hex(),
                why: "it is not among the images; fetch or deploy it again".into(),
            });
        }
        self.pending().image_names.insert(name.into(), *image);
        Ok(())
    }

    /// Makes all that was put since the last time durable (one `syncfs`), then visible under `streams/` and `images/`,
    /// then named. Nothing to publish costs nothing.
    ///
    /// # Errors
    /// What syncing and linking give. What was put stays pending then, and the next call tries again.
    pub fn publish(&self) -> Result<()> {
        if self.keeps.is_some() {
            return Err(Error::Repository {
                path: self.path.clone(),
                why: "its files were hashed and not kept, so nothing of it can be published".into(),
            });
        }
        let mut pending = self.pending();
        if pending.is_empty() {
            return Ok(());
        }
        if pending.begun {
            self.fs.sync_all(&self.path)?;
        }
        self.link_objects(&pending)?;
        self.link_names(&pending)?;
        if pending.begun {
            self.remove_own(&self.path.join(LAYERS))?;
            if !self.is_suspect() {
                self.remove_mark()?;
            }
        }
        *pending = Pending::default();
        self.forget_named_layers();
        Ok(())
    }

    /// Removes what is at a path in our own folder, file or folder; what a link leads to stays.
    pub(super) fn remove_own(&self, path: &Path) -> Result<()> {
        match fs::is_dir(path) {
            true => self.fs.remove_dir_all(path),
            false => self.fs.remove_file(path),
        }
    }

    /// What is in the place of a folder of ours and keeps it from being made, by name below the repository. A link in
    /// the place of what is only a help is somebody's wish to do without.
    pub(super) fn obstacles(&self) -> Vec<&'static str> {
        let folders = [(OWN, true), (LAYERS, true), (INDEX, false), (PARTS, false)].into_iter();
        let found = folders.filter(|(folder, needed)| {
            let meta = fs::metadata(&self.path.join(folder));
            meta.is_ok_and(|meta| !meta.is_dir() && (*needed || !meta.is_symlink()))
        });
        found.map(|(folder, _)| folder).collect()
    }

    /// Removes what is in the place of folders in our own one.
    pub(super) fn remove_obstacles(&self) -> Result<()> {
        let mut inside = self.obstacles();
        inside.retain(|folder| *folder != OWN);
        inside
            .iter()
            .try_for_each(|folder| self.fs.remove_file(&self.path.join(folder)))
    }

    /// Durably removes the mark: all objects that are here can be relied on.
    pub(super) fn remove_mark(&self) -> Result<()> {
        if fs::exists(&self.path.join(MARK)) {
            self.remove_own(&self.path.join(MARK))?;
            self.fs.sync_dir(&self.path.join(OWN))?;
        }
        Ok(())
    }

    fn link_objects(&self, pending: &Pending) -> Result<()> {
        let object = |id: &ObjectId| format!("../objects/{}", id.object_path());
        let streams = pending.streams.iter().map(|(name, id)| (name.clone(), object(id)));
        self.link_all("streams", streams.collect())?;
        let images = pending.images.iter().map(|id| (id.to_hex(), object(id)));
        self.link_all("images", images.collect())
    }

    fn link_names(&self, pending: &Pending) -> Result<()> {
        let tags = pending
            .tags
            .iter()
            .map(|(name, id)| (encode(name), format!("../../{}", manifest_name(id))));
        self.link_all("streams/refs/oci", tags.collect())?;
        let images = pending
            .image_names
            .iter()
            .map(|(name, id)| (encode(name), format!("../../{id}")));
        self.link_all("images/refs/cfs-update", images.collect())
    }

    /// Makes links in one folder and syncs it; links that are right already cost nothing.
    fn link_all(&self, folder: &str, links: Vec<(String, String)>) -> Result<()> {
        let folder = self.path.join(folder);
        let mut changed = false;
        for (name, target) in links {
            if !changed && !fs::is_dir(&folder) {
                self.make_folder(&folder)?;
            }
            changed |= self.link(&folder.join(name), &target)?;
        }
        if changed {
            self.fs.sync_dir(&folder)?;
        }
        Ok(())
    }

    /// Makes a folder below the repository, durably, with all that are missing above it.
    fn make_folder(&self, folder: &Path) -> Result<()> {
        let above = fs::parent(folder)?;
        if !fs::is_dir(above) {
            self.make_folder(above)?;
        }
        self.fs.create_dir(folder, 0o755)?;
        self.fs.sync_dir(above)
    }

    /// `true` where something was changed. An existing link is replaced in one step, through a temporary one in our own
    /// folder, where a leftover names nothing.
    fn link(&self, path: &Path, target: &str) -> Result<bool> {
        match fs::read_link(path)? {
            Some(here) if here == Path::new(target) => Ok(false),
            None => {
                self.fs.symlink(Path::new(target), path)?;
                Ok(true)
            }
            Some(_) => {
                let own = self.path.join(OWN);
                let temporary = own.join("link");
                self.fs.create_dir(&own, 0o700)?;
                self.remove_own(&temporary)?;
                self.fs.symlink(Path::new(target), &temporary)?;
                self.fs.rename(&temporary, path)?;
                Ok(true)
            }
        }
    }
}
