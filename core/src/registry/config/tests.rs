use super::*;
use crate::reference::Reference;

fn config(text: &str) -> Config {
    let mut config = Config::default();
    config.add(Path::new("registries.conf"), text.as_bytes()).unwrap();
    config
}

fn places(config: &Config, image: &str) -> Vec<String> {
    let Reference::Registry(name) = image.parse().unwrap() else {
        panic!("{image}");
    };
    let shown = |place: Place| {
        let how = if place.insecure { " insecure" } else { "" };
        format!("{}/{}{how}", place.host, place.repository)
    };
    config.places(&name).unwrap().into_iter().map(shown).collect()
}

const MIRRORED: &str = r#"
    unqualified-search-registries = ["docker.io"]
    credential-helpers = ["containers-auth.json", "x"]
    [[registry]]
    location = "quay.io"
    [[registry]]
    prefix = "quay.io/org"
    location = "internal.example:5000/mirror"
    insecure = true
    [[registry.mirror]]
    location = "m1.example/org"
    [[registry.mirror]]
    location = "m2.example/org"
    insecure = true
    pull-from-mirror = "digest-only"
    [[registry.mirror]]
    location = "m3.example/org"
    pull-from-mirror = "tag-only"
    [aliases]
    "x" = "y"
"#;

#[test]
fn the_longest_prefix_decides_and_mirrors_come_first() {
    let config = config(MIRRORED);
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(
        places(&config, "quay.io/org/os:1"),
        [
            "m1.example/org/os",
            "m3.example/org/os",
            "internal.example:5000/mirror/os insecure"
        ]
    );
    assert_eq!(
        places(&config, &format!("quay.io/org/os@{digest}")),
        [
            "m1.example/org/os",
            "m2.example/org/os insecure",
            "internal.example:5000/mirror/os insecure"
        ]
    );
    assert_eq!(places(&config, "quay.io/organ/os:1"), ["quay.io/organ/os"]);
    assert_eq!(places(&config, "other.example/os:1"), ["other.example/os"]);
    assert_eq!(config.helpers, ["containers-auth.json", "x"]);
    for part in ["m1.example", "m2.example", "internal.example:5000", "quay.io"] {
        assert!(!config.insecure(part), "{part} as a whole");
    }
}

#[test]
fn a_host_may_be_insecure_blocked_or_covered_by_a_wildcard() {
    let config = config(
        r#"
        [[registry]]
        location = "plain.example:5000"
        insecure = true
        [[registry]]
        prefix = "*.blocked.example"
        blocked = true
        [[registry]]
        prefix = "*.moved.example"
        location = "new.example"
        [[registry]]
        prefix = "stays.moved.example"
        location = "stays.moved.example"
        "#,
    );
    assert_eq!(
        places(&config, "plain.example:5000/os:1"),
        ["plain.example:5000/os insecure"]
    );
    assert_eq!(places(&config, "plain.example:5001/os:1"), ["plain.example:5001/os"]);
    assert_eq!(places(&config, "a.moved.example/os:1"), ["new.example/os"]);
    assert_eq!(places(&config, "stays.moved.example/os:1"), ["stays.moved.example/os"]);
    let Reference::Registry(blocked) = "x.blocked.example/os".parse().unwrap() else {
        panic!("no registry");
    };
    assert!(
        config
            .places(&blocked)
            .unwrap_err()
            .to_string()
            .contains("blocks *.blocked.example")
    );
}

