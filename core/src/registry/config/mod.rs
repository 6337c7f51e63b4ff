//! containers-registries.conf(5), version 2: where a registry's images really are, and how safe the way there is.
//!
//! Text in, values out; [`Config::load`] reads the files.

use std::path::Path;

use serde::Deserialize;

use super::Options;
use crate::error::{Error, Result};
use crate::reference::Name;
use crate::sys::fs;

const FILE_LIMIT: u64 = 1 << 20;

/// All files, put together.
#[derive(Debug, Default)]
pub(super) struct Config {
    registries: Vec<Registry>,
    /// Helpers to ask for credentials, in order.
    pub helpers: Vec<String>,
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `host[:port]`.
    pub host: String,
    /// Path in the registry.
    pub repository: String,
    /// Without TLS, or with a certificate that nobody vouches for.
    pub insecure: bool,
    /// It is a mirror of this host.
    pub mirror_of: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    credential_helpers: Option<Vec<String>>,
    /// Only in the old format.
    registries: Option<toml::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    prefix: Option<String>,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    #[serde(default)]
    mirror_by_digest_only: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Pull,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pull {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

impl Registry {
    fn prefix(&self) -> &str {
        self.prefix
            .as_deref()
            .filter(|prefix| !prefix.is_empty())
            .unwrap_or(&self.location)
    }

    /// How many bytes of `image` (`host/path`) the prefix covers; more than it has where the prefix names one of
    /// `versions` (`:tag`, `@digest`).
    fn covers(&self, image: &str, versions: &[String]) -> Option<usize> {
        let prefix = self.prefix();
        let whole = |rest: &str| rest.is_empty() || rest.starts_with(['/', ':']);
        if let Some(domain) = prefix.strip_prefix('*').filter(|domain| domain.len() > 1) {
            let mut found = image
                .match_indices(domain)
                .take_while(|(at, _)| !image[..*at].contains('/'));
            let end = |(at, _): (usize, &str)| at + domain.len();
            return found.find(|hit| whole(&image[end(*hit)..])).map(end);
        }
        let rest = match image.strip_prefix(prefix) {
            Some(rest) => whole(rest).then_some(prefix.len()),
            None => {
                let version = prefix.strip_prefix(image)?;
                versions.iter().any(|one| one == version).then_some(prefix.len())
            }
        };
        rest.filter(|_| !prefix.is_empty())
    }

    /// Where an image is that this is for: mirrors in order, the registry itself last. The prefix covers so many bytes
    /// of `image`, the name without its version, or all of it and a version.
    fn places(&self, name: &Name, image: &str, covered: usize) -> Vec<Place> {
        // The version that the prefix named goes without saying.
        let version = image.get(covered..).is_none().then(|| &self.prefix()[image.len()..]);
        let rest = image.get(covered..).unwrap_or_default();
        let moved = |location: &str| {
            let location = version
                .and_then(|version| location.strip_suffix(version))
                .unwrap_or(location);
            location.to_owned() + rest
        };
        let by_digest = name.digest().is_some();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            Pull::All => by_digest || !self.mirror_by_digest_only,
            Pull::DigestOnly => by_digest,
            Pull::TagOnly => !by_digest,
        };
        let mirrors = self.mirror.iter().filter(wanted);
        let mut places: Vec<_> = mirrors
            .map(|mirror| Place {
                mirror_of: Some(name.host().into()),
                ..place(&moved(&mirror.location), mirror.insecure)
            })
            .collect();
        places.push(match self.location.as_str() {
            "" => place(image, self.insecure),
            location => place(&moved(location), self.insecure),
        });
        places
    }

    /// Brings names into the form in which they are compared.
    fn normalize(&mut self) -> Result<(), String> {
        if let Some(prefix) = &mut self.prefix {
            *prefix = normal(prefix)?;
        }
        self.location = normal(&self.location)?;
        for mirror in &mut self.mirror {
            mirror.location = normal(&mirror.location)?;
            if mirror.location.is_empty() {
                return Err("a [[registry.mirror]] needs a location".into());
            }
            if self.mirror_by_digest_only && !matches!(mirror.pull_from_mirror, Pull::All) {
                return Err(format!(
                    "mirror {} has pull-from-mirror, which goes without mirror-by-digest-only only",
                    mirror.location
                ));
            }
        }
        match self.prefix().is_empty() {
            true => Err("a [[registry]] needs a prefix or a location".into()),
            false => Ok(()),
        }
    }
}

/// Without slashes at the end, the host in lower case, as references have it.
fn normal(name: &str) -> Result<String, String> {
    if name.contains("://") {
        return Err(format!(
            "{name:?} is an address; write host and path only (`insecure = true` allows to go without TLS)"
        ));
    }
    let name = name.trim_end_matches('/');
    let host = name.find('/').unwrap_or(name.len());
    Ok(name[..host].to_lowercase() + &name[host..])
}

impl Config {
    pub(super) fn load(options: &Options) -> Result<Self> {
        let mut config = Self::default();
        let own = options.own_registries.as_ref().filter(|(file, _)| fs::exists(file));
        let (files, folders) = match own {
            Some((file, folder)) => (std::slice::from_ref(file), std::slice::from_ref(folder)),
            None => (&options.registries_conf[..], &options.registries_conf_d[..]),
        };
        let mut found = false;
        for path in files {
            if let Some(text) = fs::read(path, FILE_LIMIT)? {
                config.add(path, &text)?;
                found = true;
                break;
            }
        }
        if let ([named], false) = (files, found) {
            // What it blocks or leads elsewhere must not be asked because of a typing error.
            return Err(Error::Settings {
                path: named.clone(),
                why: "is not there; it was named as the registries.conf to go by".into(),
            });
        }
        for folder in folders {
            let mut names = fs::names(folder)?;
            names.retain(|name| Path::new(name).extension().is_some_and(|e| e == "conf"));
            names.sort();
            let paths = names.iter().map(|name| folder.join(name));
            for path in paths.filter(|path| !fs::leads_to_dir(path)) {
                if let Some(text) = fs::read(&path, FILE_LIMIT)? {
                    config.add(&path, &text)?;
                }
            }
        }
        Ok(config)
    }

