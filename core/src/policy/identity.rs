//! `signedIdentity`: which image a signature has to be for. Text in, a decision out.

use serde::Deserialize;
use serde::de::Error as _;

use crate::reference::{Name, Reference};

/// A name in a signature or in a policy, in its expanded form, with or without a tag or digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedName {
    /// `quay.io/org/os`
    repository: String,
    /// `:41` or `@sha256:…`; empty where it names the repository alone.
    version: String,
}

impl SignedName {
    /// Reads one; short names stand for Docker Hub, as everywhere in these files.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = format!("docker://{text}")
            .parse::<Reference>()
            .map_err(|e| e.to_string())?;
        let Reference::Registry(name) = parsed else {
            return Err(format!("{text:?} names no repository"));
        };
        let last = text.rfind('/').map_or(0, |at| at + 1);
        let alone = !text[last..].contains([':', '@']);
        Ok(Self {
            repository: name.full(),
            version: if alone { String::new() } else { version(&name) },
        })
    }

    fn of(name: &Name) -> Self {
        Self {
            repository: name.full(),
            version: version(name),
        }
    }

    fn same(&self, other: &Self) -> bool {
        !self.version.is_empty() && self == other
    }
}

/// The tag is what people mean, also of an image that is pinned to a digest.
fn version(name: &Name) -> String {
    match (name.tag(), name.digest()) {
        (Some(tag), _) => format!(":{tag}"),
        (None, Some(digest)) => format!("@{digest}"),
        (None, None) => String::new(),
    }
}

/// Which image a signature has to be for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "camelCase")]
pub enum Identity {
    /// The very reference that was asked for.
    MatchExact {},
    /// That, or any of the repository where a digest was asked for.
    MatchRepoDigestOrExact {},
    /// Any of the repository.
    MatchRepository {},
    /// This one.
    #[serde(rename_all = "camelCase")]
    ExactReference {
        /// With a tag or digest.
        #[serde(deserialize_with = "reference")]
        docker_reference: SignedName,
    },
    /// Any of this repository.
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        /// With or without one.
        #[serde(deserialize_with = "repository")]
        docker_repository: SignedName,
    },
    /// As `matchRepoDigestOrExact`, with another beginning.
    #[serde(rename_all = "camelCase")]
    RemapIdentity {
        /// What the images that are asked for begin with.
        #[serde(deserialize_with = "prefix")]
        prefix: String,
        /// What they begin with in signatures.
        #[serde(deserialize_with = "prefix")]
        signed_prefix: String,
    },
}

impl Identity {
    /// Whether a signature for `signed` counts for the image that was asked for; `asked` is `None` for images without
    /// a name, as in folders.
    pub fn fits(&self, asked: Option<&Name>, signed: &SignedName) -> bool {
        let of_repository = |name: &Name| name.full() == signed.repository;
        let usual = |name: &Name, wanted: &SignedName| match name.digest() {
            Some(_) => wanted.repository == signed.repository,
            None => wanted.same(signed),
        };
        match (self, asked) {
            (Self::ExactReference { docker_reference }, _) => docker_reference.same(signed),
            (Self::ExactRepository { docker_repository }, _) => docker_repository.repository == signed.repository,
            (_, None) => false,
            (Self::MatchExact {}, Some(name)) => SignedName::of(name).same(signed),
            (Self::MatchRepoDigestOrExact {}, Some(name)) => usual(name, &SignedName::of(name)),
            (Self::MatchRepository {}, Some(name)) => of_repository(name),
            (Self::RemapIdentity { prefix, signed_prefix }, Some(name)) => {
                let mut wanted = SignedName::of(name);
                let rest = wanted.repository.strip_prefix(prefix.as_str());
                if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                    wanted.repository = format!("{signed_prefix}{rest}");
                }
                usual(name, &wanted)
            }
        }
    }
}

fn reference<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SignedName, D::Error> {
    let name = SignedName::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)?;
    match name.version.is_empty() {
        true => Err(D::Error::custom("dockerReference needs a tag or digest")),
        false => Ok(name),
    }
}

/// A tag or digest is passed over, as podman does.
fn repository<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SignedName, D::Error> {
    SignedName::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// A host, a namespace or a repository in its expanded form.
fn prefix<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let example = format!("{text}/a");
    match SignedName::parse(&example) {
        Ok(name) if name.repository == example => Ok(text),
        _ => Err(D::Error::custom(format!(
            "{text:?} is no host or repository with its host"
        ))),
    }
}
