use std::path::Path;

use super::sigstore::PublicKey;
use super::*;
use crate::ids::ManifestDigest;
use crate::reference::{Name, Reference};

/// Made by skopeo 1.18: `skopeo generate-sigstore-key`, `skopeo copy --sign-by-sigstore-private-key`.
const PAYLOAD: &[u8] = include_bytes!("../../../testdata/sigstore/payload.json");
const SIGNATURE: &str = include_str!("../../../testdata/sigstore/test.signature");
const KEY: &[u8] = include_bytes!("../../../testdata/sigstore/test.pub");
const MANIFEST: &str = "sha256:b5522dfcbc070a6d20880d8e360c5808c8c9eab5d0cf8c034588e5d4b663c528";

fn name(text: &str) -> Name {
    match format!("docker://{text}").parse().unwrap() {
        Reference::Registry(name) => name,
        other => panic!("{other}"),
    }
}

fn policy(text: &str) -> Result<Policy> {
    Policy::parse(text, Path::new("/etc/containers/policy.json"))
}

fn scope_of(policy: &Policy, scopes: &Scopes) -> String {
    policy.demands(scopes).scope
}

fn verify(payload: &[u8], signature: &str, identity: &Identity, asked: &str, manifest: &str) -> Result<usize, String> {
    let keys = [PublicKey::from_pem(KEY).unwrap()];
    let manifest: ManifestDigest = manifest.parse().unwrap();
    sigstore::verify(payload, signature, &keys, identity, Some(&name(asked)), &[manifest])
}

#[test]
fn a_signature_by_skopeo_counts_for_its_image_alone() {
    let usual = Identity::MatchRepoDigestOrExact {};
    let asked = "127.0.0.1:22137/org/os:v1";
    assert_eq!(verify(PAYLOAD, SIGNATURE, &usual, asked, MANIFEST), Ok(0));
    let pinned = format!("{asked}@{MANIFEST}");
    assert_eq!(verify(PAYLOAD, SIGNATURE, &usual, &pinned, MANIFEST), Ok(0));
    let other = MANIFEST.replace("b5", "b6");
    let refused = verify(PAYLOAD, SIGNATURE, &usual, asked, &other).unwrap_err();
    assert_eq!(refused, format!("a signature is for the manifest {MANIFEST}"));
    let refused = verify(PAYLOAD, SIGNATURE, &usual, "127.0.0.1:22137/org/os:v2", MANIFEST).unwrap_err();
    assert!(
        refused.starts_with("a signature is for 127.0.0.1:22137/org/os:v1"),
        "{refused}"
    );
    let repository = Identity::MatchRepository {};
    assert_eq!(
        verify(PAYLOAD, SIGNATURE, &repository, "127.0.0.1:22137/org/os:v2", MANIFEST),
        Ok(0)
    );
    assert!(verify(PAYLOAD, SIGNATURE, &repository, "127.0.0.1:22137/org/app:v1", MANIFEST).is_err());
}

#[test]
fn a_signature_does_not_survive_a_changed_byte() {
    let identity = Identity::MatchRepository {};
    let asked = "127.0.0.1:22137/org/os:v1";
    for at in 0..PAYLOAD.len() {
        let mut changed = PAYLOAD.to_vec();
        changed[at] ^= 1;
        let refused = verify(&changed, SIGNATURE, &identity, asked, MANIFEST).unwrap_err();
        assert_eq!(refused, "a signature is by none of the keys", "{at}");
    }
    for at in 0..SIGNATURE.trim().len() {
        let mut changed = SIGNATURE.trim().to_owned().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        // The last letter's lowest bits are no part of the signature: it is no base64 then.
        assert!(verify(PAYLOAD, &changed, &identity, asked, MANIFEST).is_err(), "{at}");
    }
    for signature in ["", "=", "%%%", "AAAA"] {
        assert!(verify(PAYLOAD, signature, &identity, asked, MANIFEST).is_err());
    }
}

