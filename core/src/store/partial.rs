//! A layer put together from what is here and the parts that are not: see [`crate::chunked`].
//!
//! The table is fetched, each of its files and chunks looked up in the index, and the tar made again: its own bytes from
//! the tar-split, files from objects, missing chunks from the blob, each unpacked and checked against its digest as it
//! comes. What is made goes the same way as a layer that was fetched whole: through the importer, which checks the
//! diff_id, so a table, an index or a registry that lies gives an error here and the layer is fetched as a whole.
//!
//! Invariant: memory is the table (some 60 bytes for each chunk), what was found of it, and a few buffers; nothing is on
//! disk that is not an object, but for what is kept of the file under way ([`crate::store::chunk_part`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use sha2::{Digest, Sha256};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::chunked::{self, Chunk, Item, Place, Table, coalesce, total};
use crate::error::{Error, Result};
use crate::ids::DiffId;
use crate::layers::INLINE_MAX;
use crate::monitor::{Event, Monitor};
use crate::podman::{Folders, Storage};
use crate::store::buffers::{Filling, Outlet};
use crate::store::chunk_part::Keeping;
use crate::store::found::{Found, Hit};
use crate::store::frames::Frames;
use crate::store::index::Search;
use crate::store::{Origin, Store, local};

/// Layers of less are not worth asking for parts.
const SMALL: u64 = 32 << 10;
/// So much is read along rather than asked for apart.
const GAP: u64 = 1 << 10;
/// Where at least so many bytes are missing, the objects of layers that have no index are hashed.
const WORTH_HASHING: u64 = 1 << 20;
/// Bytes between two progress events.
const REPORT: u64 = 1 << 20;

/// Opens some ranges of a blob, one after the other in one reader; `None` where parts are not to be had.
pub type Parts<'a> = Box<dyn Fn(Vec<Range<u64>>) -> Option<Box<dyn BufRead + Send + 'a>> + Send + Sync + 'a>;

/// How to get parts of a layer.
pub struct Partial<'a> {
    /// Where its table is.
    pub place: Place,
    /// Opens parts of its blob.
    pub parts: Parts<'a>,
    /// podman's layers on this machine, which may have files of it.
    pub podman: Option<Arc<Storage>>,
    /// Where it comes over a network, so that what arrives of a large file can be kept for another run.
    pub origin: Option<Origin>,
}

impl std::fmt::Debug for Partial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partial")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// What is to be done with a layer that has a table.
pub(super) enum Decision {
    /// Nothing is known of it: fetch it as a whole, and take the table along.
    Whole,
    /// The saving is small: fetch it as a whole.
    Known(Table, Missing),
    /// Fetch what is missing.
    Parts(Box<Plan>, Missing),
}

/// What of a layer is in no layer that is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// The files that become objects: SHA-256, size, and how much of the blob they are. Some may be there twice.
    pub files: Vec<([u8; 32], u64, u64)>,
    /// How many files the layer has.
    pub entries: u64,
    /// Bytes that the layer's stream has at least.
    pub stream: u64,
    /// Everything that is here was looked through, so none of the files is.
    pub sure: bool,
}

/// What is here of a layer, and what is not.
pub(super) struct Plan {
    pub(super) table: Table,
    tar_split: Vec<u8>,
    found: Found,
    ranges: Vec<Range<u64>>,
    /// Bytes to fetch, table and tar-split included.
    pub(super) bytes: u64,
}

impl Plan {
    /// Whether a file of podman's is used.
    pub(super) fn takes_from_podman(&self) -> bool {
        self.found.takes_from_podman()
    }
}

/// Fetches the table and decides. `remember`: the index may be written.
pub(super) fn decide(
    store: &Store,
    layer: &DiffId,
    partial: &Partial<'_>,
    remember: bool,
    monitor: &dyn Monitor,
) -> Result<Decision> {
    let place = &partial.place;
    let local = partial.podman.as_ref();
    let anything = || store.has_layers() || local.is_some_and(|podman| podman.layers().next().is_some());
    if place.blob < SMALL || !anything() {
        return Ok(Decision::Whole);
    }
    let Some((table, tar_split)) = fetch_table(layer, partial)? else {
        return Ok(Decision::Whole);
    };
    let (found, sure) = look_up(store, &table, local, remember, monitor)?;
    let ranges = missing(&table, &found);
    let overhead = place.table.range.end - place.table.range.start + tar_split.len() as u64;
    let bytes = total(&ranges) + overhead;
    let missing = Missing {
        stream: tar_split.len() as u64,
        sure,
        ..new_files(&table, &found)
    };
    // The table is here already: what counts is what is yet to come.
    if total(&ranges) > place.blob / 10 * 7 {
        return Ok(Decision::Known(table, missing));
    }
    let plan = Plan {
        table,
        tar_split,
        found,
        ranges,
        bytes,
    };
    Ok(Decision::Parts(Box::new(plan), missing))
}

