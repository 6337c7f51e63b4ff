//! What must hold for any bytes; the fuzz targets and the tests on the stable toolchain call the same functions.

#![allow(clippy::unwrap_used, missing_docs, dead_code, reason = "each user takes one of them")]

use cfs_core::chunked::{Item, Packed, Place};
use cfs_core::image::{Versions, dump, reader, writer};
use cfs_core::layers::{Fault, Head, Parser, Step};
use cfs_core::tree::Tree;
use sha2::{Digest, Sha256};

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

/// All heads of a tar stream that comes in pieces of `piece` bytes, contents skipped.
pub fn tar_heads(stream: &[u8], piece: usize) -> Result<Vec<Head>, Fault> {
    let mut parser = Parser::new();
    let mut heads = Vec::new();
    let mut skip = 0;
    for mut input in stream.chunks(piece) {
        loop {
            let take = usize::try_from(skip).unwrap_or(usize::MAX).min(input.len());
            input = &input[take..];
            skip -= take as u64;
            if input.is_empty() {
                break;
            }
            match parser.step(&mut input)? {
                Step::More => break,
                Step::End => return Ok(heads),
                Step::Entry(head) => {
                    skip = head.stored;
                    heads.push(*head);
                }
            }
        }
    }
    if skip > 0 {
        return Err(parser.truncated(skip));
    }
    parser.finish().map(|()| heads)
}

/// A tar stream gives the same entries however it is cut, and never more content than there is.
pub fn any_tar(stream: &[u8]) {
    let whole = tar_heads(stream, usize::MAX);
    assert_eq!(whole, tar_heads(stream, 1), "in single bytes");
    assert_eq!(whole, tar_heads(stream, 700), "in pieces");
    for head in whole.into_iter().flatten() {
        let stored: u64 = head
            .sparse
            .iter()
            .flat_map(|s| s.segments())
            .map(|(_, length)| length)
            .sum();
        assert!(head.sparse.is_none() || stored == head.stored);
        assert!(head.stored <= stream.len() as u64);
    }
}

/// A table of contents, and after a NUL a tar-split, are refused, or the files' chunks are whole, in order and in the
/// blob, and the tar-split gives no more bytes than it has.
pub fn any_table(bytes: &[u8]) {
    const FILES: u64 = 1 << 20;
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (text, tar_split) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let [table, tar_split_packed] = [text, tar_split].map(|bytes| zstd::bulk::compress(bytes, 1).unwrap());
    let packed = |start: u64, packed: &[u8], unpacked: &[u8]| Packed {
        range: start..start + packed.len() as u64,
        unpacked: unpacked.len() as u64,
    };
    let place = Place {
        blob: FILES << 8,
        table: packed(FILES, &table, text),
        checksum: Sha256::digest(&table).into(),
        tar_split: packed(FILES << 4, &tar_split_packed, tar_split),
    };
    let Ok(mut table) = place.read_table(&table) else {
        return;
    };
    let mut end = 0;
    for file in &table.files {
        let chunks = table.chunks(file);
        assert_eq!(chunks.iter().map(|chunk| chunk.size).sum::<u64>(), file.size);
        for chunk in chunks {
            assert!(end <= chunk.packed.start && chunk.packed.start <= chunk.packed.end);
            end = chunk.packed.end;
        }
    }
    assert!(end <= FILES);
    table.tar_split = Sha256::digest(&tar_split_packed).into();
    let mut items = place.read_tar_split(&table, &tar_split_packed).unwrap();
    let mut raw = 0;
    while let Ok(Some(item)) = items.item() {
        raw += match item {
            Item::Raw(bytes) => bytes.len(),
            Item::File(size) => usize::from(size > 0),
        };
    }
    assert!(raw <= tar_split.len());
}
