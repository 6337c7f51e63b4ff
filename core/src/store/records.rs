//! A file of the index ([`crate::store::index`]): what one layer's files are.
//!
//! ```text
//! "CFSINDEX" | u8 version | u8 algorithm | 6 zero bytes
//! 'F' digest[32] object u64 size           a file      'C' digest[32] u64 offset u64 length   a chunk of the file before
//! 'I' digest[32] u8 length bytes           a small file      'E' SHA-256 of everything before
//! ```
//! Invariant: what was [checked](check) is what was written.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use sha2::{Digest, Sha256};

use crate::chunked::{self, Table};
use crate::ids::{Algorithm, ObjectId};
use crate::layers::INLINE_MAX;
use crate::store::found::Sum;

const MAGIC: &[u8; 8] = b"CFSINDEX";
const VERSION: u8 = 1;

/// A file of the index that is being made.
pub(super) struct Building {
    bytes: Vec<u8>,
}

impl Building {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, algorithm.number(), 0, 0, 0, 0, 0, 0]);
        Self { bytes }
    }

    /// Of a layer with this table, which takes at most so much.
    pub(super) fn of_table(algorithm: Algorithm, table: &Table) -> Self {
        let mut building = Self::new(algorithm);
        let (file, chunk, end) = (1 + 32 + algorithm.len() + 8, 1 + 32 + 8 + 8, 1 + 32);
        let bytes =
            table.files.len() * file.max(1 + 32 + 1 + 64) + (table.chunks.len() - table.files.len()) * 2 * chunk;
        building.bytes.reserve_exact(bytes + end);
        building
    }

    pub(super) fn file(&mut self, sum: &Sum, id: &ObjectId, size: u64) {
        self.bytes.push(b'F');
        self.bytes.extend_from_slice(sum);
        self.bytes.extend_from_slice(id.as_bytes());
        self.bytes.extend_from_slice(&size.to_le_bytes());
    }

    fn chunk(&mut self, sum: &Sum, offset: u64, length: u64) {
        self.bytes.push(b'C');
        self.bytes.extend_from_slice(sum);
        self.bytes.extend_from_slice(&offset.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }

    /// Those of the file before, where it has several.
    pub(super) fn chunks(&mut self, table: &Table, file: &chunked::File) {
        let chunks = table.chunks(file);
        let mut offset = 0;
        for chunk in chunks.iter().filter(|_| chunks.len() > 1) {
            if !chunk.zeros {
                self.chunk(&chunk.digest, offset, chunk.size);
            }
            offset += chunk.size;
        }
    }

    pub(super) fn small(&mut self, sum: &Sum, bytes: &[u8]) {
        let Ok(length) = u8::try_from(bytes.len()) else { return };
        self.bytes.push(b'I');
        self.bytes.extend_from_slice(sum);
        self.bytes.push(length);
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'E');
        let sum = Sha256::digest(&self.bytes);
        self.bytes.extend_from_slice(&sum);
        self.bytes
    }

    /// As if this were all.
    pub(super) fn so_far(&self) -> Vec<u8> {
        let bytes = self.bytes.clone();
        Self { bytes }.finish()
    }
}

/// What a file of the index says.
pub(super) enum Record {
    File { sum: Sum, id: ObjectId, size: u64 },
    Chunk { sum: Sum, offset: u64, length: u64 },
    Small { sum: Sum, bytes: Box<[u8]> },
}

impl Record {
    /// SHA-256 of what it is about.
    pub(super) fn sum(&self) -> &Sum {
        match self {
            Self::File { sum, .. } | Self::Chunk { sum, .. } | Self::Small { sum, .. } => sum,
        }
    }
}

/// Fails where the sum at the end of a file is not that of what is before; the file is at its beginning otherwise.
pub(super) fn check(file: &mut (impl Read + Seek)) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut left = end.checked_sub(32).ok_or_else(|| invalid("cut"))?;
    file.rewind()?;
    let (mut hash, mut buffer, mut sum) = (Sha256::new(), vec![0; 128 << 10], Sum::default());
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..most])?;
        hash.update(&buffer[..most]);
        left -= most as u64;
    }
    file.read_exact(&mut sum)?;
    file.rewind()?;
    match Sum::from(hash.finalize()) == sum {
        true => Ok(()),
        false => Err(invalid("damaged")),
    }
}

/// Reads a file of the index, which was [checked](check).
pub(super) struct Records<R> {
    reader: R,
    algorithm: Algorithm,
}

impl<R: BufRead> Records<R> {
    pub(super) fn new(reader: R, algorithm: Algorithm) -> io::Result<Self> {
        let mut records = Self { reader, algorithm };
        let head: [u8; 16] = records.take()?;
        match head.starts_with(MAGIC) && head[8..10] == [VERSION, algorithm.number()] {
            true => Ok(records),
            false => Err(invalid("of another version or algorithm")),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let [kind] = self.take()?;
        let sum = self.take()?;
        Ok(Some(match kind {
            b'E' if self.reader.fill_buf()?.is_empty() => return Ok(None),
            b'F' => {
                let mut raw = [0; 64];
                let raw = &mut raw[..self.algorithm.len()];
                self.reader.read_exact(raw)?;
                let id = ObjectId::from_bytes(self.algorithm, raw).ok_or_else(|| invalid("damaged"))?;
                let size = u64::from_le_bytes(self.take()?);
                Record::File { sum, id, size }
            }
            b'C' => Record::Chunk {
                sum,
                offset: u64::from_le_bytes(self.take()?),
                length: u64::from_le_bytes(self.take()?),
            },
            b'I' => {
                let [length] = self.take()?;
                if u64::from(length) > INLINE_MAX {
                    return Err(invalid("damaged"));
                }
                let mut bytes = vec![0; usize::from(length)].into_boxed_slice();
                self.reader.read_exact(&mut bytes)?;
                Record::Small { sum, bytes }
            }
            _ => return Err(invalid("damaged")),
        }))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
