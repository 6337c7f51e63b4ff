//! Whether what is about to be fetched fits, found out before its first byte.
//!
//! Two figures. **At least**: less than this it cannot be, whatever is inside the layers. Of a layer with a table of
//! contents these are the files that are in no layer here, each rounded up to blocks. Of another one nothing is known
//! but its compressed size, and that much has to come, less everything that the store holds in layers of other images:
//! it could all be in there. **About**: what it is expected to be when nothing of such a layer is here, by the ratio
//! that the store's own layers show.
//!
//! Invariant: only the first figure refuses, so that an update which would fit is not refused because nobody could
//! know; the second one is said. Nothing is written here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::DiffId;
use crate::manifest::Compression;
use crate::registry::Image;
use crate::store::import::{Missing, Planned};
use crate::store::{Held, OBJECT_FOLDERS, Sample, Store};
use crate::sys::space::Space;

/// What Debian's packages are like, where the store has no layers yet: measured with the image of `docs/performance.md`
/// (616,666,197 bytes of gzip, 1,648 MB of tar, 48,354 files).
const DEBIAN: Sample = Sample {
    packed: 1_000_000,
    tars: 2_670_000,
    objects: 78,
};
/// Bytes that an image takes for each name, about.
const IN_IMAGE: u64 = 300;
/// Bytes that the index takes for each file, about.
const IN_INDEX: u64 = 80;
/// Bytes that a layer's stream takes for each object at least: its digest.
const IN_STREAM: u64 = 32;
/// Each layer is a stream and a note of it, and then the link in place of the note.
const OF_LAYER: u64 = 2;
/// Until the note goes it is there beside the link, and there may be an index.
const OF_LAYER_MOST: u64 = 2;
/// Streams and objects of config and manifest, the image, the links to them; files that have no name yet.
const BESIDE: u64 = 14;
/// Folders and files that a new store begins with.
const OF_STORE: u64 = 12;

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64, inodes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.inodes = self.inodes.saturating_add(inodes);
    }
}

/// What is needed on one file system, and what is free there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// A path on it.
    pub path: PathBuf,
    /// Less it cannot be.
    pub at_least: Amount,
    /// What it is expected to be at most.
    pub about: Amount,
    /// Free bytes, with those that what is kept of downloads gives way from.
    pub free: u64,
    /// Free inodes; `None` where they are made as they are needed.
    pub free_inodes: Option<u64>,
}

impl Figures {
    /// Refuses what cannot fit.
    ///
    /// # Errors
    /// [`Error::Space`], [`Error::Inodes`] with the figures.
    pub fn check(&self) -> Result<()> {
        let remedy = |least: u64, about: u64| match about > least {
            true => format!("that is the least, and {about} are expected; nothing was changed"),
            false => "nothing was changed".into(),
        };
        let (least, about) = (self.at_least, self.about);
        if least.bytes > self.free {
            return Err(Error::Space {
                path: self.path.clone(),
                needed: least.bytes,
                free: self.free,
                remedy: remedy(least.bytes, about.bytes),
            });
        }
        match self.free_inodes {
            Some(free) if least.inodes > free => Err(Error::Inodes {
                path: self.path.clone(),
                needed: least.inodes,
                free,
                remedy: remedy(least.inodes, about.inodes),
            }),
            _ => Ok(()),
        }
    }

    /// What is to be said where it may fit or not.
    pub fn doubt(&self) -> Option<String> {
        let path = self.path.display();
        let told = |expected: u64, what: &str, free: u64| {
            format!(
                "{path}: up to {expected} {what} are expected, {free} are free; it may fit all the same, since files that are \
                 here already are not stored again"
            )
        };
        if self.about.bytes > self.free {
            return Some(told(self.about.bytes, "bytes", self.free));
        }
        let inodes = self.free_inodes.filter(|free| self.about.inodes > *free);
        inodes.map(|free| told(self.about.inodes, "inodes", free))
    }
}

/// Adds up what layers need in a store.
#[derive(Debug)]
pub struct Tally<'s> {
    store: Option<&'s Store>,
    path: PathBuf,
    space: Space,
    /// Files and layers that were counted.
    files: HashSet<[u8; 32]>,
    layers: HashSet<DiffId>,
    /// Layers of the images, those that are here, too.
    own: HashSet<DiffId>,
    /// What is certain, and what is not but will be so for all that is known.
    certain: Amount,
    likely: Amount,
    /// Layers of which the compressed size is known and nothing else.
    blobs: Vec<(Compression, u64)>,
}

