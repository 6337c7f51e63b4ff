//! Parts of a blob: who is asked for them, and how often.

use std::ops::Range;

use cfs_core::monitor::Monitor;

use super::*;

/// Parts of the layer.
fn parts(registry: &Registry, ranges: &[Range<u64>], monitor: &dyn Monitor) -> Result<Vec<u8>, Error> {
    let image = image(registry)?;
    let mut bytes = Vec::new();
    let mut parts = registry.parts(&image.manifest.layers[0], ranges.to_vec(), monitor);
    match parts.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Error::from_read("parts", error)),
    }
}

const TWO: [Range<u64>; 2] = [10..20, 500_000..500_010];

#[test]
fn parts_of_a_busy_registry_that_asks_for_no_wait_are_given_up_after_the_attempts() {
    let served = Served::new(MIB);
    for status in [429, 503] {
        let server = faulty(&served, move |seen, before| {
            let busy = seen.header("range").is_some() && before < 100;
            busy.then(|| Reply::new(status).with("Retry-After", "0"))
        });
        let error = parts(&open(&server), &TWO, &Quiet).unwrap_err();
        assert!(error.to_string().contains("4 attempts"), "{error}");
        assert_eq!(server.count(&served.layer_digest()), 4);
    }
}

/// The part that was asked for, if it is one alone.
fn part(seen: &Seen, served: &Served) -> Option<Reply> {
    let header = seen.header("range")?.strip_prefix("bytes=")?;
    let Some((start, end)) = header.split_once('-').filter(|_| !header.contains(',')) else {
        return Some(Reply::new(416));
    };
    let (start, end) = (start.parse::<usize>().ok()?, end.parse::<usize>().ok()?);
    let part = Reply {
        status: 206,
        ..Reply::ok(&served.layer[start..=end])
    };
    Some(part.with(
        "Content-Range",
        format_args!("bytes {start}-{end}/{}", served.layer.len()),
    ))
}

/// A registry that serves parts.
fn serving_parts(served: &Served) -> Server {
    let whole = served.clone();
    faulty(served, move |seen, _| part(seen, &whole))
}

fn behind(dir: &Path, good: &Server, mirror: &Server) -> Registry {
    let conf = format!(
        "[[registry]]\nprefix = \"h.example\"\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        good.host(),
        mirror.host()
    );
    open_with("h.example", &registries_conf(dir, &conf))
}

#[test]
fn a_mirror_that_does_not_give_parts_has_one_try_and_the_next_place_gives_them() {
    let served = Served::new(MIB);
    let wanted = [&served.layer[10..20], &served.layer[500_000..500_010]].concat();
    for status in [403, 404, 429, 500, 503] {
        let layer = served.layer_digest();
        let mirror = faulty(&served, move |seen, _| {
            seen.path.ends_with(&layer).then(|| Reply::new(status))
        });
        let dir = tempfile::tempdir().unwrap();
        let good = serving_parts(&served);
        let registry = behind(dir.path(), &good, &mirror);
        let told = Told::default();
        assert_eq!(parts(&registry, &TWO, &told).unwrap(), wanted, "{status}");
        let told = told.0.into_inner().unwrap();
        assert_eq!(
            told.iter().filter(|told| told.contains("next source")).count(),
            1,
            "{told:?}"
        );
        // Some proxies fail on several ranges at once, or forbid them, and give them one by one.
        let tries = if matches!(status, 403 | 500) { 3 } else { 1 };
        assert!(
            mirror.count(&served.layer_digest()) <= tries,
            "{status}: {:?}",
            mirror.story()
        );
        assert_eq!(good.count(&served.layer_digest()), 3, "{:?}", good.story());
    }
}

#[test]
fn parts_of_a_registry_that_refuses_several_at_once_come_one_by_one() {
    let served = Served::new(MIB);
    let wanted = [&served.layer[10..20], &served.layer[500_000..500_010]].concat();
    for status in [400, 403, 405, 413, 414, 416, 431, 500, 501] {
        let whole = served.clone();
        let server = faulty(&served, move |seen, _| {
            let several = seen.header("range").is_some_and(|ranges| ranges.contains(','));
            if several {
                Some(Reply::new(status))
            } else {
                part(seen, &whole)
            }
        });
        assert_eq!(parts(&open(&server), &TWO, &Quiet).unwrap(), wanted, "{status}");
        assert_eq!(server.count(&served.layer_digest()), 3, "{:?}", server.story());
    }
}

#[test]
fn parts_that_are_forbidden_one_by_one_as_well_are_given_up_with_what_the_registry_says() {
    let served = Served::new(MIB);
    let server = faulty(&served, |seen, _| seen.header("range").map(|_| Reply::new(403)));
    let error = parts(&open(&server), &TWO, &Quiet).unwrap_err();
    assert!(error.to_string().contains("403 Forbidden"), "{error}");
}

#[test]
fn a_mirror_without_ranges_is_asked_for_parts_no_more_and_the_next_place_is() {
    let served = Served::new(MIB);
    let wanted = [&served.layer[10..20], &served.layer[500_000..500_010]].concat();
    let mirror = faulty(&served, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let good = serving_parts(&served);
    let registry = behind(dir.path(), &good, &mirror);
    assert_eq!(parts(&registry, &TWO, &Quiet).unwrap(), wanted);
    assert!(registry.serves_parts());
    let before = mirror.count(&served.layer_digest());
    assert_eq!(parts(&registry, &TWO, &Quiet).unwrap(), wanted);
    assert_eq!(mirror.count(&served.layer_digest()), before, "{:?}", mirror.story());
    assert_eq!(good.count(&served.layer_digest()), 5, "{:?}", good.story());
}

#[test]
fn parts_that_no_place_gives_are_worth_no_more_questions() {
    let served = Served::new(MIB);
    let mirror = faulty(&served, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let good = faulty(&served, |_, _| None);
    let registry = behind(dir.path(), &good, &mirror);
    assert!(parts(&registry, &TWO, &Quiet).is_err());
    assert!(!registry.serves_parts());
}

#[test]
fn parts_cut_after_every_few_bytes_still_come() {
    let served = Served::new(MIB);
    let whole = served.clone();
    let server = faulty(&served, move |seen, _| {
        let part = part(seen, &whole)?;
        Some(Reply {
            cut_after: Some(20_000),
            ..part
        })
    });
    let ranges = [10..300_000, 500_000..900_000];
    let got = parts(&open(&server), &ranges, &Quiet).unwrap();
    assert!(got == [&served.layer[10..300_000], &served.layer[500_000..900_000]].concat());
}
