//! What a search found, by SHA-256: some 60 bytes for each file or chunk, and its object's name once.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ids::ObjectId;
use crate::store::chunk_part::ChunkPart;
use crate::store::local::Place;

/// SHA-256 of content.
pub(super) type Sum = [u8; 32];

/// Where content is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hit<'f> {
    /// In an object, which has nothing else where it is `whole`.
    Object {
        id: &'f ObjectId,
        offset: u64,
        length: u64,
        whole: bool,
    },
    /// Here.
    Inline(&'f [u8]),
    /// In a file of podman's.
    Podman(&'f Place),
    /// In what an interrupted run kept of a file.
    Kept {
        part: &'f ChunkPart,
        offset: u64,
        length: u64,
    },
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    by_sum: HashMap<Sum, Content>,
    /// Objects, by the places that `by_sum` has.
    objects: Vec<ObjectId>,
    podman: bool,
    /// What is kept of files, by their sums.
    parts: HashMap<Sum, Arc<ChunkPart>>,
}

#[derive(Debug)]
enum Content {
    Object {
        at: u32,
        offset: u64,
        length: u64,
        whole: bool,
    },
    Inline(Box<[u8]>),
    Podman(Box<Place>),
    Kept(Box<(Arc<ChunkPart>, u64, u64)>),
}

impl Found {
    /// Whether anything with this sum was found.
    pub(super) fn contains(&self, sum: &Sum) -> bool {
        self.by_sum.contains_key(sum)
    }

    /// Whether an object that is this content, and no larger one, was found.
    pub(super) fn has_object(&self, sum: &Sum) -> bool {
        matches!(self.by_sum.get(sum), Some(Content::Object { whole: true, .. }))
    }

    /// Whether content with this sum was found, and has this size in bytes.
    pub(super) fn has(&self, sum: &Sum, size: u64) -> bool {
        match self.get(sum) {
            Some(Hit::Object { length, .. } | Hit::Kept { length, .. }) => length == size,
            Some(Hit::Inline(bytes)) => bytes.len() as u64 == size,
            Some(Hit::Podman(place)) => place.size == size,
            None => false,
        }
    }

    /// Where content with this sum is.
    pub(super) fn get(&self, sum: &Sum) -> Option<Hit<'_>> {
        Some(match self.by_sum.get(sum)? {
            Content::Object {
                at,
                offset,
                length,
                whole,
            } => Hit::Object {
                id: self.objects.get(*at as usize)?,
                offset: *offset,
                length: *length,
                whole: *whole,
            },
            Content::Inline(bytes) => Hit::Inline(bytes),
            Content::Podman(place) => Hit::Podman(place),
            Content::Kept(kept) => Hit::Kept {
                part: &kept.0,
                offset: kept.1,
                length: kept.2,
            },
        })
    }

    /// Whether some of it is podman's.
    pub(super) fn takes_from_podman(&self) -> bool {
        self.podman
    }

    /// Notes an object of this size, or a part of one. Parts of one come one after the other.
    pub(super) fn object(&mut self, sum: Sum, (id, size): (ObjectId, u64), offset: u64, length: u64) {
        if self.objects.last() != Some(&id) {
            self.objects.push(id);
        }
        // More objects than that have no room in any memory.
        if let Ok(at) = u32::try_from(self.objects.len() - 1) {
            let content = Content::Object {
                at,
                offset,
                length,
                whole: (offset, length) == (0, size),
            };
            self.by_sum.insert(sum, content);
        }
    }

    /// The objects of what was found.
    pub(super) fn objects(&self) -> &[ObjectId] {
        &self.objects
    }

    /// Bytes of memory that it takes.
    pub(super) fn weight(&self) -> usize {
        let inline = |content: &Content| match content {
            Content::Inline(bytes) => bytes.len(),
            _ => 0,
        };
        self.by_sum.capacity() * size_of::<(Sum, Content)>()
            + self.by_sum.values().map(inline).sum::<usize>()
            + self.objects.capacity() * size_of::<ObjectId>()
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

    /// Notes what is kept of a file.
    pub(super) fn part(&mut self, sum: Sum, part: ChunkPart) -> Arc<ChunkPart> {
        let part = Arc::new(part);
        self.parts.insert(sum, part.clone());
        part
    }

    /// What is kept of the file with this sum.
    pub(super) fn part_of(&self, sum: &Sum) -> Option<Arc<ChunkPart>> {
        self.parts.get(sum).cloned()
    }

    /// Notes a chunk of what is kept of a file.
    pub(super) fn kept(&mut self, sum: Sum, part: &Arc<ChunkPart>, offset: u64, length: u64) {
        self.by_sum
            .insert(sum, Content::Kept(Box::new((part.clone(), offset, length))));
    }
}
