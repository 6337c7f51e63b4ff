//! Writes an image, bit for bit as C mkcomposefs does.
//!
//! First the tree is rewritten into inodes in image order ([`Inodes`]): overlayfs' own attributes added, those of the
//! tree escaped, whiteouts hidden. Then one routine ([`emit`]) runs twice, once counting what was measured and once
//! writing; debug builds check that every inode comes out where it was counted.
//!
//! Invariant: no clock, no randomness that could reach the bytes: the same tree and versions give the same
//! image, for ever (promise 5). Golden digests of the C program pin it (`tests/vectors.rs`).

use super::Versions;
use super::format::{
    self, BLOCK, EROFS_MAGIC, FEATURE_COMPAT, FLAG_HAS_ACL, HEADER_MAGIC, HEADER_VERSION, INODES_START, LAYOUT_CHUNKS,
    LAYOUT_INLINE, LAYOUT_PLAIN, NULL_CHUNK, SLOT, SUPER_OFFSET, chunk_bits, file_type,
};
use super::inode::{Body, Inode};
use super::inodes::Inodes;
use super::output::{Counter, Output, Pieces};
use crate::error::{Error, Result};
use crate::sys::memory::prefer_huge_pages;
use crate::tree::Tree;

/// The image of a tree.
///
/// # Errors
/// [`Error::Tree`] with the path of what does not fit the format: attributes of more than 262 kB on one inode, a file
/// of more than 2^53 bytes; [`Error::Usage`] for versions other than 0 and 1.
pub fn build(tree: &Tree, versions: Versions) -> Result<Vec<u8>> {
    let inodes = Inodes::new(tree, versions)?;
    let layout = count(&inodes)?;
    let size = usize::try_from(layout.end).map_err(|_| too_large(layout.end))?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| too_large(layout.end))?;
    prefer_huge_pages(&bytes);
    emit(&inodes, &layout, &mut bytes);
    Ok(bytes)
}

/// Gives the image of a tree to `sink`, in pieces of at most 1 MiB, in their order.
///
/// # Errors
/// As [`build`]; what `sink` returns, which gets nothing more then.
pub fn write(tree: &Tree, versions: Versions, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let inodes = Inodes::new(tree, versions)?;
    let layout = count(&inodes)?;
    let mut pieces = Pieces::new(sink);
    emit(&inodes, &layout, &mut pieces);
    pieces.finish()
}

/// The first run.
fn count(inodes: &Inodes<'_>) -> Result<Layout> {
    let layout = emit(inodes, &Layout::default(), &mut Counter(0));
    let inodes_fit = layout.inodes_end / SLOT <= u64::from(u32::MAX);
    if !inodes_fit || layout.end / BLOCK > u64::from(u32::MAX) {
        return Err(too_large(layout.end));
    }
    Ok(layout)
}

fn too_large(size: u64) -> Error {
    Error::Tree {
        path: "/".into(),
        why: format!("the image would have {size} bytes: more than the format or this machine's memory can hold"),
    }
}

/// Where things are; known after the first run.
#[derive(Debug, Default)]
struct Layout {
    /// The numbers of inodes, which say where they stand.
    nids: Vec<u32>,
    inodes_end: u64,
    data_start: u64,
    end: u64,
}

impl Layout {
    /// An inode's number; 0 while it is not known.
    fn nid(&self, inode: u32) -> u32 {
        self.nids.get(inode as usize).copied().unwrap_or(0)
    }
}

/// An inode's place, and what of its data stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: u64,
    blocks: u32,
    tail: u32,
}

/// The whole image; `known` is empty on the first run and what the first returned on the second.
fn emit(inodes: &Inodes<'_>, known: &Layout, out: &mut impl Output) -> Layout {
    let first_run = known.nids.is_empty();
    let mut layout = Layout::default();
    if first_run {
        layout.nids.reserve_exact(inodes.len());
    }
    emit_superblock(inodes, known, out);
    let mut next_block = known.data_start / BLOCK;
    // Inodes with whole blocks, of which there are few.
    let mut with_blocks = Vec::new();
    for number in 0..inodes.len() {
        let inode = inodes.get(number);
        let place = place(&inode, out.position());
        out.zeros_to(place.start);
        let head = Head {
            number,
            inode: &inode,
            place,
            first_block: next_block,
        };
        emit_inode(inodes, known, &head, out);
        next_block += u64::from(place.blocks);
        if place.blocks > 0 {
            with_blocks.push((number, place));
        }
        if first_run {
            layout.nids.push(low32(place.start / SLOT));
        } else {
            debug_assert_eq!(known.nids[number], low32(place.start / SLOT));
        }
    }
    layout.inodes_end = out.position().next_multiple_of(SLOT);
    out.zeros_to(layout.inodes_end);
    for attribute in &inodes.shared {
        emit_attribute(inodes, *attribute, out);
    }
    layout.data_start = out.position().next_multiple_of(BLOCK);
    out.zeros_to(layout.data_start);
    for (number, place) in with_blocks {
        emit_blocks(inodes, known, &inodes.get(number), place, out);
    }
    layout.end = out.position();
    debug_assert!(first_run || known.end == layout.end);
    layout
}

