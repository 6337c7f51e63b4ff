//! The tar of a layer made again from what was found of it and the parts that were not: the second half of
//! [`crate::store::partial`].
//!
//! Invariant: each chunk that comes from the blob has the size and the digest that the table gives it, before anything
//! rests on it; what comes from elsewhere is checked with the whole tar, against the diff_id. Memory is a few buffers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use sha2::{Digest, Sha256};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::chunked::{Chunk, Item, total};
use crate::error::{Error, Result};
use crate::ids::DiffId;
use crate::layers::INLINE_MAX;
use crate::monitor::{Event, Monitor};
use crate::podman::{Folders, Storage};
use crate::store::Store;
use crate::store::buffers::{Filling, Outlet};
use crate::store::chunk_part::Keeping;
use crate::store::found::{Found, Hit};
use crate::store::frames::Frames;
use crate::store::partial::{Partial, Plan, fault, invalid};

/// Bytes between two progress events.
const REPORT: u64 = 1 << 20;

/// Makes the tar. `noted`: how many files of the table are in the index that is written on the way.
pub(super) fn rebuild(
    store: &Store,
    layer: &DiffId,
    plan: &Plan,
    partial: &Partial<'_>,
    noted: &AtomicUsize,
    out: &mut Outlet<'_>,
    monitor: &dyn Monitor,
) -> Result<()> {
    let broken = |e: io::Error| fault(layer, e);
    let reader = missing_parts(plan, partial).map_err(broken)?;
    let mut making = Making {
        store,
        found: &plan.found,
        podman: partial.podman.as_ref(),
        folders: HashMap::new(),
        frames: Frames::new(reader, plan.ranges.clone()),
        missing: total(&plan.ranges),
        keeping: Keeping::new(store, partial.origin, &plan.found, noted),
        decoder: decoder().map_err(broken)?,
        filling: Filling::new(out)?,
        out,
    };
    let (table_bytes, mut reported) = (plan.bytes - total(&plan.ranges), 0);
    let mut report = |fetched: u64, at_least: u64| {
        let bytes = table_bytes + fetched - reported;
        if bytes >= at_least {
            reported += bytes;
            monitor.event(Event::LayerBytes { diff_id: *layer, bytes });
        }
    };
    let mut tar_split = partial
        .place
        .read_tar_split(&plan.table, &plan.tar_split)
        .map_err(broken)?;
    let mut files = plan.table.files.iter().enumerate();
    while let Some(item) = tar_split.item().map_err(broken)? {
        match item {
            Item::Raw(bytes) => making.filling.put(bytes, making.out)?,
            Item::File(size) => {
                let file = files.next().filter(|(_, file)| file.size == size);
                let (place, file) =
                    file.ok_or_else(|| broken(invalid("the tar-split and the table have different files")))?;
                making.keeping.begin(place, &file.digest);
                let made = making.file(&file.digest, size, plan.table.chunks(file));
                made.map_err(|e| own(layer, e))?;
                making.keeping.end();
            }
        }
        report(making.frames.fetched, REPORT);
    }
    if files.next().is_some() {
        return Err(broken(invalid("the table has files that the tar-split does not have")));
    }
    report(making.frames.fetched, 1);
    making.filling.end(making.out)
}

/// Gives what has to be fetched, one part after the other.
fn missing_parts<'a>(plan: &Plan, partial: &Partial<'a>) -> io::Result<Box<dyn BufRead + Send + 'a>> {
    if plan.ranges.is_empty() {
        return Ok(Box::new(io::empty()));
    }
    let parts = (partial.parts)(plan.ranges.clone());
    parts.ok_or_else(|| invalid("the registry no longer serves parts of it"))
}

fn decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(23))?;
    Ok(decoder)
}

/// The tar as it is made.
struct Making<'a, 'o, 's> {
    store: &'a Store,
    found: &'a Found,
    podman: Option<&'a Arc<Storage>>,
    /// Where the files of podman's layers are that were needed so far.
    folders: HashMap<usize, Folders>,
    frames: Frames<'a>,
    /// Bytes of the blob that are to be fetched in all.
    missing: u64,
    keeping: Keeping<'a>,
    decoder: Decoder<'static>,
    filling: Filling,
    out: &'o mut Outlet<'s>,
}

