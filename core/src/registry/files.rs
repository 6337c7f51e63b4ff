//! The files of an OCI image layout, in a folder or in an archive.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::archive::Archive;
use crate::error::{Error, Result};
use crate::sys::fs;

const BUFFER: usize = 256 << 10;

/// Where they are.
#[derive(Debug)]
pub(super) enum Files {
    Folder(PathBuf),
    Archive(Archive),
}

impl Files {
    /// For messages.
    pub(super) fn name(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Archive(archive) => archive.name(name),
        }
    }

    /// A whole small file; `None` where there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                is_there(&path)?;
                fs::read(&path, limit)
            }
            Self::Archive(archive) => archive.read(name, limit),
        }
    }

    /// A file's size; `None` where there is none.
    pub(super) fn size(&self, name: &str) -> Result<Option<u64>> {
        match self {
            Self::Folder(folder) => is_there(&folder.join(name)),
            Self::Archive(archive) => Ok(archive.size(name)),
        }
    }

    /// A file's size and its bytes from byte `from` on; `None` where there is none.
    pub(super) fn open(&self, name: &str, from: u64) -> Result<Option<(u64, Box<dyn BufRead + Send>)>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let fail = |e| Error::io("read", &path, e);
                is_there(&path)?;
                let mut file = match File::open(&path) {
                    Ok(file) => file,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(fail(e)),
                };
                let size = file.metadata().map_err(fail)?.len();
                file.seek(SeekFrom::Start(from)).map_err(fail)?;
                Ok(Some((size, Box::new(BufReader::with_capacity(BUFFER, file)))))
            }
            Self::Archive(archive) => {
                let found = archive.size(name).zip(archive.reader(name, from));
                Ok(found.map(|(size, reader)| (size, Box::new(reader) as _)))
            }
        }
    }
}

/// The size of a file; `None` where there is none. A pipe or a folder is an error: reading it may never end.
fn is_there(path: &Path) -> Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(found.len())),
        Ok(_) => Err(Error::io("read", path, io::Error::other("it is not a regular file"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look at", path, e)),
    }
}
