//! Any bytes as a tar stream: never a panic, never more content than there is, and the same entries however it is cut.

#![no_main]

use cfs_core::layers::{Fault, Head, Parser, Step};
use libfuzzer_sys::fuzz_target;

/// All heads of a stream that comes in pieces of `piece` bytes.
fn heads(stream: &[u8], piece: usize) -> Result<Vec<Head>, Fault> {
    let mut parser = Parser::new();
    let mut heads = Vec::new();
    let mut skip = 0;
    for mut input in stream.chunks(piece) {
        loop {
            let take = usize::try_from(skip).unwrap_or(usize::MAX).min(input.len());
            input = &input[take..];
            skip -= take as u64;
            if input.is_empty() {
                break;
            }
            match parser.step(&mut input)? {
                Step::More => break,
                Step::End => return Ok(heads),
                Step::Entry(head) => {
                    skip = head.stored;
                    heads.push(*head);
                }
            }
        }
    }
    if skip > 0 {
        return Err(parser.truncated(skip));
    }
    parser.finish().map(|()| heads)
}

fuzz_target!(|stream: &[u8]| {
    let whole = heads(stream, usize::MAX);
    assert_eq!(whole, heads(stream, 1), "in single bytes");
    assert_eq!(whole, heads(stream, 700), "in pieces");
    for head in whole.into_iter().flatten() {
        let stored: u64 = head
            .sparse
            .iter()
            .flat_map(|s| s.segments())
            .map(|(_, length)| length)
            .sum();
        assert!(head.sparse.is_none() || stored == head.stored);
        assert!(head.stored <= stream.len() as u64);
    }
});
