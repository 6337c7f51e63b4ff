//! From what an argument means to a tree.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::image::{Versions, reader, writer};
use cfs_core::manifest::Platform;
use cfs_core::monitor::{Event, Monitor, Quiet, Stage};
use cfs_core::pull::{self, Variant};
use cfs_core::reference::Reference;
use cfs_core::registry::{self, Registry};
use cfs_core::store::Store;
use cfs_core::sys::verity::Hasher;
use cfs_core::tree::{ScanOptions, Tree, scan};
use cfs_core::{Error, Result};

use crate::cmd::Context;

use super::objects::Objects;
use super::scratch;
use super::source::{Content, Source};

/// SELinux' file contexts are far smaller; an initrd with firmware may have hundreds of megabytes.
const OBJECT_LIMIT: u64 = 1 << 30;
const IMAGE_LIMIT: u64 = 8 << 30;
const BUFFER: usize = 128 << 10;

/// How a tree is made.
#[derive(Debug, Default)]
pub struct Options {
    /// Of objects that are hashed here.
    pub algorithm: Option<Algorithm>,
    /// For folders.
    pub scan: ScanOptions,
    /// Make the boot variant of it.
    pub boot: bool,
    /// Which image of an index; this machine's where unset.
    pub platform: Option<Platform>,
    /// Where objects are kept, and found again.
    pub objects: Option<Objects>,
}

impl Options {
    fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(Algorithm::Sha256)
    }
}

/// The tree that `source` stands for.
pub fn tree(context: &Context, source: &Source, options: &Options) -> Result<Tree> {
    match source {
        Source::Stdin => from_content(Content::of_stdin()?, options),
        Source::File(path) => from_content(Content::of_file(path)?, options),
        Source::Folder(path) => from_folder(path, options),
        Source::Digest(id) => from_store(context, id, options),
        Source::Reference(reference) => from_reference(context, reference, options),
    }
}

/// The tree that `source` stands for, with its image: as it is found where there is one and neither its boot variant
/// nor certain versions are asked for; else made of the tree.
pub fn image(
    context: &Context,
    source: &Source,
    options: &Options,
    versions: Option<Versions>,
) -> Result<(Vec<u8>, Tree)> {
    let as_found = versions.is_none() && !options.boot;
    let content = match source {
        Source::Stdin => Some(Content::of_stdin()?),
        Source::File(path) => Some(Content::of_file(path)?),
        Source::Digest(id) if as_found => Some(Content::Image(context.store()?.read_object(id, IMAGE_LIMIT)?)),
        _ => None,
    };
    let tree = match content {
        Some(Content::Image(bytes)) if as_found => return reader::read(&bytes).map(|tree| (bytes, tree)),
        Some(content) => from_content(content, options)?,
        None => tree(context, source, options)?,
    };
    Ok((writer::build(&tree, versions.unwrap_or_default())?, tree))
}

fn from_content(content: Content, options: &Options) -> Result<Tree> {
    let tree = match content {
        Content::Image(bytes) => reader::read(&bytes)?,
        Content::Dump(text) => text.parse()?,
    };
    boot_variant(tree, options, &|id| match &options.objects {
        Some(objects) => objects.read(id, OBJECT_LIMIT),
        None => Err(unreadable(id)),
    })
}

fn from_folder(path: &Path, options: &Options) -> Result<Tree> {
    // A container's layers have hard links, so the boot variant of the same tree must find them, too.
    let (tree, files) = scanned(path, options, options.boot)?;
    boot_variant(tree, options, &|id| read_file(&files, id))
}

/// Which file has the content of an object.
type Files = HashMap<ObjectId, PathBuf>;

/// The tree of a folder, and its files where `links` (with hard links found, too) says that contents are wanted.
fn scanned(path: &Path, options: &Options, links: bool) -> Result<(Tree, Files)> {
    let files: RefCell<Files> = RefCell::default();
    let mut hasher = Hasher::new(options.algorithm());
    let mut buffer = vec![0; BUFFER];
    let scanned = ScanOptions {
        hard_links: options.scan.hard_links || links,
        ..options.scan
    };
    let tree = scan(path, scanned, &mut |path, mut file| {
        let id = match &options.objects {
            Some(objects) => objects.put(path, &file, options.algorithm())?,
            None => hash(&mut hasher, &mut buffer, path, &mut file)?,
        };
        if links {
            files.borrow_mut().insert(id, path.to_path_buf());
        }
        Ok(id)
    })?;
    Ok((tree, files.into_inner()))
}

fn read_file(files: &Files, id: &ObjectId) -> Result<Vec<u8>> {
    let path = files.get(id).ok_or_else(|| unreadable(id))?;
    let content = cfs_core::sys::fs::read(path, OBJECT_LIMIT)?;
    content.ok_or_else(|| Error::Object {
        id: id.to_string(),
        why: format!("{} has gone", path.display()),
    })
}

/// Of an image that is in the repository.
fn from_store(context: &Context, id: &ObjectId, options: &Options) -> Result<Tree> {
    let store = context.store()?;
    let tree = reader::read(&store.read_object(id, IMAGE_LIMIT)?)?;
    boot_variant(tree, options, &|id| store.read_object(id, OBJECT_LIMIT))
}

