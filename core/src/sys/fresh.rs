//! What is in the folders of objects that this process made itself.
//!
//! A look whether an object is here costs a system call for each file; in a folder that was made a moment ago there is
//! nothing but what was put there since. Invariant: a folder is known only if this process made it, so nothing that
//! was there before is missed; what another process puts there meanwhile is met when the name is taken already. A
//! folder that gets more objects than [`MOST`] is no longer known, so that memory does not grow with the image.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::ids::ObjectId;

/// How many objects of a folder are remembered: in all folders together, those of a large system (131,072), in 12 MiB.
const MOST: usize = 512;

/// The objects in folders that were made here.
#[derive(Debug)]
pub(super) struct Fresh {
    folders: [Mutex<Option<HashSet<ObjectId>>>; 256],
}

impl Fresh {
    pub(super) fn new() -> Self {
        Self {
            folders: [const { Mutex::new(None) }; 256],
        }
    }

    fn of(&self, id: &ObjectId) -> MutexGuard<'_, Option<HashSet<ObjectId>>> {
        let folder = &self.folders[usize::from(id.as_bytes()[0])];
        folder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the folder of this object made by `make`, which says whether it did. Whoever puts something into it
    /// meanwhile waits to say so.
    pub(super) fn make(&self, id: &ObjectId, make: impl FnOnce() -> Result<bool>) -> Result<()> {
        let mut folder = self.of(id);
        if make()? {
            folder.get_or_insert_default();
        }
        Ok(())
    }

    /// The object got its name.
    pub(super) fn stored(&self, id: &ObjectId) {
        let mut folder = self.of(id);
        if let Some(objects) = &mut *folder {
            objects.insert(*id);
            if objects.len() > MOST {
                *folder = None;
            }
        }
    }

    /// The object is removed.
    pub(super) fn removed(&self, id: &ObjectId) {
        if let Some(objects) = &mut *self.of(id) {
            objects.remove(id);
        }
    }

    /// Whether the object is here; `None` where that is not known without a look.
    pub(super) fn has(&self, id: &ObjectId) -> Option<bool> {
        self.of(id).as_ref().map(|objects| objects.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Algorithm;

    fn id(folder: u8, number: u16) -> ObjectId {
        let mut digest = [folder; 32];
        digest[1..3].copy_from_slice(&number.to_le_bytes());
        ObjectId::from_bytes(Algorithm::Sha256, &digest).unwrap()
    }

    #[test]
    fn a_folder_with_more_objects_than_are_remembered_is_looked_at_again() {
        let fresh = Fresh::new();
        for folder in [1, 2] {
            fresh.make(&id(folder, 0), || Ok(true)).unwrap();
        }
        for number in 0..=u16::try_from(MOST).unwrap() {
            assert_eq!(fresh.has(&id(1, number)), Some(false));
            fresh.stored(&id(1, number));
        }
        assert_eq!(fresh.has(&id(1, 0)), None);
        fresh.stored(&id(1, 0));
        assert_eq!(
            fresh.has(&id(1, 0)),
            None,
            "what was forgotten must not be known again in part"
        );
        assert_eq!(fresh.has(&id(2, 0)), Some(false));
    }
}