impl<'s> Tally<'s> {
    /// Begins. `path`: where the store is, or will be.
    ///
    /// # Errors
    /// What the system answers about the file system.
    pub fn new(store: Option<&'s Store>, path: &Path) -> Result<Self> {
        Ok(Self {
            store,
            path: path.to_path_buf(),
            space: Space::of(path)?,
            files: HashSet::new(),
            layers: HashSet::new(),
            own: HashSet::new(),
            certain: Amount::default(),
            likely: Amount::default(),
            blobs: Vec::new(),
        })
    }

    /// Layers of an image of which some are fetched.
    pub fn image(&mut self, layers: &[DiffId]) {
        self.own.extend(layers);
    }

    /// A layer that is fetched.
    pub fn layer(&mut self, layer: &Planned<'_>) {
        if !self.layers.insert(layer.diff_id) {
            return;
        }
        self.has_stream();
        match layer.missing {
            Some(missing) => self.known(missing),
            None => self
                .blobs
                .push((layer.compression, layer.size.saturating_sub(layer.reached))),
        }
    }

    /// A layer that podman has, of so many bytes: where its files can be shared or linked they take nothing.
    pub fn podman(&mut self, diff_id: DiffId, size: u64) {
        if self.layers.insert(diff_id) {
            self.has_stream();
            let (bytes, objects) = self.unpacked(Compression::None, size, None);
            self.likely.add(bytes, objects);
        }
    }

    fn has_stream(&mut self) {
        self.certain.add(0, OF_LAYER);
        self.likely
            .add(self.space.blocks(1).saturating_mul(OF_LAYER_MOST), OF_LAYER_MOST);
    }

    fn known(&mut self, missing: &Missing) {
        let space = self.space;
        let stream = space.blocks(missing.stream.saturating_add(missing.entries.saturating_mul(IN_STREAM)));
        self.certain.add(if space.plain { stream } else { stream / 2 }, 0);
        let (image, index) = (
            missing.names.saturating_mul(IN_IMAGE),
            missing.entries.saturating_mul(IN_INDEX),
        );
        self.likely.add(image.saturating_add(index), 0);
        for (sum, size, packed) in &missing.files {
            if !self.files.insert(*sum) {
                continue;
            }
            let whole = space.blocks(*size).saturating_add(self.verity(*size));
            let least = match (missing.sure, space.plain) {
                (true, true) => whole,
                // As well as the blob is packed, and better by half, it may be on disk.
                (true, false) => (*packed).min(*size) / 2,
                (false, _) => 0,
            };
            self.certain.add(least, u64::from(missing.sure));
            self.likely.add(whole - least.min(whole), u64::from(!missing.sure));
        }
    }

    fn verity(&self, size: u64) -> u64 {
        match self.store {
            Some(store) if store.has_verity() => self.space.verity(size, store.algorithm().len() as u64),
            _ => 0,
        }
    }

    /// What a layer of so many bytes will take, and how many objects it will be.
    fn unpacked(&self, compression: Compression, size: u64, sample: Option<Sample>) -> (u64, u64) {
        let sample = sample.unwrap_or(DEBIAN);
        let of = |part: u64, whole: u64| {
            let product = u128::from(size) * u128::from(part) / u128::from(whole.max(1));
            u64::try_from(product).unwrap_or(u64::MAX)
        };
        let (tar, objects) = match compression {
            Compression::None => (size, of(sample.objects, sample.tars)),
            Compression::Gzip | Compression::Zstd => {
                (of(sample.tars, sample.packed), of(sample.objects, sample.packed))
            }
        };
        // Half a block for each file is empty; its header, which the tar has, is not kept as it is.
        let rounding = if self.space.plain { self.space.block / 3 } else { 0 };
        let each = rounding + IN_IMAGE + self.verity(tar / objects.max(1));
        (tar.saturating_add(objects.saturating_mul(each)), objects)
    }

    /// What has to come at the very least for a blob of so many bytes, and less if what the store has is in it. A tar
    /// that is not compressed may be headers and little else; a file system that compresses may do better than the
    /// blob.
    fn floor(&self, compression: Compression, size: u64) -> u64 {
        let packed = if compression == Compression::None {
            size / 2
        } else {
            size
        };
        if self.space.plain { packed } else { packed / 2 }
    }

