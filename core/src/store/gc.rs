//! Removes what nothing needs.
//!
//! Kept is, with all that it names, what `streams/refs` and `images/refs` lead to, whoever made them (bootc and cfsctl
//! name their images there), what the caller names, and what this process has put and not published. A name that leads
//! to something that cannot be read stops the collection before anything is removed: what it kept is not known then.
//!
//! Invariant: links go before what they lead to (streams, then the images that configs name, then objects), each group
//! durably, so that a power cut leaves no name without its object, and no config without its image. Nobody else has
//! the repository open meanwhile (exclusive lock).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::store::names::encode;
use crate::store::part;
use crate::store::pending::{LAYERS, MARK, OWN, Pending};
use crate::store::streams::{layer_name, manifest_name, object_of_link};
use crate::store::{Store, lock_shared, wait_for_lock};
use crate::sys::fs;

/// Gives the objects that an image refers to; `image::reader` does it.
pub type ObjectsOf<'a> = &'a dyn Fn(&[u8]) -> Result<Vec<ObjectId>>;

/// The largest image that is read, in bytes.
pub(super) const IMAGE_LIMIT: u64 = 1 << 32;

/// What is kept beside what `streams/refs` and `images/refs` name, and what is not kept although it is named there.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// Images, with all that they need.
    pub images: Vec<ObjectId>,
    /// Streams by name (`oci-manifest-sha256:…`), with all that they need.
    pub streams: Vec<String>,
    /// Tags that are about to be removed, and keep nothing ([`Store::untag`]).
    pub without_tags: Vec<String>,
    /// Our image names that are about to be removed, and keep nothing ([`Store::unname_image`]).
    pub without_image_names: Vec<String>,
}

/// What a collection removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Objects and their sizes in bytes.
    pub objects: Vec<(ObjectId, u64)>,
    /// Names below `images/`.
    pub images: Vec<String>,
    /// Names below `streams/`.
    pub streams: Vec<String>,
    /// What interrupted downloads left and nobody went on with, by name below `cfs-update/parts/`, and its size in
    /// bytes.
    pub parts: Vec<(String, u64)>,
}

impl Plan {
    /// Bytes that the objects hold, and the parts of downloads.
    pub fn bytes(&self) -> u64 {
        let objects = self.objects.iter().map(|(_, size)| size);
        objects.chain(self.parts.iter().map(|(_, size)| size)).sum()
    }

    /// Nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.images.is_empty() && self.streams.is_empty() && self.parts.is_empty()
    }
}

/// Finds out what would be removed, and removes nothing.
///
/// # Errors
/// [`Error::Stream`], [`Error::Object`] or [`Error::Image`] for something named that cannot be read.
pub fn plan(store: &Store, roots: &Roots, objects_of: ObjectsOf<'_>) -> Result<Plan> {
    let mut marks = Marks {
        store,
        objects_of,
        live: HashSet::new(),
        links: store.links("streams")?,
        images: store.links("images")?.into_values().collect(),
        seen: BTreeSet::new(),
    };
    marks.mark_named(roots)?;
    marks.mark_pending()?;
    marks.sweep()
}

/// Removes what [`plan`] finds, durably, and returns it.
///
/// # Errors
/// As [`plan`], with nothing removed; [`Error::Busy`] while another tool has the repository open; what removing gives.
pub fn run(store: &Store, roots: &Roots, objects_of: ObjectsOf<'_>) -> Result<Plan> {
    if let Some(why) = store.read_only() {
        return Err(Error::Repository {
            path: store.path.clone(),
            why: why.into(),
        });
    }
    lock_exclusive(store)?;
    let result = plan(store, roots, objects_of).and_then(|plan| remove(store, &plan).map(|()| plan));
    lock_shared(&store.lock, &store.path)?;
    result
}

/// Gives up what this process has put and not published, and removes, durably, what nothing refers to of all that it
/// has written, or that an interrupted run had: for a disk that became full. What was collectable before stays.
///
/// # Errors
/// As [`run`].
pub fn take_back(store: &Store, roots: &Roots, objects_of: ObjectsOf<'_>) -> Result<Plan> {
    let since = *store.since.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(since) = since else {
        return Ok(Plan::default());
    };
    *store.pending() = Pending::default();
    lock_exclusive(store)?;
    let result = plan(store, roots, objects_of).and_then(|mut plan| {
        let written = |id: &ObjectId| {
            let meta = fs::metadata(&store.object_path(id));
            meta.is_ok_and(|meta| (meta.ctime(), meta.ctime_nsec()) >= since)
        };
        plan.objects.retain(|(id, _)| written(id));
        plan.parts = store.parts_older_than(Duration::ZERO)?;
        let gone: HashSet<_> = plan.objects.iter().map(|(id, _)| *id).collect();
        for (folder, names) in [("images", &mut plan.images), ("streams", &mut plan.streams)] {
            let links = store.links(folder)?;
            names.retain(|name| links.get(name).is_some_and(|id| gone.contains(id)));
        }
        remove(store, &plan).map(|()| plan)
    });
    lock_shared(&store.lock, &store.path)?;
    result
}

