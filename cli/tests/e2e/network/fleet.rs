//! Machines behind a registry of their own that fetches for all of them.

use super::*;

#[test]
fn behind_a_pull_through_cache_a_fleet_fetches_each_blob_once() {
    let upstream = Registry::start();
    let cache = Registry::in_front_of(&upstream);
    let (first, layer, size) = image(1, 2 * MIB);
    let reference = first.push(&upstream, "os", "stable");
    let dir = scratch();
    let conf = dir.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        upstream.host(),
        cache.host()
    );
    fs::write(&conf, text).unwrap();
    let run = |cfs: &Cfs, args: &[&str]| {
        let mut command = cfs.command(args);
        Ran::from(command.env("CONTAINERS_REGISTRIES_CONF", &conf).output().unwrap())
    };
    let hosts: Vec<_> = (0..3)
        .map(|n| {
            let dir = dir.path().join(format!("host{n}"));
            fs::create_dir(&dir).unwrap();
            Cfs::new(&dir)
        })
        .collect();
    // Debian's docker-registry fetches what it does not have twice at once: for whoever asks, and for itself.
    let twice = vec![(200, size as u64); 2];
    for cfs in &hosts {
        let ran = run(cfs, &["switch", &reference]).expect(0);
        assert!(!ran.stderr.contains("passed over"), "{}", ran.stderr);
        assert_eq!(upstream.blob_answers(&layer), twice, "by the cache, for the first host");
    }
    assert_eq!(cache.blob_answers(&layer).len(), hosts.len());

    // The tag moves, and the fleet with it.
    let (second, layer, _) = image(2, MIB);
    second.push(&upstream, "os", "stable");
    for cfs in &hosts {
        run(cfs, &["upgrade"]).expect(0);
        assert!(cfs.status().to_string().contains(&second.digest()));
        assert_eq!(
            cfs.status()["spec"]["image"]["image"],
            reference,
            "it follows the registry, not the cache"
        );
    }
    assert_eq!(upstream.blob_answers(&layer).len(), 2);

    // Without the cache the registry itself is asked.
    drop(cache);
    let (third, layer, _) = image(3, MIB);
    third.push(&upstream, "os", "stable");
    let ran = run(&hosts[0], &["upgrade"]).expect(0);
    assert!(ran.stderr.contains("mirror passed over"), "{}", ran.stderr);
    assert_eq!(upstream.blob_answers(&layer).len(), 1);
}

#[test]
fn an_interrupted_download_goes_on_behind_a_pull_through_cache() {
    let upstream = Registry::start();
    let cache = Registry::in_front_of(&upstream);
    let (image, layer, size) = image(1, 4 * MIB);
    image.push(&upstream, "os", "1");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = cache.reference("os:1");
    // Somebody else's download has filled the cache.
    cfs.on(&dir.path().join("other"))
        .run(["image", "pull", &reference])
        .expect(0);
    let (_, kept) = kill_at(&cfs, &["image", "pull", "--limit-rate", "1M", &reference], MIB);
    let before = cache.blob_answers(&layer).len();
    let ran = cfs.run(["image", "pull", &reference]).expect(0);
    assert!(ran.stderr.contains("goes on at"), "{}", ran.stderr);
    let sent: u64 = cache.blob_answers(&layer)[before..]
        .iter()
        .map(|(_, bytes)| bytes)
        .sum();
    assert_eq!(sent, (size - kept) as u64);
}
