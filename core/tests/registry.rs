//! Registries that misbehave: what must hold whatever comes over the wire.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

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
fn too_many_requests_are_waited_out_as_the_registry_asks() {
    let served = Served::new(10);
    let server = faulty(&served, |_, before| match before {
        0 => Some(Reply::new(429).with("Retry-After", "1")),
        1 => {
            let date = jiff::Timestamp::now() + Duration::from_secs(1);
            let date = jiff::fmt::rfc2822::DateTimePrinter::new()
                .timestamp_to_rfc9110_string(&date)
                .unwrap();
            Some(Reply::new(429).with("Retry-After", date))
        }
        _ => None,
    });
    let told = Told::default();
    let start = Instant::now();
    open(&server).resolve(&told).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(1000), "{:?}", start.elapsed());
    let told = told.0.lock().unwrap().join("\n");
    assert!(told.contains("Retry") && told.contains("429"), "{told}");
}

#[test]
fn a_registry_that_asks_for_an_hour_is_given_up_at_once() {
    let server = faulty(&Served::new(10), |_, _| {
        Some(Reply::new(429).with("Retry-After", "3600"))
    });
    let error = open(&server).resolve(&Quiet).unwrap_err();
    assert!(error.to_string().contains("3600 seconds"), "{error}");
    assert_eq!(server.story().len(), 1);
}

#[test]
fn server_errors_and_hang_ups_are_tried_again_but_not_for_ever() {
    let served = Served::new(MIB);
    let server = faulty(&served, |_, before| match before {
        0 => Some(Reply::new(500)),
        1 => Some(Reply::hang_up()),
        2 => Some(Reply::new(503).with("Retry-After", "0")),
        _ => None,
    });
    assert_eq!(layer(&open(&server)).unwrap(), served.layer);

    let server = faulty(&served, |_, _| {
        Some(Reply::ok("down for maintenance")).map(|r| Reply { status: 502, ..r })
    });
    let error = open(&server).resolve(&Quiet).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    let text = error.to_string();
    assert!(
        text.contains(&format!("http://{}/v2/org/os/manifests/1", server.host())),
        "{text}"
    );
    assert!(text.contains("502") && text.contains("4 attempts"), "{text}");
    assert_eq!(server.story().len(), 4);
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let error = open_with(&address, &options()).resolve(&Quiet).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::Network);
    assert!(
        text.contains(&address) && text.contains("cannot connect") && text.contains("refused"),
        "{text}"
    );
}

#[test]
fn an_ipv6_registry_is_asked_at_its_address() {
    let error = open_with("[::1]:1", &options())
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(error.contains("http://[::1]:1/v2/org/os/manifests/1"), "{error}");
}

#[test]
fn a_cut_blob_goes_on_where_it_broke() {
    let served = Served::new(4 * MIB);
    let (blob, digest) = (served.layer.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, before| {
        let whole = seen.path.ends_with(&digest) && before == 0;
        whole.then(|| Reply {
            cut_after: Some(3 * MIB),
            ..Reply::ok(blob.clone())
        })
    });
    assert_eq!(layer(&open(&server)).unwrap(), served.layer);
    let asked: Vec<_> = server
        .seen()
        .into_iter()
        .filter(|seen| is_layer(seen, &served))
        .collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].range_start(), None);
    let start = asked[1].range_start().unwrap();
    assert!((1..=3 * MIB).contains(&start), "{start}");
}

#[test]
fn a_blob_cut_again_and_again_still_comes_when_each_time_some_of_it_does() {
    let served = Served::new(12 * MIB);
    let (whole, digest) = (served.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, _| {
        let cut = seen.path.ends_with(&digest);
        cut.then(|| Reply {
            cut_after: Some(3 * MIB / 2),
            ..whole.reply(seen)
        })
    });
    assert_eq!(layer(&open(&server)).unwrap(), served.layer);
    assert!(server.count(&served.layer_digest()) >= 8, "more cuts than attempts");
}

#[test]
fn a_cut_blob_is_started_over_where_the_registry_knows_no_ranges() {
    let mut served = Served::new(4 * MIB);
    served.ranges = false;
    let (blob, digest) = (served.layer.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, before| {
        let whole = seen.path.ends_with(&digest) && before < 2;
        whole.then(|| Reply {
            cut_after: Some(MIB * (before + 1) + 17),
            ..Reply::ok(blob.clone())
        })
    });
    assert_eq!(layer(&open(&server)).unwrap(), served.layer);
    assert_eq!(server.count(&served.layer_digest()), 3);
}

