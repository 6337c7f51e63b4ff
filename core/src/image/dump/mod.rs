//! The composefs-dump text (composefs-dump(5)): one line for each entry of a tree.
//!
//! Invariant: [`parse`] takes what C mkcomposefs takes and refuses what it refuses, but for three things that the C
//! program takes and that have no good meaning: links to folders, escaped NUL bytes in paths and keys, and digests of
//! files that are not 64 (or, for SHA-512, 128) hex digits. What [`write()`] prints, [`parse`] reads back as the same
//! tree.

mod fields;
mod print;
mod text;

use std::borrow::Cow;

use memchr::{memchr, memrchr};

use crate::image::format::{MAX_CHUNKS, chunk_count};
use fields::{Fields, Numbers};
pub use print::write;
use text::{Raw, Refused, check_type, integer, low16, take_until};

use crate::error::{Error, Result};
use crate::tree::{Builder, Data, EMPTY_DIRECTORY, Leaf, Links, Node, NodeId, ObjectPath, Tree, check_name, kind};

/// The longest symbolic link target or payload, in bytes.
const PATH_MAX: usize = 4095;
/// The most content that a dump may have for one file, in bytes.
const INLINE_MAX: usize = 5000;
/// The most bytes of escaped attributes on a line.
const XATTR_TEXT_MAX: usize = 65535;
/// The most that a file's attributes may take, by mkcomposefs' way of counting.
const XATTR_TOTAL_MAX: usize = 32767;
/// The longest attribute name, in bytes.
const XATTR_KEY_MAX: usize = 255;
/// How much text is read at once, in bytes.
const PIECE: usize = 256 << 10;
/// The longest line, in bytes, its end counted. All fields but PATH take less than 128 KiB, escaped (four bytes for
/// one) as they may be: the attributes' 64 KiB, 20,000 for CONTENT, 16,380 for PAYLOAD. What is left is a path of
/// 60,000 folders with the longest names; what is longer has no lines, like a device that never ends.
const LINE_MAX: usize = 64 << 20;
const TOO_LONG: &str = "longer than 64 MiB, as no line of a dump is";

/// Reads a dump as mkcomposefs does.
///
/// # Errors
/// [`Error::Dump`] with the line, where mkcomposefs would refuse it, too.
pub fn parse(text: &[u8]) -> Result<Tree> {
    Parser::new(text.len(), false)?.run(text)
}

