//! Manifests, indexes and configs: what they may be, and which one counts.

use super::*;

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
