//! What the tests of boot loaders share: deployments to stage, and file systems that are difficult.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test support; not every test uses all of it"
)]

pub mod crash;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cfs_bootloader::Kind;
use cfs_bootloader::esp::BootDir;
use cfs_core::boot::{BootEntry, Bootloader, FileSource, KernelFiles, NewEntry, StagedEntry, cmdline};
use cfs_core::deployment::{Deployment, Deployments, Layout, Origin};
use cfs_core::error::{Error, Result};
use cfs_core::ids::{DeploymentId, ManifestDigest};
use cfs_core::signature::{ImageFacts, SignedImage, SigningKey};
use cfs_core::sys::fs::{Fs, RealFs};
use cfs_core::testing::CrashFs;
use jiff::Timestamp;

/// Every loader; the contract is run for each.
pub const KINDS: [Kind; 1] = [Kind::SystemdBoot];

/// A folder in memory, where there is one: crash tests make thousands.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub fn id(n: u8) -> DeploymentId {
    hex::encode([n; 32]).parse().unwrap()
}

pub fn kernel(content: &str) -> KernelFiles {
    let bytes = |name: &str| FileSource::Bytes(format!("{name} of {content}, more than a few bytes\n").into_bytes());
    KernelFiles::new(content, bytes("linux"), bytes("initrd"))
}

/// Deployment `n` with this kernel.
pub fn new_entry(n: u8, generation: u64, kernel_content: &str) -> NewEntry {
    NewEntry {
        id: id(n),
        generation,
        title: "Debian GNU/Linux 13 (trixie)".into(),
        version: format!("{n}"),
        options: vec![
            cmdline::digest_argument(&id(n), false),
            "root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2".into(),
            "quiet".into(),
        ],
        kernel: kernel(kernel_content),
        tries: Some(3),
    }
}

pub fn open(kind: Kind, boot: &Path, fs: Arc<dyn Fs>) -> Box<dyn Bootloader> {
    let boot = BootDir {
        path: boot.to_path_buf(),
        fat: false,
        variables: None,
        esp: None,
    };
    cfs_bootloader::open(kind, boot, fs)
}

/// Deployment `n`, recorded and signed for real, in a folder that is gone afterwards: what staging asks for.
pub fn deployment(n: u8) -> Deployment {
    deployment_of(id(n), n)
}

/// The same with any id.
pub fn deployment_of(id: DeploymentId, n: u8) -> Deployment {
    let folder = folder();
    let fs = CrashFs::new(folder.path(), folder.path());
    let deployments = Deployments::new(Layout::new(folder.path()));
    deployments.layout().prepare(&fs).unwrap();
    let facts = ImageFacts {
        id,
        manifest: ManifestDigest::from_hash([n; 32]),
        reference: "docker://quay.io/org/os:41".into(),
        erofs_format: 1,
    };
    let key = SigningKey::from_seed(&[7; 32], "test");
    let signed = SignedImage::sign(cfs_core::testing::synced(facts), &key, 1, Timestamp::UNIX_EPOCH).unwrap();
    let draft = deployments.begin(&fs, signed).unwrap();
    fs.create_dir(&draft.etc(), 0o755).unwrap();
    let origin = Origin::new("docker://quay.io/org/os:41", ManifestDigest::from_hash([n; 32]));
    draft.commit(&fs, origin).unwrap()
}

pub fn stage(loader: &dyn Bootloader, n: u8, new: &NewEntry) -> Result<StagedEntry> {
    static MADE: Mutex<BTreeMap<u8, Deployment>> = Mutex::new(BTreeMap::new());
    let deployment = MADE.lock().unwrap().entry(n).or_insert_with(|| deployment(n)).clone();
    loader.stage(&deployment, new)
}

/// Stages and publishes deployment `n` with the next generation.
pub fn install(loader: &dyn Bootloader, n: u8, kernel: &str) -> Result<BootEntry> {
    let generation = loader.entries()?.next_generation(0)?;
    loader.publish(stage(loader, n, &new_entry(n, generation, kernel))?)
}

