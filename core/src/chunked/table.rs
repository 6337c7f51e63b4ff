//! The table of contents: JSON, read entry by entry, so that memory is what is kept of an entry and no more,
//! nor is a string or number that is too long to mean anything read to its end.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::words::{self, Words};
use super::{BEST_RATIO, digest, invalid};

/// The most files and chunks of a table. Each takes some 60 bytes of memory.
pub const ENTRIES: usize = 1 << 20;

/// The kind of a chunk whose bytes are all zero.
const ZEROS: &str = "zeros";

/// A part of a file, which is a frame of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// Its frame in the blob.
    pub packed: Range<u64>,
    /// Its bytes.
    pub size: u64,
    /// All its bytes are zero.
    pub zeros: bool,
}

/// A file that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// SHA-256 of its content.
    pub digest: [u8; 32],
    /// Its size in bytes.
    pub size: u64,
    /// Its chunks, by their places in the table; at least one.
    pub chunks: Range<usize>,
}

/// What a layer holds, in the order of its tar.
#[derive(Debug, Default)]
pub struct Table {
    /// The files that have content.
    pub files: Vec<File>,
    /// Their chunks.
    pub chunks: Vec<Chunk>,
    /// How many names the layer has: folders, links and empty files as well.
    pub names: u64,
    /// SHA-256 of the packed tar-split.
    pub tar_split: [u8; 32],
}

impl Table {
    /// A file's chunks.
    pub fn chunks(&self, file: &File) -> &[Chunk] {
        &self.chunks[file.chunks.clone()]
    }

    /// Bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        self.files.capacity() * size_of::<File>() + self.chunks.capacity() * size_of::<Chunk>()
    }
}

/// Reads a table of a blob whose files lie below the byte `end`.
pub(super) fn read(unpacked: impl Read, end: u64) -> io::Result<Table> {
    let mut builder = Builder::new(end);
    let reader = BufReader::with_capacity(64 << 10, Words::new(unpacked, words::LIMIT));
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let result = Top(&mut builder)
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    result.map_err(|e| invalid(format!("the table of contents is refused: {e}")))?;
    builder
        .finish()
        .map_err(|why| invalid(format!("the table of contents is refused: {why}")))
}

/// An entry, as far as it matters here: everything else is in the tar's headers as well.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "or_null")]
    size: u64,
    #[serde(deserialize_with = "or_null")]
    digest: String,
    #[serde(deserialize_with = "or_null")]
    offset: u64,
    #[serde(deserialize_with = "or_null")]
    end_offset: u64,
    /// 0: all that is left of the file, as in stargz.
    #[serde(deserialize_with = "or_null")]
    chunk_size: u64,
    #[serde(deserialize_with = "or_null")]
    chunk_offset: u64,
    #[serde(deserialize_with = "or_null")]
    chunk_digest: String,
    #[serde(deserialize_with = "or_null")]
    chunk_type: String,
}

/// What is null is not there, as for the programs in Go that write such tables.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Puts entries together and sees that they can be true.
struct Builder {
    table: Table,
    end: u64,
    /// The last file's end in the blob, and how much of it its chunks have.
    file_end: u64,
    covered: u64,
    total: u64,
    version: bool,
    tar_split: Option<[u8; 32]>,
}

