//! An image's bytes: superblock, inodes, and where their data are. Every offset is checked here.

use crate::error::{Error, Result};
use crate::image::format::{
    BLOCK, EROFS_MAGIC, HEADER_MAGIC, HEADER_VERSION, INCOMPAT_CHUNKED, INODES_START, LAYOUT_CHUNKS, LAYOUT_INLINE,
    LAYOUT_PLAIN, SLOT, SUPER_OFFSET,
};
use crate::layers::Mtime;
use crate::tree::kind;

fn broken(what: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Image {
        image: what.into(),
        why: why.into(),
    }
}

/// An image's bytes with what the superblock says.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    pub bytes: &'a [u8],
    pub version: u32,
    pub root: u64,
    pub build_time: Mtime,
    inodes: u64,
    pub attributes: u64,
}

impl<'a> Image<'a> {
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let refuse = |why: &str| broken("as a whole", why);
        let mut image = Self {
            bytes,
            version: 0,
            root: 0,
            build_time: Mtime::default(),
            inodes: 0,
            attributes: 0,
        };
        let at = |offset: u64| SUPER_OFFSET + offset;
        if image.u32(0).ok() != Some(HEADER_MAGIC) || image.get(at(0), INODES_START - SUPER_OFFSET).is_err() {
            return Err(refuse("it is no composefs image"));
        }
        if image.u32(4)? != HEADER_VERSION || image.u32(at(0))? != EROFS_MAGIC || image.get(at(12), 1)? != [12] {
            return Err(refuse("it is a composefs image of an unknown version or block size"));
        }
        if image.u32(at(80))? & !INCOMPAT_CHUNKED != 0 {
            return Err(refuse("it has EROFS features that no composefs image has"));
        }
        image.version = image.u32(12)?;
        image.root = image.u16(at(14))?.into();
        image.build_time = Mtime {
            sec: image.u64(at(24))?.cast_signed(),
            nsec: image.u32(at(32))?,
        };
        image.inodes = u64::from(image.u32(at(40))?) * BLOCK;
        image.attributes = u64::from(image.u32(at(44))?) * BLOCK;
        Ok(image)
    }

    pub fn get(&self, offset: u64, len: u64) -> Result<&'a [u8]> {
        let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok());
        let range = usize::try_from(offset).ok().zip(end);
        let found = range.and_then(|(start, end)| self.bytes.get(start..end));
        found.ok_or_else(|| broken(format!("at byte {offset}"), "it ends before what should be there"))
    }

    fn u16(&self, offset: u64) -> Result<u16> {
        Ok(little(self.get(offset, 2)?).to_le_bytes()).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&self, offset: u64) -> Result<u32> {
        Ok(little(self.get(offset, 4)?).to_le_bytes()).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&self, offset: u64) -> Result<u64> {
        Ok(little(self.get(offset, 8)?))
    }

    pub fn inode(&self, nid: u64) -> Result<Inode> {
        let start = nid.checked_mul(SLOT).and_then(|o| o.checked_add(self.inodes));
        let start = start.ok_or_else(|| broken(format!("inode {nid}"), "it is outside of the image"))?;
        let at = |offset: u64| start + offset;
        self.get(start, 32)?;
        let format = self.u16(start)?;
        let icount = u64::from(self.u16(at(2))?);
        let extended = format & 1 != 0;
        let mut inode = Inode {
            nid,
            extended,
            layout: format >> 1,
            mode: self.u16(at(4))?,
            nlink: self.u16(at(6))?.into(),
            size: self.u32(at(8))?.into(),
            union: self.u32(at(16))?,
            ino: self.u32(at(20))?,
            uid: self.u16(at(24))?.into(),
            gid: self.u16(at(26))?.into(),
            mtime: self.build_time,
            attributes: at(if extended { 64 } else { 32 }),
            attributes_len: if icount == 0 { 0 } else { 12 + 4 * (icount - 1) },
        };
        if extended {
            self.get(start, 64)?;
            inode.size = self.u64(at(8))?;
            inode.uid = self.u32(at(24))?;
            inode.gid = self.u32(at(28))?;
            inode.mtime.sec = self.u64(at(32))?.cast_signed();
            inode.mtime.nsec = self.u32(at(40))?;
            inode.nlink = self.u32(at(44))?;
        }
        if !matches!(inode.layout, LAYOUT_PLAIN | LAYOUT_INLINE | LAYOUT_CHUNKS) {
            return Err(inode.error("its data layout is unknown"));
        }
        Ok(inode)
    }

    /// Where an inode's data are: blocks, then the tail that stands after the inode.
    pub fn data(&self, inode: &Inode) -> Result<[&'a [u8]; 2]> {
        let tail = match inode.layout {
            LAYOUT_INLINE if inode.size > 0 => (inode.size - 1) % BLOCK + 1,
            LAYOUT_INLINE | LAYOUT_PLAIN => 0,
            _ => return Err(inode.error("its data are in chunks, where only a file's content can be")),
        };
        let blocks = inode.size - tail;
        let first = match blocks {
            0 => 0,
            _ => u64::from(inode.union) * BLOCK,
        };
        Ok([
            self.get(first, blocks)?,
            self.get(inode.attributes + inode.attributes_len, tail)?,
        ])
    }
}

/// At most 8 bytes as a number.
pub fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// An inode as it stands in the image.
#[derive(Clone, Copy)]
pub struct Inode {
    pub nid: u64,
    pub extended: bool,
    pub layout: u16,
    pub mode: u16,
    pub nlink: u32,
    pub size: u64,
    pub union: u32,
    pub ino: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    pub attributes: u64,
    pub attributes_len: u64,
}

impl Inode {
    pub fn error(&self, why: &str) -> Error {
        broken(format!("inode {}", self.nid), why)
    }

    pub const fn kind(&self) -> u16 {
        self.mode & kind::MASK
    }
}
