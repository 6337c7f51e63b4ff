//! How much memory the tables of an image's layers may take while its layers wait for their turn.
//!
//! Invariant: together they take no more than the limit, or what the first one takes, which has a bound of its own.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;
use crate::ids::DiffId;
use crate::store::partial::{self, Decision};

/// What the tables of a plan's layers may take of memory, with what was found of them: about that of a million files.
/// Whatever names a table as often as a manifest has room for gets no more.
pub(super) const TABLES: usize = 256 << 20;

/// The memory that there is for tables.
pub(super) struct Room {
    limit: usize,
    taken: AtomicUsize,
}

impl Room {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: AtomicUsize::new(0),
        }
    }

    /// What `decide` says of a layer, if there is room for it. Nothing is asked any more once there was none.
    pub(super) fn take(&self, layer: &DiffId, decide: impl FnOnce() -> Result<Decision>) -> Result<Decision> {
        if self.taken.load(Ordering::Relaxed) > self.limit {
            return Err(partial::too_many(layer));
        }
        let decision = decide()?;
        let weight = decision.weight();
        let before = self.taken.fetch_add(weight, Ordering::Relaxed);
        // A single one has a bound of its own.
        let fits = before == 0 || before.saturating_add(weight) <= self.limit;
        match fits || weight == 0 {
            true => Ok(decision),
            false => Err(partial::too_many(layer)),
        }
    }
}