    /// The figures.
    ///
    /// # Errors
    /// What looking through the store's layers gives.
    pub fn figures(self) -> Result<Figures> {
        let held = match self.store.filter(|_| !self.blobs.is_empty()) {
            Some(store) => store.held(&self.own)?,
            None => Held::default(),
        };
        // What is kept of interrupted downloads gives way.
        let parts = self.store.map_or(0, Store::part_bytes);
        let (mut least, mut about) = (self.certain, self.certain);
        about.add(self.likely.bytes, self.likely.inodes);
        let mut floor = 0_u64;
        for (compression, size) in &self.blobs {
            floor = floor.saturating_add(self.floor(*compression, *size));
            let (bytes, objects) = self.unpacked(*compression, *size, held.sample);
            about.add(bytes, objects);
        }
        least.add(floor.saturating_sub(held.most), 0);
        if !self.layers.is_empty() {
            // Objects are in folders by the first byte of their digests.
            let folders = self.store.map_or(Ok(OBJECT_FOLDERS), Store::folders_to_come)?;
            let of_store = if self.store.is_none() { OF_STORE } else { 0 };
            let more = folders.min(about.inodes) + BESIDE + of_store;
            about.add(self.space.blocks(1).saturating_mul(more), more);
            // The image is made anew, with the layers that are here.
            let here = self.store.map_or(0, |store| store.objects_of(&self.own));
            about.add(here.saturating_mul(IN_IMAGE), 0);
        }
        about.bytes = about.bytes.max(least.bytes);
        Ok(Figures {
            path: self.path,
            at_least: least,
            about,
            free: self.space.bytes.saturating_add(parts),
            free_inodes: self.space.inodes,
        })
    }
}

