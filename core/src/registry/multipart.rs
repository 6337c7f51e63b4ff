//! `multipart/byteranges` (RFC 9110, 14.6): the parts of a blob in one answer.
//!
//! Invariant: what a part's head says is all that is believed of it; how many bytes follow is counted, never searched
//! for, and a head is no longer than [`HEAD_LINES`] lines of [`LINE`] bytes.

use std::io::{self, BufRead, Read};
use std::ops::Range;

const LINE: u64 = 2 << 10;
const HEAD_LINES: usize = 32;

/// Reads the parts one after the other.
pub(super) struct Multipart<R> {
    reader: R,
    delimiter: Vec<u8>,
}

impl<R: BufRead> Multipart<R> {
    pub(super) fn new(reader: R, boundary: &str) -> Self {
        let delimiter = format!("--{boundary}").into_bytes();
        Self { reader, delimiter }
    }

    /// Goes to the next part, the one before being read to its end: which bytes it has. `None` behind the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Range<u64>>> {
        for _ in 0..HEAD_LINES {
            let line = self.line()?;
            let Some(rest) = line.strip_prefix(&*self.delimiter) else {
                // The line break behind a part, or the preamble.
                continue;
            };
            return match rest {
                b"" => self.head().map(Some),
                b"--" => Ok(None),
                _ => Err(invalid("a part's boundary is malformed")),
            };
        }
        Err(invalid("there is no boundary where a part should begin"))
    }

    /// The part's bytes and what follows; the caller counts.
    pub(super) fn reader(&mut self) -> &mut R {
        &mut self.reader
    }

    fn head(&mut self) -> io::Result<Range<u64>> {
        let mut found = None;
        for _ in 0..HEAD_LINES {
            let line = self.line()?;
            if line.is_empty() {
                return found.ok_or_else(|| invalid("a part does not say which bytes it has"));
            }
            let text = String::from_utf8_lossy(&line);
            if let Some((name, value)) = text.split_once(':')
                && name.trim().eq_ignore_ascii_case("content-range")
            {
                let range = content_range(value).ok_or_else(|| invalid("a part's Content-Range is malformed"))?;
                found = Some(range);
            }
        }
        Err(invalid("a part's head is too long"))
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut self.reader).take(LINE).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the answer ends where a part should begin",
            ));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }
}

/// `bytes 100-199/200`: 100..200. The whole's size is not looked at.
pub(super) fn content_range(value: &str) -> Option<Range<u64>> {
    let (range, _) = value.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
    (first <= last).then(|| Some(first..last.checked_add(1)?))?
}

/// The boundary that `multipart/byteranges; boundary=…` names.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let usable = !value.is_empty() && value.len() <= 70;
        (name.trim().eq_ignore_ascii_case("boundary") && usable).then_some(value)
    })
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> io::Result<Vec<(Range<u64>, Vec<u8>)>> {
        let mut multipart = Multipart::new(text.as_bytes(), "xyz");
        let mut found = Vec::new();
        while let Some(range) = multipart.next()? {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
            multipart.reader().read_exact(&mut bytes)?;
            found.push((range, bytes));
        }
        Ok(found)
    }

    #[test]
    fn parts_are_read_whatever_is_between_them() {
        let text = "preamble\r\n--xyz\r\nContent-Type: a/b\r\nContent-Range: bytes 2-4/9\r\n\r\n--x\r\n\
                    --xyz\ncontent-range:bytes 7-7/*\n\nq\n--xyz--\n";
        assert_eq!(parts(text).unwrap(), [(2..5, b"--x".to_vec()), (7..8, b"q".to_vec())]);
    }

    #[test]
    fn what_is_no_part_is_an_error() {
        let long = format!("--xyz\r\n{}\r\n", "h: v\r\n".repeat(40));
        let line = format!("--xyz\r\nx: {}\r\n\r\n", "y".repeat(5000));
        for text in [
            "",
            "--xyz",
            "--xyz\r\n\r\n",
            "--xyz\r\nContent-Range: bytes 5-2/9\r\n\r\n",
            "--xyz\r\nContent-Range: bytes 0-18446744073709551615/9\r\n\r\n",
            "--xyzz\r\n",
            &long,
            &line,
            &"\n".repeat(100),
        ] {
            assert!(parts(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_boundary_is_taken_from_the_content_type_and_nothing_else_is_one() {
        assert_eq!(boundary("multipart/byteranges; boundary=\"a b\""), Some("a b"));
        assert_eq!(
            boundary("Multipart/ByteRanges;charset=x; Boundary=THIS_STRING"),
            Some("THIS_STRING")
        );
        for other in [
            "application/octet-stream",
            "multipart/byteranges",
            "multipart/byteranges; boundary=",
        ] {
            assert_eq!(boundary(other), None, "{other}");
        }
    }
}
