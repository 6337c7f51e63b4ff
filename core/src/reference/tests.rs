use super::*;
use proptest::prelude::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn each_way_to_write_an_image_is_understood() {
    let digest = format!("sha256:{HEX}");
    for (text, shown) in [
        ("quay.io/org/os:41", "quay.io/org/os:41"),
        ("docker://quay.io/org/os:41", "quay.io/org/os:41"),
        ("quay.io/org/os", "quay.io/org/os:latest"),
        ("QUAY.io/org/os", "quay.io/org/os:latest"),
        ("localhost/os", "localhost/os:latest"),
        ("localhost:5000/os", "localhost:5000/os:latest"),
        ("127.0.0.1:5000/a/b/c:x_1.2-3", "127.0.0.1:5000/a/b/c:x_1.2-3"),
        ("[::1]:5000/os:1", "[::1]:5000/os:1"),
        ("[::1]/os", "[::1]/os:latest"),
        ("host:5000/os", "host:5000/os:latest"),
        ("docker.io/debian:13", "docker.io/library/debian:13"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest"),
        ("docker://debian:13", "docker.io/library/debian:13"),
        ("docker://org/os", "docker.io/org/os:latest"),
        ("quay.io/a__b/c.d/e---f:1", "quay.io/a__b/c.d/e---f:1"),
        ("oci:dir", "oci:dir"),
        ("oci:/a b/dir:1", "oci:/a b/dir:1"),
        ("oci:dir:quay.io/org/os:41", "oci:dir:quay.io/org/os:41"),
        ("oci:dir:@2", "oci:dir:@2"),
        ("oci:dir:", "oci:dir"),
        ("oci-archive:/x.tar:1", "oci-archive:/x.tar:1"),
        ("docker-archive:x.tar", "docker-archive:x.tar"),
        (
            "containers-storage:quay.io/org/os:41",
            "containers-storage:quay.io/org/os:41",
        ),
        (&format!("h.example/os@{digest}"), &format!("h.example/os@{digest}")),
        (&format!("h.example/os:1@{digest}"), &format!("h.example/os:1@{digest}")),
        (&format!("oci:dir@{digest}"), &format!("oci:dir@{digest}")),
        (&format!("oci:dir:@{digest}"), &format!("oci:dir@{digest}")),
        (&format!("oci:dir:1@{digest}"), &format!("oci:dir:1@{digest}")),
    ] {
        let parsed: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(parsed.to_string(), shown, "{text}");
        assert_eq!(shown.parse::<Reference>().unwrap(), parsed, "{text}");
        assert_eq!(parsed.with_transport().parse::<Reference>().unwrap(), parsed, "{text}");
    }
}

#[test]
fn a_digest_beside_a_tag_is_what_is_asked_for() {
    let Reference::Registry(name) = format!("h.example:1/os:41@sha256:{HEX}").parse().unwrap() else {
        panic!("not a registry");
    };
    assert_eq!(name.wanted(), format!("sha256:{HEX}"));
    assert_eq!(
        (name.host(), name.repository(), name.tag()),
        ("h.example:1", "os", Some("41"))
    );
}

#[test]
fn what_cannot_be_an_image_is_refused_with_what_to_write_instead() {
    for (text, says) in [
        ("", "quay.io/org/os:41"),
        ("debian:13", "docker.io/library/debian:13"),
        ("org/os", "docker.io/org/os"),
        ("https://quay.io/org/os", "write quay.io/org/os"),
        ("ftp://x/y", "no known transport"),
        ("quay.io/Org/os", "lower case"),
        ("quay.io/org/os:", "not a tag"),
        ("quay.io/org/os:.x", "not a tag"),
        ("quay.io/org//os", "cannot be part"),
        ("quay.io/../os", "cannot be part"),
        ("quay.io/", "no repository"),
        ("quay.io/a..b", "cannot be part"),
        ("quay.io/os@sha256:00", "64 lower-case hex"),
        ("quay.io/os@sha512:00", "not supported"),
        ("quay.io/os@x", "not a digest"),
        ("host:99999/os", "not a port"),
        ("host:0/os", "not a port"),
        ("::1/os", "brackets"),
        ("[::1/os", "closing bracket"),
        ("[nope]:1/os", "not an IPv6"),
        ("-bad.example/os", "not a host name"),
        ("MYREG/os:1", "write myreg:443/os:1"),
        ("docker://MYREG/a/os", "write myreg:443/a/os"),
        ("quay.io/os x", "white space"),
        ("quay.io/os\nx", "control character"),
        ("user@quay.io/os", "not a digest"),
        ("oci:", "no folder"),
        ("oci:dir:@x", "neither a place"),
        ("oci:dir@sha256:00", "64 lower-case hex"),
        ("oci-archive:", "names no folder or file"),
        ("containers-storage:", "nothing follows"),
        ("dir:/tmp/x", "not supported"),
    ] {
        let error = text.parse::<Reference>().expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let long = format!("quay.io/{}", "a".repeat(256));
    assert!(long.parse::<Reference>().is_err());
}

#[test]
fn a_relative_folder_becomes_absolute_before_it_is_recorded() {
    let base = Path::new("/work");
    for (text, absolute) in [
        ("oci:x:1", "oci:/work/x:1"),
        ("oci:/x:1", "oci:/x:1"),
        ("oci-archive:x.tar", "oci-archive:/work/x.tar"),
        ("quay.io/org/os:1", "quay.io/org/os:1"),
    ] {
        let parsed: Reference = text.parse().unwrap();
        assert_eq!(parsed.absolute(base).to_string(), absolute);
    }
}

fn plausible() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?",
        "[A-Za-z0-9._:/@\\[\\]-]{0,8}",
        Just(format!("@sha256:{HEX}")),
        Just("oci:".to_string()),
        Just("docker://".to_string()),
        Just("localhost".to_string()),
        Just("[::1]:5000".to_string()),
    ];
    let glue = prop_oneof![Just("/"), Just(":"), Just("@"), Just("")];
    prop::collection::vec((part, glue), 1..6)
        .prop_map(|parts| parts.into_iter().map(|(part, glue)| part + glue).collect())
}

