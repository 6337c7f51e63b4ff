//! systemd-boot: Type #1 entries in `$BOOT/loader/entries`, tries counted in their names.
//!
//! What boots next is decided by names and contents of these files alone: the entry with the highest generation that
//! has tries left. `loader.conf` and EFI variables are the administrator's; neither is written. Kernels are shared:
//! `$BOOT/cfs-update/<sha256 of kernel and initrd>/{linux,initrd}`, so an update with the same kernel costs one file of
//! a few hundred bytes.

use std::path::Path;
use std::sync::Arc;

use cfs_core::boot::{
    BootEntry, Bootloader, Caps, Entries, Finding, KernelDigest, KernelFiles, Mark, NewEntry, PreparedEntry, Removal,
    Room, StagedEntry, cmdline,
};
use cfs_core::error::{Error, Result};
use cfs_core::ids::DeploymentId;
use cfs_core::sys::fs::{self, Fs};

use crate::bls::Entry;
use crate::esp::{self, BootDir};
use crate::listing::{self, entries_folder, kernels_folder};
use crate::name::{KERNEL_FOLDER, OwnName, SORT_KEY};
use crate::{install, publish, upkeep, variables};

/// The largest file that FAT can hold.
const FAT_FILE_LIMIT: u64 = u32::MAX as u64;

/// systemd-boot with its `$BOOT`.
#[derive(Debug)]
pub struct SdBoot {
    boot: BootDir,
    fs: Arc<dyn Fs>,
    /// Free bytes and block size; [`esp::free`].
    free: fn(&Path) -> Result<(u64, u64)>,
}

impl SdBoot {
    /// Entries and kernels go below `boot`, written through `fs`.
    pub fn new(boot: BootDir, fs: Arc<dyn Fs>) -> Self {
        Self {
            boot,
            fs,
            free: esp::free,
        }
    }

    /// Whether equal kernel files are there, whole; reads them.
    fn has_kernel(&self, digest: KernelDigest) -> bool {
        let name = digest.to_string();
        fs::is_dir(&kernels_folder(&self.boot.path).join(&name)) && upkeep::damage(&self.boot.path, &name).is_none()
    }

    fn room_for(&self, kernel: &KernelFiles, shared: bool) -> Result<Room> {
        let (free, block) = (self.free)(&self.boot.path)?;
        let blocks = |bytes: u64| bytes.div_ceil(block).saturating_mul(block);
        // The entry, and what its folder may grow by.
        let mut needed = 2 * block;
        if !shared {
            for (name, source) in [("kernel", &kernel.linux), ("initrd", &kernel.initrd)] {
                let size = source.size()?;
                if self.boot.fat && size > FAT_FILE_LIMIT {
                    return Err(self.refuse(&format!("the {name} has {size} bytes, more than FAT can hold")));
                }
                needed = needed.saturating_add(blocks(size));
            }
            // Folders: of this kernel, of all kernels, of the loader, of entries.
            needed = needed.saturating_add(4 * block);
        }
        Ok(Room { needed, free, shared })
    }

    fn refuse(&self, why: &str) -> Error {
        Error::BootEntry {
            entry: format!("folder {}", self.boot.path.display()),
            why: why.into(),
        }
    }

    /// Makes `$BOOT` where it is a folder of a sysroot that has none yet.
    fn make_boot(&self) -> Result<()> {
        let boot = &self.boot.path;
        if boot.is_dir() {
            return Ok(());
        }
        let above = fs::parent(boot)?;
        self.fs.create_dir(boot, 0o755)?;
        self.fs.sync_dir(above)
    }
}

impl Bootloader for SdBoot {
    fn name(&self) -> &'static str {
        "systemd-boot"
    }

    fn caps(&self) -> Caps {
        Caps {
            counts_tries: true,
            atomic: true,
        }
    }

    fn boot_dir(&self) -> &Path {
        &self.boot.path
    }

    fn entries(&self) -> Result<Entries> {
        let BootDir { path, esp, .. } = &self.boot;
        let mut entries = listing::entries_with(path, esp.as_ref().unwrap_or(path))?;
        if let Some(folder) = &self.boot.variables {
            let told = variables::warnings(folder, &entries);
            entries.overrides.extend(told);
        }
        Ok(entries)
    }

    fn check_writable(&self) -> Result<()> {
        esp::check_writable(&self.boot.path)
    }

    fn room(&self, kernel: &KernelFiles) -> Result<Room> {
        self.room_for(kernel, self.has_kernel(kernel.digest()?))
    }

    fn prepare(&self, new: &NewEntry) -> Result<PreparedEntry> {
        let boot = &self.boot.path;
        if let Some(taken) = upkeep::not_older(&self.entries()?, new.generation) {
            return Err(Error::BootEntry {
                entry: taken.file.clone(),
                why: format!("generation {} is not newer; run the command again", new.generation),
            });
        }
        self.check_writable()?;
        let digest = new.kernel.digest()?;
        let shared = self.has_kernel(digest);
        let room = self.room_for(&new.kernel, shared)?;
        if room.needed > room.free {
            return Err(Error::Space {
                path: boot.clone(),
                needed: room.needed,
                free: room.free,
                remedy: "delete a deployment or run gc, then try again".into(),
            });
        }
        self.make_boot()?;
        let name = digest.to_string();
        publish::folders(&*self.fs, boot, &[KERNEL_FOLDER, &name])?;
        let folder = kernels_folder(boot).join(&name);
        if shared {
            publish::sync_kernel(&*self.fs, &folder)?;
        } else {
            publish::kernel(&*self.fs, &folder, &new.kernel, digest)?;
        }
        publish::folders(&*self.fs, boot, &["loader", "entries"])?;
        Ok(prepared(new, digest))
    }

    fn publish(&self, staged: StagedEntry) -> Result<BootEntry> {
        let prepared = staged.prepared();
        let file = |why: String| Error::BootEntry {
            entry: prepared.name.clone(),
            why,
        };
        if let Some(missing) = prepared
            .needs
            .iter()
            .find(|path| listing::size(&self.boot.path, path).is_none())
        {
            return Err(file(format!(
                "{missing} has gone since it was staged; run the command again"
            )));
        }
        publish::entry(
            &*self.fs,
            &entries_folder(&self.boot.path),
            &prepared.name,
            &prepared.content,
        )?;
        let entries = self.entries()?;
        let published = entries.ours.into_iter().find(|entry| entry.file == prepared.name);
        published.ok_or_else(|| file("it was published but cannot be found; check $BOOT with fsck".into()))
    }

    fn plan_removal(&self, ids: &[DeploymentId]) -> Result<Removal> {
        upkeep::plan_removal(&self.boot.path, ids)
    }

    fn plan_cleanup(&self) -> Result<Removal> {
        upkeep::plan_cleanup(&self.boot.path)
    }

    fn plan_sweep(&self, known: &[DeploymentId]) -> Result<Removal> {
        upkeep::plan_sweep(&self.boot.path, known)
    }

    fn remove(&self, plan: &Removal) -> Result<()> {
        upkeep::remove(&*self.fs, &self.boot.path, plan)
    }

    fn mark(&self, entry: &BootEntry, mark: Mark) -> Result<String> {
        publish::mark(&*self.fs, &entries_folder(&self.boot.path), &entry.file, mark)
    }

    fn check(&self) -> Result<Vec<Finding>> {
        upkeep::check(&self.boot.path, &self.entries()?)
    }

    fn programs(&self, architecture: &str) -> Vec<String> {
        install::programs(architecture)
    }

    fn install(&self, esp: &Path, architecture: &str, program: &[u8]) -> Result<Vec<String>> {
        install::put(&*self.fs, &self.boot.path, esp, architecture, program)
    }
}