#[test]
fn a_prefix_may_name_a_tag_a_digest_or_a_path_below_a_wildcard() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let config = config(&format!(
        r#"
        [[registry]]
        prefix = "h.example/os:bad"
        blocked = true
        [[registry]]
        prefix = "h.example/os@{digest}"
        blocked = true
        [[registry]]
        prefix = "h.example/os:moved"
        location = "new.example/other:moved"
        [[registry]]
        prefix = "h.example"
        location = "m.example/h"
        [[registry]]
        prefix = "*.wild.example/org"
        location = "w.example/w"
        [[registry]]
        prefix = "*.wild.example"
        blocked = true
        "#
    ));
    let blocked = |image: &str| {
        let Reference::Registry(name) = image.parse().unwrap() else {
            panic!("{image}");
        };
        config.places(&name).is_err()
    };
    for image in [
        "h.example/os:bad".to_owned(),
        format!("h.example/os@{digest}"),
        format!("h.example/os:good@{digest}"),
        "a.wild.example/other/os:1".into(),
        "a.b.wild.example/organ:1".into(),
        "a.wild.example:5000/os:1".into(),
    ] {
        assert!(blocked(&image), "{image}");
    }
    for (image, place) in [
        ("h.example/os:badly", "m.example/h/os"),
        ("h.example/os/bad:1", "m.example/h/os/bad"),
        ("h.example/os:moved", "new.example/other"),
        ("a.wild.example/org/os:1", "w.example/w/os"),
        ("x.example/a.wild.example/org/os:1", "x.example/a.wild.example/org/os"),
    ] {
        assert_eq!(places(&config, image), [place], "{image}");
    }
}

#[test]
fn names_are_compared_without_case_of_the_host_and_slashes_at_the_end() {
    let config = config(
        r#"
        [[registry]]
        prefix = "Block.Example/"
        blocked = true
        [[registry]]
        prefix = "h.example/org/"
        location = "M.example/mirror//"
        [[registry.mirror]]
        location = "block.example/cache"
        "#,
    );
    // The mirror is blocked by itself.
    assert_eq!(places(&config, "h.example/org/os:1"), ["m.example/mirror/os"]);
    let error = |text: &str, image: &str| {
        let mut config = Config::default();
        let Reference::Registry(name) = image.parse().unwrap() else {
            panic!("{image}");
        };
        let added = config.add(Path::new("registries.conf"), text.as_bytes());
        added.and_then(|()| config.places(&name)).unwrap_err().to_string()
    };
    let registry = "[[registry]]\nprefix = \"h.example\"\n";
    for (more, image, why) in [
        ("location = \"http://h.example\"", "h.example/os", "is an address"),
        (
            "[[registry.mirror]]\nlocation = \"\"",
            "h.example/os",
            "needs a location",
        ),
        (
            "location = \"x.example\"\n[[registry]]\nprefix = \"x.example/os\"\nblocked = true",
            "h.example/os",
            "blocks x.example/os",
        ),
    ] {
        let text = format!("{registry}{more}\n");
        assert!(error(&text, image).contains(why), "{more}: {}", error(&text, image));
    }
}

#[test]
fn a_digest_only_registry_keeps_tags_off_its_mirrors() {
    let config = config(
        r#"
        [[registry]]
        location = "h.example"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.example"
        "#,
    );
    assert_eq!(places(&config, "h.example/os:1"), ["h.example/os"]);
    let by_digest = format!("h.example/os@sha256:{}", "0".repeat(64));
    assert_eq!(places(&config, &by_digest), ["m.example/os", "h.example/os"]);
}

#[test]
fn keys_count_in_any_case_and_as_they_should_be_written_first() {
    let config = config(
        "[[Registry]]\nPREFIX = 'quay.io/bad'\nLocation = 'quay.io/bad'\nBlocked = true\n\
         [[Registry.Mirror]]\nlocation = 'one'\nLocation = 'two'\n",
    );
    assert_eq!(config.registries[0].mirror[0].location, "one");
    assert!(config.registries[0].blocked);
    assert!(
        Config::default()
            .add(Path::new("x"), b"[[Registry]]\nBlocked = 3\n")
            .is_err()
    );
}

#[test]
fn of_several_wildcards_the_longest_decides() {
    let longer = "[[registry]]\nprefix = \"*.sub.a.example\"\nblocked = true\n";
    let shorter = "[[registry]]\nprefix = \"*.a.example\"\nlocation = \"m.example\"\n";
    for text in [longer.to_owned() + shorter, shorter.to_owned() + longer] {
        let config = config(&text);
        assert_eq!(places(&config, "x.a.example/os:1"), ["m.example/os"]);
        let Reference::Registry(blocked) = "x.sub.a.example/os:1".parse().unwrap() else {
            panic!("no registry");
        };
        assert!(config.places(&blocked).is_err());
    }
}

