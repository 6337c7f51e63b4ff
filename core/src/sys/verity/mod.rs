//! fs-verity digests: computed here, enabled and measured by the kernel ([`enable`], [`measure`]).
//!
//! Invariant: [`Hasher`] gives, for any split of the same bytes into updates, what the kernel's `FS_IOC_MEASURE_VERITY`
//! gives for a file with these bytes, 4096-byte blocks and no salt (`Documentation/filesystems/fsverity.rst`). The
//! name of every object rests on it, so golden data pins it (`testdata/fsverity.tsv`).

mod kernel;

use std::io::{self, Read};

use sha2::{Digest, Sha256, Sha512};

use crate::ids::{Algorithm, ObjectId};
use crate::sys::sha256;

pub use kernel::{Unmeasured, enable, measure, why_unmeasured};

/// The Merkle tree's block size in bytes.
pub const BLOCK: usize = 4096;

/// Without optimization the instructions become function calls, and two at a time slower than one.
const TWO_AT_A_TIME: bool = !cfg!(debug_assertions) || cfg!(test);

/// The digest of one block, zero-padded to the longest algorithm.
type Hash = [u8; 64];

/// Computes an fs-verity digest from bytes as they come; memory is one block for each level of the tree.
#[derive(Clone, Debug)]
pub struct Hasher {
    algorithm: Algorithm,
    size: u64,
    /// Bytes of the last, incomplete data block.
    partial: Box<[u8; BLOCK]>,
    filled: usize,
    /// The last block, where its whole chunks are hashed already and nothing followed them.
    begun: Option<sha256::BegunBlock>,
    /// Hashes waiting at each level, lowest first; at most a block each.
    levels: Vec<Vec<u8>>,
}

