//! SHA-256 two at a time: fs-verity's blocks beside each other, or a stream beside the blocks of a file in it.
//!
//! The processor's SHA instructions take several cycles each and can start one every other cycle, so one hash alone
//! leaves them idle half the time. Blocks of a file are hashed independently: two of them fill the gaps. A file in a
//! tar is hashed twice, as part of the tar and as an object: there the second hash fills the gaps of the first, and
//! both share the message schedule. Where the instructions are missing, the functions say so and the caller hashes one
//! after the other.

use sha2::block_api::compress256;

#[cfg(target_arch = "x86_64")]
use x86::begin_beside;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::hash_pair;

/// The SHA-256 of each of two blocks; `None` where this processor cannot do it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn hash_pair(_: [&[u8; 4096]; 2]) -> Option<[[u8; 32]; 2]> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn begin_beside(_: &mut [u32; 8], _: &[[u8; 64]]) -> Option<[u32; 8]> {
    None
}

/// The state of an empty message (FIPS 180-4, 5.3.3).
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The SHA-256 of bytes as they come; memory is one chunk of 64 bytes.
#[derive(Clone, Debug)]
pub struct Stream {
    state: [u32; 8],
    length: u64,
    /// The last, incomplete chunk: the first `length % 64` bytes.
    partial: [u8; 64],
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            state: START,
            length: 0,
            partial: [0; 64],
        }
    }
}

impl Stream {
    fn filled(&self) -> usize {
        (self.length % 64) as usize
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut data: &[u8]) {
        let filled = self.filled();
        self.length += data.len() as u64;
        if filled > 0 {
            let take = data.len().min(64 - filled);
            self.partial[filled..filled + take].copy_from_slice(&data[..take]);
            data = &data[take..];
            if filled + take < 64 {
                return;
            }
            compress256(&mut self.state, &[self.partial]);
        }
        let (chunks, rest) = data.as_chunks::<64>();
        compress256(&mut self.state, chunks);
        self.partial[..rest.len()].copy_from_slice(rest);
    }

    /// Takes whole chunks and returns a block that begins with them (or is them, all 64); `None`, and nothing is
    /// taken, where that is not to be had at once: the stream is not at a multiple of 64 bytes, or the processor lacks
    /// the instructions.
    pub(super) fn begin_beside(&mut self, chunks: &[[u8; 64]]) -> Option<BegunBlock> {
        if self.filled() > 0 {
            return None;
        }
        let state = begin_beside(&mut self.state, chunks)?;
        self.length += chunks.as_flattened().len() as u64;
        Some(BegunBlock {
            state,
            chunks: chunks.len(),
        })
    }

    /// The digest of everything that was taken.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8);
        let filled = self.filled();
        let zeros = (55 + 64 - filled) % 64;
        self.update(&[&[0x80][..], &[0; 63][..zeros], &bits.to_be_bytes()].concat());
        bytes(self.state)
    }
}

/// A block of 4096 bytes of which the first chunks are hashed.
#[derive(Clone, Debug)]
pub(super) struct BegunBlock {
    state: [u32; 8],
    chunks: usize,
}

impl BegunBlock {
    /// The SHA-256 of the block, whose first chunks are those that it was begun with.
    pub(super) fn finish(mut self, block: &[u8; 4096]) -> [u8; 32] {
        compress256(&mut self.state, &block.as_chunks::<64>().0[self.chunks..]);
        compress256(&mut self.state, &[END]);
        bytes(self.state)
    }
}

