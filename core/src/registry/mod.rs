//! From a reference to manifests and blobs, wherever they are.
//!
//! Callers hold a [`Registry`]; how the bytes come (HTTPS, an OCI layout) is behind the private trait [`Transport`],
//! and digest checks, retries and mirrors exist once, here and in [`blob`].
//!
//! Invariant: no byte leaves this module as a manifest or config unless it has the digest it was asked for by, and the
//! end of a [`Blob`] is reached only when all its bytes had the descriptor's size and digest; until then the reader of
//! a blob must treat what it got as unverified.

use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::ids::{BlobDigest, DiffId, ManifestDigest};
use crate::manifest::{CONFIG_LIMIT, Config, Descriptor, Document, MANIFEST_LIMIT, Manifest, Platform};
use crate::monitor::{Event, Monitor};
use crate::podman::{Places, Storage};
use crate::reference::Reference;

mod archive;
mod auth;
mod blob;
mod challenge;
mod client;
mod config;
mod docker_archive;
mod fetch;
mod files;
mod https;
mod kept;
mod flow;
mod limit;
mod login;
mod multipart;
mod net;
mod oci_dir;
mod options;
mod parts;
mod podman;
mod push;
mod retry;
mod signatures;
mod sources;

use signatures::Guard;
use sources::Sources;

pub use blob::Blob;
pub use kept::Kept;
pub(crate) use kept::Pace;
pub use limit::{Limit, Rate};
pub(crate) use oci_dir::{ORIGINAL_MANIFEST, PLAIN_LAYER, REF_NAME};
pub use options::{Environment, Options, Proxy, Timeouts};
pub use parts::Parts;
pub use push::Push;
pub use retry::Retry;
pub use signatures::signature_demanded;

/// How deep indexes may be nested.
const DEPTH_LIMIT: usize = 3;

/// Where an image is, open for questions. Cheap to clone; usable from several threads.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    reference: Reference,
    /// What the machine's policy demands of the image.
    guard: Guard,
    sources: Sources,
    retry: Retry,
    /// The source that had the manifest: blobs are asked for there first.
    good: AtomicUsize,
    /// Of the last check by GET (a registry that does not answer HEAD with a digest), so that it is not fetched twice.
    seen: Mutex<Option<(usize, Fetched)>>,
    podman: Places,
    /// podman's images on this machine, opened at most once, since its locks belong to the process.
    local: OnceLock<Option<Arc<Storage>>>,
    /// What is known of each source's way with ranges.
    ranges: Vec<AtomicU8>,
}

/// An image, complete but for its layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// What was asked for.
    pub reference: Reference,
    /// The digest that the tag has: of the index where there is one. Compare this one to see whether there is news.
    pub top: ManifestDigest,
    /// The digest of the manifest that was chosen for the platform; equal to `top` where there is no index.
    pub digest: ManifestDigest,
    /// The manifest.
    pub manifest: Manifest,
    /// The config; as many diff_ids as the manifest has layers.
    pub config: Config,
    /// What is fetched for each layer: the manifest's own blob, or the layer's tar where the place has that instead.
    pub blobs: Vec<Descriptor>,
}

/// Which manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The one that the reference names.
    Top,
    /// The one that an index names.
    Digest(ManifestDigest),
}

/// A manifest as received.
#[derive(Clone, Debug)]
struct Fetched {
    bytes: Vec<u8>,
    content_type: Option<String>,
}

/// A blob from some byte on.
struct Body {
    /// Its bytes; errors carry a [`Failure`].
    reader: Box<dyn std::io::BufRead + Send>,
    /// Where it starts: where it was asked to, or before it.
    from: u64,
    /// It is the whole blob, whatever was asked for.
    whole: bool,
}

/// What a transport could not do.
#[derive(Debug)]
struct Failure {
    error: Error,
    again: Again,
    /// It was answered, and another request than this one may do.
    refused: bool,
}

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Never,
    /// Not before this time has passed, if the other side said so.
    Later(Option<Duration>),
    /// At once, but asked in another way; the other side never says so.
    OtherWay,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            again: Again::Never,
            refused: false,
        }
    }
}

