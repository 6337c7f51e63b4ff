//! An image in a registry: distribution's reference grammar, always with its host.

use std::fmt;

use super::split_digest;
use crate::ids::ManifestDigest;

const HUB: &str = "docker.io";

/// An image in a registry: always with a host, and with a tag, a digest or both (then the digest is what counts).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    host: String,
    repository: String,
    tag: Option<String>,
    pub(super) digest: Option<ManifestDigest>,
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

    /// Host and path: `quay.io/org/os`.
    pub fn full(&self) -> String {
        format!("{}/{}", self.host, self.repository)
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

/// `hub`: the text followed `docker://`, which stands for Docker Hub where no host is named, as in skopeo.
pub(super) fn parse(text: &str, hub: bool) -> Result<Name, String> {
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
    if !host.contains(['.', ':', '[']) && host != "localhost" {
        // Only its capitals tell it from a name on Docker Hub, and a host is kept in lower case.
        return Err(format!(
            "names the host {first}, which in lower case, as it would be kept, is none; write {host}:443/{rest}{tail}"
        ));
    }
    if host == HUB || host == "index.docker.io" {
        let full = match rest.contains('/') {
            true => rest.to_string(),
            false => format!("library/{rest}"),
        };
        return Ok((HUB.into(), full));
    }
    Ok((host, rest.into()))
}

/// Whether a text is `HOST[:PORT]`; says why not.
///
/// # Errors
/// What is wrong with it.
pub fn check_host(host: &str) -> Result<(), String> {
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