/// The end mark and the length, in bits, of a message of 4096 bytes.
const END: [u8; 64] = {
    let mut end = [0; 64];
    end[0] = 0x80;
    end[62] = 0x80;
    end
};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{END, bytes};
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x,
        _mm_setr_epi32, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32,
    };

    /// Round constants (FIPS 180-4, 4.2.2).
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    /// A hash's state in the order of the instructions: A B E F and C D G H, from the highest word down.
    type State = (__m128i, __m128i);

    fn able() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
    }

    /// The SHA-256 of each of two blocks; `None` where this processor cannot do it.
    #[allow(unsafe_code, reason = "calls what needs the instructions that were looked for")]
    pub(in crate::sys) fn hash_pair(blocks: [&[u8; 4096]; 2]) -> Option<[[u8; 32]; 2]> {
        // SAFETY: the processor has the features that the function is compiled for; sse2 is part of x86-64.
        able().then(|| unsafe { pair(blocks) })
    }

    /// Takes chunks into a stream's state and returns that of a block which begins with them; `None`, and the state is
    /// as it was, where this processor cannot do it.
    #[allow(unsafe_code, reason = "calls what needs the instructions that were looked for")]
    pub(super) fn begin_beside(stream: &mut [u32; 8], chunks: &[[u8; 64]]) -> Option<[u32; 8]> {
        // SAFETY: as above.
        able().then(|| unsafe { both(stream, chunks) })
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn both(stream: &mut [u32; 8], chunks: &[[u8; 64]]) -> [u32; 8] {
        let mut states = [load(stream), load(&super::START)];
        for chunk in chunks {
            states = compress_shared(states, words(chunk));
        }
        *stream = store(states[0]);
        store(states[1])
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn pair([a, b]: [&[u8; 4096]; 2]) -> [[u8; 32]; 2] {
        let mut states = [load(&super::START); 2];
        for (a, b) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0) {
            states = compress(states, [words(a), words(b)]);
        }
        states = compress(states, [words(&END); 2]);
        states.map(|state| bytes(store(state)))
    }

    /// The sixteen big-endian words of a chunk.
    #[allow(unsafe_code, reason = "loads from an array of the right length")]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn words(chunk: &[u8; 64]) -> [__m128i; 4] {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let at = chunk.as_ptr().cast::<__m128i>();
        // SAFETY: the four unaligned loads of 16 bytes lie within the chunk's 64.
        let raw = unsafe {
            [
                _mm_loadu_si128(at),
                _mm_loadu_si128(at.add(1)),
                _mm_loadu_si128(at.add(2)),
                _mm_loadu_si128(at.add(3)),
            ]
        };
        [
            _mm_shuffle_epi8(raw[0], swap),
            _mm_shuffle_epi8(raw[1], swap),
            _mm_shuffle_epi8(raw[2], swap),
            _mm_shuffle_epi8(raw[3], swap),
        ]
    }

    /// One chunk into each of two states, four rounds of one and then of the other.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn compress([a, b]: [State; 2], [mut x, mut y]: [[__m128i; 4]; 2]) -> [State; 2] {
        let (mut p, mut q) = (a, b);
        for round in 0..16 {
            if round >= 4 {
                x = [x[1], x[2], x[3], schedule(x)];
                y = [y[1], y[2], y[3], schedule(y)];
            }
            let now = round.min(3);
            let constants = constants(round);
            let (x, y) = (_mm_add_epi32(x[now], constants), _mm_add_epi32(y[now], constants));
            p = rounds(p, x, _mm_shuffle_epi32(x, 0x0e));
            q = rounds(q, y, _mm_shuffle_epi32(y, 0x0e));
        }
        [sum(a, p), sum(b, q)]
    }

    /// One chunk into both states: the message schedule is computed once.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn compress_shared([a, b]: [State; 2], mut x: [__m128i; 4]) -> [State; 2] {
        let (mut p, mut q) = (a, b);
        for round in 0..16 {
            if round >= 4 {
                x = [x[1], x[2], x[3], schedule(x)];
            }
            let words = _mm_add_epi32(x[round.min(3)], constants(round));
            let high = _mm_shuffle_epi32(words, 0x0e);
            p = rounds(p, words, high);
            q = rounds(q, words, high);
        }
        [sum(a, p), sum(b, q)]
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn sum(s: State, t: State) -> State {
        (_mm_add_epi32(s.0, t.0), _mm_add_epi32(s.1, t.1))
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn constants(round: usize) -> __m128i {
        let word = |at: usize| K[4 * round + at].cast_signed();
        _mm_setr_epi32(word(0), word(1), word(2), word(3))
    }

    /// Four rounds; `high` is the upper half of `words`.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn rounds((abef, cdgh): State, words: __m128i, high: __m128i) -> State {
        let cdgh_next = _mm_sha256rnds2_epu32(cdgh, abef, words);
        let abef_next = _mm_sha256rnds2_epu32(abef, cdgh_next, high);
        (abef_next, cdgh_next)
    }

    /// The next four words of the message schedule.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn schedule([a, b, c, d]: [__m128i; 4]) -> __m128i {
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4));
        _mm_sha256msg2_epu32(sum, d)
    }

    /// A state as the instructions want it.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn load(state: &[u32; 8]) -> State {
        let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
        (_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h))
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn store((abef, cdgh): State) -> [u32; 8] {
        [
            _mm_extract_epi32(abef, 3),
            _mm_extract_epi32(abef, 2),
            _mm_extract_epi32(cdgh, 3),
            _mm_extract_epi32(cdgh, 2),
            _mm_extract_epi32(abef, 1),
            _mm_extract_epi32(abef, 0),
            _mm_extract_epi32(cdgh, 1),
            _mm_extract_epi32(cdgh, 0),
        ]
        .map(i32::cast_unsigned)
    }
}

/// The digest that a final state is.
fn bytes(state: [u32; 8]) -> [u8; 32] {
    let mut digest = [0; 32];
    for (to, word) in digest.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn pairs_hash_like_each_alone() {
        let block = |seed: u32| -> [u8; 4096] {
            let mut state = seed;
            std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
        };
        for seed in 0..20 {
            let (a, b) = (block(seed), block(seed + 1000));
            let Some(pair) = hash_pair([&a, &b]) else {
                println!("not tested: this processor has no SHA instructions");
                return;
            };
            let alone = [a, b].map(|block| <[u8; 32]>::from(Sha256::digest(block)));
            assert_eq!(pair, alone, "{seed}");
        }
    }

    #[test]
    fn a_stream_hashes_alike_however_it_is_cut_and_whatever_goes_beside() {
        let data: Vec<u8> = (0..40_000_u32)
            .map(|i| i.wrapping_mul(i >> 3).to_le_bytes()[0])
            .collect();
        for end in [0, 1, 55, 56, 63, 64, 119, 120, 4096, 39_999, 40_000] {
            for piece in [1, 63, 64, 65, 4096, 5000] {
                let mut stream = Stream::default();
                data[..end].chunks(piece).for_each(|piece| stream.update(piece));
                assert_eq!(
                    stream.finish(),
                    <[u8; 32]>::from(Sha256::digest(&data[..end])),
                    "{end} {piece}"
                );
            }
        }
        let blocks = data.as_chunks::<4096>().0;
        for before in [0, 64, 512, 13] {
            let mut stream = Stream::default();
            stream.update(&data[..before]);
            for block in blocks {
                match stream.begin_beside(block.as_chunks().0) {
                    Some(begun) => assert_eq!(begun.finish(block), <[u8; 32]>::from(Sha256::digest(block))),
                    None => stream.update(block),
                }
            }
            let whole = [&data[..before], blocks.as_flattened()].concat();
            assert_eq!(stream.finish(), <[u8; 32]>::from(Sha256::digest(&whole)), "{before}");
        }
    }
}
