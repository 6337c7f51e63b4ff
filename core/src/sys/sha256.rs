//! Two SHA-256 hashes at a time, for fs-verity's blocks.
//!
//! The processor's SHA instructions take several cycles each and can start one every other cycle, so one hash alone
//! leaves them idle half the time. Blocks of a file are hashed independently: two of them fill the gaps. Where the
//! instructions are missing, [`hash_pair`] says so and the caller hashes one block after the other.

#[cfg(target_arch = "x86_64")]
pub(super) use x86::hash_pair;

/// The SHA-256 of each of two blocks; `None` where this processor cannot do it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn hash_pair(_: [&[u8; 4096]; 2]) -> Option<[[u8; 32]; 2]> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
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

    /// The SHA-256 of each of two blocks; `None` where this processor cannot do it.
    #[allow(unsafe_code, reason = "calls what needs the instructions that were looked for")]
    pub(in crate::sys) fn hash_pair(blocks: [&[u8; 4096]; 2]) -> Option<[[u8; 32]; 2]> {
        let able =
            is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1");
        // SAFETY: the processor has the features that the function is compiled for; sse2 is part of x86-64.
        able.then(|| unsafe { pair(blocks) })
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn pair([a, b]: [&[u8; 4096]; 2]) -> [[u8; 32]; 2] {
        let word = u32::cast_signed;
        let start = (
            _mm_set_epi32(word(0x6a09e667), word(0xbb67ae85), word(0x510e527f), word(0x9b05688c)),
            _mm_set_epi32(word(0x3c6ef372), word(0xa54ff53a), word(0x1f83d9ab), word(0x5be0cd19)),
        );
        let mut states = [start; 2];
        for (a, b) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0) {
            states = compress(states, [words(a), words(b)]);
        }
        // The end mark, and the length of 4096 bytes in bits.
        let mut last = [0; 64];
        last[0] = 0x80;
        last[56..].copy_from_slice(&(4096_u64 * 8).to_be_bytes());
        states = compress(states, [words(&last); 2]);
        [bytes(states[0]), bytes(states[1])]
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
            p = rounds(p, _mm_add_epi32(x[now], constants));
            q = rounds(q, _mm_add_epi32(y[now], constants));
        }
        let sum = |s: State, t: State| (_mm_add_epi32(s.0, t.0), _mm_add_epi32(s.1, t.1));
        [sum(a, p), sum(b, q)]
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn constants(round: usize) -> __m128i {
        let word = |at: usize| K[4 * round + at].cast_signed();
        _mm_setr_epi32(word(0), word(1), word(2), word(3))
    }

    /// Four rounds.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn rounds((abef, cdgh): State, words: __m128i) -> State {
        let cdgh_next = _mm_sha256rnds2_epu32(cdgh, abef, words);
        let abef_next = _mm_sha256rnds2_epu32(abef, cdgh_next, _mm_shuffle_epi32(words, 0x0e));
        (abef_next, cdgh_next)
    }

    /// The next four words of the message schedule.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn schedule([a, b, c, d]: [__m128i; 4]) -> __m128i {
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4));
        _mm_sha256msg2_epu32(sum, d)
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn bytes((abef, cdgh): State) -> [u8; 32] {
        let words = [
            _mm_extract_epi32(abef, 3),
            _mm_extract_epi32(abef, 2),
            _mm_extract_epi32(cdgh, 3),
            _mm_extract_epi32(cdgh, 2),
            _mm_extract_epi32(abef, 1),
            _mm_extract_epi32(abef, 0),
            _mm_extract_epi32(cdgh, 1),
            _mm_extract_epi32(cdgh, 0),
        ];
        let mut digest = [0; 32];
        for (to, word) in digest.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }
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
}
