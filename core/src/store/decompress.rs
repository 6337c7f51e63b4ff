//! A layer's compression, undone as its bytes come.
//!
//! What the bytes say wins over the media type, as with podman: registries are full of layers with the wrong one. A tar
//! whose first file has a name like a compressed stream is a tar, by its header's checksum, and magic where the
//! media type says what that name looks like.
//! Several gzip members and zstd frames, skippable ones included, give one stream. Anything behind the last member
//! that is none is an error, as in Go's `compress/gzip`: accepting it would accept a blob that other tools refuse.
//!
//! Memory: gzip has a window of 32 KiB. Each zstd frame says how much it needs; up to 8 MiB (what every level up to 19
//! uses) each layer may have at the same time, up to 128 MiB only one layer at a time, more is refused.

use std::io;
use std::sync::{Mutex, MutexGuard};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::layers::{BLOCK, begins_tar};
use crate::store::import::Compression;

/// Bytes of the blob that [`Decompressor::new`] wants to see, where there are that many.
pub(super) const PEEK: usize = BLOCK;
/// The longest head of a zstd frame.
const HEAD: usize = 18;
const SMALL_WINDOW: u32 = 23;
const LARGE_WINDOW: u32 = 27;

/// Only one layer at a time may have a large zstd window.
static LARGE: Mutex<()> = Mutex::new(());

/// Undoes one blob's compression.
pub(super) enum Decompressor {
    Plain,
    Gzip(Gzip),
    Zstd(Zstd),
}

/// gzip members one after the other.
pub(super) struct Gzip {
    member: Decompress,
    /// A member has begun and did not end yet.
    inside: bool,
}

/// zstd frames one after the other.
pub(super) struct Zstd {
    decoder: Decoder<'static>,
    /// There was a frame.
    begun: bool,
    inside: bool,
    /// The beginning of a frame, as long as it does not say yet how large its window is.
    head: Vec<u8>,
    large: Option<MutexGuard<'static, ()>>,
}

impl Decompressor {
    /// For a blob that starts with `first`.
    pub(super) fn new(declared: Compression, first: &[u8]) -> io::Result<Self> {
        let says_tar = first.get(257..262) == Some(b"ustar");
        let found = match first {
            [0x1f, 0x8b, ..] if declared == Compression::Gzip && !says_tar => declared,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
                if declared == Compression::Zstd && !says_tar =>
            {
                declared
            }
            _ if begins_tar(first) => Compression::None,
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            // Too short to tell, or a tar after all: it fails as what it was said to be, or by its diff_id.
            _ if first.len() < 4 => declared,
            _ => Compression::None,
        };
        Ok(match found {
            Compression::None => Self::Plain,
            Compression::Gzip => Self::Gzip(Gzip {
                member: Decompress::new_gzip(15),
                inside: true,
            }),
            Compression::Zstd => Self::Zstd(Zstd::new()?),
        })
    }

    /// Takes from `input` what fits into `output`; returns how many bytes it wrote there. Progress is made unless both
    /// are used up.
    pub(super) fn run(&mut self, input: &mut &[u8], output: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain => {
                let take = input.len().min(output.len());
                output[..take].copy_from_slice(&input[..take]);
                *input = &input[take..];
                Ok(take)
            }
            Self::Gzip(gzip) => gzip.run(input, output),
            Self::Zstd(zstd) => zstd.run(input, output),
        }
    }

    /// To be called at the end of the blob: fails where it may not end.
    pub(super) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Gzip(Gzip { inside: true, .. }) => Err(truncated()),
            Self::Zstd(zstd) if !zstd.may_end() => Err(truncated()),
            _ => Ok(()),
        }
    }
}

impl Gzip {
    fn run(&mut self, input: &mut &[u8], output: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < output.len() {
            if !self.inside {
                if input.is_empty() {
                    break;
                }
                self.member = Decompress::new_gzip(15);
                self.inside = true;
            }
            let (before_in, before_out) = (self.member.total_in(), self.member.total_out());
            let status = self
                .member
                .decompress(input, &mut output[written..], FlushDecompress::None);
            let status = status.map_err(|e| invalid(&format!("the gzip data is corrupt ({e})")))?;
            let taken = usize::try_from(self.member.total_in() - before_in).map_err(io::Error::other)?;
            let given = usize::try_from(self.member.total_out() - before_out).map_err(io::Error::other)?;
            *input = &input[taken..];
            written += given;
            if status == Status::StreamEnd {
                self.inside = false;
            } else if taken == 0 && given == 0 {
                break;
            }
        }
        Ok(written)
    }
}

