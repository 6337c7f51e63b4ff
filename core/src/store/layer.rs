//! One layer's tar to objects and a stream, as its bytes come.
//!
//! Invariant: each byte of the tar goes into the tar's hash and, either literally or as an object, into the stream, so
//! that the tar can be rebuilt; a file is never whole in memory unless it is smaller than [`GATHER`]. A tar that is not
//! the one that was wanted gets no stream.

use std::io::{Seek, SeekFrom, Write};

use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::layers::{Fault, Head, INLINE_MAX, Kind, Parser, Sparse, Step};
use crate::monitor::{Event, Monitor};
use crate::splitstream::{ContentType, Writer};
use crate::store::Store;
use crate::store::entries::{layer_error, sparse_name, write_error};
use crate::store::on_the_way::OnTheWay;
use crate::sys::objects::Temporary;
use crate::sys::sha256;
use crate::sys::verity::Hasher;

/// Files of up to this many bytes are gathered, so that one that is here already is not written again.
const GATHER: u64 = 1 << 20;
/// Layers of more sparse files are refused: each has a name in the stream.
const MAX_SPARSE: usize = 1 << 16;
/// Layers whose sparse files stand for more bytes, all together, are refused: with fs-verity the kernel reads all of
/// them.
const MAX_SPARSE_BYTES: u64 = 1 << 40;
/// Objects between two progress events.
const REPORT: u64 = 256;

/// Gives a tar's bytes piece by piece.
pub(super) trait Pieces {
    /// The next piece, which is not empty; `None` at the end. The piece before is given back.
    fn next(&mut self) -> Result<Option<&[u8]>>;
    /// The current piece.
    fn current(&self) -> &[u8];
    /// The object whose content begins at this byte of the current piece, where one is known to.
    fn known(&self, at: usize) -> Option<ObjectId>;
}

/// Imports one layer.
pub(super) struct Importer<'a, 'w, 't, P> {
    store: &'a Store,
    diff_id: DiffId,
    monitor: &'a dyn Monitor,
    pieces: P,
    /// How much of the current piece is consumed.
    at: usize,
    parser: Parser,
    stream: Writer<Temporary<'a>>,
    hasher: Hasher,
    tar: sha256::Stream,
    gathered: Vec<u8>,
    /// Notes what is stored, where that is wanted before the layer is complete.
    on_the_way: Option<&'w mut OnTheWay<'t>>,
    sparse: usize,
    /// What they stand for.
    sparse_bytes: u64,
    stored: u64,
    shared: u64,
}

impl<'a, 'w, 't, P: Pieces> Importer<'a, 'w, 't, P> {
    pub(super) fn new(
        store: &'a Store,
        diff_id: DiffId,
        pieces: P,
        on_the_way: Option<&'w mut OnTheWay<'t>>,
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        let stream = Writer::new(store.objects.temporary()?, store.algorithm, ContentType::LAYER);
        Ok(Self {
            store,
            diff_id,
            monitor,
            pieces,
            at: 0,
            parser: Parser::new(),
            stream: stream.map_err(|e| write_error(store, e))?,
            hasher: Hasher::new(store.algorithm),
            tar: sha256::Stream::default(),
            gathered: Vec::new(),
            on_the_way,
            sparse: 0,
            sparse_bytes: 0,
            stored: 0,
            shared: 0,
        })
    }

    /// Takes the whole tar; the stream's object is the result.
    pub(super) fn run(mut self) -> Result<ObjectId> {
        loop {
            let mut input = &self.pieces.current()[self.at..];
            let before = input.len();
            let step = self.parser.step(&mut input);
            let consumed = before - input.len();
            let raw = &self.pieces.current()[self.at..self.at + consumed];
            self.tar.update(raw);
            self.stream.literal(raw).map_err(|e| write_error(self.store, e))?;
            self.at += consumed;
            match step.map_err(|fault| layer_error(&self.diff_id, fault))? {
                Step::Entry(head) => self.content(&head)?,
                Step::End => break,
                Step::More => {
                    if !self.advance()? {
                        self.parser
                            .finish()
                            .map_err(|fault| layer_error(&self.diff_id, fault))?;
                        break;
                    }
                }
            }
        }
        self.keep_rest()?;
        self.report();
        self.finish()
    }

    /// What follows the end mark belongs to no entry but to the tar.
    fn keep_rest(&mut self) -> Result<()> {
        loop {
            let raw = &self.pieces.current()[self.at..];
            self.tar.update(raw);
            self.stream.literal(raw).map_err(|e| write_error(self.store, e))?;
            if !self.advance()? {
                return Ok(());
            }
        }
    }

    fn finish(self) -> Result<ObjectId> {
        keep_stream(self.store, &self.diff_id, self.stream, self.tar)
    }