fn emit_superblock(inodes: &Inodes<'_>, known: &Layout, out: &mut impl Output) {
    let flags = if inodes.has_acl { FLAG_HAS_ACL } else { 0 };
    for word in [HEADER_MAGIC, HEADER_VERSION, flags, inodes.version] {
        out.put(&word.to_le_bytes());
    }
    out.zeros_to(SUPER_OFFSET);
    let mut superblock = [0_u8; 128];
    let mut set = |at: usize, bytes: &[u8]| superblock[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, &EROFS_MAGIC.to_le_bytes());
    set(8, &FEATURE_COMPAT.to_le_bytes());
    set(12, &[12]);
    set(14, &low16(known.nid(0).into()).to_le_bytes());
    set(16, &(inodes.len() as u64).to_le_bytes());
    set(24, &inodes.min_mtime.sec.to_le_bytes());
    set(32, &inodes.min_mtime.nsec.to_le_bytes());
    set(36, &low32(known.end / BLOCK).to_le_bytes());
    set(44, &low32(known.inodes_end / BLOCK).to_le_bytes());
    out.put(&superblock);
    debug_assert_eq!(out.position(), INODES_START);
}

/// Where an inode goes when the one before it ends at `position`: the tail must not cross a block's end.
fn place(inode: &Inode<'_>, position: u64) -> Place {
    let start = position.next_multiple_of(SLOT);
    let head = inode.head_size() + u64::from(inode.attributes_size);
    let tail = u64::from(inode.tail);
    let here = Place {
        start,
        blocks: inode.blocks,
        tail: inode.tail,
    };
    if let Body::Symlink(_) = inode.body {
        // A link's inode and target stand in one block, unless both together never could.
        let total = head + tail;
        let spilled = total >= BLOCK;
        let crosses = start / BLOCK != (start + total - 1) / BLOCK;
        return Place {
            start: if crosses { start.next_multiple_of(BLOCK) } else { start },
            blocks: inode.blocks + u32::from(spilled),
            tail: if spilled { 0 } else { inode.tail },
        };
    }
    let room = |start: u64| BLOCK - (start + head) % BLOCK;
    if room(start) >= tail {
        return here;
    }
    let moved = start + room(start).next_multiple_of(SLOT);
    if tail <= room(moved) {
        return Place { start: moved, ..here };
    }
    Place {
        start: start.next_multiple_of(BLOCK),
        blocks: inode.blocks + 1,
        tail: 0,
    }
}

/// An inode about to be written.
struct Head<'a, 't> {
    number: usize,
    inode: &'a Inode<'t>,
    place: Place,
    first_block: u64,
}

impl Head<'_, '_> {
    fn layout(&self) -> u16 {
        match self.inode.body {
            Body::Chunks => LAYOUT_CHUNKS,
            _ if self.place.tail > 0 => LAYOUT_INLINE,
            _ => LAYOUT_PLAIN,
        }
    }

    /// The union `i_u`: device number, or first block, whose low half a chunked file overwrites with its format.
    fn union(&self) -> u32 {
        let block = if self.place.blocks > 0 {
            low32(self.first_block)
        } else {
            0
        };
        match self.inode.body {
            Body::Device(number) => number,
            Body::Chunks => block & 0xffff_0000 | (chunk_bits(self.inode.size) - 12),
            _ => block,
        }
    }
}

fn emit_inode(inodes: &Inodes<'_>, known: &Layout, head: &Head<'_, '_>, out: &mut impl Output) {
    let inode = head.inode;
    let mut bytes = [0_u8; 64];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let icount = match inode.attributes_size {
        0 => 0,
        size => (size - 12) / 4 + 1,
    };
    let size = inode.written_size();
    set(0, &(head.layout() << 1 | u16::from(!inode.compact)).to_le_bytes());
    set(2, &low16(icount.into()).to_le_bytes());
    set(4, &inode.mode.to_le_bytes());
    set(16, &head.union().to_le_bytes());
    set(20, &low32(head.number as u64).to_le_bytes());
    if inode.compact {
        set(6, &low16(inode.nlink.into()).to_le_bytes());
        set(8, &low32(size).to_le_bytes());
        set(24, &low16(inode.uid.into()).to_le_bytes());
        set(26, &low16(inode.gid.into()).to_le_bytes());
        out.put(&bytes[..32]);
    } else {
        set(8, &size.to_le_bytes());
        set(24, &inode.uid.to_le_bytes());
        set(28, &inode.gid.to_le_bytes());
        set(32, &inode.mtime.sec.to_le_bytes());
        set(40, &inode.mtime.nsec.to_le_bytes());
        set(44, &inode.nlink.to_le_bytes());
        out.put(&bytes);
    }
    if inode.attributes_size > 0 {
        emit_attributes(inodes, known, head, out);
    }
    if head.place.tail > 0 {
        emit_tail(inodes, known, inode, out);
    }
}

