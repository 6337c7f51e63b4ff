//! Uploads to registries that misbehave.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cfs_core::Error;
use cfs_core::manifest::Descriptor;
use cfs_core::monitor::Quiet;
use cfs_core::reference::Reference;
use cfs_core::registry::{Options, Push, Retry};

mod support;

use support::{Reply, Seen, Server, noise, not_found, sha256};

const MIB: usize = 1 << 20;

fn options() -> Options {
    Options {
        retry: Retry {
            attempts: 3,
            first_wait: Duration::from_millis(1),
            ..Retry::default()
        },
        ..Options::default()
    }
}

fn blob(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: sha256(bytes).parse().unwrap(),
        size: bytes.len() as u64,
        annotations: std::collections::BTreeMap::new(),
    }
}

fn send(host: &str, options: &Options, bytes: &[u8]) -> Result<(), Error> {
    let reference: Reference = format!("docker://{host}/app:1").parse().unwrap();
    let push = Push::open(&reference, options, &Quiet)?;
    let mut content = |out: &mut dyn Write| out.write_all(bytes).map_err(|e| Error::from_read("x", e));
    push.put(&blob(bytes), &mut content, &Quiet)
}

/// A registry that keeps what is uploaded; `fault` sees a request with the bytes that are there, first.
fn registry(
    fault: impl Fn(&Seen, usize, &mut Vec<u8>) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Arc<Mutex<Vec<u8>>>) {
    let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
    let there = kept.clone();
    let server = Server::start(move |seen, before| {
        let mut kept = there.lock().unwrap();
        if let Some(reply) = fault(seen, before, &mut kept) {
            return reply;
        }
        let at = |status, kept: &[u8]| {
            Reply::new(status)
                .with("Location", "/v2/app/blobs/uploads/one")
                .with("Range", format_args!("0-{}", kept.len().saturating_sub(1)))
        };
        match seen.method.as_str() {
            "POST" => at(202, &kept),
            "GET" => at(204, &kept),
            "PATCH" => {
                let start: usize = seen
                    .header("content-range")
                    .unwrap()
                    .split('-')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                if start != kept.len() {
                    return at(416, &kept);
                }
                kept.extend(&seen.body);
                at(202, &kept)
            }
            "PUT" => {
                kept.extend(&seen.body);
                let whole = seen.path.ends_with(&sha256(&kept).replace(':', "%3A"));
                Reply::new(if whole { 201 } else { 400 })
            }
            _ => not_found(),
        }
    });
    (server, kept)
}

#[test]
fn a_small_blob_goes_in_two_requests_and_a_large_one_in_parts() {
    let (server, kept) = registry(|_, _, _| None);
    send(&server.host(), &options(), b"small").unwrap();
    assert_eq!((&kept.lock().unwrap()[..], server.count("PATCH")), (&b"small"[..], 0));
    let (server, kept) = registry(|_, _, _| None);
    let bytes = noise(20 * MIB, 1);
    send(&server.host(), &options(), &bytes).unwrap();
    assert!(*kept.lock().unwrap() == bytes);
    assert_eq!(server.count("PATCH"), 3);
    let largest = server.seen().iter().map(|seen| seen.body.len()).max();
    assert_eq!(largest, Some(8 * MIB), "memory does not grow with the blob");
}

#[test]
fn a_cut_upload_goes_on_with_what_did_not_come_there() {
    for came in [0, 1_000_000, 8 * MIB] {
        let cut = Mutex::new(false);
        let (server, kept) = registry(move |seen, _, kept| {
            let second = seen.method == "PATCH" && kept.len() == 8 * MIB;
            if second && !std::mem::replace(&mut *cut.lock().unwrap(), true) {
                kept.extend(&seen.body[..came]);
                return Some(Reply::hang_up());
            }
            None
        });
        let bytes = noise(20 * MIB, 2);
        send(&server.host(), &options(), &bytes).unwrap();
        assert!(*kept.lock().unwrap() == bytes, "{came} bytes came");
    }
}

