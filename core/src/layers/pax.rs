//! Records of a PAX extended header (POSIX.1-2001, "pax Extended Header").

use std::collections::HashSet;

use crate::layers::header::low_32;
use crate::layers::sparse::Segments;
use crate::layers::{Mtime, Xattrs};

/// What a PAX header says about the entry behind it; `None` where it says nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: PaxSparse,
}

/// GNU tar's sparse records, in the three ways it ever wrote them.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.0, 0.1) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    /// Pairs, of 0.0 and 0.1.
    pub(super) map: Option<Segments>,
    pending: Option<u64>,
}

/// Parses the body of an `x` header.
pub(super) fn parse(mut body: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    while !body.is_empty() {
        let (key, value, rest) = record(body).ok_or("a PAX record is malformed")?;
        pax.apply(key, value)?;
        body = rest;
    }
    if pax.sparse.pending.is_some() {
        return Err("GNU.sparse.offset without GNU.sparse.numbytes".into());
    }
    last_wins(&mut pax.xattrs);
    Ok(pax)
}

/// `LENGTH KEY=VALUE\n`, where the length counts everything.
fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&body[..space])?).ok()?;
    let record = body.get(space + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let name_with_nul = matches!(key, b"path" | b"linkpath" | b"GNU.sparse.name") && value.contains(&0);
    (!key.is_empty() && !key.contains(&0) && !name_with_nul).then_some((key, value, &body[length..]))
}

impl Pax {
    /// A later record of the same key wins; an empty value means: as without the record.
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() {
                return Err("an extended attribute has no name".into());
            }
            self.xattrs.push((name.into(), value.into()));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.apply(name, value);
        }
        let bytes = || Some(value.to_vec()).filter(|v| !v.is_empty());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = optional(value, decimal, "size")?,
            b"uid" => self.uid = optional(value, signed, "uid")?.map(low_32),
            b"gid" => self.gid = optional(value, signed, "gid")?.map(low_32),
            b"mtime" => self.mtime = optional(value, time, "mtime")?,
            _ => {}
        }
        Ok(())
    }
}

impl PaxSparse {
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"major" => self.major = optional(value, decimal, "GNU.sparse.major")?,
            b"minor" => self.minor = optional(value, decimal, "GNU.sparse.minor")?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = optional(value, decimal, "GNU.sparse.size")?,
            b"map" => self.map = Some(map(value).ok_or("GNU.sparse.map is malformed")?),
            b"offset" => {
                let offset = decimal(value).ok_or("GNU.sparse.offset is no number")?;
                if self.pending.replace(offset).is_some() {
                    return Err("GNU.sparse.offset without GNU.sparse.numbytes".into());
                }
            }
            b"numbytes" => {
                let length = decimal(value).ok_or("GNU.sparse.numbytes is no number")?;
                let offset = self
                    .pending
                    .take()
                    .ok_or("GNU.sparse.numbytes without GNU.sparse.offset")?;
                self.map.get_or_insert_default().push((offset, length));
            }
            _ => {}
        }
        Ok(())
    }
}

/// `offset,length,offset,length…`
fn map(value: &[u8]) -> Option<Segments> {
    let mut pairs = Vec::new();
    if value.is_empty() {
        return Some(pairs);
    }
    let mut numbers = value.split(|&b| b == b',').map(decimal);
    while let Some(offset) = numbers.next() {
        pairs.push((offset?, numbers.next()??));
    }
    Some(pairs)
}

fn optional<T>(value: &[u8], parse: fn(&[u8]) -> Option<T>, key: &str) -> Result<Option<T>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = parse(value).ok_or_else(|| format!("PAX {key} {:?} is no number", String::from_utf8_lossy(value)))?;
    Ok(Some(number))
}

/// An unsigned decimal number, digits only.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => i64::try_from(decimal(digits)?).ok().map(|v| -v),
        None => i64::try_from(decimal(text)?).ok(),
    }
}

/// `[-]SECONDS[.FRACTION]`; digits behind the ninth are cut, and -1.25 is one and a quarter seconds before 1970.
fn time(text: &[u8]) -> Option<Mtime> {
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nsec = 0_u32;
    for at in 0..9 {
        nsec = nsec * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    }
    let sec = signed(whole)?;
    if whole.first() == Some(&b'-') && nsec > 0 {
        return Some(Mtime {
            sec: sec.checked_sub(1)?,
            nsec: 1_000_000_000 - nsec,
        });
    }
    Some(Mtime { sec, nsec })
}

/// Keeps the last of attributes of the same name, in the order of the archive.
fn last_wins(xattrs: &mut Xattrs) {
    if xattrs.len() < 2 {
        return;
    }
    let mut seen = HashSet::new();
    let mut keep: Vec<bool> = xattrs.iter().rev().map(|(key, _)| seen.insert(key.clone())).collect();
    keep.reverse();
    let mut keep = keep.into_iter();
    xattrs.retain(|_| keep.next().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(records: &[(&str, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in records {
            let payload = key.len() + value.len() + 3;
            let mut length = payload + payload.to_string().len();
            length = payload + length.to_string().len();
            body.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        body
    }

    #[test]
    fn times_with_fractions_before_and_after_1970() {
        for (text, sec, nsec) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("1.1234567899", 1, 123_456_789),
            ("1.", 1, 0),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.25", -1, 750_000_000),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Mtime { sec, nsec }), "{text}");
        }
        for text in ["", ".", "-", "1.x", "1e3", "0x1", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_last_record_wins_and_an_empty_one_takes_back() {
        let pax = parse(&body(&[
            ("path", "a"),
            ("path", "b"),
            ("uid", "7"),
            ("uid", ""),
            ("SCHILY.xattr.user.x", "1"),
            ("SCHILY.xattr.user.y", ""),
            ("SCHILY.xattr.user.x", "2=3"),
            ("LIBARCHIVE.xattr.user.z", "AA"),
            ("comment", "none"),
        ]))
        .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.uid, None);
        let xattrs: Vec<_> = pax.xattrs.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(xattrs, [(&b"user.y"[..], &b""[..]), (b"user.x", b"2=3")]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for text in [
            "x",
            "5 a=b",
            "6 a=b",
            "6 a=b\nx",
            "0 a=b\n",
            "7 =abc\n",
            "99999999999999999999 a=b\n",
            "9 path=\0\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse(&body(&[("size", "-1")])).is_err());
        assert!(parse(&body(&[("GNU.sparse.offset", "1")])).is_err());
        assert!(parse(&body(&[("GNU.sparse.map", "1,2,3")])).is_err());
    }
}
