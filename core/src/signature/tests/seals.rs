//! What a seal is, byte for byte, and what verifies nothing.

use proptest::prelude::*;

use super::*;

/// A seal with any payload and type, rightly signed: what somebody who has the key could make by mistake.
fn seal_of(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let signature = key().sign(&pre_authentication_encoding(payload_type, payload));
    format!(
        "{{\"payloadType\":\"{payload_type}\",\"payload\":\"{}\",\"signatures\":[{{\"keyid\":\"{}\",\"sig\":\"{}\"}}]}}\n",
        BASE64.encode(payload),
        key().public().id(),
        BASE64.encode(signature)
    )
    .into_bytes()
}

fn refusal(seal: &[u8]) -> String {
    let error = verify(seal, &trust()).unwrap_err();
    assert_eq!(error.kind(), Kind::Trust);
    error.to_string()
}

#[test]
fn the_encoding_that_is_signed_is_that_of_the_dsse_specification() {
    // The example of the protocol's text.
    let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
    assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
}

#[test]
fn signatures_are_those_of_rfc_8032() {
    // RFC 8032, 7.1, TEST 3.
    let mut seed = [0; 32];
    hex::decode_to_slice(
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        &mut seed,
    )
    .unwrap();
    let key = SigningKey::from_seed(&seed, "rfc");
    let public = BASE64.decode(key.public().to_base64()).unwrap();
    assert_eq!(
        hex::encode(public),
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
    );
    let signature = key.sign(&[0xaf, 0x82]);
    assert_eq!(
        hex::encode(signature),
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d\
         c027beceea1ec40a"
    );
}

/// The format on disk is frozen: a seal of version 1 as it was first written must verify for ever.
#[test]
fn a_seal_of_format_1_is_spelled_as_ever_and_verifies() {
    let golden = include_bytes!("../../../../testdata/seal-v1.json");
    assert_eq!(String::from_utf8_lossy(&sealed()), String::from_utf8_lossy(golden));
    let verified = verify(golden, &trust()).unwrap();
    assert_eq!(verified.statement().image, facts().id);
    assert_eq!(verified.statement().counter, 5);
    assert_eq!(verified.statement().created.to_string(), "2026-11-21T18:00:00Z");
    assert_eq!(
        (verified.key().name(), verified.key().id()),
        ("host", key().public().id())
    );
}

