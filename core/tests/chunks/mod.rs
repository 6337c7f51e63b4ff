//! zstd:chunked layers made by hand, images of them, and registries that serve parts of them well or badly.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cfs_core::manifest::Platform;
use serde_json::{Value, json};

use crate::support::{MANIFEST, Reply, Seen, Server, manifest_reply, not_found, sha256};
use crate::tars::{Header, Tar, zstd};

/// A layer with its table.
#[derive(Clone)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    pub annotations: BTreeMap<String, String>,
    /// Where each file's content is in the blob.
    pub places: BTreeMap<String, Range<usize>>,
}

/// How to make one.
#[derive(Clone, Copy)]
pub struct Recipe<'a> {
    /// Files larger than this are cut into chunks of it.
    pub chunk: usize,
    /// Changes the table before it is packed.
    pub table: &'a dyn Fn(&mut Value),
    /// Changes the tar-split before it is packed.
    pub tar_split: &'a dyn Fn(&mut Vec<Value>),
    /// Changes the annotations.
    pub annotations: &'a dyn Fn(&mut BTreeMap<String, String>),
}

pub const FAIR: Recipe<'static> = Recipe {
    chunk: 16 << 10,
    table: &|_| {},
    tar_split: &|_| {},
    annotations: &|_| {},
};

fn skippable(data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), data].concat()
}

impl Recipe<'_> {
    pub fn make(&self, files: &[(&str, &[u8])]) -> Layer {
        let (mut blob, mut raw) = (Vec::new(), Vec::new());
        let (mut entries, mut split, mut places) = (Vec::new(), Vec::new(), BTreeMap::new());
        let position = |split: &Vec<Value>| split.len();
        for (path, content) in files {
            let kind = if path.ends_with('/') { b'5' } else { b'0' };
            raw.extend(Header::new(path, kind, content.len() as u64).finish());
            split.push(json!({"type": 2, "payload": BASE64_STANDARD.encode(&raw), "position": position(&split)}));
            split.push(json!({"type": 1, "name": path, "size": content.len(), "payload": "AAAA", "position": position(&split)}));
            if content.is_empty() {
                let kind = if kind == b'5' { "dir" } else { "reg" };
                entries.push(json!({"type": kind, "name": path, "mode": 493}));
                // The next header goes into the same frame.
                blob.extend(zstd(&raw));
                raw.clear();
                continue;
            }
            blob.extend(zstd(&raw));
            raw.clear();
            let start = blob.len();
            let mut chunks = Vec::new();
            for (n, data) in content.chunks(self.chunk).enumerate() {
                let zeros = data.iter().all(|byte| *byte == 0) && content.len() > self.chunk;
                chunks.push(json!({
                    "type": "chunk", "name": path, "offset": blob.len(), "chunkSize": data.len(),
                    "chunkOffset": n * self.chunk, "chunkDigest": sha256(data),
                    "chunkType": if zeros { "zeros" } else { "" },
                }));
                blob.extend(zstd(data));
            }
            places.insert((*path).to_owned(), start..blob.len());
            let mut first = json!({
                "type": "reg", "name": path, "mode": 493, "size": content.len(), "digest": sha256(content),
                "offset": start, "endOffset": blob.len(),
            });
            if chunks.len() > 1 {
                for key in ["chunkSize", "chunkDigest", "chunkType"] {
                    first[key] = chunks[0][key].clone();
                }
            }
            chunks[0] = first;
            entries.extend(chunks);
            let padding = content.len().next_multiple_of(512) - content.len();
            raw.resize(padding, 0);
        }
        // The padding that was not written yet belongs to the end.
        let end = [&raw[..], &[0; 1024]].concat();
        split.push(json!({"type": 2, "payload": BASE64_STANDARD.encode(&end), "position": position(&split)}));
        blob.extend(zstd(&end));
        (self.tar_split)(&mut split);
        let split: String = split.iter().map(|line| format!("{line}\n")).collect();
        let packed_split = zstd(split.as_bytes());
        let mut table = json!({"version": 1, "entries": entries, "tarSplitDigest": sha256(&packed_split)});
        (self.table)(&mut table);
        let table = serde_json::to_vec(&table).unwrap();
        let packed = zstd(&table);
        let at = blob.len() + 8;
        blob.extend(skippable(&packed));
        let split_at = blob.len() + 8;
        blob.extend(skippable(&packed_split));
        blob.extend(skippable(&[0; 64]));
        let name = |key: &str| format!("io.github.containers.zstd-chunked.{key}");
        let mut annotations = BTreeMap::from([
            (name("manifest-checksum"), sha256(&packed)),
            (
                name("manifest-position"),
                format!("{at}:{}:{}:1", packed.len(), table.len()),
            ),
            (
                name("tarsplit-position"),
                format!("{split_at}:{}:{}", packed_split.len(), split.len()),
            ),
        ]);
        (self.annotations)(&mut annotations);
        Layer {
            tar: tar(files),
            blob,
            annotations,
            places,
        }
    }
}

