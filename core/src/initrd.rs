//! What is in an initrd: the names in its cpio archives.
//!
//! An initrd is one archive or several, one behind the other, each plain or compressed
//! (`Documentation/driver-api/early-userspace` of the kernel: `buffer-format`). gzip and zstd are read; the others are
//! named. Bounded; never panics on hostile bytes.

use std::io::{self, Read};

/// Longer names, more bytes of names or more bytes at all than any initrd has end the listing with an error.
const NAME: u64 = 1 << 12;
const NAMES: usize = 16 << 20;
const BYTES: u64 = 4 << 30;
const HEADER: usize = 110;
/// The longest magic number.
const MAGIC: u64 = 6;
const BUFFER: usize = 64 << 10;

/// The result of [`list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Every name, without leading `/` and `./`.
    Names(Vec<String>),
    /// What it is compressed with, where that cannot be read here.
    Compressed(&'static str),
    /// What is wrong with it.
    Broken(String),
}

/// Our program, as it lies in an initrd.
pub const PROGRAM: &str = "usr/lib/cfs-update/cfs-update-root";
/// What else boots the same layout: bootc's and composefs-rs' programs.
pub const EQUIVALENT: [&str; 4] = [
    "usr/lib/bootc/initramfs-setup",
    "usr/bin/composefs-setup-root",
    "bin/composefs-setup-root",
    "usr/sbin/composefs-setup-root",
];

/// Whether an initrd with these names can boot a deployment.
pub fn boots_deployments(names: &[String]) -> bool {
    let known = |name: &String| name == PROGRAM || EQUIVALENT.contains(&name.as_str());
    names.iter().any(known)
}

#[derive(Default)]
struct Names {
    list: Vec<String>,
    /// What they take in memory.
    bytes: usize,
}

/// Lists an initrd, in one pass; memory does not grow with it.
pub fn list(initrd: impl Read) -> Listing {
    let mut names = Names::default();
    match read(initrd, &mut names) {
        Ok(None) => Listing::Names(names.list),
        Ok(Some(how)) => Listing::Compressed(how),
        Err(e) => Listing::Broken(e.to_string()),
    }
}

/// How the rest is compressed, where that cannot be read here.
fn read(initrd: impl Read, names: &mut Names) -> io::Result<Option<&'static str>> {
    let mut rest = io::BufReader::with_capacity(BUFFER, initrd.take(BYTES));
    loop {
        let Some(first) = after_zeros(&mut rest)? else {
            return Ok(None);
        };
        let mut head = vec![first];
        (&mut rest).take(MAGIC - 1).read_to_end(&mut head)?;
        match head.as_slice() {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2'] => archive(&mut head.as_slice().chain(&mut rest), names)?,
            [0x1f, 0x8b, ..] => {
                let stream = io::BufReader::new(head.as_slice().chain(rest));
                return compressed(flate2::bufread::MultiGzDecoder::new(stream), names);
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                return compressed(zstd::stream::read::Decoder::new(head.as_slice().chain(rest))?, names);
            }
            head => {
                let unknown = || invalid("it is neither a cpio archive nor compressed in a way that is known");
                return other(head).map(Some).ok_or_else(unknown);
            }
        }
    }
}

/// The first byte that is not zero: archives are padded with zeros.
fn after_zeros(stream: &mut impl Read) -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte)? {
            0 => return Ok(None),
            _ if byte[0] != 0 => return Ok(Some(byte[0])),
            _ => {}
        }
    }
}

fn other(bytes: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 5] = [
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
        (b"BZh", "bzip2"),
        (&[0x5d, 0, 0], "lzma"),
        (&[0x89, b'L', b'Z', b'O'], "lzo"),
    ];
    kinds
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic))
        .map(|(_, name)| *name)
}

/// The archives in a compressed stream, which is the rest of the initrd.
fn compressed(stream: impl Read, names: &mut Names) -> io::Result<Option<&'static str>> {
    let mut stream = io::BufReader::with_capacity(BUFFER, stream.take(BYTES));
    while let Some(first) = after_zeros(&mut stream)? {
        archive(&mut (&[first][..]).chain(&mut stream), names)?;
    }
    Ok(None)
}

