//! JSON whose words are bounded: whoever reads it may keep a whole string, key or number in memory.
//!
//! Invariant: what is handed on is what came, up to the first string or number of more than the limit; there it ends
//! with an error. Text that is no JSON is handed on as well: that it is none is found out by its reader.

use std::io::{self, Read};

use super::invalid;

/// Bytes of a string. The longest that means something is an extended attribute, 64 KiB in base64.
pub(super) const LIMIT: usize = 1 << 20;

/// A reader of JSON.
pub(super) struct Words<R> {
    reader: R,
    limit: usize,
    /// Bytes of the string or number so far.
    length: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    String,
    /// Behind a `\`.
    Escape,
}

impl<R: Read> Words<R> {
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Self {
            reader,
            limit,
            length: 0,
            state: State::Outside,
        }
    }

    /// Whether these bytes may follow.
    fn pass(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.length += 1;
            self.state = match (self.state, byte) {
                (State::Outside, b'"') => {
                    self.length = 0;
                    State::String
                }
                (State::Outside, b'{' | b'}' | b'[' | b']' | b',' | b':' | b' ' | b'\t' | b'\r' | b'\n') => {
                    self.length = 0;
                    State::Outside
                }
                (State::String, b'"') => {
                    self.length = 0;
                    State::Outside
                }
                (State::String, b'\\') => State::Escape,
                (State::Escape, _) => State::String,
                (state, _) => state,
            };
            if self.length > self.limit {
                return false;
            }
        }
        true
    }
}

impl<R: Read> Read for Words<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        match self.pass(&buffer[..read]) {
            true => Ok(read),
            false => Err(invalid(format!(
                "it has a string or number longer than {} bytes",
                self.limit
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    fn passes(text: &str) -> bool {
        let mut out = String::new();
        let read = Words::new(text.as_bytes(), 6).read_to_string(&mut out);
        assert!(read.is_err() || out == text, "{text}");
        read.is_ok()
    }

    #[test]
    fn each_string_and_number_counts_for_itself() {
        for fine in [
            r#"{"abcdef":["123456",123456, 123456 ,"\"\"\"","\\","",-1,true],"more":{}}"#,
            r#"  		        ["a" ]        "#,
            "",
            "[[[[[[[[[[[[]]]]]]]]]]]]",
        ] {
            assert!(passes(fine), "{fine}");
        }
        for bad in [
            r#"["1234567"]"#,
            r#"{"1234567":1}"#,
            "[1234567]",
            r#"["\"\"\"\""]"#,
            r#"["\\","\\\"[1,2]"]"#,
            "1234567",
        ] {
            assert!(!passes(bad), "{bad}");
        }
    }

    #[test]
    fn a_string_that_is_too_long_to_mean_anything_is_refused_before_its_end_is_read() {
        let before = [
            r#"{"version":1,"tarSplitDigest":""#,
            r#"{"version":1,"entries":[{"type":""#,
            r#"{"version":1,"entries":[{"digest":""#,
            r#"{"version":1,"entries":[{"name":""#,
            r#"{"version":1,"entries":[{"size":1"#,
            r#"{"version":1,"entries":[{""#,
            r#"{"version":1,"more":""#,
            r#"{""#,
        ];
        for before in before {
            let mut endless = io::repeat(b'1').take(64 << 20);
            let error = table::read(before.as_bytes().chain(&mut endless), 1000)
                .unwrap_err()
                .to_string();
            assert!(error.contains("longer than"), "{before}: {error}");
            let taken = (64 << 20) - endless.limit();
            assert!(taken <= 2 << 20, "{before}: {taken}");
        }
        // The longest that a file may have: extended attributes, in base64.
        let value = "x".repeat((64 << 10) / 3 * 4 + 4);
        let text = format!(r#"{{"entries":[{{"type":"reg","xattrs":{{"user.x":"{value}","user.y":"{value}"}}}}]}}"#);
        let error = table::read(text.as_bytes(), 1000).unwrap_err().to_string();
        assert!(error.contains("version 1"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn a_document_passes_where_none_of_its_strings_is_longer(
            words in proptest::collection::vec("[a-c\"\\\\\\[{,: ]{0,5}", 0..20),
        ) {
            let text = serde_json::to_string(&words).unwrap();
            let length = |word: &String| serde_json::to_string(word).unwrap().len() - 2;
            assert_eq!(passes(&text), words.iter().all(|word| length(word) <= 6), "{text}");
        }
    }
}
