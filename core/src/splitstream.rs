//! Split streams: a file whose large parts are objects (composefs-rs' format, stable since 0.8).
//!
//! ```text
//! 0   "SplitStream" 0 | u16 flags | u8 algorithm | u8 log2 block | range info
//! 32  ranges: stream_refs object_refs stream named_refs | u64 content type | u64 size of the whole
//! ```
//! A range is two u64, start and end in the file; all numbers are little-endian. `stream` is zstd of chunks: an i64
//! that is negative for that many literal bytes behind it, else an index into `object_refs`. `named_refs` is zstd of
//! `INDEX:NAME\0` with an index into `stream_refs`.
//!
//! Invariant: the writer holds no more of a stream than one zstd block and its references (a digest for each object).
//! Literal bytes are cut into chunks only at multiples of 512, so that readers which want a tar header or an entry's
//! padding in one chunk find it there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use crate::ids::{Algorithm, ObjectId};

/// What a stream is of: 8 letters, as composefs-oci has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentType(u64);

impl ContentType {
    /// A layer's tar.
    pub const LAYER: Self = Self(u64::from_le_bytes(*b"ocilayer"));
    /// An image config.
    pub const CONFIG: Self = Self(u64::from_le_bytes(*b"ociconfg"));
    /// An image manifest.
    pub const MANIFEST: Self = Self(u64::from_le_bytes(*b"ocimanif"));
    /// Any other blob.
    pub const BLOB: Self = Self(u64::from_le_bytes(*b"oci_blob"));
}

const MAGIC: &[u8; 12] = b"SplitStream\0";
const HEADER: u64 = 32;
const INFO: u64 = 80;
const HEAD: [u8; 112] = [0; 112];
/// Literal bytes are written out when there are this many, at the next multiple of 512.
const CHUNK: usize = 64 << 10;
/// The longest list of references or names that is read, in bytes: 32 million objects.
const MAX_SECTION: u64 = 1 << 30;

/// Writes a split stream to a file.
pub struct Writer<W: Write + Seek> {
    encoder: zstd::stream::write::Encoder<'static, W>,
    algorithm: Algorithm,
    content_type: ContentType,
    literal: Vec<u8>,
    written: u64,
    size: u64,
    object_refs: Vec<u8>,
    stream_refs: Vec<ObjectId>,
    names: BTreeMap<String, usize>,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts at the current end of `out`, which is empty.
    ///
    /// # Errors
    /// What writing gives.
    pub fn new(mut out: W, algorithm: Algorithm, content_type: ContentType) -> io::Result<Self> {
        out.write_all(&HEAD)?;
        Ok(Self {
            encoder: zstd::stream::write::Encoder::new(out, 1)?,
            algorithm,
            content_type,
            literal: Vec::with_capacity(2 * CHUNK),
            written: 0,
            size: 0,
            object_refs: Vec::new(),
            stream_refs: Vec::new(),
            names: BTreeMap::new(),
        })
    }

    /// Adds literal bytes.
    ///
    /// # Errors
    /// What writing gives.
    pub fn literal(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let take = bytes.len().min(2 * CHUNK - self.literal.len());
            self.literal.extend_from_slice(&bytes[..take]);
            self.size += take as u64;
            bytes = &bytes[take..];
            if self.literal.len() >= CHUNK {
                let beyond = usize::try_from(self.size % 512).unwrap_or(0);
                self.flush(self.literal.len() - beyond)?;
            }
        }
        Ok(())
    }

    /// Adds an object of `size` bytes.
    ///
    /// # Errors
    /// What writing gives.
    pub fn object(&mut self, id: &ObjectId, size: u64) -> io::Result<()> {
        self.flush(self.literal.len())?;
        let index = self.object_refs.len() / self.algorithm.len();
        self.object_refs.extend_from_slice(id.as_bytes());
        self.size += size;
        self.encoder.write_all(&(index as u64).to_le_bytes())
    }

    /// Names another stream, image or object that this one needs.
    pub fn name(&mut self, name: String, id: &ObjectId) {
        let index = self
            .stream_refs
            .iter()
            .position(|other| other == id)
            .unwrap_or_else(|| {
                self.stream_refs.push(*id);
                self.stream_refs.len() - 1
            });
        self.names.insert(name, index);
    }

    /// Writes everything that is left; gives back the file.
    ///
    /// # Errors
    /// What writing gives.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush(self.literal.len())?;
        let mut out = self.encoder.finish()?;
        let mut sections = [(0, 0); 4];
        let mut at = out.stream_position()?;
        sections[2] = (HEADER + INFO, at);
        let stream_refs: Vec<u8> = self.stream_refs.iter().flat_map(|id| id.as_bytes().to_vec()).collect();
        let mut names = Vec::new();
        for (name, index) in &self.names {
            write!(names, "{index}:{name}\0")?;
        }
        let names = zstd::bulk::compress(&names, 1)?;
        for (section, bytes) in [(0, &stream_refs), (1, &self.object_refs), (3, &names)] {
            out.write_all(bytes)?;
            sections[section] = (at, at + bytes.len() as u64);
            at += bytes.len() as u64;
        }
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&[0, 0, self.algorithm.number(), 12]);
        for (start, end) in [[(HEADER, HEADER + INFO)].as_slice(), &sections].concat() {
            head.extend_from_slice(&start.to_le_bytes());
            head.extend_from_slice(&end.to_le_bytes());
        }
        head.extend_from_slice(&self.content_type.0.to_le_bytes());
        head.extend_from_slice(&self.size.to_le_bytes());
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&head)?;
        Ok(out)
    }

    fn flush(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let header = -i64::try_from(count).map_err(io::Error::other)?;
        self.encoder.write_all(&header.to_le_bytes())?;
        self.encoder.write_all(&self.literal[..count])?;
        self.written += count as u64;
        self.literal.drain(..count);
        Ok(())
    }
}

