//! Keys, envelopes and trust: known answers, and everything that has to be refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::ids::Algorithm;
use crate::sys::fs::RealFs;
use crate::testing::{CrashFs, Loss};

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32], "host")
}

fn facts() -> ImageFacts {
    ImageFacts {
        id: DeploymentId::from_bytes(Algorithm::Sha256, &[0xab; 32]).unwrap(),
        manifest: ManifestDigest::from_hash([0xcd; 32]),
        reference: "docker://quay.io/org/os:41".into(),
        erofs_format: 1,
    }
}

fn time() -> Timestamp {
    "2026-11-21T18:00:00.987654321Z".parse().unwrap()
}

fn sealed() -> Vec<u8> {
    SignedImage::sign(crate::testing::synced(facts()), &key(), 5, time())
        .unwrap()
        .seal()
        .to_vec()
}

fn trust() -> TrustStore {
    TrustStore::only(key().public())
}

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
    let golden = include_bytes!("../../../testdata/seal-v1.json");
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

#[test]
fn unknown_and_revoked_keys_verify_nothing_and_revoking_wins() {
    let stranger = SigningKey::from_seed(&[8; 32], "stranger");
    let error = verify(&sealed(), &TrustStore::only(stranger.public()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("is not trusted"), "{error}");
    assert!(verify(&sealed(), &TrustStore::default()).is_err());
    let mut trust = trust();
    trust.trust(stranger.public().clone());
    verify(&sealed(), &trust).unwrap();
    trust.revoke(key().public().clone());
    trust.trust(key().public().clone());
    let error = verify(&sealed(), &trust).unwrap_err().to_string();
    assert!(error.contains("is revoked"), "{error}");
    assert_eq!(
        trust.all().iter().filter(|(_, _, revoked)| revoked.is_some()).count(),
        1
    );
}

#[test]
fn the_machines_key_is_made_once_private_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    assert!(SigningKey::load(&RealFs, &keys).is_err());
    let made = SigningKey::load_or_generate(&RealFs, &keys).unwrap();
    let mode = |name: &str| keys.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode(HOST_KEY), mode(HOST_PUBLIC_KEY), mode("")), (0o600, 0o644, 0o700));
    let read = SigningKey::load_or_generate(&RealFs, &keys).unwrap();
    assert_eq!(read.public(), made.public());
    assert!(
        SigningKey::generate(&RealFs, &keys)
            .unwrap_err()
            .to_string()
            .contains("never overwritten")
    );
    let secret = BASE64
        .decode(std::fs::read_to_string(keys.join(HOST_KEY)).unwrap().trim())
        .unwrap();
    let public = BASE64
        .decode(std::fs::read_to_string(keys.join(HOST_PUBLIC_KEY)).unwrap().trim())
        .unwrap();
    assert_eq!((secret.len(), public.len()), (64, 32));
    assert_eq!(secret[32..], public, "seed, then public key, as ostree has it");
    assert!(!format!("{made:?}").contains(&BASE64.encode(&secret[..8])[..8]));
    let other = SigningKey::generate(&RealFs, &folder.path().join("other")).unwrap();
    assert_ne!(other.public(), made.public());
    std::fs::remove_file(keys.join(HOST_PUBLIC_KEY)).unwrap();
    assert_eq!(TrustStore::load(&keys, &[]).unwrap().all()[0].0, made.public());
    SigningKey::load(&RealFs, &keys).unwrap();
    assert_eq!(TrustStore::load(&keys, &[]).unwrap().all()[0].0, made.public());
}

#[test]
fn what_a_lost_key_sealed_still_verifies_with_the_new_one_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let former = SigningKey::generate(&RealFs, &keys).unwrap();
    let seal = SignedImage::sign(crate::testing::synced(facts()), &former, 1, time())
        .unwrap()
        .seal()
        .to_vec();
    std::fs::remove_file(keys.join(HOST_KEY)).unwrap();
    let new = SigningKey::load_or_generate(&RealFs, &keys).unwrap();
    assert_ne!(new.public(), former.public());
    let mut trust = TrustStore::load(&keys, &[]).unwrap();
    let verified = verify(&seal, &trust).unwrap();
    assert_eq!(verified.key().name(), format!("host-{}", former.public().id()));
    SignedImage::sign(crate::testing::synced(facts()), &new, 2, time()).unwrap();
    trust.revoke(former.public().clone());
    assert!(verify(&seal, &trust).is_err());
}

