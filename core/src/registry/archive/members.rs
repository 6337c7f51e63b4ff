//! What an archive's members are called, and where in it their bytes are.
//!
//! It is read as layers are, by [`Parser`], as Go's `archive/tar` reads it for skopeo and podman; but kinds of members
//! that nobody knows are passed over. A sparse member is the file that it was: its holes are zeros.
//!
//! Invariant: what is remembered is bounded by `MAX_MEMBERS`, `MAX_NAME` and `MAX_SPANS`, and what the members stand for
//! by `MAX_HOLES`, whatever the archive says.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::layers::{Fault, Head, Kind, Parser, Sparse, Step};

/// An archive of more members is none that an image tool writes.
const MAX_MEMBERS: usize = 1 << 16;
/// What has a longer name is passed over: no file system could have it.
const MAX_NAME: usize = 4096;
/// Parts of members, of sparse ones, too.
const MAX_SPANS: usize = 1 << 20;
/// Bytes that all sparse members together may stand for: they are hashed.
const MAX_HOLES: u64 = 1 << 40;
/// Headers are read by so many bytes.
const PIECE: usize = 4 << 10;

/// What is there under a name.
#[derive(Debug)]
pub(super) enum Member {
    Content(Content),
    /// To the name of another one.
    Link(String),
}

/// A file in the archive.
#[derive(Clone, Debug)]
pub(super) struct Content {
    size: u64,
    spans: Arc<[Span]>,
}

/// Bytes of a file that the archive has; what no span has is zero.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// In the file.
    offset: u64,
    length: u64,
    /// In the archive.
    at: u64,
}

impl Content {
    fn new(head: &Head, mut at: u64) -> Self {
        let whole = [(0, head.stored)];
        let segments = head.sparse.as_ref().map_or(&whole[..], Sparse::segments);
        let span = |&(offset, length): &(u64, u64)| {
            let span = Span { offset, length, at };
            at += length;
            span
        };
        Self {
            size: head.size(),
            spans: segments.iter().map(span).collect(),
        }
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The file from byte `from` on.
    pub(super) fn reader(&self, archive: Arc<File>, from: u64) -> Reader {
        Reader {
            archive,
            content: self.clone(),
            from,
        }
    }

    /// Where in the archive byte `at` of the file is, if it is in it; and up to which byte of the file that holds for
    /// the following ones.
    fn place(&self, at: u64) -> (Option<u64>, u64) {
        let next = self.spans.partition_point(|span| span.offset + span.length <= at);
        match self.spans.get(next) {
            Some(span) if span.offset <= at => (Some(span.at + at - span.offset), span.offset + span.length),
            Some(span) => (None, span.offset),
            None => (None, self.size),
        }
    }
}

/// A file of an archive that is shared by several readers.
pub(super) struct Reader {
    archive: Arc<File>,
    content: Content,
    from: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.from >= self.content.size {
            return Ok(0);
        }
        let (at, end) = self.content.place(self.from);
        let most = usize::try_from(end - self.from).unwrap_or(usize::MAX).min(buffer.len());
        let read = match at {
            Some(at) => self.archive.read_at(&mut buffer[..most], at)?,
            None => {
                buffer[..most].fill(0);
                most
            }
        };
        self.from += read as u64;
        Ok(read)
    }
}

/// What is in an archive; or what is wrong with it.
pub(super) fn list(file: &File) -> Result<HashMap<String, Member>, String> {
    let mut list = List {
        length: file.metadata().map_err(|e| e.to_string())?.len(),
        members: HashMap::new(),
        spans: 0,
        holes: 0,
        last: String::new(),
    };
    let (mut parser, mut at) = (Parser::of_any_archive(), 0);
    let mut buffer = [0; PIECE];
    loop {
        let read = match file.read_at(&mut buffer, at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|e| e.to_string())?,
        };
        let mut input = &buffer[..read];
        let step = parser.step(&mut input).map_err(|fault| list.damaged(&fault))?;
        at += (read - input.len()) as u64;
        match step {
            Step::Entry(head) => at = list.take(&head, at)?,
            Step::More if read == 0 => {
                parser.finish().map_err(|fault| list.damaged(&fault))?;
                return Ok(list.members);
            }
            Step::More => {}
            Step::End => return Ok(list.members),
        }
    }
}

struct List {
    /// Bytes of the archive.
    length: u64,
    members: HashMap<String, Member>,
    spans: usize,
    holes: u64,
    /// The name of the member before.
    last: String,
}

impl List {
    /// Takes a member whose content begins at this byte of the archive; tells where it ends.
    fn take(&mut self, head: &Head, at: u64) -> Result<u64, String> {
        self.last = String::from_utf8_lossy(&head.path).into_owned();
        let end = at.checked_add(head.stored).filter(|end| *end <= self.length);
        let end =
            end.ok_or_else(|| format!("ends in the middle of {:?}: it is incomplete; copy it again", self.last))?;
        let Some(name) = text(&head.path).map(normal) else {
            return Ok(end);
        };
        let member = match &head.kind {
            Kind::Regular => Some(Member::Content(self.content(head, at)?)),
            Kind::Hardlink(target) => text(target).map(normal).map(Member::Link),
            Kind::Symlink(target) => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                text(target).map(|target| Member::Link(normal(&format!("{folder}/{target}"))))
            }
            _ => None,
        };
        let Some(member) = member else { return Ok(end) };
        self.members.insert(name, member);
        match self.members.len() > MAX_MEMBERS {
            true => Err(format!("has more than {MAX_MEMBERS} members; refused")),
            false => Ok(end),
        }
    }

    fn content(&mut self, head: &Head, at: u64) -> Result<Content, String> {
        if let Some(sparse) = &head.sparse {
            self.holes = self.holes.saturating_add(sparse.size());
            if self.holes > MAX_HOLES {
                return Err(format!(
                    "has sparse members that stand for more than {MAX_HOLES} bytes, with {:?}; refused",
                    self.last
                ));
            }
        }
        let content = Content::new(head, at);
        self.spans += content.spans.len();
        match self.spans > MAX_SPANS {
            true => Err(format!("has members in more than {MAX_SPANS} parts; refused")),
            false => Ok(content),
        }
    }

    /// Of a header that is none, no more is known than where it is.
    fn damaged(&self, fault: &Fault) -> String {
        match &*self.last {
            _ if !fault.entry.starts_with("byte ") => format!("has a member {:?}: {}", fault.entry, fault.why),
            "" => "is no tar archive, nor one in gzip, zstd, xz or bzip2".to_owned(),
            last => format!("is damaged or incomplete behind {last:?}; copy it again"),
        }
    }
}

/// What may be a name.
fn text(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME)
}

/// Without `.`, `..` and empty parts.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
