//! Application images that an OS version needs: they are in the store before it is staged.
//!
//! `usr/lib/cfs-update/bound-images.d` and `usr/lib/bootc/bound-images.d` of the image hold links to quadlet files
//! (podman-systemd.unit(5)): `.image` with `Image=` in `[Image]`, `.container` with `Image=` in `[Container]`, each with
//! its drop-ins (`quadlet.rs` puts them together).
//!
//! Invariant: a deployment is recorded only when all of its bound images are in the store; each is kept by a name of
//! that deployment (`cfs-update/bound/<id, 12 digits>/<reference>`), which goes with it and not before.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::ids::{DeploymentId, ManifestDigest};
use crate::manifest::Platform;
use crate::monitor::{Event, Monitor, Stage};
use crate::pull::{self, Imported, Variant};
use crate::reference::Reference;
use crate::registry::{self, Registry};
use crate::store::{IMAGE_V1, Store};
use crate::tree::Tree;

mod quadlet;

use quadlet::{Quadlets, refused};

/// Where images keep the links. For files of the same name the later folder's counts.
pub const FOLDERS: [&str; 2] = ["usr/lib/bootc/bound-images.d", "usr/lib/cfs-update/bound-images.d"];

/// How names of bound images begin.
const PREFIX: &str = "cfs-update/bound/";
/// Characters of the longest owner, a deployment's.
const OWNER: usize = 12;

/// Images by reference, all of them in the store: manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    images: BTreeMap<String, ManifestDigest>,
}

/// The section of a quadlet file that names its image.
fn section(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.')?.1 {
        "image" => Some("Image"),
        "container" => Some("Container"),
        _ => None,
    }
}

/// The images that an image binds, by the file that says so.
///
/// # Errors
/// [`crate::Error::Settings`] for a file that is missing, of another kind, or names no image, or one by a name that is too long
/// to keep it by: it is never left out.
pub fn look(store: &Store, tree: &Tree) -> Result<BTreeMap<String, Reference>> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        let children = tree.resolve(folder).into_iter().flat_map(|inode| inode.children());
        for child in children {
            let name = String::from_utf8_lossy(child.name).into_owned();
            files.insert(name.clone(), format!("{folder}/{name}"));
        }
    }
    let quadlets = Quadlets::of(tree);
    let reference = |(name, path): (String, String)| Ok((path.clone(), reference_of(store, &quadlets, &name, &path)?));
    files.into_iter().map(reference).collect()
}

/// What a quadlet file names, or what the one that it names instead does; with what its drop-ins say.
fn reference_of(store: &Store, quadlets: &Quadlets<'_>, name: &str, path: &str) -> Result<Reference> {
    let wanted = section(name).ok_or_else(|| refused(path, "is no .image or .container file"))?;
    let unit = quadlets.read(store, path)?;
    let none = || refused(path, &format!("has no Image= in [{wanted}]"));
    let (from, image) = unit.value(wanted, "Image").ok_or_else(none)?;
    let fail = |why: String| refused(from, &why);
    if image.contains('%') {
        let why = "systemd's specifiers are not known when an image is bound";
        return Err(fail(format!("names {image}: {why}")));
    }
    if let Some((from, _)) = unit.value(wanted, "AuthFile") {
        let why = "has an AuthFile=, which is not read when an image is bound: give the credentials to cfs-update, in \
                   /etc/ostree/auth.json say";
        return Err(refused(from, why));
    }
    let quadlet = !image.contains('/');
    if quadlet && wanted == "Container" && image.ends_with(".image") {
        let mut bound = FOLDERS.iter().rev().map(|folder| format!("{folder}/{image}"));
        let bound = bound.find(|other| quadlets.has(other));
        let other = bound.or_else(|| quadlets.find(&image));
        let other = other.ok_or_else(|| fail(format!("names {image}, which is not among the image's quadlets")))?;
        return reference_of(store, quadlets, &image, &other);
    }
    if quadlet && image.ends_with(".build") {
        let why = "what is built on the host cannot be fetched";
        return Err(fail(format!("names {image}: {why}")));
    }
    let reference = image.parse::<Reference>().map_err(|e| fail(e.to_string()))?;
    Store::check_name(&kept_by(&"0".repeat(OWNER), &reference.to_string())).map_err(|e| fail(e.to_string()))?;
    if !matches!(reference, Reference::Registry(_)) {
        return Err(fail(format!("names {image}, which is in no registry")));
    }
    Ok(reference)
}

