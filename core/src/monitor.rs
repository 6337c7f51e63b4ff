//! Progress as data: the library never prints.
//!
//! Invariant: events may be dropped or reordered between layers without changing what the library does; nothing is
//! decided from them. Renderers (bars, plain lines, JSON lines) live in the command line.

use crate::ids::DiffId;

/// What happened; numbers are totals so far, not increments, unless a field says otherwise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A stage of the update began.
    Stage(Stage),
    /// The manifest is known: what there is to fetch.
    Plan {
        /// Layers of the image.
        layers: usize,
        /// Of those, layers that are here already.
        cached: usize,
        /// Compressed bytes to fetch.
        bytes: u64,
    },
    /// A layer's import began.
    LayerStarted {
        /// Which.
        diff_id: DiffId,
        /// Its compressed size in bytes.
        size: u64,
    },
    /// Compressed bytes that were received **since the last such event** of the layer.
    LayerBytes {
        /// Which.
        diff_id: DiffId,
        /// How many more.
        bytes: u64,
    },
    /// Files whose object was stored or found **since the last such event**.
    Objects {
        /// How many more were written.
        stored: u64,
        /// How many more were here already.
        shared: u64,
    },
    /// A layer is imported, checked against its diff_id.
    LayerDone {
        /// Which.
        diff_id: DiffId,
    },
    /// A request failed and is tried again.
    Retry {
        /// URL.
        url: String,
        /// Why, with the wait in seconds.
        why: String,
    },
    /// Something the user should know that is no failure.
    Warning(String),
    /// Something worth a line that is no warning: which kernel was chosen of several.
    Note(String),
}

/// The stages of an update, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Asking for the manifest.
    Resolve,
    /// Copying an image of the store to somewhere else.
    Export,
    /// Fetching and importing layers.
    Import,
    /// Writing the store to disk.
    Sync,
    /// Merging layers, generating and signing the image.
    Image,
    /// /etc, /var and the record.
    Deploy,
    /// Kernel files and boot entry.
    Boot,
    /// Removing what is no longer needed.
    Clean,
}

/// Receives events, from several threads.
pub trait Monitor: Send + Sync {
    /// Takes one event; must not block for long.
    fn event(&self, event: Event);
}

/// Receives everything and does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Monitor for Quiet {
    fn event(&self, _: Event) {}
}