/// One place that has the image. One attempt each: retries are the caller's.
trait Transport: std::fmt::Debug + Send + Sync {
    /// For messages: the URL, without credentials.
    fn url(&self, wanted: Wanted) -> String;
    /// The digest of the top manifest without its content, where that can be had.
    fn head(&self, monitor: &dyn Monitor) -> Result<Option<ManifestDigest>, Failure>;
    /// A manifest or index, at most [`MANIFEST_LIMIT`] bytes.
    fn manifest(&self, wanted: Wanted, monitor: &dyn Monitor) -> Result<Fetched, Failure>;
    /// These bytes of a blob of `size` bytes where that is possible, else all of it from the start. More may come
    /// behind them.
    fn blob(&self, digest: &BlobDigest, size: u64, wanted: Range<u64>, monitor: &dyn Monitor) -> Result<Body, Failure>;
    /// The layer's tar itself as a blob, where the manifest's blob is not to be had here and the tar is. Whoever reads
    /// it gets what the diff_id says, or an error.
    fn plain(&self, _layer: &Descriptor, _diff_id: &DiffId) -> Result<Option<Descriptor>> {
        Ok(None)
    }
    /// The manifest that lists the signatures of a manifest, if there is one.
    fn signatures(&self, _: &ManifestDigest, _: &dyn Monitor) -> Result<Option<Vec<u8>>, Failure> {
        Ok(None)
    }
    /// Parts of a blob: ranges in order that do not overlap. Only asked of one that [`Transport::serves_parts`].
    fn parts(&self, _: &BlobDigest, _: &[Range<u64>], _: &dyn Monitor) -> Result<parts::Answered, Failure> {
        Ok(parts::Answered::Not)
    }
    /// Whether it is worth asking for parts: false where all bytes are on this machine.
    fn serves_parts(&self) -> bool {
        false
    }
    /// Requests made over the network so far, by all sources of the image together.
    fn requests(&self) -> u64 {
        0
    }
}