/// The tar that the layer is of.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Tar::new();
    for (path, content) in files {
        tar = match path.ends_with('/') {
            true => tar.directory(path),
            false => tar.file(path, content),
        };
    }
    tar.finish()
}

/// How a registry answers to ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// As it should.
    Several,
    /// One range as it should, several with the whole blob.
    Single,
    /// Of several ranges the first.
    First,
    /// With the whole blob.
    Ignored,
    /// 416.
    Refused,
    /// Bytes from somewhere else under the right name.
    Other,
    /// Ranges that were not asked for.
    Shifted,
    /// As it should, but each connection ends after so many bytes.
    Cut(usize),
    /// An error, as some proxies have it.
    Broken,
    /// The same, but only where it is asked for several.
    FailsSeveral,
    /// 403 where it is asked for more than so many.
    Forbids(usize),
    /// Other bytes, for single ranges, too.
    Lies,
}

/// A registry with one image, which can be replaced.
pub struct Registry {
    pub server: Server,
    image: Arc<Mutex<Image>>,
    pub ways: Arc<Mutex<Ranges>>,
    /// Waits so long before every 16 KiB of a blob.
    pub pace: Arc<Mutex<Option<Duration>>>,
    /// Bytes of blobs that were sent.
    pub sent: Arc<AtomicUsize>,
}

/// An image of such layers.
#[derive(Clone, Default)]
pub struct Image {
    pub manifest: Vec<u8>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Image {
    pub fn new(layers: &[&Layer]) -> Self {
        let machine = Platform::host();
        let diff_ids: Vec<_> = layers.iter().map(|layer| sha256(&layer.tar)).collect();
        let config = json!({
            "architecture": machine.architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let described = layers.iter().map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                "digest": sha256(&layer.blob), "size": layer.blob.len(), "annotations": layer.annotations,
            })
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(&config), "size": config.len(),
            },
            "layers": described.collect::<Vec<_>>(),
        });
        let mut blobs: BTreeMap<_, _> = layers
            .iter()
            .map(|layer| (sha256(&layer.blob), layer.blob.clone()))
            .collect();
        blobs.insert(sha256(&config), config);
        Self {
            manifest: serde_json::to_vec(&manifest).unwrap(),
            blobs,
        }
    }
}

impl Registry {
    pub fn start(layers: &[&Layer]) -> Self {
        let image = Arc::new(Mutex::new(Image::new(layers)));
        let ways = Arc::new(Mutex::new(Ranges::Several));
        let sent = Arc::<AtomicUsize>::default();
        let pace = Arc::<Mutex<Option<Duration>>>::default();
        let (held, way, count, slow) = (image.clone(), ways.clone(), sent.clone(), pace.clone());
        let server = Server::start(move |seen, _| {
            let mut reply = answer(&held.lock().unwrap(), *way.lock().unwrap(), seen);
            if seen.path.contains("/blobs/") {
                reply.pace = *slow.lock().unwrap();
                count.fetch_add(
                    reply.cut_after.unwrap_or(usize::MAX).min(reply.body.len()),
                    Ordering::Relaxed,
                );
            }
            reply
        });
        Self {
            server,
            image,
            ways,
            pace,
            sent,
        }
    }