/// A part of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// These bytes.
    Literal(&'a [u8]),
    /// This object's bytes, all of them.
    Object(ObjectId),
}

/// Reads a split stream from a file.
pub struct Reader {
    stream: zstd::stream::read::Decoder<'static, BufReader<io::Take<File>>>,
    content_type: ContentType,
    size: u64,
    object_refs: Vec<ObjectId>,
    names: BTreeMap<String, ObjectId>,
    buffer: Vec<u8>,
    /// Literal bytes of the current chunk that were not given out.
    left: u64,
}

impl Reader {
    /// Reads everything but the stream itself.
    ///
    /// # Errors
    /// What reading gives; `InvalidData` for a file that is no split stream of this algorithm.
    pub fn new(mut file: File, algorithm: Algorithm) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let header = section(&file, (0, HEADER), length)?;
        // bootc before 1.16 wrote the header's fields in another order.
        let (magic, rest, info) = match header.strip_prefix(MAGIC.as_slice()) {
            Some(rest) => (MAGIC.as_slice(), [rest[2], rest[3]], &header[16..32]),
            None => (&header[18..30], [header[30], header[31]], &header[..16]),
        };
        if magic != MAGIC {
            return Err(invalid("not a split stream, or of a newer version"));
        }
        if rest != [algorithm.number(), 12] {
            return Err(invalid("a split stream of another digest algorithm"));
        }
        let info = section(&file, range(info, 0), length)?;
        if (info.len() as u64) < INFO {
            return Err(invalid("the split stream's table is too short"));
        }
        let refs = |at| section(&file, range(&info, at), length).and_then(|raw| references(&raw, algorithm));
        let (stream_refs, object_refs) = (refs(0)?, refs(16)?);
        let names = names(&section(&file, range(&info, 48), length)?, &stream_refs)?;
        let (start, end) = range(&info, 32);
        if start > end || end > length {
            return Err(invalid("the split stream is truncated"));
        }
        file.seek(SeekFrom::Start(start))?;
        let mut stream = zstd::stream::read::Decoder::new(file.take(end - start))?;
        stream.window_log_max(27)?;
        Ok(Self {
            stream,
            content_type: ContentType(number(&info, 64)),
            size: number(&info, 72),
            object_refs,
            names,
            buffer: Vec::new(),
            left: 0,
        })
    }

    /// What it is a stream of.
    pub fn content_type(&self) -> ContentType {
        self.content_type
    }

    /// Size of the whole in bytes, objects included; what the file says.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All objects that the stream needs, in the order of first use; some may be there twice.
    pub fn object_refs(&self) -> &[ObjectId] {
        &self.object_refs
    }

    /// Other streams, images or objects that the stream needs, by name.
    pub fn names(&self) -> &BTreeMap<String, ObjectId> {
        &self.names
    }

    /// The next part; `None` at the end. Long runs of literal bytes come in several parts.
    ///
    /// # Errors
    /// What reading gives; `InvalidData` for a broken stream.
    pub fn part(&mut self) -> io::Result<Option<Part<'_>>> {
        while self.left == 0 {
            let mut raw = [0; 8];
            if !read_all_or_nothing(&mut self.stream, &mut raw)? {
                return Ok(None);
            }
            match i64::from_le_bytes(raw) {
                count if count < 0 => self.left = count.unsigned_abs(),
                index => {
                    let object = usize::try_from(index)
                        .ok()
                        .and_then(|index| self.object_refs.get(index));
                    return object
                        .map(|id| Some(Part::Object(*id)))
                        .ok_or_else(|| invalid("an object that is not listed"));
                }
            }
        }
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK);
        self.buffer.resize(take, 0);
        self.stream.read_exact(&mut self.buffer)?;
        self.left -= take as u64;
        Ok(Some(Part::Literal(&self.buffer)))
    }
}

fn read_all_or_nothing(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(invalid("the split stream ends inside a chunk")),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn section(file: &File, (start, end): (u64, u64), length: u64) -> io::Result<Vec<u8>> {
    let size = end
        .checked_sub(start)
        .filter(|size| end <= length && *size <= MAX_SECTION);
    let size = size
        .and_then(|s| usize::try_from(s).ok())
        .ok_or_else(|| invalid("the split stream is truncated"))?;
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, start)?;
    Ok(buffer)
}