impl Registry {
    /// Reads the configuration and finds out where the image is to be had; makes no request.
    ///
    /// # Errors
    /// [`Error::Trust`] where the machine's policy does not allow it; what opening the place gives.
    pub fn open(reference: &Reference, options: &Options) -> Result<Self> {
        let guard = Guard::new(reference, options)?;
        let (sources, storage) = sources::open(reference, options)?;
        let local = storage.map_or_else(OnceLock::new, |storage| OnceLock::from(Some(storage)));
        let inner = Inner {
            reference: reference.clone(),
            guard,
            ranges: sources.iter().map(|_| AtomicU8::new(parts::SEVERAL)).collect(),
            sources,
            retry: options.retry.clone(),
            good: AtomicUsize::new(0),
            seen: Mutex::new(None),
            podman: options.podman.clone(),
            local,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What it was opened for.
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// Requests made over the network so far, those for tokens and those that failed included.
    pub fn requests(&self) -> u64 {
        self.inner.sources.first().map_or(0, |source| source.requests())
    }

    /// podman's images on this machine, whose layers need not be fetched. Where they cannot be read, or podman is
    /// changing them, that is a note: layers are fetched then.
    pub fn local(&self, monitor: &dyn Monitor) -> Option<Arc<Storage>> {
        let open = || {
            let place = self.inner.podman.place()?;
            place.map_or(Ok(None), |place| Storage::open(&place, Duration::ZERO))
        };
        let opened = self.inner.local.get_or_init(|| match open() {
            Ok(storage) => storage.map(Arc::new),
            Err(error) => {
                monitor.event(Event::Note(format!("podman's images are passed over: {error}")));
                None
            }
        });
        opened.clone()
    }

    /// Lets podman change its images again, where they were looked at; but not those that are to be had from nowhere
    /// else.
    pub(crate) fn release_local(&self) {
        if let Some(Some(storage)) = self.inner.local.get()
            && !self.is_podman()
        {
            storage.release();
        }
    }

    /// Whether its layers are to be had from podman alone.
    pub fn is_podman(&self) -> bool {
        matches!(self.inner.reference, Reference::ContainersStorage(_))
    }

    /// The digest that the reference has now: [`Image::top`] of what [`Registry::image`] would give.
    ///
    /// Costs one request (HEAD) where no login is needed, and none where the reference is pinned to a digest.
    pub fn resolve(&self, monitor: &dyn Monitor) -> Result<ManifestDigest> {
        self.set_seen(None);
        if let Some(pinned) = self.inner.reference.digest() {
            return Ok(pinned);
        }
        let (source, head) = self.first(0, monitor, |at, last| {
            self.attempt(at, Wanted::Top, last, monitor, |t| t.head(monitor))
        })?;
        if let Some(digest) = head {
            return Ok(digest);
        }
        let fetched = self.fetch(source, Wanted::Top, true, monitor)?;
        let digest = digest_of(&fetched.bytes);
        self.set_seen(Some((source, fetched)));
        Ok(digest)
    }

    /// The image for `platform`: manifest and config, checked, and allowed by the machine's policy.
    pub fn image(&self, platform: &Platform, monitor: &dyn Monitor) -> Result<Image> {
        let seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (source, fetched) = match seen {
            Some(seen) => seen,
            None => self.first(0, monitor, |at, last| self.fetch(at, Wanted::Top, last, monitor))?,
        };
        self.inner.good.store(source, Ordering::Relaxed);
        let mut source = source;
        let mut name = self.inner.reference.to_string();
        let mut document = Document::parse(fetched.bytes, fetched.content_type.as_deref(), &name)?;
        let top = document.digest();
        for _ in 0..DEPTH_LIMIT {
            let index = match document {
                Document::Manifest(manifest) => {
                    self.allowed(top, manifest.digest, monitor)?;
                    return self.with_config(top, manifest, monitor);
                }
                Document::Index(index) => index,
            };
            let entry = index.choose(platform, &name)?;
            let digest = entry.manifest_digest(&name)?;
            name = self.inner.sources[source].url(Wanted::Digest(digest));
            check_limit(&name, entry.size, MANIFEST_LIMIT)?;
            let wanted = Wanted::Digest(digest);
            let (at, fetched) = self.first(source, monitor, |at, last| self.fetch(at, wanted, last, monitor))?;
            source = at;
            document = Document::parse(fetched.bytes, fetched.content_type.as_deref(), &name)?;
        }
        Err(Error::Manifest {
            reference: name,
            why: format!("is an index in an index, more than {DEPTH_LIMIT} deep"),
        })
    }

    /// A blob that a manifest from here names, as a reader whose end is reached only when size and digest were right.
    /// Nothing is asked for before the first read. Cut connections are taken up again where they broke.
    pub fn blob<'m>(&self, blob: &Descriptor, monitor: &'m dyn Monitor) -> Blob<'m> {
        Blob::new(self.clone(), blob, monitor)
    }

    /// Whether blobs come over a network, so that what arrived is worth keeping.
    pub fn is_remote(&self) -> bool {
        self.inner.sources.iter().any(|source| source.serves_parts())
    }

    /// Whether parts of blobs may be had; false once all places that are left have shown that they serve none.
    pub fn serves_parts(&self) -> bool {
        let good = self.inner.good.load(Ordering::Relaxed);
        self.inner.serving_parts(good).is_some()
    }

    /// So many bytes between two parts of a blob are better read along than asked for apart. It grows where a request
    /// for several showed that each has to be a request of its own.
    pub fn gap(&self) -> u64 {
        self.inner.gap()
    }