/// One archive, to its trailer.
fn archive(stream: &mut impl Read, names: &mut Names) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        if !header.starts_with(b"07070") {
            return Err(invalid("a header of its cpio archive is none"));
        }
        let field = |at: usize| {
            let digits = std::str::from_utf8(&header[at..at + 8])
                .map_err(|_| invalid("a number in its cpio archive is none"))?;
            u64::from_str_radix(digits, 16).map_err(|_| invalid("a number in its cpio archive is none"))
        };
        let (size, length) = (field(54)?, field(94)?);
        if length == 0 || length > NAME || names.bytes > NAMES {
            return Err(invalid("a name in its cpio archive is too long, or there are too many"));
        }
        let mut name = vec![0; usize::try_from(length).unwrap_or_default()];
        stream.read_exact(&mut name)?;
        skip(stream, (4 - (HEADER as u64 + length) % 4) % 4)?;
        let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(&name)).into_owned();
        if name == "TRAILER!!!" {
            return Ok(());
        }
        skip(stream, size)?;
        skip(stream, (4 - size % 4) % 4)?;
        let name = name
            .strip_prefix('.')
            .filter(|rest| rest.starts_with('/'))
            .unwrap_or(&name);
        names.bytes += name.len() + size_of::<String>();
        names.list.push(name.trim_start_matches('/').to_owned());
    }
}

fn skip(stream: &mut impl Read, bytes: u64) -> io::Result<()> {
    match io::copy(&mut stream.take(bytes), &mut io::sink())? {
        n if n == bytes => Ok(()),
        _ => Err(invalid("its cpio archive ends too early")),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A cpio archive (newc) of empty files.
    pub fn cpio(names: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for name in names.iter().chain(&["TRAILER!!!"]) {
            let content = if name.ends_with(".ko") { "abcde" } else { "" };
            let zero = "00000000";
            let (size, length) = (format!("{:08x}", content.len()), format!("{:08x}", name.len() + 1));
            bytes.extend(b"070701");
            let fields = [
                zero, zero, zero, zero, zero, zero, &size, zero, zero, zero, zero, &length, zero,
            ];
            fields.iter().for_each(|field| bytes.extend(field.bytes()));
            bytes.extend(name.bytes().chain([0]));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(content.bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_compressed_archives_are_listed_one_behind_the_other() {
        let early = cpio(&["./kernel/x86/microcode/GenuineIntel.bin"]);
        let main = cpio(&[".", "/usr/lib/a.ko", "usr/b"]);
        let expected = ["kernel/x86/microcode/GenuineIntel.bin", ".", "usr/lib/a.ko", "usr/b"].map(str::to_owned);
        for compressed in [main.clone(), gzip(&main), zstd::encode_all(main.as_slice(), 1).unwrap()] {
            let mut initrd = early.clone();
            initrd.resize(initrd.len().next_multiple_of(512), 0);
            initrd.extend(compressed);
            assert_eq!(list(initrd.as_slice()), Listing::Names(expected.to_vec()));
        }
        assert_eq!(list(io::empty()), Listing::Names(Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert_eq!(
            list(&[0xfd, b'7', b'z', b'X', b'Z', 0, 1][..]),
            Listing::Compressed("xz")
        );
        assert_eq!(list(&[0x02, 0x21, 0x4c, 0x18, 1][..]), Listing::Compressed("lz4"));
        assert!(matches!(list(&b"garbage"[..]), Listing::Broken(_)));
        let archive = cpio(&["usr/lib/a.ko"]);
        for end in 1..archive.len() - 4 {
            assert!(!matches!(list(&archive[..end]), Listing::Compressed(_)), "{end}");
        }
        let cut = zstd::encode_all(archive.as_slice(), 1).unwrap();
        assert!(matches!(list(&cut[..cut.len() - 5]), Listing::Broken(_)));
    }

    proptest! {
        #[test]
        fn hostile_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..200) {
            let mut archive = cpio(&["a", "usr/lib/b.ko"]);
            let at = at.min(archive.len());
            archive.splice(at.., bytes.iter().copied());
            list(archive.as_slice());
            list(bytes.as_slice());
        }
    }
}
