//! registries.conf: mirrors, what is blocked, what is insecure; and the proxy.

use super::*;

/// `h.example` is `good`, with these mirrors before it.
fn behind_mirrors<const N: usize>(dir: &Path, good: &Server, mirrors: [&Server; N]) -> Options {
    let mut conf = format!("[[registry]]\nprefix = \"h.example\"\nlocation = \"{}\"\n", good.host());
    for mirror in mirrors {
        conf.push_str(&format!("[[registry.mirror]]\nlocation = \"{}\"\n", mirror.host()));
    }
    registries_conf(dir, &conf)
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
fn a_mirror_has_one_try_for_each_blob_and_goes_on_where_it_was_cut_after_it_sent_some() {
    let served = Served::new(4 * MIB);
    let busy = faulty(&served, |seen, _| {
        let blob = seen.path.contains("/blobs/");
        blob.then(|| Reply::new(503).with("Retry-After", "1"))
    });
    let (whole, digest) = (served.clone(), served.layer_digest());
    let cut = faulty(&served, move |seen, before| {
        let layer = seen.path.ends_with(&digest) && before == 0;
        layer.then(|| Reply {
            cut_after: Some(2 * MIB),
            ..whole.reply(seen)
        })
    });
    let good = faulty(&served, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let options = behind_mirrors(dir.path(), &good, [&busy, &cut]);
    let start = Instant::now();
    assert_eq!(layer(&open_with("h.example", &options)).unwrap(), served.layer);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(busy.count("/blobs/"), 2, "{:?}", busy.story());
    assert_eq!(cut.count(&served.layer_digest()), 2, "{:?}", cut.story());
    assert!(good.story().is_empty(), "{:?}", good.story());
}

#[test]
fn a_mirror_that_closed_a_connection_just_when_it_was_asked_is_asked_again_at_once_and_no_more() {
    let served = Served::new(MIB);
    for (hang_ups, of_good) in [(1, 0), (2, 1)] {
        let of = served.clone();
        let closing = faulty(&served, move |seen, before| {
            (is_layer(seen, &of) && before < hang_ups).then(Reply::hang_up)
        });
        let good = faulty(&served, |_, _| None);
        let dir = tempfile::tempdir().unwrap();
        let options = behind_mirrors(dir.path(), &good, [&closing]);
        assert_eq!(layer(&open_with("h.example", &options)).unwrap(), served.layer);
        assert_eq!(closing.count(&served.layer_digest()), 2, "{:?}", closing.story());
        assert_eq!(good.story().len(), of_good, "{:?}", good.story());
    }
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