#[test]
fn a_change_of_any_bit_of_a_seal_is_noticed() {
    let good = sealed();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(verify(&bad, &trust()).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_seal_that_is_cut_extended_or_spelled_otherwise_is_refused() {
    let good = sealed();
    for length in 0..good.len() {
        assert!(verify(&good[..length], &trust()).is_err(), "{length} bytes");
    }
    for tail in [&b"\n"[..], b" ", b"{}", b"x", b"\0"] {
        assert!(verify(&[&good[..], tail].concat(), &trust()).is_err());
    }
    let text = String::from_utf8(good.clone()).unwrap();
    for (from, to) in [
        ("{\"payloadType\"", "{ \"payloadType\""),
        ("{\"payloadType\"", "{\"payloadType\":\"x\",\"payloadType\""),
        ("{\"payloadType\"", "{\"extra\":1,\"payloadType\""),
        ("payloadType", "payload\\u0054ype"),
        ("\"signatures\":[", "\"signatures\":[],\"signatures\":["),
        ("[{", "[{\"x\":1,"),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        assert!(verify(bad.as_bytes(), &trust()).is_err(), "{bad}");
    }
    let value: serde_json::Value = serde_json::from_slice(&good).unwrap();
    assert!(verify(serde_json::to_string_pretty(&value).unwrap().as_bytes(), &trust()).is_err());
    assert!(refusal(&vec![b' '; 1 << 17]).contains("larger than"));
}

#[test]
fn signatures_of_another_number_or_length_are_refused() {
    let text = String::from_utf8(sealed()).unwrap();
    let start = text.find("[{").unwrap();
    let one = &text[start + 1..text.len() - 3];
    let with = |list: &str| format!("{}[{list}]}}\n", &text[..start]).into_bytes();
    assert_eq!(with(one), text.as_bytes());
    assert!(refusal(&with("")).contains("0 signatures where one is expected"));
    assert!(refusal(&with(&format!("{one},{one}"))).contains("2 signatures"));
    let id = key().public().id();
    let sized = |length| format!("{{\"keyid\":\"{id}\",\"sig\":\"{}\"}}", BASE64.encode(vec![1; length]));
    for length in [0, 32, 63, 65, 128] {
        assert!(refusal(&with(&sized(length))).contains("instead of 64"), "{length}");
    }
    assert!(refusal(&with(&sized(64))).contains("the seal was changed, or made by another key"));
}

#[test]
fn only_a_complete_statement_of_this_type_and_version_counts_however_well_signed() {
    let good = String::from_utf8(Statement::new(&facts(), key().public().id(), 5, time()).to_bytes()).unwrap();
    assert!(verify(&seal_of(PAYLOAD_TYPE, good.as_bytes()), &trust()).is_ok());
    assert!(refusal(&seal_of("application/vnd.in-toto+json", good.as_bytes())).contains("payload type"));
    for (from, to, why) in [
        (
            STATEMENT_TYPE,
            "cfs-update/other",
            "not a \"cfs-update/deployment-seal\"",
        ),
        ("\"formatVersion\":1", "\"formatVersion\":2", "use a newer cfs-update"),
        ("\"formatVersion\":1", "\"formatVersion\":\"1\"", "not a statement"),
        (
            "fsverity-sha256-12",
            "fsverity-sha512-12",
            "its image digest is not one of",
        ),
        ("\"counter\":5", "\"counter\":-5", "not a statement"),
        ("\"counter\":5", "\"counter\":5,\"counter\":6", "duplicate field"),
        ("\"counter\":5", "\"counter\":5,\"more\":6", "unknown field"),
        ("\"counter\":5,", "", "missing field"),
        ("2026-11-21T18:00:00Z", "yesterday", "not a statement"),
        (
            &key().public().id().to_string(),
            "0011223344556677",
            "but the statement names",
        ),
    ] {
        let payload = good.replacen(from, to, 1);
        assert_ne!(payload, good);
        let error = refusal(&seal_of(PAYLOAD_TYPE, payload.as_bytes()));
        assert!(error.contains(why), "{from} -> {to}: {error}");
    }
    assert!(refusal(&seal_of(PAYLOAD_TYPE, format!("{good} {good}").as_bytes())).contains("trailing"));
    assert!(refusal(&seal_of(PAYLOAD_TYPE, b"")).contains("not a statement"));
}

#[test]
fn a_signature_for_something_else_is_no_signature_for_this() {
    let other = |change: fn(&mut ImageFacts)| {
        let mut facts = facts();
        change(&mut facts);
        SignedImage::verify(facts, sealed(), &trust()).unwrap_err().to_string()
    };
    assert!(
        other(|f| f.id = DeploymentId::from_bytes(Algorithm::Sha256, &[1; 32]).unwrap()).contains("for the image ab")
    );
    let long = DeploymentId::from_bytes(Algorithm::Sha512, &[0xab; 64]).unwrap();
    assert_ne!(long, facts().id);
    assert!(other(|f| f.manifest = ManifestDigest::from_hash([1; 32])).contains("for the manifest sha256:cd"));
    assert!(
        other(|f| f.reference = "docker://quay.io/org/os:42".into())
            .contains("for the reference docker://quay.io/org/os:41")
    );
    assert!(other(|f| f.erofs_format = 0).contains("for the EROFS format 1"));
}

proptest! {
    #[test]
    fn any_statement_verifies_as_it_was_signed(
        seed in any::<[u8; 32]>(),
        id in any::<[u8; 32]>(),
        manifest in any::<[u8; 32]>(),
        reference in "\\PC{1,60}",
        counter in any::<u64>(),
        seconds in -60_000_000_000i64..200_000_000_000,
    ) {
        let key = SigningKey::from_seed(&seed, "any");
        let facts = ImageFacts {
            id: DeploymentId::from_bytes(Algorithm::Sha256, &id).unwrap(),
            manifest: ManifestDigest::from_hash(manifest),
            reference,
            erofs_format: 1,
        };
        let created = Timestamp::from_second(seconds).unwrap();
        let signed = SignedImage::sign(crate::testing::synced(facts.clone()), &key, counter, created).unwrap();
        let again = SignedImage::verify(facts, signed.seal().to_vec(), &TrustStore::only(key.public())).unwrap();
        prop_assert_eq!(again.verified().statement().counter, counter);
        prop_assert_eq!(again.verified().statement().created, created);
        prop_assert_eq!(again.verified(), signed.verified());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verify(&bytes, &trust()).is_err());
        prop_assert!(Statement::parse(&bytes).is_err());
    }
}
