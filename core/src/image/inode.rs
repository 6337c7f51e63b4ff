//! An inode as an image will have it, but for its place.

use crate::layers::Mtime;
use crate::tree::NodeId;

/// What an inode's data are.
#[derive(Clone, Copy, Debug)]
pub enum Body<'t> {
    /// Entries of this folder of the tree.
    Directory(NodeId),
    /// Bytes in the image.
    Content(&'t [u8]),
    /// A file whose content is elsewhere: chunks that are nowhere.
    Chunks,
    /// A symbolic link's target.
    Symlink(&'t [u8]),
    /// A device's number.
    Device(u32),
    /// None: pipes, sockets, empty files and hidden whiteouts.
    Nothing,
}

/// An inode as the image will have it, but for its place.
#[derive(Clone, Copy, Debug)]
pub struct Inode<'t> {
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Of a regular file or symbolic link its length; of a folder what its entries take; otherwise what the tree says.
    pub size: u64,
    pub body: Body<'t>,
    /// 32 bytes instead of 64.
    pub compact: bool,
    /// Full blocks and bytes after them.
    pub blocks: u32,
    pub tail: u32,
    /// Bytes of the attributes with their header; 0 without any.
    pub attributes_size: u32,
    /// How many of them are references to shared ones.
    pub shared: u8,
}

impl Inode<'_> {
    /// Bytes of the inode itself.
    pub const fn head_size(&self) -> u64 {
        if self.compact { 32 } else { 64 }
    }

    /// The size that the inode says.
    pub const fn written_size(&self) -> u64 {
        match self.body {
            Body::Directory(_) | Body::Content(_) | Body::Chunks | Body::Symlink(_) => self.size,
            Body::Device(_) | Body::Nothing => 0,
        }
    }
}

/// With nothing in it.
pub const EMPTY: Inode<'static> = Inode {
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    mtime: Mtime { sec: 0, nsec: 0 },
    size: 0,
    body: Body::Nothing,
    compact: false,
    blocks: 0,
    tail: 0,
    attributes_size: 0,
    shared: 0,
};
