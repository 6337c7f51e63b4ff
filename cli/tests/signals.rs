//! A signal ends the program at once, as the signal, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn digest(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        Sha256::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    )
}

/// A registry with one image, whose only layer begins and never ends; says when the layer was asked for.
struct Registry {
    config: String,
    manifest: String,
    asked: Sender<()>,
}

impl Registry {
    fn start(asked: Sender<()>) -> String {
        let layer = digest(b"a layer that never comes");
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config =
            format!(r#"{{"architecture":"{arch}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"{CONFIG}","digest":"{}","size":{}}},"layers":[{{"mediaType":"{LAYER}","digest":"{layer}","size":1000000}}]}}"#,
            digest(config.as_bytes()),
            config.len()
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = std::sync::Arc::new(Self {
            config,
            manifest,
            asked,
        });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let registry = registry.clone();
                thread::spawn(move || registry.serve(stream.unwrap()));
            }
        });
        address
    }

    fn serve(&self, stream: TcpStream) {
        let mut out = stream.try_clone().unwrap();
        let mut lines = BufReader::new(stream).lines();
        while let Some(Ok(request)) = lines.next() {
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let (kind, body) = match request.split(' ').nth(1).unwrap() {
                path if path.contains("/manifests/") => (MANIFEST, self.manifest.as_str()),
                path if path.contains(&digest(self.config.as_bytes())) => (CONFIG, self.config.as_str()),
                path if path.contains("/blobs/") => {
                    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
                    out.write_all(head.as_bytes()).unwrap();
                    out.write_all(&[0; 512]).unwrap();
                    self.asked.send(()).unwrap();
                    thread::sleep(Duration::from_secs(60));
                    return;
                }
                _ => ("application/json", "{}"),
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n",
                digest(body.as_bytes()),
                body.len()
            );
            out.write_all(head.as_bytes()).unwrap();
            if !request.starts_with("HEAD") {
                out.write_all(body.as_bytes()).unwrap();
            }
        }
    }
}

#[test]
fn a_digest_that_is_interrupted_leaves_no_temporary_folder() {
    for signal in [Signal::INT, Signal::TERM] {
        let temporary = tempfile::tempdir().unwrap();
        let (asked, was_asked) = channel();
        let address = Registry::start(asked);
        let mut child = Command::new(env!("CARGO_BIN_EXE_cfs-update"))
            .args([
                "--config-root",
                "/nonexistent",
                "-q",
                "image",
                "digest",
                &format!("{address}/os:1"),
            ])
            .env("TMPDIR", temporary.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        was_asked.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(
            std::fs::read_dir(temporary.path()).unwrap().count(),
            1,
            "layers go there"
        );
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    }
}
