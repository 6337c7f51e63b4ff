//! An incremental parser of tar streams.
//!
//! Bytes go in as they arrive; heads of entries come out. The caller takes the content that follows a head from the
//! stream itself, so that no file passes through here. What is accepted is what Go's `archive/tar` accepts, which
//! podman, Docker and the registries' tools are built on; where that leaves a choice, composefs-rs decides.
//!
//! Invariant: the parser never reads past what it has consumed from the input, so that the raw bytes of everything but
//! file content can be kept by the caller, and it holds at most [`MAX_EXTENDED`] bytes and one block.

use crate::error::one_line;
use crate::layers::header::{self, BLOCK, Header};
use crate::layers::pax::{self, Pax};
use crate::layers::sparse::Segments;
use crate::layers::{Fault, Head, Kind, Meta, Sparse};

/// Limit of a PAX header, a GNU long name, or a sparse map, in bytes.
pub const MAX_EXTENDED: usize = 1 << 20;

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The input is used up.
    More,
    /// An entry; its content is next in the stream.
    Entry(Box<Head>),
    /// The two zero blocks. What follows in the stream belongs to no entry.
    End,
}

/// Which extended header is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extended {
    Pax,
    LongName,
    LongLink,
}

#[derive(Debug)]
enum State {
    /// A header is next; `true` after one zero block.
    Header(bool),
    /// The body of an extended header, `left` bytes with padding.
    Extended {
        what: Extended,
        size: usize,
        left: usize,
    },
    /// Bytes without meaning for us: a global PAX header, padding.
    Skip {
        left: u64,
        padding: bool,
    },
    /// A further block of an old GNU sparse map.
    GnuSparse(Box<Partial>),
    /// A PAX 1.0 sparse map in front of the content.
    PaxSparse {
        partial: Box<Partial>,
        lines: usize,
        wanted: Option<usize>,
    },
    End,
}

/// A sparse entry whose map is not complete.
#[derive(Debug)]
struct Partial {
    head: Head,
    size: u64,
    map: Segments,
}

