//! Kernel and initrd as files, wherever they are: in the store, or on `$BOOT`.
//!
//! Invariant: what is read is compared, an object with its name, files on `$BOOT` with the digest of both that their
//! folder is named by. Only reading proves that; sizes can only prove the opposite.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use crate::boot::BootEntry;
use crate::deployment::KernelSizes;
use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::sys::checked::Checked;
use crate::sys::fs;

/// SHA-256 of a kernel followed by its initrd; 64 lower-case hex digits. The name of their folder on `$BOOT`, and
/// `digest` in the origin file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelDigest([u8; 32]);

impl fmt::Display for KernelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KernelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelDigest({self})")
    }
}

impl FromStr for KernelDigest {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let lower = s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let bad = || Error::BadDigest {
            text: s.into(),
            wanted: "64 lower-case hex digits",
        };
        let raw = hex::decode(s).ok().filter(|_| lower).ok_or_else(bad)?;
        raw.try_into().map(Self).map_err(|_| bad())
    }
}

/// Where the bytes of a file come from; it can be read more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileSource {
    /// A file; no link to one.
    Path(PathBuf),
    /// An object of a store: reading it to its end fails where it is not what its name says.
    Object {
        /// Where it is.
        path: PathBuf,
        /// Its name.
        id: ObjectId,
    },
    /// The bytes themselves: small files have no object.
    Bytes(Vec<u8>),
}

impl FileSource {
    /// Opens it for reading.
    pub fn open(&self) -> Result<Box<dyn Read + '_>> {
        match self {
            Self::Path(path) => Ok(Box::new(fs::open_own_file(path)?)),
            Self::Object { path, id } => Ok(Box::new(Checked::new(fs::open_own_file(path)?, *id))),
            Self::Bytes(bytes) => Ok(Box::new(bytes.as_slice())),
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<u64> {
        match self {
            Self::Path(path) | Self::Object { path, .. } => Ok(fs::metadata(path)?.len()),
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn hash_into(&self, hasher: &mut Sha256) -> Result<()> {
        let name = match self {
            Self::Path(path) | Self::Object { path, .. } => path.as_path(),
            Self::Bytes(_) => Path::new("kernel file"),
        };
        let mut file = self.open()?;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let read = file.read(&mut buffer).map_err(|e| Error::io("read", name, e))?;
            if read == 0 {
                return Ok(());
            }
            hasher.update(&buffer[..read]);
        }
    }
}

/// A kernel and its initrd.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// As in `uname -r`; empty where not known.
    pub version: String,
    /// The kernel.
    pub linux: FileSource,
    /// The initrd.
    pub initrd: FileSource,
    /// What [`KernelFiles::digest`] must find, where that is known.
    pub expected: Option<KernelDigest>,
    /// What it found; shared by clones, because the files do not change in one run.
    found: Arc<OnceLock<KernelDigest>>,
}

impl KernelFiles {
    /// Without an expected digest.
    pub fn new(version: impl Into<String>, linux: FileSource, initrd: FileSource) -> Self {
        Self {
            version: version.into(),
            linux,
            initrd,
            expected: None,
            found: Arc::default(),
        }
    }

    /// Those of an entry, as they are on `$BOOT` now; expected is what their folder is named by.
    pub fn on_boot(entry: &BootEntry, boot_dir: &Path) -> Self {
        let below = |path: &str| FileSource::Path(boot_dir.join(path.trim_start_matches('/')));
        Self {
            expected: entry.kernel,
            ..Self::new(format!("of {}", entry.file), below(&entry.linux), below(&entry.initrd))
        }
    }

    /// Bytes of both.
    ///
    /// # Errors
    /// Where one is not there.
    pub fn sizes(&self) -> Result<KernelSizes> {
        Ok(KernelSizes {
            linux: self.linux.size()?,
            initrd: self.initrd.size()?,
        })
    }

    /// Reads both files, the first time; who copies them compares again.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when another digest was expected: the files were changed since.
    pub fn digest(&self) -> Result<KernelDigest> {
        let found = match self.found.get() {
            Some(found) => *found,
            None => {
                let mut hasher = Sha256::new();
                self.linux.hash_into(&mut hasher)?;
                self.initrd.hash_into(&mut hasher)?;
                *self.found.get_or_init(|| KernelDigest(hasher.finalize().into()))
            }
        };
        match self.expected {
            Some(expected) if expected != found => Err(Error::Mismatch {
                what: format!("kernel and initrd {}", self.version),
                expected: expected.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_hashed_once_in_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linux");
        std::fs::write(&path, "linux").unwrap();
        let files = KernelFiles::new("6.1", FileSource::Path(path.clone()), FileSource::Bytes(vec![1]));
        let digest = files.clone().digest().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(files.digest().unwrap(), digest);
    }

    #[test]
    fn the_kernel_digest_is_over_both_files_in_order() {
        let bytes = |s: &str| FileSource::Bytes(s.as_bytes().to_vec());
        let mut files = KernelFiles::new("6.1", bytes("ab"), bytes("c"));
        // printf abc | sha256sum
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(files.digest().unwrap().to_string(), abc);
        files.expected = Some(abc.parse().unwrap());
        assert!(files.digest().is_ok());
        let mut files = KernelFiles::new("6.1", bytes("ab"), bytes("d"));
        files.expected = Some(abc.parse().unwrap());
        assert!(matches!(files.digest(), Err(Error::Mismatch { .. })));
        assert!("..".parse::<KernelDigest>().is_err());
        assert!("AB".repeat(32).parse::<KernelDigest>().is_err());
    }
}
