//! Registries that misbehave: what must hold whatever comes over the wire.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod content;
mod faults;
mod logins;
mod mirrors;
mod parts;
#[path = "../support/mod.rs"]
mod support;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cfs_core::error::{Error, Kind};
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::reference::Reference;
use cfs_core::registry::{Image, Options, Proxy, Registry, Retry, Timeouts};
use serde_json::json;
use support::{INDEX, MANIFEST, Reply, Seen, Served, Server, Told, manifest_reply, noise, not_found, sha256};

const MIB: usize = 1 << 20;

fn options() -> Options {
    Options {
        retry: Retry {
            attempts: 4,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(5),
            ..Retry::default()
        },
        ..Options::default()
    }
}

fn open_with(host: &str, options: &Options) -> Registry {
    let reference: Reference = format!("{host}/org/os:1").parse().unwrap();
    Registry::open(&reference, options).unwrap()
}

fn open(server: &Server) -> Registry {
    open_with(&server.host(), &options())
}

fn registries_conf(dir: &Path, text: &str) -> Options {
    let path = dir.join("registries.conf");
    std::fs::write(&path, text).unwrap();
    Options {
        registries_conf: vec![path],
        ..options()
    }
}

fn image(registry: &Registry) -> Result<Image, Error> {
    registry.image(&Platform::host(), &Quiet)
}

fn layer(registry: &Registry) -> Result<Vec<u8>, Error> {
    let image = image(registry)?;
    let mut bytes = Vec::new();
    let mut blob = registry.blob(&image.manifest.layers[0], &Quiet);
    match blob.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Error::from_read("layer", error)),
    }
}

fn is_layer(seen: &Seen, served: &Served) -> bool {
    seen.path.ends_with(&served.layer_digest())
}

/// How often this path was asked for before.
fn again(server_log: &std::sync::Mutex<Vec<String>>, seen: &Seen) -> usize {
    let mut log = server_log.lock().unwrap();
    log.push(seen.path.clone());
    log.iter().filter(|path| **path == seen.path).count() - 1
}

/// Serves the image, but for what `fault` answers, which gets how often the path was asked for before.
fn faulty(served: &Served, fault: impl Fn(&Seen, usize) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let served = served.clone();
    let log = std::sync::Mutex::default();
    Server::start(move |seen, _| {
        let before = again(&log, seen);
        fault(seen, before).unwrap_or_else(|| served.reply(seen))
    })
}

#[test]
fn an_unchanged_check_costs_exactly_one_request() {
    let served = Served::new(10);
    let server = faulty(&served, |_, _| None);
    let registry = open(&server);
    let digest = registry.resolve(&Quiet).unwrap();
    assert_eq!(digest.to_string(), served.manifest_digest());
    assert_eq!(server.story(), ["HEAD /v2/org/os/manifests/1"]);
    assert_eq!(registry.requests(), 1);
    let accept = server.seen()[0].header("accept").unwrap().to_string();
    for kind in [
        MANIFEST,
        INDEX,
        "docker.distribution.manifest.v2+json",
        "docker.distribution.manifest.list.v2+json",
    ] {
        assert!(accept.contains(kind), "{accept}");
    }
    assert!(
        server.seen()[0]
            .header("user-agent")
            .unwrap()
            .starts_with("cfs-update/")
    );
}

#[test]
fn an_image_costs_one_request_for_each_of_its_parts() {
    let served = Served::new(3 * MIB);
    let server = faulty(&served, |_, _| None);
    let registry = open(&server);
    assert_eq!(layer(&registry).unwrap(), served.layer);
    let story = server.story();
    assert_eq!(story.len(), 3, "{story:?}");
    let image = image(&registry).unwrap();
    assert_eq!(image.top, image.digest);
    assert_eq!(image.manifest.bytes, served.manifest);
    assert_eq!(image.config.labels["containers.bootc"], "1");
    assert!(image.config.check_platform(&Platform::host(), "x").is_ok());
}

#[test]
fn a_registry_without_the_digest_header_is_asked_again_and_only_once() {
    let served = Served::new(10);
    let manifest = served.manifest.clone();
    let server = faulty(&served, move |seen, _| {
        let reply = manifest_reply(&manifest, MANIFEST).without("Docker-Content-Digest");
        seen.path.contains("/manifests/").then_some(reply)
    });
    let registry = open(&server);
    assert_eq!(registry.resolve(&Quiet).unwrap().to_string(), served.manifest_digest());
    image(&registry).unwrap();
    assert_eq!(server.count("/manifests/"), 2, "HEAD and GET: {:?}", server.story());
}

#[test]
fn a_registry_that_knows_no_head_is_asked_with_get() {
    let served = Served::new(10);
    let server = faulty(&served, |seen, _| (seen.method == "HEAD").then(|| Reply::new(405)));
    assert_eq!(
        open(&server).resolve(&Quiet).unwrap().to_string(),
        served.manifest_digest()
    );
}

#[test]
fn a_pinned_image_is_asked_for_by_digest_and_its_tag_is_not_looked_at() {
    let served = Served::new(10);
    let server = faulty(&served, |_, _| None);
    let text = format!("{}/org/os:1@{}", server.host(), served.manifest_digest());
    let registry = Registry::open(&text.parse().unwrap(), &options()).unwrap();
    assert_eq!(registry.resolve(&Quiet).unwrap().to_string(), served.manifest_digest());
    assert_eq!(registry.requests(), 0);
    image(&registry).unwrap();
    assert_eq!(server.count("/manifests/1"), 0, "{:?}", server.story());
}

#[test]
fn an_empty_blob_is_a_blob() {
    let served = Served::new(0);
    let server = faulty(&served, |_, _| None);
    assert_eq!(layer(&open(&server)).unwrap(), b"");
}
