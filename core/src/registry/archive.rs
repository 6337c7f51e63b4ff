//! A tar file of blobs, read by name: where each member is, is found out once, then any of them can be read at any time
//! and by several threads.
//!
//! A compressed archive, or one that comes through a pipe, is copied into an unnamed file first; it vanishes with the
//! process. Nothing of the archive is trusted: members are looked up by exact names, nothing is written anywhere under
//! a name of theirs. What is in it is found out in `members.rs`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::sys::fs;

mod members;

use members::{Content, Member};

const BUFFER: usize = 256 << 10;
/// The most memory that unpacking xz may take, in KiB: `xz -9` needs 65 MiB.
const XZ_MEMORY: u32 = 256 << 10;

/// An archive, open.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<String, Member>,
}

/// How a file is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Packing {
    pub(super) fn of(first: &[u8]) -> Option<Self> {
        match first {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Self::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A'] => Some(Self::Bzip2),
            _ => None,
        }
    }
}

impl Archive {
    /// Opens and lists it; a compressed one is unpacked to an unnamed file in `temporary`.
    pub(super) fn open(path: &Path, temporary: &Path) -> Result<Self> {
        let fail = |e| Error::io("read", path, e);
        let mut file = File::open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            // A pipe, such as /dev/stdin, is read once.
            file = unpack(path, file, temporary)?;
        }
        let mut first = [0; 6];
        let read = file.read_at(&mut first, 0).map_err(fail)?;
        match Packing::of(&first[..read]) {
            None => {}
            Some(Packing::Gzip) => file = unpack(path, Gzip::new(buffered(file)), temporary)?,
            Some(Packing::Zstd) => {
                let mut decoder = zstd::Decoder::new(file).map_err(fail)?;
                decoder.window_log_max(27).map_err(fail)?;
                file = unpack(path, decoder, temporary)?;
            }
            Some(Packing::Xz) => {
                file = unpack(
                    path,
                    lzma_rust2::XzReader::new_mem_limit(buffered(file), true, XZ_MEMORY),
                    temporary,
                )?
            }
            Some(Packing::Bzip2) => {
                file = unpack(path, bzip2::bufread::MultiBzDecoder::new(buffered(file)), temporary)?
            }
        }
        let members = members::list(&file).map_err(|why| Error::File {
            path: path.to_path_buf(),
            why,
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            file: Arc::new(file),
            members,
        })
    }

    /// For messages: a member as `ARCHIVE:NAME`.
    pub(super) fn name(&self, member: &str) -> String {
        format!("{}:{member}", self.path.display())
    }

    /// The size of a member; `None` where there is none.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.find(name).map(Content::size)
    }

    /// A whole small member; `None` where there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((size, mut reader)) = self.size(name).zip(self.reader(name, 0)) else {
            return Ok(None);
        };
        let fail = |e| Error::io("read", self.name(name), e);
        if size > limit {
            return Err(fail(io::Error::other(format!("larger than {limit} bytes"))));
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        reader.read_exact(&mut content).map_err(fail)?;
        Ok(Some(content))
    }

    /// How a member is compressed.
    pub(super) fn packing(&self, name: &str) -> Result<Option<Packing>> {
        let mut first = [0; 6];
        let read = match self.reader(name, 0) {
            Some(mut reader) => {
                read_some(&mut reader, &mut first).map_err(|e| Error::io("read", self.name(name), e))?
            }
            None => 0,
        };
        Ok(Packing::of(&first[..read]))
    }

    /// The SHA-256 of a member.
    pub(super) fn hash(&self, name: &str) -> Result<[u8; 32]> {
        let mut hash = Sha256::new();
        if let Some(mut reader) = self.reader(name, 0) {
            let fail = |e| Error::io("read", self.name(name), e);
            loop {
                let bytes = reader.fill_buf().map_err(fail)?;
                let read = bytes.len();
                if read == 0 {
                    break;
                }
                hash.update(bytes);
                reader.consume(read);
            }
        }
        Ok(hash.finalize().into())
    }

    /// A member from byte `from` on; `None` where there is none.
    pub(super) fn reader(&self, name: &str, from: u64) -> Option<BufReader<impl Read + Send + use<>>> {
        let reader = self.find(name)?.reader(self.file.clone(), from);
        Some(BufReader::with_capacity(BUFFER, reader))
    }

    /// Where a member's content is, links followed: `docker save` writes layers that occur twice as links.
    fn find(&self, name: &str) -> Option<&Content> {
        let mut name = name;
        for _ in 0..8 {
            match self.members.get(name)? {
                Member::Content(content) => return Some(content),
                Member::Link(target) => name = target,
            }
        }
        None
    }
}

/// gzip, member after member. Zeros behind one are none: what is padded to whole blocks, as for a tape, is read as gzip
/// reads it.
struct Gzip<R>(Option<flate2::bufread::GzDecoder<R>>);

impl<R: BufRead> Gzip<R> {
    fn new(from: R) -> Self {
        Self(Some(flate2::bufread::GzDecoder::new(from)))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut from) = self.0.take().map(flate2::bufread::GzDecoder::into_inner) else {
                break;
            };
            if skip_zeros(&mut from)? {
                *self = Self::new(from);
            }
        }
        Ok(0)
    }
}

/// Whether anything else follows.
fn skip_zeros(from: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = from.fill_buf()?;
        let (all, zeros) = (bytes.len(), bytes.iter().take_while(|byte| **byte == 0).count());
        from.consume(zeros);
        if zeros < all || all == 0 {
            return Ok(all > 0);
        }
    }
}

/// The bytes of a compressed archive, in a file without a name.
fn unpack(path: &Path, mut decoder: impl Read, temporary: &Path) -> Result<File> {
    let fail = |e| Error::temporary(temporary, Error::io("unpack", path, e));
    let mut file = fs::unnamed(temporary)?;
    io::copy(&mut decoder, &mut file).map_err(fail)?;
    file.rewind().map_err(fail)?;
    Ok(file)
}

fn buffered(file: File) -> BufReader<File> {
    BufReader::with_capacity(BUFFER, file)
}

/// As many bytes as there are, up to the buffer's.
fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match from.read(&mut buffer[read..])? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}
