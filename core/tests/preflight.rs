//! What cannot fit is refused before its first byte; what may fit, thanks to files that are here, is not; and what
//! becomes full on the way is taken back. On small file systems of their own, so these need root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod chunks;
mod support;
mod tars;

use std::path::Path;
use std::time::Duration;

use cfs_core::forecast::{Forecast, Way};
use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::registry::{self, Options, Retry};
use cfs_core::store::{Store, gc};
use cfs_core::sys::space::Space;
use cfs_core::{Error, Kind, Result, pull};

use chunks::{FAIR, Layer, Ranges, Registry};
use support::{Told, noise};

const KIB: usize = 1 << 10;

/// A file system of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Self(folder);
        let text = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", disk.0.path(), "tmpfs", flags, Some(text.as_c_str())) {
            Ok(()) => Some(disk),
            Err(e) => {
                println!("not tested: mounting a tmpfs needs root ({e})");
                std::mem::forget(disk);
                None
            }
        }
    }

    fn set(&self, option: &str) {
        let option = std::ffi::CString::new(option).unwrap();
        rustix::mount::mount_remount(self.0.path(), rustix::mount::MountFlags::empty(), &*option).unwrap();
    }

    /// Leaves so many bytes free.
    fn leave(&self, bytes: u64) {
        let used = {
            let stat = rustix::fs::statvfs(self.0.path()).unwrap();
            (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        };
        let size = format!("size={}", used + bytes);
        self.set(&size);
        assert_eq!(self.free(), bytes.next_multiple_of(4096), "{size}");
    }

    fn free(&self) -> u64 {
        Space::of(self.0.path()).unwrap().bytes
    }

    fn store(&self) -> Store {
        Store::open_or_create(&self.0.path().join("composefs"), Algorithm::Sha256).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn open(registry: &Registry) -> registry::Registry {
    let options = Options {
        retry: Retry {
            first_wait: Duration::from_millis(1),
            ..Retry::default()
        },
        ..Options::default()
    };
    let reference = format!("{}/org/os:1", registry.server.host()).parse().unwrap();
    registry::Registry::open(&reference, &options).unwrap()
}

fn pull(store: &Store, registry: &Registry) -> Result<Vec<String>> {
    let told = Told::default();
    pull::pull(store, &open(registry), &Platform::host(), 0, &told)?;
    Ok(told.0.into_inner().unwrap())
}

fn forecast(store: &Store, registry: &Registry) -> Forecast {
    let registry = open(registry);
    let image = registry.image(&Platform::host(), &Quiet).unwrap();
    Forecast::new(Some(store), store.path(), (&registry, &image), &[], &Quiet).unwrap()
}

/// Ten files of 100 KB and `more`; those of `changed` are of version 2.
fn layer(changed: &[usize], more: &[(&str, usize, u64)]) -> Layer {
    let mut files: Vec<(String, Vec<u8>)> = vec![("usr/".into(), Vec::new())];
    for n in 0..10 {
        let seed = if changed.contains(&n) { 1000 + n } else { n };
        files.push((format!("usr/f{n}"), noise(100 * KIB, seed as u64)));
    }
    for (name, size, seed) in more {
        files.push(((*name).into(), noise(*size, *seed)));
    }
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| (path.as_str(), content.as_slice()))
        .collect();
    FAIR.make(&files)
}

/// The same without its table.
fn plain(layer: &Layer) -> Layer {
    Layer {
        annotations: Default::default(),
        ..layer.clone()
    }
}

fn blobs(registry: &Registry, of: &Layer) -> usize {
    registry.server.count(&format!("/blobs/{}", support::sha256(&of.blob)))
}

fn objects(store: &Path) -> usize {
    let folders = std::fs::read_dir(store.join("objects")).unwrap();
    folders
        .map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count())
        .sum()
}

fn no_objects(_: &[u8]) -> Result<Vec<ObjectId>> {
    Ok(Vec::new())
}