/// What an image takes in a store at `path` that is yet to be made, as far as its manifest says; no table is fetched.
///
/// # Errors
/// What the system answers about the file system.
pub fn of_new_store(path: &Path, image: &Image) -> Result<Figures> {
    let mut tally = Tally::new(None, path)?;
    for (diff_id, blob) in image.config.diff_ids.iter().zip(&image.blobs) {
        tally.layer(&Planned {
            diff_id: *diff_id,
            size: blob.size,
            compression: blob.compression(),
            fetch: blob.size,
            parts: false,
            reached: 0,
            kept: 0,
            missing: None,
        });
    }
    tally.figures()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(plain: bool) -> Tally<'static> {
        Tally {
            store: None,
            path: "/s".into(),
            space: Space {
                bytes: 1_000_000,
                inodes: Some(100),
                block: 4096,
                plain,
                verity_in_blocks: plain,
                device: 1,
            },
            files: HashSet::new(),
            layers: HashSet::new(),
            own: HashSet::new(),
            certain: Amount::default(),
            likely: Amount::default(),
            blobs: Vec::new(),
        }
    }

    fn layer(n: u8, size: u64, compression: Compression, missing: Option<&Missing>) -> Planned<'_> {
        Planned {
            diff_id: DiffId::from_hash([n; 32]),
            size,
            compression,
            fetch: size,
            parts: false,
            reached: 0,
            kept: 0,
            missing,
        }
    }

    fn missing(sure: bool, files: &[(u8, u64)]) -> Missing {
        Missing {
            files: files.iter().map(|(n, size)| ([*n; 32], *size, size / 3)).collect(),
            entries: files.len() as u64,
            names: files.len() as u64,
            stream: 100,
            sure,
        }
    }

    #[test]
    fn files_of_a_table_are_counted_once_and_in_blocks() {
        let mut tally = tally(true);
        let one = missing(true, &[(1, 5000), (2, 100), (1, 5000)]);
        let two = missing(true, &[(2, 100), (3, 4096)]);
        tally.layer(&layer(1, 9000, Compression::Zstd, Some(&one)));
        tally.layer(&layer(2, 9000, Compression::Zstd, Some(&two)));
        tally.layer(&layer(2, 9000, Compression::Zstd, Some(&two)));
        let figures = tally.figures().unwrap();
        // Two, one and one block, a stream for each layer, which has a link.
        assert_eq!(
            figures.at_least,
            Amount {
                bytes: (2 + 1 + 1 + 2) * 4096,
                inodes: 3 + 2 * 2
            }
        );
        assert!(figures.about.bytes > figures.at_least.bytes);
    }

    #[test]
    fn a_byte_or_an_inode_too_few_is_refused_and_what_fits_exactly_is_not() {
        let mut tally = tally(true);
        let files: Vec<(u8, u64)> = (0..98).map(|n| (n, 4096)).collect();
        let many = missing(true, &files);
        tally.layer(&layer(1, 9000, Compression::Zstd, Some(&many)));
        let exact = tally.figures().unwrap();
        assert_eq!((exact.at_least.inodes, exact.free_inodes), (100, Some(100)));
        let with = |free, free_inodes| Figures {
            free,
            free_inodes,
            ..exact.clone()
        };
        let bytes = exact.at_least.bytes;
        assert!(with(bytes, Some(100)).check().is_ok() && with(bytes, None).check().is_ok());
        let short = with(bytes - 1, None).check().unwrap_err();
        assert!(
            short
                .to_string()
                .starts_with(&format!("/s: {bytes} bytes needed, {} free", bytes - 1)),
            "{short}"
        );
        let short = with(bytes, Some(99)).check().unwrap_err();
        assert_eq!(short.kind(), crate::Kind::Space);
        assert!(short.to_string().contains("100 inodes needed, 99 free"), "{short}");
    }

    #[test]
    fn what_may_be_here_or_may_be_packed_better_is_not_certain() {
        let mut tally = tally(true);
        let unsure = missing(false, &[(1, 50_000)]);
        tally.layer(&layer(1, 9000, Compression::Zstd, Some(&unsure)));
        let figures = tally.figures().unwrap();
        assert_eq!(figures.at_least.bytes, 4096, "the stream alone");
        assert!(figures.about.bytes > 50_000);
    }

    #[test]
    fn a_file_system_that_compresses_may_need_less_than_the_sizes_say() {
        let mut tally = tally(false);
        let sure = missing(true, &[(1, 60_000)]);
        tally.layer(&layer(1, 30_000, Compression::Zstd, Some(&sure)));
        tally.layer(&layer(2, 30_000, Compression::Gzip, None));
        let figures = tally.figures().unwrap();
        assert!((25_000..26_000).contains(&figures.at_least.bytes), "{figures:?}");
        assert!(figures.about.bytes > 60_000 + 2 * 30_000);
    }

    #[test]
    fn of_a_blob_its_compressed_size_is_certain_and_what_it_becomes_is_expected() {
        let mut tally = tally(true);
        tally.layer(&layer(1, 500_000, Compression::Gzip, None));
        tally.layer(&layer(2, 100_000, Compression::None, None));
        let figures = tally.figures().unwrap();
        assert_eq!(figures.at_least.bytes, 550_000);
        // Some 40 objects, each with a folder of its own in a store that is yet to be made.
        assert!((1_700_000..1_900_000).contains(&figures.about.bytes), "{figures:?}");
        assert!(figures.check().is_ok());
        let doubt = figures.doubt().unwrap();
        assert!(
            doubt.contains("/s: up to 1") && doubt.contains("1000000 are free"),
            "{doubt}"
        );
    }

    #[test]
    fn folders_of_objects_and_names_without_content_are_expected_to_take_room() {
        let about = |names| {
            let mut tally = tally(true);
            let files: Vec<(u8, u64)> = (0..50).map(|n| (n, 100)).collect();
            let missing = Missing {
                names,
                ..missing(true, &files)
            };
            tally.layer(&layer(1, 9000, Compression::Zstd, Some(&missing)));
            tally.figures().unwrap().about
        };
        let (few, many) = (about(50), about(10_050));
        // As many folders as objects, the stream's among them.
        assert!((50 + 2 + 50 + 1..140).contains(&few.inodes), "{few:?}");
        assert_eq!((many.bytes - few.bytes, many.inodes), (10_000 * IN_IMAGE, few.inodes));
    }

    #[test]
    fn podmans_files_may_be_shared() {
        let mut tally = tally(true);
        tally.podman(DiffId::from_hash([1; 32]), 3_000_000);
        let figures = tally.figures().unwrap();
        assert_eq!(figures.at_least, Amount { bytes: 0, inodes: 2 });
        assert!(figures.doubt().is_some());
    }
}
