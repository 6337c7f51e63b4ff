//! Advice to the kernel about memory.

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// The size of a huge page where they are smallest.
const HUGE: usize = 2 << 20;

/// Asks for huge pages behind a large buffer that is about to be filled: thousands of page faults become a few. Where
/// the kernel has none, or none to spare, nothing happens.
pub fn prefer_huge_pages<T>(buffer: &Vec<T>) {
    let begin = buffer.as_ptr().addr();
    let end = begin.saturating_add(buffer.capacity().saturating_mul(size_of::<T>()));
    let (first, last) = (begin.next_multiple_of(HUGE), end / HUGE * HUGE);
    if first < last {
        advise(buffer.as_ptr().with_addr(first).cast(), last - first);
    }
}

#[allow(
    unsafe_code,
    reason = "madvise takes a pointer; the kernel reads and writes nothing behind it"
)]
fn advise(at: *const c_void, length: usize) {
    // SAFETY: the range lies within one allocation, and this advice changes no content and unmaps nothing.
    let _ = unsafe { madvise(at.cast_mut(), length, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_size_is_as_usable_as_before() {
        for size in [0, 1, HUGE - 1, HUGE, 5 * HUGE + 17] {
            let mut buffer: Vec<u16> = Vec::with_capacity(size);
            prefer_huge_pages(&buffer);
            buffer.resize(size, 7);
            assert!(buffer.iter().all(|&n| n == 7));
        }
    }
}
