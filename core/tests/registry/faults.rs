//! Registries that are busy, cut what they send, send something else, or do not answer.

use super::*;

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
fn a_blob_cut_after_every_few_bytes_still_comes_but_not_byte_by_byte() {
    let cut = |size: usize, cut_after: usize| {
        let served = Served::new(size);
        let (whole, digest) = (served.clone(), served.layer_digest());
        let server = faulty(&served, move |seen, _| {
            let cut = seen.path.ends_with(&digest);
            cut.then(|| Reply {
                cut_after: Some(cut_after),
                ..whole.reply(seen)
            })
        });
        let got = layer(&open(&server)).map(|got| got == served.layer);
        (got, server.count(&served.layer_digest()))
    };
    let (got, requests) = cut(3 * MIB, 100_000);
    assert!(got.unwrap(), "{requests}");
    assert_eq!(requests, (3 * MIB).div_ceil(100_000));
    let (got, requests) = cut(MIB, 1000);
    assert!(got.unwrap_err().to_string().contains("4 attempts"));
    assert!((200..500).contains(&requests), "{requests}");
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
