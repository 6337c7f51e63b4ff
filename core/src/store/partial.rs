//! A layer put together from what is here and the parts that are not: see [`crate::chunked`].
//!
//! The table is fetched, each of its files and chunks looked up in the index, and the tar made again: its own bytes
//! from the tar-split, files from objects, missing chunks from the blob, each unpacked and checked against its digest
//! as it comes ([`crate::store::making`]). What is made goes the same way as a layer that was fetched whole: through
//! the importer, which checks the diff_id, so a table, an index or a registry that lies gives an error here and the
//! layer is fetched as a whole.
//!
//! Invariant: memory is the table (some 60 bytes for each chunk), what was found of it, and a few buffers; nothing is
//! on disk that is not an object, but for what is kept of the table and of the file under way where the network is
//! slow ([`crate::store::table_part`], [`crate::store::chunk_part`]).

use std::io::{self, BufRead};
use std::ops::Range;
use std::sync::Arc;

use crate::chunked::{self, Place, Table, coalesce, total};
use crate::error::{Error, Kind, Result};
use crate::ids::DiffId;
use crate::layers::INLINE_MAX;
use crate::monitor::Monitor;
use crate::podman::Storage;
use crate::store::found::Found;
use crate::store::frames::Frames;
use crate::store::index::Search;
use crate::store::table_part::TablePart;
use crate::store::{Origin, Store, local};

/// Layers of less are not worth asking for parts.
const SMALL: u64 = 32 << 10;
/// Where at least so many bytes are missing, the objects of layers that have no index are hashed.
const WORTH_HASHING: u64 = 1 << 20;

/// Opens some ranges of a blob, one after the other in one reader; `None` where parts are not to be had.
pub type Parts<'a> = Box<dyn Fn(Vec<Range<u64>>) -> Option<Box<dyn BufRead + Send + 'a>> + Send + Sync + 'a>;

/// How to get parts of a layer.
pub struct Partial<'a> {
    /// Where its table is.
    pub place: Place,
    /// Opens parts of its blob.
    pub parts: Parts<'a>,
    /// So many bytes between two parts are better read along than asked for apart, as far as that is known by now.
    pub gap: Box<dyn Fn() -> u64 + Send + Sync + 'a>,
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

impl Decision {
    /// Bytes of memory that it takes until the layer is made.
    pub(super) fn weight(&self) -> usize {
        let listed = |missing: &Missing| missing.files.capacity() * size_of::<([u8; 32], u64, u64)>();
        match self {
            Self::Whole => 0,
            Self::Known(table, missing) => table.weight() + listed(missing),
            Self::Parts(plan, missing) => plan.weight() + listed(missing),
        }
    }
}

/// What of a layer is in no layer that is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// The files that become objects: SHA-256, size, and how much of the blob they are. Some may be there twice.
    pub files: Vec<([u8; 32], u64, u64)>,
    /// How many files with content the layer has.
    pub entries: u64,
    /// How many names it has, those of folders, links and empty files as well.
    pub names: u64,
    /// Bytes that the layer's stream has at least.
    pub stream: u64,
    /// Everything that is here was looked through, so none of the files is.
    pub sure: bool,
}

/// What is here of a layer, and what is not.
pub(super) struct Plan {
    pub(super) table: Table,
    pub(super) tar_split: Vec<u8>,
    pub(super) found: Found,
    pub(super) ranges: Vec<Range<u64>>,
    /// Bytes to fetch, with what was fetched of table and tar-split.
    pub(super) bytes: u64,
}

impl Plan {
    fn weight(&self) -> usize {
        let ranges = self.ranges.capacity() * size_of::<Range<u64>>();
        self.table.weight() + self.tar_split.capacity() + self.found.weight() + ranges
    }

    /// Whether a file of podman's is used.
    pub(super) fn takes_from_podman(&self) -> bool {
        self.found.takes_from_podman()
    }
}

