//! Extended attributes of an image: those of one inode while they are put together, and all of them, each once.
//!
//! Invariant: the numbers of attributes follow the order of their first use; hashes only find equal ones.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use xxhash_rust::xxh32::xxh32;

use super::format::{FILTER_SEED, PREFIXES};
use crate::error::Result;
use crate::tree::count;

/// Bytes of the tree, or a run of [`Attributes::bytes`].
#[derive(Clone, Copy)]
pub enum Piece<'t> {
    Of(&'t [u8]),
    Own(usize, usize),
}

/// Keys and values of one inode; used again for the next.
#[derive(Default)]
pub struct Attributes<'t> {
    pub pairs: Vec<(Piece<'t>, Piece<'t>)>,
    pub bytes: Vec<u8>,
}

impl<'t> Attributes<'t> {
    pub fn own(&mut self, parts: &[&[u8]]) -> Piece<'t> {
        let start = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        Piece::Own(start, self.bytes.len())
    }

    fn get<'a>(bytes: &'a [u8], piece: &Piece<'a>) -> &'a [u8] {
        match *piece {
            Piece::Of(bytes) => bytes,
            Piece::Own(start, end) => &bytes[start..end],
        }
    }

    /// Sets an attribute in place of one with the same key.
    pub fn set(&mut self, key: &'static [u8], value: Piece<'t>) {
        let bytes = &self.bytes;
        match self.pairs.iter_mut().find(|(k, _)| Self::get(bytes, k) == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((Piece::Of(key), value)),
        }
    }

    pub fn sort(&mut self) {
        let bytes = &self.bytes;
        self.pairs
            .sort_unstable_by(|(a, _), (b, _)| Self::get(bytes, a).cmp(Self::get(bytes, b)));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pairs
            .iter()
            .map(|(key, value)| (Self::get(&self.bytes, key), Self::get(&self.bytes, value)))
    }
}

/// An attribute's name.
pub struct Key {
    start: usize,
    len: usize,
    pub prefix: u8,
    pub prefix_len: usize,
    pub filter: u32,
}

/// A name with a value, once however often it is used.
pub struct Attribute {
    pub key: u32,
    start: usize,
    len: usize,
    pub uses: u32,
    /// In the shared table, where it is in it.
    pub offset: u32,
}

/// Attributes and their names, each once.
#[derive(Default)]
pub struct Pool {
    bytes: Vec<u8>,
    pub keys: Vec<Key>,
    key_index: HashTable<u32>,
    pub attributes: Vec<Attribute>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// Index and length of the prefix that an attribute's name is written with.
pub fn prefix(key: &[u8]) -> (u8, usize) {
    PREFIXES
        .iter()
        .find(|(prefix, _)| key.starts_with(prefix))
        .map_or((0, 0), |(prefix, index)| (*index, prefix.len()))
}

impl Pool {
    /// Makes room for the attributes of this many files with content elsewhere.
    pub fn reserve(&mut self, files: usize) {
        self.bytes.reserve(files * 104);
        self.attributes.reserve(files * 2);
        self.index.reserve(files * 2, |_| 0);
    }

    /// The number of an attribute; counts its use.
    pub fn attribute(&mut self, key: &[u8], value: &[u8]) -> Result<u32> {
        let key = self.key(key)?;
        let hash = hash(&self.hasher, key, value);
        let Self {
            bytes,
            attributes,
            index,
            hasher,
            ..
        } = self;
        let value_of = |a: &Attribute| a.start..a.start + a.len;
        let same = |number: &u32| {
            let attribute = &attributes[*number as usize];
            attribute.key == key && bytes[value_of(attribute)] == *value
        };
        if let Some(number) = index.find(hash, same).copied() {
            attributes[number as usize].uses += 1;
            return Ok(number);
        }
        let number = count(attributes.len())?;
        attributes.push(Attribute {
            key,
            start: bytes.len(),
            len: value.len(),
            uses: 1,
            offset: 0,
        });
        bytes.extend_from_slice(value);
        index.insert_unique(hash, number, |number| {
            let attribute = &attributes[*number as usize];
            self::hash(hasher, attribute.key, &bytes[value_of(attribute)])
        });
        Ok(number)
    }

    fn key(&mut self, name: &[u8]) -> Result<u32> {
        let hash = hash(&self.hasher, 0, name);
        let Self {
            bytes,
            keys,
            key_index,
            hasher,
            ..
        } = self;
        let same = |number: &u32| {
            let key = &keys[*number as usize];
            bytes[key.start..key.start + key.len] == *name
        };
        if let Some(number) = key_index.find(hash, same) {
            return Ok(*number);
        }
        let number = count(keys.len())?;
        let (prefix, prefix_len) = prefix(name);
        keys.push(Key {
            start: bytes.len(),
            len: name.len(),
            prefix,
            prefix_len,
            filter: 1 << (xxh32(&name[prefix_len..], FILTER_SEED + u32::from(prefix)) & 31),
        });
        bytes.extend_from_slice(name);
        key_index.insert_unique(hash, number, |number| {
            let key = &keys[*number as usize];
            self::hash(hasher, 0, &bytes[key.start..key.start + key.len])
        });
        Ok(number)
    }

    /// Name and value.
    pub fn get(&self, number: u32) -> (&[u8], &[u8]) {
        let attribute = &self.attributes[number as usize];
        let key = &self.keys[attribute.key as usize];
        let key = &self.bytes[key.start..key.start + key.len];
        (key, &self.bytes[attribute.start..attribute.start + attribute.len])
    }

    /// Bytes that an attribute takes.
    pub fn size(&self, number: u32) -> usize {
        let attribute = &self.attributes[number as usize];
        let key = &self.keys[attribute.key as usize];
        (4 + key.len - key.prefix_len + attribute.len).next_multiple_of(4)
    }
}

fn hash(hasher: &DefaultHashBuilder, key: u32, value: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(key);
    state.write(value);
    state.finish()
}