    pub fn serve(&self, layers: &[&Layer], ways: Ranges) {
        *self.image.lock().unwrap() = Image::new(layers);
        *self.ways.lock().unwrap() = ways;
        self.sent.store(0, Ordering::Relaxed);
    }

    /// The ranges that were asked for, one request each.
    pub fn ranges(&self) -> Vec<String> {
        self.server
            .seen()
            .iter()
            .filter_map(|seen| seen.header("range").map(str::to_owned))
            .collect()
    }

    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

fn answer(image: &Image, ways: Ranges, seen: &Seen) -> Reply {
    if seen.path.contains("/manifests/") {
        return manifest_reply(&image.manifest, MANIFEST);
    }
    let blob = seen
        .path
        .split_once("/blobs/")
        .and_then(|(_, digest)| image.blobs.get(digest));
    let Some(blob) = blob else { return not_found() };
    let whole = || Reply::ok(blob.clone());
    let Some(ranges) = seen.header("range").map(|header| parse(header, blob.len())) else {
        return match ways {
            Ranges::Cut(at) => Reply {
                cut_after: Some(at),
                ..whole()
            },
            _ => whole(),
        };
    };
    let part = |range: &Range<usize>| blob[range.clone()].to_vec();
    let one = |range: &Range<usize>| partial(part(range), range, blob.len());
    match ways {
        Ranges::Ignored => whole(),
        Ranges::Refused => Reply::new(416),
        Ranges::Broken => Reply::new(500),
        Ranges::Lies => {
            let lie = part(&ranges[0]).iter().map(|b| b ^ 1).collect();
            partial(lie, &ranges[0], blob.len())
        }
        Ranges::Single if ranges.len() > 1 => whole(),
        Ranges::FailsSeveral if ranges.len() > 1 => Reply::new(500),
        Ranges::Forbids(most) if ranges.len() > most => Reply::new(403),
        Ranges::First => one(&ranges[0]),
        Ranges::Other if ranges.len() > 1 => {
            multipart(blob, &ranges, |range| part(range).iter().map(|b| b ^ 1).collect())
        }
        Ranges::Shifted => {
            let shifted = |range: &Range<usize>| range.start + 1..range.end;
            multipart(blob, &ranges.iter().map(shifted).collect::<Vec<_>>(), part)
        }
        Ranges::Cut(at) if ranges.len() > 1 => Reply {
            cut_after: Some(at),
            ..multipart(blob, &ranges, part)
        },
        Ranges::Cut(at) => Reply {
            cut_after: Some(at),
            ..one(&ranges[0])
        },
        _ if ranges.len() == 1 => one(&ranges[0]),
        _ => multipart(blob, &ranges, part),
    }
}

fn partial(body: Vec<u8>, range: &Range<usize>, size: usize) -> Reply {
    Reply {
        status: 206,
        ..Reply::ok(body)
    }
    .with(
        "Content-Range",
        format_args!("bytes {}-{}/{size}", range.start, range.end - 1),
    )
}

fn multipart(blob: &[u8], ranges: &[Range<usize>], part: impl Fn(&Range<usize>) -> Vec<u8>) -> Reply {
    let mut body = Vec::new();
    for range in ranges {
        body.extend(b"\r\n--next\r\nContent-Type: application/octet-stream\r\n");
        body.extend(
            format!(
                "Content-Range: bytes {}-{}/{}\r\n\r\n",
                range.start,
                range.end - 1,
                blob.len()
            )
            .bytes(),
        );
        body.extend(part(range));
    }
    body.extend(b"\r\n--next--\r\n");
    Reply {
        status: 206,
        ..Reply::ok(body)
    }
    .with("Content-Type", "multipart/byteranges; boundary=next")
}

fn parse(header: &str, size: usize) -> Vec<Range<usize>> {
    let range = |text: &str| {
        let (start, end) = text.split_once('-').unwrap();
        let end = end.parse::<usize>().map_or(size, |end| end + 1);
        start.parse().unwrap()..end.min(size)
    };
    header.strip_prefix("bytes=").unwrap().split(',').map(range).collect()
}

/// Files below `folder`, by name.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
