//! Too little space: exit 4 before the first byte, nothing changed, the numbers and what would help.

mod dry_run;
mod full;
mod refused;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::disk::Tmpfs;
use crate::common::layout::{Finished, How, Image, Layer, base, digest, noise, small};
use crate::common::registry::Registry;
use crate::common::{Cfs, is_root, list, name, scratch};

/// A layer blob of the image is asked for by GET.
fn fetched(registry: &Registry, image: &Finished) -> bool {
    // The last blob is the config.
    let layers = &image.blobs[..image.blobs.len() - 1];
    layers
        .iter()
        .any(|blob| !registry.blob_answers(&digest(blob)).is_empty())
}

fn objects(cfs: &Cfs) -> Vec<PathBuf> {
    let folders = list(&cfs.sysroot().join("composefs/objects"));
    folders.iter().flat_map(|folder| list(folder)).collect()
}

/// The number before `word` in what was said.
fn number(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap().trim_end();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number before {word:?} in {text}"))
}
