//! The extended attributes of one inode as the image has them: overlayfs' own added, those of the tree escaped.

use super::format::{
    ESCAPED, ESCAPED_OPAQUE, METACOPY, OPAQUE, OVERLAY, REDIRECT, USER_OPAQUE, USER_WHITEOUT, USER_WHITEOUTS, WHITEOUT,
    WHITEOUTS,
};
use crate::tree::{Payload, Span, Tree, Xattr, object_path};

/// Where the bytes of a name or value are.
#[derive(Clone, Copy)]
enum Piece<'t> {
    /// In the tree, or in this program.
    Of(&'t [u8]),
    /// In [`Attributes::bytes`].
    Own(usize, usize),
}

/// A value, while it is gathered.
#[derive(Clone, Copy)]
enum Gathered<'t> {
    Piece(Piece<'t>),
    Derived(Derived),
}

/// A value.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Bytes(&'a [u8]),
    /// Not made yet: that takes longer than all else about it.
    Derived(Derived),
}

impl Value<'_> {
    /// How many bytes it has.
    pub fn len(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Derived(derived) => derived.len(),
        }
    }
}

/// What a value can be made of again, so that nobody has to keep it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Derived {
    /// overlayfs' record of this digest of the tree.
    Record(Span),
    /// The path of the object with this digest.
    Path(Span),
}

/// A value that was made again, of at most 130 bytes: a path of 64 bytes in hexadecimal and two slashes.
#[derive(Clone, Copy)]
pub struct Made {
    bytes: [u8; 130],
    len: u8,
}

impl Made {
    fn put(&mut self, part: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + part.len()].copy_from_slice(part);
        self.len += u8::try_from(part.len()).unwrap_or(0);
    }
}

impl std::ops::Deref for Made {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Derived {
    /// The value.
    pub fn value(self, tree: &Tree) -> Made {
        let mut made = Made {
            bytes: [0; 130],
            len: 0,
        };
        match self {
            Self::Record(digest) => metacopy(tree.get(digest)).iter().for_each(|part| made.put(part)),
            Self::Path(digest) => {
                made.put(b"/");
                made.put(object_path(tree.get(digest), &mut [0; 129]));
            }
        }
        made
    }

    /// Where in the tree the digest is. Of two values of one kind the digests are in the order of the values, if these
    /// are equally long.
    pub fn digest(self) -> Span {
        match self {
            Self::Record(digest) | Self::Path(digest) => digest,
        }
    }

    /// How many bytes the value has.
    pub fn len(self) -> usize {
        match self {
            Self::Record(digest) if digest.len() == 0 => 0,
            Self::Record(digest) => 4 + digest.len(),
            Self::Path(digest) => 1 + 2 * digest.len() + usize::from(digest.len() > 1),
        }
    }
}

/// Keys and values of one inode; used again for the next.
#[derive(Default)]
pub struct Attributes<'t> {
    pairs: Vec<(Piece<'t>, Gathered<'t>)>,
    bytes: Vec<u8>,
}

/// What makes a folder or file special to overlayfs.
#[derive(Clone, Copy, Default)]
pub struct Marks {
    /// It is the root.
    pub root: bool,
    /// It is a whiteout.
    pub whiteout: bool,
    /// It is a folder with a whiteout in it.
    pub hides: bool,
    /// The format's version is 1.
    pub escapes: bool,
}

impl<'t> Attributes<'t> {
    /// Begins the next inode.
    pub fn clear(&mut self) {
        self.pairs.clear();
        self.bytes.clear();
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Value<'_>)> {
        let value = |value| match value {
            &Gathered::Derived(derived) => Value::Derived(derived),
            Gathered::Piece(piece) => Value::Bytes(get(&self.bytes, piece)),
        };
        let pairs = self.pairs.iter();
        pairs.map(move |(key, held)| (get(&self.bytes, key), value(held)))
    }

