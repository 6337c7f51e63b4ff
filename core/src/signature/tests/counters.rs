//! Counters grow whatever happens, and an older image is refused.

use super::*;
use crate::testing::{CrashFs, Loss};

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
