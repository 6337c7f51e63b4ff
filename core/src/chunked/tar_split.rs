//! tar-split: a tar without the content of its files, one JSON document a line.
//!
//! `{"type":2,"payload":BASE64}` are bytes of the tar as they are, `{"type":1,"name":…,"size":N}` stands for `N` bytes
//! of content. Which file a name means is not looked at: contents come in the order of the table, and a tar that was
//! put together wrongly does not have its diff_id.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::invalid;

/// The longest line: writers cut a tar's end into pieces of 1 MiB, and no header is as long.
const LINE: u64 = 8 << 20;

/// What comes next in the tar.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// These bytes.
    Raw(&'a [u8]),
    /// So many bytes of the next file, at least one.
    File(u64),
}

/// Reads a tar-split.
pub struct TarSplit<'p> {
    reader: BufReader<Box<dyn Read + Send + 'p>>,
    line: Vec<u8>,
    raw: Vec<u8>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
}

impl<'p> TarSplit<'p> {
    pub(super) fn new(unpacked: impl Read + Send + 'p) -> Self {
        Self {
            reader: BufReader::with_capacity(64 << 10, Box::new(unpacked)),
            line: Vec::new(),
            raw: Vec::new(),
        }
    }

    /// What comes next; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for what is no tar-split.
    pub fn item(&mut self) -> io::Result<Option<Item<'_>>> {
        loop {
            self.line.clear();
            (&mut self.reader).take(LINE).read_until(b'\n', &mut self.line)?;
            if self.line.is_empty() {
                return Ok(None);
            }
            if self.line.len() as u64 == LINE {
                return Err(invalid("the tar-split has a line that is too long"));
            }
            let entry: Entry<'_> =
                serde_json::from_slice(&self.line).map_err(|e| invalid(format!("the tar-split is malformed: {e}")))?;
            match (entry.kind, entry.size, entry.payload) {
                (1, 0, _) => {}
                (1, size, _) => return Ok(Some(Item::File(size))),
                (2, _, Some(payload)) => {
                    self.raw.clear();
                    BASE64_STANDARD
                        .decode_vec(payload.as_bytes(), &mut self.raw)
                        .map_err(|e| invalid(format!("the tar-split is malformed: {e}")))?;
                    if !self.raw.is_empty() {
                        return Ok(Some(Item::Raw(&self.raw)));
                    }
                }
                _ => return Err(invalid("the tar-split has an entry of an unknown kind")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> io::Result<Vec<String>> {
        let mut split = TarSplit::new(text.as_bytes());
        let mut items = Vec::new();
        while let Some(item) = split.item()? {
            items.push(format!("{item:?}"));
        }
        Ok(items)
    }

    #[test]
    fn bytes_and_files_come_in_order_and_empty_ones_do_not_come() {
        let text = "{\"type\":2,\"payload\":\"aGk=\",\"position\":0}\n{\"type\":1,\"name\":\"./\",\"payload\":null}\n\
                    {\"type\":1,\"name_raw\":\"/w==\",\"size\":7,\"payload\":\"AAAA\"}\n{\"type\":2,\"payload\":\"\"}";
        assert_eq!(items(text).unwrap(), ["Raw([104, 105])", "File(7)"]);
    }

    #[test]
    fn what_is_no_tar_split_is_refused() {
        for text in [
            "x",
            "{}",
            "{\"type\":3}",
            "{\"type\":2}",
            "{\"type\":2,\"payload\":\"?\"}",
            "{\"type\":1,\"size\":-1}",
            "{\"type\":1,\"size\":18446744073709551616}",
            "\n",
        ] {
            assert!(items(text).is_err(), "{text}");
        }
    }
}
