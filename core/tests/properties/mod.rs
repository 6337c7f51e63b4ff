//! What must hold for any bytes; the fuzz targets and the tests on the stable toolchain call the same functions.

#![allow(clippy::unwrap_used, missing_docs, dead_code, reason = "each user takes one of them")]

use cfs_core::image::{Versions, dump, reader, writer};
use cfs_core::tree::Tree;

const SETTINGS: [Versions; 3] = [
    Versions { min: 0, max: 1 },
    Versions { min: 0, max: 0 },
    Versions { min: 1, max: 1 },
];

/// A dump is refused, or makes an image that reads back as a tree that makes the same image and prints as a dump that
/// does so, too.
pub fn any_dump(text: &[u8]) {
    let Ok(tree) = dump::parse(text) else { return };
    assert!(dump::parse_strict(text).is_err() || text.ends_with(b"\n"));
    for versions in SETTINGS {
        let image = writer::build(&tree, versions).unwrap();
        let again = reader::read(&image).unwrap();
        assert!(
            writer::build(&again, versions).unwrap() == image,
            "read back, {versions:?}"
        );
        assert!(
            writer::build(&printed(&again), versions).unwrap() == image,
            "printed and parsed, {versions:?}"
        );
    }
}

/// An image is refused, or is a tree that can be walked, printed and, within the format's limits, written.
pub fn any_image(bytes: &[u8]) {
    let Ok(tree) = reader::read(bytes) else { return };
    assert!(tree.walk().count() <= bytes.len() / 12);
    if let Ok(image) = writer::build(&tree, Versions::V1) {
        let again = reader::read(&image).unwrap();
        assert!(writer::build(&again, Versions::V1).unwrap() == image, "read back");
    }
}

fn printed(tree: &Tree) -> Tree {
    let mut text = Vec::new();
    dump::write(tree, &mut text).unwrap();
    dump::parse(&text).unwrap()
}
