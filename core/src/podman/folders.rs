//! A layer's files by the names that they have in its tar.
//!
//! They lie in a folder under these names. With `use_composefs` of containers-storage's overlay driver they do not:
//! `composefs-data/composefs.blob` beside the folder is a composefs image that has the names, and the folder has the
//! contents, as `xx/yyyy…`, where the image says. Small ones may be in the image itself, as `mkcomposefs` has them.
//!
//! Invariant: neither names nor what such an image says lead out of the folder, and no more of images is read than
//! `IMAGES_LIMIT`.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::image::reader;
use crate::sys::fs;
use crate::tree::{Kind, ObjectPath, Regular, Tree};

/// Of all layers that files are looked for in together: images of a million files.
const IMAGES_LIMIT: u64 = 256 << 20;

/// Where a layer's files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The folder.
    pub(super) folder: PathBuf,
    /// The composefs image with the names, if there is one.
    pub(super) image: Option<PathBuf>,
}

/// Where a layer's files are: its own place first, then those of the layers below it; opened when they are needed.
#[derive(Debug)]
pub struct Folders {
    places: Vec<(Place, Option<Opened>)>,
    /// Bytes of images that may still be read.
    left: u64,
}

#[derive(Debug)]
struct Opened {
    folder: OwnedFd,
    /// Why the names are not known, if so.
    names: Option<Result<Box<Tree>, String>>,
}

/// The content of a regular file.
#[derive(Debug)]
pub enum Content {
    /// Of its size when it was opened.
    File(File),
    /// What an image has in itself.
    Inlined(Cursor<Vec<u8>>),
}

/// What there is under a name.
enum Met {
    File(File),
    Inlined(Vec<u8>),
    Nothing,
    Other(String),
}

impl Folders {
    pub(super) fn new(places: Vec<Place>) -> Self {
        Self {
            places: places.into_iter().map(|place| (place, None)).collect(),
            left: IMAGES_LIMIT,
        }
    }

    /// Opens a regular file of this size; else says what is wrong.
    ///
    /// # Errors
    /// Why there is none, for a message.
    pub fn open(&mut self, name: &[u8], size: u64) -> Result<Content, String> {
        let mut why = "is missing there".to_owned();
        for (place, opened) in &mut self.places {
            let opened = match opened {
                Some(opened) => opened,
                none => match place.open(&mut self.left) {
                    Some(opened) => none.insert(opened),
                    None => continue,
                },
            };
            match opened.file(name) {
                Met::File(file) => match file.metadata() {
                    Ok(found) if found.is_file() && found.len() == size => return Ok(Content::File(file)),
                    _ => why = "is another file there".into(),
                },
                Met::Inlined(bytes) if bytes.len() as u64 == size => return Ok(Content::Inlined(Cursor::new(bytes))),
                Met::Inlined(_) => why = "is another file there".into(),
                Met::Nothing => {}
                Met::Other(other) => why = other,
            }
        }
        Err(why)
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Inlined(bytes) => bytes.read(buffer),
        }
    }
}

impl Place {
    /// `None` where there is no such folder.
    fn open(&self, left: &mut u64) -> Option<Opened> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, &self.folder, flags, Mode::empty()).ok()?;
        Some(Opened {
            folder,
            names: self.names(left),
        })
    }

    fn names(&self, left: &mut u64) -> Option<Result<Box<Tree>, String>> {
        let image = match fs::read(self.image.as_deref()?, *left) {
            Ok(image) => image?,
            Err(error) => return Some(Err(format!("cannot be looked up: {error}"))),
        };
        *left = left.saturating_sub(image.len() as u64);
        let tree = reader::read(&image).map(Box::new);
        Some(tree.map_err(|error| format!("cannot be looked up in the layer's composefs.blob: {error}")))
    }
}

impl Opened {
    fn file(&self, name: &[u8]) -> Met {
        let folder = self.folder.as_fd();
        let tree = match &self.names {
            None => return open(folder, name, ResolveFlags::IN_ROOT),
            Some(Ok(tree)) => tree,
            Some(Err(why)) => return Met::Other(why.clone()),
        };
        match tree.lookup(name).map(|inode| inode.kind()) {
            None => Met::Nothing,
            Some(Kind::Regular(Regular::External {
                payload: Some(ObjectPath::Text(path)),
                ..
            })) => content(folder, path),
            Some(Kind::Regular(Regular::External {
                id: Some(id),
                payload: Some(ObjectPath::OfDigest),
                ..
            })) => content(folder, id.object_path().as_bytes()),
            Some(Kind::Regular(Regular::Inline(bytes))) => Met::Inlined(bytes.to_vec()),
            Some(_) => Met::Other("has no content there".into()),
        }
    }
}

/// What an image leads to is a file of the folder, by a path without links.
fn content(folder: BorrowedFd<'_>, path: &[u8]) -> Met {
    match open(folder, path, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Met::Nothing => Met::Other("has lost its content there".into()),
        met => met,
    }
}

