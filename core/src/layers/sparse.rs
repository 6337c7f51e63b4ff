//! Sparse files: which parts of them the archive holds.

/// The largest file that a sparse entry may stand for: what ext4 can hold. Without a limit a header of 512 bytes
/// could ask for the hash of 2^63 zeros.
pub const MAX_SIZE: u64 = 1 << 44;

/// Offset and length of parts of a file, in bytes.
pub(super) type Segments = Vec<(u64, u64)>;

/// A file of which the archive holds only some segments, one after the other; the rest is zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Size of the expanded file in bytes.
    size: u64,
    /// Offset and length, ascending, not overlapping, within the size.
    segments: Segments,
}

impl Sparse {
    /// Checks a map against the file's size and the bytes that the archive holds of it.
    pub(super) fn new(size: u64, segments: Segments, stored: u64) -> Result<Self, String> {
        if size > MAX_SIZE {
            return Err(format!(
                "a sparse file of {size} bytes; at most {MAX_SIZE} are accepted"
            ));
        }
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for &(offset, length) in &segments {
            let segment_end = offset.checked_add(length).filter(|e| offset >= end && *e <= size);
            end = segment_end.ok_or("the sparse map is not ascending or leaves the file")?;
            sum += length;
        }
        if sum != stored {
            return Err(format!(
                "the sparse map stands for {sum} bytes, the archive holds {stored}"
            ));
        }
        Ok(Self { size, segments })
    }

    /// Size of the expanded file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Offset and length of each segment that the archive holds.
    pub fn segments(&self) -> &[(u64, u64)] {
        &self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_maps_that_fit_the_file_are_taken() {
        assert!(Sparse::new(100, vec![(0, 10), (50, 50), (100, 0)], 60).is_ok());
        assert!(Sparse::new(100, vec![], 0).is_ok());
        for (size, map, stored) in [
            (100, vec![(0, 10)], 11),
            (100, vec![(95, 10)], 10),
            (100, vec![(50, 10), (40, 10)], 20),
            (100, vec![(50, 10), (55, 10)], 20),
            (100, vec![(u64::MAX, 2)], 2),
            (u64::MAX, vec![], 0),
        ] {
            assert!(
                Sparse::new(size, map.clone(), stored).is_err(),
                "{size} {map:?} {stored}"
            );
        }
    }
}