#[test]
fn a_range_that_starts_elsewhere_is_not_taken_for_the_one_asked_for() {
    let served = Served::new(4 * MIB);
    let (blob, digest) = (served.layer.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, before| {
        let first = Reply {
            cut_after: Some(MIB),
            ..Reply::ok(blob.clone())
        };
        let range = format!("bytes {}-{}/{}", 2 * MIB, blob.len() - 1, blob.len());
        let wrong = Reply {
            status: 206,
            ..Reply::ok(&blob[2 * MIB..])
        }
        .with("Content-Range", range);
        seen.path
            .ends_with(&digest)
            .then_some(if before == 0 { first } else { wrong })
    });
    let text = layer(&open(&server)).unwrap_err().to_string();
    assert!(text.contains("another part"), "{text}");
}

#[test]
fn a_blob_that_never_completes_is_given_up() {
    let served = Served::new(100_000);
    let (blob, digest) = (served.layer.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, _| {
        seen.path.ends_with(&digest).then(|| Reply {
            cut_after: Some(1000),
            ..Reply::ok(blob.clone())
        })
    });
    let error = layer(&open(&server)).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    assert!(error.to_string().contains("4 attempts"), "{error}");
    assert_eq!(server.count(&served.layer_digest()), 4);
}

#[test]
fn a_blob_of_another_content_or_size_is_refused() {
    let served = Served::new(MIB);
    let with = |blob: Vec<u8>, chunked: bool| {
        let digest = served.layer_digest();
        let server = faulty(&served, move |seen, _| {
            let reply = Reply {
                chunked,
                ..Reply::ok(blob.clone())
            };
            seen.path.ends_with(&digest).then_some(reply)
        });
        let error = layer(&open(&server)).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert_eq!(server.count(&served.layer_digest()), 1, "it is not asked for again");
        error.to_string()
    };
    let mut flipped = served.layer.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let found = sha256(&flipped);
    let text = with(flipped.clone(), false);
    assert!(text.contains(&served.layer_digest()) && text.contains(&found), "{text}");
    with(flipped, true);
    let longer = [&served.layer[..], b"x"].concat();
    assert!(with(longer.clone(), false).contains(&format!("{} bytes", MIB + 1)));
    with(longer, true);
    with(served.layer[1..].to_vec(), false);
}

#[test]
fn a_wrong_content_length_does_not_let_a_short_blob_pass() {
    let served = Served::new(MIB);
    let (blob, digest) = (served.layer.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, _| {
        seen.path.ends_with(&digest).then(|| Reply {
            declared: Some(blob.len()),
            ..Reply::ok(&blob[..blob.len() / 2])
        })
    });
    assert_eq!(layer(&open(&server)).unwrap_err().kind(), Kind::Network);
}

#[test]
fn an_error_stays_an_error_when_the_reader_asks_again() {
    let served = Served::new(1000);
    let digest = served.layer_digest();
    let server = faulty(&served, move |seen, _| {
        seen.path.ends_with(&digest).then(|| Reply::ok(noise(1000, 8)))
    });
    let registry = open(&server);
    let image = image(&registry).unwrap();
    let mut blob = registry.blob(&image.manifest.layers[0], &Quiet);
    let mut bytes = Vec::new();
    assert!(blob.read_to_end(&mut bytes).is_err());
    assert!(blob.read(&mut [0; 10]).is_err(), "a refused blob has no good end");
    assert_eq!(server.count(&served.layer_digest()), 1);
}

#[test]
fn a_silent_or_dripping_registry_is_cut_and_asked_again() {
    let served = Served::new(MIB);
    let (whole, digest) = (served.clone(), served.layer_digest());
    let server = faulty(&served, move |seen, before| {
        match (seen.path.ends_with(&digest), before) {
            (true, 0) => Some(Reply {
                silence: Some(Duration::from_secs(20)),
                ..whole.reply(seen)
            }),
            (true, 1) => Some(Reply {
                drip: Some(Duration::from_millis(50)),
                ..whole.reply(seen)
            }),
            _ => None,
        }
    });
    let options = Options {
        timeouts: Timeouts {
            idle: Duration::from_millis(300),
            slow_after: Duration::from_millis(500),
            slow_rate: 10_000,
            ..Timeouts::default()
        },
        ..options()
    };
    let start = Instant::now();
    assert_eq!(layer(&open_with(&server.host(), &options)).unwrap(), served.layer);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(server.count(&served.layer_digest()), 3);
}

