//! Where credentials are: containers-auth.json(5), Docker's config.json, credential helpers.
//!
//! Looked for only when a registry asks. A file that is missing, unreadable or broken does not stop the search (a
//! public image must not fail because of somebody's file), but is named when no credentials are found in the end.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::error::Error;
use crate::monitor::{Event, Monitor};
use crate::sys::{fs, process};

const FILE_LIMIT: u64 = 4 << 20;
/// In `credential-helpers` of registries.conf: the files.
const FILES: &str = "containers-auth.json";

/// How to log in.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// User name and password.
    Password(String, String),
    /// Exchanged for a token (OAuth2 `refresh_token`).
    Identity(String),
    /// A token as it is.
    Token(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "Password(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Token(_) => "Token(…)",
        })
    }
}

/// The outcome of a search.
#[derive(Clone, Debug, Default)]
pub(super) struct Search {
    /// What was found, and where.
    pub found: Option<(Login, String)>,
    /// Where it was looked for in vain, each with what was there.
    pub looked: Vec<String>,
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// In order.
    pub files: Vec<PathBuf>,
    /// `credential-helpers` of registries.conf; empty = the files only.
    pub helpers: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Places {
    /// Credentials for `host/repository`, by the longest key that covers it in the first place that has one.
    pub(super) fn search(&self, host: &str, repository: &str, monitor: &dyn Monitor) -> Search {
        let mut search = Search::default();
        let only_files = [FILES.to_owned()];
        let helpers = if self.helpers.is_empty() {
            &only_files[..]
        } else {
            &self.helpers
        };
        for helper in helpers {
            if helper == FILES {
                self.files
                    .iter()
                    .any(|file| search.in_file(file, host, repository, monitor));
            } else {
                search.ask(helper, host, monitor);
            }
            if search.found.is_some() {
                break;
            }
        }
        search
    }
}

impl Search {
    /// Whether it is found.
    fn in_file(&mut self, path: &Path, host: &str, repository: &str, monitor: &dyn Monitor) -> bool {
        let file = match fs::read(path, FILE_LIMIT) {
            Ok(Some(text)) => parse(path, &text),
            Ok(None) => return self.miss(path, "not there"),
            Err(Error::Io { source, .. }) => return self.miss(path, &source.to_string()),
            Err(error) => return self.miss(path, &error.to_string()),
        };
        let file = match file {
            Ok(file) => file,
            Err(why) => return self.miss(path, &format!("broken: {why}")),
        };
        if let Some(helper) = aliases(host).find_map(|host| file.cred_helpers.get(host))
            && self.ask(helper, host, monitor)
        {
            return true;
        }
        match file.entry(host, repository).map(|(key, entry)| (key, entry.login())) {
            Some((_, Ok(Some(login)))) => {
                self.found = Some((login, path.display().to_string()));
                return true;
            }
            Some((key, Err(why))) => return self.miss(path, &format!("broken: {key}: {why}")),
            Some((_, Ok(None))) | None => {}
        }
        if !file.creds_store.is_empty() && self.ask(&file.creds_store, host, monitor) {
            return true;
        }
        self.miss(path, &format!("nothing for {host}"))
    }

    fn miss(&mut self, path: &Path, why: &str) -> bool {
        self.looked.push(format!("{} ({why})", path.display()));
        false
    }

    /// Runs `docker-credential-HELPER get` (docker-credential-helpers' protocol).
    fn ask(&mut self, helper: &str, host: &str, monitor: &dyn Monitor) -> bool {
        let name = format!("docker-credential-{helper}");
        if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            self.looked.push(format!("{name:?} (not the name of a helper)"));
            return false;
        }
        for server in aliases(host) {
            monitor.event(Event::Note(format!("asking {name} for the credentials of {server}")));
            match get(&name, server) {
                Ok(login) => {
                    self.found = Some((login, name));
                    return true;
                }
                Err(why) => self.looked.push(format!("{name} ({why})")),
            }
        }
        false
    }
}