/// The entry's name and text.
fn prepared(new: &NewEntry, digest: KernelDigest) -> PreparedEntry {
    let path = |name: &str| format!("/{KERNEL_FOLDER}/{digest}/{name}");
    let (linux, initrd) = (path("linux"), path("initrd"));
    let entry = Entry::default()
        .with("title", new.menu_title())
        .with("version", new.generation.to_string())
        .with("sort-key", SORT_KEY)
        .with("linux", &linux)
        .with("initrd", &initrd)
        .with("options", cmdline::join(&new.options))
        .with_checksum();
    PreparedEntry {
        name: OwnName::new(new.generation, &new.id, new.tries).to_string(),
        content: entry.to_string().into_bytes(),
        needs: vec![linux, initrd],
    }
}

#[cfg(test)]
mod tests {
    use cfs_core::boot::FileSource;
    use cfs_core::error::Kind;
    use cfs_core::sys::fs::RealFs;

    use super::*;

    fn new_entry() -> NewEntry {
        let id: DeploymentId = "ab".repeat(32).parse().unwrap();
        NewEntry {
            id,
            generation: 1,
            title: "os".into(),
            version: String::new(),
            options: vec![cmdline::digest_argument(&id, false)],
            kernel: KernelFiles::new(
                "6.1",
                FileSource::Bytes(vec![1; 10_000]),
                FileSource::Bytes(vec![2; 4097]),
            ),
            tries: None,
        }
    }

    fn with(free: fn(&Path) -> Result<(u64, u64)>, fat: bool) -> (tempfile::TempDir, SdBoot) {
        let folder = tempfile::tempdir().unwrap();
        let boot = BootDir {
            path: folder.path().join("boot"),
            fat,
            variables: None,
            esp: None,
        };
        let mut loader = SdBoot::new(boot, Arc::new(RealFs));
        loader.free = free;
        (folder, loader)
    }

    #[test]
    fn a_partition_that_is_too_full_is_refused_with_numbers_before_anything_is_written() {
        // 3 + 2 blocks of kernel and initrd, 2 for the entry, 4 for folders.
        let (_keep, loader) = with(|_| Ok((11 * 4096 - 1, 4096)), true);
        let error = loader.prepare(&new_entry()).unwrap_err();
        assert_eq!(error.kind(), Kind::Space);
        let text = error.to_string();
        assert!(
            text.contains("boot: 45056 bytes needed, 45055 free; delete a deployment or run gc"),
            "{text}"
        );
        assert!(!loader.boot.path.exists());
        let room = loader.room(&new_entry().kernel).unwrap();
        assert_eq!((room.needed, room.free, room.shared), (45056, 45055, false));

        let (_keep, loader) = with(|_| Ok((11 * 4096, 4096)), true);
        loader.prepare(&new_entry()).unwrap();
        let room = loader.room(&new_entry().kernel).unwrap();
        assert_eq!(
            (room.needed, room.shared),
            (2 * 4096, true),
            "a second entry with the same kernel costs little"
        );
    }

    #[test]
    fn what_fat_cannot_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let huge = folder.path().join("huge");
        let file = std::fs::File::create(&huge).unwrap();
        file.set_len(1 << 32).unwrap();
        let kernel = KernelFiles::new("6.1", FileSource::Path(huge), FileSource::Bytes(vec![1]));
        let (_keep, loader) = with(|_| Ok((u64::MAX, 4096)), true);
        let error = loader.room_for(&kernel, false).unwrap_err().to_string();
        assert!(error.contains("4294967296 bytes, more than FAT can hold"), "{error}");
        let (_keep, loader) = with(|_| Ok((u64::MAX, 4096)), false);
        assert!(loader.room_for(&kernel, false).is_ok());
    }
}
