//! Checks every object, image, stream and link of a repository.
//!
//! Invariant: it changes nothing, looks at everything, and names each thing that is wrong; one that cannot be read
//! does not keep it from the others.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::layers::{Content, Item};
use crate::splitstream::ContentType;
use crate::store::gc::{IMAGE_LIMIT, ObjectsOf};
use crate::store::pending::OWN;
use crate::store::streams::object_of_link;
use crate::store::{Store, StoredManifest};
use crate::sys::objects::{NO_FILE, Verity};
use crate::sys::{fs, verity};

/// What to do about it.
const REPAIR: &str = "`cfs-update fsck --repair` fetches it again";

/// Threads that hash at most.
const MAX_THREADS: usize = 8;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: a path below the repository.
    pub path: String,
    /// What is wrong, and what to do.
    pub why: String,
    /// What would mend an object.
    pub mend: Option<Mend>,
}

/// What an object needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mend {
    /// Another content: what it has is proven to be wrong, or lost, or what is in its place is no file.
    Content(ObjectId),
    /// A folder for the objects whose names begin so: what is in its place is none.
    Folder(u8),
    /// The fs-verity that the repository demands; the content is right.
    Seal(ObjectId),
    /// No object: this layer's stream leads to one that is another file.
    Layer(DiffId),
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects.
    pub objects: u64,
    /// Images.
    pub images: u64,
    /// Streams.
    pub streams: u64,
    /// Findings.
    pub findings: u64,
}

/// Checks everything; `sink` gets findings one by one, as they are made.
///
/// # Errors
/// Only where the repository's folders themselves cannot be listed.
pub fn check(store: &Store, objects_of: ObjectsOf<'_>, sink: &mut dyn FnMut(Finding)) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut findings = 0;
    let mut report = |finding: Finding| {
        findings += 1;
        sink(finding);
    };
    summary.objects = objects(store, &mut report);
    summary.streams = streams(store, &mut report)?;
    summary.images = images(store, objects_of, &mut report)?;
    references(store, "streams/refs", &mut report)?;
    references(store, "images/refs", &mut report)?;
    for folder in store.obstacles() {
        let remedy = if folder == OWN {
            "move it away"
        } else {
            "`cfs-update gc` removes it"
        };
        report(finding(folder, format!("it is no folder; {remedy}")));
    }
    summary.findings = findings;
    Ok(summary)
}

/// Takes findings.
type Report<'a> = &'a mut dyn FnMut(Finding);

fn finding(path: impl Into<String>, why: impl Into<String>) -> Finding {
    Finding {
        path: path.into(),
        why: why.into(),
        mend: None,
    }
}

/// Hashes every object, several folders at a time.
fn objects(store: &Store, report: Report<'_>) -> u64 {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let (next, count) = (AtomicUsize::new(0), AtomicU64::new(0));
    let (sender, findings) = channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                while let Ok(folder) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                    count.fetch_add(object_folder(store, folder, &sender), Ordering::Relaxed);
                }
            });
        }
        drop(sender);
        findings.iter().for_each(&mut *report);
    });
    count.into_inner()
}

fn object_folder(store: &Store, folder: u8, sender: &Sender<Finding>) -> u64 {
    let mut count = 0;
    let listed = store.objects.list(folder, &mut |name, id| {
        count += 1;
        let wrong = match id {
            Some(id) => object(store, &id),
            None => Some((None, "its name is no digest of this repository; remove it".into())),
        };
        if let Some((mend, why)) = wrong {
            let _ = sender.send(Finding {
                path: format!("objects/{name}"),
                why,
                mend,
            });
        }
        Ok(())
    });
    if let Err(error) = listed {
        let _ = sender.send(Finding {
            mend: store
                .objects
                .is_folder_obstructed(folder)
                .then_some(Mend::Folder(folder)),
            ..finding(format!("objects/{folder:02x}"), error.to_string())
        });
    }
    count
}