impl Hasher {
    /// An empty file's hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            size: 0,
            partial: Box::new([0; BLOCK]),
            filled: 0,
            begun: None,
            levels: Vec::new(),
        }
    }

    /// Takes the next bytes. Whole blocks are hashed where they lie.
    pub fn update(&mut self, mut data: &[u8]) {
        self.size += data.len() as u64;
        self.begun = None;
        if self.filled > 0 {
            let take = data.len().min(BLOCK - self.filled);
            self.partial[self.filled..self.filled + take].copy_from_slice(&data[..take]);
            self.filled += take;
            data = &data[take..];
            if self.filled < BLOCK {
                return;
            }
            let hash = block_hash(self.algorithm, &*self.partial);
            self.filled = 0;
            self.push(0, &hash);
        }
        if self.algorithm == Algorithm::Sha256 && TWO_AT_A_TIME {
            data = self.update_pairs(data);
        }
        let mut blocks = data.chunks_exact(BLOCK);
        for block in &mut blocks {
            let hash = block_hash(self.algorithm, block);
            self.push(0, &hash);
        }
        let rest = blocks.remainder();
        self.partial[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    /// Takes the next bytes of a file that are the next bytes of a stream, too: of the tar that the file is in.
    pub fn update_with(&mut self, stream: &mut sha256::Stream, mut data: &[u8]) {
        if self.algorithm == Algorithm::Sha256 && TWO_AT_A_TIME {
            // What completes a block that the bytes before began.
            let (begun, rest) = data.split_at(data.len().min((BLOCK - self.filled) % BLOCK));
            stream.update(begun);
            self.update(begun);
            data = rest;
            for block in data.as_chunks::<BLOCK>().0 {
                let Some(begun) = stream.begin_beside(block.as_chunks().0) else {
                    break;
                };
                self.push(0, &padded(&begun.finish(block)));
                self.size += BLOCK as u64;
                data = &data[BLOCK..];
            }
        }
        if TWO_AT_A_TIME && self.algorithm == Algorithm::Sha256 && self.filled == 0 && !data.is_empty() {
            let (chunks, rest) = data.as_chunks::<64>();
            let begun = stream.begin_beside(chunks);
            stream.update(if begun.is_some() { rest } else { data });
            self.update(data);
            self.begun = begun;
            return;
        }
        stream.update(data);
        self.update(data);
    }

    /// Takes whole blocks two at a time, where the processor can; returns what is left.
    fn update_pairs<'d>(&mut self, data: &'d [u8]) -> &'d [u8] {
        let (blocks, _) = data.as_chunks::<BLOCK>();
        let (pairs, _) = blocks.as_chunks::<2>();
        for (done, [a, b]) in pairs.iter().enumerate() {
            let Some(hashes) = sha256::hash_pair([a, b]) else {
                return &data[2 * BLOCK * done..];
            };
            for hash in hashes {
                self.push(0, &padded(&hash));
            }
        }
        &data[2 * BLOCK * pairs.len()..]
    }

    /// Takes `count` zero bytes, as a hole of a sparse file has them: however many they are, a few hundred hashes.
    pub fn zeros(&mut self, mut count: u64) {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while self.filled > 0 && count > 0 {
            let take = (BLOCK - self.filled).min(usize::try_from(count).unwrap_or(BLOCK));
            self.update(&ZEROS[..take]);
            count -= take as u64;
        }
        let blocks = count / BLOCK as u64;
        if blocks > 0 {
            let hash = block_hash(self.algorithm, &ZEROS);
            self.push_run(0, &hash, blocks);
            self.size += blocks * BLOCK as u64;
        }
        let rest = usize::try_from(count % BLOCK as u64).unwrap_or(0);
        self.update(&ZEROS[..rest]);
    }

    /// The digest of everything since [`Hasher::new`] or the last `finish`; the hasher starts anew.
    pub fn finish(&mut self) -> ObjectId {
        if self.filled > 0 {
            self.partial[self.filled..].fill(0);
            let hash = match self.begun.take() {
                Some(begun) => padded(&begun.finish(&self.partial)),
                None => block_hash(self.algorithm, &*self.partial),
            };
            self.push(0, &hash);
        }
        let root = self.root();
        let id = descriptor_digest(self.algorithm, self.size, &root);
        self.size = 0;
        self.filled = 0;
        self.levels.iter_mut().for_each(Vec::clear);
        id
    }

    /// Adds a hash to a level. A full block goes up only when more arrives: a file of exactly 4096 or 128·4096 bytes
    /// would gain a level that it does not have otherwise.
    fn push(&mut self, level: usize, hash: &Hash) {
        if self.levels.len() == level {
            self.levels.push(Vec::with_capacity(BLOCK));
        }
        if self.levels[level].len() == BLOCK {
            let up = block_hash(self.algorithm, &self.levels[level]);
            self.levels[level].clear();
            self.push(level + 1, &up);
        }
        self.levels[level].extend_from_slice(&hash[..self.algorithm.len()]);
    }

    /// As [`Self::push`] of the same hash `count` times: blocks full of it have the same hash again.
    fn push_run(&mut self, level: usize, hash: &Hash, mut count: u64) {
        let len = self.algorithm.len();
        let each = BLOCK / len;
        while count > 0 {
            let filled = self.levels.get(level).map_or(0, Vec::len);
            // The last block stays here: it may be that no more arrives.
            let blocks = (count - 1) / each as u64;
            if blocks == 0 || !matches!(filled, 0 | BLOCK) {
                self.push(level, hash);
                count -= 1;
                continue;
            }
            if filled == BLOCK {
                let up = block_hash(self.algorithm, &self.levels[level]);
                self.levels[level].clear();
                self.push(level + 1, &up);
            } else if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(BLOCK));
            }
            let up = block_hash(self.algorithm, &hash[..len].repeat(each));
            self.push_run(level + 1, &up, blocks);
            count -= blocks * each as u64;
        }
    }

    /// The root hash; zeros for an empty file.
    fn root(&mut self) -> Hash {
        let mut level = 0;
        loop {
            let above = self.levels.iter().skip(level + 1).any(|l| !l.is_empty());
            let Some(here) = self.levels.get_mut(level) else {
                return [0; 64];
            };
            if !above && here.len() <= self.algorithm.len() {
                let mut root = [0; 64];
                root[..here.len()].copy_from_slice(here);
                return root;
            }
            here.resize(BLOCK, 0);
            let up = block_hash(self.algorithm, here);
            here.clear();
            self.push(level + 1, &up);
            level += 1;
        }
    }
}