fn open(folder: BorrowedFd<'_>, name: &[u8], resolve: ResolveFlags) -> Met {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
        Ok(file) => Met::File(File::from(file)),
        Err(Errno::NOENT) => Met::Nothing,
        Err(e) => Met::Other(format!("cannot be read there: {e}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::path::Path;

    use super::*;
    use crate::image::{Versions, dump, writer};

    /// A layer whose image says so: a name, a size, where its content is.
    fn layer(dir: &Path, files: &[(&str, u64, &str)]) -> Place {
        let mut text = String::from("/ 0 40755 2 0 0 0 0.0 - - -\n");
        text += "/usr 0 40755 2 0 0 0 0.0 - - -\n/usr/link 1 120777 1 0 0 0 0.0 a - -\n";
        text += "/usr/inline 5 100644 1 0 0 0 0.0 - inner -\n/usr/pipe 0 10644 1 0 0 0 0.0 - - -\n";
        text += &format!("/usr/page 100 100644 1 0 0 0 0.0 - {} -\n", "p".repeat(100));
        for (name, size, content) in files {
            text += &format!("/usr/{name} {size} 100644 1 0 0 0 0.0 {content} - -\n");
        }
        let image = writer::build(&dump::parse(text.as_bytes()).unwrap(), Versions::MKCOMPOSEFS).unwrap();
        let place = Place {
            folder: dir.join("diff"),
            image: Some(dir.join("composefs.blob")),
        };
        fs::create_dir_all(place.folder.join("aa")).unwrap();
        fs::write(place.folder.join("aa/bb"), "hello").unwrap();
        fs::write(place.image.as_ref().unwrap(), image).unwrap();
        place
    }

    fn read(folders: &mut Folders, name: &str, size: u64) -> Result<String, String> {
        let mut text = String::new();
        folders.open(name.as_bytes(), size)?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn a_composefs_layer_has_its_files_where_the_image_says_and_what_it_lacks_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let top = layer(
            dir.path(),
            &[("a", 5, "aa/bb"), ("lost", 5, "aa/cc"), ("large", 6, "aa/bb")],
        );
        let below = Place {
            folder: dir.path().join("below"),
            image: Some(dir.path().join("none.blob")),
        };
        fs::create_dir_all(below.folder.join("usr")).unwrap();
        fs::write(below.folder.join("usr/plain"), "below").unwrap();
        let mut folders = Folders::new(vec![top, below]);
        for name in ["usr/a", "./usr/a", "/usr//a"] {
            assert_eq!(read(&mut folders, name, 5).unwrap(), "hello", "{name}");
        }
        assert_eq!(read(&mut folders, "usr/plain", 5).unwrap(), "below");
        assert_eq!(read(&mut folders, "usr/inline", 5).unwrap(), "inner");
        assert_eq!(read(&mut folders, "usr/page", 100).unwrap(), "p".repeat(100));
        for (name, size, why) in [
            // A name among the contents is none of the layer's.
            ("aa/bb", 5, "is missing there"),
            ("usr/gone", 5, "is missing there"),
            ("usr/lost", 5, "has lost its content there"),
            ("usr/a", 4, "is another file there"),
            ("usr/large", 6, "is another file there"),
            ("usr/link", 5, "has no content there"),
            ("usr/inline", 4, "is another file there"),
            ("usr/pipe", 5, "has no content there"),
            ("usr", 5, "is another file there"),
            ("../diff/aa/bb", 5, "is missing there"),
        ] {
            assert_eq!(read(&mut folders, name, size).unwrap_err(), why, "{name}");
        }
    }

    #[test]
    fn what_an_image_says_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "hello").unwrap();
        let absolute = dir.path().join("secret").display().to_string();
        let files = [
            ("up", 5, "../secret"),
            ("far", 5, "aa/../../secret"),
            ("root", 5, absolute.as_str()),
            ("through", 5, "out/secret"),
            ("folder", 5, "aa"),
        ];
        let place = layer(dir.path(), &files);
        std::os::unix::fs::symlink("..", place.folder.join("out")).unwrap();
        let mut folders = Folders::new(vec![place]);
        for (name, size, content) in files {
            let opened = read(&mut folders, &format!("usr/{name}"), size);
            assert!(opened.is_err(), "{name} {content}");
        }
    }

    #[test]
    fn damaged_images_are_said_and_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let place = layer(dir.path(), &[("a", 5, "aa/bb")]);
        let path = place.image.clone().unwrap();
        let whole = fs::read(&path).unwrap();
        for end in (0..whole.len()).step_by(211) {
            fs::write(&path, &whole[..end]).unwrap();
            if let Err(why) = read(&mut Folders::new(vec![place.clone()]), "usr/a", 5) {
                assert!(
                    why.starts_with("cannot be looked up in the layer's composefs.blob"),
                    "{why}"
                );
            }
        }
        for at in (0..whole.len()).step_by(17) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            fs::write(&path, bytes).unwrap();
            let _ = read(&mut Folders::new(vec![place.clone()]), "usr/a", 5);
        }
        fs::write(&path, &whole).unwrap();
        let mut small = Folders::new(vec![place]);
        small.left = whole.len() as u64 - 1;
        assert!(read(&mut small, "usr/a", 5).unwrap_err().contains("larger than"));
    }
}
