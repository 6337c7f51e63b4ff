//! Checks every object, image, stream and link.

use crate::error::Result;
use crate::store::Store;
use crate::store::gc::ObjectsOf;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: a path below the repository.
    pub path: String,
    /// What is wrong, and what to do.
    pub why: String,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects.
    pub objects: u64,
    /// Images.
    pub images: u64,
    /// Streams.
    pub streams: u64,
    /// Findings.
    pub findings: u64,
}

/// Checks everything, `sink` gets findings one by one; never stops at one.
pub fn check(store: &Store, objects_of: ObjectsOf<'_>, sink: &mut dyn FnMut(Finding)) -> Result<Summary> {
    let _ = (store, objects_of, sink);
    Err(crate::error::Error::Usage("not built yet".into()))
}
