//! An HTTP server that misbehaves on demand, and an image to serve.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// `Content-Length`, if not that of the body.
    pub declared: Option<usize>,
    /// Close the connection after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// Wait this long before every 16 bytes of the body.
    pub drip: Option<Duration>,
    /// Wait this long before every 16 KiB of the body.
    pub pace: Option<Duration>,
    /// Say nothing for this long first.
    pub silence: Option<Duration>,
    /// Close the connection without an answer.
    pub hang_up: bool,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            declared: None,
            cut_after: None,
            drip: None,
            pace: None,
            silence: None,
            hang_up: false,
            chunked: false,
        }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::new(200)
        }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(have, _)| !have.eq_ignore_ascii_case(name));
        self
    }

    pub fn redirect(to: &str) -> Self {
        Self::new(307).with("Location", to)
    }

    pub fn hang_up() -> Self {
        Self {
            hang_up: true,
            ..Self::new(0)
        }
    }
}

type Handler = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// Answers on 127.0.0.1 until dropped.
pub struct Server {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
}

impl Server {
    /// `handler` gets the request and how many there were before it.
    pub fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let written = Arc::<AtomicUsize>::default();
        let (to_log, stopped, count) = (log.clone(), stop.clone(), written.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, log, count) = (handler.clone(), to_log.clone(), count.clone());
                std::thread::spawn(move || drop(converse(&stream.unwrap(), &*handler, &log, &count)));
            }
        });
        Self {
            address,
            log,
            stop,
            written,
        }
    }

    /// Bytes of bodies that the kernel has taken.
    pub fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// `GET /path`, one a line.
    pub fn story(&self) -> Vec<String> {
        self.seen()
            .iter()
            .map(|seen| format!("{} {}", seen.method, seen.path))
            .collect()
    }

    pub fn count(&self, part: &str) -> usize {
        self.story().iter().filter(|line| line.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn converse(stream: &TcpStream, handler: &Handler, log: &Mutex<Vec<Seen>>, count: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // So that what was written was also sent, but for a little.
    rustix::net::sockopt::set_socket_send_buffer_size(stream, 64 << 10)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(seen) = receive(&mut reader)? {
        let before = {
            let mut log = log.lock().unwrap();
            log.push(seen.clone());
            log.len() - 1
        };
        let reply = handler(&seen, before);
        if !answer(stream, &reply, seen.method == "HEAD", count)? {
            return Ok(());
        }
    }
    Ok(())
}

fn receive(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(String::from);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = BTreeMap::<String, String>::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let all = headers.entry(name.to_lowercase()).or_default();
        *all = if all.is_empty() {
            value.trim().into()
        } else {
            format!("{all}, {}", value.trim())
        };
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Seen {
        method,
        path,
        headers,
        body,
    }))
}

/// Whether the connection may be used again.
fn answer(mut stream: &TcpStream, reply: &Reply, head: bool, count: &AtomicUsize) -> std::io::Result<bool> {
    if let Some(silence) = reply.silence {
        std::thread::sleep(silence);
    }
    if reply.hang_up {
        return Ok(false);
    }
    let mut text = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    match reply.chunked {
        true => text += "Transfer-Encoding: chunked\r\n\r\n",
        false => text += &format!("Content-Length: {}\r\n\r\n", reply.declared.unwrap_or(reply.body.len())),
    }
    stream.write_all(text.as_bytes())?;
    if head {
        return Ok(true);
    }
    let body = &reply.body[..reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len())];
    let piece = match (reply.drip, reply.pace) {
        (Some(_), _) => 16,
        (None, Some(_)) => 16 << 10,
        (None, None) => 64 << 10,
    };
    for piece in body.chunks(piece) {
        if let Some(drip) = reply.drip.or(reply.pace) {
            std::thread::sleep(drip);
        }
        if reply.chunked {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            stream.write_all(piece)?;
            stream.write_all(b"\r\n")?;
        } else {
            stream.write_all(piece)?;
        }
        count.fetch_add(piece.len(), Ordering::Relaxed);
    }
    let cut = body.len() < reply.body.len();
    if cut || reply.declared.is_some_and(|declared| declared != reply.body.len()) {
        return Ok(false);
    }
    if reply.chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(true)
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that no two positions share.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image with one layer of noise (nothing here looks into layers).
#[derive(Clone, Debug)]
pub struct Served {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub layer: Vec<u8>,
    pub manifest: Vec<u8>,
    pub ranges: bool,
}

impl Served {
    pub fn new(layer_size: usize) -> Self {
        let layer = noise(layer_size, 7);
        let machine = cfs_core::manifest::Platform::host();
        let config = json!({
            "architecture": machine.architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha256(b"tar")]},
            "config": {"Labels": {"containers.bootc": "1"}},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                "digest": sha256(&layer), "size": layer.len(),
            }],
        });
        let blobs = [(sha256(&config), config), (sha256(&layer), layer.clone())].into();
        let manifest = serde_json::to_vec(&manifest).unwrap();
        Self {
            blobs,
            layer,
            manifest,
            ranges: true,
        }
    }

    pub fn layer_digest(&self) -> String {
        sha256(&self.layer)
    }

    pub fn manifest_digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// Writes it as an OCI layout that lists it under each of these names.
    pub fn write_layout(&self, dir: &std::path::Path, names: &[&str]) {
        let entry = |name: &&str| {
            json!({
                "mediaType": MANIFEST, "digest": self.manifest_digest(), "size": self.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": name},
            })
        };
        let index = json!({"schemaVersion": 2, "manifests": names.iter().map(entry).collect::<Vec<_>>()});
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
        for bytes in self.blobs.values().chain([&self.manifest]) {
            std::fs::write(blobs.join(&sha256(bytes)["sha256:".len()..]), bytes).unwrap();
        }
    }

    /// An index with this image for this machine and another for an odd one.
    pub fn index(&self, architecture: &str) -> Vec<u8> {
        let entry = |architecture: &str, digest: String| {
            json!({
                "mediaType": MANIFEST, "digest": digest, "size": self.manifest.len(),
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [entry("s390", sha256(b"other")), entry(architecture, self.manifest_digest())],
        });
        serde_json::to_vec(&index).unwrap()
    }

    /// What a registry answers that does everything right.
    pub fn reply(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap();
        if path.contains("/manifests/") {
            let asked = path.rsplit('/').next().unwrap();
            if asked.starts_with("sha256:") && asked != self.manifest_digest() {
                return not_found();
            }
            return manifest_reply(&self.manifest, MANIFEST);
        }
        let Some((_, digest)) = path.split_once("/blobs/") else {
            return not_found();
        };
        let Some(blob) = self.blobs.get(digest) else {
            return not_found();
        };
        match seen.range_start().filter(|_| self.ranges) {
            Some(start) => Reply {
                status: 206,
                ..Reply::ok(&blob[start..])
            }
            .with(
                "Content-Range",
                format_args!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
            ),
            None => Reply::ok(blob.clone()),
        }
    }
}

pub fn manifest_reply(manifest: &[u8], kind: &str) -> Reply {
    Reply::ok(manifest)
        .with("Content-Type", kind)
        .with("Docker-Content-Digest", sha256(manifest))
}

pub fn not_found() -> Reply {
    Reply {
        status: 404,
        ..Reply::ok(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
    }
}

/// Remembers what the library told.
#[derive(Debug, Default)]
pub struct Told(pub Mutex<Vec<String>>);

impl cfs_core::monitor::Monitor for Told {
    fn event(&self, event: cfs_core::monitor::Event) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}
