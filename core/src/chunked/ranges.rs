//! Ranges of a blob, joined where reading along costs less than asking apart.

use std::ops::Range;

/// Joins ranges that are in order where no more than `gap` bytes lie between them.
pub fn coalesce(ranges: impl IntoIterator<Item = Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut joined = Vec::<Range<u64>>::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) <= gap => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Bytes in all of them.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_gaps_are_read_along_and_large_ones_are_not() {
        let ranges = [10..20, 20..25, 30..40, 51..60];
        assert_eq!(coalesce(ranges.clone(), 10), [10..40, 51..60]);
        assert_eq!(coalesce(ranges.clone(), 0), [10..25, 30..40, 51..60]);
        assert_eq!(coalesce(ranges.clone(), 11), [Range { start: 10, end: 60 }]);
        assert_eq!(total(&ranges), 34);
        assert!(coalesce([], 5).is_empty());
    }
}