fn get(program: &str, server: &str) -> Result<Login, String> {
    let output = process::run(OsStr::new(program), &[OsString::from("get")], server.as_bytes());
    let output = output.map_err(|error| error.to_string())?;
    if !output.success() {
        return Err(output.last_line());
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("its answer is broken: {e}"))?;
    match answer.username.as_str() {
        _ if answer.secret.is_empty() => Err("nothing".into()),
        "<token>" => Ok(Login::Identity(answer.secret)),
        _ => Ok(Login::Password(answer.username, answer.secret)),
    }
}

/// The names under which credentials of a host may be kept.
fn aliases(host: &str) -> impl Iterator<Item = &str> {
    let hub: &[&str] = match host {
        "docker.io" => &["https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"],
        _ => &[],
    };
    std::iter::once(host).chain(hub.iter().copied())
}

fn parse(path: &Path, text: &[u8]) -> Result<AuthFile, serde_json::Error> {
    if path.file_name() == Some(OsStr::new(".dockercfg")) {
        let auths = serde_json::from_slice(text)?;
        return Ok(AuthFile {
            auths,
            ..AuthFile::default()
        });
    }
    serde_json::from_slice(text)
}

impl AuthFile {
    /// The entry with the longest key that covers the repository.
    fn entry(&self, host: &str, repository: &str) -> Option<(&str, &Entry)> {
        let image = format!("{host}/{repository}");
        let covers = |key: &str| {
            let rest = image.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let exact = self
            .auths
            .iter()
            .filter(|(key, _)| covers(key))
            .max_by_key(|(key, _)| key.len());
        let old = || {
            self.auths
                .iter()
                .find(|(key, _)| aliases(host).any(|name| host_of(key) == host_of(name)))
        };
        exact.or_else(old).map(|(key, entry)| (key.as_str(), entry))
    }
}

/// Docker's old keys are URLs: `https://index.docker.io/v1/`. A key with a path is containers' and means that path.
fn host_of(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match bare {
        Some(bare) => bare.split('/').next().unwrap_or(bare),
        None => key
            .strip_suffix("/v1/")
            .or_else(|| key.strip_suffix("/v2/"))
            .unwrap_or(key),
    }
}

impl Entry {
    fn login(&self) -> Result<Option<Login>, &'static str> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Login::Token(token)));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Login::Identity(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let raw = STANDARD.decode(&auth).or_else(|_| STANDARD_NO_PAD.decode(&auth));
            let text = raw
                .ok()
                .and_then(|raw| String::from_utf8(raw).ok())
                .ok_or("auth is not base64 text")?;
            let (user, password) = text.split_once(':').ok_or("auth is not base64 of USER:PASSWORD")?;
            return Ok(Some(Login::Password(
                user.into(),
                password.trim_end_matches('\0').into(),
            )));
        }
        match (given(&self.username), given(&self.password)) {
            (Some(user), Some(password)) => Ok(Some(Login::Password(user, password))),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::monitor::Quiet;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn password(user: &str) -> serde_json::Value {
        json!({"auth": STANDARD.encode(format!("{user}:secret"))})
    }

    fn files(contents: &[(&str, serde_json::Value)]) -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places::default();
        for (name, content) in contents {
            places.files.push(dir.path().join(name));
            std::fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        (dir, places)
    }

    fn user(places: &Places, host: &str, repository: &str) -> Option<String> {
        match places.search(host, repository, &Quiet).found?.0 {
            Login::Password(user, password) => (password == "secret").then_some(user),
            Login::Identity(token) => Some(format!("identity {token}")),
            Login::Token(token) => Some(format!("token {token}")),
        }
    }

    #[test]
    fn the_longest_key_wins_and_then_the_first_file() {
        let first = json!({"auths": {
            "quay.io": password("host"), "quay.io/org": password("org"), "quay.io/org/os": password("os"),
            "quay.io/or": password("wrong"),
        }});
        let second = json!({"auths": {"quay.io": password("second"), "other.example:5000": password("other")}});
        let (_dir, places) = files(&[("a.json", first), ("b.json", second)]);
        assert_eq!(user(&places, "quay.io", "org/os").as_deref(), Some("os"));
        assert_eq!(user(&places, "quay.io", "org/os2").as_deref(), Some("org"));
        assert_eq!(user(&places, "quay.io", "organ/os").as_deref(), Some("host"));
        assert_eq!(user(&places, "other.example:5000", "os").as_deref(), Some("other"));
        assert_eq!(user(&places, "other.example", "os"), None);
        assert_eq!(user(&places, "evil-quay.io", "org/os"), None);
    }

    #[test]
    fn dockers_own_keys_and_file_are_understood() {
        let docker = json!({"auths": {"https://index.docker.io/v1/": password("hub")}});
        let old = json!({"https://old.example/v1/": password("old")});
        let (_dir, places) = files(&[("config.json", docker), (".dockercfg", old)]);
        assert_eq!(user(&places, "docker.io", "library/debian").as_deref(), Some("hub"));
        assert_eq!(user(&places, "old.example", "x").as_deref(), Some("old"));
    }

    #[test]
    fn tokens_and_plain_passwords_are_understood() {
        let content = json!({"auths": {
            "i.example": {"auth": "", "identitytoken": "abc"},
            "t.example": {"registrytoken": "def"},
            "p.example": {"username": "plain", "password": "secret"},
            "n.example": {},
        }});
        let (_dir, places) = files(&[("auth.json", content)]);
        assert_eq!(user(&places, "i.example", "x").as_deref(), Some("identity abc"));
        assert_eq!(user(&places, "t.example", "x").as_deref(), Some("token def"));
        assert_eq!(user(&places, "p.example", "x").as_deref(), Some("plain"));
        assert_eq!(user(&places, "n.example", "x"), None);
    }

    #[test]
    fn places_that_had_nothing_are_named_with_the_reason() {
        let good = json!({"auths": {"quay.io": password("good")}});
        let bad = json!({"auths": {"bad.example": {"auth": "%%%"}}});
        let (dir, mut places) = files(&[("good.json", good), ("bad.json", bad), ("broken.json", json!("x"))]);
        places.files.insert(0, dir.path().join("missing.json"));
        let search = places.search("bad.example", "x", &Quiet);
        let looked = search.looked.join(", ");
        assert!(search.found.is_none());
        for part in [
            "missing.json (not there)",
            "good.json (nothing for bad.example)",
            "not base64",
            "broken.json (broken",
        ] {
            assert!(looked.contains(part), "{part}: {looked}");
        }
        assert_eq!(
            user(&places, "quay.io", "x").as_deref(),
            Some("good"),
            "a missing file does not stop the search"
        );
    }

    #[test]
    fn a_helper_is_asked_and_cannot_be_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("docker-credential-x");
        let script =
            "#!/bin/sh\nread host; echo '{\"ServerURL\":\"x\",\"Username\":\"'$host'\",\"Secret\":\"secret\"}'\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let answer = get(helper.to_str().unwrap(), "quay.io").unwrap();
        assert_eq!(answer, Login::Password("quay.io".into(), "secret".into()));
        let evil = json!({"credHelpers": {"quay.io": "../../bin/x"}, "credsStore": "no-such-helper-here"});
        let (_dir, places) = files(&[("auth.json", evil)]);
        let looked = places.search("quay.io", "x", &Quiet).looked.join(", ");
        assert!(
            looked.contains("not the name of a helper") && looked.contains("no-such-helper-here"),
            "{looked}"
        );
    }

    #[test]
    fn a_login_is_never_shown() {
        let login = Login::Password("u".into(), "hunter2".into());
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
