//! A layer that podman has on this machine, without a second copy of its files where that can be had.
//!
//! A large file becomes an object in the first of these ways that works, and that is said: it shares its blocks with
//! podman's file (reflink: btrfs, XFS); it is podman's file under a second name (hard link); it is copied.
//!
//! Invariant: what was hashed is what is kept. A reflink is hashed after it was made, when nobody else can write to
//! it, and has to be as long as what was hashed. A file under two names has fs-verity, enabled before its digest is
//! asked for once more, so that neither podman nor a program in a container can change it any more; it belongs to
//! root, and so does the other name. The tar as a whole is checked against its diff_id before anything refers to the
//! layer, as with any import.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use crate::error::{Error, Result};
use crate::ids::{DiffId, ObjectId};
use crate::layers::{INLINE_MAX, Kind, Parser, Step};
use crate::monitor::{Event, Monitor};
use crate::podman::{Content, Layer, Part};
use crate::splitstream::{ContentType, Writer};
use crate::store::Store;
use crate::store::entries::{layer_error, write_error};
use crate::store::layer::keep_stream;
use crate::sys::objects::Temporary;
use crate::sys::sha256;
use crate::sys::verity::{self, Hasher};

const BUFFER: usize = 128 << 10;

/// In which ways files became objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Share their blocks with podman's file.
    pub reflinked: u64,
    /// Are podman's file.
    pub linked: u64,
    /// Were copied.
    pub copied: u64,
    /// Were here already.
    pub shared: u64,
}

/// Imports a layer of podman's; nothing refers to it before [`Store::publish`].
///
/// # Errors
/// [`Error::Layer`], [`Error::Mismatch`] where podman's files are not the layer's any more; what writing gives.
/// Objects of files that were read stay then: they are what their own names say.
pub fn layer(store: &Store, layer: &Layer, diff_id: &DiffId, monitor: &dyn Monitor) -> Result<Adopted> {
    store.begin()?;
    let diff_id = *diff_id;
    // Nothing is fetched of it.
    monitor.event(Event::LayerStarted { diff_id, size: 0 });
    let mut adopter = Adopter::new(store, layer.name(), diff_id)?;
    let mut parts = layer.parts()?;
    while let Some(part) = parts.part()? {
        match part {
            Part::Raw(bytes) => adopter.raw(&bytes)?,
            Part::File { content, size, name } => adopter.file(content, size, &name)?,
        }
    }
    let (adopted, stream) = adopter.finish()?;
    store.add_layer(&diff_id, stream)?;
    let Adopted {
        reflinked,
        linked,
        copied,
        shared,
    } = adopted;
    monitor.event(Event::Objects {
        stored: reflinked + linked + copied,
        shared,
    });
    monitor.event(Event::LayerDone { diff_id });
    monitor.event(Event::Note(format!(
        "layer {diff_id} taken from podman: {reflinked} files reflinked, {linked} hard linked, {copied} copied, {shared} here already"
    )));
    Ok(adopted)
}

struct Adopter<'a> {
    store: &'a Store,
    diff_id: DiffId,
    /// For messages.
    name: String,
    parser: Parser,
    /// The tar's end mark was seen.
    ended: bool,
    /// An entry's content comes next, of this size.
    wanted: Option<u64>,
    stream: Writer<Temporary<'a>>,
    hasher: Hasher,
    tar: sha256::Stream,
    buffer: Vec<u8>,
    may_clone: bool,
    may_link: bool,
    device: u64,
    adopted: Adopted,
}

impl<'a> Adopter<'a> {
    fn new(store: &'a Store, name: String, diff_id: DiffId) -> Result<Self> {
        let stream = Writer::new(store.objects.temporary()?, store.algorithm, ContentType::LAYER);
        Ok(Self {
            store,
            diff_id,
            name,
            parser: Parser::new(),
            ended: false,
            wanted: None,
            stream: stream.map_err(|e| write_error(store, e))?,
            hasher: Hasher::new(store.algorithm),
            tar: sha256::Stream::default(),
            buffer: vec![0; BUFFER],
            may_clone: true,
            may_link: store.has_verity() && rustix::process::geteuid().is_root(),
            device: rustix::fs::fstat(&store.objects)
                .map_err(|e| Error::io("look at", store.objects(), e))?
                .st_dev,
            adopted: Adopted::default(),
        })
    }

