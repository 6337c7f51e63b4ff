//! Layers to objects in one pass: fetch, decompress, hash, parse, hash, write.
//!
//! Each layer has two threads: one reads, hashes and decompresses the blob, the other parses the tar, hashes it and its
//! files in one go and writes objects. They are connected by a few buffers that go round, so that memory is bounded
//! whatever the layer holds. Layers run side by side, the largest first.
//!
//! A layer with a table of contents may be put together from what is here and the parts that are not
//! ([`crate::store::partial`]): then the first thread makes the tar instead of unpacking it. When that fails for
//! whatever reason but a full disk, the layer is fetched as a whole.
//!
//! Invariant: a layer whose blob or tar is not what its digests say gets no stream. Objects of its files may stay: they
//! are what their own names say, nothing refers to them, and garbage collection removes them.

use std::io::BufRead;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::chunked::{Place, Table};
use crate::error::{Error, Kind, Result};
use crate::ids::{BlobDigest, DiffId};
pub use crate::manifest::Compression;
use crate::monitor::{Event, Monitor};
use crate::registry::Kept;
use crate::store::buffers::{self, Outlet};
use crate::store::layer::Importer;
use crate::store::making;
use crate::store::on_the_way::OnTheWay;
use crate::store::partial::{self, Decision};
pub use crate::store::partial::{Missing, Partial, Parts};
use crate::store::room::{Room, TABLES};
use crate::store::unpack::decode;
use crate::store::{Origin, Store};

/// Layers at a time at most unless asked otherwise: each takes about 12 MiB, of which a zstd window is 8.
const MAX_THREADS: usize = 4;

/// Opens a blob when its turn has come.
pub type Open<'a> = Box<dyn FnOnce() -> Result<Box<dyn BufRead + Send + 'a>> + Send + 'a>;

/// One layer to import.
pub struct LayerSource<'a> {
    /// The digest that its tar must have.
    pub diff_id: DiffId,
    /// Compressed size in bytes: the largest is started first; for progress.
    pub size: u64,
    /// How it is compressed, as its media type says; what its bytes say wins, unless it says `None`.
    pub compression: Compression,
    /// Opens the blob; its reader fails at the end where size or digest are wrong.
    pub open: Open<'a>,
    /// How to get parts of it, where it has a table of contents.
    pub partial: Option<Partial<'a>>,
    /// Where it comes over a network. It is opened by this and not by `open` then, so that what arrives of it can be
    /// kept for another run.
    pub remote: Option<Remote<'a>>,
}

/// A blob that comes over a network.
pub struct Remote<'a> {
    /// Its digest.
    pub blob: BlobDigest,
    /// Where it comes from.
    pub origin: Origin,
    /// Opens it with what is kept of it; as [`LayerSource::open`] otherwise.
    pub open: OpenKept<'a>,
}

/// Opens a blob of which something may be here.
pub type OpenKept<'a> = Box<dyn Fn(Box<dyn Kept>) -> Box<dyn BufRead + Send + 'a> + Send + Sync + 'a>;

impl std::fmt::Debug for LayerSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSource")
            .field("diff_id", &self.diff_id)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Layers that are to be imported, with what the tables of those that have one say; nothing else is fetched yet.
#[derive(Debug)]
pub struct Plan<'a> {
    jobs: Vec<Job<'a>>,
}

/// One of them.
struct Job<'a> {
    source: LayerSource<'a>,
    /// What an interrupted run kept of its blob.
    kept: Range<u64>,
    /// Bytes that were fetched of its table.
    table: u64,
    decision: Decision,
}

impl std::fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// A layer of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Planned<'p> {
    /// Which.
    pub diff_id: DiffId,
    /// Its size in bytes, as it is in the registry.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// Bytes that will be fetched, or were of its table, which may have been of no use.
    pub fetch: u64,
    /// Only parts of it will be.
    pub parts: bool,
    /// How far of its blob an interrupted run had come, which wrote what is in there.
    pub reached: u64,
    /// Bytes of its blob that are kept from there, which are not fetched again where the whole of it comes.
    pub kept: u64,
    /// What of it is not here, where that is known.
    pub missing: Option<&'p Missing>,
}

