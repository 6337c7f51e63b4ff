//! Reads an image.
use crate::error::Result;
use crate::tree::Tree;

/// Reads.
pub fn read(image: &[u8]) -> Result<Tree> {
    let _ = image;
    todo!()
}
