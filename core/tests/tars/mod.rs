//! Tar archives made by hand, so that odd ones can be made, too.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{BufRead, Cursor, Write};

use cfs_core::ids::DiffId;
use cfs_core::store::import::{Compression, LayerSource};
use sha2::{Digest, Sha256};

/// A tar that grows entry by entry.
#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

/// A header to be changed before its checksum is made.
pub struct Header(pub [u8; 512]);

impl Header {
    pub fn new(path: &str, kind: u8, size: u64) -> Self {
        let mut header = Self([0; 512]);
        header.put(0, path.as_bytes());
        header.put(100, b"0000755\0");
        header.put(108, b"0001750\0");
        header.put(116, b"0000144\0");
        header.put(124, format!("{size:011o}\0").as_bytes());
        header.put(136, b"14520000000\0");
        header.0[156] = kind;
        header.put(257, b"ustar\x0000");
        header
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn gnu(mut self) -> Self {
        self.put(257, b"ustar  \0");
        self
    }

    pub fn finish(mut self) -> [u8; 512] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Content and its padding.
    pub fn content(self, content: &[u8]) -> Self {
        let padding = content.len().next_multiple_of(512) - content.len();
        self.raw(content).raw(&vec![0; padding])
    }

    pub fn header(self, header: Header) -> Self {
        self.raw(&header.finish())
    }

    pub fn directory(self, path: &str) -> Self {
        self.header(Header::new(path, b'5', 0))
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.header(Header::new(path, b'0', content.len() as u64))
            .content(content)
    }

    pub fn link(self, path: &str, kind: u8, target: &str) -> Self {
        let mut header = Header::new(path, kind, 0);
        header.put(157, target.as_bytes());
        self.header(header)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            body.extend_from_slice(&pax_record(key, value));
        }
        self.header(Header::new("PaxHeaders/x", b'x', body.len() as u64))
            .content(&body)
    }

    pub fn long_name(self, kind: u8, name: &str) -> Self {
        let body = [name.as_bytes(), b"\0"].concat();
        self.header(Header::new("././@LongLink", kind, body.len() as u64).gnu())
            .content(&body)
    }

    /// With the two zero blocks.
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let payload = key.len() + value.len() + 3;
    let mut length = payload + 1;
    while length != payload + length.to_string().len() {
        length = payload + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub fn diff_id(tar: &[u8]) -> DiffId {
    DiffId::from_hash(Sha256::digest(tar).into())
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 3).unwrap()
}

/// A layer to import: a blob, and the digest that its tar is said to have.
pub fn source(diff_id: DiffId, compression: Compression, blob: Vec<u8>) -> LayerSource<'static> {
    LayerSource {
        partial: None,
        remote: None,
        diff_id,
        size: blob.len() as u64,
        compression,
        open: Box::new(move || Ok(Box::new(Cursor::new(blob)) as Box<dyn BufRead + Send>)),
    }
}
