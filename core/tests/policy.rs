//! containers-policy.json(5) over the wire: what it does not allow is not fetched.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cfs_core::error::{Error, Kind};
use cfs_core::manifest::Platform;
use cfs_core::policy::Files;
use cfs_core::reference::Reference;
use cfs_core::registry::{Image, Options, Registry, Retry};
use rcgen::{KeyPair, SigningKey};
use serde_json::{Value, json};
use support::{INDEX, MANIFEST, Reply, Seen, Served, Server, Told, manifest_reply, not_found, sha256};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// A registry's image, and the signatures that lie beside it.
#[derive(Clone)]
struct Signed {
    served: Served,
    /// By digest: manifests of signatures.
    attached: Vec<(String, Vec<u8>)>,
    blobs: Vec<Vec<u8>>,
}

impl Signed {
    fn new() -> Self {
        Self {
            served: Served::new(100_000),
            attached: Vec::new(),
            blobs: Vec::new(),
        }
    }

    /// With signatures of `digest` that say `name`, by these keys.
    fn by(mut self, keys: &[&KeyPair], digest: &str, name: &str) -> Self {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let layer = |key: &&KeyPair| -> Value {
            json!({
                "mediaType": PAYLOAD, "digest": sha256(&payload), "size": payload.len(),
                "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(key.sign(&payload).unwrap())},
            })
        };
        let layers: Vec<_> = keys.iter().map(layer).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(b"{}"), "size": 2},
        });
        self.attached
            .push((digest.replace(':', "-"), manifest.to_string().into_bytes()));
        self.blobs.push(payload);
        self
    }

    fn reply(&self, seen: &Seen) -> Reply {
        if let Some(tag) = seen.path.rsplit('/').next().and_then(|last| last.strip_suffix(".sig")) {
            let found = self.attached.iter().find(|(digest, _)| digest == tag);
            return found.map_or_else(not_found, |(_, bytes)| manifest_reply(bytes, MANIFEST));
        }
        let blob = self.blobs.iter().find(|blob| seen.path.ends_with(&sha256(blob)));
        match blob {
            Some(blob) => Reply::ok(blob.clone()),
            None => self.served.reply(seen),
        }
    }

    fn serve(&self) -> Server {
        let this = self.clone();
        Server::start(move |seen, _| this.reply(seen))
    }
}

/// The machine's policy in a folder, with keys beside it.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(policy: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("policy.json"), policy.to_string()).unwrap();
        Self(dir)
    }

    /// Demands signatures by this key of all images.
    fn demanding(key: &KeyPair, identity: &Value) -> Self {
        let machine = Self::new(&json!({}));
        let path = machine.path("key.pub");
        fs::write(&path, key.public_key_pem()).unwrap();
        let demand = json!({"type": "sigstoreSigned", "keyPath": path, "signedIdentity": identity});
        machine.write(&json!({"default": [demand]}));
        machine
    }

    fn write(&self, policy: &Value) {
        fs::write(self.path("policy.json"), policy.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self) -> Options {
        Options {
            policy: Files::Only(self.path("policy.json")),
            retry: Retry {
                attempts: 2,
                first_wait: Duration::from_millis(1),
                longest_wait: Duration::from_millis(5),
                ..Retry::default()
            },
            ..Options::default()
        }
    }

    fn image(&self, reference: &str, told: &Told) -> Result<Image, Error> {
        let reference: Reference = reference.parse().unwrap();
        Registry::open(&reference, &self.options())?.image(&Platform::host(), told)
    }

    /// Takes `org/os:1` of a server, or says why not.
    fn take(&self, server: &Server) -> Result<Image, Error> {
        self.image(&format!("{}/org/os:1", server.host()), &Told::default())
    }
}

fn refused(error: &Error) -> String {
    assert_eq!(error.kind(), Kind::Trust, "{error}");
    error.to_string()
}

fn keys() -> [KeyPair; 2] {
    [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()]
}

fn usual() -> Value {
    json!({"type": "matchRepoDigestOrExact"})
}

