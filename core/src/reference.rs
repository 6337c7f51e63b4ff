//! What the user follows: a repository of a registry, or a folder or archive with images.
//!
//! Text in, values out; nothing here touches a file or the network. Invariant: a [`Reference`] is fully qualified (a
//! registry, a repository, and a tag or digest), it never holds white space or control characters where a line-based
//! record could be broken by them, and `Display` reads back as the same value.
//!
//! Grammar: distribution's reference grammar for registries, containers-transports(5) for the rest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::ids::ManifestDigest;

/// An image, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// `quay.io/org/os:41`, with or without `docker://`.
    Registry(Name),
    /// `oci:DIR[:NAME]`: a folder in OCI image layout.
    Layout(Layout),
    /// `oci-archive:FILE[:NAME]`: such a folder as a tar file. The text after the transport.
    OciArchive(String),
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes. The text after the transport.
    DockerArchive(String),
    /// `containers-storage:NAME`: an image of podman on this machine. The text after the transport.
    ContainersStorage(String),
}

/// An image in a registry: always with a host, and with a tag, a digest or both (then the digest is what counts).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<ManifestDigest>,
}

/// An image in an OCI layout folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Layout {
    path: PathBuf,
    choice: Choice,
    digest: Option<ManifestDigest>,
}

/// Which image of a layout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Choice {
    /// The only one.
    #[default]
    Only,
    /// By its `org.opencontainers.image.ref.name`.
    Named(String),
    /// By its place in `index.json`, from 0.
    At(usize),
}

/// Transports of containers-transports(5) that no image to boot comes from.
const FOREIGN: [&str; 8] = [
    "dir:",
    "docker-daemon:",
    "sif:",
    "tarball:",
    "ostree:",
    "atomic:",
    "ostree-image-signed:",
    "ostree-unverified-image:",
];

const HUB: &str = "docker.io";

impl Reference {
    /// `registry`, `oci`, `oci-archive`, `docker-archive` or `containers-storage`: the names of bootc's `transport`.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Registry(_) => "registry",
            Self::Layout(_) => "oci",
            Self::OciArchive(_) => "oci-archive",
            Self::DockerArchive(_) => "docker-archive",
            Self::ContainersStorage(_) => "containers-storage",
        }
    }

    /// With its transport always written out, as skopeo and the origin file want it: `docker://quay.io/org/os:41`.
    pub fn with_transport(&self) -> String {
        match self {
            Self::Registry(name) => format!("docker://{name}"),
            other => other.to_string(),
        }
    }

    /// The digest that the user asked for, if any: it pins the image.
    pub fn digest(&self) -> Option<ManifestDigest> {
        match self {
            Self::Registry(name) => name.digest,
            Self::Layout(layout) => layout.digest,
            _ => None,
        }
    }

    /// The same image pinned to `digest`; transports that have no digests stay as they are.
    pub fn pinned(&self, digest: ManifestDigest) -> Self {
        let mut pinned = self.clone();
        match &mut pinned {
            Self::Registry(name) => name.digest = Some(digest),
            Self::Layout(layout) => layout.digest = Some(digest),
            _ => {}
        }
        pinned
    }

    /// The same with a relative folder or file made absolute against `base`, so that it can be recorded.
    pub fn absolute(&self, base: &Path) -> Self {
        let join = |text: &String| match text.starts_with('/') {
            true => text.clone(),
            false => format!("{}/{text}", base.display()),
        };
        match self {
            Self::Layout(layout) => Self::Layout(Layout {
                path: base.join(&layout.path),
                ..layout.clone()
            }),
            Self::OciArchive(text) => Self::OciArchive(join(text)),
            Self::DockerArchive(text) => Self::DockerArchive(join(text)),
            other => other.clone(),
        }
    }
}

impl Name {
    /// Host with port if one was given, lower case; `[::1]:5000` for IPv6; `docker.io` for Docker Hub.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path in the registry: `org/os`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only where there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the image is pinned.
    pub fn digest(&self) -> Option<ManifestDigest> {
        self.digest
    }