    /// Headers, padding, the end.
    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        let mut at = 0;
        while !self.ended && at < bytes.len() {
            if self.wanted.is_some() {
                return Err(self.fault("its tar-split data", "has no file where its content should be"));
            }
            let mut input = &bytes[at..];
            let step = self.parser.step(&mut input);
            let end = bytes.len() - input.len();
            self.literal(&bytes[at..end])?;
            at = end;
            match step.map_err(|fault| layer_error(&self.diff_id, fault))? {
                Step::Entry(head) if head.kind == Kind::Regular => {
                    if head.sparse.is_some() {
                        return Err(self.fault("a sparse file", "cannot be rebuilt from podman's files"));
                    }
                    self.wanted = Some(head.stored).filter(|size| *size > 0);
                }
                Step::Entry(_) | Step::More => {}
                Step::End => self.ended = true,
            }
        }
        self.literal(&bytes[at..])
    }

    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        self.tar.update(bytes);
        self.stream.literal(bytes).map_err(|e| write_error(self.store, e))
    }

    fn file(&mut self, mut found: Content, size: u64, name: &str) -> Result<()> {
        if self.wanted.take() != Some(size) {
            return Err(self.fault(name, "is of another size than its entry says"));
        }
        if size <= INLINE_MAX {
            let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
            found.read_exact(&mut content).map_err(|e| self.unread(name, e))?;
            return self.literal(&content);
        }
        let id = match &mut found {
            Content::File(file) => self.object(file, size, name)?,
            inlined @ Content::Inlined(_) => self.copy(inlined, size, name)?,
        };
        self.stream.object(&id, size).map_err(|e| write_error(self.store, e))
    }

    fn object(&mut self, file: &mut File, size: u64, name: &str) -> Result<ObjectId> {
        let objects = &self.store.objects;
        let fail = |e| write_error(self.store, e);
        if self.may_clone {
            let mut temporary = objects.temporary()?;
            self.may_clone = temporary.clone_from(file).map_err(fail)?;
            if self.may_clone {
                // All that podman's file had by then, which may be more than what was to be hashed.
                if temporary.size().map_err(fail)? > size {
                    return Err(self.fault(name, "became longer while it was read"));
                }
                let id = self.hash(&mut temporary, None, size, name)?;
                let new = !objects.has(&id, size)? && objects.store(temporary, &id)?;
                self.count(new, |adopted| &mut adopted.reflinked);
                return Ok(id);
            }
        }
        if self.may_link && self.is_ours(file) {
            let id = self.hash(file, None, size, name)?;
            if objects.has(&id, size)? {
                self.adopted.shared += 1;
                return Ok(id);
            }
            if self.link(file, &id)? {
                return Ok(id);
            }
            return self.copy_known(file, id, size, name);
        }
        self.copy(file, size, name)
    }

    fn copy(&mut self, from: &mut dyn Read, size: u64, name: &str) -> Result<ObjectId> {
        let objects = &self.store.objects;
        let mut temporary = objects.temporary()?;
        let id = self.hash(from, Some(&mut temporary), size, name)?;
        let new = !objects.has(&id, size)? && objects.store(temporary, &id)?;
        self.count(new, |adopted| &mut adopted.copied);
        Ok(id)
    }

    /// On our file system, root's.
    fn is_ours(&self, file: &File) -> bool {
        file.metadata()
            .is_ok_and(|found| found.dev() == self.device && found.uid() == 0)
    }

    /// Gives podman's file our name as well; `false` where it cannot be sealed, or was sealed in another way.
    fn link(&mut self, file: &File, id: &ObjectId) -> Result<bool> {
        let sealed = verity::enable(file, self.store.algorithm).unwrap_or(false);
        if !sealed || verity::measure(file).ok().flatten() != Some(*id) {
            return Ok(false);
        }
        let again = file.try_clone().map_err(|e| write_error(self.store, e))?;
        let objects = &self.store.objects;
        match objects.store(objects.foreign(again), id) {
            Ok(new) => {
                self.count(new, |adopted| &mut adopted.linked);
                Ok(true)
            }
            // Too many names, or a security module says no.
            Err(Error::Io { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies a file that has been hashed; the copy has to be the same.
    fn copy_known(&mut self, file: &mut File, id: ObjectId, size: u64, name: &str) -> Result<ObjectId> {
        let store = self.store;
        file.seek(SeekFrom::Start(0)).map_err(|e| self.unread(name, e))?;
        let mut temporary = store.objects.temporary()?;
        std::io::copy(file, &mut temporary).map_err(|e| write_error(store, e))?;
        temporary.seek(SeekFrom::Start(0)).map_err(|e| write_error(store, e))?;
        let hashed = verity::hash_reader(store.algorithm, &mut temporary);
        if hashed.map_err(|e| write_error(store, e))? != (id, size) {
            return Err(self.fault(name, "changed while it was read"));
        }
        let new = store.objects.store(temporary, &id)?;
        self.count(new, |adopted| &mut adopted.copied);
        Ok(id)
    }

    /// Hashes exactly `size` bytes, for the object and for the tar.
    fn hash(
        &mut self,
        from: &mut dyn Read,
        mut copy: Option<&mut Temporary<'_>>,
        size: u64,
        name: &str,
    ) -> Result<ObjectId> {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            let n = match from.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(self.fault(name, "became shorter while it was read")),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.unread(name, e)),
            };
            self.hasher.update_with(&mut self.tar, &self.buffer[..n]);
            if let Some(copy) = &mut copy {
                copy.write_all(&self.buffer[..n])
                    .map_err(|e| write_error(self.store, e))?;
            }
            left -= n as u64;
        }
        Ok(self.hasher.finish())
    }

    fn count(&mut self, new: bool, way: impl Fn(&mut Adopted) -> &mut u64) {
        match new {
            true => *way(&mut self.adopted) += 1,
            false => self.adopted.shared += 1,
        }
    }

    fn finish(self) -> Result<(Adopted, ObjectId)> {
        if self.wanted.is_some() {
            return Err(self.fault("its tar-split data", "ends before a file's content"));
        }
        if !self.ended {
            self.parser
                .finish()
                .map_err(|fault| layer_error(&self.diff_id, fault))?;
        }
        let stream = keep_stream(self.store, &self.diff_id, self.stream, self.tar)?;
        Ok((self.adopted, stream))
    }

    fn fault(&self, entry: &str, why: &str) -> Error {
        Error::Layer {
            layer: self.name.clone(),
            entry: entry.into(),
            why: why.into(),
        }
    }

    fn unread(&self, entry: &str, error: std::io::Error) -> Error {
        self.fault(entry, &format!("cannot be read: {error}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;
    use crate::ids::Algorithm;

    /// A file system with reflinks, mounted for a test.
    struct Btrfs(tempfile::TempDir);

    impl Btrfs {
        /// `None`, and said, where it cannot be had.
        fn mount() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let (disk, place) = (dir.path().join("disk"), dir.path().join("mnt"));
            fs::create_dir(&place).unwrap();
            File::create(&disk).unwrap().set_len(128 << 20).unwrap();
            let ran = |command: &mut Command| command.status().is_ok_and(|status| status.success());
            let made = rustix::process::geteuid().is_root()
                && ran(Command::new("mkfs.btrfs").arg("-q").arg(&disk))
                && ran(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&place));
            if !made {
                eprintln!("NOT RUN: a btrfs needs root, mkfs.btrfs and a kernel that mounts it");
                return None;
            }
            Some(Self(dir))
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("mnt")
        }
    }

    impl Drop for Btrfs {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.path()).status();
        }
    }

    fn objects(store: &Store) -> Vec<(ObjectId, PathBuf)> {
        let mut found = Vec::new();
        for folder in 0..=255 {
            let mut each = |name: &str, id: Option<ObjectId>| {
                found.push((id.unwrap(), store.objects().join(name)));
                Ok(())
            };
            store.objects.list(folder, &mut each).unwrap();
        }
        found
    }

    /// Adopts a file of 9000 bytes to which something is done after it was opened and found to be right.
    fn adopt_while(store: &Store, dir: &Path, act: impl FnOnce(&Path)) -> Result<Adopted> {
        let path = dir.join("podman's");
        fs::write(&path, vec![b'a'; 9000]).unwrap();
        let file = File::open(&path).unwrap();
        act(&path);
        let mut adopter = Adopter::new(store, "podman's layer".into(), DiffId::from_hash([0; 32])).unwrap();
        adopter.wanted = Some(9000);
        adopter.file(Content::File(file), 9000, "usr/large")?;
        Ok(adopter.adopted)
    }

    #[test]
    fn a_reflink_has_what_its_name_says_whatever_happens_to_podmans_file_meanwhile() {
        let Some(btrfs) = Btrfs::mount() else { return };
        type Act = fn(&Path);
        let grows: Act = |path| {
            let mut file = File::options().append(true).open(path).unwrap();
            file.write_all(b"more").unwrap();
        };
        let shrinks: Act = |path| File::options().write(true).open(path).unwrap().set_len(8000).unwrap();
        let changes: Act = |path| fs::write(path, vec![b'b'; 9000]).unwrap();
        let goes: Act = |path| fs::remove_file(path).unwrap();
        for (name, act, why) in [
            ("grows", grows, Some("became longer while it was read")),
            ("shrinks", shrinks, Some("became shorter while it was read")),
            ("changes", changes, None),
            ("goes", goes, None),
        ] {
            let dir = btrfs.path().join(name);
            fs::create_dir(&dir).unwrap();
            let store = Store::open_or_create(&dir.join("composefs"), Algorithm::Sha256).unwrap();
            match (adopt_while(&store, &dir, act), why) {
                (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{name}: {error}"),
                (Ok(adopted), None) => assert_eq!(adopted.reflinked, 1, "{name}"),
                (adopted, _) => panic!("{name}: {adopted:?}"),
            }
            let kept = objects(&store);
            assert_eq!(kept.len(), usize::from(why.is_none()), "{name}");
            for (id, path) in kept {
                let (found, size) = verity::hash_reader(store.algorithm, &mut File::open(path).unwrap()).unwrap();
                assert_eq!((found, size), (id, 9000), "{name}");
            }
        }
    }
}
