//! A layer's blob to its tar, as its bytes come: read, told to the monitor, decompressed into buffers.
//!
//! Invariant: the end of the tar is told only when the blob has ended and was right.

use std::io::{self, BufRead};
use std::ops::Range;

use crate::chunked::Place;
use crate::error::{Error, Result};
use crate::ids::DiffId;
use crate::manifest::Compression;
use crate::monitor::{Event, Monitor};
use crate::store::buffers::{Filling, Outlet};
use crate::store::decompress::{Decompressor, PEEK};

/// Bytes between two progress events of a layer.
const REPORT: u64 = 1 << 20;

/// Reads and decompresses a blob into buffers; gives the bytes of its table, packed, where `take` says where it is.
pub(super) fn decode<'a>(
    diff_id: DiffId,
    compression: Compression,
    reader: Box<dyn BufRead + Send + 'a>,
    take: Option<Place>,
    out: &mut Outlet<'_>,
    monitor: &'a dyn Monitor,
) -> Result<Option<Vec<u8>>> {
    let mut blob = Blob {
        reader,
        diff_id,
        monitor,
        unreported: 0,
        at: 0,
        take: take.map(|place| place.table.range),
        taken: Vec::new(),
    };
    let broken = |e: io::Error| layer_fault(&diff_id, e);
    let first = blob.first()?;
    let mut decompressor = Decompressor::new(compression, &first).map_err(broken)?;
    let mut filling = Filling::new(out)?;
    let mut decompress = |input: &[u8]| filling.decompress(&mut decompressor, input, out, &broken);
    decompress(&first)?;
    while blob.piece(&mut decompress)? {}
    decompressor.finish().map_err(broken)?;
    filling.end(out)?;
    blob.report();
    Ok(blob.take.is_some().then_some(blob.taken))
}

/// A blob that tells the monitor how much of it was read.
struct Blob<'a> {
    reader: Box<dyn BufRead + Send + 'a>,
    diff_id: DiffId,
    monitor: &'a dyn Monitor,
    unreported: u64,
    /// Bytes read so far.
    at: u64,
    /// A part of the blob that is to be kept, and what was read of it.
    take: Option<Range<u64>>,
    taken: Vec<u8>,
}

impl Blob<'_> {
    /// The first [`PEEK`] bytes, where there are that many.
    fn first(&mut self) -> Result<Vec<u8>> {
        let mut first = Vec::with_capacity(PEEK);
        while first.len() < PEEK {
            let piece = self.fill()?;
            let take = piece.len().min(PEEK - first.len());
            if take == 0 {
                break;
            }
            first.extend_from_slice(&piece[..take]);
            self.consume(take);
        }
        Ok(first)
    }

    /// Hands on the next bytes where they lie; `false` at the end, which is reached only by a blob that is right.
    fn piece(&mut self, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let piece = self.fill()?;
        let length = piece.len();
        if length > 0 {
            each(piece)?;
            self.consume(length);
        }
        Ok(length > 0)
    }

    fn fill(&mut self) -> Result<&[u8]> {
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(read_error(&self.diff_id, error));
            }
        }
        // What was read is still there: asking again costs nothing.
        self.reader.fill_buf().map_err(|e| read_error(&self.diff_id, e))
    }

    fn consume(&mut self, amount: usize) {
        self.keep(amount);
        self.reader.consume(amount);
        self.at += amount as u64;
        self.unreported += amount as u64;
        if self.unreported >= REPORT {
            self.report();
        }
    }

    /// Keeps what is to be kept of the next bytes.
    fn keep(&mut self, amount: usize) {
        let Some(take) = &self.take else { return };
        let end = self.at + amount as u64;
        if self.at >= take.end || end <= take.start {
            return;
        }
        let from = usize::try_from(take.start.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let to = usize::try_from(take.end.min(end) - self.at).unwrap_or(usize::MAX);
        if let Ok(piece) = self.reader.fill_buf() {
            self.taken.extend_from_slice(&piece[from..to]);
        }
    }

    fn report(&mut self) {
        let bytes = std::mem::take(&mut self.unreported);
        if bytes > 0 {
            self.monitor.event(Event::LayerBytes {
                diff_id: self.diff_id,
                bytes,
            });
        }
    }
}

/// A reader may carry one of our errors, which knows better what happened.
fn read_error(diff_id: &DiffId, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(other) => Error::io("fetch layer", diff_id.to_string(), other),
    }
}

fn layer_fault(diff_id: &DiffId, error: io::Error) -> Error {
    Error::Layer {
        layer: diff_id.to_string(),
        entry: "blob".into(),
        why: error.to_string(),
    }
}