    /// Some ranges of a blob, one after the other in one reader. They are in order, do not overlap and are not empty.
    /// **Nothing of it is checked**: the caller has digests for what is in the ranges.
    pub fn parts<'m>(&self, blob: &Descriptor, ranges: Vec<Range<u64>>, monitor: &'m dyn Monitor) -> Parts<'m> {
        Parts::new(self.clone(), blob, ranges, monitor)
    }

    fn with_config(&self, top: ManifestDigest, manifest: Manifest, monitor: &dyn Monitor) -> Result<Image> {
        let what = format!("config {}", manifest.config.digest);
        check_limit(&what, manifest.config.size, CONFIG_LIMIT)?;
        let bytes = loop {
            let mut bytes = Vec::new();
            let mut blob = Blob::new(self.clone(), &manifest.config, monitor);
            let read = blob.read_to_end(&mut bytes);
            match read.map_err(|e| Error::from_read(&what, e)) {
                Ok(_) => break bytes,
                Err(error @ Error::Mismatch { .. }) if self.pass_over() => {
                    monitor.event(Event::Warning(format!("mirror passed over: {error}")));
                }
                Err(error) => return Err(error),
            }
        };
        let config = Config::parse(bytes, &manifest)?;
        let source = &self.inner.sources[self.inner.good.load(Ordering::Relaxed)];
        let layers = manifest.layers.iter().zip(&config.diff_ids);
        let blobs = layers.map(|(layer, diff_id)| Ok(source.plain(layer, diff_id)?.unwrap_or_else(|| layer.clone())));
        Ok(Image {
            reference: self.inner.reference.clone(),
            top,
            digest: manifest.digest,
            blobs: blobs.collect::<Result<_>>()?,
            manifest,
            config,
        })
    }

    /// Goes on to the next source, if there is one.
    pub(crate) fn pass_over(&self) -> bool {
        let next = self.inner.good.load(Ordering::Relaxed) + 1;
        let there = next < self.inner.sources.len();
        if there {
            self.inner.good.store(next, Ordering::Relaxed);
        }
        there
    }

    fn set_seen(&self, seen: Option<(usize, Fetched)>) {
        *self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// A manifest from one source. Where it is known by digest, it has that.
    fn fetch(&self, source: usize, wanted: Wanted, last: bool, monitor: &dyn Monitor) -> Result<Fetched> {
        let digest = match wanted {
            Wanted::Top => self.inner.reference.digest(),
            Wanted::Digest(digest) => Some(digest),
        };
        self.attempt(source, wanted, last, monitor, |transport| {
            let fetched = transport.manifest(wanted, monitor)?;
            if let Some(digest) = digest {
                check_digest(&transport.url(wanted), digest, &fetched.bytes)?;
            } else if !last {
                // A page for people is no manifest, whatever its status.
                let kind = fetched.content_type.as_deref();
                Document::parse(fetched.bytes.clone(), kind, &transport.url(wanted))?;
            }
            Ok(fetched)
        })
    }

    /// The first source from `start` on that can do it; the last one's failure if none can.
    fn first<T>(
        &self,
        start: usize,
        monitor: &dyn Monitor,
        ask: impl Fn(usize, bool) -> Result<T>,
    ) -> Result<(usize, T)> {
        let last = self.inner.sources.len() - 1;
        for at in start..last {
            match ask(at, false) {
                Ok(done) => return Ok((at, done)),
                Err(error) => monitor.event(Event::Warning(format!("mirror passed over: {error}"))),
            }
        }
        Ok((last, ask(last, true)?))
    }

    /// Retries only where no other source is left to ask.
    fn attempt<T>(
        &self,
        source: usize,
        wanted: Wanted,
        last: bool,
        monitor: &dyn Monitor,
        ask: impl Fn(&dyn Transport) -> Result<T, Failure>,
    ) -> Result<T> {
        let transport = self.inner.sources[source].as_ref();
        let mut round = self.inner.retry.rounds(last);
        loop {
            match ask(transport) {
                Ok(done) => return Ok(done),
                Err(failure) => round.wait(failure, &transport.url(wanted), monitor)?,
            }
        }
    }
}

fn digest_of(bytes: &[u8]) -> ManifestDigest {
    use sha2::Digest;
    ManifestDigest::from_hash(sha2::Sha256::digest(bytes).into())
}

fn check_digest(name: &str, expected: ManifestDigest, bytes: &[u8]) -> Result<()> {
    let found = digest_of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: format!("manifest {name}"),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

fn check_limit(what: &str, size: u64, limit: u64) -> Result<()> {
    if size <= limit {
        return Ok(());
    }
    Err(Error::Manifest {
        reference: what.into(),
        why: format!("has {size} bytes; no more than {limit} are read"),
    })
}
