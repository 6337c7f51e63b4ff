//! One settings file: TOML text in, values out. Reads no file.

use std::path::PathBuf;
use std::time::Duration;

use cfs_core::reference::check_host;
use serde::Deserialize;
use toml::Spanned;

use super::{self as settings, Metered, Settings};
use crate::args::LimitRate;

/// A file's content; what it leaves out stays as it was.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    registry: Registry,
    store: Store,
    deployments: Deployments,
    boot: Boot,
    health: Health,
    auto: Auto,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Registry {
    retries: Option<Spanned<u32>>,
    connect_timeout: Option<Spanned<u64>>,
    read_timeout: Option<Spanned<u64>>,
    insecure: Option<Spanned<Vec<String>>>,
    policy: Option<Spanned<PathBuf>>,
    limit_rate: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Store {
    algorithm: Option<Spanned<String>>,
    threads: Option<Spanned<usize>>,
    check_space: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Deployments {
    keep: Option<Spanned<usize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Boot {
    dir: Option<Spanned<PathBuf>>,
    tries: Option<Spanned<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Health {
    timeout: Option<Spanned<u64>>,
    attempts: Option<Spanned<u32>>,
    pause: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Auto {
    enabled: Option<bool>,
    apply: Option<bool>,
    download_only: Option<bool>,
    metered: Option<Metered>,
}

/// Reads one file's text; on failure says what is wrong, with the line.
pub fn parse(text: &str) -> Result<File, String> {
    match toml::from_str::<File>(text) {
        Ok(file) => Ok(File {
            text: text.to_owned(),
            ..file
        }),
        Err(error) => Err(match error.span() {
            Some(span) => at(text, span.start, error.message()),
            None => error.message().to_owned(),
        }),
    }
}

impl File {
    /// Puts the file's values over those of `settings`; on failure says which is out of range, with the line.
    pub fn apply(self, settings: &mut Settings) -> Result<(), String> {
        let text = &self.text;
        let registry = &mut settings.registry;
        set(text, self.registry.retries, 0..=100, "retries", &mut registry.retries)?;
        let seconds = |value: Option<Spanned<u64>>, name, target: &mut Duration| {
            let mut whole = target.as_secs();
            set(text, value, 1..=3600, name, &mut whole)?;
            *target = Duration::from_secs(whole);
            Ok::<_, String>(())
        };
        seconds(
            self.registry.connect_timeout,
            "connect-timeout",
            &mut registry.connect_timeout,
        )?;
        seconds(self.registry.read_timeout, "read-timeout", &mut registry.read_timeout)?;
        if let Some(hosts) = self.registry.insecure {
            for host in hosts.get_ref() {
                check_host(host).map_err(|why| {
                    let why = format!("insecure: {host:?} is not HOST or HOST:PORT, without a scheme or path: {why}");
                    at(text, hosts.span().start, &why)
                })?;
            }
            registry.insecure = hosts.into_inner();
        }
        if let Some(policy) = self.registry.policy {
            registry.policy = Some(absolute(text, policy, "policy")?);
        }
        if let Some(rate) = self.registry.limit_rate {
            let parsed = rate.get_ref().parse::<LimitRate>();
            registry.limit_rate = parsed
                .map_err(|why| at(text, rate.span().start, &format!("limit-rate: {why}")))?
                .0;
        }
        if let Some(name) = self.store.algorithm {
            let parsed = name.get_ref().parse().map_err(|e: cfs_core::Error| e.to_string());
            settings.store.algorithm = parsed.map_err(|why| at(text, name.span().start, &why))?;
        }
        let mut threads = settings.store.threads.unwrap_or(0);
        set(text, self.store.threads, 1..=256, "threads", &mut threads)?;
        settings.store.threads = (threads > 0).then_some(threads);
        settings.store.check_space = self.store.check_space.unwrap_or(settings.store.check_space);
        set(
            text,
            self.deployments.keep,
            2..=1000,
            "keep",
            &mut settings.deployments.keep,
        )?;
        set(text, self.boot.tries, 1..=99, "tries", &mut settings.boot.tries)?;
        if let Some(dir) = self.boot.dir {
            settings.boot.dir = Some(absolute(text, dir, "dir")?);
        }
        let health = &mut settings.health;
        seconds(self.health.timeout, "timeout", &mut health.timeout)?;
        seconds(self.health.pause, "pause", &mut health.pause)?;
        set(text, self.health.attempts, 1..=100, "attempts", &mut health.attempts)?;
        self.auto.apply_to(&mut settings.auto);
        Ok(())
    }
}

impl Auto {
    fn apply_to(self, auto: &mut settings::Auto) {
        auto.enabled = self.enabled.unwrap_or(auto.enabled);
        auto.apply = self.apply.unwrap_or(auto.apply);
        auto.download_only = self.download_only.unwrap_or(auto.download_only);
        auto.metered = self.metered.unwrap_or(auto.metered);
    }
}

fn set<T: PartialOrd + std::fmt::Display>(
    text: &str,
    value: Option<Spanned<T>>,
    range: std::ops::RangeInclusive<T>,
    name: &str,
    target: &mut T,
) -> Result<(), String> {
    let Some(value) = value else { return Ok(()) };
    if !range.contains(value.get_ref()) {
        let why = format!(
            "{name} = {}: allowed is {} to {}",
            value.get_ref(),
            range.start(),
            range.end()
        );
        return Err(at(text, value.span().start, &why));
    }
    *target = value.into_inner();
    Ok(())
}

fn absolute(text: &str, path: Spanned<PathBuf>, name: &str) -> Result<PathBuf, String> {
    if !path.get_ref().is_absolute() {
        return Err(at(text, path.span().start, &format!("{name}: give an absolute path")));
    }
    Ok(path.into_inner())
}

fn at(text: &str, offset: usize, why: &str) -> String {
    let line = text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1;
    format!("line {line}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        parse(text)?.apply(&mut settings)?;
        Ok(settings)
    }

    #[test]
    fn every_key_arrives() {
        let settings = settings(
            "[registry]\nretries = 1\nconnect-timeout = 2\nread-timeout = 3\ninsecure = [\"a:5000\"]\npolicy = \"/p\"\nlimit-rate = \"2M\"\n\
             [store]\nalgorithm = \"fsverity-sha512-12\"\nthreads = 4\n\
             [deployments]\nkeep = 5\n[boot]\ndir = \"/efi\"\ntries = 6\n\
             [health]\ntimeout = 7\nattempts = 8\npause = 9\n[auto]\nenabled = false\napply = true\ndownload-only = true\n\
             metered = \"allow\"\n",
        )
        .unwrap();
        assert_eq!(settings.registry.retries, 1);
        assert_eq!(settings.registry.connect_timeout, Duration::from_secs(2));
        assert_eq!(settings.registry.read_timeout, Duration::from_secs(3));
        assert_eq!(settings.registry.insecure, ["a:5000"]);
        assert_eq!(settings.store.algorithm, cfs_core::ids::Algorithm::Sha512);
        assert_eq!(settings.store.threads, Some(4));
        assert_eq!(settings.deployments.keep, 5);
        assert_eq!(settings.boot.dir, Some("/efi".into()));
        assert_eq!(settings.boot.tries, 6);
        assert_eq!(settings.health.timeout, Duration::from_secs(7));
        assert_eq!(settings.health.attempts, 8);
        assert_eq!(settings.health.pause, Duration::from_secs(9));
        assert_eq!((settings.auto.enabled, settings.auto.apply), (false, true));
        assert!(settings.auto.download_only);
        assert_eq!(settings.auto.metered, Metered::Allow);
        assert_eq!(settings.registry.limit_rate.map(|rate| rate.bytes()), Some(2 << 20));
    }

    #[test]
    fn a_host_without_tls_is_named_as_in_a_reference() {
        let hosts = ["lan", "Lan.example:5000", "10.0.0.1:80", "[::1]:5000", "[fd00::1]"];
        let text = format!("[registry]\ninsecure = {hosts:?}");
        assert_eq!(settings(&text).unwrap().registry.insecure, hosts);
    }

    #[test]
    fn what_is_out_of_range_or_of_the_wrong_type_is_refused_with_its_line() {
        for (text, line) in [
            ("[boot]\n\ntries = 0", "line 3"),
            ("[boot]\ntries = 100", "line 2"),
            ("[boot]\ntries = \"3\"", "line 2"),
            ("[boot]\ndir = \"boot\"", "line 2"),
            ("[deployments]\nkeep = 1", "line 2"),
            ("[registry]\nread-timeout = 0", "line 2"),
            ("[registry]\ninsecure = [\"http://x\"]", "line 2"),
            ("[registry]\ninsecure = [\"lan\", \"\"]", "line 2"),
            ("[registry]\ninsecure = [\"*.lan\"]", "line 2"),
            ("[registry]\ninsecure = [\"lan:\"]", "line 2"),
            ("[registry]\ninsecure = [\"lan:0\"]", "line 2"),
            ("[registry]\ninsecure = [\"lan:99999\"]", "line 2"),
            ("[registry]\ninsecure = [\"lan\\n:5000\"]", "line 2"),
            ("[registry]\ninsecure = [\"::1\"]", "line 2"),
            ("[registry]\ninsecure = [\"[::1\"]", "line 2"),
            ("[store]\nalgorithm = \"md5\"", "line 2"),
            ("[health]\nattempts = 0", "line 2"),
            ("[auto]\napply = 1", "line 2"),
            ("[auto]\nmetered = \"never\"", "line 2"),
            ("[registry]\nlimit-rate = \"fast\"", "line 2"),
            ("[registry]\nlimit-rate = 0", "line 2"),
            ("[registry]\npolicy = \"p\"", "line 2"),
            ("[strore]\n", "line 1"),
            ("[boot\n", "line 1"),
        ] {
            let why = settings(text).unwrap_err();
            assert!(why.starts_with(line), "{text:?}: {why}");
        }
    }
}
