//! `image inspect SOURCE`: what is in a composefs image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::image;
use cfs_core::tree::{Kind, Regular, Tree};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::load::{self, Options};
use super::objects::Objects;
use super::source::Source;
use super::{PlatformArgs, container};
use crate::cmd::Context;
use crate::output::Report;

/// Where the header of an image has its format version.
const VERSION_AT: usize = 12;

/// Show what is in a composefs image or a container image
///
/// Of a container image, manifest and config are shown and no layer is fetched; with --objects or --missing-objects,
/// the composefs image that would be made of it is looked at.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Image file, digest of an image in the store, image reference, folder, dump, or - for standard input
    #[arg(value_name = "FILE|DIGEST|REF|-")]
    source: String,
    /// List the objects that the image needs, as ab/cdef…
    #[arg(long)]
    objects: bool,
    /// List the objects that the image needs and this folder has not
    #[arg(long, value_name = "DIR", conflicts_with = "objects")]
    missing_objects: Option<PathBuf>,
    #[command(flatten)]
    platform: PlatformArgs,
}

/// An image in numbers.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    digest: String,
    algorithm: &'static str,
    format_version: u8,
    bytes: usize,
    entries: u64,
    directories: u64,
    files: u64,
    inline_files: u64,
    symlinks: u64,
    others: u64,
    hard_links: u64,
    file_bytes: u64,
    objects: usize,
    object_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List(Vec<String>);

impl Report for List {
    fn human(&self) -> String {
        self.0.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl Inspect {
    pub fn run(self, context: &Context) -> Result<()> {
        let source = Source::of(&self.source)?;
        if let (Source::Reference(reference), false, None) = (&source, self.objects, &self.missing_objects) {
            return container::inspect(context, reference, self.platform);
        }
        let options = Options {
            platform: self.platform.platform,
            ..Options::default()
        };
        let (bytes, tree) = load::image(context, &source, &options, None)?;
        if self.objects || self.missing_objects.is_some() {
            let there = self.missing_objects.map(Objects::open);
            let wanted = objects(&tree)
                .into_keys()
                .filter(|id| there.as_ref().is_none_or(|o| !o.has(id)));
            return context.show(&List(wanted.map(|id| id.object_path()).collect()));
        }
        context.show(&summary(&bytes, &tree))
    }
}

/// The objects of a tree with their sizes, each once.
fn objects(tree: &Tree) -> BTreeMap<ObjectId, u64> {
    let files = tree.walk().filter_map(|found| match found.inode.kind() {
        Kind::Regular(Regular::External { size, id: Some(id), .. }) => Some((id, size)),
        _ => None,
    });
    files.collect()
}

fn summary(bytes: &[u8], tree: &Tree) -> Summary {
    let objects = objects(tree);
    let algorithm = objects.keys().next().map_or(Algorithm::Sha256, ObjectId::algorithm);
    let mut summary = Summary {
        digest: image::digest(bytes, algorithm).to_string(),
        algorithm: algorithm.name(),
        format_version: bytes.get(VERSION_AT).copied().unwrap_or_default(),
        bytes: bytes.len(),
        entries: 0,
        directories: 0,
        files: 0,
        inline_files: 0,
        symlinks: 0,
        others: 0,
        hard_links: 0,
        file_bytes: 0,
        objects: objects.len(),
        object_bytes: objects.values().sum(),
    };
    for found in tree.walk() {
        summary.entries += 1;
        if found.link {
            summary.hard_links += 1;
            continue;
        }
        match found.inode.kind() {
            Kind::Directory => summary.directories += 1,
            Kind::Symlink(_) => summary.symlinks += 1,
            Kind::Regular(regular) => {
                summary.files += 1;
                summary.inline_files += u64::from(matches!(regular, Regular::Inline(_)));
                summary.file_bytes += found.inode.size();
            }
            _ => summary.others += 1,
        }
    }
    summary
}

impl Report for Summary {
    fn human(&self) -> String {
        let count = |n: u64| HumanCount(n).to_string();
        let lines = [
            ("Digest", self.digest.clone()),
            ("Algorithm", self.algorithm.to_owned()),
            ("Format", format!("{}, {} bytes", self.format_version, self.bytes)),
            (
                "Entries",
                format!(
                    "{}, {} of them further hard links",
                    count(self.entries),
                    count(self.hard_links)
                ),
            ),
            ("Directories", count(self.directories)),
            (
                "Files",
                format!("{}, {}", count(self.files), HumanBytes(self.file_bytes)),
            ),
            ("Inline files", count(self.inline_files)),
            ("Symlinks", count(self.symlinks)),
            ("Others", count(self.others)),
            (
                "Objects",
                format!("{}, {}", count(self.objects as u64), HumanBytes(self.object_bytes)),
            ),
        ];
        lines
            .iter()
            .map(|(name, value)| format!("{name:>12}: {value}\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cfs_core::image::{Versions, dump, writer};

    #[test]
    fn everything_is_counted_once() {
        let id = "ab".repeat(32);
        let text = format!(
            "/ 0 40755 3 0 0 0 0.0 - - -\n\
             /d 0 40755 2 0 0 0 0.0 - - -\n\
             /d/f 5 100644 1 0 0 0 0.0 - hello -\n\
             /d/s 3 120777 1 0 0 0 0.0 d/f - -\n\
             /big 100 100644 2 0 0 0 0.0 ab/{rest} - {id}\n\
             /hard 0 @100644 - - - - 0.0 /big - -\n\
             /pipe 0 10644 1 0 0 0 0.0 - - -\n",
            rest = &id[2..]
        );
        let tree = dump::parse(text.as_bytes()).unwrap();
        let bytes = writer::build(&tree, Versions::V1).unwrap();
        let s = summary(&bytes, &tree);
        assert_eq!((s.entries, s.directories, s.files, s.inline_files), (7, 2, 2, 1));
        assert_eq!((s.symlinks, s.others, s.hard_links), (1, 1, 1));
        assert_eq!((s.file_bytes, s.objects, s.object_bytes), (105, 1, 100));
        assert_eq!(s.format_version, 1);
        assert_eq!(objects(&tree).into_keys().map(|i| i.to_hex()).collect::<Vec<_>>(), [id]);
    }
}