impl Job<'_> {
    fn planned(&self) -> Planned<'_> {
        let source = &self.source;
        let whole = source.size.saturating_add(self.table);
        let (fetch, missing) = match &self.decision {
            Decision::Parts(plan, missing) => (plan.bytes, Some(missing)),
            Decision::Known(_, missing) => (whole, Some(missing)),
            Decision::Whole => (whole, None),
        };
        Planned {
            diff_id: source.diff_id,
            size: source.size,
            compression: source.compression,
            fetch,
            parts: matches!(self.decision, Decision::Parts(..)),
            reached: self.kept.end,
            kept: self.kept.end - self.kept.start,
            missing,
        }
    }
}

impl<'a> Plan<'a> {
    /// Reads the tables of contents, where there are any, and looks up what they list, `threads` at a time as
    /// [`layers`]. `remember`: the index of the store may be written, and what arrives of a table over a slow network,
    /// which is all that is. A table that cannot be had or used means that the layer is fetched as a whole. Without a
    /// store nothing is asked. Layers whose tables would be too many to hold come as a whole as well.
    pub fn new(
        store: Option<&Store>,
        sources: Vec<LayerSource<'a>>,
        threads: usize,
        remember: bool,
        monitor: &dyn Monitor,
    ) -> Self {
        Self::within(TABLES, store, sources, threads, remember, monitor)
    }

    /// With tables that take so much memory.
    fn within(
        limit: usize,
        store: Option<&Store>,
        sources: Vec<LayerSource<'a>>,
        threads: usize,
        remember: bool,
        monitor: &dyn Monitor,
    ) -> Self {
        let store = store.filter(|store| store.keeps.is_none());
        let room = Room::new(limit);
        let decide = |source: LayerSource<'a>| {
            let (diff_id, mut table) = (&source.diff_id, 0);
            let decided = match (store, &source.partial) {
                (Some(store), Some(partial)) => room.take(diff_id, || {
                    partial::decide(store, diff_id, partial, remember, &mut table, monitor)
                }),
                _ => Ok(Decision::Whole),
            };
            let decision = decided.unwrap_or_else(|error| {
                warn_of_whole(diff_id, &error, monitor);
                Decision::Whole
            });
            let remote = store.zip(source.remote.as_ref());
            let kept = remote.map_or(0..0, |(store, remote)| store.kept_of(&remote.blob, source.size));
            Job {
                source,
                kept,
                table,
                decision,
            }
        };
        let asked = sources.iter().filter(|source| source.partial.is_some()).count();
        Self {
            jobs: side_by_side(sources, workers(threads).min(asked), decide),
        }
    }

    /// Its layers.
    pub fn layers(&self) -> impl Iterator<Item = Planned<'_>> {
        self.jobs.iter().map(Job::planned)
    }

    /// Whether files of podman's are used.
    pub(crate) fn takes_from_podman(&self) -> bool {
        let parts = |job: &Job<'_>| matches!(&job.decision, Decision::Parts(plan, _) if plan.takes_from_podman());
        self.jobs.iter().any(parts)
    }

    /// Leaves out layers that came here in the meantime.
    pub fn retain(&mut self, wanted: impl Fn(&DiffId) -> bool) {
        self.jobs.retain(|job| wanted(&job.source.diff_id));
    }

    /// With the layers of another plan.
    pub fn and(mut self, other: Self) -> Self {
        self.jobs.extend(other.jobs);
        self
    }

    /// Imports them, as [`layers`] does.
    ///
    /// # Errors
    /// As [`layers`].
    pub fn run(self, store: &Store, threads: usize, monitor: &dyn Monitor) -> Result<()> {
        let mut jobs = self.jobs;
        if jobs.is_empty() {
            return Ok(());
        }
        store.begin()?;
        jobs.sort_by_key(|job| std::cmp::Reverse(job.source.size));
        let (stop, failure) = (AtomicBool::new(false), Mutex::new(None));
        let work = |job: Job<'_>| {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = layer(store, job, &stop, monitor) {
                stop.store(true, Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            }
        };
        side_by_side(jobs, workers(threads), work);
        failure
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }
}