    /// A later file's registry takes the place of an earlier one's with the same prefix.
    fn add(&mut self, path: &Path, text: &[u8]) -> Result<()> {
        let fail = |why: String| Error::Settings { path: path.into(), why };
        let text = std::str::from_utf8(text).map_err(|e| fail(e.to_string()))?;
        let file = parse(text).map_err(|e| fail(e.to_string().trim_end().into()))?;
        if file.registries.is_some() {
            return Err(fail(
                "is of version 1, which is no longer supported; write [[registry]] tables as containers-registries.conf(5) says".into(),
            ));
        }
        let mut own: Vec<Registry> = Vec::new();
        for mut registry in file.registry {
            registry.normalize().map_err(fail)?;
            if registry.location.is_empty() && !registry.prefix().starts_with("*.") && !registry.mirror.is_empty() {
                tracing::debug!("{}: {} has mirrors, but no location", path.display(), registry.prefix());
            }
            let twice = own.iter().find(|other| other.prefix() == registry.prefix());
            if twice.is_some_and(|other| (other.blocked, other.insecure) != (registry.blocked, registry.insecure)) {
                return Err(fail(format!(
                    "has {} twice, with other values of blocked or insecure; write it once",
                    registry.prefix()
                )));
            }
            own.retain(|earlier| earlier.prefix() != registry.prefix());
            own.push(registry);
        }
        let replaced = |earlier: &Registry| own.iter().any(|later| later.prefix() == earlier.prefix());
        self.registries.retain(|earlier| !replaced(earlier));
        self.registries.extend(own);
        if let Some(helpers) = file.credential_helpers {
            self.helpers = helpers;
        }
        Ok(())
    }

