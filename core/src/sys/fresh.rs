//! What is in the folders of objects that this process made itself.
//!
//! A look whether an object is here costs a system call for each file; in a folder that was made a moment ago there is
//! nothing but what was put there since. Invariant: a folder is known only if this process made it, so nothing that was
//! there before is missed; what another process puts there meanwhile is met when the name is taken already.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::ids::ObjectId;

/// The objects in folders that were made here; memory is a digest for each of them.
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

    /// Has the folder of this object made by `make`, which says whether it did. Whoever puts something into it meanwhile
    /// waits to say so.
    pub(super) fn make(&self, id: &ObjectId, make: impl FnOnce() -> Result<bool>) -> Result<()> {
        let mut folder = self.of(id);
        if make()? {
            folder.get_or_insert_default();
        }
        Ok(())
    }

    /// The object got its name.
    pub(super) fn stored(&self, id: &ObjectId) {
        if let Some(objects) = &mut *self.of(id) {
            objects.insert(*id);
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
