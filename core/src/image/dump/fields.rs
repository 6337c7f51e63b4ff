//! A line of a dump in its fields, and the numbers among them.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use crate::image::dump::text::{Refused, integer, low32, take_short, take_until, unescape};
use crate::layers::Mtime;

/// The eleven fields of a line, still escaped.
pub struct Fields<'a> {
    pub path: &'a [u8],
    pub size: &'a [u8],
    pub mode: &'a [u8],
    pub nlink: &'a [u8],
    pub uid: &'a [u8],
    pub gid: &'a [u8],
    pub rdev: &'a [u8],
    pub mtime: &'a [u8],
    pub payload: &'a [u8],
    pub content: &'a [u8],
    pub digest: &'a [u8],
    pub xattrs: &'a [u8],
    /// Nothing on the line is escaped, so that no field has to be looked through for it.
    plain: bool,
}

impl<'a> Fields<'a> {
    /// A line without its end.
    pub fn split(mut line: &'a [u8]) -> Result<Self, Refused> {
        let special = memchr2(0, b'\\', line);
        if special.is_some_and(|at| memchr(0, &line[at..]).is_some()) {
            return Err("a NUL byte".into());
        }
        let line = &mut line;
        Ok(Self {
            path: take_until(line, b' '),
            size: take_short(line, b' '),
            mode: take_short(line, b' '),
            nlink: take_short(line, b' '),
            uid: take_short(line, b' '),
            gid: take_short(line, b' '),
            rdev: take_short(line, b' '),
            mtime: take_until(line, b' '),
            payload: take_until(line, b' '),
            content: take_short(line, b' '),
            digest: take_until(line, b' '),
            xattrs: line,
            plain: special.is_none(),
        })
    }

    /// What a field, or a part of one, says.
    pub fn text(&self, field: &'a [u8]) -> Result<Cow<'a, [u8]>, Refused> {
        match self.plain {
            true => Ok(Cow::Borrowed(field)),
            false => unescape(field),
        }
    }

    /// The same; `None` for a lone dash.
    pub fn optional(&self, field: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, Refused> {
        match field {
            b"-" => Ok(None),
            field => self.text(field).map(Some),
        }
    }

    /// Whether there is an escaped NUL byte in what [`Self::text`] gave.
    pub fn has_nul(&self, text: &[u8]) -> bool {
        !self.plain && text.contains(&0)
    }
}

/// The metadata of a line that is no link.
pub struct Numbers {
    pub size: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub mtime: Mtime,
}

impl Numbers {
    /// As mkcomposefs reads them.
    pub fn of(fields: &Fields<'_>) -> Result<Self, Refused> {
        let size = integer(fields.size, 10).ok_or("SIZE is no number")?;
        let nlink = integer(fields.nlink, 10).ok_or("NLINK is no number")?;
        let uid = integer(fields.uid, 10).ok_or("UID is no number")?;
        // mkcomposefs looks at UID where it should look at what it has just read.
        let forgiven = uid != 0;
        let gid = integer(fields.gid, 10);
        let rdev = integer(fields.rdev, 10);
        if !forgiven && gid.is_none() {
            return Err("GID is no number".into());
        }
        if !forgiven && rdev.is_none() {
            return Err("RDEV is no number".into());
        }
        Ok(Self {
            size,
            nlink: low32(nlink),
            uid: low32(uid),
            gid: low32(gid.unwrap_or(0)),
            rdev: low32(rdev.unwrap_or(0)),
            mtime: mtime(fields.mtime).ok_or("MTIME is not two numbers with a dot")?,
        })
    }
}

fn mtime(text: &[u8]) -> Option<Mtime> {
    let dot = memchr(b'.', text)?;
    Some(Mtime {
        sec: integer(&text[..dot], 10)?.cast_signed(),
        nsec: low32(integer(&text[dot + 1..], 10)?),
    })
}