/// Lets `see` look at the tree of a folder or a container image as its layers have it, with the contents of files that
/// `keeps` names, for the architecture that it says. `None` from `see`: with the contents of all files, once more.
///
/// # Errors
/// [`Error::Usage`] for other sources: a composefs image has lost what only its layers had.
pub fn look<T>(
    context: &Context,
    source: &Source,
    platform: Option<Platform>,
    keeps: fn(&[u8]) -> bool,
    mut see: impl FnMut(&Tree, &dyn Fn(&ObjectId) -> Result<Vec<u8>>, &str) -> Option<T>,
) -> Result<Option<T>> {
    match source {
        Source::Folder(path) => {
            let options = Options {
                scan: ScanOptions {
                    hard_links: true,
                    ..ScanOptions::default()
                },
                ..Options::default()
            };
            let (tree, files) = scanned(path, &options, true)?;
            Ok(see(&tree, &|id| read_file(&files, id), std::env::consts::ARCH))
        }
        Source::Reference(reference) => {
            let registry = Registry::open(reference, &context.registry())?;
            context.ui.event(Event::Stage(Stage::Resolve));
            let image = registry.image(&platform.unwrap_or_else(Platform::host), &context.ui)?;
            let mut at = |store: &Store| {
                let tree =
                    pull::import(store, &registry, image.clone(), context.threads(), &context.ui)?.tree(store)?;
                let read = |id: &ObjectId| store.read_object(id, OBJECT_LIMIT);
                Ok(see(&tree, &read, &image.config.architecture))
            };
            let complete = |store: &Store| image.config.diff_ids.iter().all(|layer| store.has_layer(layer));
            if let Some(store) = context.store().ok().filter(complete) {
                return at(&store);
            }
            let folder = scratch::folder(&context.environment.temporary)?;
            let fresh = |name: &str| Store::create(&folder.path().join(name), Algorithm::Sha256);
            match at(&fresh("hashes")?.only_hashing(keeps))? {
                // What is wanted may be a hard link to a file of any name.
                None => at(&fresh("objects")?),
                seen => Ok(seen),
            }
        }
        _ => Err(Error::Usage(
            "give a folder or a container image: a composefs image has no /boot any more".into(),
        )),
    }
}

/// Of a container image. Layers that are all in the repository are taken from there; else their files are hashed and
/// not kept, so that no sysroot is needed and an existing one is not changed.
fn from_reference(context: &Context, reference: &Reference, options: &Options) -> Result<Tree> {
    let registry = Registry::open(reference, &context.registry())?;
    context.ui.event(Event::Stage(Stage::Resolve));
    let image = registry.image(&options.platform.clone().unwrap_or_else(Platform::host), &context.ui)?;
    let variant = if options.boot {
        Variant::Boot
    } else {
        Variant::Container
    };
    let make = |store: &Store| {
        let imported = pull::import(store, &registry, image.clone(), context.threads(), &context.ui)?;
        let mut tree = imported.tree(store)?;
        pull::transform(store, &mut tree, variant)?;
        Ok(tree)
    };
    let complete = |store: &Store| {
        store.algorithm() == options.algorithm() && image.config.diff_ids.iter().all(|layer| store.has_layer(layer))
    };
    if let Some(store) = context.store().ok().filter(complete) {
        return make(&store);
    }
    let folder = scratch::folder(&context.environment.temporary)?;
    let fresh = |name: &str| Store::create(&folder.path().join(name), options.algorithm());
    match make(&fresh("hashes")?.only_hashing(is_policy)) {
        // A policy's file may be a hard link to one of any name: then all of them are needed.
        Err(Error::Object { .. }) if options.boot => make(&fresh("objects")?),
        made => made,
    }
}

/// The merged tree of a container image, of which no file is kept, before the work that is shown begins.
pub fn preview(context: &Context, registry: &Registry, image: &registry::Image) -> Result<Tree> {
    let folder = scratch::folder(&context.environment.temporary)?;
    let store = Store::create(&folder.path().join("preview"), Algorithm::Sha256)?.only_hashing(|_| false);
    pull::import(&store, registry, image.clone(), context.threads(), &Quiet)?.tree(&store)
}

/// What the boot variant reads from an image: SELinux' policy.
fn is_policy(path: &[u8]) -> bool {
    let path = path.strip_prefix(b".").unwrap_or(path);
    path.strip_prefix(b"/").unwrap_or(path).starts_with(b"etc/selinux/")
}

/// As a deployment of the same tree would have it.
fn boot_variant(mut tree: Tree, options: &Options, read: &dyn Fn(&ObjectId) -> Result<Vec<u8>>) -> Result<Tree> {
    if options.boot {
        tree.transform_for_oci()?;
        tree.transform_for_boot(read)?;
    }
    Ok(tree)
}

fn unreadable(id: &ObjectId) -> Error {
    Error::Object {
        id: id.to_string(),
        why: "the boot variant needs its content; say with --digest-store where it is".into(),
    }
}

fn hash(hasher: &mut Hasher, buffer: &mut [u8], path: &Path, file: &mut File) -> Result<ObjectId> {
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_known_however_the_archive_writes_paths() {
        for path in [
            "etc/selinux/config",
            "./etc/selinux/config",
            "/etc/selinux/x/contexts/files/file_contexts",
        ] {
            assert!(is_policy(path.as_bytes()), "{path}");
        }
        for path in ["usr/etc/selinux/config", "etc/selinuxx", "..etc/selinux/x"] {
            assert!(!is_policy(path.as_bytes()), "{path}");
        }
    }
}
