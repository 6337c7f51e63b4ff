//! The numbers of the image format: EROFS as in linux/fs/erofs/erofs_fs.h, and the composefs header before it.

use std::cmp::Ordering;

use crate::tree::{Inode, Kind, NodeId, kind};

/// EROFS block, in bytes; images of other block sizes are not read.
pub const BLOCK: u64 = 4096;
/// Inodes stand at multiples of this; an inode's number is its offset divided by it.
pub const SLOT: u64 = 32;
/// Where the superblock is.
pub const SUPER_OFFSET: u64 = 1024;
/// Where inodes begin.
pub const INODES_START: u64 = SUPER_OFFSET + 128;
/// First word of a composefs image.
pub const HEADER_MAGIC: u32 = 0xd078_629a;
/// Second word.
pub const HEADER_VERSION: u32 = 1;
/// Header flag: some inode has an ACL.
pub const FLAG_HAS_ACL: u32 = 1;
/// First word of the EROFS superblock.
pub const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
/// `feature_incompat` of files in chunks: the only one that is read, none is written.
pub const INCOMPAT_CHUNKED: u32 = 4;
/// `feature_compat`: MTIME and XATTR_FILTER.
pub const FEATURE_COMPAT: u32 = 6;
/// Length of a directory entry without its name.
pub const DIRENT: u64 = 12;
/// Most references to shared attributes that an inode may have.
pub const MAX_SHARED: usize = 128;
/// Most chunks of a file without content in the image.
pub const MAX_CHUNKS: u64 = 1024;
/// A chunk that is nowhere.
pub const NULL_CHUNK: u32 = u32::MAX;
/// Data layouts of an inode.
pub const LAYOUT_PLAIN: u16 = 0;
/// The tail stands after the inode.
pub const LAYOUT_INLINE: u16 = 2;
/// Chunks.
pub const LAYOUT_CHUNKS: u16 = 4;
/// Seed of the attribute name filter.
pub const FILTER_SEED: u32 = 0x25bb_e08f;

/// `trusted.overlay.`: what overlayfs reads itself.
pub const OVERLAY: &[u8] = b"trusted.overlay.";
/// `trusted.overlay.overlay.`: the same, of a file inside the image, escaped.
pub const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
/// Digest of a file whose content is elsewhere.
pub const METACOPY: &[u8] = b"trusted.overlay.metacopy";
/// Path of that content.
pub const REDIRECT: &[u8] = b"trusted.overlay.redirect";
/// On the root: nothing below shows through.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// A whiteout inside the image.
pub const WHITEOUT: &[u8] = b"trusted.overlay.overlay.whiteout";
/// The same, for unprivileged overlays.
pub const USER_WHITEOUT: &[u8] = b"user.overlay.whiteout";
/// On a folder with whiteouts.
pub const WHITEOUTS: &[u8] = b"trusted.overlay.overlay.whiteouts";
/// The same, for unprivileged overlays.
pub const USER_WHITEOUTS: &[u8] = b"user.overlay.whiteouts";
/// On a folder with whiteouts, from version 1 on.
pub const ESCAPED_OPAQUE: &[u8] = b"trusted.overlay.overlay.opaque";
/// The same, for unprivileged overlays.
pub const USER_OPAQUE: &[u8] = b"user.overlay.opaque";
/// Access ACL.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// Default ACL.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Attribute prefixes with their index, in the order in which they are tried.
pub const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (ACL_ACCESS, 2),
    (ACL_DEFAULT, 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// A prefix that is read but not written.
pub const LUSTRE: (&[u8], u8) = (b"lustre.", 5);

/// How the chunks of a file without content in the image are counted: the chunk's size as a power of two.
pub const fn chunk_bits(size: u64) -> u32 {
    let bits = u64::BITS - (size - 1).leading_zeros();
    if bits < 12 {
        12
    } else if bits > 43 {
        43
    } else {
        bits
    }
}

/// How many chunks a file of `size` > 0 bytes has.
pub const fn chunk_count(size: u64) -> u64 {
    size.div_ceil(1 << chunk_bits(size))
}

/// Directory entry type of a mode.
pub const fn file_type(mode: u16) -> u8 {
    match mode & kind::MASK {
        kind::REGULAR => 1,
        kind::DIRECTORY => 2,
        kind::CHAR => 3,
        kind::BLOCK => 4,
        kind::FIFO => 5,
        kind::SOCKET => 6,
        _ => 7,
    }
}

/// Packs directory entries into blocks in their order; `.` and `..` are among them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packing {
    /// Full blocks.
    pub blocks: u64,
    /// Bytes in the last one.
    pub tail: u64,
}

impl Packing {
    /// Adds a name; true where it begins a new block.
    pub fn add(&mut self, name_len: usize) -> bool {
        let len = DIRENT + name_len as u64;
        let full = self.tail + len > BLOCK;
        if full {
            self.blocks += 1;
            self.tail = 0;
        }
        self.tail += len;
        full
    }

    /// A tail of more than half a block becomes a block.
    pub fn done(mut self) -> Self {
        if self.tail > BLOCK / 2 {
            self.blocks += 1;
            self.tail = 0;
        }
        self
    }

    /// The folder's size in bytes.
    pub const fn size(self) -> u64 {
        self.blocks * BLOCK + self.tail
    }
}

/// Two sorted runs of names as one; where both have a name, only that of `first` comes.
pub fn merge_names<'a, T: Copy>(
    first: impl Iterator<Item = (&'a [u8], T)>,
    second: impl Iterator<Item = (&'a [u8], T)>,
) -> impl Iterator<Item = (&'a [u8], T)> {
    let mut first = first.peekable();
    let mut second = second.peekable();
    std::iter::from_fn(move || {
        let order = match (first.peek(), second.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => first.next(),
            Ordering::Greater => second.next(),
            Ordering::Equal => {
                second.next();
                first.next()
            }
        }
    })
}

/// The names `00` to `ff`, which every image has in its root, so that the object store's folders do not show.
pub fn stub_names() -> &'static [[u8; 2]; 256] {
    static NAMES: [[u8; 2]; 256] = {
        let digits = b"0123456789abcdef";
        let mut names = [[0; 2]; 256];
        let mut at = 0;
        while at < 256 {
            names[at] = [digits[at >> 4], digits[at & 15]];
            at += 1;
        }
        names
    };
    &NAMES
}

/// The size that a folder has in an image, in bytes; of other inodes 0.
pub fn directory_size(folder: Inode<'_>) -> u64 {
    if folder.kind() != Kind::Directory {
        return 0;
    }
    let dots = [(&b"."[..], ()), (&b".."[..], ())];
    let names = merge_names(folder.children().map(|c| (c.name, ())), dots.into_iter());
    let mut packing = Packing::default();
    if folder.id() == NodeId::ROOT {
        let stubs = stub_names().iter().map(|name| (&name[..], ()));
        merge_names(names, stubs).for_each(|(name, ())| _ = packing.add(name.len()));
    } else {
        names.for_each(|(name, ())| _ = packing.add(name.len()));
    }
    packing.done().size()
}
