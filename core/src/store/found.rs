//! What a search found, by SHA-256: some 60 bytes for each file or chunk, and its object's name once.

use std::collections::HashMap;

use crate::ids::ObjectId;
use crate::store::local::Place;

/// SHA-256 of content.
pub(super) type Sum = [u8; 32];

/// Where content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit<'f> {
    /// In an object: all of it, or a part.
    Object { id: &'f ObjectId, offset: u64, length: u64 },
    /// Here.
    Inline(&'f [u8]),
    /// In a file of podman's.
    Podman(&'f Place),
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    by_sum: HashMap<Sum, Content>,
    /// Objects, by the places that `by_sum` has.
    objects: Vec<ObjectId>,
    podman: bool,
}

#[derive(Debug)]
enum Content {
    Object { at: u32, offset: u64, length: u64 },
    Inline(Box<[u8]>),
    Podman(Box<Place>),
}

impl Found {
    /// Whether anything with this sum was found.
    pub(super) fn contains(&self, sum: &Sum) -> bool {
        self.by_sum.contains_key(sum)
    }

    /// Whether content with this sum was found, and has this size in bytes.
    pub(super) fn has(&self, sum: &Sum, size: u64) -> bool {
        match self.get(sum) {
            Some(Hit::Object { length, .. }) => length == size,
            Some(Hit::Inline(bytes)) => bytes.len() as u64 == size,
            Some(Hit::Podman(place)) => place.size == size,
            None => false,
        }
    }

    /// Where content with this sum is.
    pub(super) fn get(&self, sum: &Sum) -> Option<Hit<'_>> {
        Some(match self.by_sum.get(sum)? {
            Content::Object { at, offset, length } => Hit::Object {
                id: self.objects.get(*at as usize)?,
                offset: *offset,
                length: *length,
            },
            Content::Inline(bytes) => Hit::Inline(bytes),
            Content::Podman(place) => Hit::Podman(place),
        })
    }

    /// Whether some of it is podman's.
    pub(super) fn takes_from_podman(&self) -> bool {
        self.podman
    }

    /// Notes a part of an object. Parts of one come one after the other.
    pub(super) fn object(&mut self, sum: Sum, id: ObjectId, offset: u64, length: u64) {
        if self.objects.last() != Some(&id) {
            self.objects.push(id);
        }
        // More objects than that have no room in any memory.
        if let Ok(at) = u32::try_from(self.objects.len() - 1) {
            self.by_sum.insert(sum, Content::Object { at, offset, length });
        }
    }

    /// Nothing more is noted: gives back what is not needed for that.
    pub(super) fn shrink(&mut self) {
        self.by_sum.shrink_to_fit();
        self.objects.shrink_to_fit();
    }

    /// Notes content that is here.
    pub(super) fn inline(&mut self, sum: Sum, bytes: Box<[u8]>) {
        self.by_sum.insert(sum, Content::Inline(bytes));
    }

    /// Notes a file of podman's.
    pub(super) fn podmans(&mut self, sum: Sum, place: Place) {
        self.podman = true;
        self.by_sum.insert(sum, Content::Podman(Box::new(place)));
    }
}
