//! Nothing goes faster than it may, in either direction.

use std::io::Read;

use cfs_core::registry::{Limit, Push};

use super::*;

fn limited(rate: &str) -> Options {
    Options {
        limit: Some(Limit::new(rate.parse().unwrap())),
        ..options(2)
    }
}

#[test]
fn nothing_comes_faster_than_it_may_and_it_comes_evenly() {
    let layer = layer(MIB, 12);
    let registry = Registry::start(&[&layer]);
    let open = registry::Registry::open(&name(&registry), &limited("512K")).unwrap();
    let image = open.image(&Platform::host(), &Quiet).unwrap();
    let start = Instant::now();
    let mut blob = open.blob(&image.manifest.layers[0], &Quiet);
    let (mut bytes, mut buffer, mut slowest) = (Vec::new(), vec![0; 64 * KIB], Duration::ZERO);
    let mut last = Instant::now();
    loop {
        let n = blob.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..n]);
        slowest = slowest.max(last.elapsed());
        last = Instant::now();
        // Never ahead of the rate, by more than a moment's worth.
        let may = 512.0 * 1024.0 * start.elapsed().as_secs_f64() + 64.0 * 1024.0;
        assert!(
            (bytes.len() as f64) < may,
            "{} after {:?}",
            bytes.len(),
            start.elapsed()
        );
    }
    assert_eq!(bytes, layer.blob);
    let took = start.elapsed().as_secs_f32();
    assert!((1.8..4.0).contains(&took), "{took} s for 1 MiB at 512 KiB/s");
    assert!(slowest < Duration::from_millis(700), "{slowest:?} without a byte");
}

#[test]
fn one_limit_holds_for_all_connections_and_for_parts() {
    let (one, two) = (layer(MIB, 13), layer(MIB, 14));
    let (a, b) = (Registry::start(&[&one]), Registry::start(&[&two]));
    let options = limited("1M");
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (folder, registry) in [(&first, &a), (&second, &b)] {
            let options = &options;
            scope.spawn(move || pull_with(&store(folder.path()), registry, options).1.unwrap());
        }
    });
    let took = start.elapsed().as_secs_f32();
    assert!((1.8..5.0).contains(&took), "{took} s for 2 MiB at 1 MiB/s");

    let (folder, old, new) = (tempfile::tempdir().unwrap(), chunked(1000), chunked(2000));
    let registry = Registry::start(&[&old]);
    finish(folder.path(), &registry, &old);
    registry.serve(&[&new], Ranges::Several);
    let start = Instant::now();
    let (told, pulled) = pull_with(&store(folder.path()), &registry, &limited("1M"));
    pulled.unwrap();
    assert!(!says(&told, "as a whole"), "{told:?}");
    let took = start.elapsed().as_secs_f32();
    assert!((1.6..5.0).contains(&took), "{took} s for 1.9 MiB at 1 MiB/s");
}

#[test]
fn an_upload_is_no_faster_than_it_may() {
    let server = support::Server::start(|seen, _| match (seen.method.as_str(), seen.path.contains("uploads")) {
        ("POST", _) => support::Reply::new(202).with("Location", "/v2/org/os/blobs/uploads/1"),
        ("PATCH", _) => support::Reply::new(202).with("Location", "/v2/org/os/blobs/uploads/1"),
        ("PUT", _) => support::Reply::new(201),
        ("GET", _) => support::Reply::ok("{}"),
        _ => support::not_found(),
    });
    let reference = format!("{}/org/os:1", server.host()).parse().unwrap();
    let push = Push::open(&reference, &limited("512K"), &Quiet).unwrap();
    let bytes = noise(MIB, 15);
    let descriptor = cfs_core::manifest::Descriptor {
        media_type: "application/octet-stream".into(),
        digest: support::sha256(&bytes).parse().unwrap(),
        size: bytes.len() as u64,
        annotations: Default::default(),
    };
    let start = Instant::now();
    let mut content = |sink: &mut dyn std::io::Write| {
        sink.write_all(&bytes)
            .map_err(|e| cfs_core::Error::io("write", "blob", e))
    };
    push.put(&descriptor, &mut content, &Quiet).unwrap();
    let took = start.elapsed().as_secs_f32();
    assert!((1.8..5.0).contains(&took), "{took} s for 1 MiB at 512 KiB/s");
    let sent: Vec<u8> = server.seen().into_iter().flat_map(|seen| seen.body).collect();
    assert!(sent == bytes);
}