#[test]
fn a_registry_that_lost_what_it_had_or_fails_for_good_is_an_error() {
    let (server, _) = registry(|seen, _, kept| {
        let second = seen.method == "PATCH" && kept.len() == 8 * MIB;
        second.then(|| {
            kept.clear();
            Reply::hang_up()
        })
    });
    let error = send(&server.host(), &options(), &noise(20 * MIB, 3)).unwrap_err();
    assert!(error.to_string().contains("has 0 bytes of an upload"), "{error}");
    let (server, _) = registry(|seen, _, _| (seen.method == "PATCH").then(|| Reply::new(500)));
    let error = send(&server.host(), &options(), &noise(9 * MIB, 3)).unwrap_err();
    assert!(error.to_string().contains("gave up after 3 attempts"), "{error}");
    let (server, _) = registry(|seen, _, _| (seen.method == "PUT").then(|| Reply::new(400)));
    let error = send(&server.host(), &options(), b"x").unwrap_err();
    assert_eq!(error.kind(), cfs_core::Kind::Network, "{error}");
}

#[test]
fn an_upload_that_the_registry_has_forgotten_begins_anew_and_not_for_ever() {
    for method in ["PATCH", "GET", "PUT"] {
        let (forgotten, cut) = (Mutex::new(false), Mutex::new(false));
        let (server, kept) = registry(move |seen, _, kept| {
            let later = seen.method == method && kept.len() >= 8 * MIB;
            if later && !std::mem::replace(&mut *forgotten.lock().unwrap(), true) {
                kept.clear();
                return Some(not_found());
            }
            let second = method == "GET" && seen.method == "PATCH" && kept.len() == 8 * MIB;
            (second && !std::mem::replace(&mut *cut.lock().unwrap(), true)).then(Reply::hang_up)
        });
        let bytes = noise(20 * MIB, 5);
        send(&server.host(), &options(), &bytes).unwrap();
        assert!(*kept.lock().unwrap() == bytes, "{method}");
        assert_eq!(server.count("POST"), 2, "{method}");
    }
    let (server, _) = registry(|seen, _, _| (seen.method == "PATCH").then(not_found));
    let error = send(&server.host(), &options(), &noise(9 * MIB, 3)).unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    assert_eq!(server.count("POST"), 3);
}

#[test]
fn a_registry_that_knows_no_head_is_sent_everything_and_another_size_is_another_blob() {
    let (server, kept) = registry(|seen, _, _| (seen.method == "HEAD").then(|| Reply::new(405)));
    let reference: Reference = format!("docker://{}/app:1", server.host()).parse().unwrap();
    let push = Push::open(&reference, &options(), &Quiet).unwrap();
    assert_eq!(push.current(&Quiet).unwrap(), None);
    assert!(!push.has(&blob(b"small"), &Quiet).unwrap());
    send(&server.host(), &options(), b"small").unwrap();
    assert_eq!(*kept.lock().unwrap(), b"small");
    for (length, has) in [(5, true), (4, false)] {
        let found = move |seen: &Seen, _, _: &mut Vec<u8>| {
            (seen.method == "HEAD").then(|| Reply {
                declared: Some(length),
                ..Reply::new(200)
            })
        };
        let (server, _) = registry(found);
        let reference: Reference = format!("docker://{}/app:1", server.host()).parse().unwrap();
        let push = Push::open(&reference, &options(), &Quiet).unwrap();
        assert_eq!(push.has(&blob(b"small"), &Quiet).unwrap(), has, "{length}");
    }
}

#[test]
fn credentials_do_not_go_where_the_registry_sends_the_upload() {
    let (elsewhere, kept) = registry(|_, _, _| None);
    let there = format!("http://{}/v2/app/blobs/uploads/one", elsewhere.host());
    let (server, _) = registry(move |seen, _, _| {
        if seen.header("authorization") != Some("Basic dTpw") {
            return Some(Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        (seen.method == "POST").then(|| Reply::new(202).with("Location", &there))
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    std::fs::write(
        &file,
        format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, server.host()),
    )
    .unwrap();
    let options = Options {
        auth_files: vec![file],
        ..options()
    };
    let bytes = noise(9 * MIB, 4);
    send(&server.host(), &options, &bytes).unwrap();
    assert!(*kept.lock().unwrap() == bytes);
    assert!(elsewhere.seen().len() >= 3);
    for seen in elsewhere.seen() {
        assert_eq!(seen.header("authorization"), None, "{} {}", seen.method, seen.path);
    }
}
