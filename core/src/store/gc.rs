//! Removes what nothing needs.

use crate::error::Result;
use crate::ids::ObjectId;
use crate::store::Store;

/// Gives the objects that an image refers to; `image::reader` does it.
pub type ObjectsOf<'a> = &'a dyn Fn(&[u8]) -> Result<Vec<ObjectId>>;

/// What is kept beside what `streams/refs` and `images/refs` name.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// Images, with all that they need.
    pub images: Vec<ObjectId>,
    /// Streams by name (`oci-manifest-sha256:…`), with all that they need.
    pub streams: Vec<String>,
}

/// What a collection removes.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Objects and their sizes in bytes.
    pub objects: Vec<(ObjectId, u64)>,
    /// Names below `images/`.
    pub images: Vec<String>,
    /// Names below `streams/`.
    pub streams: Vec<String>,
}

/// Finds out what would be removed, and removes nothing.
pub fn plan(store: &Store, roots: &Roots, objects_of: ObjectsOf<'_>) -> Result<Plan> {
    let _ = (store, roots, objects_of);
    Err(crate::error::Error::Usage("not built yet".into()))
}

/// Removes what [`plan`] finds, durably, and returns it.
pub fn run(store: &Store, roots: &Roots, objects_of: ObjectsOf<'_>) -> Result<Plan> {
    let _ = (store, roots, objects_of);
    Err(crate::error::Error::Usage("not built yet".into()))
}
