//! What is free on a file system, and how much of it a file takes.
//!
//! Invariant: where it is not certain how a file system keeps files (compressed, several in one block, shared), this
//! says so, and nothing is rounded up for it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::fs;

/// ext2, ext3 and ext4 alike.
const EXT: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;
const F2FS: u64 = 0xf2f5_2010;

/// What ext4 keeps for itself, from root as well: one block in so many, and no more than so many. The kernel counts in
/// clusters, which are blocks but with the feature bigalloc.
const KEPT_PART: u64 = 50;
const KEPT_MOST: u64 = 4096;

/// The smallest unit of the tree that fs-verity makes of a file, which is that of its digests here.
const VERITY_BLOCK: u64 = 4096;

/// A file system as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free bytes for this user; for root those that are reserved for root as well, but none that ext4 keeps for itself.
    pub bytes: u64,
    /// Free inodes; `None` where they are made as they are needed.
    pub inodes: Option<u64>,
    /// Bytes of a block.
    pub block: u64,
    /// A file takes its bytes, rounded up to blocks, no less.
    pub plain: bool,
    /// fs-verity's tree and descriptor are in blocks of the file.
    pub verity_in_blocks: bool,
    /// Which file system it is, to tell whether two paths are on the same.
    pub device: u64,
}

impl Space {
    /// That of `path`, or of the nearest folder above that exists.
    ///
    /// # Errors
    /// What the system answers.
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_lossless,
        clippy::cast_sign_loss,
        reason = "the type of the field differs between architectures"
    )]
    pub fn of(path: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;

        let path = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let fail = |e: rustix::io::Errno| Error::io("ask for free space on", path, e);
        let counts = rustix::fs::statvfs(path).map_err(fail)?;
        let kind = rustix::fs::statfs(path).map_err(fail)?.f_type as u64 & 0xffff_ffff;
        let device = std::fs::metadata(path)
            .map_err(|e| Error::io("look at", path, e))?
            .dev();
        let block = counts.f_frsize.max(512);
        // Elsewhere the difference between the two is what the file system needs for itself.
        let reserved = matches!(kind, EXT | F2FS) && rustix::process::geteuid().is_root();
        let blocks = match reserved {
            true if kind == EXT => counts
                .f_bfree
                .saturating_sub(kept(Path::new("/sys"), device, counts.f_blocks)),
            true => counts.f_bfree,
            false => counts.f_bavail,
        };
        let fixed = counts.f_files > 0 && kind != XFS;
        Ok(Self {
            bytes: blocks.saturating_mul(block),
            inodes: fixed.then_some(counts.f_ffree),
            block,
            plain: matches!(kind, EXT | XFS | TMPFS),
            verity_in_blocks: matches!(kind, EXT | F2FS),
            device,
        })
    }

    /// Bytes of so many bytes' blocks; as they are where that is not certain.
    pub fn blocks(&self, bytes: u64) -> u64 {
        match self.plain {
            true => bytes.div_ceil(self.block).saturating_mul(self.block),
            false => bytes,
        }
    }

    /// What fs-verity adds to a file of so many bytes, with digests of so many bytes: its tree, which has a level for
    /// each that does not fit into one block, and the descriptor.
    pub fn verity(&self, bytes: u64, digest: u64) -> u64 {
        if !self.verity_in_blocks {
            return 0;
        }
        let mut level = bytes.div_ceil(VERITY_BLOCK);
        let mut tree = 0_u64;
        while level > 1 {
            level = level.saturating_mul(digest).div_ceil(VERITY_BLOCK);
            tree = tree.saturating_add(level.saturating_mul(VERITY_BLOCK));
        }
        tree.saturating_add(self.block)
    }
}

/// Blocks that ext4 on `device`, which has `blocks` of them, counts as free and gives to nobody. `sys`: sysfs.
fn kept(sys: &Path, device: u64, blocks: u64) -> u64 {
    let stated = || {
        let text = fs::read_text(&ext4(sys, device)?.join("reserved_clusters"), 64).ok()??;
        text.trim().parse::<u64>().ok()
    };
    stated().unwrap_or_else(|| (blocks / KEPT_PART).min(KEPT_MOST))
}

/// What the kernel tells of ext4 on `device`.
fn ext4(sys: &Path, device: u64) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = std::fs::read_link(sys.join(format!("dev/block/{major}:{minor}"))).ok()?;
    Some(sys.join("fs/ext4").join(device.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(plain: bool) -> Space {
        Space {
            bytes: 0,
            inodes: None,
            block: 4096,
            plain,
            verity_in_blocks: plain,
            device: 0,
        }
    }

    #[test]
    fn what_a_file_takes_is_rounded_up_only_where_that_is_certain() {
        assert_eq!([0, 1, 4096, 4097].map(|n| space(true).blocks(n)), [0, 4096, 4096, 8192]);
        assert_eq!(space(false).blocks(4097), 4097);
        // One block: no tree. 128 digests fill a block; 129 need two, and one above them.
        let verity = |blocks: u64| space(true).verity(blocks * 4096, 32) / 4096;
        assert_eq!([1, 2, 128, 129].map(verity), [1, 2, 2, 4]);
        assert_eq!(space(false).verity(1 << 30, 32), 0);
        assert!(space(true).verity(u64::MAX, 64) > 1 << 40);
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn what_ext4_keeps_for_itself_is_what_the_kernel_says_or_what_it_would_choose() {
        let sys = tempfile::tempdir().unwrap();
        let device = rustix::fs::makedev(259, 3);
        let kept = |blocks| kept(sys.path(), device, blocks);
        assert_eq!([0, 50_000, 1 << 30].map(kept), [0, 1000, 4096]);
        let (links, told) = (sys.path().join("dev/block"), sys.path().join("fs/ext4/nvme0n1p3"));
        std::fs::create_dir_all(&links).unwrap();
        std::fs::create_dir_all(&told).unwrap();
        std::os::unix::fs::symlink("../../devices/nvme0/nvme0n1/nvme0n1p3", links.join("259:3")).unwrap();
        assert_eq!(kept(50_000), 1000, "an older kernel does not say");
        std::fs::write(told.join("reserved_clusters"), "70000\n").unwrap();
        assert_eq!(kept(50_000), 70_000);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_where_the_one_above_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (here, below) = (
            Space::of(folder.path()).unwrap(),
            Space::of(&folder.path().join("a/b")).unwrap(),
        );
        assert_eq!((here.device, here.block), (below.device, below.block));
        assert!(here.block >= 512);
    }
}