fn remove(store: &Store, plan: &Plan) -> Result<()> {
    for (folder, names) in [("streams", &plan.streams), ("images", &plan.images)] {
        let folder = store.path.join(folder);
        for name in names {
            store.fs.remove_file(&folder.join(name))?;
        }
        if !names.is_empty() {
            store.fs.sync_dir(&folder)?;
        }
    }
    for (id, _) in &plan.objects {
        store.objects.remove(id)?;
    }
    // Who could be about to put something there is excluded.
    store.objects.remove_empty_folders();
    store.remove_named_parts(&plan.parts)?;
    store.objects.remove_leftovers()?;
    store.trim_index()?;
    store.remove_obstacles()?;
    if store.pending().is_empty() {
        // What an interrupted run left is gone, and all that is left was synced before it was named.
        if fs::is_dir(&store.path.join(OWN)) {
            store.remove_own(&store.path.join(LAYERS))?;
            store.remove_mark()?;
        }
        store.objects.trust();
    }
    Ok(())
}

/// Excludes every other user of the repository, as composefs-rs does.
fn lock_exclusive(store: &Store) -> Result<()> {
    if wait_for_lock(&store.lock, &store.path, FlockOperation::NonBlockingLockExclusive)? {
        return Ok(());
    }
    // Trying for more may have cost what we had.
    lock_shared(&store.lock, &store.path)?;
    Err(Error::Busy {
        path: store.path.clone(),
        holder: "another composefs tool or run".into(),
    })
}

/// Finds out what lives.
struct Marks<'a> {
    store: &'a Store,
    objects_of: ObjectsOf<'a>,
    live: HashSet<ObjectId>,
    /// Every stream's object by its name.
    links: BTreeMap<String, ObjectId>,
    /// Every image.
    images: BTreeSet<ObjectId>,
    /// Streams and images that were followed.
    seen: BTreeSet<ObjectId>,
}