impl Zstd {
    fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(SMALL_WINDOW))?;
        // A frame's own 32 bits say nothing that the SHA-256 of blob and tar do not say better.
        decoder.set_parameter(DParameter::ForceIgnoreChecksum(true))?;
        Ok(Self {
            decoder,
            begun: false,
            inside: false,
            head: Vec::with_capacity(HEAD),
            large: None,
        })
    }

    fn run(&mut self, input: &mut &[u8], output: &mut [u8]) -> io::Result<usize> {
        let mut target = OutBuffer::around(output);
        while target.pos() < target.capacity() {
            if !self.inside && !self.begin(input)? {
                break;
            }
            let before = (input.len(), target.pos());
            let mut source = InBuffer::around(input);
            let hint = self.decoder.run(&mut source, &mut target).map_err(corrupt)?;
            *input = &input[source.pos()..];
            self.inside = hint != 0;
            if (input.len(), target.pos()) == before {
                break;
            }
        }
        Ok(target.pos())
    }

    /// Takes the head of a frame and makes room for its window; says whether there was all of it.
    fn begin(&mut self, input: &mut &[u8]) -> io::Result<bool> {
        let large = loop {
            if let Some(large) = needs_large_window(&self.head) {
                break large;
            }
            let Some((byte, rest)) = input.split_first() else {
                return Ok(false);
            };
            self.head.push(*byte);
            *input = rest;
        };
        if large && self.large.is_none() {
            self.large = Some(LARGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            self.decoder.set_parameter(DParameter::WindowLogMax(LARGE_WINDOW))?;
        }
        // A head alone gives no output.
        let mut nowhere = OutBuffer::around(&mut [][..]);
        let mut source = InBuffer::around(&self.head);
        self.decoder.run(&mut source, &mut nowhere).map_err(corrupt)?;
        self.head.clear();
        (self.begun, self.inside) = (true, true);
        Ok(true)
    }

    /// At least one frame was there, and the last one has ended.
    fn may_end(&self) -> bool {
        self.begun && !self.inside && self.head.is_empty()
    }
}

/// Whether a frame that begins like this needs more than 8 MiB (RFC 8878, 3.1.1.1.2); `None` where that takes more of
/// it.
fn needs_large_window(head: &[u8]) -> Option<bool> {
    match *head {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] if descriptor & 0x20 == 0 => {
            let log = 10 + u32::from(window >> 3);
            Some(log > SMALL_WINDOW || (log == SMALL_WINDOW && window & 7 != 0))
        }
        // The content is the window; its size follows a dictionary id of 0, 1, 2 or 4 bytes.
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, _, ..] => {
            let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
            let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
            let field = head.get(at..at + length)?;
            let size = field
                .iter()
                .rev()
                .fold(0_u64, |size, byte| size << 8 | u64::from(*byte));
            Some(size > 1 << SMALL_WINDOW)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => None,
        // To be skipped, or no frame at all.
        [_, _, _, _, ..] => Some(false),
        _ => None,
    }
}

fn truncated() -> io::Error {
    let why = "the compressed data ends too early; the blob is truncated";
    io::Error::new(io::ErrorKind::UnexpectedEof, why)
}

