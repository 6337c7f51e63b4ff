//! The composefs-dump text.
use std::io::Write;

use crate::error::Result;
use crate::tree::Tree;

/// Parses.
pub fn parse(text: &[u8]) -> Result<Tree> {
    let _ = text;
    todo!()
}

/// Writes.
pub fn write(tree: &Tree, out: &mut dyn Write) -> std::io::Result<()> {
    let _ = (tree, out);
    todo!()
}