impl Builder {
    fn new(end: u64) -> Self {
        Self {
            table: Table::default(),
            end,
            file_end: 0,
            covered: 0,
            total: 0,
            version: false,
            tar_split: None,
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        self.table.names += u64::from(entry.kind != "chunk");
        match entry.kind.as_str() {
            "chunk" => self.chunk(entry),
            "reg" if entry.size > 0 => self.file(entry),
            _ => self.close(),
        }
    }

    fn file(&mut self, entry: &Entry) -> Result<(), String> {
        self.close()?;
        if entry.offset < self.file_end || entry.offset >= entry.end_offset || entry.end_offset > self.end {
            return Err(format!(
                "a file at {} to {} overlaps another one or lies outside the blob",
                entry.offset, entry.end_offset
            ));
        }
        self.total = self.total.saturating_add(entry.size);
        if self.total / BEST_RATIO > self.end {
            return Err(format!(
                "its files have {} bytes, which no blob of this size can hold",
                self.total
            ));
        }
        let digest = digest(&entry.digest).ok_or("a file has no SHA-256")?;
        let at = self.table.chunks.len();
        self.table.files.push(File {
            digest,
            size: entry.size,
            chunks: at..at,
        });
        self.file_end = entry.end_offset;
        self.covered = 0;
        match (entry.chunk_size, entry.chunk_digest.as_str()) {
            (0, "") => self.push(digest, entry.offset, entry.size, entry),
            _ => self.chunk(entry),
        }
    }

    fn chunk(&mut self, entry: &Entry) -> Result<(), String> {
        let file = self.table.files.last().ok_or("a chunk belongs to no file")?;
        let size = match entry.chunk_size {
            0 => file.size - self.covered,
            size => size,
        };
        let covered = self.covered.checked_add(size);
        let fits = size > 0 && covered.is_some_and(|covered| covered <= file.size);
        if entry.chunk_offset != self.covered || !fits {
            return Err(format!(
                "a chunk of {size} bytes at {} does not fit into its file",
                entry.chunk_offset
            ));
        }
        // Zeros are not fetched, so nothing has to be compared.
        let known = digest(&entry.chunk_digest).or((entry.chunk_type == ZEROS).then_some([0; 32]));
        let digest = known.ok_or("a chunk has no SHA-256")?;
        self.push(digest, entry.offset, size, entry)
    }

    fn push(&mut self, digest: [u8; 32], start: u64, size: u64, entry: &Entry) -> Result<(), String> {
        let zeros = match entry.chunk_type.as_str() {
            "" => false,
            ZEROS => true,
            other => return Err(format!("a chunk is of the unknown kind {other:?}")),
        };
        let Some(file) = self.table.files.last_mut() else {
            return Err("a chunk belongs to no file".into());
        };
        if let Some(before) = self.table.chunks[file.chunks.clone()].last_mut() {
            if start < before.packed.start || start > self.file_end {
                return Err(format!(
                    "a chunk at {start} overlaps another one or lies outside its file"
                ));
            }
            before.packed.end = start;
        }
        if self.table.chunks.len() == ENTRIES {
            return Err(format!("it has more than {ENTRIES} files and chunks"));
        }
        self.table.chunks.push(Chunk {
            digest,
            packed: start..self.file_end,
            size,
            zeros,
        });
        file.chunks.end += 1;
        self.covered += size;
        Ok(())
    }

    /// Ends the last file.
    fn close(&mut self) -> Result<(), String> {
        let Some(file) = self.table.files.last() else {
            return Ok(());
        };
        if file.size != self.covered {
            return Err(format!("a file of {} bytes has chunks of {}", file.size, self.covered));
        }
        let empty = |chunk: &Chunk| !chunk.zeros && chunk.packed.is_empty();
        match self.table.chunks(file).iter().any(empty) {
            true => Err("a chunk has no bytes in the blob".into()),
            false => Ok(()),
        }
    }

    fn finish(mut self) -> Result<Table, String> {
        self.close()?;
        if !self.version {
            return Err("it does not say that it is of version 1".into());
        }
        self.table.tar_split = self.tar_split.ok_or("it does not name its tar-split")?;
        self.table.files.shrink_to_fit();
        self.table.chunks.shrink_to_fit();
        Ok(self.table)
    }
}

/// The document.
struct Top<'b>(&'b mut Builder);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => self.0.version = map.next_value::<u64>()? == 1,
                "tarSplitDigest" => self.0.tar_split = digest(&map.next_value::<String>()?),
                "entries" => map.next_value_seed(Entries(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Its entries.
struct Entries<'b>(&'b mut Builder);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry>()? {
            self.0.entry(&entry).map_err(de::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn table(entries: &str) -> Result<Table, String> {
        let entries = entries.replace('A', A).replace('\'', "\"");
        let text = format!(r#"{{"version":1,"entries":[{entries}],"tarSplitDigest":"{A}","more":{{}}}}"#);
        read(text.as_bytes(), 1000).map_err(|e| e.to_string())
    }

    const WHOLE: &str = "{'type':'reg','name':'a','size':10,'digest':'A','offset':5,'endOffset':9}";

    #[test]
    fn files_have_their_chunks_and_everything_else_is_passed_over() {
        let table = table(&format!(
            "{{'type':'dir','name':'./','mode':493}},{{'type':'reg','name':'e'}},{WHOLE},
             {{'type':'reg','size':30,'digest':'A','offset':20,'endOffset':50,'chunkSize':10,'chunkDigest':'A'}},
             {{'type':'chunk','offset':30,'chunkSize':15,'chunkOffset':10,'chunkDigest':'A','chunkType':'zeros'}},
             {{'type':'chunk','offset':40,'chunkSize':5,'chunkOffset':25,'chunkDigest':'A'}},
             {{'type':'symlink','linkName':'a'}}"
        ))
        .unwrap();
        assert_eq!((table.files.len(), table.names), (2, 5));
        let chunks: Vec<_> = table
            .chunks(&table.files[1])
            .iter()
            .map(|c| (c.packed.clone(), c.size, c.zeros))
            .collect();
        assert_eq!(chunks, [(20..30, 10, false), (30..40, 15, true), (40..50, 5, false)]);
        assert_eq!(table.chunks(&table.files[0])[0].packed, 5..9);
    }

    #[test]
    fn what_go_leaves_out_may_be_null_and_the_last_chunk_may_be_what_is_left() {
        let table = table(
            "{'type':'dir','name':'./','size':null,'digest':null,'chunkType':null},
             {'type':'reg','size':30,'digest':'A','offset':20,'endOffset':50,'chunkSize':10,'chunkDigest':'A','chunkType':null},
             {'type':'chunk','offset':30,'chunkSize':5,'chunkOffset':10,'chunkDigest':'','chunkType':'zeros'},
             {'type':'chunk','offset':40,'chunkSize':0,'chunkOffset':15,'chunkDigest':'A'},
             {'type':'reg','size':7,'digest':'A','offset':50,'endOffset':60,'chunkSize':0,'chunkOffset':0,'chunkDigest':'A'}",
        )
        .unwrap();
        let sizes: Vec<_> = table.chunks.iter().map(|c| (c.size, c.zeros)).collect();
        assert_eq!(sizes, [(10, false), (5, true), (15, false), (7, false)]);
    }

    #[test]
    fn tables_that_cannot_be_true_are_refused() {
        let chunked = |first: &str, second: &str| {
            format!(
                "{{'type':'reg','size':30,'digest':'A','offset':20,'endOffset':50,'chunkDigest':'A',{first}}},
                 {{'type':'chunk','chunkDigest':'A',{second}}}"
            )
        };
        let fine = chunked("'chunkSize':10", "'offset':30,'chunkSize':20,'chunkOffset':10");
        assert!(table(&fine).is_ok());
        let bad = [
            ("overlaps", format!("{WHOLE},{WHOLE}")),
            (
                "overlaps",
                "{'type':'reg','size':1,'digest':'A','offset':9,'endOffset':9}".into(),
            ),
            (
                "overlaps",
                "{'type':'reg','size':1,'digest':'A','offset':999,'endOffset':1001}".into(),
            ),
            (
                "no blob of this size",
                "{'type':'reg','size':99999999,'digest':'A','offset':1,'endOffset':9}".into(),
            ),
            (
                "no SHA-256",
                "{'type':'reg','size':1,'digest':'x','offset':1,'endOffset':9}".into(),
            ),
            ("no SHA-256", "{'type':'reg','size':1,'offset':1,'endOffset':9}".into()),
            (
                "invalid value",
                "{'type':'reg','size':-1,'digest':'A','offset':1,'endOffset':9}".into(),
            ),
            (
                "invalid type",
                "{'type':'reg','size':1e30,'digest':'A','offset':1,'endOffset':9}".into(),
            ),
            (
                "belongs to no file",
                "{'type':'chunk','offset':1,'chunkSize':1,'chunkDigest':'A'}".into(),
            ),
            (
                "does not fit",
                chunked("'chunkSize':31", "'offset':30,'chunkSize':20,'chunkOffset':31"),
            ),
            (
                "does not fit",
                chunked("'chunkSize':10", "'offset':30,'chunkSize':20,'chunkOffset':9"),
            ),
            (
                "does not fit",
                chunked(
                    "'chunkSize':10",
                    "'offset':30,'chunkSize':18446744073709551615,'chunkOffset':10",
                ),
            ),
            (
                "has chunks of",
                chunked("'chunkSize':10", "'offset':30,'chunkSize':19,'chunkOffset':10"),
            ),
            (
                "overlaps",
                chunked("'chunkSize':10", "'offset':51,'chunkSize':20,'chunkOffset':10"),
            ),
            (
                "overlaps",
                chunked("'chunkSize':10", "'offset':19,'chunkSize':20,'chunkOffset':10"),
            ),
            (
                "no bytes in the blob",
                chunked("'chunkSize':10", "'offset':20,'chunkSize':20,'chunkOffset':10"),
            ),
            ("unknown kind", chunked("'chunkSize':10,'chunkType':'x'", "'offset':30")),
            ("does not fit", chunked("'chunkSize':0", "'offset':30")),
            (
                "does not fit",
                chunked("'chunkSize':10", "'offset':30,'chunkSize':0,'chunkOffset':9"),
            ),
        ];
        for (why, entries) in bad {
            let error = table(&entries).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        for text in [
            "",
            "[]",
            "{}",
            r#"{"version":2,"entries":[]}"#,
            r#"{"version":1,"entries":[]}"#,
            &format!(r#"{{"version":1,"entries":{{}},"tarSplitDigest":"{A}"}}"#),
            &format!(r#"{{"version":1,"entries":[],"tarSplitDigest":"{A}"}}x"#),
            &"[".repeat(100_000),
        ] {
            assert!(read(text.as_bytes(), 1000).is_err(), "{text:.40}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_table_that_was_tampered_with_is_refused_or_can_be_true(
            edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0..3_u8, b' '..b'~'), 1..8),
        ) {
            let entries = format!(
                "{WHOLE},{{'type':'reg','size':30,'digest':'A','offset':20,'endOffset':50,'chunkSize':10,'chunkDigest':'A'}},
                 {{'type':'chunk','offset':30,'chunkSize':20,'chunkOffset':10,'chunkDigest':'A','chunkType':'zeros'}}"
            );
            let entries = entries.replace('A', A).replace('\'', "\"");
            let mut text = format!(r#"{{"version":1,"entries":[{entries}],"tarSplitDigest":"{A}"}}"#).into_bytes();
            for (at, what, byte) in edits {
                let at = at.index(text.len());
                match what {
                    0 => text[at] = byte,
                    1 => text.insert(at, byte),
                    _ => drop(text.remove(at)),
                }
            }
            if let Ok(table) = read(&*text, 1000) {
                let mut end = 0;
                for file in &table.files {
                    let chunks = table.chunks(file);
                    assert_eq!(chunks.iter().map(|chunk| chunk.size).sum::<u64>(), file.size);
                    for chunk in chunks {
                        assert!(end <= chunk.packed.start && chunk.packed.start <= chunk.packed.end);
                        end = chunk.packed.end;
                    }
                }
                assert!(end <= 1000);
            }
        }
    }
}
