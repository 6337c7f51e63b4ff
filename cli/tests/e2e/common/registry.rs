//! A real registry on the loopback interface, and the few requests that a test makes of it itself.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{OsImage, sha256_reader, tool};

/// Debian's `docker-registry` on a free port, with storage of its own; ends with the test.
pub struct Registry {
    dir: TempDir,
    child: Child,
    port: u16,
}

impl Registry {
    /// An empty one.
    pub fn start() -> Self {
        Self::serve(folder(), "")
    }

    /// An empty one that fetches from `other` what it is asked for and does not have: a pull-through cache.
    pub fn in_front_of(other: &Self) -> Self {
        let proxy = format!("proxy: {{remoteurl: \"http://127.0.0.1:{}\"}}\n", other.port);
        Self::serve(folder(), &proxy)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// One that serves the real Debian image as `os:1`, `os:2` (gzip), `os:1-zstd` and so on. Blobs are shared with the
    /// prepared storage as hard links: a registry never writes to a blob that it has.
    pub fn with_os() -> Self {
        let prepared = OsImage::get().dir.join("registry/docker");
        let dir = folder();
        tool("cp", [Path::new("-a"), &prepared, dir.path()]);
        let blobs = dir.path().join("docker/registry/v2/blobs");
        fs::remove_dir_all(&blobs).unwrap();
        tool("cp", [Path::new("-al"), &prepared.join("registry/v2/blobs"), &blobs]);
        Self::serve(dir, "")
    }

    fn serve(dir: TempDir, more: &str) -> Self {
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = dir.path().join("config.yml");
            let text = format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: \"{}\"}}}}\n\
                 http: {{addr: \"127.0.0.1:{port}\"}}\n{more}",
                dir.path().display()
            );
            fs::write(&config, text).unwrap();
            let log = fs::File::create(dir.path().join("access.log")).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry; 'make install-deps' installs it");
            let end = Instant::now() + Duration::from_secs(20);
            while Instant::now() < end && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { dir, child, port };
                }
                thread::sleep(Duration::from_millis(20));
            }
            // Somebody else took the port in between.
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }

    /// `127.0.0.1:PORT/NAME`.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// How many requests it has answered so far, by its access log; waits for the log to settle.
    pub fn requests(&self) -> Vec<String> {
        let lines = self.log();
        lines
            .iter()
            .filter_map(|l| Some(l.split('"').nth(1)?.to_owned()))
            .collect()
    }

    /// Status and bytes of each answer so far to a GET of this blob.
    pub fn blob_answers(&self, digest: &str) -> Vec<(u16, u64)> {
        let answer = |line: &String| {
            let mut parts = line.split('"').skip(1);
            let request = parts.next()?;
            let mut numbers = parts.next()?.split_whitespace();
            let wanted = request.starts_with("GET ") && request.contains(digest);
            wanted.then_some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
        };
        self.log().iter().filter_map(answer).collect()
    }

    fn log(&self) -> Vec<String> {
        let path = self.dir.path().join("access.log");
        let mut before = String::new();
        loop {
            thread::sleep(Duration::from_millis(150));
            let now = fs::read_to_string(&path).unwrap();
            if now == before {
                return now.lines().map(str::to_owned).collect();
            }
            before = now;
        }
    }

    /// Makes `to` (`name:tag`) name the manifest that `from` names: a tag that moves.
    pub fn retag(&self, name: &str, from: &str, to: &str) {
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
        let (head, body) = self
            .request(
                "GET",
                &format!("/v2/{name}/manifests/{from}"),
                &[("Accept", accept)],
                b"",
            )
            .expect(200);
        let kind = head.header("content-type").unwrap().to_owned();
        self.request(
            "PUT",
            &format!("/v2/{name}/manifests/{to}"),
            &[("Content-Type", &kind)],
            &body,
        )
        .expect(201);
    }

    /// Puts a blob into the repository `name`; returns its digest.
    pub fn put_blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", sha256_reader(&mut &bytes[..]));
        let (head, _) = self
            .request("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"")
            .expect(202);
        let location = head.header("location").unwrap();
        let path = location.find("/v2/").map_or(location, |at| &location[at..]);
        let with = if path.contains('?') { '&' } else { '?' };
        let kind = [("Content-Type", "application/octet-stream")];
        self.request("PUT", &format!("{path}{with}digest={digest}"), &kind, bytes)
            .expect(201);
        digest
    }

    /// Puts a manifest under a tag.
    pub fn put_manifest(&self, name: &str, tag: &str, kind: &str, bytes: &[u8]) {
        self.request(
            "PUT",
            &format!("/v2/{name}/manifests/{tag}"),
            &[("Content-Type", kind)],
            bytes,
        )
        .expect(201);
    }

    /// The file that holds a blob: what a test damages. A copy of its own, so that nothing shared is touched.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = self
            .dir
            .path()
            .join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nUser-Agent: cfs-test\r\n\
             Content-Length: {}\r\n",
            self.port,
            body.len()
        );
        for (key, value) in headers {
            head.push_str(&format!("{key}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim_end().is_empty() {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        Answer(Head(lines), bytes)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer(Head, Vec<u8>);

pub struct Head(Vec<String>);

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> (Head, Vec<u8>) {
        let line = &self.0.0[0];
        assert!(
            line.contains(&format!(" {status} ")),
            "{line}: {}",
            String::from_utf8_lossy(&self.1)
        );
        (self.0, self.1)
    }
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.0.iter().skip(1).find_map(|l| {
            let (key, value) = l.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One for a registry.
fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("registry-")
        .tempdir_in(target())
        .unwrap()
}

/// A folder on the file system of the prepared image, so that blobs can be linked.
fn target() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A listener that takes connections and says nothing: a registry that hangs.
pub struct Silent {
    listener: TcpListener,
}

impl Silent {
    pub fn start() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.listener.local_addr().unwrap().port())
    }

    /// Blocks until somebody has connected and asked; they keep waiting until what this returns is dropped.
    pub fn asked(&self) -> TcpStream {
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut some = [0; 16];
        let _ = stream.read(&mut some).unwrap();
        stream
    }
}
