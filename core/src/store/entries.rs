//! A layer read back: its entries, and its tar byte for byte.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::layers::{Content, Entry, Fault, Head, INLINE_MAX, Kind, Parser, Step};
use crate::splitstream::{ContentType, Part, Reader};
use crate::store::Store;
use crate::store::streams::layer_name;

/// Name of the `n`th sparse file's expanded object among a layer stream's references.
///
/// The tar has only the file's segments, so the stream leads to an object of these; the image needs the whole file.
pub(super) fn sparse_name(n: usize) -> String {
    format!("cfs-update.sparse.{n}")
}

/// Entries of a layer, in the order of its tar.
pub struct Entries {
    diff_id: DiffId,
    reader: Reader,
    parser: Parser,
    /// Literal bytes of the stream, from `at` on not parsed yet.
    literal: Vec<u8>,
    at: usize,
    sparse: usize,
    ended: bool,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries")
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// What the stream holds next, the literal bytes apart.
enum Next {
    Literal,
    Object(ObjectId),
    End,
}

impl Store {
    /// The layer's entries in the order of its tar; also of a layer that is imported and not published.
    ///
    /// # Errors
    /// [`Error::Stream`] where the layer is not here or its stream is broken; the iterator gives the rest.
    pub fn entries(&self, diff_id: &DiffId) -> Result<Entries> {
        Ok(Entries {
            diff_id: *diff_id,
            reader: self.layer_reader(diff_id)?,
            parser: Parser::new(),
            literal: Vec::new(),
            at: 0,
            sparse: 0,
            ended: false,
        })
    }