/// Fetches what is not in the store; nothing refers to it before the next [`Store::publish`]. All of the images are
/// asked for before anything of one is fetched, and there has to be room for all.
///
/// # Errors
/// Those of a pull, with the file that wants the image.
pub fn fetch(
    store: &Store,
    wanted: &BTreeMap<String, Reference>,
    options: &registry::Options,
    platform: &Platform,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Bound> {
    let mut bound = Bound::default();
    let mut missing = Vec::new();
    for (path, reference) in wanted {
        monitor.event(Event::Note(format!("{path} binds {reference}")));
        if bound.images.contains_key(&reference.to_string()) {
            continue;
        }
        // What a digest means never changes.
        if let Some(digest) = reference.digest()
            && is_complete(store, &digest).unwrap_or(false)
        {
            bound.images.insert(reference.to_string(), digest);
            continue;
        }
        monitor.event(Event::Stage(Stage::Resolve));
        let registry = Registry::open(reference, options)?;
        let image = registry.image(platform, monitor)?;
        bound.images.insert(reference.to_string(), image.digest);
        if !is_complete(store, &image.digest)? {
            missing.push((registry, image));
        }
    }
    if missing.is_empty() {
        return Ok(bound);
    }
    let images: Vec<_> = missing.iter().map(|(registry, image)| (registry, image)).collect();
    pull::import_all(store, &images, threads, monitor)?;
    for (_, image) in missing {
        let imported = Imported::complete(image);
        let mut tree = imported.tree(store)?;
        imported.build(store, &mut tree, Variant::Container, monitor)?;
    }
    Ok(bound)
}

/// Whether an image is in the store, and its composefs image was made.
fn is_complete(store: &Store, digest: &ManifestDigest) -> Result<bool> {
    let config = store.config_of(digest)?;
    Ok(config.is_some_and(|config| config.images.contains_key(IMAGE_V1)))
}

impl Bound {
    /// Keeps them for somebody, from the next [`Store::publish`] on.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for a reference that is too long to be a name, which [`look`] gives of none.
    pub fn keep(&self, store: &Store, owner: &str) -> Result<()> {
        for (reference, manifest) in &self.images {
            store.tag(&kept_by(owner, reference), manifest)?;
        }
        Ok(())
    }

    /// What is kept for somebody.
    ///
    /// # Errors
    /// What reading the store's names gives.
    pub fn kept(store: &Store, owner: &str) -> Result<Self> {
        let own = |(tag, manifest): (String, ManifestDigest)| {
            let (of, reference) = name(&tag)?;
            (of == owner).then(|| (reference.to_owned(), manifest))
        };
        Ok(Self {
            images: store.tags()?.into_iter().filter_map(own).collect(),
        })
    }

    /// Whether all of them are in the store, and their composefs images were made.
    ///
    /// # Errors
    /// What reading the store gives.
    pub(crate) fn is_complete(&self, store: &Store) -> Result<bool> {
        for manifest in self.images.values() {
            if !is_complete(store, manifest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn kept_by(owner: &str, reference: &str) -> String {
    format!("{PREFIX}{owner}/{reference}")
}

/// Whether a name of the store is that of a bound image: for whom it is kept (a deployment's first 12 digits, or
/// [`crate::download::NAME`]), and the reference.
pub fn name(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(PREFIX)?.split_once('/')
}

/// The references of what a deployment binds.
///
/// # Errors
/// What reading the store's names gives.
pub fn of(store: &Store, id: &DeploymentId) -> Result<Vec<String>> {
    Ok(Bound::kept(store, &id.short())?.images.into_keys().collect())
}

/// Lets go of what was kept for somebody.
///
/// # Errors
/// What removing gives.
pub fn let_go(store: &Store, owner: &str) -> Result<()> {
    for tag in store.tags()?.keys() {
        if name(tag).is_some_and(|(of, _)| of == owner) {
            store.untag(tag)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_and_containers_name_an_image() {
        let names = ["a.image", "a.container", "a.volume", "a"];
        assert_eq!(names.map(section), [Some("Image"), Some("Container"), None, None]);
    }

    #[test]
    fn a_name_tells_the_deployment_and_the_reference() {
        assert_eq!(
            name("cfs-update/bound/0123456789ab/quay.io/a/b:1"),
            Some(("0123456789ab", "quay.io/a/b:1"))
        );
        assert_eq!(name("cfs-update/0123"), None);
        assert_eq!(name("quay.io/a/b:1"), None);
    }
}
