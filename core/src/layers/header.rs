//! Fields of a 512-byte tar header (POSIX.1-1988 ustar, GNU tar, star, and v7 before them).

use crate::layers::Mtime;
use crate::layers::sparse::Segments;

/// Bytes of a header and of every other unit of a tar.
pub(crate) const BLOCK: usize = 512;

/// A header whose checksum is right.
#[derive(Clone, Copy)]
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// Whether a stream that begins like this is a tar.
pub(crate) fn begins_tar(first: &[u8]) -> bool {
    first.first_chunk().is_some_and(|block| Header::new(block).is_some())
}

/// How the fields behind the first 257 bytes are laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// `None` where the checksum is wrong. Both sums that were ever written are accepted: of unsigned and of signed
    /// bytes.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Option<Self> {
        let stored = number(&block[148..156])?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        (stored == unsigned || stored == signed).then_some(Self(block))
    }

    fn layout(self) -> Layout {
        match &self.0[257..265] {
            b"ustar  \0" => Layout::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if &self.0[508..512] == b"tar\0" => Layout::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Layout::Ustar,
            _ => Layout::V7,
        }
    }

    /// The type byte.
    pub(super) fn kind(self) -> u8 {
        self.0[156]
    }

    /// Name with its prefix.
    pub(super) fn path(self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.layout() {
            Layout::Ustar => text(&self.0[345..500]),
            Layout::Star => text(&self.0[345..476]),
            Layout::V7 | Layout::Gnu => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// Target of a link.
    pub(super) fn link(self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    /// Permission bits.
    pub(super) fn mode(self) -> Option<u32> {
        number(&self.0[100..108]).map(|mode| low_32(mode) & 0o7777)
    }

    /// Owner, cut to 32 bits.
    pub(super) fn uid(self) -> Option<u32> {
        number(&self.0[108..116]).map(low_32)
    }

    /// Group, cut to 32 bits.
    pub(super) fn gid(self) -> Option<u32> {
        number(&self.0[116..124]).map(low_32)
    }

    /// Bytes of content that follow.
    pub(super) fn size(self) -> Option<u64> {
        number(&self.0[124..136]).and_then(|size| u64::try_from(size).ok())
    }

    /// Modification time.
    pub(super) fn mtime(self) -> Option<Mtime> {
        number(&self.0[136..148]).map(|sec| Mtime { sec, nsec: 0 })
    }

    /// The kernel's 32-bit device number; `None` where major or minor do not fit into 12 and 20 bits.
    pub(super) fn device(self) -> Option<u32> {
        if self.layout() == Layout::V7 {
            return Some(0);
        }
        let major = u32::try_from(number(&self.0[329..337])?)
            .ok()
            .filter(|m| *m < 1 << 12)?;
        let minor = u32::try_from(number(&self.0[337..345])?)
            .ok()
            .filter(|m| *m < 1 << 20)?;
        Some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
    }

    /// The sparse map's part in an old GNU header: pairs, whether more blocks of them follow, and the file's size.
    pub(super) fn gnu_sparse(self) -> Option<(Segments, bool, u64)> {
        if self.layout() != Layout::Gnu {
            return None;
        }
        let size = u64::try_from(number(&self.0[483..495])?).ok()?;
        Some((sparse_pairs(&self.0[386..482])?, self.0[482] != 0, size))
    }
}

/// Pairs of an old GNU sparse map, up to the first without an offset, where GNU and BSD tar end, too.
pub(super) fn sparse_pairs(field: &[u8]) -> Option<Segments> {
    let mut pairs = Vec::new();
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let offset = u64::try_from(number(&pair[..12])?).ok()?;
        let length = u64::try_from(number(&pair[12..])?).ok()?;
        pairs.push((offset, length));
    }
    Some(pairs)
}

/// Bytes up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// A number: octal digits with spaces and NULs around them, or base-256 with the high bit set (two's complement).
fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = text(&field[start..]);
    let end = digits.iter().rposition(|b| !blank(b)).map_or(0, |last| last + 1);
    let mut value = 0_i64;
    for &digit in &digits[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value = i128::from(if negative { -1 } else { 0 });
    for (at, &byte) in field.iter().enumerate() {
        // The top bit is the mark; the next one is the sign, extended over it.
        let byte = match (at, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = (value << 8) | i128::from(byte);
    }
    i64::try_from(value).ok()
}

/// The low 32 bits: what the kernel and the other composefs tools make of an id that is too large.
#[allow(clippy::cast_possible_truncation, reason = "cutting is the meaning")]
pub(super) fn low_32(value: i64) -> u32 {
    value.cast_unsigned() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_notation() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644     ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"\x80\0\0\0\0\0\0\x07", Some(7)),
            (b"\x80\0\0\0\0\0\0\0\x01\0\0\0", Some(1 << 24)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        let mut block = [0; BLOCK];
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[329..337].copy_from_slice(b"0000401\0");
        block[337..345].copy_from_slice(b"0001007\0");
        assert_eq!(Header(&block).device(), Some(0x07 | 0x101 << 8 | 0x200 << 12));
        block[329..337].copy_from_slice(b"0010000\0");
        assert_eq!(Header(&block).device(), None);
    }
}
