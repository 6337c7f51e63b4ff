//! The plan against its rules on generated folders, and what is written against what was planned.

mod generated;
mod image;
mod listed;
mod rules;
mod since;
mod written;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::*;
use crate::error::Result;
use crate::ids::Algorithm;
use crate::layers::{Meta, Mtime};
use crate::sys::verity;

/// A source in memory: content by path.
#[derive(Clone, Debug, Default)]
struct Memory {
    listing: Listing,
    content: HashMap<PathBuf, Vec<u8>>,
}

impl Source for Memory {
    fn listing(&self) -> &Listing {
        &self.listing
    }
    fn open(&self, path: &Path) -> Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.content[path].as_slice()))
    }
}

fn me() -> (u32, u32) {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    (uid.as_raw(), gid.as_raw())
}

fn meta(mode: u32) -> Meta {
    let (uid, gid) = me();
    Meta {
        mode,
        uid,
        gid,
        mtime: Mtime {
            sec: 1_700_000_000,
            nsec: 123_456_789,
        },
        xattrs: Vec::new(),
    }
}

impl Memory {
    fn new() -> Self {
        let mut memory = Self::default();
        memory.add("", Item::Directory, 0o755);
        memory
    }
    fn add(&mut self, path: &str, item: Item, mode: u32) {
        let node = Node {
            item,
            meta: meta(mode),
            group: None,
        };
        self.listing.insert(path.into(), node);
    }
    fn file(mut self, path: &str, content: &str) -> Self {
        self.add(
            path,
            Item::Regular(verity::hash(Algorithm::Sha256, content.as_bytes())),
            0o644,
        );
        self.content.insert(path.into(), content.into());
        self
    }
    fn dir(mut self, path: &str) -> Self {
        self.add(path, Item::Directory, 0o755);
        self
    }
    fn link(mut self, path: &str, target: &str) -> Self {
        self.add(path, Item::Symlink(target.as_bytes().into()), 0o777);
        self
    }
    fn meta(mut self, path: &str, change: impl FnOnce(&mut Meta)) -> Self {
        let mut node = self.listing.get(Path::new(path)).unwrap().clone();
        change(&mut node.meta);
        self.listing.insert(path.into(), node);
        self
    }
    fn grouped(mut self, paths: &[&str], group: u64) -> Self {
        for path in paths {
            let mut node = self.listing.get(Path::new(path)).unwrap().clone();
            node.group = Some(group);
            self.listing.insert(path.into(), node);
        }
        self
    }
}

/// `path: side path` of every step but the top.
fn shown(plan: &Plan) -> Vec<String> {
    let steps = plan.steps.iter().skip(1);
    steps
        .map(|(path, step)| {
            let side = if step.from == Side::Current { "A" } else { "N" };
            if step.path == *path {
                format!("{} {side}", path.display())
            } else {
                format!("{} {side}:{}", path.display(), step.path.display())
            }
        })
        .collect()
}

fn conflicts(plan: &Plan) -> Vec<(String, What)> {
    plan.conflicts
        .iter()
        .map(|c| (c.path.display().to_string(), c.what))
        .collect()
}

fn merged(old: &Memory, current: &Memory, new: &Memory) -> Plan {
    plan(&old.listing, &current.listing, &new.listing, Rules::STRICT)
}
