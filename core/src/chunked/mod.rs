//! zstd:chunked: layers with a table of contents, so that only the missing files of them need to be fetched.
//!
//! Such a layer is an ordinary zstd layer whose files, and parts of files, are frames of their own. Behind them, in
//! frames that other tools skip, are a table (which file and chunk is where, with its SHA-256) and the tar without its
//! files (tar-split). Annotations of the layer say where both are and which digest the table has: the manifest's
//! digest covers these, the table has the tar-split's digest, and the result has to have the layer's diff_id. Format:
//! `docs/formats.md`, "zstd:chunked".
//!
//! Bytes in, values out; nothing here fetches, nothing here writes. Invariant: a [`Table`]'s files and chunks are in
//! order, do not overlap, lie inside the blob, and their sizes add up; numbers that wrap, more entries than
//! [`table::ENTRIES`] and tables that unpack to more than they said are refused.

mod ranges;
mod table;
mod tar_split;
mod words;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;

use sha2::{Digest, Sha256};

pub use ranges::{coalesce, total};
pub use table::{Chunk, File, Table};
pub use tar_split::{Item, TarSplit};

const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const TAR_SPLIT: &str = "io.github.containers.zstd-chunked.tarsplit-position";
/// The only type of table.
const TYPE: u64 = 1;

/// The largest table or tar-split that is taken, compressed and unpacked, in bytes.
const COMPRESSED_LIMIT: u64 = 32 << 20;
const UNPACKED_LIMIT: u64 = 512 << 20;
/// Nothing that zstd compresses gets smaller than this: a block of 128 KiB takes 4 bytes.
const BEST_RATIO: u64 = 32 << 10;
/// The largest zstd window that is unpacked, as a power of two.
const WINDOW_LOG: u32 = 23;

/// Something packed in the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Where.
    pub range: Range<u64>,
    /// How many bytes it unpacks to.
    pub unpacked: u64,
}

/// Where a layer's table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Size of the blob in bytes.
    pub blob: u64,
    /// The table.
    pub table: Packed,
    /// SHA-256 of the packed table.
    pub checksum: [u8; 32],
    /// The tar-split.
    pub tar_split: Packed,
}

impl Place {
    /// What the annotations of a layer of `blob` bytes say. `None` where there is no table, one of another kind, or one
    /// without tar-split (skopeo 1.9 of Debian 12), from which the tar cannot be rebuilt.
    pub fn find(annotations: &BTreeMap<String, String>, blob: u64) -> Option<Self> {
        let checksum = digest(annotations.get(CHECKSUM)?)?;
        let [start, length, unpacked, kind] = numbers(annotations.get(POSITION)?)?;
        let table = packed(start, length, unpacked, blob).filter(|_| kind == TYPE)?;
        let [start, length, unpacked] = numbers(annotations.get(TAR_SPLIT)?)?;
        let tar_split = packed(start, length, unpacked, blob)?;
        let apart = table.range.end <= tar_split.range.start || tar_split.range.end <= table.range.start;
        apart.then_some(Self {
            blob,
            table,
            checksum,
            tar_split,
        })
    }

    /// Reads a table, which is checked against the annotation first.
    ///
    /// # Errors
    /// `InvalidData` says what is wrong with it.
    pub fn read_table(&self, packed: &[u8]) -> io::Result<Table> {
        if <[u8; 32]>::from(Sha256::digest(packed)) != self.checksum {
            return Err(invalid(
                "the table of contents does not have the digest that the manifest gives it",
            ));
        }
        let files = self.table.range.start.min(self.tar_split.range.start);
        table::read(unpack(packed, self.table.unpacked)?, files)
    }

    /// Reads a tar-split, which is checked against the table first.
    ///
    /// # Errors
    /// `InvalidData` where it is another one.
    pub fn read_tar_split<'p>(&self, table: &Table, packed: &'p [u8]) -> io::Result<TarSplit<'p>> {
        if <[u8; 32]>::from(Sha256::digest(packed)) != table.tar_split {
            return Err(invalid(
                "the tar-split does not have the digest that the table gives it",
            ));
        }
        Ok(TarSplit::new(unpack(packed, self.tar_split.unpacked)?))
    }
}

/// Unpacks no more than was announced.
fn unpack(packed: &[u8], unpacked: u64) -> io::Result<impl Read + Send + '_> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(Limited {
        inner: decoder,
        left: unpacked,
    })
}

/// A reader that fails where there is more than there should be.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => Err(invalid("it unpacks to more than it should")),
        }
    }
}

fn packed(start: u64, length: u64, unpacked: u64, blob: u64) -> Option<Packed> {
    let end = start.checked_add(length).filter(|end| *end <= blob)?;
    let fits = start > 0 && length > 0 && length <= COMPRESSED_LIMIT && unpacked <= UNPACKED_LIMIT;
    fits.then_some(Packed {
        range: start..end,
        unpacked,
    })
}

/// `12:34:56`.
fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let numbers: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// `sha256:` and 64 hex digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    hex::decode(text.strip_prefix("sha256:")?).ok()?.try_into().ok()
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(checksum: &str, position: &str, tar_split: &str) -> BTreeMap<String, String> {
        [(CHECKSUM, checksum), (POSITION, position), (TAR_SPLIT, tar_split)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn annotations_that_cannot_be_true_name_no_table() {
        let good = format!("sha256:{}", "ab".repeat(32));
        let find = |checksum: &str, position: &str, tar_split: &str| {
            Place::find(&annotations(checksum, position, tar_split), 1000)
        };
        let place = find(&good, "100:50:500:1", "158:40:4000").unwrap();
        assert_eq!((place.table.range, place.tar_split.range), (100..150, 158..198));
        for (checksum, position, tar_split) in [
            ("", "100:50:500:1", "158:40:4000"),
            (good.as_str(), "", "158:40:4000"),
            (&good, "100:50:500:1", ""),
            ("sha256:12", "100:50:500:1", "158:40:4000"),
            ("sha512:12", "100:50:500:1", "158:40:4000"),
            (&good, "100:50:500:2", "158:40:4000"),
            (&good, "100:50:500", "158:40:4000"),
            (&good, "-100:50:500:1", "158:40:4000"),
            (&good, "0:50:500:1", "158:40:4000"),
            (&good, "100:0:500:1", "158:40:4000"),
            (&good, "100:950:500:1", "158:40:4000"),
            (&good, "18446744073709551615:2:500:1", "158:40:4000"),
            (&good, "100:50:99999999999:1", "158:40:4000"),
            (&good, "100:50:500:1", "120:40:4000"),
            (&good, "100:50:500:1", "990:40:4000"),
        ] {
            assert_eq!(
                find(checksum, position, tar_split),
                None,
                "{checksum} {position} {tar_split}"
            );
        }
    }
}