/// Imports layers side by side, `threads` at a time (0: as many as there are cores, 4 at most). The caller leaves out
/// those that are here ([`Store::has_layer`]). Nothing refers to them before [`Store::publish`].
///
/// # Errors
/// The first error of any layer; the others are given up then. What was complete stays and is not fetched again.
pub fn layers(store: &Store, sources: Vec<LayerSource<'_>>, threads: usize, monitor: &dyn Monitor) -> Result<()> {
    Plan::new(Some(store), sources, threads, true, monitor).run(store, threads, monitor)
}

fn workers(threads: usize) -> usize {
    match threads {
        0 => thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
        asked => asked,
    }
}

/// Does something with each, in order, so many at a time; the results are in the same order.
fn side_by_side<T: Send, R: Send>(items: Vec<T>, workers: usize, each: impl Fn(T) -> R + Sync) -> Vec<R> {
    let workers = workers.min(items.len());
    let slots: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
            let item = slot.lock().unwrap_or_else(PoisonError::into_inner).0.take();
            if let Some(item) = item {
                let result = each(item);
                slot.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(result);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    let results = slots.into_iter();
    results
        .filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1)
        .collect()
}

fn warn_of_whole(diff_id: &DiffId, error: &Error, monitor: &dyn Monitor) {
    monitor.event(Event::Warning(format!(
        "layer {diff_id} is fetched as a whole: {error}"
    )));
}

/// Imports one layer: from its missing parts where that pays, else as a whole.
fn layer(store: &Store, job: Job<'_>, stop: &AtomicBool, monitor: &dyn Monitor) -> Result<()> {
    let Job {
        source,
        decision,
        table: fetched,
        ..
    } = job;
    let diff_id = source.diff_id;
    let table = match (decision, &source.partial) {
        (Decision::Known(table, _), _) => Some(table),
        (Decision::Parts(plan, _), Some(partial)) => match parts(store, &diff_id, &plan, partial, stop, monitor) {
            Ok(()) => {
                monitor.event(Event::LayerDone { diff_id });
                return Ok(());
            }
            Err(error) if error.kind() == Kind::Space => {
                drop(plan);
                // What is kept gives way; that it cannot be removed is not what is wrong.
                let _ = partial.origin.map(|origin| store.forget_parts(origin));
                return Err(error);
            }
            Err(error) if stop.load(Ordering::Relaxed) => return Err(error),
            Err(error) => {
                warn_of_whole(&diff_id, &error, monitor);
                None
            }
        },
        (Decision::Parts(..) | Decision::Whole, _) => None,
    };
    let place = source.partial.as_ref().map(|partial| partial.place.clone());
    let take = place.as_ref().filter(|_| table.is_none()).cloned();
    let taken = whole(store, source, (take, fetched), stop, monitor)?;
    // The index is a help for later, and what cannot be had of it is made when it is needed.
    let read = |packed: Vec<u8>| place.as_ref()?.read_table(&packed).ok();
    if let Some(table) = table.or_else(|| taken.and_then(read)) {
        note(store, &diff_id, &table);
    }
    monitor.event(Event::LayerDone { diff_id });
    Ok(())
}