impl Making<'_, '_, '_> {
    fn file(&mut self, sum: &[u8; 32], size: u64, chunks: &[Chunk]) -> io::Result<()> {
        if self.found.has(sum, size) {
            return self.content(sum, true);
        }
        let mut at = 0;
        for chunk in chunks {
            if chunk.zeros {
                self.zeros(chunk.size)?;
            } else if self.found.has(&chunk.digest, chunk.size) {
                self.content(&chunk.digest, false)?;
            } else {
                self.fetched(chunk, at)?;
            }
            at += chunk.size;
        }
        Ok(())
    }

    /// Content that is here. `whole`: a file, whose object need not be made again.
    fn content(&mut self, sum: &[u8; 32], whole: bool) -> io::Result<()> {
        match self.found.get(sum) {
            Some(Hit::Inline(bytes)) => self.filling.put(bytes, self.out).map_err(io::Error::other),
            Some(Hit::Object {
                id,
                offset,
                length,
                whole: all,
            }) => {
                let mut file: File = self.store.open_object(id).map_err(io::Error::other)?;
                if offset > 0 {
                    file.seek(SeekFrom::Start(offset))?;
                }
                if whole && all && length > INLINE_MAX {
                    self.filling.mark(*id);
                }
                self.copy(&mut file, length)
            }
            Some(Hit::Podman(place)) => {
                let folders = match self.folders.entry(place.layer) {
                    Entry::Occupied(opened) => opened.into_mut(),
                    Entry::Vacant(none) => {
                        let layer = self.podman.and_then(|podman| podman.layer_at(place.layer));
                        none.insert(layer.ok_or_else(|| invalid("a layer of podman's has gone"))?.folders())
                    }
                };
                let mut file = folders.open(&place.name, place.size).map_err(|why| {
                    let name = String::from_utf8_lossy(&place.name);
                    io::Error::other(format!("podman's file {name} {why}"))
                })?;
                self.copy(&mut file, place.size)
            }
            Some(Hit::Kept { part, offset, length }) => self.copy(&mut part.at(offset)?, length),
            None => Err(invalid("something that was here is not")),
        }
    }

    fn copy(&mut self, from: &mut impl Read, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let space = self.filling.space();
            let most = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match from.read(&mut space[..most]) {
                Ok(0) => return Err(invalid("an object is shorter than it was")),
                Ok(n) => {
                    left -= n as u64;
                    self.filling.filled(n, self.out).map_err(io::Error::other)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.copy(&mut io::repeat(0), count)
    }

    /// A chunk from the blob: unpacked, and checked against size and digest. `at`: where it stands in its file.
    fn fetched(&mut self, chunk: &Chunk, at: u64) -> io::Result<()> {
        self.frames.seek(chunk.packed.start)?;
        self.decoder.reinit()?;
        let mut packed = chunk.packed.end - chunk.packed.start;
        let (mut left, mut hash, mut ended) = (chunk.size, Sha256::new(), false);
        let mut beyond = [0; 1];
        loop {
            let (fetched, waited) = (self.frames.fetched, self.frames.waited);
            let input = self.frames.piece(packed)?;
            let mut source = InBuffer::around(input);
            let space = self.filling.space();
            let most = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            // All that it should give was given: one byte more is too many.
            let target = if left == 0 { &mut beyond[..] } else { &mut space[..most] };
            let mut target = OutBuffer::around(target);
            let hint = self.decoder.run(&mut source, &mut target)?;
            let (taken, given) = (source.pos(), target.pos());
            ended = if (taken, given) == (0, 0) { ended } else { hint == 0 };
            if left == 0 && given > 0 {
                return Err(invalid("a chunk unpacks to more than the table says"));
            }
            self.frames.consume(taken);
            self.keeping
                .waited(self.frames.waited - waited, self.frames.fetched - fetched);
            let bytes = &self.filling.space()[..given];
            hash.update(bytes);
            let to_come = self.missing.saturating_sub(self.frames.fetched);
            self.keeping.arrived(at + chunk.size - left, bytes, to_come);
            self.filling.filled(given, self.out).map_err(io::Error::other)?;
            packed -= taken as u64;
            left -= given as u64;
            if packed == 0 && (left == 0 && ended || (taken, given) == (0, 0)) {
                break;
            }
            if (taken, given) == (0, 0) {
                return Err(invalid("a chunk cannot be unpacked"));
            }
        }
        if left > 0 || !ended {
            return Err(invalid("a chunk is shorter than the table says"));
        }
        if <[u8; 32]>::from(hash.finalize()) != chunk.digest {
            return Err(invalid(
                "a chunk is not what the table says; the registry sent other bytes",
            ));
        }
        Ok(())
    }
}

/// A reader may carry one of our errors, which knows better what happened.
fn own(layer: &DiffId, error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| fault(layer, error))
}
