//! Whose seals count, and whose do no longer.

use super::*;

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