/// Imports a layer from all of its blob; gives the bytes of its table, packed, where `take` says where it is. So many
/// bytes were `fetched` for it before.
fn whole(
    store: &Store,
    source: LayerSource<'_>,
    (take, fetched): (Option<Place>, u64),
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Option<Vec<u8>>> {
    let LayerSource {
        diff_id,
        size,
        compression,
        open,
        remote,
        ..
    } = source;
    let try_it = |open: Open<'_>| {
        monitor.event(Event::LayerStarted {
            diff_id,
            size: size.saturating_add(fetched),
        });
        if fetched > 0 {
            let bytes = fetched;
            monitor.event(Event::LayerBytes { diff_id, bytes });
        }
        let take = take.clone();
        run(store, &diff_id, stop, monitor, None, move |out| {
            decode(diff_id, compression, open()?, take, out, monitor)
        })
    };
    let Some(remote) = remote.filter(|_| store.keeps_all()) else {
        return try_it(open);
    };
    let with_part = || {
        let part = store.part(&remote.blob, size, remote.origin);
        let (open, kept): (_, Box<dyn Kept>) = (&remote.open, Box::new(part.clone()));
        let made = try_it(Box::new(move || Ok(open(kept))));
        let went_on = part.went_on();
        if ends_part(&made, stop) {
            part.remove();
        }
        (made, went_on)
    };
    match with_part() {
        (Err(error), true) if error.kind() == Kind::Failed && !stop.load(Ordering::Relaxed) => {
            monitor.event(Event::Warning(format!(
                "layer {diff_id} is fetched anew; with what an interrupted run kept of it came out: {error}"
            )));
            with_part().0
        }
        (made, _) => made,
    }
}

/// Whether what is kept of a layer is of no use any more: the layer is here, or the blob is wrong, or room is short.
/// Kept it is where the network failed, or something else than this layer.
fn ends_part<T>(made: &Result<T>, stop: &AtomicBool) -> bool {
    match made {
        Ok(_) => true,
        Err(error) if error.kind() == Kind::Space => true,
        Err(error) => error.kind() == Kind::Failed && !stop.load(Ordering::Relaxed),
    }
}

fn parts(
    store: &Store,
    diff_id: &DiffId,
    plan: &partial::Plan,
    partial: &Partial<'_>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<()> {
    monitor.event(Event::LayerStarted {
        diff_id: *diff_id,
        size: plan.bytes,
    });
    let noted = AtomicUsize::new(0);
    let mut on_the_way = OnTheWay::new(store, *diff_id, &plan.table, &noted);
    let made = run(store, diff_id, stop, monitor, Some(&mut on_the_way), |out| {
        making::rebuild(store, diff_id, plan, partial, &noted, out, monitor)
    });
    match &made {
        Err(Error::Mismatch { .. }) => {
            store.forget_index()?;
            // The layer comes whole now, and the right object replaces a damaged one only where it is looked at.
            let intact = |id| store.objects.is_intact(id).unwrap_or(false);
            if !plan.found.objects().iter().all(intact) {
                store.objects.distrust();
            }
        }
        Err(_) => on_the_way.write(),
        Ok(()) => {}
    }
    made?;
    if !on_the_way.complete() {
        note(store, diff_id, &plan.table);
    }
    Ok(())
}

fn note(store: &Store, diff_id: &DiffId, table: &Table) {
    if let Err(error) = store.index_from_table(diff_id, table) {
        tracing::debug!("index of {diff_id}: {error}");
    }
}

/// Imports the tar that `make` gives on a thread of its own; this thread is the second of the two.
fn run<T: Send>(
    store: &Store,
    diff_id: &DiffId,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
    on_the_way: Option<&mut OnTheWay<'_>>,
    make: impl FnOnce(&mut Outlet<'_>) -> Result<T> + Send,
) -> Result<T> {
    let (mut out, pieces) = buffers::pair(stop);
    let (stream, made) = thread::scope(|scope| {
        let maker = scope.spawn(move || {
            let (result, made) = match make(&mut out) {
                Ok(made) => (Ok(()), Some(made)),
                Err(error) => (Err(error), None),
            };
            out.end(result);
            made
        });
        let stream = Importer::new(store, *diff_id, pieces, on_the_way, monitor)?.run()?;
        Ok::<_, Error>((stream, maker.join().ok().flatten()))
    })?;
    let made = made.ok_or_else(|| Error::Usage("the decompressing thread ended without a word".into()))?;
    store.add_layer(diff_id, stream)?;
    Ok(made)
}

#[cfg(test)]
mod tests;