fn padded(hash: &[u8; 32]) -> Hash {
    let mut padded = [0; 64];
    padded[..32].copy_from_slice(hash);
    padded
}

fn block_hash(algorithm: Algorithm, block: &[u8]) -> Hash {
    let mut hash = [0; 64];
    match algorithm {
        Algorithm::Sha256 => hash[..32].copy_from_slice(&Sha256::digest(block)),
        Algorithm::Sha512 => hash.copy_from_slice(&Sha512::digest(block)),
    }
    hash
}

/// The hash over `struct fsverity_descriptor`.
fn descriptor_digest(algorithm: Algorithm, size: u64, root: &Hash) -> ObjectId {
    let mut descriptor = [0; 256];
    descriptor[..4].copy_from_slice(&[1, algorithm.number(), 12, 0]);
    descriptor[8..16].copy_from_slice(&size.to_le_bytes());
    descriptor[16..80].copy_from_slice(root);
    let hash = block_hash(algorithm, &descriptor);
    ObjectId::from_bytes(algorithm, &hash[..algorithm.len()]).unwrap_or_else(|| unreachable!("length by algorithm"))
}

/// The digest of bytes that are all here.
pub fn hash(algorithm: Algorithm, data: &[u8]) -> ObjectId {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(data);
    hasher.finish()
}

