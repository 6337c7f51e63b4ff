//! Who gets credentials, tokens, and who does not.

use super::*;

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
fn a_token_service_that_closed_a_connection_just_when_it_was_asked_is_asked_again_at_once() {
    let served = Served::new(10);
    let tokens = Server::start(|_, before| match before {
        0 => Reply::hang_up(),
        _ => Reply::ok(json!({"token": "t"}).to_string()),
    });
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let server = faulty(&served, move |seen, _| match seen.header("authorization") {
        Some("Bearer t") => None,
        _ => Some(Reply::new(401).with("WWW-Authenticate", &challenge)),
    });
    let mut options = options();
    options.retry.attempts = 1;
    assert_eq!(layer(&open_with(&server.host(), &options)).unwrap(), served.layer);
    assert_eq!(tokens.count("GET /token"), 2, "{:?}", tokens.story());
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