/// Reads a dump of about `size` bytes (0 where nobody knows) piece by piece: `read` fills a buffer and says with how
/// many bytes, 0 at the end, as [`std::io::Read::read`]. Only lines that came in part are kept, so the memory is the
/// tree's.
///
/// # Errors
/// As [`parse`]; what `read` returns.
pub fn parse_pieces(size: usize, read: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<Tree> {
    let mut parser = Parser::new(size, false)?;
    let mut buffer = vec![0; PIECE];
    let mut held = 0;
    loop {
        if held == buffer.len() {
            if held >= LINE_MAX {
                return Err(refused(parser.count + 1, TOO_LONG));
            }
            buffer.resize(2 * held, 0);
        }
        let count = read(&mut buffer[held..])?;
        if count == 0 {
            parser.lines(&buffer[..held])?;
            return parser.finish();
        }
        let filled = held + count;
        match memrchr(b'\n', &buffer[held..filled]) {
            None => held = filled,
            Some(at) => {
                let whole = held + at + 1;
                parser.lines(&buffer[..whole])?;
                buffer.copy_within(whole..filled, 0);
                held = filled - whole;
            }
        }
    }
}

/// Reads a dump as mkcomposefs does with `CFS_PARSE_STRICT`: the last line must end, device numbers stand only on
/// devices, and a symbolic link has its target's size and no content.
pub fn parse_strict(text: &[u8]) -> Result<Tree> {
    Parser::new(text.len(), true)?.run(text)
}

/// Key and value of an attribute.
type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// A hard link that waits for the end of the dump, where its target is known.
struct Pending {
    slot: u32,
    line: usize,
    target: Box<[u8]>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Visiting,
    Found(NodeId),
}

struct Parser {
    strict: bool,
    builder: Builder,
    /// Lines so far.
    count: usize,
    has_root: bool,
    /// What links name until their target is known.
    placeholder: NodeId,
    pending: Vec<Pending>,
    /// The folder of the line before, and its path.
    folder: (Vec<u8>, NodeId),
}

impl Parser {
    /// For a dump of about `size` bytes.
    fn new(size: usize, strict: bool) -> Result<Self> {
        let mut builder = Builder::new();
        builder.reserve(size / 128, size / 2);
        let placeholder = builder.push(Node {
            mode: kind::REGULAR,
            data: Data::Nothing,
            ..*builder.node(NodeId::ROOT)
        })?;
        Ok(Self {
            strict,
            builder,
            count: 0,
            has_root: false,
            placeholder,
            pending: Vec::new(),
            folder: (Vec::new(), NodeId::ROOT),
        })
    }

    fn run(mut self, text: &[u8]) -> Result<Tree> {
        self.lines(text)?;
        if self.strict && self.has_root && !text.ends_with(b"\n") {
            return Err(refused(self.count, "the last line does not end"));
        }
        self.finish()
    }

    /// Whole lines; the last one of a dump may lack its end.
    fn lines(&mut self, mut text: &[u8]) -> Result<()> {
        while !text.is_empty() {
            self.count += 1;
            let line = take_until(&mut text, b'\n');
            self.line(line).map_err(|why| refused(self.count, why))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Tree> {
        if !self.has_root {
            return Err(refused(0, "it has no entry for the root, /"));
        }
        for at in 0..self.pending.len() {
            self.resolve(at)?;
        }
        self.builder.finish(Links::Given)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Refused> {
        if line.len() >= LINE_MAX {
            return Err(TOO_LONG.into());
        }
        let fields = Fields::split(line)?;
        let path = fields.text(fields.path)?;
        if fields.has_nul(&path) {
            return Err("an escaped NUL byte in PATH".into());
        }
        let (mode_text, is_link) = match fields.mode.strip_prefix(b"@") {
            Some(rest) => (rest, true),
            None => (fields.mode, false),
        };
        let mode = low16(integer(mode_text, 8).ok_or("MODE is no octal number")?);
        check_type(mode)?;
        let is_dir = mode & kind::MASK == kind::DIRECTORY;
        let place = self.place(&path, is_dir)?;
        if is_link {
            return match place {
                Some((folder, name)) if !is_dir => self.link(&fields, folder, name),
                _ => Err("a folder cannot be a hard link".into()),
            };
        }
        let node = self.inode(&fields, mode)?;
        match place {
            None => *self.builder.node_mut(NodeId::ROOT) = node,
            Some((folder, name)) => {
                let id = self.builder.push(node).map_err(|e| e.to_string())?;
                self.insert(folder, name, id, false)?;
            }
        }
        Ok(())
    }

    /// Where an entry goes: its folder and name; `None` for the root.
    fn place<'p>(&mut self, path: &'p [u8], is_dir: bool) -> Result<Option<(NodeId, &'p [u8])>, Refused> {
        match path {
            b"" => return Err("an empty PATH".into()),
            b"/" if self.has_root => return Err("the root is given twice".into()),
            b"/" if !is_dir => return Err("the root is not a folder".into()),
            b"/" => {
                self.has_root = true;
                return Ok(None);
            }
            _ if !self.has_root => return Err("the first entry is not the root, /".into()),
            _ => {}
        }
        let (parent, name) = match memrchr(b'/', path) {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        let folder = self.parent(parent)?;
        check_name(name).map_err(|why| format!("PATH has {why}"))?;
        Ok(Some((folder, name)))
    }

    fn parent(&mut self, path: &[u8]) -> Result<NodeId, Refused> {
        if self.folder.0 == path {
            return Ok(self.folder.1);
        }
        let id = match self.find(path) {
            Some(Ok(id)) if self.builder.node(id).is_dir() => id,
            Some(_) => return Err("what PATH is in is not a folder".into()),
            None => return Err("the folder that PATH is in was not there before".into()),
        };
        self.folder.0.clear();
        self.folder.0.extend_from_slice(path);
        self.folder.1 = id;
        Ok(id)
    }

    /// What is at a path: an inode, or the entry of a link that is still pending.
    fn find(&self, path: &[u8]) -> Option<Result<NodeId, u32>> {
        let mut at = Ok(NodeId::ROOT);
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let slot = self.builder.find(at.ok()?, name)?;
            let node = self.builder.slot(slot).node;
            at = if node == self.placeholder { Err(slot) } else { Ok(node) };
        }
        Some(at)
    }

    fn link(&mut self, fields: &Fields<'_>, folder: NodeId, name: &[u8]) -> Result<(), Refused> {
        let target = fields.optional(fields.payload)?.ok_or("a hard link without target")?;
        if fields.has_nul(&target) {
            return Err("an escaped NUL byte in a link's target".into());
        }
        let slot = self.insert(folder, name, self.placeholder, true)?;
        self.pending.push(Pending {
            slot,
            line: self.count,
            target: target.into(),
            state: State::New,
        });
        Ok(())
    }

    fn insert(&mut self, folder: NodeId, name: &[u8], node: NodeId, link: bool) -> Result<u32, Refused> {
        let slot = self.builder.add(folder, name, node, link, 0);
        let slot = slot.map_err(|e| e.to_string())?;
        slot.ok_or_else(|| "this PATH was there before".into())
    }

    /// Finds what the link `start` names, through other links, and puts it into all entries on the way.
    fn resolve(&mut self, start: usize) -> Result<()> {
        let mut way = Vec::new();
        let mut at = start;
        let node = loop {
            let link = &mut self.pending[at];
            match link.state {
                State::Found(node) => break node,
                State::Visiting => return Err(refused(link.line, "hard links that name each other in a circle")),
                State::New => link.state = State::Visiting,
            }
            way.push(at);
            let link = &self.pending[at];
            match self.find(&link.target) {
                None => return Err(refused(link.line, "the hard link's target is not in the dump")),
                Some(Ok(node)) if self.builder.node(node).is_dir() => {
                    return Err(refused(link.line, "a hard link to a folder"));
                }
                Some(Ok(node)) => break node,
                // Links were added in the order of their entries.
                Some(Err(slot)) => at = self.pending.partition_point(|p| p.slot < slot),
            }
        };
        for at in way {
            self.pending[at].state = State::Found(node);
            let slot = self.pending[at].slot;
            self.builder.slot_mut(slot).node = node;
        }
        Ok(())
    }

    fn inode(&mut self, fields: &Fields<'_>, mode: u16) -> Result<Node, Refused> {
        let numbers = Numbers::of(fields)?;
        let payload = fields.optional(fields.payload)?;
        if payload.as_ref().is_some_and(|p| fields.has_nul(p)) {
            return Err("an escaped NUL byte in PAYLOAD".into());
        }
        if payload.as_ref().is_some_and(|p| p.len() > PATH_MAX) {
            return Err("PAYLOAD has more than 4095 bytes".into());
        }
        let content = fields.optional(fields.content)?;
        if content.as_ref().is_some_and(|c| c.len() as u64 != numbers.size) {
            return Err("CONTENT does not have SIZE bytes".into());
        }
        let digest_text = fields.optional(fields.digest)?;
        let kind = mode & kind::MASK;
        if self.strict {
            strictly(kind, &numbers, payload.as_deref(), content.as_deref())?;
        }
        if kind != kind::SYMLINK && content.as_ref().is_some_and(|c| c.len() > INLINE_MAX) {
            return Err("CONTENT has more than 5000 bytes".into());
        }
        let mut size = numbers.size;
        let digest;
        let leaf = match kind {
            kind::DIRECTORY => None,
            kind::SYMLINK => {
                let target = payload.as_deref().unwrap_or_default();
                if target.is_empty() {
                    return Err("a symbolic link without target".into());
                }
                size = target.len() as u64;
                Some(Leaf::Symlink(target))
            }
            kind::CHAR | kind::BLOCK => Some(Leaf::Device(numbers.rdev)),
            kind::REGULAR if size > 0 && content.is_none() => {
                if digest_text.as_ref().is_some_and(|text| text.is_empty()) {
                    return Err("DIGEST is missing".into());
                }
                digest = Raw::parse(digest_text.as_deref())?;
                Some(external(size, payload.as_deref(), digest.bytes())?)
            }
            kind::REGULAR => Some(Leaf::Inline(content.as_deref().unwrap_or_default())),
            _ => Some(Leaf::Nothing),
        };
        let data = match leaf {
            None => EMPTY_DIRECTORY,
            Some(leaf) => self.builder.data(leaf).map_err(|e| e.to_string())?,
        };
        Ok(Node {
            mode,
            nlink: numbers.nlink,
            uid: numbers.uid,
            gid: numbers.gid,
            mtime: numbers.mtime,
            size,
            xattrs: self.xattrs(fields)?,
            data,
        })
    }

    fn xattrs(&mut self, fields: &Fields<'_>) -> Result<(u32, u32), Refused> {
        let mut text = fields.xattrs;
        if text.len() > XATTR_TEXT_MAX {
            return Err("more than 65535 bytes of extended attributes".into());
        }
        let mut xattrs: Vec<Pair<'_>> = Vec::new();
        while !text.is_empty() {
            let field = take_until(&mut text, b' ');
            let equals = memchr(b'=', field).ok_or("an extended attribute without =")?;
            let key = fields.text(&field[..equals])?;
            if key.is_empty() || key.len() > XATTR_KEY_MAX || fields.has_nul(&key) {
                return Err("an extended attribute whose key is empty, longer than 255 bytes or has a NUL byte".into());
            }
            xattrs.push((key, fields.text(&field[equals + 1..])?));
        }
        check_xattr_total(&xattrs)?;
        let xattrs = xattrs.iter().map(|(key, value)| (&**key, &**value));
        self.builder.xattrs(xattrs).map_err(|e| e.to_string().into())
    }
}

fn strictly(kind: u16, numbers: &Numbers, payload: Option<&[u8]>, content: Option<&[u8]>) -> Result<(), &'static str> {
    match kind {
        kind::CHAR | kind::BLOCK => {}
        _ if numbers.rdev != 0 => return Err("RDEV on something that is no device"),
        kind::SYMLINK if payload.is_some_and(|p| p.len() as u64 != numbers.size) => {
            return Err("a symbolic link's SIZE is not its target's length");
        }
        kind::SYMLINK if content.is_some_and(|c| !c.is_empty()) => return Err("a symbolic link with CONTENT"),
        _ => {}
    }
    Ok(())
}

fn external<'b>(size: u64, payload: Option<&'b [u8]>, digest: &'b [u8]) -> Result<Leaf<'b>, Refused> {
    if chunk_count(size) > MAX_CHUNKS {
        return Err("SIZE is larger than a file in an image can be (2^53)".into());
    }
    Ok(Leaf::External {
        payload: payload.filter(|p| !p.is_empty()).map(ObjectPath::Text),
        digest,
    })
}

/// The limit that mkcomposefs keeps after every attribute, counting a repeated key once.
fn check_xattr_total(xattrs: &[Pair<'_>]) -> Result<(), &'static str> {
    let cost = |key: &[u8], value: &[u8]| 7 + key.len() + value.len();
    let sum: usize = xattrs.iter().map(|(k, v)| cost(k, v)).sum();
    if 12 + sum <= XATTR_TOTAL_MAX {
        return Ok(());
    }
    let mut seen = std::collections::HashMap::new();
    let mut total = 12;
    for (key, value) in xattrs {
        total += cost(key, value);
        if let Some(before) = seen.insert(&**key, value.len()) {
            total -= 7 + key.len() + before;
        }
        if total > XATTR_TOTAL_MAX {
            return Err("extended attributes of more than 32767 bytes");
        }
    }
    Ok(())
}

fn refused(line: usize, why: impl Into<Refused>) -> Error {
    Error::Dump {
        line,
        why: why.into().into_owned(),
    }
}
