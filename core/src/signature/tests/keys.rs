//! The machine's key: made once, private, and refused where it may be another's.

use super::*;

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
