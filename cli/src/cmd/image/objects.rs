//! A plain folder of objects, `ab/cdef…`, as mkcomposefs' `--digest-store` makes it and overlayfs wants it.
//!
//! Invariant: an object appears under its name complete; it is durable after [`Objects::sync`].

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cfs_core::ids::{Algorithm, ObjectId};
use cfs_core::sys::fs::{self, Fs, RealFs};
use cfs_core::sys::verity::{self, Hasher};
use cfs_core::{Error, Result};

/// The folder.
#[derive(Debug)]
pub struct Objects {
    path: PathBuf,
}

impl Objects {
    /// Makes the folder where it is missing.
    pub fn create(path: PathBuf) -> Result<Self> {
        let path = std::path::absolute(&path).map_err(|e| Error::io("find", &path, e))?;
        fs::create_dir_all(&RealFs, &path, 0o755)?;
        Ok(Self { path })
    }

    /// For reading; the folder may be missing.
    pub fn open(path: PathBuf) -> Self {
        Self { path }
    }

    /// Copies the content of `file`, which is at `from`, and names it; fs-verity is on where the file system has it.
    pub fn put(&self, from: &Path, file: &File, algorithm: Algorithm) -> Result<ObjectId> {
        let temporary = self.path.join(format!(".#object-{}", std::process::id()));
        RealFs.remove_file(&temporary)?;
        let mut content = Hashed {
            from: file,
            hasher: Hasher::new(algorithm),
        };
        RealFs
            .create(&temporary, 0o644, &mut content)
            .map_err(|e| at(e, from))?;
        let id = content.hasher.finish();
        let path = self.path.join(id.object_path());
        if fs::exists(&path) {
            RealFs.remove_file(&temporary)?;
            return Ok(id);
        }
        verity::enable(&fs::open(&temporary)?, algorithm)?;
        RealFs.create_dir(fs::parent(&path)?, 0o755)?;
        RealFs.rename(&temporary, &path)?;
        Ok(id)
    }

    /// Whether it is there; not whether its content is right.
    pub fn has(&self, id: &ObjectId) -> bool {
        fs::exists(&self.path.join(id.object_path()))
    }

    /// The content of an object.
    pub fn read(&self, id: &ObjectId, limit: u64) -> Result<Vec<u8>> {
        let path = self.path.join(id.object_path());
        let content = fs::read(&path, limit)?;
        content.ok_or_else(|| Error::Object {
            id: id.to_string(),
            why: format!("{} is missing", path.display()),
        })
    }

    /// Makes all of them durable.
    pub fn sync(&self) -> Result<()> {
        RealFs.sync_all(&self.path)
    }
}

/// Which file was being copied is what the user has to know.
fn at(error: Error, from: &Path) -> Error {
    match error {
        Error::Io { source, .. } => Error::io("copy", from, source),
        other => other,
    }
}

/// Hashes what is read through it.
struct Hashed<'a> {
    from: &'a File,
    hasher: Hasher,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_under_its_digest_and_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"content").unwrap();
        let objects = Objects::create(folder.path().join("a/objects")).unwrap();
        let put = || {
            objects
                .put(&file, &File::open(&file).unwrap(), Algorithm::Sha256)
                .unwrap()
        };
        let id = put();
        assert_eq!(id, put());
        assert_eq!(id, verity::hash(Algorithm::Sha256, b"content"));
        assert_eq!(objects.read(&id, 100).unwrap(), b"content");
        objects.sync().unwrap();
        let names = fs::names(&folder.path().join("a/objects")).unwrap();
        assert_eq!(names.len(), 1, "no temporary file is left: {names:?}");
    }
}
