//! One error type for the library; every variant carries the noun that failed.
//!
//! Invariant: `kind()` decides the exit code and nothing else does, so that the same failure leaves with the same code
//! whichever command met it. Messages say what happened to which thing; where there is something to do, they end
//! with it.

use std::io;
use std::path::{Path, PathBuf};

/// What the caller has to know to choose an exit code (`docs/commands.md`, "Exit codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Exit code 1.
    Failed,
    /// Exit code 2: the request itself is wrong.
    Usage,
    /// Exit code 3: refused by trust.
    Trust,
    /// Exit code 4: not enough space, quota or inodes.
    Space,
    /// Exit code 5: registry or network.
    Network,
    /// Exit code 6: another run holds the lock.
    Busy,
    /// Exit code 77: nothing to do.
    Nothing,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by the thing that it went wrong with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive: `open`, `link`, `sync`.
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A digest or algorithm that is none.
    #[error("{text:?} is not a digest: expected {wanted}")]
    BadDigest {
        /// What was given.
        text: String,
        /// What it should look like.
        wanted: &'static str,
    },
    /// An image reference that cannot be understood.
    #[error("image reference {reference:?}: {why}")]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it, and what to write instead.
        why: String,
    },
    /// Wrong use of a command or a call: nothing was changed.
    #[error("{0}")]
    Usage(String),
    /// A registry or a connection failed, after retries.
    #[error("{url}: {why}")]
    Network {
        /// The URL or OCI layout.
        url: String,
        /// What happened, and what to do.
        why: String,
    },
    /// A manifest, index or config that is refused.
    #[error("manifest {reference}: {why}")]
    Manifest {
        /// Digest or reference.
        reference: String,
        /// What is wrong.
        why: String,
    },
    /// Content is not what its digest or size says.
    #[error("{what}: expected {expected}, found {found}; nothing was kept of it")]
    Mismatch {
        /// The blob, layer, object or image.
        what: String,
        /// The digest or size it should have.
        expected: String,
        /// The digest or size it has.
        found: String,
    },
    /// A layer's tar stream or compression is broken or refused.
    #[error("layer {layer}, {entry}: {why}")]
    Layer {
        /// diff_id or blob digest.
        layer: String,
        /// Entry name, or `byte N` of the tar stream.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// An object is missing or broken.
    #[error("object {id}: {why}")]
    Object {
        /// The object's digest.
        id: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A stream of the repository is missing or broken.
    #[error("stream {name}: {why}")]
    Stream {
        /// Its name below `streams/`.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The repository as a whole cannot be used.
    #[error("repository {}: {why}", path.display())]
    Repository {
        /// Its folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A dump that mkcomposefs would refuse as well.
    #[error("dump, line {line}: {why}")]
    Dump {
        /// Counted from 1; 0 = the dump as a whole.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A tree that cannot become an image: a missing folder, a limit of the format.
    #[error("{}: {why}", one_line(&path.to_string_lossy()))]
    Tree {
        /// The path inside the tree.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An image that cannot be read or mounted.
    #[error("image {image}: {why}")]
    Image {
        /// Digest or path.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// A signature, key or trust rule says no.
    #[error("{what}: {why}")]
    Trust {
        /// What was to be trusted.
        what: String,
        /// Why it is not, and what to do.
        why: String,
    },
    /// A deployment, or its record, cannot be used.
    #[error("deployment {id}: {why}")]
    Deployment {
        /// Id, or what the user wrote.
        id: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A boot entry or `$BOOT` as a whole cannot be used.
    #[error("boot entry {entry}: {why}")]
    BootEntry {
        /// File name or folder.
        entry: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A disk or file system that nothing can be installed on.
    #[error("{}: {why}", path.display())]
    Disk {
        /// The device, file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A settings file that cannot be understood.
    #[error("{}: {why}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line where known.
        why: String,
    },
    /// A file of somebody else's that is broken.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Too little room, seen before anything was written.
    #[error("{}: {needed} bytes needed, {free} free; {remedy}", path.display())]
    Space {
        /// The file system.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// What helps.
        remedy: String,
    },
    /// Too few inodes, seen before anything was written.
    #[error("{}: {needed} inodes needed, {free} free; {remedy}", path.display())]
    Inodes {
        /// The file system.
        path: PathBuf,
        /// Inodes needed.
        needed: u64,
        /// Inodes free.
        free: u64,
        /// What helps.
        remedy: String,
    },
    /// A file system became full on the way.
    #[error("{error}; {remedy}")]
    Full {
        /// What could not be written.
        error: Box<Error>,
        /// What was done about it, and what helps.
        remedy: String,
    },
    /// Another run holds the lock.
    #[error("{} is in use by {holder}; wait for it to finish, then run this again", path.display())]
    Busy {
        /// What is locked.
        path: PathBuf,
        /// Process id and command, as far as known.
        holder: String,
    },
    /// There is nothing to do; not a failure, but not success either.
    #[error("{0}")]
    Nothing(String),
    /// `image lint` found errors; the findings were reported one by one.
    #[error("image lint: {count} error(s) found; this image cannot be installed and booted as it should")]
    Lint {
        /// How many findings of that severity.
        count: usize,
    },
    /// `fsck` found damage; the findings were reported one by one.
    #[error("fsck: {count} problem(s) found")]
    Damaged {
        /// How many findings.
        count: usize,
    },
}

impl Error {
    /// An I/O failure on `path`; `action` is an infinitive.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        }
    }

    /// What failed when a reader of this library failed: the library's own error where it travelled inside, else an
    /// I/O failure while reading `what`.
    pub fn from_read(what: impl AsRef<Path>, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::io("read", what, error),
        }
    }

    /// What failed on the way through a temporary file in `folder`: where that is full, what to do about it.
    pub fn temporary(folder: &Path, error: Self) -> Self {
        match error {
            Self::Io { source, .. } if is_space(&source) => {
                let why = format!("{source}; make room there, or name a folder with more of it in TMPDIR");
                Self::io("write a temporary file in", folder, io::Error::new(source.kind(), why))
            }
            other => other,
        }
    }

    /// Which exit code it deserves.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } if is_space(source) => Kind::Space,
            Self::Reference { .. } | Self::Usage(_) => Kind::Usage,
            Self::Trust { .. } => Kind::Trust,
            Self::Space { .. } | Self::Inodes { .. } | Self::Full { .. } => Kind::Space,
            Self::Network { .. } => Kind::Network,
            Self::Busy { .. } => Kind::Busy,
            Self::Nothing(_) => Kind::Nothing,
            _ => Kind::Failed,
        }
    }
}

fn is_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A name as it is shown: what would begin another line, or be a command to a terminal, is escaped.
pub fn one_line(name: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().collect(),
        false => String::from(c),
    };
    name.chars().map(shown).collect()
}