    /// Goes on to the next piece; `false` at the end of the tar.
    fn advance(&mut self) -> Result<bool> {
        self.at = 0;
        Ok(self.pieces.next()?.is_some())
    }

    fn content(&mut self, head: &Head) -> Result<()> {
        if head.kind != Kind::Regular {
            return Ok(());
        }
        if let Some(sparse) = &head.sparse {
            return self.sparse_file(head.stored, sparse);
        }
        if head.stored <= INLINE_MAX {
            return self.inline_file(head.stored);
        }
        if let Some(id) = self.known(head.stored)? {
            // Its bytes go into the tar's hash, which tells whether they are right.
            self.take(head.stored, |_, _| Ok(()))?;
            self.count(false);
            return self.object(&id, head.stored);
        }
        let keep = self.store.keeps.is_none_or(|keeps| keeps(&head.path));
        let id = match keep {
            true if head.stored <= GATHER => self.small_file(head.stored)?,
            true => self.large_file(head.stored)?,
            false => self.hashed_file(head.stored)?,
        };
        self.object(&id, head.stored)
    }

    /// The next file's content is this object.
    fn object(&mut self, id: &ObjectId, size: u64) -> Result<()> {
        if let Some(notes) = &mut self.on_the_way {
            notes.object(id, size);
        }
        self.stream.object(id, size).map_err(|e| write_error(self.store, e))
    }

    /// A file that is kept in the stream.
    fn inline_file(&mut self, size: u64) -> Result<()> {
        let (noted, mut content) = (self.on_the_way.is_some(), Vec::new());
        self.take(size, |this, bytes| {
            if noted {
                content.extend_from_slice(bytes);
            }
            this.stream.literal(bytes).map_err(|e| write_error(this.store, e))
        })?;
        if let Some(notes) = &mut self.on_the_way {
            notes.small(&content);
        }
        Ok(())
    }

