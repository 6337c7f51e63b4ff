//! Layers to objects in one pass.

use std::io::Read;

use crate::error::Result;
use crate::ids::DiffId;
pub use crate::manifest::Compression;
use crate::monitor::Monitor;
use crate::store::Store;

/// Opens a blob when its turn has come.
pub type Open<'a> = Box<dyn FnOnce() -> Result<Box<dyn Read + Send + 'a>> + Send + 'a>;

/// One layer to import.
pub struct LayerSource<'a> {
    /// The digest that its tar must have.
    pub diff_id: DiffId,
    /// Compressed size in bytes; for progress only.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// Opens the blob; its reader fails at the end where size or digest are wrong.
    pub open: Open<'a>,
}

/// Imports layers side by side, `threads` at a time (0 = as many as there are cores); the caller leaves out those
/// that are here. Nothing refers to them before [`Store::publish`].
pub fn layers(store: &Store, sources: Vec<LayerSource<'_>>, threads: usize, monitor: &dyn Monitor) -> Result<()> {
    let _ = (store, sources, threads, monitor);
    super::todo()
}
