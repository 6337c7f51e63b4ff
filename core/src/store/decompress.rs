//! A layer's compression, undone as its bytes come.
//!
//! What the bytes say wins over the media type, as with podman: registries are full of layers with the wrong one. A tar
//! whose first file has a name like a compressed stream is a tar, by its header's checksum.
//! Several gzip members and zstd frames, skippable ones included, give one stream. Anything behind the last member
//! that is none is an error, as in Go's `compress/gzip`: accepting it would accept a blob that other tools refuse.
//!
//! Memory: gzip has a window of 32 KiB. A zstd frame says how much it needs; up to 8 MiB (what every level up to 19
//! uses) each layer may have at the same time, up to 128 MiB only one layer at a time, more is refused.

use std::io;
use std::sync::{Mutex, MutexGuard};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::layers::{BLOCK, begins_tar};
use crate::store::import::Compression;

/// Bytes of the blob that [`Decompressor::new`] wants to see, where there are that many.
pub(super) const PEEK: usize = BLOCK;
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
    inside: bool,
    _large: Option<MutexGuard<'static, ()>>,
}

impl Decompressor {
    /// For a blob that starts with `first`.
    pub(super) fn new(declared: Compression, first: &[u8]) -> io::Result<Self> {
        let found = match first {
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
            Compression::Zstd => Self::Zstd(Zstd::new(first)?),
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
            Self::Gzip(Gzip { inside: true, .. }) | Self::Zstd(Zstd { inside: true, .. }) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the compressed data ends too early; the blob is truncated",
            )),
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
    fn new(first: &[u8]) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        let large = needs_large_window(first);
        let limit = if large { LARGE_WINDOW } else { SMALL_WINDOW };
        decoder.set_parameter(DParameter::WindowLogMax(limit))?;
        // A frame's own 32 bits say nothing that the SHA-256 of blob and tar do not say better.
        decoder.set_parameter(DParameter::ForceIgnoreChecksum(true))?;
        Ok(Self {
            decoder,
            inside: true,
            _large: large.then(|| LARGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)),
        })
    }

    fn run(&mut self, input: &mut &[u8], output: &mut [u8]) -> io::Result<usize> {
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(output);
        while target.pos() < target.capacity() {
            let before = (source.pos(), target.pos());
            let hint = self.decoder.run(&mut source, &mut target);
            let hint =
                hint.map_err(|e| invalid(&format!("the zstd data is corrupt or needs too much memory ({e})")))?;
            if (source.pos(), target.pos()) == before {
                break;
            }
            self.inside = hint != 0;
        }
        let (taken, written) = (source.pos(), target.pos());
        *input = &input[taken..];
        Ok(written)
    }
}

/// Whether the first frame needs more than 8 MiB, or cannot be seen (RFC 8878, 3.1.1.1.2).
fn needs_large_window(first: &[u8]) -> bool {
    match *first {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] if descriptor & 0x20 == 0 => {
            let log = 10 + u32::from(window >> 3);
            log > SMALL_WINDOW || (log == SMALL_WINDOW && window & 7 != 0)
        }
        // The content is the window; its size follows a dictionary id of 0, 1, 2 or 4 bytes.
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] => {
            let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
            let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
            let field = first.get(at..at + length).unwrap_or(&[0xff; 8]);
            let size = field
                .iter()
                .rev()
                .fold(0_u64, |size, byte| size << 8 | u64::from(*byte));
            size > 1 << SMALL_WINDOW
        }
        _ => true,
    }
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
    fn windows_are_bounded() {
        let frame = |window: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0];
        for (window, large) in [(0, false), (13 << 3, false), (13 << 3 | 1, true), (17 << 3, true)] {
            assert_eq!(needs_large_window(&frame(window)), large);
            assert!(undo(Compression::Zstd, &frame(window), 9, 10).is_ok(), "{window}");
        }
        assert!(undo(Compression::Zstd, &frame(18 << 3), 9, 10).is_err());
    }
}
