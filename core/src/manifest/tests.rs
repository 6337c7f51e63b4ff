#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest(n: u8) -> String {
    format!("sha256:{}", hex::encode([n; 32]))
}

fn image(layers: &[&str]) -> Value {
    let layers = layers.iter().enumerate();
    let layers = layers.map(|(at, kind)| json!({"mediaType": kind, "digest": digest(at as u8), "size": 10 + at}));
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": OCI_CONFIG, "digest": digest(99), "size": 5},
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn parse(value: &Value) -> Result<Document> {
    Document::parse(serde_json::to_vec(value).unwrap(), None, "h.example/os:1")
}

fn manifest(value: &Value) -> Manifest {
    match parse(value).unwrap() {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => panic!("an index"),
    }
}

#[test]
fn oci_and_docker_manifests_are_read_with_the_digest_of_their_very_bytes() {
    let oci = image(&[
        "application/vnd.oci.image.layer.v1.tar",
        OCI_LAYER,
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ]);
    let read = manifest(&oci);
    let kinds: Vec<_> = read.layers.iter().map(Descriptor::compression).collect();
    assert_eq!(kinds, [Compression::None, Compression::Gzip, Compression::Zstd]);
    assert_eq!(read.layers[2].size, 12);
    let hash: [u8; 32] = Sha256::digest(&read.bytes).into();
    assert_eq!(read.digest, ManifestDigest::from_hash(hash));

    let mut docker = image(&[
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ]);
    docker["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    docker["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    let kinds: Vec<_> = manifest(&docker).layers.iter().map(Descriptor::compression).collect();
    assert_eq!(kinds, [Compression::Gzip, Compression::None, Compression::Zstd]);

    let mut plain = oci;
    plain.as_object_mut().unwrap().remove("mediaType");
    plain["annotations"] = json!({"a": "b"});
    assert_eq!(manifest(&plain).annotations["a"], "b");
}

#[test]
fn what_is_no_os_image_is_refused_with_its_reason() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = image(&[OCI_LAYER]);
        change(&mut value);
        parse(&value).expect_err("refused").to_string()
    };
    let says = |error: String, part: &str| assert!(error.contains(part), "{part}: {error}");
    says(with(&|v| v["schemaVersion"] = json!(1)), "schema 1");
    says(with(&|v| v["fsLayers"] = json!([])), "schema 1");
    says(with(&|v| v["schemaVersion"] = json!(3)), "schemaVersion 2");
    says(with(&|v| v["manifests"] = json!([])), "at once");
    says(
        with(&|v| v["artifactType"] = json!("application/spdx+json")),
        "artifact of type application/spdx+json",
    );
    says(
        with(&|v| v["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json")),
        "artifact",
    );
    says(
        with(&|v| v["layers"][0]["mediaType"] = json!("application/wasm")),
        "layer 1 of type application/wasm",
    );
    for foreign in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        says(
            with(&|v| v["layers"][0]["mediaType"] = json!(foreign)),
            "may not be distributed",
        );
    }
    says(
        with(&|v| v["layers"][0]["mediaType"] = json!(format!("{OCI_LAYER}+encrypted"))),
        "encrypted",
    );
    says(
        with(&|v| v["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+xz")),
        "compression",
    );
    says(with(&|v| v["layers"][0]["size"] = json!(-1)), "has the size -1");
    says(
        with(&|v| v["layers"][0]["digest"] = json!("sha256:../../x")),
        "is no digest",
    );
    says(
        with(&|v| v["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)))),
        "sha512 are not supported",
    );
    says(
        with(&|v| v["mediaType"] = json!("application/vnd.oci.image.index.v1+json")),
        "something else",
    );
    says(
        with(&|v| v["mediaType"] = json!("application/json")),
        "not an OCI or Docker image",
    );
    says(with(&|v| v["layers"] = Value::Null), "neither layers");
    for text in ["", "x", "[]", "{}", "null", "{\"schemaVersion\":2}"] {
        assert!(Document::parse(text.into(), None, "x").is_err(), "{text}");
    }
}

#[test]
fn the_header_of_the_registry_may_not_contradict_the_content() {
    let bytes = serde_json::to_vec(&image(&[OCI_LAYER])).unwrap();
    let parse = |kind| Document::parse(bytes.clone(), Some(kind), "x");
    assert!(parse("application/vnd.oci.image.manifest.v1+json; charset=utf-8").is_ok());
    assert!(parse("application/octet-stream").is_ok());
    assert!(parse("application/vnd.oci.image.index.v1+json").is_err());
    assert!(parse("application/vnd.docker.distribution.manifest.v1+prettyjws").is_err());
}

fn index(entries: Value) -> Index {
    let value = json!({"schemaVersion": 2, "manifests": entries});
    match parse(&value).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(_) => panic!("a manifest"),
    }
}