/// What is wrong with an object, and what would mend it.
fn object(store: &Store, id: &ObjectId) -> Option<(Option<Mend>, String)> {
    let content = Some(Mend::Content(*id));
    if store.objects.is_obstructed(id) {
        return Some((content, format!("{NO_FILE}; {REPAIR}")));
    }
    let checked = store.open_object(id).and_then(|mut file| {
        let sealed = verity::measure(&file)?;
        if let Some(other) = sealed.filter(|sealed| sealed != id) {
            return Ok(Some((content, format!("its content is that of {other}; {REPAIR}"))));
        }
        // Sealed content is read as well: the kernel checks each block, and a lost one is an error.
        let (found, _) =
            verity::hash_reader(id.algorithm(), &mut file).map_err(|e| Error::io("read", store.object_path(id), e))?;
        if found != *id {
            return Ok(Some((content, format!("its content is that of {found}; {REPAIR}"))));
        }
        let unsealed = sealed.is_none() && store.objects.verity() == Verity::Required;
        let why = "it has no fs-verity, which this repository demands; `cfs-update fsck --repair` enables it";
        Ok(unsealed.then(|| (Some(Mend::Seal(*id)), why.into())))
    });
    checked.unwrap_or_else(|error| match is_lost(&error) {
        true => Some((content, format!("{error}; {REPAIR}"))),
        false => Some((None, error.to_string())),
    })
}

/// Whether the kernel, which checks what is sealed, or the disk cannot give the content any more.
pub(super) fn is_lost(error: &Error) -> bool {
    let errno = |source: &std::io::Error| source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    matches!(error, Error::Io { source, .. } if errno(source))
}

