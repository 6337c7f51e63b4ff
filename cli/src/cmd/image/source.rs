//! What an argument `DIR|DUMP|FILE|DIGEST|REF|-` means.
//!
//! In this order: `-` is standard input; a text with a transport (`docker://…`, `oci:…`) is a reference; what exists
//! as a file or folder is that; 64 or 128 hex digits are a digest; a text that begins with `/`, `./` or `../` is a
//! missing file; all else is a reference. So `./NAME` is always a file and `docker://NAME` always an image.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cfs_core::ids::ObjectId;
use cfs_core::image::dump;
use cfs_core::reference::Reference;
use cfs_core::sys::fs;
use cfs_core::tree::Tree;
use cfs_core::{Error, Result};

/// The composefs header's first four bytes.
const MAGIC: [u8; 4] = 0xd078_629a_u32.to_le_bytes();
/// Five million files make a dump of about a gigabyte.
const LIMIT: u64 = 8 << 30;
const TRANSPORTS: [&str; 6] = [
    "docker://",
    "registry:",
    "oci:",
    "oci-archive:",
    "docker-archive:",
    "containers-storage:",
];

/// Where a tree comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard input: a dump or an image.
    Stdin,
    /// A folder, to be scanned.
    Folder(PathBuf),
    /// A dump or an image; its first bytes tell.
    File(PathBuf),
    /// An image of the repository.
    Digest(ObjectId),
    /// A container image.
    Reference(Reference),
}

impl Source {
    /// Reads the argument.
    pub fn of(text: &str) -> Result<Self> {
        Self::classify(text, |path| path.exists().then(|| path.is_dir()))
    }

    /// `look` tells whether there is something at a path, and whether it is a folder.
    fn classify(text: &str, look: impl Fn(&Path) -> Option<bool>) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if TRANSPORTS.iter().any(|t| text.starts_with(t)) {
            return crate::cmd::switch::reference(text).map(Self::Reference);
        }
        let path = PathBuf::from(text);
        match look(&path) {
            Some(true) => return Ok(Self::Folder(path)),
            Some(false) => return Ok(Self::File(path)),
            None => {}
        }
        if let Ok(digest) = text.parse() {
            return Ok(Self::Digest(digest));
        }
        if text.is_empty() || ["/", "./", "../"].iter().any(|p| text.starts_with(p)) {
            return Err(Error::Usage(format!("{text:?}: there is no such file or folder")));
        }
        crate::cmd::switch::reference(text).map(Self::Reference)
    }
}

/// What a file or standard input holds.
#[derive(Debug)]
pub enum Content {
    /// An image.
    Image(Vec<u8>),
    /// Anything else: dump text.
    Dump(Text),
}

impl Content {
    /// Of a file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let file = fs::open(path)?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Self::of(path.into(), size, Box::new(file))
    }

    /// Of standard input.
    pub fn of_stdin() -> Result<Self> {
        Self::of("standard input".into(), 0, Box::new(io::stdin()))
    }

    /// `size` is a hint.
    fn of(name: PathBuf, size: u64, mut from: Box<dyn Read>) -> Result<Self> {
        let mut start = Vec::new();
        let began = (&mut from).take(MAGIC.len() as u64).read_to_end(&mut start);
        began.map_err(|e| Error::io("read", &name, e))?;
        let is_image = start == MAGIC;
        let mut text = Text {
            from: Box::new(io::Cursor::new(start).chain(from)),
            size: size.min(LIMIT),
            left: LIMIT,
            name,
        };
        if is_image {
            text.whole().map(Self::Image)
        } else {
            Ok(Self::Dump(text))
        }
    }
}

/// Bytes that are read as they are needed.
pub struct Text {
    from: Box<dyn Read>,
    /// About how many there are; 0 where nobody knows.
    size: u64,
    /// How many more are taken.
    left: u64,
    name: PathBuf,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Text {
    /// The tree that the text describes.
    pub fn parse(mut self) -> Result<Tree> {
        let size = usize::try_from(self.size).unwrap_or(0);
        dump::parse_pieces(size, &mut |buffer| self.read(buffer))
    }

    fn whole(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).map_or(0, |size| size + 1));
        let read = (&mut self.from).take(LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::io("read", &self.name, e))?;
        if bytes.len() as u64 > LIMIT {
            return Err(self.too_large());
        }
        Ok(bytes)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.from.read(buffer) {
                Ok(count) => {
                    self.left = self.left.checked_sub(count as u64).ok_or_else(|| self.too_large())?;
                    return Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", &self.name, e)),
            }
        }
    }

    fn too_large(&self) -> Error {
        Error::io(
            "read",
            &self.name,
            io::Error::other(format!("larger than {LIMIT} bytes")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(text: &str) -> Result<Source> {
        Source::classify(text, |path| match path.to_str().unwrap() {
            "dir" | "./dir" => Some(true),
            "file" | "/abs/file" => Some(false),
            _ => None,
        })
    }

    #[test]
    fn what_exists_is_that_and_a_transport_is_always_a_reference() {
        assert_eq!(classify("-").unwrap(), Source::Stdin);
        assert_eq!(classify("dir").unwrap(), Source::Folder("dir".into()));
        assert_eq!(classify("/abs/file").unwrap(), Source::File("/abs/file".into()));
        assert!(matches!(classify("oci:dir").unwrap(), Source::Reference(_)));
        assert!(matches!(classify("docker://dir").unwrap(), Source::Reference(_)));
        assert!(matches!(classify("quay.io/org/os:41").unwrap(), Source::Reference(_)));
        assert!(matches!(classify(&"0a".repeat(32)).unwrap(), Source::Digest(_)));
        assert!(matches!(classify(&"0a".repeat(64)).unwrap(), Source::Digest(_)));
    }

    #[test]
    fn a_missing_path_is_not_taken_for_an_image_name() {
        for text in ["", "./gone", "../gone", "/gone"] {
            let error = classify(text).unwrap_err();
            assert_eq!(error.kind(), cfs_core::Kind::Usage, "{text}");
        }
    }

    #[test]
    fn an_image_is_known_by_its_first_bytes() {
        let content = |bytes: &'static [u8]| Content::of("x".into(), 0, Box::new(bytes)).unwrap();
        let image: &[u8] = &[0x9a, 0x62, 0x78, 0xd0, 1];
        assert!(matches!(content(image), Content::Image(bytes) if bytes == image));
        for text in [&b"/ 0 40755"[..], b"/", b""] {
            let Content::Dump(mut kept) = content(text) else {
                panic!("{text:?}")
            };
            assert_eq!(kept.whole().unwrap(), text);
        }
    }
}
