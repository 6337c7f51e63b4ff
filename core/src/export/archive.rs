//! To an archive in OCI image layout: one tar file, which appears complete or not at all.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::draft::Draft;
use super::layout::{MARKER, entry, existing, index_of, name};
use super::{COPY, Content, Outgoing, Target};
use crate::error::{Error, Result};
use crate::ids::{BlobDigest, ManifestDigest};
use crate::manifest::Descriptor;
use crate::monitor::Monitor;
use crate::reference::{Layout, Reference};
use crate::sys::fs::{self, Fs, RealFs};

const BLOCK: usize = 512;

#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    draft: Draft,
    name: Option<String>,
    out: Option<BufWriter<File>>,
    members: HashSet<BlobDigest>,
}

impl Archive {
    /// Makes the file under a temporary name; a leftover of an interrupted run is overwritten, what another run writes
    /// is left to it.
    pub(super) fn open(layout: &Layout, reference: &Reference) -> Result<Self> {
        let mut path = layout.path().to_path_buf();
        let name = name(layout, reference)?;
        let refuse = |why: &str| Error::Reference {
            reference: reference.to_string(),
            why: why.into(),
        };
        match std::fs::metadata(&path) {
            Ok(there) if there.is_dir() => return Err(refuse("is a folder; give a file, or write oci:DIR")),
            // It would be replaced: /dev/stdout by a file.
            Ok(there) if !there.is_file() => return Err(refuse("is a device or a pipe; give a file")),
            // Where a link leads to.
            Ok(_) => path = std::fs::canonicalize(&path).map_err(|e| Error::io("look at", &path, e))?,
            Err(_) => {}
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = fs::parent(&path)?.join(format!(".#{file}"));
        let (draft, out) = Draft::new(temporary)?;
        let out = Some(BufWriter::with_capacity(COPY, out));
        let mut archive = Self {
            path,
            draft,
            name,
            out,
            members: HashSet::new(),
        };
        archive.folder_member("blobs/")?;
        archive.folder_member("blobs/sha256/")?;
        archive.bytes_member("oci-layout", MARKER)?;
        Ok(archive)
    }

    fn fail(&self, e: io::Error) -> Error {
        Error::io("write", &self.path, e)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.out {
            Some(out) => out.write_all(bytes),
            None => Ok(()),
        };
        written.map_err(|e| self.fail(e))
    }

    fn header(&mut self, name: &str, kind: tar::EntryType, mode: u32, size: u64) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(|e| self.fail(e))?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.raw(header.as_bytes())
    }

    fn folder_member(&mut self, name: &str) -> Result<()> {
        self.header(name, tar::EntryType::Directory, 0o755, 0)
    }

    fn bytes_member(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.member(name, bytes.len() as u64, &mut |out| super::copy_all(&mut &*bytes, out))
    }

    /// A member of exactly `size` bytes.
    fn member(&mut self, name: &str, size: u64, content: Content<'_>) -> Result<()> {
        self.header(name, tar::EntryType::Regular, 0o644, size)?;
        let path = self.path.clone();
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut counted = Counted { out, count: 0 };
        content(&mut counted).map_err(|error| match error {
            // It did not come from reading.
            Error::Io { source, .. } => Error::io("write", &path, source),
            other => other,
        })?;
        let count = counted.count;
        if count != size {
            return Err(Error::Mismatch {
                what: format!("{name} of {}", self.path.display()),
                expected: format!("{size} bytes"),
                found: format!("{count} bytes"),
            });
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.raw(&[0; BLOCK][..padding])
    }
}

impl Target for Archive {
    fn is_there(&mut self, _: &ManifestDigest, _: &dyn Monitor) -> Result<bool> {
        Ok(false)
    }

    fn has(&mut self, blob: &Descriptor, _: &dyn Monitor) -> Result<bool> {
        Ok(self.members.contains(&blob.digest))
    }

    fn put(&mut self, blob: &Descriptor, content: Content<'_>, _: &dyn Monitor) -> Result<()> {
        let name = format!("blobs/sha256/{}", blob.digest.to_hex());
        self.member(&name, blob.size, content)?;
        self.members.insert(blob.digest);
        Ok(())
    }

    fn finish(&mut self, manifest: &Outgoing<'_>, _: &dyn Monitor) -> Result<()> {
        let blob = |digest: &ManifestDigest| format!("blobs/sha256/{}", digest.to_hex());
        self.bytes_member(&blob(&manifest.digest), manifest.bytes)?;
        if let Some(original) = manifest.original {
            self.bytes_member(&blob(&original.digest), &original.bytes)?;
        }
        let index = index_of(&entry(self.name.as_deref(), manifest)).to_string();
        self.bytes_member("index.json", index.as_bytes())?;
        self.raw(&[0; 2 * BLOCK])?;
        if let Some(mut out) = self.out.take() {
            out.flush().map_err(|e| self.fail(e))?;
        }
        self.draft.sync()?;
        self.draft.keep_as(&self.path)?;
        RealFs.sync_dir(fs::parent(&self.path)?)
    }

    fn folder(&self) -> Option<PathBuf> {
        existing(&self.path)
    }
}

struct Counted<'a> {
    out: &'a mut BufWriter<File>,
    count: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