/// What of a table is in the store or in podman's storage; and whether everything that is here was looked through.
fn look_up(
    store: &Store,
    table: &Table,
    local: Option<&Arc<Storage>>,
    remember: bool,
    monitor: &dyn Monitor,
) -> Result<(Found, bool)> {
    let mut search = Search::default();
    for file in &table.files {
        search.wanted.insert(file.digest);
    }
    for chunk in table.chunks.iter().filter(|chunk| !chunk.zeros) {
        search.wanted.insert(chunk.digest);
    }
    store.search_index(&mut search, remember)?;
    let fill = total(&missing(table, &search.found)) >= WORTH_HASHING;
    if fill {
        store.fill_index(&mut search, remember, monitor)?;
    }
    let sure = !store.is_suspect() && (fill || store.index_is_complete());
    let mut found = search.found;
    let bytes = total(&missing(table, &found));
    if let Some(podman) = local.filter(|_| bytes >= WORTH_HASHING) {
        let files = table.files.iter();
        let files = files.filter(|file| !found.has(&file.digest, file.size));
        let places = local::search(podman, files.map(|file| (file.digest, file.size)), bytes, monitor);
        for (sum, place) in places {
            found.podmans(sum, place);
        }
    }
    store.find_chunks(table, &mut found);
    found.shrink();
    Ok((found, sure))
}

/// What the store has not got of a table's files.
fn new_files(table: &Table, found: &Found) -> Missing {
    let files = table.files.iter().filter(|file| file.size > INLINE_MAX);
    let stored = |file: &chunked::File| {
        let elsewhere = matches!(found.get(&file.digest), Some(Hit::Podman(_) | Hit::Kept { .. }));
        !elsewhere && found.has(&file.digest, file.size)
    };
    let new = files.filter(|file| !stored(file));
    let packed = |file: &chunked::File| {
        let chunks = table.chunks(file).iter();
        chunks.map(|chunk| chunk.packed.end - chunk.packed.start).sum::<u64>()
    };
    Missing {
        files: new.map(|file| (file.digest, file.size, packed(file))).collect(),
        entries: table.files.len() as u64,
        ..Missing::default()
    }
}

/// The table, checked, and the tar-split, packed.
fn fetch_table(layer: &DiffId, partial: &Partial<'_>) -> Result<Option<(Table, Vec<u8>)>> {
    let place = &partial.place;
    let (table, split) = (place.table.range.clone(), place.tar_split.range.clone());
    let mut ranges = vec![table.clone(), split.clone()];
    ranges.sort_by_key(|range| range.start);
    let ranges = coalesce(ranges, GAP);
    let Some(reader) = (partial.parts)(ranges.clone()) else {
        return Ok(None);
    };
    let mut frames = Frames::new(reader, ranges);
    let mut fetch = |range: Range<u64>| frames.read(range).map_err(|e| fault(layer, e));
    let (packed, tar_split) = match table.start < split.start {
        true => {
            let packed = fetch(table)?;
            (packed, fetch(split)?)
        }
        false => {
            let tar_split = fetch(split)?;
            (fetch(table)?, tar_split)
        }
    };
    let table = place.read_table(&packed).map_err(|e| fault(layer, e))?;
    Ok(Some((table, tar_split)))
}

/// The ranges of the blob that hold what was not found.
fn missing(table: &Table, found: &Found) -> Vec<Range<u64>> {
    let files = table.files.iter().filter(|file| !found.has(&file.digest, file.size));
    let chunks = files.flat_map(|file| table.chunks(file));
    let needed = chunks.filter(|chunk| !chunk.zeros && !found.has(&chunk.digest, chunk.size));
    coalesce(needed.map(|chunk| chunk.packed.clone()), GAP)
}

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
    let reader = match plan.ranges.is_empty() {
        true => Some(Box::new(io::empty()) as Box<dyn BufRead + Send>),
        false => (partial.parts)(plan.ranges.clone()),
    };
    let reader = reader.ok_or_else(|| broken(invalid("the registry no longer serves parts of it")))?;
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
            Some(Hit::Object { id, offset, length }) => {
                let mut file: File = self.store.open_object(id).map_err(io::Error::other)?;
                if offset > 0 {
                    file.seek(SeekFrom::Start(offset))?;
                }
                if whole && offset == 0 && length > INLINE_MAX {
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

fn fault(layer: &DiffId, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::Layer {
            layer: layer.to_string(),
            entry: "parts".into(),
            why: error.to_string(),
        },
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