impl Marks<'_> {
    fn mark_named(&mut self, roots: &Roots) -> Result<()> {
        let gone = |folder: &str, names: &[String]| -> HashSet<String> {
            names.iter().map(|name| format!("{folder}/{}", encode(name))).collect()
        };
        let gone_tags = gone("oci", &roots.without_tags);
        let gone_images = gone("cfs-update", &roots.without_image_names);
        for (at, name) in self.store.references("streams/refs")? {
            if !gone_tags.contains(&at) {
                self.mark_stream(&name)?;
            }
        }
        for name in &roots.streams {
            self.mark_stream(name)?;
        }
        for (at, name) in self.store.references("images/refs")? {
            if !gone_images.contains(&at) {
                let image = name.parse::<ObjectId>().map_err(|_| Error::Image {
                    image: format!("refs/{at}"),
                    why: format!("it leads to {name}, which is no image; remove it or run `fsck`"),
                })?;
                self.mark_image(&image)?;
            }
        }
        roots.images.iter().try_for_each(|image| self.mark_image(image))
    }

    /// What this process has put and not published.
    fn mark_pending(&mut self) -> Result<()> {
        let (streams, images, tagged) = {
            let pending = self.store.pending();
            let tagged: Vec<_> = pending.tagged().map(manifest_name).collect();
            let (streams, images) = pending.roots();
            (streams, images, tagged)
        };
        for id in streams {
            self.mark_stream_object("put by this run", &id)?;
        }
        for name in tagged {
            if let Some(id) = self.store.stream(&name)? {
                self.mark_stream_object(&name, &id)?;
            }
        }
        images.iter().try_for_each(|image| self.mark_image(image))
    }

    fn mark_stream(&mut self, name: &str) -> Result<()> {
        let id = *self.links.get(name).ok_or_else(|| Error::Stream {
            name: name.into(),
            why: "a name leads to it and it is missing; remove that name or fetch the image again".into(),
        })?;
        self.mark_stream_object(name, &id)
    }

    fn mark_stream_object(&mut self, name: &str, id: &ObjectId) -> Result<()> {
        if !self.seen.insert(*id) {
            return Ok(());
        }
        self.live.insert(*id);
        let reader = self.store.open_stream(name, id)?;
        self.live.extend(reader.object_refs());
        for (name, id) in reader.names().clone() {
            self.mark_reference(&name, &id)?;
            // Whoever reads an image asks for its config and layers by name, and the stream of that name may be
            // another one since: with further images of the config, say.
            let of_layer = || name.parse::<DiffId>().ok().map(|diff_id| layer_name(&diff_id));
            let of_config = name
                .strip_prefix("config:")
                .map(|digest| format!("oci-config-{digest}"));
            if let Some(linked) = of_config.or_else(of_layer)
                && let Some(id) = self.links.get(&linked).copied()
            {
                self.mark_reference(&linked, &id)?;
            }
        }
        Ok(())
    }

    /// What a stream names: an image, another stream, whether it still has a name of its own or not, or bytes.
    fn mark_reference(&mut self, name: &str, id: &ObjectId) -> Result<()> {
        self.live.insert(*id);
        if self.images.contains(id) {
            return self.mark_image(id);
        }
        let linked = self.links.values().any(|stream| stream == id);
        match linked || self.store.open_stream(name, id).is_ok() {
            true => self.mark_stream_object(name, id),
            false => Ok(()),
        }
    }

    fn mark_image(&mut self, id: &ObjectId) -> Result<()> {
        if self.seen.insert(*id) {
            let image = self.store.read_object(id, IMAGE_LIMIT)?;
            self.live.insert(*id);
            self.live.extend((self.objects_of)(&image)?);
        }
        Ok(())
    }

    fn sweep(self) -> Result<Plan> {
        let mut plan = Plan::default();
        let dead = |folder: &str| -> Result<Vec<String>> {
            let links = self.store.links(folder)?;
            Ok(links
                .into_iter()
                .filter(|(_, id)| !self.live.contains(id))
                .map(|(name, _)| name)
                .collect())
        };
        plan.streams = dead("streams")?;
        plan.images = dead("images")?;
        plan.parts = self.store.parts_older_than(part::AGE)?;
        let newest = self.store.written_since()?;
        for folder in 0..=255 {
            self.store.objects.list(folder, &mut |_, id| {
                if let Some(id) = id.filter(|id| !self.live.contains(id)) {
                    let meta = fs::metadata(&self.store.object_path(&id))?;
                    if newest.is_none_or(|since| (meta.ctime(), meta.ctime_nsec()) < since) {
                        plan.objects.push((id, meta.size()));
                    }
                }
                Ok(())
            })?;
        }
        Ok(plan)
    }
}

impl Store {
    /// When this process began to write objects, by the file system's clock: objects that are as new are kept, because
    /// a stream or image may be about to refer to them.
    fn written_since(&self) -> Result<Option<(i64, i64)>> {
        if self.pending().is_empty() {
            return Ok(None);
        }
        let mark = self.path.join(MARK);
        if !fs::exists(&mark) {
            return Ok(None);
        }
        fs::metadata(&mark).map(|meta| Some((meta.ctime(), meta.ctime_nsec())))
    }

    /// The links of `streams/` or `images/` that lead to an object; other things there are for `fsck`.
    pub(super) fn links(&self, folder: &str) -> Result<BTreeMap<String, ObjectId>> {
        let folder = self.path.join(folder);
        let mut links = BTreeMap::new();
        for name in fs::names(&folder)? {
            let target = fs::read_link(&folder.join(&name)).ok().flatten();
            if let (Some(name), Some(id)) = (name.to_str(), target.as_deref().and_then(object_of_link)) {
                links.insert(name.to_owned(), id);
            }
        }
        Ok(links)
    }

    /// All links below a folder of references: where each is, and the last component of what it leads to.
    fn references(&self, folder: &str) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(below) = folders.pop() {
            let path = self.path.join(folder).join(&below);
            for name in fs::names(&path)? {
                let at = Path::new(&below).join(&name);
                let shown = String::from_utf8_lossy(at.as_os_str().as_bytes()).into_owned();
                if fs::is_dir(&path.join(&name)) {
                    folders.push(shown);
                } else if let Some(target) = fs::read_link(&path.join(&name))? {
                    let last = target.file_name().map(|last| last.to_string_lossy().into_owned());
                    found.push((shown, last.unwrap_or_default()));
                }
            }
        }
        Ok(found)
    }
}