    /// The object that is known to have the content that comes next, so many bytes. Only these go into the tar's
    /// hash: an object that has more is another file, whoever says that it is this one.
    fn known(&mut self, size: u64) -> Result<Option<ObjectId>> {
        if self.at == self.pieces.current().len() {
            self.advance()?;
        }
        match self.pieces.known(self.at) {
            Some(id) if self.store.objects.size(&id)? == Some(size) => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// A file that fits into memory: hashed, looked for, and written in one go from where it lies.
    fn small_file(&mut self, size: u64) -> Result<ObjectId> {
        let wanted = usize::try_from(size).unwrap_or(usize::MAX);
        let here = self.pieces.current().len() - self.at >= wanted;
        if !here {
            let mut gathered = std::mem::take(&mut self.gathered);
            gathered.clear();
            let taken = self.hash(size, |_, bytes| {
                gathered.extend_from_slice(bytes);
                Ok(())
            });
            self.gathered = gathered;
            taken?;
        }
        let data = if here {
            let data = &self.pieces.current()[self.at..self.at + wanted];
            self.hasher.update_with(&mut self.tar, data);
            data
        } else {
            &self.gathered
        };
        let id = self.hasher.finish();
        let new = self.store.objects.put(&id, data)?;
        if here {
            self.at += wanted;
        }
        self.count(new);
        Ok(id)
    }

    /// A file whose digest alone is wanted.
    fn hashed_file(&mut self, size: u64) -> Result<ObjectId> {
        self.hash(size, |_, _| Ok(()))?;
        self.count(true);
        Ok(self.hasher.finish())
    }

    fn large_file(&mut self, size: u64) -> Result<ObjectId> {
        let mut temporary = self.store.objects.temporary()?;
        self.hash(size, |this, bytes| {
            temporary.write_all(bytes).map_err(|e| write_error(this.store, e))
        })?;
        self.keep(temporary, size)
    }

    fn keep(&mut self, temporary: Temporary<'_>, size: u64) -> Result<ObjectId> {
        let id = self.hasher.finish();
        let new = !self.store.objects.has(&id, size)? && self.store.objects.store(temporary, &id)?;
        self.count(new);
        Ok(id)
    }

    /// A sparse file: what the tar has of it goes into the stream, the expanded file becomes an object of its own.
    fn sparse_file(&mut self, stored: u64, sparse: &Sparse) -> Result<()> {
        let fail = |e| write_error(self.store, e);
        self.sparse_bytes = self.sparse_bytes.saturating_add(sparse.size());
        if self.sparse_bytes > MAX_SPARSE_BYTES {
            let why = format!("with it the layer's sparse files stand for more than {MAX_SPARSE_BYTES} bytes");
            return Err(self.fault(self.parser.entry_fault(&why)));
        }
        let mut packed = Hasher::new(self.store.algorithm);
        let mut packed_file = (stored > INLINE_MAX)
            .then(|| self.store.objects.temporary())
            .transpose()?;
        let mut whole_file = (sparse.size() > INLINE_MAX)
            .then(|| self.store.objects.temporary())
            .transpose()?;
        let mut end = 0;
        for &(offset, length) in sparse.segments() {
            self.hasher.zeros(offset - end);
            end = offset + length;
            if let Some(file) = &mut whole_file {
                file.seek(SeekFrom::Start(offset)).map_err(fail)?;
            }
            self.take(length, |this, bytes| {
                this.hasher.update(bytes);
                if let Some(file) = &mut whole_file {
                    file.write_all(bytes).map_err(|e| write_error(this.store, e))?;
                }
                let written = match &mut packed_file {
                    Some(file) => {
                        packed.update(bytes);
                        file.write_all(bytes)
                    }
                    None => this.stream.literal(bytes),
                };
                written.map_err(|e| write_error(this.store, e))
            })?;
        }
        self.hasher.zeros(sparse.size() - end);
        if let Some(file) = packed_file {
            let id = packed.finish();
            if !self.store.objects.has(&id, stored)? {
                self.store.objects.store(file, &id)?;
            }
            self.stream
                .object(&id, stored)
                .map_err(|e| write_error(self.store, e))?;
        }
        match whole_file {
            None => drop(self.hasher.finish()),
            Some(file) => {
                file.set_size(sparse.size()).map_err(|e| write_error(self.store, e))?;
                let id = self.keep(file, sparse.size())?;
                if self.sparse == MAX_SPARSE {
                    return Err(self.fault(self.parser.entry_fault("the layer has too many sparse files")));
                }
                self.stream.name(sparse_name(self.sparse), &id);
                self.sparse += 1;
            }
        }
        Ok(())
    }

    /// Hands the next `size` bytes of the tar on, in the pieces in which they come.
    fn take(&mut self, size: u64, mut each: impl FnMut(&mut Borrowed<'_, 'a>, &[u8]) -> Result<()>) -> Result<()> {
        self.pieces(size, |this, bytes| {
            this.tar.update(bytes);
            each(this, bytes)
        })
    }

    /// Like [`Importer::take`], for the content of one file: it goes into the hasher, too.
    fn hash(&mut self, size: u64, mut each: impl FnMut(&mut Borrowed<'_, 'a>, &[u8]) -> Result<()>) -> Result<()> {
        self.pieces(size, |this, bytes| {
            this.hasher.update_with(this.tar, bytes);
            each(this, bytes)
        })
    }

    fn pieces(&mut self, size: u64, mut each: impl FnMut(&mut Borrowed<'_, 'a>, &[u8]) -> Result<()>) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let here = self.pieces.current().len() - self.at;
            if here == 0 {
                if !self.advance()? {
                    return Err(self.fault(self.parser.truncated(left)));
                }
                continue;
            }
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(here);
            let mut this = Borrowed {
                store: self.store,
                stream: &mut self.stream,
                hasher: &mut self.hasher,
                tar: &mut self.tar,
            };
            each(&mut this, &self.pieces.current()[self.at..self.at + take])?;
            self.at += take;
            left -= take as u64;
        }
        Ok(())
    }

    fn fault(&self, fault: Fault) -> Error {
        layer_error(&self.diff_id, fault)
    }

    fn count(&mut self, new: bool) {
        if new {
            self.stored += 1;
        } else {
            self.shared += 1;
        }
        if self.stored + self.shared >= REPORT {
            self.report();
        }
    }

    fn report(&mut self) {
        let (stored, shared) = (std::mem::take(&mut self.stored), std::mem::take(&mut self.shared));
        if stored + shared > 0 {
            self.monitor.event(Event::Objects { stored, shared });
        }
    }
}

/// Stores a layer's stream, if its tar was the one that was wanted.
pub(super) fn keep_stream(
    store: &Store,
    diff_id: &DiffId,
    stream: Writer<Temporary<'_>>,
    tar: sha256::Stream,
) -> Result<ObjectId> {
    let found = DiffId::from_hash(tar.finish());
    if found != *diff_id {
        return Err(Error::Mismatch {
            what: "layer".into(),
            expected: diff_id.to_string(),
            found: found.to_string(),
        });
    }
    let fail = |e| write_error(store, e);
    let mut file = stream.finish().map_err(fail)?;
    let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    let (id, _) = crate::sys::verity::hash_reader(store.algorithm, &mut file).map_err(fail)?;
    if !store.objects.has(&id, size)? {
        store.objects.store(file, &id)?;
    }
    Ok(id)
}

/// The parts of an importer that may change while a piece is borrowed from it.
struct Borrowed<'b, 'a> {
    store: &'a Store,
    stream: &'b mut Writer<Temporary<'a>>,
    hasher: &'b mut Hasher,
    tar: &'b mut sha256::Stream,
}
