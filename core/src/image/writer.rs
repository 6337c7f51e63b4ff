//! Writes an image.
use super::Versions;
use crate::error::Result;
use crate::tree::Tree;

/// Builds.
pub fn build(tree: &Tree, versions: Versions) -> Result<Vec<u8>> {
    let _ = (tree, versions);
    todo!()
}