fn corrupt(error: io::Error) -> io::Error {
    invalid(&format!("the zstd data is corrupt or needs too much memory ({error})"))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn data() -> Vec<u8> {
        (0..300_000_u64).map(|i| ((i * i) >> 7).to_le_bytes()[0]).collect()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn undo(declared: Compression, blob: &[u8], piece: usize, room: usize) -> io::Result<Vec<u8>> {
        let mut decompressor = Decompressor::new(declared, &blob[..blob.len().min(PEEK)])?;
        let mut out = Vec::new();
        let mut buffer = vec![0; room];
        for mut input in blob.chunks(piece).chain([&b""[..]]) {
            loop {
                let n = decompressor.run(&mut input, &mut buffer)?;
                out.extend_from_slice(&buffer[..n]);
                if n == 0 && input.is_empty() {
                    break;
                }
            }
        }
        decompressor.finish()?;
        Ok(out)
    }

    #[test]
    fn several_members_and_frames_give_one_stream_however_they_are_cut() {
        let data = data();
        let (a, b) = data.split_at(100_000);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"skip!"].concat();
        let frames = [
            zstd::bulk::compress(a, 3).unwrap(),
            skippable.clone(),
            zstd::bulk::compress(b, 19).unwrap(),
            skippable,
        ];
        let members = [gzip(a), gzip(b""), gzip(b)].concat();
        for (piece, room) in [(1, 65536), (7, 100), (65536, 65536), (1 << 20, 4096)] {
            assert!(
                undo(Compression::Gzip, &members, piece, room).unwrap() == data,
                "gzip {piece} {room}"
            );
            assert!(
                undo(Compression::Zstd, &frames.concat(), piece, room).unwrap() == data,
                "zstd {piece} {room}"
            );
            assert!(
                undo(Compression::None, &data, piece, room).unwrap() == data,
                "plain {piece} {room}"
            );
        }
    }

    #[test]
    fn the_bytes_win_over_the_media_type() {
        let data = data();
        assert!(undo(Compression::Zstd, &gzip(&data), 4096, 4096).unwrap() == data);
        assert!(undo(Compression::Gzip, &zstd::bulk::compress(&data, 3).unwrap(), 4096, 4096).unwrap() == data);
        assert!(undo(Compression::Gzip, &data, 4096, 4096).unwrap() == data);
        assert!(undo(Compression::None, &gzip(&data), 4096, 4096).unwrap() == data);
        assert!(undo(Compression::None, &zstd::bulk::compress(&data, 3).unwrap(), 4096, 4096).unwrap() == data);
    }

    #[test]
    fn a_tar_whose_first_name_looks_compressed_is_a_tar() {
        for name in [&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd"] {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_cksum();
            let layer = [&header.as_bytes()[..], &[0; 1024]].concat();
            for declared in [Compression::None, Compression::Gzip, Compression::Zstd] {
                assert!(undo(declared, &layer, 4096, 4096).unwrap() == layer, "{declared:?}");
            }
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let data = data();
        for blob in [gzip(&data), zstd::bulk::compress(&data, 3).unwrap()] {
            let compression = if blob[0] == 0x1f {
                Compression::Gzip
            } else {
                Compression::Zstd
            };
            for end in (4..blob.len()).step_by(997).chain(blob.len() - 9..blob.len()) {
                assert!(
                    undo(compression, &blob[..end], 4096, 65536).is_err(),
                    "{compression:?} cut at {end}"
                );
            }
        }
        assert!(undo(Compression::Gzip, b"", 1, 1).is_err());
        assert!(undo(Compression::Zstd, b"\x28", 1, 1).is_err());
    }

    #[test]
    fn garbage_behind_the_last_member_is_refused() {
        let data = data();
        for garbage in [&b"\0"[..], b"garbage", &[0; 600]] {
            let blob = [gzip(&data), garbage.to_vec()].concat();
            assert!(undo(Compression::Gzip, &blob, 4096, 65536).is_err());
            let blob = [zstd::bulk::compress(&data, 3).unwrap(), garbage.to_vec()].concat();
            assert!(undo(Compression::Zstd, &blob, 4096, 65536).is_err());
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut blob = gzip(&data());
        let last = blob.len() - 6;
        blob[last] ^= 1;
        assert!(undo(Compression::Gzip, &blob, 4096, 65536).is_err());
    }

    #[test]
    fn a_later_frame_may_need_a_larger_window_than_the_first() {
        let data: Vec<u8> = data().iter().copied().cycle().take(20 << 20).collect();
        let far = |level: i32, log: u32| {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), level).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        };
        let small = zstd::bulk::compress(b"small", 3).unwrap();
        assert_eq!(needs_large_window(&far(3, 24)), Some(true));
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        for first in [small.as_slice(), &skippable] {
            let blob = [first, &far(3, 24), &small, &far(3, 25)].concat();
            let known = if first == small { &b"small"[..] } else { b"" };
            let expected = [known, &data, b"small", &data].concat();
            for piece in [1, 65536] {
                assert!(
                    undo(Compression::Zstd, &blob, piece, 1 << 20).unwrap() == expected,
                    "{piece}"
                );
            }
        }
    }

    #[test]
    fn what_it_is_said_to_be_and_looks_like_it_is_even_if_a_tars_checksum_is_right_by_chance() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..3].copy_from_slice(b"\x1f\x8b\x08");
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        assert!(matches!(
            Decompressor::new(Compression::Gzip, &tar[..PEEK]),
            Ok(Decompressor::Gzip(_))
        ));
        assert!(matches!(
            Decompressor::new(Compression::None, &tar[..PEEK]),
            Ok(Decompressor::Plain)
        ));
        assert!(matches!(
            Decompressor::new(Compression::Zstd, &tar[..PEEK]),
            Ok(Decompressor::Plain)
        ));
    }

    #[test]
    fn windows_are_bounded() {
        let frame = |window: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0];
        for (window, large) in [(0, false), (13 << 3, false), (13 << 3 | 1, true), (17 << 3, true)] {
            assert_eq!(needs_large_window(&frame(window)), Some(large));
            assert!(undo(Compression::Zstd, &frame(window), 9, 10).is_ok(), "{window}");
        }
        assert!(undo(Compression::Zstd, &frame(18 << 3), 9, 10).is_err());
    }
}