/// Names in `streams/` or `images/`, without the folder of references; `each` gets those that lead to an object.
fn linked(
    store: &Store,
    folder: &str,
    report: Report<'_>,
    each: &mut dyn FnMut(&str, ObjectId, Report<'_>),
) -> Result<u64> {
    let mut count = 0;
    for name in fs::names(&store.path.join(folder))? {
        if name == "refs" {
            continue;
        }
        count += 1;
        let shown = format!("{folder}/{}", name.to_string_lossy());
        let target = fs::read_link(&store.path.join(folder).join(&name)).ok().flatten();
        let object = target
            .as_deref()
            .and_then(object_of_link)
            .filter(|id| id.algorithm() == store.algorithm);
        match (object, name.to_str()) {
            (Some(id), Some(_)) if !store.has_object(&id) => {
                report(finding(
                    shown,
                    format!("it leads to object {id}, which is missing; {REPAIR}"),
                ));
            }
            (Some(id), Some(name)) => each(name, id, report),
            _ => report(finding(shown, "it is no link to an object; remove it")),
        }
    }
    Ok(count)
}

fn streams(store: &Store, report: Report<'_>) -> Result<u64> {
    linked(store, "streams", report, &mut |name, id, report| {
        let path = format!("streams/{name}");
        let reader = match store.open_stream(name, &id) {
            Ok(reader) => reader,
            Err(error) => return report(finding(path, error.to_string())),
        };
        for object in reader.object_refs().iter().filter(|id| !store.has_object(id)) {
            report(finding(
                path.clone(),
                format!("it needs object {object}, which is missing; {REPAIR}"),
            ));
        }
        for (key, object) in reader.names().iter().filter(|(_, id)| !store.has_object(id)) {
            let why = format!("it needs {key}, object {object}, which is missing; {REPAIR}");
            report(finding(path.clone(), why));
        }
        match content(store, name, &id, reader.content_type()) {
            Ok(None) => {}
            Ok(Some((layer, why))) => report(Finding {
                mend: Some(Mend::Layer(layer)),
                ..finding(path, why)
            }),
            Err(error) => report(finding(path, error.to_string())),
        }
    })
}

/// A layer of which a file is an object that is another, larger file: an earlier cfs-update took one that only begins
/// like it. Images that were made of the layer have that other file.
fn other_file(store: &Store, layer: DiffId) -> Result<Option<(DiffId, String)>> {
    let mut found = None;
    for entry in store.entries(&layer)? {
        let entry = entry?;
        let Item::Regular(Content::Object { id, size }) = entry.item else {
            continue;
        };
        if found.is_none() && store.is_other_file(&id, size) {
            let path = String::from_utf8_lossy(&entry.path);
            found = Some((
                layer,
                format!("its file {path} has {size} bytes, and object {id}, which it leads to, has others; {REPAIR}"),
            ));
        }
    }
    Ok(found)
}

/// Reads a stream of ours to its end; others are not ours to judge. What it has to be, its name says. Gives the layer
/// that has to be fetched again, and why.
fn content(store: &Store, name: &str, id: &ObjectId, found: ContentType) -> Result<Option<(DiffId, String)>> {
    let wrong = |why: &str| Error::Stream {
        name: name.into(),
        why: format!("{why}; {REPAIR}"),
    };
    let is = |expected: ContentType| match found == expected {
        true => Ok(()),
        false => Err(wrong("it is a stream of something else")),
    };
    if let Some(digest) = name.strip_prefix("oci-layer-") {
        is(ContentType::LAYER)?;
        let Ok(diff_id) = digest.parse::<DiffId>() else {
            return Ok(None);
        };
        if store.is_elsewhere(&diff_id, id) {
            return Err(wrong("it leads to another layer than images name"));
        }
        return other_file(store, diff_id);
    } else if let Some(digest) = name.strip_prefix("oci-config-") {
        is(ContentType::CONFIG)?;
        digest.parse().map_or(Ok(()), |id| store.config(&id).map(drop))?;
    } else if let Some(digest) = name.strip_prefix("oci-manifest-") {
        is(ContentType::MANIFEST)?;
        if let Ok(id) = digest.parse() {
            whole(store, name, store.manifest(&id)?)?;
        }
    }
    Ok(None)
}

/// A manifest has its config.
fn whole(store: &Store, name: &str, manifest: Option<StoredManifest>) -> Result<()> {
    let Some(manifest) = manifest else { return Ok(()) };
    match store.config(&manifest.config)? {
        Some(_) => Ok(()),
        None => Err(Error::Stream {
            name: name.into(),
            why: format!("its config {} is not here; {REPAIR}", manifest.config),
        }),
    }
}

fn images(store: &Store, objects_of: ObjectsOf<'_>, report: Report<'_>) -> Result<u64> {
    linked(store, "images", report, &mut |name, id, report| {
        let path = format!("images/{name}");
        if name != id.to_hex() {
            return report(finding(path, format!("it leads to {id}, another image; remove it")));
        }
        match store.read_object(&id, IMAGE_LIMIT).and_then(|image| objects_of(&image)) {
            Err(error) => report(finding(path, error.to_string())),
            Ok(objects) => {
                for object in objects.iter().filter(|id| !store.has_object(id)) {
                    let why = format!("it needs object {object}, which is missing; {REPAIR}");
                    report(finding(path.clone(), why));
                }
            }
        }
    })
}

/// Every reference leads to something.
fn references(store: &Store, folder: &str, report: Report<'_>) -> Result<()> {
    let objects = fs::resolved(&store.path).join("objects");
    let is_object = |path: &Path| fs::resolved(path).starts_with(&objects) && fs::open_file(path).is_ok();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for name in fs::names(&store.path.join(&folder))? {
            let shown = Path::new(&folder).join(&name);
            let path = store.path.join(&shown);
            let shown = shown.to_string_lossy().into_owned();
            if fs::is_dir(&path) {
                folders.push(shown);
            } else if matches!(fs::read_link(&path), Ok(None)) {
                // Another run has removed it since it was listed.
                continue;
            } else if fs::read_link(&path).is_err() {
                report(finding(shown, "it is no link; remove it"));
            } else if !is_object(&path) {
                report(finding(
                    shown,
                    "it leads to nothing in this repository; remove it or run `cfs-update fsck --repair`",
                ));
            }
        }
    }
    Ok(())
}
