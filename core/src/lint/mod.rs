//! What an image lacks to be installed, booted and updated, said before a machine has to find out.
//!
//! Pure over a merged tree, as it is before its boot variant is made; contents are read through a function of the
//! caller's.
//!
//! Invariant: a finding of [`Severity::Error`] is something that keeps the image from being deployed or from booting,
//! or that gives rights away on every machine; what may be meant is a warning. Each finding says what to do. What
//! cannot be read is never passed over as if it were right.

mod boot;
mod files;
mod system;

use std::fmt;

use serde::Serialize;

use crate::error::Result;
use crate::ids::ObjectId;
use crate::tree::{Inode, Kind, Tree};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be installed or booted, or every machine is open.
    Error,
    /// It boots, but something will not be as one expects.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing that is wrong, or may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Which check: a word that stays the same.
    pub check: &'static str,
    /// What is the case, with its path.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// The check that tells of a file whose content could not be read.
pub const UNREAD: &str = "unread";

/// Reads an object's content.
pub type Read<'r> = &'r dyn Fn(&ObjectId) -> Result<Vec<u8>>;

/// The image that is looked at, and what was found so far.
struct Lint<'t> {
    tree: &'t Tree,
    read: Read<'t>,
    architecture: &'t str,
    findings: Vec<Finding>,
}

/// Looks at an image for `architecture` (`amd64`, `x86_64`). Errors first, then warnings, then notes, in the order of
/// checks. A file that cannot be read is a finding.
pub fn lint(tree: &Tree, read: Read<'_>, architecture: &str) -> Vec<Finding> {
    let mut lint = Lint {
        tree,
        read,
        architecture,
        findings: Vec::new(),
    };
    lint.boot();
    lint.system();
    lint.files();
    let mut findings = lint.findings;
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Whether the content of the file at this path (as a layer has it) is wanted: what is to be kept of layers whose
/// files are only hashed.
pub fn is_read(path: &[u8]) -> bool {
    let path = path.strip_prefix(b".").unwrap_or(path);
    let Ok(path) = std::str::from_utf8(path.strip_prefix(b"/").unwrap_or(path)) else {
        return false;
    };
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["etc", "os-release" | "fstab" | "machine-id"] | ["usr", "lib", "os-release"] => true,
        ["boot", name] => name.starts_with("initrd.img-") || name.starts_with("config-"),
        ["usr", "lib", "modules", _, "initramfs.img" | "config"] => true,
        ["usr", "lib", "bootc" | "cfs-update", "kargs.d", _] => true,
        _ => false,
    }
}

impl<'t> Lint<'t> {
    fn add(&mut self, severity: Severity, check: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding {
            severity,
            check,
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    fn error(&mut self, check: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, check, what, remedy);
    }

    fn warning(&mut self, check: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, check, what, remedy);
    }

    fn note(&mut self, check: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Note, check, what, remedy);
    }

    /// What is at a path, links followed.
    fn at(&self, path: &str) -> Option<Inode<'t>> {
        self.tree.resolve(path)
    }

    /// Whether there is a regular file with something in it.
    fn is_file(&self, path: &str) -> bool {
        self.at(path)
            .is_some_and(|inode| matches!(inode.kind(), Kind::Regular(_)) && inode.size() > 0)
    }

    /// A file's content; `None` where there is no such file. A failure to read becomes a finding.
    fn content(&mut self, path: &str) -> Option<Vec<u8>> {
        match self.at(path)?.content(self.read) {
            Ok(content) => content,
            Err(e) => {
                let what = format!("/{path} could not be looked into: {e}");
                self.warning(UNREAD, what, "pull the image, then lint it again");
                None
            }
        }
    }

    fn text(&mut self, path: &str) -> Option<String> {
        self.content(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Paths for a message: how many, and the first few.
#[derive(Debug, Default)]
struct Paths {
    count: usize,
    first: Vec<String>,
}

impl Paths {
    fn push(&mut self, path: &[u8]) {
        self.count += 1;
        if self.first.len() < 3 {
            self.first.push(String::from_utf8_lossy(path).into_owned());
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join(", "))?;
        match self.count - self.first.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests;