    /// Adds one whose name the inode does not have yet.
    pub fn label(&mut self, key: &'static [u8], value: &'t [u8]) {
        self.pairs.push((Piece::Of(key), Gathered::Piece(Piece::Of(value))));
    }

    /// Adds those of the tree.
    pub fn of_tree(&mut self, tree: &'t Tree, xattrs: &[Xattr]) {
        for xattr in xattrs {
            let key = tree.get(xattr.key);
            let key = match key.strip_prefix(OVERLAY) {
                Some(rest) => self.own(|bytes| [ESCAPED, rest].iter().for_each(|part| bytes.extend_from_slice(part))),
                None => Piece::Of(key),
            };
            let value = Piece::Of(tree.get(xattr.value));
            self.pairs.push((key, Gathered::Piece(value)));
        }
    }

    /// Adds what leads overlayfs to the content of a file.
    pub fn of_content(&mut self, tree: &'t Tree, payload: Payload, digest: Span) {
        self.set(METACOPY, Gathered::Derived(Derived::Record(digest)));
        match payload {
            Payload::None => {}
            Payload::Object => self.set(REDIRECT, Gathered::Derived(Derived::Path(digest))),
            Payload::Text(text) => {
                let redirect = self.own(|bytes| {
                    bytes.push(b'/');
                    bytes.extend_from_slice(tree.get(text));
                });
                self.set(REDIRECT, Gathered::Piece(redirect));
            }
        }
    }

    /// Adds what tells overlayfs of whiteouts and of the root.
    pub fn of_marks(&mut self, marks: Marks) {
        let mut mark = |key, value| self.set(key, Gathered::Piece(Piece::Of(value)));
        if marks.whiteout {
            mark(WHITEOUT, b"");
            mark(USER_WHITEOUT, b"");
        }
        if marks.hides {
            mark(WHITEOUTS, b"");
            mark(USER_WHITEOUTS, b"");
            if marks.escapes {
                mark(ESCAPED_OPAQUE, b"x");
                mark(USER_OPAQUE, b"x");
            }
        }
        if marks.root {
            mark(OPAQUE, b"y");
        }
    }

    /// Puts them into the order of their names.
    pub fn sort(&mut self) {
        let bytes = &self.bytes;
        self.pairs
            .sort_unstable_by(|(a, ..), (b, ..)| get(bytes, a).cmp(get(bytes, b)));
    }

    fn own(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Piece<'t> {
        let start = self.bytes.len();
        write(&mut self.bytes);
        Piece::Own(start, self.bytes.len())
    }

    /// Sets an attribute in place of one with the same key.
    fn set(&mut self, key: &'static [u8], value: Gathered<'t>) {
        let bytes = &self.bytes;
        match self.pairs.iter_mut().find(|(k, _)| get(bytes, k) == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((Piece::Of(key), value)),
        }
    }
}

fn get<'a>(bytes: &'a [u8], piece: &'a Piece<'_>) -> &'a [u8] {
    match *piece {
        Piece::Of(bytes) => bytes,
        Piece::Own(start, end) => &bytes[start..end],
    }
}

/// The digest in a value that is an object's path.
pub fn digest_in(value: &[u8]) -> Option<([u8; 64], usize)> {
    let [b'/', first, second, b'/', rest @ ..] = value else {
        return None;
    };
    let mut digest = [0; 64];
    let len = 1 + rest.len() / 2;
    hex::decode_to_slice([*first, *second], &mut digest[..1]).ok()?;
    hex::decode_to_slice(rest, digest.get_mut(1..len)?).ok()?;
    Some((digest, len))
}

/// overlayfs' record of a digest (`struct ovl_metacopy`): version, length, flags, algorithm, digest.
fn metacopy(digest: &[u8]) -> [&[u8]; 2] {
    match digest.len() {
        0 => [b"", b""],
        64 => [&[0, 68, 0, 2], digest],
        _ => [&[0, 36, 0, 1], digest],
    }
}