/// Makes deployment `n`, which has an entry, the next to boot, and removes what that supersedes.
pub fn roll_back(loader: &dyn Bootloader, n: u8) -> Result<BootEntry> {
    let entries = loader.entries()?;
    let old = entries.of(&id(n)).unwrap();
    let new = NewEntry::again(old, loader.boot_dir(), entries.next_generation(0)?, None)?;
    let entry = loader.publish(stage(loader, n, &new)?)?;
    loader.remove(&loader.plan_cleanup()?)?;
    Ok(entry)
}

pub fn delete(loader: &dyn Bootloader, n: u8) -> Result<()> {
    loader.remove(&loader.plan_removal(&[id(n)])?)
}

/// All files below a folder with their content, sorted.
pub fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(folder).unwrap().to_path_buf();
            if path.is_dir() {
                found.push((relative, Vec::new()));
                folders.push(path);
            } else {
                found.push((relative, std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Refuses what FAT cannot do: links, permissions that mean something, names with some characters, two names that
/// differ in case only.
#[derive(Debug, Default)]
pub struct FatLike {
    pub refused: Mutex<Vec<String>>,
}

impl FatLike {
    fn refuse(&self, what: &str, path: &Path) -> Error {
        self.refused.lock().unwrap().push(format!("{what} {}", path.display()));
        Error::io(
            "do on FAT",
            path,
            io::Error::from_raw_os_error(rustix::io::Errno::PERM.raw_os_error()),
        )
    }

    fn check_name(&self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap().to_str().unwrap();
        let forbidden = |c: char| c.is_control() || "\"*/:<>?\\|".contains(c);
        let too_long = name.encode_utf16().count() > 255;
        if name.chars().any(forbidden) || name.ends_with(['.', ' ']) || too_long {
            return Err(self.refuse("name", path));
        }
        Ok(())
    }

    /// The name that is there already, in whatever case.
    fn existing(path: &Path) -> Option<PathBuf> {
        let wanted = path.file_name().unwrap().to_str().unwrap().to_lowercase();
        let entries = std::fs::read_dir(path.parent().unwrap()).ok()?;
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|own| own.file_name().unwrap().to_str().unwrap().to_lowercase() == wanted)
    }
}

impl Fs for FatLike {
    fn create_dir(&self, path: &Path, _: u32) -> Result<()> {
        self.check_name(path)?;
        match Self::existing(path) {
            Some(other) if other != path => Err(self.refuse("case", path)),
            _ => RealFs.create_dir(path, 0o755),
        }
    }

    fn create(&self, path: &Path, _: u32, content: &mut dyn Read) -> Result<u64> {
        self.check_name(path)?;
        match Self::existing(path) {
            Some(_) => Err(self.refuse("create over", path)),
            None => RealFs.create(path, 0o755, content),
        }
    }

    fn symlink(&self, _: &Path, path: &Path) -> Result<()> {
        Err(self.refuse("symlink", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.check_name(to)?;
        match Self::existing(to) {
            Some(other) if other != to => Err(self.refuse("case", to)),
            _ => RealFs.rename(from, to),
        }
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        RealFs.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        RealFs.remove_dir_all(path)
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        RealFs.sync_file(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        RealFs.sync_dir(path)
    }

    fn sync_all(&self, path: &Path) -> Result<()> {
        RealFs.sync_all(path)
    }
}

/// Lets so many bytes be written and then is full, as a small partition is.
pub struct Full {
    pub room: Mutex<u64>,
}

impl fmt::Debug for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full")
    }
}

impl Fs for Full {
    fn create_dir(&self, path: &Path, mode: u32) -> Result<()> {
        RealFs.create_dir(path, mode)
    }

    fn create(&self, path: &Path, mode: u32, content: &mut dyn Read) -> Result<u64> {
        let mut room = self.room.lock().unwrap();
        let mut content = content.take(*room + 1);
        let written = RealFs.create(path, mode, &mut content)?;
        if written > *room {
            *room = 0;
            return Err(Error::io("write", path, io::Error::from(io::ErrorKind::StorageFull)));
        }
        *room -= written;
        Ok(written)
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<()> {
        RealFs.symlink(target, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        RealFs.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        RealFs.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        RealFs.remove_dir_all(path)
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        RealFs.sync_file(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        RealFs.sync_dir(path)
    }

    fn sync_all(&self, path: &Path) -> Result<()> {
        RealFs.sync_all(path)
    }
}