/// The digest of everything that `source` still gives, and how many bytes that was.
///
/// # Errors
/// What reading gives.
pub fn hash_reader(algorithm: Algorithm, source: &mut dyn Read) -> io::Result<(ObjectId, u64)> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 64 * BLOCK];
    let mut size = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of the golden file's rows, by the name of their pattern.
    fn pattern(name: &str, size: usize) -> Vec<u8> {
        let line = |word: &str| [word.as_bytes(), &[b'_'; 60], b"\n"].concat();
        match name {
            "zeros" => vec![0; size],
            "foo.txt + 60 underscores + LF" => line("foo.txt"),
            "bar.txt + 60 underscores + LF" => line("bar.txt"),
            _ => (0..size)
                .map(|i| u8::try_from((7 * i + i / 251) % 256).unwrap())
                .collect(),
        }
    }

    fn in_pieces(algorithm: Algorithm, data: &[u8], piece: usize) -> ObjectId {
        let mut hasher = Hasher::new(algorithm);
        data.chunks(piece).for_each(|chunk| hasher.update(chunk));
        hasher.finish()
    }

    #[test]
    fn a_file_within_a_stream_is_hashed_like_each_alone_however_it_is_cut() {
        let data: Vec<u8> = (0..50_000_u32).map(|i| ((i * i) >> 9).to_le_bytes()[0]).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for (before, size, piece) in [
                (0, 50_000, 50_000),
                (512, 12_288, 5000),
                (512, 40_000, 4096),
                (13, 9000, 8192),
                (512, 513, 512),
                (512, 600, 4096),
                (512, 3000, 4096),
                (512, 3000, 100),
                (512, 4608, 4096),
                (512, 4607, 4096),
                (512, 9000, 4000),
            ] {
                let mut stream = sha256::Stream::default();
                stream.update(&data[..before]);
                let mut hasher = Hasher::new(algorithm);
                let file = &data[before..][..size - before];
                file.chunks(piece)
                    .for_each(|piece| hasher.update_with(&mut stream, piece));
                assert_eq!(hasher.finish(), hash(algorithm, file), "{before} {size} {piece}");
                assert_eq!(
                    stream.finish(),
                    <[u8; 32]>::from(Sha256::digest(&data[..size])),
                    "{before} {size} {piece}"
                );
            }
        }
    }

    #[test]
    fn digests_are_those_of_the_fsverity_tool() {
        let golden = include_str!("../../../../testdata/fsverity.tsv");
        let mut rows = 0;
        for row in golden.lines().skip(1) {
            let [name, size, sha256, sha512] = row.split('\t').collect::<Vec<_>>().try_into().unwrap();
            let data = pattern(name, size.parse().unwrap());
            assert_eq!(hash(Algorithm::Sha256, &data).to_hex(), sha256, "{name} {size}");
            assert_eq!(hash(Algorithm::Sha512, &data).to_hex(), sha512, "{name} {size}");
            rows += 1;
        }
        assert!(rows >= 20, "only {rows} rows of golden data");
    }

    #[test]
    fn blocks_hashed_in_pairs_give_the_same_digest() {
        for size in [4096, 8192, 8193, 12288, 128 * 4096, 129 * 4096, 131 * 4096 + 5] {
            let data = pattern("", size);
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let rest = hasher.update_pairs(&data);
            hasher.size += (data.len() - rest.len()) as u64;
            hasher.update(rest);
            assert_eq!(hasher.finish(), in_pieces(Algorithm::Sha256, &data, 4096), "{size}");
        }
    }

    #[test]
    fn the_split_into_updates_does_not_matter() {
        for size in [
            0,
            1,
            4095,
            4096,
            4097,
            8192,
            64 * 4096,
            64 * 4096 + 1,
            128 * 4096,
            128 * 4096 + 1,
        ] {
            let data = pattern("", size);
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let whole = hash(algorithm, &data);
                for piece in [511, 4096, 5000, 65536] {
                    assert_eq!(in_pieces(algorithm, &data, piece), whole, "{size} in pieces of {piece}");
                }
                let (read, length) = hash_reader(algorithm, &mut &data[..]).unwrap();
                assert_eq!((read, length), (whole, size as u64));
            }
        }
    }

    #[test]
    fn holes_hash_like_the_zeros_they_stand_for() {
        for (before, hole, after) in [
            (0, 4096, 0),
            (1, 4095, 1),
            (5, 9000, 5),
            (4096, 128 * 4096, 3),
            (0, 1 << 20, 0),
        ] {
            let mut data = pattern("", before);
            data.resize(before + hole, 0);
            data.extend(pattern("", after));
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&data[..before]);
            hasher.zeros(hole as u64);
            hasher.update(&data[before + hole..]);
            assert_eq!(
                hasher.finish(),
                hash(Algorithm::Sha256, &data),
                "{before} {hole} {after}"
            );
        }
    }

    #[test]
    fn long_holes_hash_like_their_zeros_at_every_edge_of_a_level() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let each = BLOCK / algorithm.len();
            for blocks in [
                each - 1,
                each,
                each + 1,
                2 * each,
                each * each - 1,
                each * each,
                each * each + 1,
            ] {
                for (before, after) in [(0, 0), (1, 1), (each - 1, 1), (each, each + 1)] {
                    let mut naive = Hasher::new(algorithm);
                    let mut hasher = Hasher::new(algorithm);
                    let (one, zero) = ([1; BLOCK], [0; BLOCK]);
                    for hashers in [&mut naive, &mut hasher] {
                        (0..before).for_each(|_| hashers.update(&one));
                    }
                    (0..blocks).for_each(|_| naive.update(&zero));
                    hasher.zeros((blocks * BLOCK) as u64);
                    for hashers in [&mut naive, &mut hasher] {
                        (0..after).for_each(|_| hashers.update(&one));
                    }
                    assert_eq!(
                        hasher.finish(),
                        naive.finish(),
                        "{algorithm:?} {before} {blocks} {after}"
                    );
                }
            }
        }
        // The largest that a tar may ask for.
        Hasher::new(Algorithm::Sha256).zeros(1 << 44);
    }

    #[test]
    fn a_finished_hasher_starts_anew() {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&pattern("", 700_000));
        hasher.finish();
        hasher.update(b"x");
        assert_eq!(hasher.finish(), hash(Algorithm::Sha256, b"x"));
        assert_eq!(hasher.finish(), hash(Algorithm::Sha256, b""));
    }
}
