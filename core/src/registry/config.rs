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
        let file: File = toml::from_str(text).map_err(|e| fail(e.to_string().trim_end().into()))?;
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
        // The version that the prefix named goes without saying.
        let version = image
            .get(covered..)
            .is_none()
            .then(|| &registry.prefix()[image.len()..]);
        let rest = image.get(covered..).unwrap_or_default();
        let moved = |location: &str| {
            let location = version
                .and_then(|version| location.strip_suffix(version))
                .unwrap_or(location);
            location.to_owned() + rest
        };
        let by_digest = name.digest().is_some();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            Pull::All => by_digest || !registry.mirror_by_digest_only,
            Pull::DigestOnly => by_digest,
            Pull::TagOnly => !by_digest,
        };
        let mirrors = registry.mirror.iter().filter(wanted);
        let mut places: Vec<_> = mirrors
            .map(|mirror| Place {
                mirror_of: Some(name.host().into()),
                ..place(&moved(&mirror.location), mirror.insecure)
            })
            .collect();
        places.push(match registry.location.as_str() {
            "" => place(&image, registry.insecure),
            location => place(&moved(location), registry.insecure),
        });
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
mod tests {
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
        config(
            "[[registry]]\nlocation = \"a\"\n[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"m\"\n",
        );
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
}