#[test]
fn a_secret_key_that_others_could_have_read_or_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    SigningKey::generate(&RealFs, &keys).unwrap();
    let path = keys.join(HOST_KEY);
    let good = std::fs::read_to_string(&path).unwrap();
    let refused = |why: &str| {
        let error = SigningKey::load(&RealFs, &keys).unwrap_err();
        assert_eq!(error.kind(), Kind::Trust);
        let text = error.to_string();
        assert!(text.contains(why), "{text}");
        assert!(
            !text.contains(good.trim()) && !text.contains(&good[..20]),
            "the secret is not repeated"
        );
    };
    for mode in [0o640, 0o604, 0o620, 0o610, 0o601] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        refused(&format!("its mode is {mode:04o}"));
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o777)).unwrap();
    refused("everybody may have changed");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o700)).unwrap();
    if crate::sys::dir::is_privileged() {
        std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
        refused("it belongs to user 1000");
        std::os::unix::fs::chown(&keys, Some(1000), None).unwrap();
        SigningKey::load(&RealFs, &keys).unwrap();
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        std::os::unix::fs::chown(&keys, Some(0), None).unwrap();
    }
    let raw = BASE64.decode(good.trim()).unwrap();
    let mut mixed = raw.clone();
    mixed[40] ^= 1;
    for (bad, why) in [
        (String::new(), "0 bytes instead of 64"),
        ("not base64!".into(), "not base64"),
        (BASE64.encode(&raw[..32]), "32 bytes instead of 64"),
        (BASE64.encode(&mixed), "do not belong together"),
        ("A".repeat(5000), "larger than"),
    ] {
        std::fs::write(&path, bad).unwrap();
        refused(why);
    }
    std::fs::rename(&path, keys.join("real")).unwrap();
    std::fs::write(keys.join("real"), &good).unwrap();
    symlink("real", &path).unwrap();
    refused("symbolic link");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused("not a regular file");
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(keys.join("real"), &path).unwrap();
    let linked = folder.path().join("linked");
    symlink(&keys, &linked).unwrap();
    std::fs::remove_file(keys.join(HOST_PUBLIC_KEY)).unwrap();
    assert!(
        SigningKey::load(&RealFs, &linked)
            .unwrap_err()
            .to_string()
            .contains("it is a link")
    );
    assert!(
        !keys.join(HOST_PUBLIC_KEY).exists(),
        "nothing is written through the link"
    );
    let stranger = SigningKey::from_seed(&[8; 32], "stranger");
    std::fs::write(keys.join(HOST_PUBLIC_KEY), stranger.public().to_base64()).unwrap();
    refused("not that of host.key");
}

#[test]
fn a_public_key_of_another_length_off_the_curve_or_weak_is_refused() {
    let bad_point = (0..=255_u8)
        .map(|first| [vec![first], vec![0; 31]].concat())
        .find(|raw| {
            let raw: &[u8; 32] = raw.as_slice().try_into().unwrap();
            ed25519_dalek::VerifyingKey::from_bytes(raw).is_err()
        });
    for (raw, why) in [
        (vec![1; 31], "31 bytes"),
        (vec![1; 64], "64 bytes"),
        ([vec![1], vec![0; 31]].concat(), "weak"),
        (bad_point.unwrap(), "public key x"),
    ] {
        let error = PublicKey::parse(&BASE64.encode(&raw), "x").unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn key_folders_give_trust_and_take_it_away_and_fail_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, admin) = (folder.path().join("keys"), folder.path().join("admin"));
    SigningKey::generate(&RealFs, &keys).unwrap();
    let publisher = key();
    let path = add_key(&RealFs, &keys, TRUSTED_DIR, publisher.public(), "org@2026").unwrap();
    assert_eq!(path, keys.join("trusted.d/org@2026.pub"));
    assert_eq!(
        add_key(&RealFs, &keys, TRUSTED_DIR, publisher.public(), "org@2026").unwrap(),
        path
    );
    let load = || TrustStore::load(&keys, std::slice::from_ref(&admin));
    assert_eq!(load().unwrap().all().len(), 2);
    assert_eq!(verify(&sealed(), &load().unwrap()).unwrap().key().name(), "org@2026");

    let stranger = SigningKey::from_seed(&[9; 32], "");
    for name in ["", ".hidden", "../up", "a/b", "a b"] {
        assert!(
            add_key(&RealFs, &keys, TRUSTED_DIR, stranger.public(), name).is_err(),
            "{name:?}"
        );
    }
    assert!(add_key(&RealFs, &keys, TRUSTED_DIR, stranger.public(), "org@2026").is_err());

    std::fs::create_dir_all(admin.join(REVOKED_DIR)).unwrap();
    let list = format!(
        "# compromised\n\n{}\n{}\n",
        stranger.public().to_base64(),
        publisher.public().to_base64()
    );
    std::fs::write(admin.join(REVOKED_DIR).join("2026.pub"), list).unwrap();
    std::fs::write(admin.join(REVOKED_DIR).join("README"), "no key").unwrap();
    std::fs::write(admin.join(REVOKED_DIR).join(".2026.pub.swp"), "no key").unwrap();
    assert_eq!(
        load()
            .unwrap()
            .all()
            .iter()
            .filter(|(_, _, revoked)| revoked.is_some())
            .count(),
        2
    );
    assert!(verify(&sealed(), &load().unwrap()).is_err());

    std::fs::write(admin.join(REVOKED_DIR).join("bad.pub"), "AAAA\n").unwrap();
    let error = load().unwrap_err();
    assert_eq!(error.kind(), Kind::Trust);
    assert!(error.to_string().contains("bad.pub, line 1"), "{error}");
    std::fs::remove_file(admin.join(REVOKED_DIR).join("bad.pub")).unwrap();
    symlink("nowhere", admin.join(REVOKED_DIR).join("gone.pub")).unwrap();
    assert!(load().unwrap_err().to_string().contains("leads nowhere"));
    std::fs::remove_file(admin.join(REVOKED_DIR).join("gone.pub")).unwrap();
    for path in [
        keys.clone(),
        keys.join(HOST_PUBLIC_KEY),
        keys.join(TRUSTED_DIR),
        keys.join("trusted.d/org@2026.pub"),
    ] {
        let good = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(good.mode() | 0o002)).unwrap();
        let error = load().unwrap_err();
        assert_eq!(error.kind(), Kind::Trust);
        assert!(error.to_string().contains("everybody may have changed"), "{error}");
        std::fs::set_permissions(&path, good).unwrap();
        load().unwrap();
    }
}