#[test]
fn a_port_does_not_become_a_part_of_another_hosts_path() {
    let config = config("[[registry]]\nprefix = \"a.example\"\nlocation = \"m.example/x\"\n");
    let Reference::Registry(name) = "a.example:5000/os:1".parse().unwrap() else {
        panic!("no registry");
    };
    let error = config.places(&name).unwrap_err().to_string();
    assert!(error.contains("m.example/x:5000/os"), "{error}");
    assert_eq!(places(&config, "a.example/os:1"), ["m.example/x/os"]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let refused = |text: &str| {
        let added = Config::default().add(Path::new("registries.conf"), text.as_bytes());
        added.unwrap_err().to_string()
    };
    let mirror =
        "mirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"tag-only\"\n";
    let text = refused(&format!("[[registry]]\nlocation = \"a\"\n{mirror}"));
    assert!(text.contains("mirror-by-digest-only"), "{text}");
    let text = refused("[[registry]]\nlocation = \"a\"\nblocked = true\n[[registry]]\nlocation = \"a\"\n");
    assert!(text.contains("a twice"), "{text}");
    config("[[registry]]\nlocation = \"a\"\n[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"m\"\n");
}

#[test]
#[allow(clippy::disallowed_methods)]
fn the_users_own_file_counts_alone_and_a_named_one_has_to_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("etc.d/folder.conf")).unwrap();
    std::fs::create_dir(at("own.d")).unwrap();
    let insecure = |name: &str| format!("[[registry]]\nlocation = \"{name}\"\ninsecure = true\n");
    std::fs::write(at("etc.conf"), insecure("etc")).unwrap();
    std::fs::write(at("etc.d/1.conf"), insecure("etc-d")).unwrap();
    std::fs::write(at("own.d/1.conf"), insecure("own-d")).unwrap();
    let mut options = Options {
        own_registries: Some((at("own.conf"), at("own.d"))),
        registries_conf: vec![at("none.conf"), at("etc.conf")],
        registries_conf_d: vec![at("etc.d"), at("own.d")],
        ..Options::default()
    };
    let seen = |options: &Options| {
        let config = Config::load(options).unwrap();
        ["etc", "etc-d", "own", "own-d"].map(|name| config.insecure(name))
    };
    assert_eq!(seen(&options), [true, true, false, true]);
    std::fs::write(at("own.conf"), insecure("own")).unwrap();
    assert_eq!(seen(&options), [false, false, true, true]);
    options.own_registries = None;
    options.registries_conf = vec![at("none.conf")];
    let error = Config::load(&options).unwrap_err().to_string();
    assert!(error.contains("none.conf") && error.contains("is not there"), "{error}");
}

#[test]
fn a_drop_in_replaces_and_a_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        registries_conf: vec![dir.path().join("none.conf"), dir.path().join("registries.conf")],
        registries_conf_d: vec![dir.path().join("none.d"), dir.path().join("d")],
        ..Options::default()
    };
    #[allow(clippy::disallowed_methods)]
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "registries.conf",
        "[[registry]]\nlocation = \"a.example\"\ninsecure = true\n",
    );
    assert!(Config::load(&options).unwrap().insecure("a.example"));
    write("d/1.conf", "[[registry]]\nlocation = \"a.example\"\n");
    write("d/ignored.txt", "not toml");
    assert!(!Config::load(&options).unwrap().insecure("a.example"));
    write("d/2.conf", "[[registry]]\nlocation = 5\n");
    let error = Config::load(&options).unwrap_err().to_string();
    assert!(error.contains("2.conf") && error.contains("line 2"), "{error}");
    write("d/2.conf", "[registries.search]\nregistries = []\n");
    assert!(Config::load(&options).unwrap_err().to_string().contains("version 1"));
}
