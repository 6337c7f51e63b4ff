//! The pieces of a dump's line: fields, escapes, numbers as C reads them, digests.

use std::borrow::Cow;

use memchr::memchr;

use crate::tree::kind;

/// A refusal without its line.
pub type Refused = Cow<'static, str>;

/// As C's strtoull: leading white space and a sign are taken, negative numbers wrap, too large ones are the largest.
pub fn integer(text: &[u8], base: u8) -> Option<u64> {
    // Most numbers are like that.
    if let [digit @ b'0'..=b'7'] = text {
        return Some((digit - b'0').into());
    }
    let digits = text.trim_ascii_start_c();
    let (negative, digits) = match digits {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, digits),
    };
    if digits.is_empty() || digits.iter().any(|byte| byte.wrapping_sub(b'0') >= base) {
        return None;
    }
    let mut value = 0_u64;
    let mut overflow = false;
    // Up to 19 digits cannot overflow.
    let (few, more) = digits.split_at(digits.len().min(19));
    for byte in few {
        value = value * u64::from(base) + u64::from(byte - b'0');
    }
    for byte in more {
        match value
            .checked_mul(base.into())
            .and_then(|v| v.checked_add((byte - b'0').into()))
        {
            Some(sum) => value = sum,
            None => overflow = true,
        }
    }
    Some(match (overflow, negative) {
        (true, _) => u64::MAX,
        (false, true) => value.wrapping_neg(),
        (false, false) => value,
    })
}

trait TrimC {
    /// Without leading white space as C's `isspace` sees it: with the vertical tab.
    fn trim_ascii_start_c(&self) -> &[u8];
}

impl TrimC for [u8] {
    fn trim_ascii_start_c(&self) -> &[u8] {
        let space = |b: &u8| matches!(b, b' ' | 9..=13);
        &self[self.iter().take_while(|b| space(b)).count()..]
    }
}

#[allow(clippy::cast_possible_truncation)] // Deliberately: mkcomposefs stores the low bits.
pub const fn low32(value: u64) -> u32 {
    value as u32
}

#[allow(clippy::cast_possible_truncation)] // Deliberately: only 16 bits reach an image.
pub const fn low16(value: u64) -> u16 {
    value as u16
}

pub fn check_type(mode: u16) -> Result<(), &'static str> {
    match mode & kind::MASK {
        kind::REGULAR | kind::DIRECTORY | kind::SYMLINK | kind::CHAR | kind::BLOCK | kind::FIFO | kind::SOCKET => {
            Ok(())
        }
        _ => Err("MODE has no file type"),
    }
}

/// A raw digest; empty where there is none.
#[derive(Clone, Copy)]
pub struct Raw([u8; 64], usize);

impl Raw {
    /// Only looked at where an image will have it, as mkcomposefs does.
    pub fn parse(text: Option<&[u8]>) -> Result<Self, Refused> {
        let text = text.unwrap_or_default();
        let mut raw = Self([0; 64], text.len() / 2);
        if !matches!(text.len(), 0 | 64 | 128) {
            return Err("DIGEST is neither - nor 64 hex digits (128 for SHA-512)".into());
        }
        let mut seen = 0;
        for (byte, [high, low]) in raw.0.iter_mut().zip(text.as_chunks().0) {
            let (high, low) = (HEX_VALUES[usize::from(*high)], HEX_VALUES[usize::from(*low)]);
            seen |= high | low;
            *byte = high << 4 | low;
        }
        if seen > 15 {
            return Err("DIGEST has something that is no hex digit".into());
        }
        Ok(raw)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

pub fn unescape(text: &[u8]) -> Result<Cow<'_, [u8]>, Refused> {
    let Some(first) = memchr(b'\\', text) else {
        return Ok(Cow::Borrowed(text));
    };
    let mut out = text[..first].to_vec();
    let mut rest = &text[first..];
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let (escape, after) = rest.split_first().ok_or("a backslash at the end of a field")?;
        rest = after;
        out.push(match escape {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let digits = rest.get(..2).ok_or("\\x without two hex digits")?;
                rest = &rest[2..];
                let high = hex_value(digits[0]).ok_or("\\x without two hex digits")?;
                high << 4 | hex_value(digits[1]).ok_or("\\x without two hex digits")?
            }
            _ => return Err("a backslash before something other than \\ n r t x".into()),
        });
    }
    Ok(Cow::Owned(out))
}

/// What hex digits stand for; more than 15 for all else.
const HEX_VALUES: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        values[b"0123456789ABCDEF"[value as usize] as usize] = value;
        value += 1;
    }
    values
};

fn hex_value(digit: u8) -> Option<u8> {
    Some(HEX_VALUES[usize::from(digit)]).filter(|value| *value < 16)
}

/// Takes everything up to `end`, and `end`; all that is left where there is none.
pub fn take_until<'a>(rest: &mut &'a [u8], end: u8) -> &'a [u8] {
    let at = memchr(end, rest);
    take(rest, at)
}

/// The same where it is most likely a few bytes away.
pub fn take_short<'a>(rest: &mut &'a [u8], end: u8) -> &'a [u8] {
    let at = rest.iter().position(|byte| *byte == end);
    take(rest, at)
}

fn take<'a>(rest: &mut &'a [u8], at: Option<usize>) -> &'a [u8] {
    let Some(at) = at else {
        return std::mem::take(rest);
    };
    let part = &rest[..at];
    *rest = &rest[at + 1..];
    part
}