#[test]
fn a_counter_grows_past_everything_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    let next = |sealed: &[u64]| next_counter(&RealFs, state, sealed.iter().copied()).unwrap();
    assert_eq!(
        next(&[]),
        Next {
            counter: 1,
            warning: None
        }
    );
    assert_eq!(next(&[1]).counter, 2);
    assert_eq!(next(&[1, 7, 3]).counter, 8);
    assert_eq!(
        next(&[]).counter,
        9,
        "a deleted deployment's counter does not come back"
    );
    std::fs::remove_file(state.join(COUNTERS_FILE)).unwrap();
    assert_eq!(next(&[9]).counter, 10);
    for damage in [
        "",
        "{",
        "{\"formatVersion\":1,\"highest\":-1}",
        "{\"formatVersion\":9,\"highest\":1}",
    ] {
        std::fs::write(state.join(COUNTERS_FILE), damage).unwrap();
        let next = next(&[20]);
        assert_eq!(next.counter, 21);
        assert!(next.warning.unwrap().contains(COUNTERS_FILE));
    }
    let error = next_counter(&RealFs, state, [u64::MAX]).unwrap_err();
    assert_eq!(error.kind(), Kind::Trust);
}

#[test]
fn no_power_cut_makes_a_counter_appear_twice_or_leaves_half_a_key() {
    for loss in [Loss::Content, Loss::Names] {
        for cut in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let (base, stash) = (folder.path().join("base"), folder.path().join("stash"));
            std::fs::create_dir(&base).unwrap();
            std::fs::create_dir(&stash).unwrap();
            next_counter(&RealFs, &base, []).unwrap();
            let fs = CrashFs::new(&base, &stash).cut_after(cut);
            let handed = next_counter(&fs, &base, []).ok().map(|next| next.counter);
            let key = SigningKey::load_or_generate(&fs, &base.join("keys")).ok();
            fs.lose(loss);
            let after = next_counter(&RealFs, &base, []).unwrap();
            assert_eq!(after.warning, None);
            assert!(
                after.counter > handed.unwrap_or(1),
                "{loss:?}, {cut}: {after:?} after {handed:?}"
            );
            let read = SigningKey::load_or_generate(&RealFs, &base.join("keys")).unwrap();
            if let Some(key) = key {
                assert_eq!(read.public(), key.public(), "{loss:?}, {cut}");
            }
        }
    }
}

#[test]
fn an_older_image_is_refused_unless_the_admin_wants_it() {
    let at = |second: i64| Some(Timestamp::from_second(second).unwrap());
    let image = |counter, created| Freshness { counter, created };
    for (current, candidate, older) in [
        (image(None, at(10)), image(None, at(10)), false),
        (image(None, at(10)), image(None, at(11)), false),
        (image(None, at(10)), image(None, at(9)), true),
        (image(None, None), image(None, at(9)), false),
        (image(None, at(10)), image(None, None), false),
        (image(Some(3), at(10)), image(Some(4), at(9)), false),
        (image(Some(3), at(10)), image(Some(3), at(9)), false),
        (image(Some(3), at(10)), image(Some(2), at(11)), true),
        (image(Some(3), at(10)), image(None, at(11)), true),
        (image(None, at(10)), image(Some(1), at(9)), true),
    ] {
        let refused = check_downgrade(&current, &candidate, false);
        assert_eq!(refused.is_err(), older, "{current:?} -> {candidate:?}");
        if let Err(error) = refused {
            assert_eq!(error.kind(), Kind::Trust);
            assert!(error.to_string().contains("--allow-downgrade"));
        }
        check_downgrade(&current, &candidate, true).unwrap();
    }
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
