//! The environment variables that have a meaning here; no other is read.

use std::ffi::OsString;
use std::path::PathBuf;

/// Their values; empty ones count as unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `HOME`
    pub home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`
    pub runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, or `.config` of the home folder
    pub config_home: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`
    pub auth_file: Option<PathBuf>,
    /// `CFS_UPDATE_LOG`: what to log, as `tracing`'s directives
    pub log: Option<String>,
    /// `NO_COLOR` is set
    pub no_color: bool,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self::from(|name| std::env::var_os(name))
    }

    fn from(read: impl Fn(&str) -> Option<OsString>) -> Self {
        let value = |name| read(name).filter(|v| !v.is_empty());
        let path = |name| value(name).map(PathBuf::from);
        let home = path("HOME");
        Self {
            runtime_dir: path("XDG_RUNTIME_DIR"),
            config_home: path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config"))),
            auth_file: path("REGISTRY_AUTH_FILE"),
            log: value("CFS_UPDATE_LOG").map(|v| v.to_string_lossy().into_owned()),
            no_color: value("NO_COLOR").is_some(),
            home,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variables_count_as_unset_and_the_config_folder_follows_home() {
        let environment = Environment::from(|name| match name {
            "HOME" => Some("/home/u".into()),
            "NO_COLOR" | "REGISTRY_AUTH_FILE" => Some("".into()),
            _ => None,
        });
        assert_eq!(environment.config_home, Some("/home/u/.config".into()));
        assert!(!environment.no_color && environment.auth_file.is_none());
    }
}