/// Fetches the table and decides. `remember`: the index and what arrives of the table may be written. `came` grows by
/// what arrives of it, whatever it is good for.
pub(super) fn decide(
    store: &Store,
    layer: &DiffId,
    partial: &Partial<'_>,
    remember: bool,
    came: &mut u64,
    monitor: &dyn Monitor,
) -> Result<Decision> {
    let place = &partial.place;
    let local = partial.podman.as_ref();
    let anything = || store.has_layers() || local.is_some_and(|podman| podman.layers().next().is_some());
    if place.blob < SMALL || !anything() {
        return Ok(Decision::Whole);
    }
    let Some((table, tar_split)) = fetch_table(store, layer, partial, remember, came)? else {
        return Ok(Decision::Whole);
    };
    // Asking for the table has shown what the registry makes of ranges, so all figures are of what will come.
    let gap = (partial.gap)();
    let (found, sure) = look_up(store, &table, (local, gap), remember, monitor)?;
    let ranges = missing(&table, &found, gap);
    let bytes = total(&ranges) + *came;
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
/// What is not found would be fetched with gaps of up to so many bytes.
fn look_up(
    store: &Store,
    table: &Table,
    (local, gap): (Option<&Arc<Storage>>, u64),
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
    let fill = total(&missing(table, &search.found, gap)) >= WORTH_HASHING;
    if fill {
        store.fill_index(&mut search, remember, monitor)?;
    }
    let sure = !store.is_suspect() && (fill || store.index_is_complete());
    let mut found = search.found;
    let bytes = total(&missing(table, &found, gap));
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
    let stored = |file: &chunked::File| found.has_object(&file.digest) && found.has(&file.digest, file.size);
    let new = files.filter(|file| !stored(file));
    let packed = |file: &chunked::File| {
        let chunks = table.chunks(file).iter();
        chunks.map(|chunk| chunk.packed.end - chunk.packed.start).sum::<u64>()
    };
    Missing {
        files: new.map(|file| (file.digest, file.size, packed(file))).collect(),
        entries: table.files.len() as u64,
        names: table.names,
        ..Missing::default()
    }
}

/// The table and the tar-split, packed, both checked. What was kept of them and is wrong is fetched anew. They lie
/// side by side and are two ranges all the same: so the first answer of a registry shows whether it serves several.
/// Where one of them is here, that is asked on its own.
fn fetch_table(
    store: &Store,
    layer: &DiffId,
    partial: &Partial<'_>,
    remember: bool,
    came: &mut u64,
) -> Result<Option<(Table, Vec<u8>)>> {
    let place = &partial.place;
    let mut ranges = vec![place.table.range.clone(), place.tar_split.range.clone()];
    ranges.sort_by_key(|range| range.start);
    let (mut part, kept) = TablePart::find(store, partial.origin, &place.checksum, total(&ranges), remember);
    let went_on = !kept.is_empty();
    if behind(&ranges, kept.len() as u64).len() < ranges.len() {
        *came += ask_for_several(partial, &ranges);
    }
    match read_table(layer, partial, &ranges, kept, &mut part, came) {
        Err(error) if went_on && error.kind() == Kind::Failed => {
            part.remove();
            read_table(layer, partial, &ranges, Vec::new(), &mut part, came)
        }
        read => read,
    }
}

/// Asks for the last byte of one range and the first one of the next, so that it is known what the registry makes of
/// several. Gives how many came: whether any do is found out where they are needed.
fn ask_for_several(partial: &Partial<'_>, ranges: &[Range<u64>]) -> u64 {
    let [first, second] = ranges else { return 0 };
    let reader = (partial.parts)(vec![first.end - 1..first.end, second.start..second.start + 1]);
    reader.map_or(0, |mut reader| io::copy(&mut reader, &mut io::sink()).unwrap_or(0))
}

/// `bytes`: what is here of these ranges, from the first byte on.
fn read_table(
    layer: &DiffId,
    partial: &Partial<'_>,
    ranges: &[Range<u64>],
    mut bytes: Vec<u8>,
    part: &mut TablePart<'_>,
    came: &mut u64,
) -> Result<Option<(Table, Vec<u8>)>> {
    let (place, broken) = (&partial.place, |e: io::Error| fault(layer, e));
    let rest = behind(ranges, bytes.len() as u64);
    if !rest.is_empty() {
        let Some(reader) = (partial.parts)(rest.clone()) else {
            return Ok(None);
        };
        let mut frames = Frames::new(reader, rest.clone());
        for range in &rest {
            let each = |all: &[u8], new, waited| {
                *came += new as u64;
                part.arrived(all, new, waited, place.blob);
            };
            frames.read(range, &mut bytes, each).map_err(broken)?;
        }
    }
    let of = |wanted: &Range<u64>| {
        let before = ranges.iter().filter(|range| range.end <= wanted.start);
        let first = ranges.iter().find(|range| range.end > wanted.start)?;
        let start = usize::try_from(total(&before.cloned().collect::<Vec<_>>()) + (wanted.start - first.start)).ok()?;
        bytes.get(start..start + usize::try_from(wanted.end - wanted.start).ok()?)
    };
    let missing = || broken(invalid("the table is not in order"));
    let table = of(&place.table.range).ok_or_else(missing)?;
    let table = place.read_table(table).map_err(broken)?;
    let tar_split = of(&place.tar_split.range).ok_or_else(missing)?.to_vec();
    place.read_tar_split(&table, &tar_split).map_err(broken)?;
    Ok(Some((table, tar_split)))
}

/// What is left of ranges behind so many of their bytes.
fn behind(ranges: &[Range<u64>], mut count: u64) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    for range in ranges {
        let skip = count.min(range.end - range.start);
        count -= skip;
        if range.start + skip < range.end {
            rest.push(range.start + skip..range.end);
        }
    }
    rest
}

/// The ranges of the blob that hold what was not found, and gaps of up to so many bytes between that.
fn missing(table: &Table, found: &Found, gap: u64) -> Vec<Range<u64>> {
    let files = table.files.iter().filter(|file| !found.has(&file.digest, file.size));
    let chunks = files.flat_map(|file| table.chunks(file));
    let needed = chunks.filter(|chunk| !chunk.zeros && !found.has(&chunk.digest, chunk.size));
    coalesce(needed.map(|chunk| chunk.packed.clone()), gap)
}

pub(super) fn fault(layer: &DiffId, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::Layer {
            layer: layer.to_string(),
            entry: "parts".into(),
            why: error.to_string(),
        },
    }
}

/// Why a layer's parts are not looked for.
pub(super) fn too_many(layer: &DiffId) -> Error {
    fault(
        layer,
        invalid("the layers' tables of contents list more files than are held at once"),
    )
}

pub(super) fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Algorithm, ObjectId};

    #[test]
    fn a_file_that_is_only_a_part_of_a_larger_object_counts_as_new_until_an_object_of_its_own_is_found() {
        let file = chunked::File {
            digest: [1; 32],
            size: 100,
            chunks: 0..0,
        };
        let table = Table {
            files: vec![file],
            ..Table::default()
        };
        let id = |byte| ObjectId::from_bytes(Algorithm::Sha256, &[byte; 32]).unwrap();
        let mut found = Found::default();
        found.object([1; 32], (id(5), 300), 0, 100);
        assert!(found.has(&[1; 32], 100), "it is not fetched");
        assert_eq!(new_files(&table, &found).files, [([1; 32], 100, 0)]);
        found.object([1; 32], (id(6), 100), 0, 100);
        assert_eq!(new_files(&table, &found).files, []);
    }
}