fn entry(n: u8, platform: Value) -> Value {
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut entry = json!({"mediaType": kind, "digest": digest(n), "size": 7});
    if !platform.is_null() {
        entry["platform"] = platform;
    }
    entry
}

#[test]
fn the_entry_for_the_machine_is_chosen_and_attestations_never() {
    let index = index(json!([
        entry(1, json!({"os": "unknown", "architecture": "unknown"})),
        entry(2, json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
        entry(3, json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
        entry(4, json!({"os": "linux", "architecture": "amd64"})),
    ]));
    let chosen = |machine: &str| {
        index
            .choose(&machine.parse().unwrap(), "x")
            .map(|entry| entry.digest.clone())
    };
    assert_eq!(chosen("amd64").unwrap(), digest(4));
    assert_eq!(chosen("arm/v7").unwrap(), digest(3));
    assert_eq!(chosen("arm/v6").unwrap(), digest(2));
    let error = chosen("s390x").unwrap_err().to_string();
    assert!(
        error.contains("linux/s390x") && error.contains("linux/arm/v7"),
        "{error}"
    );
}

#[test]
fn of_several_entries_for_a_machine_the_one_with_zstd_is_chosen() {
    let amd64: Platform = "amd64".parse().unwrap();
    let platform = json!({"os": "linux", "architecture": "amd64"});
    let mut zstd = entry(2, platform.clone());
    zstd["annotations"] = json!({"io.github.containers.compression.zstd": "true"});
    let other = entry(1, platform.clone());
    for entries in [json!([other, zstd]), json!([zstd, other])] {
        assert_eq!(index(entries).choose(&amd64, "x").unwrap().digest, digest(2));
    }
    // The machine's own variant counts first.
    let exact = entry(3, json!({"os": "linux", "architecture": "arm", "variant": "v7"}));
    zstd["platform"] = json!({"os": "linux", "architecture": "arm", "variant": "v6"});
    let chosen = index(json!([zstd, exact]));
    assert_eq!(
        chosen.choose(&"arm/v7".parse().unwrap(), "x").unwrap().digest,
        digest(3)
    );
}

#[test]
fn an_entry_that_the_index_calls_an_artifact_is_not_chosen() {
    let amd64: Platform = "amd64".parse().unwrap();
    let typed = |n, kind: &str, platform: Value| {
        let mut entry = entry(n, platform);
        entry["artifactType"] = json!(kind);
        entry
    };
    let image = "application/vnd.oci.image.config.v1+json";
    for platform in [json!({"os": "linux", "architecture": "amd64"}), Value::Null] {
        let entries = [
            typed(1, "application/spdx+json", platform.clone()),
            typed(2, image, platform.clone()),
            typed(3, "application/vnd.dev.sigstore.bundle.v0.3+json", platform),
        ];
        assert_eq!(index(json!(entries)).choose(&amd64, "x").unwrap().digest, digest(2));
        assert!(index(json!([entries[0], entries[2]])).choose(&amd64, "x").is_err());
    }
}

#[test]
fn an_only_entry_without_a_platform_is_for_any_machine() {
    let amd64: Platform = "amd64".parse().unwrap();
    let one = index(json!([entry(1, Value::Null)]));
    assert_eq!(one.choose(&amd64, "x").unwrap().digest, digest(1));
    let two = index(json!([entry(1, Value::Null), entry(2, Value::Null)]));
    assert!(two.choose(&amd64, "x").is_err());
    assert!(index(json!([])).choose(&amd64, "x").is_err());
    let mut odd = entry(1, Value::Null);
    odd["mediaType"] = json!("application/spdx+json");
    assert!(index(json!([odd])).choose(&amd64, "x").is_err());
}

#[test]
fn a_config_is_read_and_must_name_as_many_layers_as_the_manifest() {
    let manifest = manifest(&image(&[OCI_LAYER, OCI_LAYER]));
    let mut config = json!({
        "architecture": "arm", "variant": "v7", "os": "linux", "created": "2026-01-02T03:04:05.5Z",
        "rootfs": {"type": "layers", "diff_ids": [digest(1), digest(2)]},
        "config": {"Labels": {"containers.bootc": "1", "odd": null}},
        "history": [{"empty_layer": true}],
    });
    let parse = |config: &Value| Config::parse(serde_json::to_vec(config).unwrap(), &manifest);
    let read = parse(&config).unwrap();
    assert_eq!(read.diff_ids.len(), 2);
    assert_eq!(read.labels["containers.bootc"], "1");
    assert_eq!(read.created.unwrap().to_string(), "2026-01-02T03:04:05.5Z");
    assert!(read.check_platform(&"arm/v7".parse().unwrap(), "x").is_ok());
    let error = read
        .check_platform(&"amd64".parse().unwrap(), "x")
        .unwrap_err()
        .to_string();
    assert!(error.contains("built for linux/arm/v7"), "{error}");

    config["rootfs"]["diff_ids"] = json!([digest(1)]);
    assert!(parse(&config).unwrap_err().to_string().contains("1 diff_ids"));
    config["rootfs"]["diff_ids"] = json!([digest(1), "md5:x"]);
    assert!(parse(&config).is_err());
    assert!(parse(&json!([])).is_err());
    let bare = json!({"rootfs": {"diff_ids": [digest(1), digest(2)]}, "created": "yesterday", "config": null});
    let bare = parse(&bare).unwrap();
    assert!(bare.created.is_none() && bare.labels.is_empty());
    assert!(bare.check_platform(&"amd64".parse().unwrap(), "x").is_ok());
}

/// A value that looks like a manifest, an index or a config, with anything anywhere.
fn plausible() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(|n| json!(n)),
        (0u8..5).prop_map(|n| json!(digest(n))),
        Just(json!("application/vnd.oci.image.manifest.v1+json")),
        Just(json!("application/vnd.oci.image.index.v1+json")),
        Just(json!(OCI_CONFIG)),
        Just(json!(OCI_LAYER)),
        Just(json!(2)),
        Just(json!("amd64")),
        "\\PC{0,8}".prop_map(|text| json!(text)),
    ];
    let names = [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "digest",
        "size",
        "platform",
        "architecture",
        "os",
        "variant",
        "annotations",
        "rootfs",
        "diff_ids",
        "Labels",
        "created",
        "artifactType",
        "urls",
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        let key = prop::sample::select(names.to_vec()).prop_map(String::from);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key, inner), 0..8).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_makes_it_panic(value in plausible(), config in plausible(), kind in prop::option::of("\\PC{0,40}")) {
        let bytes = serde_json::to_vec(&value).unwrap();
        let amd64: Platform = "amd64".parse().unwrap();
        match Document::parse(bytes, kind.as_deref(), "x") {
            Ok(Document::Index(index)) => drop(index.choose(&amd64, "x")),
            Ok(Document::Manifest(manifest)) => {
                drop(Config::parse(serde_json::to_vec(&config).unwrap(), &manifest));
            }
            Err(_) => {}
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = Document::parse(bytes, None, "x");
    }
}