#[test]
fn of_a_rejected_image_nothing_is_asked() {
    let server = Signed::new().serve();
    let machine = Machine::new(&json!({"default": [{"type": "reject"}]}));
    let why = refused(&machine.take(&server).unwrap_err());
    assert!(why.contains("(default) rejects it"), "{why}");
    let host = server.host();
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let only =
        |scope: &str| json!({"default": [{"type": "reject"}], "transports": {"docker": {scope: accept.clone()}}});
    machine.write(&only(&format!("{host}/org/app")));
    refused(&machine.take(&server).unwrap_err());
    assert_eq!(server.seen().len(), 0);
    for scope in [format!("{host}/org"), format!("{host}/org/os:1"), String::new()] {
        machine.write(&only(&scope));
        machine.take(&server).unwrap();
    }
}

#[test]
fn what_cannot_be_checked_is_refused_only_where_it_counts() {
    let server = Signed::new().serve();
    let gpg = json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]);
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let machine = Machine::new(&json!({"default": accept, "transports": {"docker": {"registry.example": gpg}}}));
    machine.take(&server).unwrap();
    machine.write(&json!({"default": gpg}));
    let asked = server.seen().len();
    let why = refused(&machine.take(&server).unwrap_err());
    assert!(why.contains("signedBy") && why.contains("sigstoreSigned"), "{why}");
    machine.write(&json!({"default": accept, "typo": 1}));
    assert!(refused(&machine.take(&server).unwrap_err()).contains("typo"));
    fs::remove_file(machine.path("policy.json")).unwrap();
    assert!(refused(&machine.take(&server).unwrap_err()).contains("is not there"));
    assert_eq!(server.seen().len(), asked);
}

#[test]
fn without_a_signature_that_counts_neither_config_nor_layers_are_fetched() {
    let [key, other] = keys();
    let unsigned = Signed::new();
    let digest = unsigned.served.manifest_digest();
    // Which port the server will have is not known before: the repository of the signature is given by the policy.
    let identity = json!({"type": "exactReference", "dockerReference": "quay.io/org/os:1"});
    let machine = Machine::demanding(&key, &identity);
    let wrong = MANIFEST_OF_NOTHING;
    let named = "quay.io/org/os:1";
    for (signed, says) in [
        (unsigned.clone(), "there is none"),
        (unsigned.clone().by(&[&other], &digest, named), "by none of the keys"),
        (
            unsigned.clone().by(&[&key], &digest, "quay.io/org/os:2"),
            "is for quay.io/org/os:2",
        ),
        (
            unsigned.clone().by(&[&key], &digest, "quay.io/org/os"),
            "is for quay.io/org/os",
        ),
        (replayed(&unsigned, &key, wrong, named), "is for the manifest"),
    ] {
        let server = signed.serve();
        let why = refused(&machine.take(&server).unwrap_err());
        assert!(why.contains(says) && why.contains(&digest), "{why}");
        let blobs = server
            .seen()
            .iter()
            .filter(|seen| seen.path.contains("/blobs/"))
            .count();
        assert_eq!(blobs, signed.blobs.len(), "only signed documents: {:?}", server.story());
    }
    for by in [&[&key][..], &[&other, &key]] {
        let server = unsigned.clone().by(by, &digest, named).serve();
        machine.take(&server).unwrap();
    }
}

const MANIFEST_OF_NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A signature of another manifest in the place of this one's.
fn replayed(image: &Signed, key: &KeyPair, manifest: &str, name: &str) -> Signed {
    let mut signed = image.clone().by(&[key], manifest, name);
    signed.attached[0].0 = image.served.manifest_digest().replace(':', "-");
    signed
}