fn references(raw: &[u8], algorithm: Algorithm) -> io::Result<Vec<ObjectId>> {
    let digests = raw.chunks_exact(algorithm.len());
    if !digests.remainder().is_empty() {
        return Err(invalid("the list of references is cut"));
    }
    Ok(digests.filter_map(|raw| ObjectId::from_bytes(algorithm, raw)).collect())
}

fn names(raw: &[u8], stream_refs: &[ObjectId]) -> io::Result<BTreeMap<String, ObjectId>> {
    let mut text = Vec::new();
    zstd::stream::read::Decoder::new(raw)?
        .take(MAX_SECTION)
        .read_to_end(&mut text)?;
    let mut names = BTreeMap::new();
    for item in text.split_inclusive(|byte| *byte == 0) {
        let item = item.strip_suffix(b"\0").and_then(|item| std::str::from_utf8(item).ok());
        let named = item.and_then(|item| item.split_once(':')).and_then(|(index, name)| {
            let id = stream_refs.get(index.parse::<usize>().ok()?)?;
            Some((name.to_owned(), *id))
        });
        names.extend([named.ok_or_else(|| invalid("the list of names is malformed"))?]);
    }
    Ok(names)
}

fn range(table: &[u8], at: usize) -> (u64, u64) {
    (number(table, at), number(table, at + 8))
}

/// A number that lies within the table.
fn number(table: &[u8], at: usize) -> u64 {
    table
        .get(at..at + 8)
        .and_then(|raw| raw.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::verity;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    /// The parts of a stream, literal ones joined.
    fn parts(mut reader: Reader) -> io::Result<Vec<(Vec<u8>, Option<ObjectId>)>> {
        let mut parts = vec![(Vec::new(), None)];
        while let Some(part) = reader.part()? {
            match (part, parts.last_mut().unwrap()) {
                (Part::Literal(bytes), last) => last.0.extend_from_slice(bytes),
                (Part::Object(id), last) => {
                    last.1 = Some(id);
                    parts.push((Vec::new(), None));
                }
            }
        }
        Ok(parts)
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Cursor::new(Vec::new()), Algorithm::Sha256, ContentType::LAYER).unwrap();
        let [a, b] = [b"a", b"b"].map(|data| verity::hash(Algorithm::Sha256, data));
        writer.literal(&[1; 700]).unwrap();
        writer.object(&a, 1000).unwrap();
        writer.literal(&vec![2; 300_000]).unwrap();
        writer.object(&b, 2000).unwrap();
        writer.object(&a, 1000).unwrap();
        writer.name("layer".into(), &b);
        writer.name("image".into(), &b);
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn what_is_written_is_read_and_composefs_rs_reads_it_as_well() {
        let bytes = sample();
        let reader = Reader::new(file(&bytes), Algorithm::Sha256).unwrap();
        assert_eq!((reader.content_type(), reader.size()), (ContentType::LAYER, 304_700));
        assert_eq!((reader.object_refs().len(), reader.names().len()), (3, 2));
        let b = verity::hash(Algorithm::Sha256, b"b");
        assert!(reader.names().values().all(|id| *id == b));
        let ours = parts(reader).unwrap();
        let sizes: Vec<_> = ours.iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(sizes, [700, 300_000, 0, 0]);

        let mut theirs = composefs::splitstream::SplitStreamReader::<composefs::fsverity::Sha256HashValue>::new(
            file(&bytes),
            Some(u64::from_le_bytes(*b"ocilayer")),
        )
        .unwrap();
        assert_eq!(theirs.total_size, 304_700);
        let mut literal = 0;
        theirs
            .for_each_chunk(|chunk| {
                if let composefs::splitstream::SplitStreamData::Inline(bytes) = chunk {
                    literal += bytes.len();
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(literal, 300_700);
    }

    #[test]
    fn streams_of_older_bootc_are_read() {
        let mut bytes = sample();
        let header: Vec<u8> = bytes[..32].to_vec();
        bytes[..16].copy_from_slice(&header[16..]);
        bytes[16..18].copy_from_slice(&header[12..14]);
        bytes[18..30].copy_from_slice(&header[..12]);
        bytes[30..32].copy_from_slice(&header[14..16]);
        assert_eq!(
            parts(Reader::new(file(&bytes), Algorithm::Sha256).unwrap())
                .unwrap()
                .len(),
            4
        );
    }

    #[test]
    fn streams_that_are_none_are_refused() {
        let bytes = sample();
        assert!(Reader::new(file(&bytes), Algorithm::Sha512).is_err());
        for end in (0..bytes.len()).step_by(11) {
            let read = Reader::new(file(&bytes[..end]), Algorithm::Sha256).and_then(parts);
            assert!(read.is_err(), "cut at {end}");
        }
        for text in [&b""[..], b"SplitStream", &[0; 200]] {
            assert!(Reader::new(file(text), Algorithm::Sha256).is_err());
        }
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_another_stream_and_never_a_panic(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = sample();
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = Reader::new(file(&bytes), Algorithm::Sha256).and_then(parts);
        }
    }
}