/// What extended headers say about the entry behind them.
#[derive(Debug, Default)]
struct Pending {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// The parser.
#[derive(Debug)]
pub struct Parser {
    state: State,
    block: [u8; BLOCK],
    filled: usize,
    body: Vec<u8>,
    pending: Pending,
    offset: u64,
    /// The entry that was read last, for messages.
    last: String,
    /// Entries of unknown types are passed over.
    any: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// At the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header(false),
            block: [0; BLOCK],
            filled: 0,
            body: Vec::new(),
            pending: Pending::default(),
            offset: 0,
            last: String::new(),
            any: false,
        }
    }

    /// At the start of a stream that is no layer: entries of unknown types, such as a volume's label, are passed over.
    pub fn of_any_archive() -> Self {
        Self {
            any: true,
            ..Self::new()
        }
    }

    /// Consumes input up to the next entry, the end, or all of it.
    ///
    /// # Errors
    /// A stream that Go's reader refuses as well, or an entry of an unknown type.
    pub fn step(&mut self, input: &mut &[u8]) -> Result<Step, Fault> {
        loop {
            match &mut self.state {
                State::End => return Ok(Step::End),
                State::Skip { left, .. } => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= take as u64;
                    let done = *left == 0;
                    self.consume(input, take);
                    if !done {
                        return Ok(Step::More);
                    }
                    self.state = State::Header(false);
                }
                State::Extended { what, size, left } => {
                    let (what, size) = (*what, *size);
                    let take = (*left).min(input.len());
                    let wanted = size.saturating_sub(self.body.len()).min(take);
                    *left -= take;
                    let done = *left == 0;
                    self.body.extend_from_slice(&input[..wanted]);
                    self.consume(input, take);
                    if !done {
                        return Ok(Step::More);
                    }
                    self.state = State::Header(false);
                    self.extended(what)?;
                }
                State::Header(_) | State::GnuSparse(_) | State::PaxSparse { .. } => {
                    if !self.fill_block(input) {
                        return Ok(Step::More);
                    }
                    match self.block()? {
                        Some(Step::More) | None => {}
                        Some(step) => return Ok(step),
                    }
                }
            }
        }
    }

    /// To be called at the end of the stream.
    ///
    /// # Errors
    /// Where the stream may not end: inside a header or a map. A missing end mark and missing padding are accepted, as
    /// Go does.
    pub fn finish(&self) -> Result<(), Fault> {
        match self.state {
            State::End | State::Skip { padding: true, .. } => Ok(()),
            State::Header(_) if self.filled == 0 && self.pending.is_empty() => Ok(()),
            _ => Err(self.fault("the tar stream ends inside a header; the layer is truncated")),
        }
    }

    /// The message for a stream that ends inside the content of the last entry.
    pub fn truncated(&self, missing: u64) -> Fault {
        Fault {
            entry: self.last.clone(),
            why: format!("the tar stream ends {missing} bytes before the end of the file; the layer is truncated"),
        }
    }

    /// A fault of the entry that was read last.
    pub fn entry_fault(&self, why: impl Into<String>) -> Fault {
        Fault {
            entry: self.last.clone(),
            why: why.into(),
        }
    }

    fn fault(&self, why: impl Into<String>) -> Fault {
        Fault {
            entry: if self.last.is_empty() {
                format!("byte {}", self.offset)
            } else {
                format!("byte {}, after {}", self.offset, self.last)
            },
            why: why.into(),
        }
    }

    fn consume(&mut self, input: &mut &[u8], count: usize) {
        *input = &input[count..];
        self.offset += count as u64;
    }

    fn fill_block(&mut self, input: &mut &[u8]) -> bool {
        let take = (BLOCK - self.filled).min(input.len());
        self.block[self.filled..self.filled + take].copy_from_slice(&input[..take]);
        self.filled += take;
        self.consume(input, take);
        self.filled == BLOCK
    }

    /// Acts on a complete block.
    fn block(&mut self) -> Result<Option<Step>, Fault> {
        self.filled = 0;
        match std::mem::replace(&mut self.state, State::Header(false)) {
            State::GnuSparse(partial) => self.gnu_sparse_block(partial),
            State::PaxSparse { partial, lines, wanted } => self.pax_sparse_block(partial, lines, wanted),
            State::Header(after_zero) => self.header_block(after_zero),
            state => {
                self.state = state;
                Ok(None)
            }
        }
    }

    fn header_block(&mut self, after_zero: bool) -> Result<Option<Step>, Fault> {
        if self.block == [0; BLOCK] {
            if !self.pending.is_empty() {
                return Err(self.fault("an extended header without an entry behind it"));
            }
            self.state = if after_zero { State::End } else { State::Header(true) };
            return Ok(after_zero.then_some(Step::End));
        }
        if after_zero {
            return Err(self.fault("a single zero block inside the archive"));
        }
        let block = self.block;
        let header = Header::new(&block).ok_or_else(|| self.fault("not a tar header: the checksum is wrong"))?;
        let size = header.size().ok_or_else(|| self.fault("the size is no number"))?;
        match header.kind() {
            b'x' => self.start_extended(Extended::Pax, size)?,
            b'L' => self.start_extended(Extended::LongName, size)?,
            b'K' => self.start_extended(Extended::LongLink, size)?,
            b'g' => self.pass_over(size)?,
            kind if self.any && !is_known(kind) => {
                let pax = std::mem::take(&mut self.pending).pax;
                self.pass_over(pax.and_then(|pax| pax.size).unwrap_or(size))?;
            }
            _ => return self.entry(header, size),
        }
        Ok(None)
    }

    fn pass_over(&mut self, size: u64) -> Result<(), Fault> {
        let left = size.checked_next_multiple_of(BLOCK as u64);
        self.state = State::Skip {
            left: left.ok_or_else(|| self.fault("the size is too large"))?,
            padding: false,
        };
        Ok(())
    }

    fn start_extended(&mut self, what: Extended, size: u64) -> Result<(), Fault> {
        let size = usize::try_from(size).ok().filter(|s| *s <= MAX_EXTENDED);
        let size = size.ok_or_else(|| self.fault(format!("an extended header of more than {MAX_EXTENDED} bytes")))?;
        self.body.clear();
        self.state = State::Extended {
            what,
            size,
            left: size.next_multiple_of(BLOCK),
        };
        Ok(())
    }

    fn extended(&mut self, what: Extended) -> Result<(), Fault> {
        match what {
            Extended::Pax => self.pending.pax = Some(pax::parse(&self.body).map_err(|why| self.fault(why))?),
            Extended::LongName => self.pending.name = Some(header::text(&self.body).to_vec()),
            Extended::LongLink => self.pending.link = Some(header::text(&self.body).to_vec()),
        }
        // A long one is rare: its memory is given back.
        self.body = Vec::new();
        Ok(())
    }

    /// An entry's own header: puts together what it and the extended headers before it say.
    fn entry(&mut self, header: Header<'_>, size: u64) -> Result<Option<Step>, Fault> {
        let Pending { pax, name, link } = std::mem::take(&mut self.pending);
        let mut pax = pax.unwrap_or_default();
        let path = pax
            .sparse
            .name
            .take()
            .or_else(|| pax.path.take())
            .or(name)
            .unwrap_or_else(|| header.path());
        self.last = one_line(&String::from_utf8_lossy(&path));
        let link = pax.link.take().or(link).unwrap_or_else(|| header.link().to_vec());
        let kind = self.kind(header, &path, link)?;
        let size = pax.size.unwrap_or(size);
        let head = Head {
            path: path.into(),
            meta: self.meta(header, &mut pax)?,
            stored: if kind == Kind::Regular { size } else { 0 },
            kind,
            sparse: None,
        };
        if header.kind() == b'S' {
            return self.start_gnu_sparse(head, header);
        }
        if head.kind == Kind::Regular && (pax.sparse.map.is_some() || pax.sparse.major.is_some()) {
            return self.start_pax_sparse(head, pax.sparse);
        }
        Ok(Some(self.emit(head)))
    }

    fn kind(&self, header: Header<'_>, path: &[u8], link: Vec<u8>) -> Result<Kind, Fault> {
        let device = || {
            header
                .device()
                .ok_or_else(|| self.entry_fault("a device number that Linux does not have"))
        };
        Ok(match header.kind() {
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::Hardlink(link.into()),
            b'2' if (1..4096).contains(&link.len()) => Kind::Symlink(link.into()),
            b'2' => return Err(self.entry_fault(format!("a symbolic link to a target of {} bytes", link.len()))),
            b'3' => Kind::CharDevice(device()?),
            b'4' => Kind::BlockDevice(device()?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(self.entry_fault(format!("unknown type {:?}", char::from(other)))),
        })
    }

    fn meta(&self, header: Header<'_>, pax: &mut Pax) -> Result<Meta, Fault> {
        let number = |what: &str| self.entry_fault(format!("the {what} is no number"));
        Ok(Meta {
            mode: header.mode().ok_or_else(|| number("mode"))?,
            uid: pax.uid.or_else(|| header.uid()).ok_or_else(|| number("uid"))?,
            gid: pax.gid.or_else(|| header.gid()).ok_or_else(|| number("gid"))?,
            mtime: pax.mtime.or_else(|| header.mtime()).ok_or_else(|| number("mtime"))?,
            xattrs: std::mem::take(&mut pax.xattrs),
        })
    }

    fn start_gnu_sparse(&mut self, head: Head, header: Header<'_>) -> Result<Option<Step>, Fault> {
        let (map, more, size) = header
            .gnu_sparse()
            .ok_or_else(|| self.entry_fault("the sparse map is malformed"))?;
        let partial = Box::new(Partial { head, size, map });
        if more {
            self.state = State::GnuSparse(partial);
            return Ok(None);
        }
        self.emit_sparse(*partial).map(Some)
    }

    fn gnu_sparse_block(&mut self, mut partial: Box<Partial>) -> Result<Option<Step>, Fault> {
        let pairs = header::sparse_pairs(&self.block[..504]);
        partial
            .map
            .extend(pairs.ok_or_else(|| self.entry_fault("the sparse map is malformed"))?);
        if partial.map.len() > MAX_EXTENDED / 16 {
            return Err(self.entry_fault("the sparse map is too long"));
        }
        if self.block[504] != 0 {
            self.state = State::GnuSparse(partial);
            return Ok(None);
        }
        self.emit_sparse(*partial).map(Some)
    }

    fn start_pax_sparse(&mut self, head: Head, sparse: pax::PaxSparse) -> Result<Option<Step>, Fault> {
        let size = sparse
            .size
            .ok_or_else(|| self.entry_fault("a sparse file without its size"))?;
        match (sparse.major, sparse.minor, sparse.map) {
            (Some(1), Some(0), _) => {
                self.body.clear();
                self.state = State::PaxSparse {
                    partial: Box::new(Partial {
                        head,
                        size,
                        map: Vec::new(),
                    }),
                    lines: 0,
                    wanted: None,
                };
                Ok(None)
            }
            (None | Some(0), _, Some(map)) => self.emit_sparse(Partial { head, size, map }).map(Some),
            _ => Err(self.entry_fault("an unknown version of sparse file")),
        }
    }

    /// `COUNT\n` and then `OFFSET\nLENGTH\n` for each, padded to whole blocks.
    fn pax_sparse_block(
        &mut self,
        mut partial: Box<Partial>,
        mut lines: usize,
        mut wanted: Option<usize>,
    ) -> Result<Option<Step>, Fault> {
        let malformed = "the sparse map is malformed";
        let left = partial.head.stored.checked_sub(BLOCK as u64);
        partial.head.stored = left.ok_or_else(|| self.entry_fault("the sparse map is longer than the entry"))?;
        self.body.extend_from_slice(&self.block);
        lines += self.block.iter().filter(|b| **b == b'\n').count();
        if wanted.is_none() && lines > 0 {
            let count = self.body.split(|b| *b == b'\n').next().and_then(pax::decimal);
            let count = count
                .and_then(|c| usize::try_from(c).ok())
                .filter(|c| *c <= MAX_EXTENDED / 4);
            wanted = Some(count.ok_or_else(|| self.entry_fault(malformed))? * 2 + 1);
        }
        if wanted.is_none_or(|w| lines < w) {
            if self.body.len() >= MAX_EXTENDED {
                return Err(self.entry_fault("the sparse map is too long"));
            }
            self.state = State::PaxSparse { partial, lines, wanted };
            return Ok(None);
        }
        let mut numbers = self.body.split(|b| *b == b'\n').skip(1).map(pax::decimal);
        for _ in 0..wanted.unwrap_or(1) / 2 {
            let (Some(Some(offset)), Some(Some(length))) = (numbers.next(), numbers.next()) else {
                return Err(self.entry_fault(malformed));
            };
            partial.map.push((offset, length));
        }
        drop(numbers);
        self.body = Vec::new();
        self.emit_sparse(*partial).map(Some)
    }

    fn emit_sparse(&mut self, partial: Partial) -> Result<Step, Fault> {
        let Partial { mut head, size, map } = partial;
        head.sparse = Some(Sparse::new(size, map, head.stored).map_err(|why| self.entry_fault(why))?);
        Ok(self.emit(head))
    }

    fn emit(&mut self, head: Head) -> Step {
        self.offset = self.offset.saturating_add(head.stored);
        let padding = head.stored.wrapping_neg() % BLOCK as u64;
        self.state = State::Skip {
            left: padding,
            padding: true,
        };
        Step::Entry(Box::new(head))
    }
}

/// Whether it is the type of an entry that [`Parser`] gives.
fn is_known(kind: u8) -> bool {
    matches!(kind, 0 | b'0'..=b'7' | b'S')
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}