    /// What a manifest request asks for: the digest where there is one, else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }
}

impl Layout {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which of its images.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The digest, if the image is pinned.
    pub fn digest(&self) -> Option<ManifestDigest> {
        self.digest
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: String| Error::Reference {
            reference: text.escape_debug().to_string(),
            why,
        };
        if text.is_empty() {
            return Err(fail("is empty; write one such as quay.io/org/os:41".into()));
        }
        if text.chars().any(char::is_control) {
            return Err(fail("has a control character in it".into()));
        }
        parse(text).map_err(fail)
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if let Some(rest) = text.strip_prefix("docker://") {
        return Ok(Reference::Registry(name(rest, true)?));
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        return Ok(Reference::Layout(layout(rest)?));
    }
    type Make = fn(String) -> Reference;
    let later: [(&str, Make); 3] = [
        ("oci-archive:", Reference::OciArchive),
        ("docker-archive:", Reference::DockerArchive),
        ("containers-storage:", Reference::ContainersStorage),
    ];
    for (prefix, make) in later {
        match text.strip_prefix(prefix) {
            Some("") => return Err(format!("nothing follows {prefix}")),
            Some(rest) => return Ok(make(rest.into())),
            None => {}
        }
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(match scheme {
            "http" | "https" => format!("is an address; write {rest} without {scheme}://"),
            _ => format!("{scheme}:// is no known transport; write docker://, oci: or no transport at all"),
        });
    }
    if let Some(prefix) = FOREIGN.iter().find(|prefix| text.starts_with(**prefix)) {
        let known = "docker://, oci:, oci-archive:, docker-archive: and containers-storage: are";
        return Err(format!("the transport {prefix} is not supported; {known}"));
    }
    Ok(Reference::Registry(name(text, false)?))
}

/// `hub`: the text followed `docker://`, which stands for Docker Hub where no host is named, as in skopeo.
fn name(text: &str, hub: bool) -> Result<Name, String> {
    if text.contains(char::is_whitespace) {
        return Err("has white space in it".into());
    }
    let (rest, digest) = split_digest(text)?;
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[last..].rfind(':') {
        Some(at) if !rest[last..].contains(']') => (&rest[..last + at], Some(&rest[last + at + 1..])),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (host, repository) = split_host(path, &text[path.len()..], hub)?;
    check_repository(&repository)?;
    let tag = match (tag, digest) {
        (None, None) => Some("latest".into()),
        (tag, _) => tag.map(String::from),
    };
    Ok(Name {
        host,
        repository,
        tag,
        digest,
    })
}

fn split_digest(text: &str) -> Result<(&str, Option<ManifestDigest>), String> {
    let Some((rest, digest)) = text.split_once('@') else {
        return Ok((text, None));
    };
    Ok((rest, Some(parse_digest(digest)?)))
}

fn parse_digest(digest: &str) -> Result<ManifestDigest, String> {
    let why = match digest.split_once(':') {
        Some(("sha256", _)) => "is not sha256: and 64 lower-case hex digits",
        Some(("sha384" | "sha512" | "blake3", _)) => "is of an algorithm that is not supported; give the sha256 digest",
        _ => "is not a digest; write @sha256: and 64 lower-case hex digits",
    };
    digest.parse().map_err(|_| format!("{digest:?} {why}"))
}

fn split_host(path: &str, tail: &str, hub: bool) -> Result<(String, String), String> {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let is_host = first.contains(['.', ':', '[']) || first == "localhost" || first.contains(char::is_uppercase);
    if !is_host || rest.is_empty() {
        if is_host && (path.contains('/') || first.contains([':', '['])) {
            return Err(format!(
                "names the host {first}, but no repository; write {first}/PATH:TAG"
            ));
        }
        let full = match path.contains('/') {
            true => path.to_string(),
            false => format!("library/{path}"),
        };
        return match hub {
            true => Ok((HUB.into(), full)),
            false => Err(format!(
                "is a short name, and which registry it comes from is not left to chance; \
                 write the registry, too: {HUB}/{full}{tail} for Docker Hub"
            )),
        };
    }
    let host = first.to_lowercase();
    check_host(&host)?;
    if host == HUB || host == "index.docker.io" {
        let full = match rest.contains('/') {
            true => rest.to_string(),
            false => format!("library/{rest}"),
        };
        return Ok((HUB.into(), full));
    }
    Ok((host, rest.into()))
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(inner) => {
            let (address, after) = inner
                .split_once(']')
                .ok_or_else(|| format!("the IPv6 address in {host} lacks its closing bracket"))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{address} is not an IPv6 address"));
            }
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or_else(|| format!("{host} is not a host"))?),
            };
            (None, port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port
        && (!port.bytes().all(|b| b.is_ascii_digit()) || !matches!(port.parse::<u16>(), Ok(1..)))
    {
        return Err(format!(
            "{port:?} is not a port (IPv6 addresses need brackets: [::1]:5000)"
        ));
    }
    let label_ok = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    match name {
        Some(name) if !name.split('.').all(label_ok) => Err(format!("{name:?} is not a host name")),
        _ => Ok(()),
    }
}

/// Components of lower-case letters and digits, joined by one `.`, one or two `_`, or dashes.
fn check_repository(repository: &str) -> Result<(), String> {
    if repository.len() > 255 {
        return Err("the repository name is longer than 255 characters".into());
    }
    if repository.contains(char::is_uppercase) {
        return Err("the repository name must be in lower case".into());
    }
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    for component in repository.split('/') {
        let separators_ok = component
            .split(|c: char| c.is_ascii() && word(c as u8))
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'));
        let edges_ok = component.bytes().next().is_some_and(word) && component.bytes().last().is_some_and(word);
        if !separators_ok || !edges_ok {
            return Err(format!("{component:?} cannot be part of a repository name"));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    match ok {
        true => Ok(()),
        false => Err(format!(
            "{tag:?} is not a tag: up to 128 letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
        )),
    }
}

/// As containers/image reads it: the folder ends at the first `:`. A digest may follow at the end of either part.
fn layout(text: &str) -> Result<Layout, String> {
    let (rest, digest) = match text.rfind("@sha256:").or_else(|| text.rfind("@sha512:")) {
        Some(at) => (&text[..at], Some(parse_digest(&text[at + 1..])?)),
        None => (text, None),
    };
    let (path, image) = rest.split_once(':').unwrap_or((rest, ""));
    if path.is_empty() {
        return Err("names no folder; write oci:DIR or oci:DIR:NAME".into());
    }
    let choice = match image {
        "" => Choice::Only,
        image => match image.strip_prefix('@') {
            Some(number) => Choice::At(number.parse().map_err(|_| {
                format!("{image:?} is neither a place in index.json such as @0 nor a digest such as @sha256:…")
            })?),
            None if image.contains(char::is_whitespace) => {
                return Err(format!("the image name {image:?} has white space in it"));
            }
            None => Choice::Named(image.into()),
        },
    };
    Ok(Layout {
        path: path.into(),
        choice,
        digest,
    })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(name) => name.fmt(f),
            Self::Layout(layout) => layout.fmt(f),
            Self::OciArchive(rest) => write!(f, "oci-archive:{rest}"),
            Self::DockerArchive(rest) => write!(f, "docker-archive:{rest}"),
            Self::ContainersStorage(rest) => write!(f, "containers-storage:{rest}"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.path.display())?;
        match &self.choice {
            Choice::Only => {}
            Choice::Named(name) => write!(f, ":{name}")?,
            Choice::At(place) => write!(f, ":@{place}")?,
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
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
            ("quay.io/os x", "white space"),
            ("quay.io/os\nx", "control character"),
            ("user@quay.io/os", "not a digest"),
            ("oci:", "no folder"),
            ("oci:dir:@x", "neither a place"),
            ("oci:dir@sha256:00", "64 lower-case hex"),
            ("oci-archive:", "nothing follows"),
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
}