/// Made by `openssl dgst -sha256 -sign` (`openssl pkeyutl -sign` for ed25519) of the same document.
macro_rules! by_openssl {
    ($($name:literal),*) => {
        [$((
            $name,
            include_bytes!(concat!("../../../testdata/sigstore/", $name, ".pub")).as_slice(),
            include_str!(concat!("../../../testdata/sigstore/", $name, ".signature")),
        )),*]
    };
}

#[test]
fn keys_of_the_usual_kinds_count_and_short_ones_do_not() {
    let identity = Identity::MatchRepository {};
    let (asked, manifest) = (name("127.0.0.1:22137/org/os:v1"), MANIFEST.parse().unwrap());
    let known = by_openssl!("rsa", "p384", "ed25519", "rsa-1024").map(|(name, key, signature)| {
        let keys = [PublicKey::from_pem(key).unwrap()];
        let verified = sigstore::verify(PAYLOAD, signature, &keys, &identity, Some(&asked), &[manifest]);
        (name, verified.is_ok())
    });
    let expected = [("rsa", true), ("p384", true), ("ed25519", true), ("rsa-1024", false)];
    assert_eq!(known, expected);
}

#[test]
fn what_is_no_public_key_is_named_so() {
    let private = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let half = &KEY[..KEY.len() / 2];
    for text in [&b""[..], b"x", private.as_bytes(), half] {
        assert!(PublicKey::from_pem(text).unwrap_err().contains("no public key"));
    }
}

#[test]
fn files_of_distributions_are_understood() {
    // Debian 13's, and what Fedora's looks like.
    policy(r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}"#).unwrap();
    let fedora = r#"{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {
        "registry.access.redhat.com": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
        "registry.redhat.io": [{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/k", "/l"]}],
        "quay.io/x": [{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "e"},
                       "rekorPublicKeyPath": "/r"}]}}}"#;
    let policy = policy(fedora).unwrap();
    let demands = |text: &str| policy.demands(&Scopes::registry(&name(text))).requirements[0].clone();
    assert_eq!(demands("quay.io/org/os:1"), Requirement::Nothing);
    assert!(matches!(demands("registry.redhat.io/a/b:1"), Requirement::Unsupported(what) if what.contains("GPG")));
    assert!(matches!(demands("quay.io/x/y:1"), Requirement::Unsupported(what) if what.contains("fulcio")));
}