#[test]
fn a_slow_reader_is_no_reason_to_cut() {
    let served = Served::new(6 * MIB);
    let server = faulty(&served, |_, _| None);
    let options = Options {
        timeouts: Timeouts {
            idle: Duration::from_millis(200),
            slow_after: Duration::from_millis(200),
            slow_rate: u64::MAX,
            ..Timeouts::default()
        },
        ..options()
    };
    let registry = open_with(&server.host(), &options);
    let image = image(&registry).unwrap();
    let mut blob = registry.blob(&image.manifest.layers[0], &Quiet);
    let mut bytes = vec![0; served.layer.len()];
    blob.read_exact(&mut bytes[..10]).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    blob.read_exact(&mut bytes[10..]).unwrap();
    assert_eq!(blob.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(bytes, served.layer);
    assert_eq!(server.count(&served.layer_digest()), 1);
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_port_or_host() {
    let served = Served::new(MIB);
    let blob = served.layer.clone();
    let elsewhere = Server::start(move |_, _| Reply::ok(blob.clone()));
    let target = format!("http://{}/bucket/blob?signature=hush", elsewhere.host());
    let login = format!("Basic {}", STANDARD.encode("user:secret"));
    let (digest, wanted) = (served.layer_digest(), login.clone());
    let server = faulty(&served, move |seen, _| {
        if seen.header("authorization") != Some(&wanted) {
            return Some(Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        seen.path.ends_with(&digest).then(|| Reply::redirect(&target))
    });
    let (_dir, options) = with_login(&server.host(), "user:secret");
    assert_eq!(layer(&open_with(&server.host(), &options)).unwrap(), served.layer);
    let there = elsewhere.seen();
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].header("authorization"), None);
    assert!(
        !there[0]
            .headers
            .values()
            .any(|value| value.contains("secret") || *value == login)
    );

    // A redirect within the same host and port keeps them.
    let digest = served.layer_digest();
    let here = faulty(&served, move |seen, _| {
        if seen.header("authorization").is_none() {
            return Some(Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        let moved = format!("/elsewhere/v2/org/os/blobs/{digest}");
        (seen.path.ends_with(&digest) && !seen.path.starts_with("/elsewhere")).then(|| Reply::redirect(&moved))
    });
    let (_dir, options) = with_login(&here.host(), "user:secret");
    assert_eq!(layer(&open_with(&here.host(), &options)).unwrap(), served.layer);
}

#[test]
fn who_a_registry_redirects_to_gets_no_login_however_he_asks() {
    let served = Served::new(10);
    for (entry, kind) in [
        (json!({"auth": STANDARD.encode("user:secret")}), "Basic realm=\"x\""),
        (json!({"auth": STANDARD.encode("user:secret")}), "Bearer"),
        (json!({"identitytoken": "secret"}), "Bearer"),
    ] {
        let thief = Arc::new(Server::start(|_, _| Reply::ok(json!({"token": "t"}).to_string())));
        let realm = format!("Bearer realm=\"http://{}/token\"", thief.host());
        let challenge = if kind == "Bearer" { realm } else { kind.into() };
        let elsewhere = Server::start(move |_, _| Reply::new(401).with("WWW-Authenticate", challenge.clone()));
        for part in ["blobs", "manifests"] {
            let target = format!("http://{}/{part}", elsewhere.host());
            let path = format!("/{part}/");
            let server = faulty(&served, move |seen, _| {
                seen.path.contains(&path).then(|| Reply::redirect(&target))
            });
            let (dir, options) = with_login(&server.host(), "");
            let auth = json!({"auths": {server.host(): entry}});
            std::fs::write(dir.path().join("auth.json"), auth.to_string()).unwrap();
            let text = layer(&open_with(&server.host(), &options)).unwrap_err().to_string();
            assert!(text.contains("a login of its own"), "{kind}, {part}: {text}");
        }
        assert_eq!(thief.story(), [""; 0], "{kind}");
        let told: Vec<_> = elsewhere
            .seen()
            .iter()
            .filter_map(|seen| seen.header("authorization").map(String::from))
            .collect();
        assert_eq!(told, [""; 0], "{kind}");
    }
}

#[test]
fn a_redirect_to_plain_http_elsewhere_or_in_a_circle_is_refused_without_its_secrets() {
    let served = Served::new(10);
    let redirected = |to: String| {
        let digest = served.layer_digest();
        let server = faulty(&served, move |seen, _| {
            seen.path.ends_with(&digest).then(|| Reply::redirect(&to))
        });
        (layer(&open(&server)).unwrap_err().to_string(), server.story().len())
    };
    let (text, _) = redirected("http://user:pw@cdn.example/blob?token=hush".into());
    assert!(
        text.contains("not safe") && text.contains("http://cdn.example/blob"),
        "{text}"
    );
    assert!(!text.contains("hush") && !text.contains("pw"), "{text}");
    let (text, _) = redirected("file:///etc/passwd".into());
    assert!(text.contains("not safe"), "{text}");
    let (text, requests) = redirected(format!("/v2/org/os/blobs/{}", served.layer_digest()));
    assert!(text.contains("redirects") && requests < 20, "{text}");
}

/// A folder with an auth.json for `host`, and options that read it.
fn with_login(host: &str, login: &str) -> (tempfile::TempDir, Options) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    let auth = json!({"auths": {host: {"auth": STANDARD.encode(login)}}});
    std::fs::write(&path, auth.to_string()).unwrap();
    let options = Options {
        auth_files: vec![dir.path().join("missing.json"), path],
        ..options()
    };
    (dir, options)
}

/// A registry that wants tokens of `tokens`, the n-th of which is `token-n`; `good` says whether one is still good.
fn token_registry(
    served: &Served,
    expires_in: impl Into<serde_json::Value>,
    good: impl Fn(usize, &Seen) -> bool + Send + Sync + 'static,
) -> (Server, Arc<Server>) {
    let expires_in = expires_in.into();
    let tokens = Arc::new(Server::start(move |_, before| {
        Reply::ok(json!({"token": format!("token-{before}"), "expires_in": expires_in}).to_string())
    }));
    let realm = format!("http://{}/token", tokens.host());
    let server = faulty(served, move |seen, _| {
        let token = seen
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer token-"));
        if token.is_some_and(|n| good(n.parse().unwrap(), seen)) {
            return None;
        }
        let challenge = format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:org/os:pull\"");
        Some(Reply::new(401).with("WWW-Authenticate", challenge))
    });
    (server, tokens)
}

#[test]
fn a_token_is_fetched_once_and_used_for_all() {
    let served = Served::new(MIB);
    let (server, tokens) = token_registry(&served, 300, |_, _| true);
    let registry = open(&server);
    registry.resolve(&Quiet).unwrap();
    assert_eq!(registry.requests(), 3, "refused, token, answer");
    assert_eq!(layer(&registry).unwrap(), served.layer);
    assert_eq!(
        tokens.story(),
        ["GET /token?service=reg&scope=repository%3Aorg%2Fos%3Apull"]
    );
    assert_eq!(tokens.seen()[0].header("authorization"), None);
}

#[test]
fn a_token_whose_lifetime_is_no_whole_number_is_used() {
    let served = Served::new(10);
    for odd in [json!("300"), json!(59.5), json!(-1), json!(null)] {
        let (server, _tokens) = token_registry(&served, odd.clone(), |_, _| true);
        assert_eq!(layer(&open(&server)).unwrap(), served.layer, "{odd}");
    }
}

#[test]
fn a_token_is_asked_for_with_the_password_and_the_password_stays_there() {
    let served = Served::new(10);
    let (server, tokens) = token_registry(&served, 300, |_, _| true);
    let (_dir, options) = with_login(&server.host(), "user:se:cret");
    layer(&open_with(&server.host(), &options)).unwrap();
    let expected = format!("Basic {}", STANDARD.encode("user:se:cret"));
    assert_eq!(tokens.seen()[0].header("authorization"), Some(expected.as_str()));
    assert!(tokens.seen()[0].path.contains("account=user"));
    let sent: Vec<_> = server
        .seen()
        .iter()
        .filter_map(|seen| seen.header("authorization").map(String::from))
        .collect();
    assert!(
        !sent.is_empty() && sent.iter().all(|value| value.starts_with("Bearer ")),
        "{sent:?}"
    );
}

#[test]
fn an_identity_token_is_exchanged_in_the_body_of_a_post() {
    let served = Served::new(10);
    let (server, tokens) = token_registry(&served, 300, |_, _| true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(
        &path,
        json!({"auths": {server.host(): {"identitytoken": "i+d"}}}).to_string(),
    )
    .unwrap();
    let options = Options {
        auth_files: vec![path],
        ..options()
    };
    open_with(&server.host(), &options).resolve(&Quiet).unwrap();
    let asked = &tokens.seen()[0];
    let body = String::from_utf8(asked.body.clone()).unwrap();
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token"));
    assert!(
        body.contains("grant_type=refresh_token") && body.contains("refresh_token=i%2Bd"),
        "{body}"
    );
}

#[test]
fn a_token_that_runs_out_midway_is_replaced() {
    let served = Served::new(4 * MIB);
    let digest = served.layer_digest();
    // The first token is not good for blobs any more; the layer is cut once, and the second token runs out there.
    let (server, tokens) = token_registry(&served, 300, move |n, seen| match seen.path.contains("/blobs/") {
        true if seen.range_start().is_some() => n >= 2,
        true => n >= 1,
        false => true,
    });
    let blob = served.layer.clone();
    let front = {
        let target = server.host();
        let first = std::sync::atomic::AtomicBool::new(true);
        Server::start(move |seen, _| {
            let mut reply = forward(&target, seen);
            let layer = seen.path.ends_with(&digest) && reply.status == 200;
            if layer && first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                reply.body = blob.clone();
                reply.cut_after = Some(2 * MIB);
            }
            reply
        })
    };
    assert_eq!(layer(&open(&front)).unwrap(), served.layer);
    assert_eq!(tokens.story().len(), 3);
}

/// The answer of another server.
fn forward(host: &str, seen: &Seen) -> Reply {
    use std::io::{BufRead, BufReader, Write as _};
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    let mut text = format!("{} {} HTTP/1.1\r\n", seen.method, seen.path);
    for (name, value) in &seen.headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all((text + "\r\n").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut reply = Reply::new(line.split(' ').nth(1).unwrap().parse().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name {
            "Content-Length" => length = value.parse().unwrap(),
            _ => reply = reply.with(name, value),
        }
    }
    if seen.method != "HEAD" {
        reply.body = vec![0; length];
        reader.read_exact(&mut reply.body).unwrap();
    }
    reply
}

#[test]
fn a_token_about_to_run_out_is_replaced_before_it_is_refused() {
    let served = Served::new(10);
    let (server, tokens) = token_registry(&served, 1, |_, _| true);
    let registry = open(&server);
    registry.resolve(&Quiet).unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    registry.resolve(&Quiet).unwrap();
    assert_eq!(tokens.story().len(), 2);
    assert_eq!(server.story().len(), 3, "one refusal in all: {:?}", server.story());
}

#[test]
fn a_registry_that_refuses_every_token_is_not_asked_for_ever() {
    let served = Served::new(10);
    let (server, tokens) = token_registry(&served, 300, |_, _| false);
    let (dir, options) = with_login("other.example", "user:secret");
    let error = open_with(&server.host(), &options).resolve(&Quiet).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    assert_eq!((server.story().len(), tokens.story().len()), (2, 1));
    let text = error.to_string();
    let missing = dir.path().join("missing.json").display().to_string();
    let read = dir.path().join("auth.json").display().to_string();
    for part in [
        "401",
        &missing,
        &read,
        "podman login",
        &format!("http://{}/v2/org/os", server.host()),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_wrong_password_is_sent_once_and_never_shown() {
    let server = faulty(&Served::new(10), |_, _| {
        Some(Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""))
    });
    let (dir, options) = with_login(&server.host(), "user:hunter2");
    let text = open_with(&server.host(), &options)
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert_eq!(server.story().len(), 2);
    assert!(
        text.contains(&dir.path().join("auth.json").display().to_string()),
        "{text}"
    );
    assert!(text.contains("were refused") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_token_service_without_tls_gets_no_password() {
    let server = faulty(&Served::new(10), |_, _| {
        Some(Reply::new(401).with("WWW-Authenticate", "Bearer realm=\"http://tokens.example/t\""))
    });
    let (_dir, options) = with_login(&server.host(), "user:hunter2");
    let text = open_with(&server.host(), &options)
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(text.contains("http://tokens.example/t is not safe"), "{text}");
}

#[test]
fn an_endless_manifest_is_not_read() {
    for chunked in [false, true] {
        let server = faulty(&Served::new(10), move |_, _| {
            Some(Reply {
                chunked,
                ..Reply::ok(vec![b' '; 5 * MIB])
            })
        });
        let text = image(&open(&server)).unwrap_err().to_string();
        assert!(text.contains("longer than"), "{text}");
        assert_eq!(server.story().len(), 1);
    }
}

#[test]
fn a_config_or_entry_that_claims_too_much_is_not_fetched() {
    let served = Served::new(10);
    let mut manifest: serde_json::Value = serde_json::from_slice(&served.manifest).unwrap();
    manifest["config"]["size"] = json!(9 * MIB);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let server = faulty(&served, move |seen, _| {
        seen.path
            .contains("/manifests/")
            .then(|| manifest_reply(&bytes, MANIFEST))
    });
    assert!(
        image(&open(&server))
            .unwrap_err()
            .to_string()
            .contains("no more than 8388608")
    );
    assert_eq!(server.story().len(), 1);
}

#[test]
fn when_the_tag_moves_between_check_and_fetch_the_bytes_received_count() {
    let served = Served::new(10);
    let server = faulty(&served, |seen, _| {
        (seen.method == "HEAD").then(|| manifest_reply(b"another manifest", MANIFEST))
    });
    let registry = open(&server);
    let before = registry.resolve(&Quiet).unwrap();
    let image = image(&registry).unwrap();
    assert_eq!(before.to_string(), sha256(b"another manifest"));
    assert_eq!(image.top.to_string(), served.manifest_digest());
}

#[test]
fn a_manifest_fetched_by_digest_must_have_it() {
    let served = Served::new(10);
    let pinned = format!("sha256:{}", "0".repeat(64));
    let manifest = served.manifest.clone();
    let server = faulty(&served, move |seen, _| {
        seen.path
            .contains("/manifests/")
            .then(|| manifest_reply(&manifest, MANIFEST))
    });
    let text = format!("{}/org/os@{pinned}", server.host());
    let registry = Registry::open(&text.parse().unwrap(), &options()).unwrap();
    let error = image(&registry).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains(&pinned), "{error}");
}

#[test]
fn an_index_leads_to_the_manifest_for_this_machine() {
    let served = Served::new(MIB);
    let index = served.index(Platform::host().architecture());
    let top = sha256(&index);
    let server = faulty(&served, move |seen, _| {
        seen.path.ends_with("/1").then(|| manifest_reply(&index, INDEX))
    });
    let registry = open(&server);
    assert_eq!(registry.resolve(&Quiet).unwrap().to_string(), top);
    let image = image(&registry).unwrap();
    assert_eq!(image.top.to_string(), top);
    assert_eq!(image.digest.to_string(), served.manifest_digest());
    assert_eq!(layer(&registry).unwrap(), served.layer);
}

#[test]
fn an_index_without_this_machine_says_what_it_has() {
    let served = Served::new(10);
    let index = served.index("s390x");
    let server = faulty(&served, move |seen, _| {
        seen.path.ends_with("/1").then(|| manifest_reply(&index, INDEX))
    });
    let text = image(&open(&server)).unwrap_err().to_string();
    assert!(
        text.contains("linux/s390x") && text.contains(&Platform::host().to_string()),
        "{text}"
    );
}

#[test]
fn an_index_that_names_itself_for_ever_is_given_up() {
    let served = Served::new(10);
    let mut inner = served.manifest.clone();
    let mut blobs = std::collections::BTreeMap::from([(sha256(&inner), (inner.clone(), MANIFEST))]);
    for _ in 0..5 {
        let entry = json!({"mediaType": INDEX, "digest": sha256(&inner), "size": inner.len()});
        inner = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})).unwrap();
        blobs.insert(sha256(&inner), (inner.clone(), INDEX));
    }
    let server = faulty(&served, move |seen, _| {
        let asked = seen.path.rsplit('/').next().unwrap();
        let (bytes, kind) = blobs.get(asked).cloned().unwrap_or((inner.clone(), INDEX));
        seen.path.contains("/manifests/").then(|| manifest_reply(&bytes, kind))
    });
    let text = image(&open(&server)).unwrap_err().to_string();
    assert!(text.contains("deep"), "{text}");
}

#[test]
fn an_artifact_is_refused_before_anything_of_it_is_fetched() {
    let served = Served::new(10);
    let mut manifest: serde_json::Value = serde_json::from_slice(&served.manifest).unwrap();
    manifest["artifactType"] = json!("application/spdx+json");
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let server = faulty(&served, move |_, _| Some(manifest_reply(&bytes, MANIFEST)));
    let text = image(&open(&server)).unwrap_err().to_string();
    assert!(
        text.contains("artifact") && text.contains("application/spdx+json"),
        "{text}"
    );
    assert_eq!(server.story().len(), 1);
}

#[test]
fn a_missing_image_says_so_with_the_registrys_words() {
    let server = Server::start(|_, _| not_found());
    let error = open(&server).resolve(&Quiet).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::Network);
    assert!(
        text.contains("404") && text.contains("manifest unknown") && text.contains("no such image"),
        "{text}"
    );
}

/// `h.example` is `good`, with these mirrors before it.
fn behind_mirrors(dir: &Path, good: &Server, mirrors: [&Server; 2]) -> Options {
    let mut conf = format!("[[registry]]\nprefix = \"h.example\"\nlocation = \"{}\"\n", good.host());
    for mirror in mirrors {
        conf.push_str(&format!("[[registry.mirror]]\nlocation = \"{}\"\n", mirror.host()));
    }
    registries_conf(dir, &conf)
}

fn registries_conf(dir: &Path, text: &str) -> Options {
    let path = dir.join("registries.conf");
    std::fs::write(&path, text).unwrap();
    Options {
        registries_conf: vec![path],
        ..options()
    }
}

#[test]
fn mirrors_come_first_and_the_next_takes_over_when_one_fails() {
    let served = Served::new(4 * MIB);
    let broken = Server::start(|_, _| Reply::new(503));
    let (whole, digest) = (served.clone(), served.layer_digest());
    // This one has the manifest, but breaks in the middle of the layer and does not come back.
    let half = faulty(&served, move |seen, before| {
        match (seen.path.ends_with(&digest), before) {
            (true, 0) => Some(Reply {
                cut_after: Some(2 * MIB),
                ..whole.reply(seen)
            }),
            (true, _) => Some(Reply::new(500)),
            _ => None,
        }
    });
    let good = faulty(&served, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let conf = format!(
        "[[registry]]\nprefix = \"h.example/org\"\nlocation = \"{}/moved\"\n\
         [[registry.mirror]]\nlocation = \"{}/org\"\n[[registry.mirror]]\nlocation = \"{}/org\"\n",
        good.host(),
        broken.host(),
        half.host(),
    );
    let options = registries_conf(dir.path(), &conf);
    let registry = open_with("h.example", &options);
    assert_eq!(layer(&registry).unwrap(), served.layer);
    assert_eq!(
        broken.story(),
        ["GET /v2/org/os/manifests/1"],
        "no patience with a mirror"
    );
    assert!(half.story()[0].contains("/v2/org/os/manifests/1"));
    assert_eq!(
        good.story(),
        [format!("GET /v2/moved/os/blobs/{}", served.layer_digest())]
    );
    assert!(
        good.seen()[0].range_start().unwrap() > 0,
        "it goes on where the mirror broke"
    );
}

#[test]
fn a_mirror_with_a_page_instead_of_a_manifest_or_with_another_config_is_passed_over() {
    let served = Served::new(MIB);
    let page = faulty(&served, |_, _| {
        Some(Reply::ok("<html>log in first</html>").with("Content-Type", "text/html"))
    });
    let blobs = served.blobs.clone();
    let other = faulty(&served, move |seen, _| {
        let (_, digest) = seen.path.split_once("/blobs/")?;
        let same_size: Vec<u8> = blobs[digest].iter().map(|byte| byte ^ 1).collect();
        Some(Reply::ok(same_size))
    });
    let good = faulty(&served, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let options = behind_mirrors(dir.path(), &good, [&page, &other]);
    let registry = Registry::open(&"h.example/org/os:1".parse().unwrap(), &options).unwrap();
    let told = Told::default();
    let image = registry.image(&Platform::host(), &told).unwrap();
    assert_eq!(image.digest.to_string(), served.manifest_digest());
    let told = told.0.into_inner().unwrap();
    assert_eq!(
        told.iter().filter(|event| event.contains("mirror passed over")).count(),
        2,
        "{told:?}"
    );
    assert!(page.story().iter().all(|request| request.contains("/manifests/")));
}

#[test]
fn a_mirror_with_other_content_under_the_same_digest_is_passed_over() {
    let served = Served::new(MIB);
    let (other, digest) = (Served::new(2 * MIB), served.layer_digest());
    let manifest = other.manifest.clone();
    let wrong = faulty(&served, move |seen, _| match seen.path.contains("/manifests/") {
        true => Some(manifest_reply(&manifest, MANIFEST)),
        false => None,
    });
    let (blob, named) = (other.layer.clone(), digest.clone());
    let short = faulty(&served, move |seen, _| {
        seen.path.ends_with(&named).then(|| Reply::ok(blob.clone()))
    });
    let good = faulty(&served, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let options = behind_mirrors(dir.path(), &good, [&wrong, &short]);
    let pinned = format!("h.example/org/os@{}", served.manifest_digest());
    let registry = Registry::open(&pinned.parse().unwrap(), &options).unwrap();
    assert_eq!(layer(&registry).unwrap(), served.layer);
    assert_eq!(wrong.story().len(), 1);
    assert_eq!(short.count(&digest), 1);
    assert_eq!(good.story(), [format!("GET /v2/org/os/blobs/{digest}")]);
}

#[test]
fn a_mirror_of_several_registries_is_told_which_one_is_meant_where_it_asks_for_that() {
    let served = Served::new(MIB);
    let mirror = faulty(&served, |seen, _| {
        let tag = seen.path.contains("/manifests/") && !seen.path.contains("/manifests/sha256:");
        (tag && !seen.path.ends_with("?ns=h.example")).then(not_found)
    });
    let dir = tempfile::tempdir().unwrap();
    let conf = format!(
        "[[registry]]\nprefix = \"h.example\"\nlocation = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        mirror.host(),
    );
    let registry = open_with("h.example", &registries_conf(dir.path(), &conf));
    registry.resolve(&Quiet).unwrap();
    assert_eq!(layer(&registry).unwrap(), served.layer);
    assert_eq!(mirror.count("?ns="), 2, "{:?}", mirror.story());
    assert_eq!(mirror.count("/blobs/"), 2, "{:?}", mirror.story());
}

#[test]
fn a_blocked_registry_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let options = registries_conf(dir.path(), "[[registry]]\nlocation = \"h.example\"\nblocked = true\n");
    let reference = "h.example/org/os:1".parse().unwrap();
    let error = Registry::open(&reference, &options).unwrap_err();
    assert!(error.to_string().contains("blocks h.example"), "{error}");
    assert_eq!(error.kind(), Kind::Usage);
}

#[test]
fn an_image_of_podman_where_there_is_no_podman_is_said() {
    let reference = "containers-storage:quay.io/os".parse().unwrap();
    let error = Registry::open(&reference, &options()).unwrap_err().to_string();
    assert!(error.contains("podman has no images on this machine"), "{error}");
}

#[test]
fn other_machines_are_asked_through_the_proxy_and_with_tls_first() {
    let served = Served::new(MIB);
    let proxy = faulty(&served, |seen, _| (seen.method == "CONNECT").then(|| Reply::new(502)));
    let address = Some(format!("http://{}", proxy.host()));
    let proxied = |insecure: &[&str], no_proxy: Option<&str>| Options {
        insecure: insecure.iter().map(|host| host.to_string()).collect(),
        proxy: Proxy {
            https: address.clone(),
            http: address.clone(),
            no_proxy: no_proxy.map(String::from),
        },
        ..options()
    };
    let registry = open_with("h.example:5000", &proxied(&["h.example"], None));
    assert_eq!(layer(&registry).unwrap(), served.layer);
    assert_eq!(proxy.story()[0], "CONNECT h.example:5000");
    assert_eq!(proxy.story()[1], "GET http://h.example:5000/v2/org/os/manifests/1");
    assert_eq!(proxy.count("CONNECT"), 1, "what works is kept");

    let before = proxy.story().len();
    let error = open_with("h.example", &proxied(&[], None))
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(error.contains("https://h.example/"), "{error}");
    assert!(
        proxy.story()[before..]
            .iter()
            .all(|line| line == "CONNECT h.example:443"),
        "never without TLS"
    );

    // This machine is never asked through a proxy, whatever the settings say.
    let here = faulty(&served, |_, _| None);
    let before = proxy.story().len();
    open_with(&here.host(), &proxied(&[], None)).resolve(&Quiet).unwrap();
    assert_eq!((here.story().len(), proxy.story().len()), (1, before));
}

#[test]
fn what_is_insecure_of_one_namespace_or_mirror_is_not_of_another_on_the_same_host() {
    let served = Served::new(10);
    let proxy = faulty(&served, |seen, _| (seen.method == "CONNECT").then(|| Reply::new(502)));
    let address = Some(format!("http://{}", proxy.host()));
    let dir = tempfile::tempdir().unwrap();
    let ask = |conf: &str, image: &str| {
        let options = Options {
            proxy: Proxy {
                https: address.clone(),
                http: address.clone(),
                no_proxy: None,
            },
            ..registries_conf(dir.path(), conf)
        };
        let before = proxy.story().len();
        let reference: Reference = format!("{image}:1").parse().unwrap();
        let done = Registry::open(&reference, &options).unwrap().resolve(&Quiet).is_ok();
        let plain = proxy.story()[before..].iter().any(|line| line.contains(" http://"));
        assert_eq!(done, plain, "{conf}, {image}");
        plain
    };
    let namespace = "[[registry]]\nlocation = \"h.example/dev\"\ninsecure = true\n";
    assert!(ask(namespace, "h.example/dev/os"));
    assert!(!ask(namespace, "h.example/prod/os"));
    let mirror = "[[registry]]\nlocation = \"quay.example\"\n[[registry.mirror]]\nlocation = \"h.example/cache\"\ninsecure = true\n";
    assert!(ask(mirror, "quay.example/os"));
    assert!(!ask(mirror, "h.example/os"));
    // However its port is written, and also Docker Hub, whose API is elsewhere.
    let whole = "[[registry]]\nlocation = \"h.example:443\"\ninsecure = true\n";
    assert!(ask(whole, "h.example:443/os"));
    assert!(ask(
        "[[registry]]\nlocation = \"docker.io\"\ninsecure = true\n",
        "docker.io/org/os"
    ));
}

#[test]
fn an_empty_blob_is_a_blob() {
    let served = Served::new(0);
    let server = faulty(&served, |_, _| None);
    assert_eq!(layer(&open(&server)).unwrap(), b"");
}

#[test]
fn a_helper_that_is_not_there_is_named_when_a_login_is_needed() {
    let server = faulty(&Served::new(10), |_, _| {
        Some(Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""))
    });
    let dir = tempfile::tempdir().unwrap();
    let options = registries_conf(dir.path(), "credential-helpers = [\"nowhere-to-be-found\"]\n");
    let told = Told::default();
    let text = open_with(&server.host(), &options)
        .resolve(&told)
        .unwrap_err()
        .to_string();
    assert!(text.contains("docker-credential-nowhere-to-be-found"), "{text}");
    assert!(
        told.0
            .lock()
            .unwrap()
            .join("")
            .contains("asking docker-credential-nowhere")
    );
}

#[test]
fn several_readers_share_a_registry() {
    let served = Served::new(8 * MIB);
    let (server, tokens) = token_registry(&served, 300, |_, _| true);
    let registry = open(&server);
    let image = image(&registry).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut bytes = Vec::new();
                registry
                    .blob(&image.manifest.layers[0], &Quiet)
                    .read_to_end(&mut bytes)
                    .unwrap();
                assert_eq!(bytes, served.layer);
            });
        }
    });
    assert_eq!(tokens.story().len(), 1);
}