    /// Writes the layer's tar, byte for byte, checking it against its diff_id at the end.
    ///
    /// # Errors
    /// [`Error::Stream`], [`Error::Object`] where something is missing; [`Error::Mismatch`] where the result is
    /// another tar, which `out` has received then.
    pub fn rebuild(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<()> {
        let mut reader = self.layer_reader(diff_id)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        let write = |e: io::Error| match e.downcast::<Error>() {
            Ok(ours) => ours,
            Err(e) => Error::io("write the tar of", diff_id.to_string(), e),
        };
        loop {
            let part = reader.part().map_err(|e| stream_error(diff_id, e.to_string()))?;
            match part {
                None => break,
                Some(Part::Literal(bytes)) => {
                    hash.update(bytes);
                    out.write_all(bytes).map_err(write)?;
                }
                Some(Part::Object(id)) => {
                    let mut file = self.open_object(&id)?;
                    loop {
                        let n = file
                            .read(&mut buffer)
                            .map_err(|e| Error::io("read", self.object_path(&id), e))?;
                        if n == 0 {
                            break;
                        }
                        hash.update(&buffer[..n]);
                        out.write_all(&buffer[..n]).map_err(write)?;
                    }
                }
            }
        }
        let found = DiffId::from_hash(hash.finalize().into());
        if found != *diff_id {
            return Err(Error::Mismatch {
                what: "rebuilt layer".into(),
                expected: diff_id.to_string(),
                found: found.to_string(),
            });
        }
        Ok(())
    }

    /// Size of the layer's tar in bytes.
    ///
    /// # Errors
    /// [`Error::Stream`] where the layer is not here or its stream is broken.
    pub fn tar_size(&self, diff_id: &DiffId) -> Result<u64> {
        Ok(self.layer_reader(diff_id)?.size())
    }

    fn layer_reader(&self, diff_id: &DiffId) -> Result<Reader> {
        let name = layer_name(diff_id);
        let reader = self.open_stream(&name, &self.need_stream(&name)?)?;
        if reader.content_type() != ContentType::LAYER {
            return Err(stream_error(diff_id, "it is a stream of something else".into()));
        }
        Ok(reader)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if self.ended {
            return None;
        }
        let next = self.entry();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

impl Entries {
    fn entry(&mut self) -> Result<Option<Entry>> {
        loop {
            let mut input = &self.literal[self.at..];
            let step = self.parser.step(&mut input);
            self.at = self.literal.len() - input.len();
            match step.map_err(|fault| self.fault(fault))? {
                Step::End => return Ok(None),
                Step::Entry(head) => {
                    let content = self.content(&head)?;
                    return Ok(Some(head.into_entry(content)));
                }
                Step::More => match self.fetch()? {
                    Next::Literal => {}
                    Next::Object(id) => return Err(self.broken(format!("object {id} where a tar header should be"))),
                    Next::End => {
                        self.parser.finish().map_err(|fault| self.fault(fault))?;
                        return Ok(None);
                    }
                },
            }
        }
    }

    fn content(&mut self, head: &Head) -> Result<Content> {
        if head.kind != Kind::Regular {
            return Ok(Content::Inline(Box::default()));
        }
        let mut packed = Vec::new();
        let mut object = None;
        if head.stored > INLINE_MAX {
            object = Some(self.object()?);
        } else {
            self.take(head.stored, &mut packed)?;
        }
        let Some(sparse) = &head.sparse else {
            return Ok(match object {
                Some(id) => Content::Object { id, size: head.stored },
                None => Content::Inline(packed.into()),
            });
        };
        if sparse.size() <= INLINE_MAX {
            return Ok(Content::Inline(expand(&packed, sparse).into()));
        }
        let name = sparse_name(self.sparse);
        self.sparse += 1;
        match self.reader.names().get(&name) {
            Some(id) => Ok(Content::Object {
                id: *id,
                size: sparse.size(),
            }),
            None => Err(self.broken(format!("no object for a sparse file ({name})"))),
        }
    }

    fn object(&mut self) -> Result<ObjectId> {
        if self.at == self.literal.len()
            && let Next::Object(id) = self.fetch()?
        {
            return Ok(id);
        }
        Err(self.broken("a file's content is not an object; import the layer again".into()))
    }

    fn take(&mut self, count: u64, into: &mut Vec<u8>) -> Result<()> {
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        while left > 0 {
            if self.at == self.literal.len() && !matches!(self.fetch()?, Next::Literal) {
                return Err(self.broken("it ends inside a small file".into()));
            }
            let take = left.min(self.literal.len() - self.at);
            into.extend_from_slice(&self.literal[self.at..self.at + take]);
            self.at += take;
            left -= take;
        }
        Ok(())
    }

    fn fetch(&mut self) -> Result<Next> {
        match self.reader.part() {
            Ok(Some(Part::Literal(bytes))) => {
                self.literal.clear();
                self.literal.extend_from_slice(bytes);
                self.at = 0;
                Ok(Next::Literal)
            }
            Ok(Some(Part::Object(id))) => Ok(Next::Object(id)),
            Ok(None) => Ok(Next::End),
            Err(e) => Err(self.broken(e.to_string())),
        }
    }

    fn broken(&self, why: String) -> Error {
        stream_error(&self.diff_id, why)
    }

    fn fault(&self, fault: Fault) -> Error {
        layer_error(&self.diff_id, fault)
    }
}

fn stream_error(diff_id: &DiffId, why: String) -> Error {
    Error::Stream {
        name: layer_name(diff_id),
        why,
    }
}

/// A fault of a tar, with the layer's name.
pub(super) fn layer_error(diff_id: &DiffId, fault: Fault) -> Error {
    Error::Layer {
        layer: diff_id.to_string(),
        entry: fault.entry,
        why: fault.why,
    }
}

/// A small sparse file's content.
fn expand(mut packed: &[u8], sparse: &crate::layers::Sparse) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(sparse.size()).unwrap_or(0)];
    for &(offset, length) in sparse.segments() {
        let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length)) else {
            continue;
        };
        content[offset..offset + length].copy_from_slice(&packed[..length]);
        packed = &packed[length..];
    }
    content
}

/// An I/O error of a stream that is being written.
pub(super) fn write_error(store: &Store, e: io::Error) -> Error {
    Error::io("write an object in", store.objects(), e)
}