proptest! {
    #[test]
    fn what_is_understood_reads_back_as_it_is_shown(text in plausible()) {
        if let Ok(parsed) = text.parse::<Reference>() {
            let shown = parsed.to_string();
            prop_assert_eq!(shown.parse::<Reference>().unwrap(), parsed.clone(), "{}", shown);
            prop_assert_eq!(parsed.with_transport().parse::<Reference>().unwrap(), parsed);
        }
    }

    #[test]
    fn no_text_at_all_makes_it_panic(text in "\\PC{0,40}") {
        let _ = text.parse::<Reference>();
    }

    #[test]
    fn a_registry_reference_with_every_part_is_understood(
        host in "[a-z][a-z0-9-]{0,8}[a-z0-9]\\.[a-z]{2,3}",
        port in prop::option::of(1u16..),
        path in "[a-z0-9]{1,6}(/[a-z0-9]{1,4}([._]|__|-{1,3})[a-z0-9]{1,4}){0,3}",
        tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        digest in prop::bool::ANY,
    ) {
        prop_assume!(host != "docker.io");
        let mut text = host.clone();
        if let Some(port) = port {
            text += &format!(":{port}");
        }
        let whole_host = text.clone();
        text += &format!("/{path}");
        if let Some(tag) = &tag {
            text += &format!(":{tag}");
        }
        if digest {
            text += &format!("@sha256:{HEX}");
        }
        let parsed = text.parse::<Reference>().unwrap();
        let Reference::Registry(name) = &parsed else { panic!("{text}") };
        prop_assert_eq!(name.host(), whole_host.as_str());
        prop_assert_eq!(name.repository(), path.as_str());
        if tag.is_some() || digest {
            prop_assert_eq!(name.tag(), tag.as_deref());
            prop_assert_eq!(parsed.to_string(), text);
        }
    }
}
