//! The environment variables that have a meaning here; no other is read.

use std::ffi::OsString;
use std::path::PathBuf;

use cfs_core::registry::{self, Proxy};

/// Their values; empty ones count as unset.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `HOME`, `XDG_RUNTIME_DIR`, `XDG_CONFIG_HOME`, `XDG_DATA_HOME`, `DOCKER_CONFIG`, `REGISTRY_AUTH_FILE`,
    /// `CONTAINERS_REGISTRIES_CONF` and `CONTAINERS_STORAGE_CONF`: where credentials and registries' settings are.
    pub registry: registry::Environment,
    /// `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or in lower case (which wins; `HTTP_PROXY` only so, since a web
    /// server's CGI programs find a client's header in it).
    pub proxy: Proxy,
    /// `CFS_UPDATE_LOG`: what to log, as `tracing`'s directives.
    pub log: Option<String>,
    /// `TMPDIR`, else `/var/tmp`: a whole image may go there, and `/tmp` is often memory.
    pub temporary: PathBuf,
    /// `NO_COLOR` is set.
    pub no_color: bool,
}

impl Environment {
    /// That of this process.
    #[allow(clippy::disallowed_methods)] // This is the one place that may.
    pub fn of_process() -> Self {
        let mut environment = Self::from(|name| std::env::var_os(name));
        environment.registry.uid = rustix::process::getuid().as_raw();
        environment
    }

    fn from(read: impl Fn(&str) -> Option<OsString>) -> Self {
        let value = |name| read(name).filter(|v| !v.is_empty());
        let path = |name| value(name).map(PathBuf::from);
        let text = |name| value(name).map(|v| v.to_string_lossy().into_owned());
        Self {
            registry: registry::Environment {
                uid: 0,
                home: path("HOME"),
                runtime: path("XDG_RUNTIME_DIR"),
                config: path("XDG_CONFIG_HOME"),
                data: path("XDG_DATA_HOME"),
                docker_config: path("DOCKER_CONFIG"),
                auth_file: path("REGISTRY_AUTH_FILE"),
                registries_conf: path("CONTAINERS_REGISTRIES_CONF"),
                storage_conf: path("CONTAINERS_STORAGE_CONF"),
            },
            proxy: Proxy {
                https: text("https_proxy").or_else(|| text("HTTPS_PROXY")),
                http: text("http_proxy"),
                no_proxy: text("no_proxy").or_else(|| text("NO_PROXY")),
            },
            log: text("CFS_UPDATE_LOG"),
            temporary: path("TMPDIR").unwrap_or_else(|| "/var/tmp".into()),
            no_color: value("NO_COLOR").is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variables_count_as_unset_and_lower_case_proxies_win() {
        let environment = Environment::from(|name| match name {
            "HOME" => Some("/home/u".into()),
            "NO_COLOR" | "REGISTRY_AUTH_FILE" => Some("".into()),
            "HTTPS_PROXY" | "HTTP_PROXY" => Some("http://upper".into()),
            "https_proxy" => Some("http://lower".into()),
            _ => None,
        });
        assert_eq!(environment.registry.home, Some("/home/u".into()));
        assert!(!environment.no_color && environment.registry.auth_file.is_none());
        assert_eq!(environment.proxy.https.as_deref(), Some("http://lower"));
        assert_eq!(environment.proxy.http, None);
    }
}
