//! Layers into one tree.
use crate::error::Result;
use crate::layers::Entry;

use super::Tree;

/// Merges layers.
#[derive(Debug, Default)]
pub struct Merge {}

impl Merge {
    /// An empty root.
    pub fn new() -> Self {
        todo!()
    }

    /// Applies one layer on top of those before it.
    pub fn layer(&mut self, entries: impl IntoIterator<Item = Result<Entry>>) -> Result<()> {
        let _ = entries;
        todo!()
    }

    /// The merged tree.
    pub fn finish(self) -> Result<Tree> {
        todo!()
    }
}
