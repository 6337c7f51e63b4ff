//! All attributes of an image, each once.
//!
//! Invariant: the numbers of attributes follow the order of their first use; hashes only find equal ones. Nearly all are the
//! digest and the path of one object: of these only where the tree has the digest is kept.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use xxhash_rust::xxh32::xxh32;

use super::attributes::{Derived, Made};
use super::format::{FILTER_SEED, PREFIXES};
use crate::error::Result;
use crate::tree::{Span, Tree, count, push_bytes};

/// An attribute's name.
struct Key {
    name: Span,
    prefix: u8,
    prefix_len: usize,
    filter: u32,
}

/// A name with a value, once however often it is used.
struct Attribute {
    key: u32,
    value: Value,
    uses: u32,
    /// In the shared table, where it is in it.
    offset: u32,
}

#[derive(Clone, Copy)]
enum Value {
    /// In [`Pool::bytes`].
    Kept(Span),
    Derived(Derived),
}

/// A value's bytes.
pub enum Bytes<'p> {
    Kept(&'p [u8]),
    Made(Made),
}

impl std::ops::Deref for Bytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Kept(bytes) => bytes,
            Self::Made(made) => made,
        }
    }
}

/// Attributes and their names, each once.
pub struct Pool<'t> {
    tree: &'t Tree,
    bytes: Vec<u8>,
    keys: Vec<Key>,
    key_index: HashTable<u32>,
    attributes: Vec<Attribute>,
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

impl<'t> Pool<'t> {
    /// None yet, with room for those of as many files with content elsewhere.
    pub fn new(tree: &'t Tree, files: usize) -> Self {
        Self {
            tree,
            bytes: Vec::new(),
            keys: Vec::new(),
            key_index: HashTable::new(),
            attributes: Vec::with_capacity(files * 2),
            index: HashTable::with_capacity(files * 2),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The number of an attribute; counts its use. `derived`: what `value` can be made of again.
    pub fn attribute(&mut self, key: &[u8], value: &[u8], derived: Option<Derived>) -> Result<u32> {
        let key = self.key(key)?;
        let hash = hash(&self.hasher, key, value);
        let same = |number: &u32| self.attributes[*number as usize].key == key && *self.value(*number) == *value;
        if let Some(number) = self.index.find(hash, same).copied() {
            self.attributes[number as usize].uses += 1;
            return Ok(number);
        }
        let number = count(self.attributes.len())?;
        let value = match derived {
            Some(derived) => Value::Derived(derived),
            None => Value::Kept(push_bytes(&mut self.bytes, value)?),
        };
        self.attributes.push(Attribute {
            key,
            value,
            uses: 1,
            offset: 0,
        });
        let mut index = std::mem::take(&mut self.index);
        index.insert_unique(hash, number, |number| {
            self::hash(
                &self.hasher,
                self.attributes[*number as usize].key,
                &self.value(*number),
            )
        });
        self.index = index;
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
        let same = |number: &u32| keys[*number as usize].name.of(bytes) == name;
        if let Some(number) = key_index.find(hash, same) {
            return Ok(*number);
        }
        let number = count(keys.len())?;
        let (prefix, prefix_len) = prefix(name);
        keys.push(Key {
            name: push_bytes(bytes, name)?,
            prefix,
            prefix_len,
            filter: 1 << (xxh32(&name[prefix_len..], FILTER_SEED + u32::from(prefix)) & 31),
        });
        key_index.insert_unique(hash, number, |number| {
            self::hash(hasher, 0, keys[*number as usize].name.of(bytes))
        });
        Ok(number)
    }

    /// Prefix index, rest of the name, value.
    pub fn get(&self, number: u32) -> (u8, &[u8], Bytes<'_>) {
        let key = self.key_of(number);
        (
            key.prefix,
            &key.name.of(&self.bytes)[key.prefix_len..],
            self.value(number),
        )
    }

    fn key_of(&self, number: u32) -> &Key {
        &self.keys[self.attributes[number as usize].key as usize]
    }

    fn value(&self, number: u32) -> Bytes<'_> {
        match self.attributes[number as usize].value {
            Value::Kept(span) => Bytes::Kept(span.of(&self.bytes)),
            Value::Derived(derived) => Bytes::Made(derived.value(self.tree)),
        }
    }

    /// Bytes that an attribute takes.
    pub fn size(&self, number: u32) -> usize {
        let key = self.key_of(number);
        let value = match self.attributes[number as usize].value {
            Value::Kept(span) => span.len(),
            Value::Derived(derived) => derived.len(),
        };
        (4 + key.name.len() - key.prefix_len + value).next_multiple_of(4)
    }

    /// Whether more than one inode has it, so that it is in the shared table.
    pub fn is_shared(&self, number: u32) -> bool {
        self.attributes[number as usize].uses > 1
    }

    /// Where in the shared table it is.
    pub fn offset(&self, number: u32) -> u32 {
        self.attributes[number as usize].offset
    }

    /// The bit that its name has in an inode's name filter.
    pub fn filter(&self, number: u32) -> u32 {
        self.key_of(number).filter
    }

    /// Lays out the shared table; gives its attributes in its order.
    pub fn share(&mut self) -> Result<Vec<u32>> {
        let all = 0..count(self.attributes.len())?;
        let mut shared: Vec<u32> = all.filter(|number| self.is_shared(*number)).collect();
        shared.sort_unstable_by(|a, b| {
            let name = |number: &u32| self.key_of(*number).name.of(&self.bytes);
            name(b).cmp(name(a)).then_with(|| {
                let (value_a, value_b) = (self.value(*a), self.value(*b));
                value_b.len().cmp(&value_a.len()).then_with(|| value_b.cmp(&value_a))
            })
        });
        let mut offset = 0;
        for number in &shared {
            self.attributes[*number as usize].offset = count(offset)?;
            offset += self.size(*number);
        }
        Ok(shared)
    }
}

fn hash(hasher: &DefaultHashBuilder, key: u32, value: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(key);
    state.write(value);
    state.finish()
}