#[test]
fn an_update_fits_thanks_to_the_files_that_are_here_and_one_with_other_files_is_refused() {
    let Some(disk) = Disk::mount("size=8m") else { return };
    let (v1, v2, v3) = (
        layer(&[], &[]),
        layer(&[3], &[]),
        layer(&[0, 1, 2, 4, 5, 6, 7, 8, 9], &[]),
    );
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    // Less than the blob, more than the file that is new.
    disk.leave(400 * KIB as u64);

    registry.serve(&[&v3], Ranges::Several);
    let (seen, before) = (objects(store.path()), disk.free());
    let error = pull(&store, &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Space, "{error}");
    let Error::Space { path, needed, free, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((path.as_path(), *free), (store.path(), before));
    // Nine files in blocks, and the stream.
    assert!((900..980).contains(&(*needed / KIB as u64)), "{needed}");
    assert!(registry.sent() < 40 * KIB, "the table and no more: {}", registry.sent());
    assert_eq!(
        (objects(store.path()), disk.free()),
        (seen, before),
        "nothing was changed"
    );

    registry.serve(&[&v2], Ranges::Several);
    let told = forecast(&store, &registry);
    assert_eq!(told.image.layers[0].way, Way::Parts);
    assert!(
        (100..140).contains(&(told.store.at_least.bytes / KIB as u64)),
        "{told:?}"
    );
    assert!(told.store.check().is_ok());
    pull(&store, &registry).unwrap();
}

#[test]
fn the_figures_of_a_table_are_what_an_import_writes() {
    let Some(disk) = Disk::mount("size=20m") else { return };
    let v1 = layer(&[], &[]);
    let v2 = layer(
        &[1, 2, 3, 4],
        &[("usr/a", 5000, 50), ("usr/b", 5000, 50), ("usr/c", 40, 51)],
    );
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    registry.serve(&[&v2], Ranges::Several);
    let told = forecast(&store, &registry).store;
    let inodes = |disk: &Disk| Space::of(disk.0.path()).unwrap().inodes.unwrap();
    let (bytes, before) = (disk.free(), inodes(&disk));
    pull(&store, &registry).unwrap();
    let (written, made) = (bytes - disk.free(), before - inodes(&disk));
    assert!(told.at_least.bytes <= written, "{told:?}, {written}");
    // The image, config, manifest and index are beside it.
    assert!(written - told.at_least.bytes < 64 << 10, "{told:?}, {written}");
    assert!(
        told.at_least.inodes <= made && made <= told.at_least.inodes + 30,
        "{told:?}, {made}"
    );
}

#[test]
fn no_more_is_written_than_is_expected_with_the_folders_of_objects_and_a_tree_of_folders() {
    let Some(disk) = Disk::mount("size=40m") else { return };
    let names: Vec<String> = (0..300).map(|n| format!("usr/s{n}")).collect();
    let files = (0_u64..).zip(&names).map(|(n, name)| (name.as_str(), 90, 100 + n));
    let folders: Vec<String> = (0..5000).map(|n| format!("usr/package-{n}/")).collect();
    let folders = folders.iter().map(|name| (name.as_str(), 0, 0));
    let (v1, v2) = (layer(&[], &[]), layer(&[], &files.chain(folders).collect::<Vec<_>>()));
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    registry.serve(&[&v2], Ranges::Several);
    let told = forecast(&store, &registry);
    assert_eq!(told.image.layers[0].way, Way::Parts);
    let told = told.store;
    let inodes = |disk: &Disk| Space::of(disk.0.path()).unwrap().inodes.unwrap();
    let (bytes, before) = (disk.free(), inodes(&disk));
    pull(&store, &registry).unwrap();
    let (written, made) = (bytes - disk.free(), before - inodes(&disk));
    assert!(
        (told.at_least.inodes..=told.about.inodes).contains(&made),
        "{told:?}, {made}"
    );
    assert!(
        (told.at_least.bytes..=told.about.bytes).contains(&written),
        "{told:?}, {written}"
    );
}

#[test]
fn no_more_is_written_than_is_expected_where_most_of_an_image_is_here() {
    let Some(disk) = Disk::mount("size=60m") else { return };
    let names: Vec<String> = (0..4000).map(|n| format!("usr/share-{n}")).collect();
    let files = (0_u64..).zip(&names).map(|(n, name)| (name.as_str(), 90, 100 + n));
    let (base, v1, v2) = (
        layer(&[], &files.collect::<Vec<_>>()),
        layer(&[], &[]),
        layer(&[7], &[]),
    );
    for version in [&v2, &plain(&v2)] {
        let registry = Registry::start(&[&base, &v1]);
        let store = Store::open_or_create(
            &disk.0.path().join(version.annotations.len().to_string()),
            Algorithm::Sha256,
        );
        let store = store.unwrap();
        pull(&store, &registry).unwrap();
        registry.serve(&[&base, version], Ranges::Several);
        let told = forecast(&store, &registry).store;
        let before = disk.free();
        pull(&store, &registry).unwrap();
        let written = before - disk.free();
        assert!(
            (told.at_least.bytes..=told.about.bytes).contains(&written),
            "{told:?}, {written}"
        );
    }
}

#[test]
fn a_layer_without_table_is_refused_only_where_all_that_is_here_could_not_make_up_for_it() {
    let Some(disk) = Disk::mount("size=8m") else { return };
    let v1 = plain(&layer(&[], &[]));
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    disk.leave(400 * KIB as u64);

    // Everything is here, in another layer: as a base image that was built once more.
    let rebuilt = plain(&layer(&[], &[("usr/new", 10 * KIB, 60)]));
    registry.serve(&[&rebuilt], Ranges::Several);
    assert!(rebuilt.blob.len() as u64 > disk.free());
    let told = pull(&store, &registry).unwrap();
    assert!(
        told.iter().any(|event| event.contains("it may fit all the same")),
        "{told:?}"
    );

    // What the image has anyway is no help for its other layer.
    let beside = plain(&layer(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[]));
    registry.serve(&[&v1, &rebuilt, &beside], Ranges::Several);
    let error = pull(&store, &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Space, "{error}");
    assert_eq!(blobs(&registry, &beside), 0, "{error}");

    // Two megabytes more than everything.
    let huge = plain(&layer(&[], &[("usr/huge", 4 << 20, 61)]));
    registry.serve(&[&huge], Ranges::Several);
    let error = pull(&store, &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Space, "{error}");
    assert_eq!(blobs(&registry, &huge), 0, "{error}");
}

#[test]
fn an_empty_store_needs_what_is_compressed_at_the_least() {
    let Some(disk) = Disk::mount("size=900k") else { return };
    let store = disk.store();
    let v1 = plain(&layer(&[], &[]));
    let registry = Registry::start(&[&v1]);
    let error = pull(&store, &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Space, "{error}");
    assert_eq!(blobs(&registry, &v1), 0);
    assert_eq!(objects(store.path()), 0);
    // A way round, for the case that this is wrong: then the disk says it.
    store.ignore_space();
    let error = pull(&store, &registry).unwrap_err();
    assert!(
        matches!(error, Error::Io { .. }) && error.kind() == Kind::Space,
        "{error}"
    );
    assert_eq!(blobs(&registry, &v1), 1);
}

#[test]
fn too_few_inodes_are_refused_where_they_are_counted() {
    let Some(disk) = Disk::mount("size=30m,nr_inodes=900") else {
        return;
    };
    let v1 = layer(&[], &[]);
    let names: Vec<String> = (0..900).map(|n| format!("usr/s{n}")).collect();
    let many: Vec<_> = (0_u64..)
        .zip(&names)
        .map(|(n, name)| (name.as_str(), 90, 100 + n))
        .collect();
    let v2 = layer(&[], &many);
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    registry.serve(&[&v2], Ranges::Several);
    let error = pull(&store, &registry).unwrap_err();
    let Error::Inodes { needed, free, .. } = &error else {
        panic!("{error}");
    };
    assert!(*needed >= 900 && *free < 900, "{error}");
    // As many as there can be: then they fit.
    disk.set("nr_inodes=4000");
    pull(&store, &registry).unwrap();
}

#[test]
fn what_an_interrupted_run_left_counts_as_here() {
    let Some(disk) = Disk::mount("size=8m") else { return };
    // More than the first version holds.
    let all = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let (v1, v2) = (layer(&[], &[]), layer(&all, &[("usr/more", 1000 * KIB, 80)]));
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    // As if it had been killed: the layer came, and was not published.
    registry.serve(&[&plain(&v2)], Ranges::Several);
    let open = open(&registry);
    let image = open.image(&Platform::host(), &Quiet).unwrap();
    pull::import(&store, &open, image, 0, &Quiet).unwrap();
    std::fs::remove_dir_all(store.path().join("cfs-update/layers")).unwrap();
    drop(store);
    disk.leave(200 * KIB as u64);
    for served in [v2.clone(), plain(&v2)] {
        registry.serve(&[&served], Ranges::Several);
        let store = disk.store();
        assert!(store.is_suspect());
        let told = forecast(&store, &registry);
        assert!(told.store.check().is_ok(), "{told:?}");
    }
    pull(&disk.store(), &registry).unwrap();
}

#[test]
fn what_a_run_wrote_before_the_disk_was_full_is_taken_back_and_nothing_else() {
    let Some(disk) = Disk::mount("size=8m") else { return };
    let (v1, v2) = (
        layer(&[], &[]),
        layer(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[("usr/x", 700 * KIB, 70)]),
    );
    let registry = Registry::start(&[&v1]);
    let store = disk.store();
    pull(&store, &registry).unwrap();
    disk.leave(1000 * KIB as u64);
    registry.serve(&[&plain(&v2)], Ranges::Several);
    let (before, seen) = (disk.free(), objects(store.path()));
    let error = pull(&store, &registry).unwrap_err();
    assert!(
        matches!(error, Error::Io { .. }) && error.kind() == Kind::Space,
        "{error}"
    );
    let more = objects(store.path()) - seen;
    assert!((5..11).contains(&more), "some of them fit: {more}");
    let gone = gc::take_back(&store, &gc::Roots::default(), &no_objects);
    assert_eq!(gone.unwrap().objects.len(), more);
    assert_eq!(objects(store.path()), seen);
    assert!(disk.free() + (16 << 10) >= before, "{} of {before}", disk.free());
    assert!(!store.is_suspect());
    registry.serve(&[&v1], Ranges::Several);
    assert!(pull(&store, &registry).is_ok());
}
