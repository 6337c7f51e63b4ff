//! What registries serve: indexes, Docker's manifests, digests instead of tags, artifacts that are no images.

use serde_json::json;

use crate::common::layout::{How, Image, Layer, MANIFEST, base, digest, noise, small};
use crate::common::registry::Registry;
use crate::common::{Cfs, scratch};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[test]
fn of_an_index_the_image_for_this_machine_is_taken_and_unchanged_is_one_request() {
    let registry = Registry::start();
    let (ours, theirs) = (small(1, "a", 2, 2000).finish(), small(2, "b", 2, 2000).finish());
    ours.push(&registry, "os", "ours");
    theirs.push(&registry, "os", "theirs");
    let entry = |image: &crate::common::layout::Finished, architecture: &str| {
        json!({"mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
               "platform": {"architecture": architecture, "os": "linux"}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&theirs, "s390x"), entry(&ours, this_architecture())]});
    registry.put_manifest("os", "many", INDEX, index.to_string().as_bytes());

    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &registry.reference("os:many")]).expect(0);
    assert!(cfs.status().to_string().contains(&ours.digest()));
    let before = registry.requests().len();
    cfs.run(["upgrade"]).expect(77);
    assert_eq!(registry.requests().len(), before + 1);

    // An index without one for us says which there are.
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&theirs, "s390x")]});
    registry.put_manifest("os", "foreign", INDEX, index.to_string().as_bytes());
    let ran = cfs.run(["switch", &registry.reference("os:foreign")]).expect(1);
    assert!(
        ran.stderr.contains("s390x") && ran.stderr.contains(this_architecture()),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_docker_image_is_taken_like_an_oci_one() {
    let registry = Registry::start();
    let app = Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/app", noise(5, 50_000));
    let image = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .layer(app, How::Gzip)
        .finish();
    for blob in &image.blobs {
        registry.put_blob("os", blob);
    }
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let text = text
        .replace(MANIFEST, kind)
        .replace(
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        )
        .replace(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        );
    registry.put_manifest("os", "docker", kind, text.as_bytes());
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &format!("docker://{}", registry.reference("os:docker"))])
        .expect(0);
    assert!(cfs.status().to_string().contains(&digest(text.as_bytes())));
    cfs.fsck();
}

#[test]
fn an_image_can_be_named_by_its_digest() {
    let registry = Registry::start();
    let image = small(1, "a", 2, 2000).finish();
    image.push(&registry, "os", "1");
    small(2, "a", 2, 2000).finish().push(&registry, "os", "1");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &registry.reference(&format!("os@{}", image.digest()))])
        .expect(0);
    assert!(
        cfs.status().to_string().contains(&image.digest()),
        "not what the tag names now"
    );
    cfs.run(["upgrade"]).expect(77);
}

#[test]
fn an_artifact_is_refused_as_what_it_is() {
    let registry = Registry::start();
    let empty = registry.put_blob("os", b"{}");
    let payload = registry.put_blob("os", b"a signature, say");
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.thing",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
        "layers": [{"mediaType": "application/vnd.example.thing", "digest": payload, "size": 16}]});
    registry.put_manifest("os", "artifact", MANIFEST, manifest.to_string().as_bytes());
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["switch", &registry.reference("os:artifact")]).expect(1);
    assert!(
        ran.stderr.contains("artifact") || ran.stderr.contains("vnd.example.thing"),
        "{}",
        ran.stderr
    );
    assert!(cfs.entries().is_empty());
}