fn emit_attributes<O: Output>(inodes: &Inodes<'_>, known: &Layout, head: &Head<'_, '_>, out: &mut O) {
    let inode = head.inode;
    if !O::WRITES {
        return out.zeros_to(out.position() + u64::from(inode.attributes_size));
    }
    let list = inodes.attributes_of(head.number);
    let mut header = [0; 12];
    header[..4].copy_from_slice(&inodes.name_filter(list).to_le_bytes());
    header[4] = inode.shared;
    out.put(&header);
    let mut shared = inode.shared;
    for attribute in list {
        if let Some(offset) = inodes.shared_offset(*attribute, &mut shared) {
            let reference = (known.inodes_end % BLOCK + u64::from(offset)) / 4;
            out.put(&low32(reference).to_le_bytes());
        }
    }
    let mut shared = inode.shared;
    for attribute in list {
        if inodes.shared_offset(*attribute, &mut shared).is_none() {
            emit_attribute(inodes, *attribute, out);
        }
    }
}

fn emit_attribute<O: Output>(inodes: &Inodes<'_>, attribute: u32, out: &mut O) {
    if !O::WRITES {
        return out.zeros_to(out.position() + inodes.attribute_size(attribute));
    }
    let (prefix, suffix, value) = inodes.attribute(attribute);
    let [low, high] = low16(value.len() as u64).to_le_bytes();
    let [suffix_len, _] = low16(suffix.len() as u64).to_le_bytes();
    out.put(&[suffix_len, prefix, low, high]);
    out.put(suffix);
    out.put(&value);
    let end = (4 + suffix.len() + value.len()).next_multiple_of(4);
    out.put(&[0; 3][..end - 4 - suffix.len() - value.len()]);
}

fn emit_tail<O: Output>(inodes: &Inodes<'_>, known: &Layout, inode: &Inode<'_>, out: &mut O) {
    if !O::WRITES {
        return out.zeros_to(out.position() + u64::from(inode.tail));
    }
    match inode.body {
        Body::Directory(_) => {
            let mut left = inode.blocks;
            inodes.chunks(inode, |chunk| match left.checked_sub(1) {
                Some(less) => left = less,
                None => emit_entries(inodes, known, chunk, out),
            });
        }
        Body::Content(content) => out.put(&content[content.len() - inode.tail as usize..]),
        Body::Symlink(target) => out.put(target),
        Body::Chunks => (0..inode.tail / 4).for_each(|_| out.put(&NULL_CHUNK.to_le_bytes())),
        Body::Device(_) | Body::Nothing => {}
    }
}

fn emit_blocks<O: Output>(inodes: &Inodes<'_>, known: &Layout, inode: &Inode<'_>, place: Place, out: &mut O) {
    let end = out.position() + u64::from(place.blocks) * BLOCK;
    if !O::WRITES {
        return out.zeros_to(end);
    }
    match inode.body {
        Body::Directory(_) => {
            let mut left = place.blocks;
            inodes.chunks(inode, |chunk| {
                if let Some(less) = left.checked_sub(1) {
                    left = less;
                    emit_entries(inodes, known, chunk, out);
                    out.zeros_to(out.position().next_multiple_of(BLOCK));
                }
            });
        }
        Body::Content(content) => out.put(&content[..content.len() - place.tail as usize]),
        Body::Symlink(target) => out.put(target),
        Body::Chunks => (0..BLOCK / 4).for_each(|_| out.put(&NULL_CHUNK.to_le_bytes())),
        Body::Device(_) | Body::Nothing => {}
    }
    out.zeros_to(end);
}

/// A block of directory entries: fixed parts, then names.
fn emit_entries(inodes: &Inodes<'_>, known: &Layout, chunk: &[(&[u8], u32)], out: &mut impl Output) {
    let mut offset = low16(chunk.len() as u64 * format::DIRENT);
    for (name, target) in chunk {
        let mut entry = [0; 12];
        entry[..4].copy_from_slice(&known.nid(*target).to_le_bytes());
        entry[8..10].copy_from_slice(&offset.to_le_bytes());
        entry[10] = file_type(inodes.mode(*target));
        out.put(&entry);
        offset += low16(name.len() as u64);
    }
    for (name, _) in chunk {
        out.put(name);
    }
}

/// The low bits of a number that is known to fit: `Inodes::new` and `build` have checked the limits.
#[allow(clippy::cast_possible_truncation)]
const fn low16(value: u64) -> u16 {
    value as u16
}

/// The low bits of a number that is known to fit: `Inodes::new` and `build` have checked the limits.
#[allow(clippy::cast_possible_truncation)]
const fn low32(value: u64) -> u32 {
    value as u32
}