    fn find(&self, image: &str, versions: &[String]) -> Option<(&Registry, usize)> {
        let covering = self
            .registries
            .iter()
            .filter_map(|registry| Some((registry, registry.covers(image, versions)?)));
        // Of a wildcard and a name that cover the same, the name counts, and of two wildcards the longer one.
        covering.max_by_key(|(registry, length)| {
            let prefix = registry.prefix();
            (*length, !prefix.starts_with('*'), prefix.len())
        })
    }

    /// Whether `host[:port]` as a whole may be asked without TLS, as far as the files say: what they say of a
    /// namespace or a mirror, they say of nothing else on that host.
    pub(super) fn insecure(&self, host: &str) -> bool {
        self.find(host, &[]).is_some_and(|(registry, _)| registry.insecure)
    }

    /// Where to ask for `name`: mirrors in order, the registry itself last.
    pub(super) fn places(&self, name: &Name) -> Result<Vec<Place>> {
        let image = name.full();
        let tag = name.tag().map(|tag| format!(":{tag}"));
        let digest = name.digest().map(|digest| format!("@{digest}"));
        let versions: Vec<_> = tag.into_iter().chain(digest).collect();
        let Some((registry, covered)) = self.find(&image, &versions) else {
            return Ok(vec![place(&image, false)]);
        };
        let blocked = |registry: &Registry| Error::Reference {
            reference: name.to_string(),
            why: format!("registries.conf blocks {}", registry.prefix()),
        };
        if registry.blocked {
            return Err(blocked(registry));
        }
        let mut places = registry.places(name, &image, covered);
        if let Some(nowhere) = places.iter().find(|place| place.repository.contains(':')) {
            return Err(Error::Reference {
                reference: name.to_string(),
                why: format!(
                    "registries.conf ({}) leads to {}/{}, which is no repository; write the port into its prefix",
                    registry.prefix(),
                    nowhere.host,
                    nowhere.repository
                ),
            });
        }
        // Where a mirror or another location leads to may be blocked by itself.
        let mut refused = None;
        places.retain(|place| {
            let there = format!("{}/{}", place.host, place.repository);
            let found = self.find(&there, &versions).filter(|(registry, _)| registry.blocked);
            refused = found.map(|(registry, _)| registry).or(refused);
            found.is_none()
        });
        match refused {
            Some(registry) if places.is_empty() => Err(blocked(registry)),
            _ => Ok(places),
        }
    }
}

/// Keys count in any case, as podman's parser takes them: a `[[Registry]]` that is blocked must not be passed over.
fn parse(text: &str) -> Result<File, toml::de::Error> {
    fn odd(value: &toml::Value) -> bool {
        match value {
            toml::Value::Table(table) => table
                .iter()
                .any(|(key, value)| *key != key.to_lowercase() || odd(value)),
            toml::Value::Array(values) => values.iter().any(odd),
            _ => false,
        }
    }
    fn lower(value: toml::Value) -> toml::Value {
        match value {
            toml::Value::Table(table) => {
                let (exact, others): (Vec<_>, Vec<_>) =
                    table.into_iter().partition(|(key, _)| *key == key.to_lowercase());
                let all = others.into_iter().chain(exact);
                toml::Value::Table(all.map(|(key, value)| (key.to_lowercase(), lower(value))).collect())
            }
            toml::Value::Array(values) => toml::Value::Array(values.into_iter().map(lower).collect()),
            value => value,
        }
    }
    let value = toml::Value::Table(toml::from_str(text)?);
    match odd(&value) {
        true => File::deserialize(lower(value)),
        // From the text, so that an error says where.
        false => toml::from_str(text),
    }
}

fn place(image: &str, insecure: bool) -> Place {
    let (host, repository) = image.split_once('/').unwrap_or((image, ""));
    Place {
        host: host.to_lowercase(),
        repository: repository.into(),
        insecure,
        mirror_of: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
