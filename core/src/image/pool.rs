//! All attributes of an image, each once.
//!
//! Invariant: the numbers of attributes follow the order of their first use; hashes only find equal ones. Nearly all
//! are the digest and the path of one object: of these only where the tree has the digest is kept.

use std::cmp::Ordering;
use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use xxhash_rust::xxh32::xxh32;

use super::attributes::{Derived, Made, Value, digest_in};
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
    value: Stored,
    uses: u32,
    /// In the shared table, where it is in it.
    offset: u32,
}

#[derive(Clone, Copy)]
enum Stored {
    /// In [`Pool::bytes`].
    Bytes(Span),
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

    /// The number of an attribute; counts its use.
    pub fn attribute(&mut self, key: &[u8], value: Value<'_>) -> Result<u32> {
        let key = self.key(key)?;
        let hash = self.hash(key, value);
        let same = |number: &u32| self.attributes[*number as usize].key == key && self.is(*number, value);
        if let Some(number) = self.index.find(hash, same).copied() {
            self.attributes[number as usize].uses += 1;
            return Ok(number);
        }
        let number = count(self.attributes.len())?;
        let value = match value {
            Value::Derived(derived) => Stored::Derived(derived),
            Value::Bytes(bytes) => Stored::Bytes(push_bytes(&mut self.bytes, bytes)?),
        };
        self.attributes.push(Attribute {
            key,
            value,
            uses: 1,
            offset: 0,
        });
        let mut index = std::mem::take(&mut self.index);
        index.insert_unique(hash, number, |number| {
            self.hash(self.attributes[*number as usize].key, self.kept(*number))
        });
        self.index = index;
        Ok(number)
    }

    /// The same for equal values, whether they are made or not.
    fn hash(&self, key: u32, value: Value<'_>) -> u64 {
        match value {
            Value::Derived(derived) => hash(&self.hasher, key, self.tree.get(derived.digest())),
            Value::Bytes(bytes) => match digest_in(bytes) {
                Some((digest, len)) => hash(&self.hasher, key, &digest[..len]),
                None => hash(&self.hasher, key, bytes),
            },
        }
    }

    /// Whether an attribute has this value.
    fn is(&self, number: u32, value: Value<'_>) -> bool {
        match (self.kept(number), value) {
            (Value::Bytes(one), Value::Bytes(other)) => one == other,
            (Value::Derived(one), Value::Derived(other)) => {
                std::mem::discriminant(&one) == std::mem::discriminant(&other)
                    && self.tree.get(one.digest()) == self.tree.get(other.digest())
            }
            (Value::Derived(made), Value::Bytes(bytes)) | (Value::Bytes(bytes), Value::Derived(made)) => {
                *made.value(self.tree) == *bytes
            }
        }
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

    fn kept(&self, number: u32) -> Value<'_> {
        match self.attributes[number as usize].value {
            Stored::Bytes(span) => Value::Bytes(span.of(&self.bytes)),
            Stored::Derived(derived) => Value::Derived(derived),
        }
    }

    fn value(&self, number: u32) -> Bytes<'_> {
        match self.kept(number) {
            Value::Bytes(bytes) => Bytes::Kept(bytes),
            Value::Derived(derived) => Bytes::Made(derived.value(self.tree)),
        }
    }

    /// Bytes that an attribute takes.
    pub fn size(&self, number: u32) -> usize {
        let key = self.key_of(number);
        (4 + key.name.len() - key.prefix_len + self.kept(number).len()).next_multiple_of(4)
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
            let len = |number: &u32| self.kept(*number).len();
            let names = name(b).cmp(name(a));
            names.then_with(|| len(b).cmp(&len(a))).then_with(|| self.order(*b, *a))
        });
        let mut offset = 0;
        for number in &shared {
            self.attributes[*number as usize].offset = count(offset)?;
            offset += self.size(*number);
        }
        Ok(shared)
    }

    /// The order of the values of two attributes that have the same name and equally long ones.
    fn order(&self, one: u32, other: u32) -> Ordering {
        match (self.kept(one), self.kept(other)) {
            (Value::Derived(one), Value::Derived(other)) => {
                self.tree.get(one.digest()).cmp(self.tree.get(other.digest()))
            }
            _ => self.value(one).cmp(&self.value(other)),
        }
    }
}

fn hash(hasher: &DefaultHashBuilder, key: u32, value: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(key);
    state.write(value);
    state.finish()
}