#[test]
fn a_file_that_is_not_understood_to_the_last_field_is_no_policy() {
    let one = |requirement: &str| format!(r#"{{"default":[{requirement}]}}"#);
    let identity = |identity: &str| {
        one(&format!(
            r#"{{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{identity}}}"#
        ))
    };
    let bad = [
        String::new(),
        "{}".into(),
        r#"{"default":[]}"#.into(),
        r#"{"default":[{"type":"reject"}],"transport":{}}"#.into(),
        r#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#.into(),
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a.b":[]}}}"#.into(),
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a.b":[{"type":"reject"}],"a.b":[{"type":"reject"}]}}}"#
            .into(),
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{},"docker":{}}}"#.into(),
        r#"{"default":[{"type":"reject"}]} x"#.into(),
        one(r#"{"type":"accept"}"#),
        one(r#"{"type":"reject","key":1}"#),
        one(r#"{"type":"insecureAcceptAnything","keyPath":"/k"}"#),
        one(r#"{"type":"sigstoreSigned"}"#),
        one(r#"{"type":"sigstoreSigned","keyPath":"/k","keyPaths":["/l"]}"#),
        one(r#"{"type":"sigstoreSigned","keyPath":"/k","keyPath":"/l"}"#),
        one(r#"{"type":"sigstoreSigned","keyPaths":[]}"#),
        one(r#"{"type":"sigstoreSigned","keyData":"%"}"#),
        one(r#"{"type":"sigstoreSigned","keyPath":"/k","more":1}"#),
        one(r#"{"type":"signedBy","keyType":"X509","keyPath":"/k"}"#),
        one(r#"{"type":"signedBy","keyType":"GPGKeys"}"#),
        identity(r#"{"type":"matchAll"}"#),
        identity(r#"{"type":"matchExact","prefix":"a.b"}"#),
        identity(r#"{"type":"exactReference"}"#),
        identity(r#"{"type":"exactReference","dockerReference":"quay.io/org/os"}"#),
        identity(r#"{"type":"exactRepository","dockerRepository":"quay.io/org/OS"}"#),
        identity(r#"{"type":"remapIdentity","prefix":"a.b"}"#),
        identity(r#"{"type":"remapIdentity","prefix":"a.b/","signedPrefix":"c.d"}"#),
        identity(r#"{"type":"remapIdentity","prefix":"busybox","signedPrefix":"c.d"}"#),
    ];
    for text in bad {
        let error = policy(&text).expect_err(&text);
        assert_eq!(error.kind(), crate::error::Kind::Trust, "{text}: {error}");
        assert!(error.to_string().contains("/etc/containers/policy.json"), "{error}");
    }
}

#[test]
fn a_scope_that_its_transport_cannot_have_is_refused() {
    let read = |(transport, scope): (&str, &str)| {
        policy(&format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"{transport}":{{"{scope}":[{{"type":"reject"}}]}}}}}}"#
        ))
    };
    for good in [
        ("oci", "/srv"),
        ("containers-storage", "[/s]a.b/c"),
        ("docker", "x"),
        ("new", "x"),
    ] {
        read(good).unwrap();
    }
    for bad in [
        ("oci", "quay.io/org"),
        ("oci", "/"),
        ("oci", "/srv/"),
        ("oci-archive", "/srv/../x"),
        ("docker-archive", "/srv"),
        ("containers-storage", "a.b/c"),
        ("containers-storage", "[overlay@s]a.b/c"),
    ] {
        let why = read(bad).unwrap_err().to_string();
        assert!(why.contains(bad.1), "{why}");
    }
}

#[test]
fn the_most_specific_scope_counts_alone() {
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let reject = r#"[{"type":"reject"}]"#;
    let text = format!(
        r#"{{"default":{reject},"transports":{{
        "docker":{{"quay.io":{accept},"quay.io/org":{reject},"quay.io/org/os:41":{accept},"*.example.com":{accept},
                   "*.com":{reject},"lan:5000":{accept}}},
        "oci":{{"":{accept},"/srv/images":{reject}}},
        "containers-storage":{{"[overlay@/var/lib/containers/storage]docker.io/library":{accept},
                               "[/srv/storage]":{accept}}}}}}}"#
    );
    let policy = policy(&text).unwrap();
    let of = |text: &str| scope_of(&policy, &Scopes::registry(&name(text)));
    let digest = format!("@{MANIFEST}");
    for (image, scope) in [
        ("quay.io/org/os:41", "docker: \"quay.io/org/os:41\""),
        ("quay.io/org/os:42", "docker: \"quay.io/org\""),
        ("quay.io/org/os", "docker: \"quay.io/org\""),
        ("quay.io/organization/os:41", "docker: \"quay.io\""),
        ("quay.io.example.com/org/os:41", "docker: \"*.example.com\""),
        ("a.b.example.com:8443/os:1", "docker: \"*.example.com\""),
        ("example.com/os:1", "docker: \"*.com\""),
        ("lan:5000/os:1", "docker: \"lan:5000\""),
        ("lan/os:1", "default"),
        ("busybox:1", "default"),
    ] {
        assert_eq!(of(image), scope, "{image}");
    }
    assert_eq!(of(&format!("quay.io/org/os{digest}")), "docker: \"quay.io/org\"");
    let file = |path: &str| scope_of(&policy, &Scopes::file("oci", Path::new(path)));
    assert_eq!(file("/srv/images/os"), "oci: \"/srv/images\"");
    assert_eq!(file("/srv/images"), "oci: \"/srv/images\"");
    assert_eq!(file("/srv/imagesque"), "oci: \"\"");
    assert_eq!(scope_of(&policy, &Scopes::docker_archive()), "default");
    let stored = |root: &str, image: &str| {
        let name = name(image);
        scope_of(&policy, &Scopes::storage("overlay", Path::new(root), Some(&name)))
    };
    let usual = "/var/lib/containers/storage";
    assert_eq!(
        stored(usual, "busybox:1"),
        "containers-storage: \"[overlay@/var/lib/containers/storage]docker.io/library\""
    );
    assert_eq!(stored(usual, "quay.io/a/b:1"), "default");
    assert_eq!(
        stored("/srv/storage", "quay.io/a/b:1"),
        "containers-storage: \"[/srv/storage]\""
    );
}

#[test]
fn identities_fit_as_the_manual_says() {
    let digest = format!("quay.io/org/os@{MANIFEST}");
    let read = |text: &str| serde_json::from_str::<Identity>(text).unwrap();
    let exact = r#"{"type":"matchExact"}"#;
    let usual = r#"{"type":"matchRepoDigestOrExact"}"#;
    let repository = r#"{"type":"matchRepository"}"#;
    let reference = r#"{"type":"exactReference","dockerReference":"busybox:1"}"#;
    let named = r#"{"type":"exactRepository","dockerRepository":"docker.io/library/busybox"}"#;
    let tagged = r#"{"type":"exactRepository","dockerRepository":"quay.io/org/os:1"}"#;
    let remap = r#"{"type":"remapIdentity","prefix":"mirror:5000/v","signedPrefix":"quay.io/org"}"#;
    for (identity, asked, signed, fits) in [
        (exact, "quay.io/org/os:1", "quay.io/org/os:1", true),
        (exact, "quay.io/org/os:1", "quay.io/org/os:2", false),
        (exact, "quay.io/org/os:1", "quay.io/org/os", false),
        (exact, "quay.io/org/os", "quay.io/org/os:latest", true),
        (exact, &digest, "quay.io/org/os:1", false),
        (exact, &digest, &digest, true),
        (usual, "quay.io/org/os:1", "quay.io/org/os:1", true),
        (usual, "quay.io/org/os:1", "quay.io/org/os", false),
        (usual, "quay.io/org/os:1", &digest, false),
        (usual, &digest, "quay.io/org/os:1", true),
        (usual, &digest, "quay.io/org/os", true),
        (usual, &digest, "quay.io/org/app:1", false),
        (repository, "quay.io/org/os:1", "quay.io/org/os", true),
        (repository, "quay.io/org/os:1", "quay.io/org/os:2", true),
        (repository, "quay.io/org/os:1", "quay.io/org/os2:1", false),
        (repository, "busybox:1", "docker.io/library/busybox:2", true),
        (reference, "quay.io/org/os:1", "docker.io/library/busybox:1", true),
        (reference, "quay.io/org/os:1", "busybox", false),
        (reference, "busybox:1", "busybox:2", false),
        (named, "quay.io/org/os:1", "busybox:2", true),
        (named, "quay.io/org/os:1", "busybox", true),
        (named, "quay.io/org/os:1", "quay.io/org/os:1", false),
        (tagged, "quay.io/org/app:1", "quay.io/org/os:2", true),
        (remap, "mirror:5000/v/os:1", "quay.io/org/os:1", true),
        (remap, "mirror:5000/v/os:1", "mirror:5000/v/os:1", false),
        (remap, "mirror:5000/vendor/os:1", "quay.io/orgendor/os:1", false),
        (remap, "mirror:5000/vendor/os:1", "mirror:5000/vendor/os:1", true),
        (remap, "quay.io/org/os:1", "quay.io/org/os:1", true),
    ] {
        let signed_name = SignedName::parse(signed).unwrap();
        let found = read(identity).fits(Some(&name(asked)), &signed_name);
        assert_eq!(found, fits, "{identity}: {asked} signed as {signed}");
    }
    for identity in [exact, usual, repository, remap] {
        assert!(!read(identity).fits(None, &SignedName::parse("quay.io/org/os:1").unwrap()));
    }
    assert!(read(named).fits(None, &SignedName::parse("busybox").unwrap()));
}