#[test]
fn all_requirements_have_to_be_met() {
    let [vendor, reviewer] = keys();
    let image = Signed::new();
    let digest = image.served.manifest_digest();
    let machine = Machine::new(&json!({}));
    let demand = |key: &KeyPair| {
        json!({
            "type": "sigstoreSigned", "keyData": STANDARD.encode(key.public_key_pem()),
            "signedIdentity": {"type": "exactRepository", "dockerRepository": "quay.io/org/os"},
        })
    };
    machine.write(&json!({"default": [demand(&vendor), demand(&reviewer)]}));
    let one = image.clone().by(&[&vendor], &digest, "quay.io/org/os");
    refused(&machine.take(&one.serve()).unwrap_err());
    let both = image.by(&[&vendor, &reviewer], &digest, "quay.io/org/os");
    machine.take(&both.serve()).unwrap();
    machine.write(&json!({"default": [demand(&vendor), {"type": "reject"}]}));
    refused(&machine.take(&both.serve()).unwrap_err());
}

#[test]
fn a_signature_of_the_index_counts_for_the_image_in_it() {
    let [key, _] = keys();
    let served = Served::new(1000);
    let index = served.index(
        std::env::consts::ARCH
            .replace("x86_64", "amd64")
            .replace("aarch64", "arm64")
            .as_str(),
    );
    let machine = Machine::demanding(&key, &json!({"type": "exactRepository", "dockerRepository": "a.b/c"}));
    for of_index in [true, false] {
        let digest = match of_index {
            true => sha256(&index),
            false => served.manifest_digest(),
        };
        let signed = Signed::new();
        let signed = Signed {
            served: served.clone(),
            ..signed
        };
        let signed = signed.by(&[&key], &digest, "a.b/c:1");
        let index = index.clone();
        let server = Server::start(move |seen, _| match seen.path.ends_with("/manifests/1") {
            true => manifest_reply(&index, INDEX),
            false => signed.reply(seen),
        });
        machine.take(&server).unwrap();
    }
}

#[test]
fn a_registry_that_cannot_say_is_no_refusal_and_no_leave() {
    let [key, _] = keys();
    let machine = Machine::demanding(&key, &usual());
    let image = Signed::new();
    let server = Server::start(move |seen, _| match seen.path.ends_with(".sig") {
        true => Reply::new(503),
        false => image.reply(seen),
    });
    assert_eq!(machine.take(&server).unwrap_err().kind(), Kind::Network);
    let image = Signed::new();
    let server = Server::start(move |seen, _| match seen.path.ends_with(".sig") {
        true => manifest_reply(b"<html>", MANIFEST),
        false => image.reply(seen),
    });
    assert_ne!(machine.take(&server).unwrap_err().kind(), Kind::Network);
    assert_eq!(server.count("/blobs/"), 0);
}

#[test]
fn images_without_a_registry_have_no_signature_and_their_own_scopes() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    Served::new(1000).write_layout(&layout, &["1"]);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&layout, &link).unwrap();
    let take = |machine: &Machine, path: &Path| machine.image(&format!("oci:{}:1", path.display()), &Told::default());
    let [key, _] = keys();
    let machine = Machine::demanding(&key, &usual());
    let why = refused(&take(&machine, &layout).unwrap_err());
    assert!(why.contains("only images in registries"), "{why}");
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    machine.write(
        &json!({"default": [{"type": "reject"}], "transports": {"oci": {dir.path().to_str().unwrap(): accept}}}),
    );
    for path in [&layout, &link] {
        take(&machine, path).unwrap();
    }
    machine.write(&json!({"default": [{"type": "reject"}], "transports": {"oci": {link.to_str().unwrap(): accept}}}));
    refused(&take(&machine, &link).unwrap_err());
}

#[test]
fn who_signed_is_told() {
    let [key, _] = keys();
    let image = Signed::new();
    let digest = image.served.manifest_digest();
    let machine = Machine::demanding(&key, &json!({"type": "exactRepository", "dockerRepository": "a.b/c"}));
    let server = image.by(&[&key], &digest, "a.b/c").serve();
    let told = Told::default();
    machine.image(&format!("{}/org/os:1", server.host()), &told).unwrap();
    let lines = told.0.lock().unwrap().join("\n");
    let file = machine.path("key.pub").display().to_string();
    assert!(lines.contains(&digest) && lines.contains(&file), "{lines}");
}
