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

/// A registry as [`registry`] that says with each new upload how large parts are at least.
fn wanting(least: &'static str) -> (Server, Arc<Mutex<Vec<u8>>>) {
    registry(move |seen, _, _| {
        (seen.method == "POST").then(|| {
            Reply::new(202)
                .with("Location", "/v2/app/blobs/uploads/one")
                .with("OCI-Chunk-Min-Length", least)
        })
    })
}

#[test]
fn parts_are_as_large_as_the_registry_wants_and_what_is_more_than_memory_is_to_hold_goes_in_one_request() {
    let sizes = |server: &Server, method: &str| {
        let seen = server.seen();
        let of = seen.iter().filter(|seen| seen.method == method);
        of.map(|seen| seen.body.len() * 2 / MIB).collect::<Vec<_>>()
    };
    for (least, parts) in [
        ("10485760", vec![20, 20, 5]),
        ("5242880", vec![16, 16, 13]),
        ("x", vec![16, 16, 13]),
        ("67108864", vec![]),
        ("67108865", vec![]),
        ("18446744073709551615", vec![]),
    ] {
        let (server, kept) = wanting(least);
        let bytes = noise(22 * MIB + MIB / 2, 6);
        send(&server.host(), &options(), &bytes).unwrap();
        assert!(*kept.lock().unwrap() == bytes, "{least}");
        assert_eq!(sizes(&server, "PATCH"), parts, "{least}");
        assert_eq!(
            sizes(&server, "PUT"),
            [if parts.is_empty() { 45 } else { 0 }],
            "{least}"
        );
    }
}

#[test]
fn a_registry_that_knows_no_parts_is_sent_large_blobs_in_one_request() {
    for status in [400, 405, 411, 415, 416, 501] {
        let cut = Mutex::new(false);
        let (server, kept) = registry(move |seen, _, kept| match seen.method.as_str() {
            "PATCH" => Some(Reply::new(status)),
            "POST" => {
                kept.clear();
                None
            }
            "PUT" if !std::mem::replace(&mut *cut.lock().unwrap(), true) => Some(Reply::hang_up()),
            _ => None,
        });
        let reference: Reference = format!("docker://{}/app:1", server.host()).parse().unwrap();
        let push = Push::open(&reference, &options(), &Quiet).unwrap();
        for seed in [7, 8] {
            let bytes = noise(20 * MIB, seed);
            let mut content = |out: &mut dyn Write| out.write_all(&bytes).map_err(|e| Error::from_read("x", e));
            push.put(&blob(&bytes), &mut content, &Quiet).unwrap();
            assert!(*kept.lock().unwrap() == bytes, "{status}");
        }
        let count = |method| server.count(method);
        // The second blob is not tried in parts, and the upload that was is not left lying about.
        assert_eq!(
            (count("PATCH"), count("DELETE"), count("POST"), count("PUT")),
            (1, 1, 4, 3),
            "{status}"
        );
        let put = server.seen().into_iter().find(|seen| seen.method == "PUT").unwrap();
        assert_eq!(put.header("content-length"), Some("20971520"), "{status}");
    }
    // Later on it means something else.
    let (server, _) = registry(|seen, _, kept| (seen.method == "PATCH" && !kept.is_empty()).then(|| Reply::new(400)));
    send(&server.host(), &options(), &noise(20 * MIB, 7)).unwrap_err();
    assert_eq!(server.count("PUT"), 0);
}

#[test]
fn what_cannot_be_made_while_it_is_sent_is_the_error_and_a_refusal_of_it_is_one() {
    let (server, kept) = registry(|seen, _, _| (seen.method == "PATCH").then(|| Reply::new(405)));
    let reference: Reference = format!("docker://{}/app:1", server.host()).parse().unwrap();
    let push = Push::open(&reference, &options(), &Quiet).unwrap();
    let bytes = noise(20 * MIB, 9);
    let mut content = |out: &mut dyn Write| {
        out.write_all(&bytes[..12 * MIB])
            .map_err(|e| Error::from_read("x", e))?;
        Err(Error::Usage("the store is broken".into()))
    };
    let error = push.put(&blob(&bytes), &mut content, &Quiet).unwrap_err();
    assert!(error.to_string().contains("the store is broken"), "{error}");
    assert!(
        kept.lock().unwrap().is_empty(),
        "half of a blob was taken for the whole"
    );
    let (server, _) = registry(|seen, _, _| match seen.method.as_str() {
        "PATCH" => Some(Reply::new(405)),
        "PUT" => Some(Reply::new(400)),
        _ => None,
    });
    let error = send(&server.host(), &options(), &bytes).unwrap_err();
    assert!(error.to_string().contains("400"), "{error}");
    assert_eq!(server.count("PUT"), 1);
}

#[test]
fn a_login_that_ends_while_a_blob_goes_in_one_request_is_renewed() {
    let asked = Mutex::new(0);
    let (server, kept) = registry(move |seen, _, _| match seen.method.as_str() {
        "PATCH" => Some(Reply::new(405)),
        "PUT" => {
            *asked.lock().unwrap() += 1;
            let first = *asked.lock().unwrap() == 1;
            (first || seen.header("authorization") != Some("Basic dTpw"))
                .then(|| Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""))
        }
        _ => None,
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, server.host());
    std::fs::write(&file, auths).unwrap();
    let options = Options {
        auth_files: vec![file],
        ..options()
    };
    let bytes = noise(20 * MIB, 10);
    send(&server.host(), &options, &bytes).unwrap();
    assert!(*kept.lock().unwrap() == bytes);
}

#[test]
fn who_makes_a_blob_does_not_wait_for_a_registry_that_has_refused_it_unread() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if std::io::Read::read(&mut stream, &mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let answer = match head.split(|b| *b == b' ').next().unwrap() {
                b"POST" => "202 Accepted\r\nLocation: /v2/app/blobs/uploads/one\r\nOCI-Chunk-Min-Length: 99999999999",
                b"PUT" => "403 Forbidden",
                _ => "404 Not Found",
            };
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            // Neither read from nor closed, as behind a proxy that does not care.
            match head.starts_with(b"PUT") {
                true => open.push(stream),
                false => drop(stream),
            }
        }
    });
    let (done, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(send(&host, &options(), &noise(40 * MIB, 11))));
    let error = answer
        .recv_timeout(Duration::from_secs(60))
        .expect("it hangs")
        .unwrap_err();
    assert!(error.to_string().contains("403"), "{error}");
}

#[test]
fn a_part_that_the_registry_took_some_of_is_gone_on_with_there() {
    let half = Mutex::new(false);
    let (server, kept) = registry(move |seen, _, kept| {
        let first = seen.method == "PATCH" && !std::mem::replace(&mut *half.lock().unwrap(), true);
        first.then(|| {
            kept.extend(&seen.body[..3 * MIB]);
            Reply::new(202).with("Range", format_args!("0-{}", 3 * MIB - 1))
        })
    });
    let bytes = noise(20 * MIB, 12);
    send(&server.host(), &options(), &bytes).unwrap();
    assert!(*kept.lock().unwrap() == bytes);
    assert_eq!(server.count("PATCH"), 4);
}
