//! `setup-root-conf.toml`: how the root of a deployment is mounted. Text only.
//!
//! The file and its keys are those of bootc's and composefs-rs' setup-root; `[root] require-signature` is ours. It is
//! read inside the initramfs, so that it is covered by whatever covers that.
//!
//! Invariant: fails closed. What is not understood, a misspelled key included, is refused: it could have been meant to
//! demand a signature.

use std::path::Path;

use cfs_core::boot::cmdline;
use serde::Deserialize;

use crate::refusal::Refusal;

/// What is in the file, or the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `/` can be written to, until the next boot.
    pub transient: bool,
    /// The deployment's seal must verify with a key of the initramfs.
    pub require_signature: bool,
    /// What is mounted on /etc.
    pub etc: Etc,
    /// What is mounted on /var; `None`: not said.
    pub var: Option<Var>,
}

/// What is mounted on /etc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Etc {
    /// Nothing: the image's own.
    #[serde(alias = "root")]
    None,
    /// The deployment's.
    #[default]
    Bind,
    /// An overlay over the image's own, which is kept in the deployment's.
    Overlay,
    /// An overlay that the next boot forgets.
    #[serde(alias = "volatile")]
    Transient,
}

/// What is mounted on /var.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Var {
    /// Nothing: the image's own.
    #[serde(alias = "root")]
    None,
    /// The one that all deployments share.
    Bind,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    root: RootSection,
    etc: EtcSection,
    var: VarSection,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RootSection {
    transient: bool,
    #[serde(rename = "require-signature")]
    require_signature: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EtcSection {
    mount: Option<Etc>,
    transient: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VarSection {
    mount: Option<Var>,
}

impl Config {
    /// The text of an error says what is wrong where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            format!("line {line}: {}", e.message())
        })?;
        let short_hand = if file.etc.transient { Etc::Transient } else { Etc::Bind };
        Ok(Self {
            transient: file.root.transient,
            require_signature: file.root.require_signature,
            etc: file.etc.mount.unwrap_or(short_hand),
            var: file.var.mount,
        })
    }

    /// With what the kernel command line adds: `systemd.volatile=state` (or `overlay`) wants an empty /var, which
    /// systemd mounts itself.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[String]) -> Self {
        let volatile = cmdline::values(arguments, "systemd.volatile");
        if matches!(volatile.last().map(String::as_str), Some("state" | "overlay")) {
            self.var.get_or_insert(Var::None);
        }
        self
    }

    /// Whether the deployment's state is needed for anything, and is to be writable.
    pub fn uses_state(&self) -> bool {
        matches!(self.etc, Etc::Bind | Etc::Overlay) || self.binds_var()
    }

    /// Whether the shared /var is mounted.
    pub fn binds_var(&self) -> bool {
        self.var != Some(Var::None)
    }
}

/// A file that is not understood.
pub fn refuse(path: &Path, why: &str) -> Refusal {
    Refusal::new(
        format!("cannot understand {} of the initramfs", path.display()),
        "[root] transient, require-signature; [etc] mount = none|bind|overlay|transient, transient; [var] mount = bind|none",
        why,
    )
    .remedy("correct the file in the image and build its initramfs anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.etc, Etc::Bind);
        assert!(config.binds_var() && config.uses_state() && !config.require_signature && !config.transient);
    }

    #[test]
    fn every_mode_has_the_names_that_bootc_gives_it() {
        let etc = |text: &str| Config::parse(&format!("[etc]\n{text}")).unwrap().etc;
        assert_eq!(etc("mount = 'none'"), Etc::None);
        assert_eq!(etc("mount = 'root'"), Etc::None);
        assert_eq!(etc("mount = 'bind'"), Etc::Bind);
        assert_eq!(etc("mount = 'overlay'"), Etc::Overlay);
        assert_eq!(etc("mount = 'transient'"), Etc::Transient);
        assert_eq!(etc("mount = 'volatile'"), Etc::Transient);
        assert_eq!(etc("transient = true"), Etc::Transient);
        assert_eq!(etc("transient = true\nmount = 'bind'"), Etc::Bind);
        let var = |text: &str| Config::parse(&format!("[var]\n{text}")).unwrap().var;
        assert_eq!(var("mount = 'none'"), Some(Var::None));
        assert_eq!(var("mount = 'root'"), Some(Var::None));
        assert_eq!(var("mount = 'bind'"), Some(Var::Bind));
        let root = Config::parse("[root]\ntransient = true\nrequire-signature = true").unwrap();
        assert!(root.transient && root.require_signature);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (text, line) in [
            ("[root]\nrequire-signatures = true", "line 2"),
            ("[root]\nrequire_signature = true", "line 2"),
            ("[roots]\ntransient = true", "line 1"),
            ("[var]\nmount = 'transient'", "line 2"),
            ("\n\n[etc]\nmount = 'bnd'", "line 4"),
            ("[root]\nrequire-signature = 'yes'", "line 2"),
            ("[root", "line 1"),
        ] {
            let why = Config::parse(text).unwrap_err();
            assert!(why.starts_with(line), "{text:?}: {why}");
        }
    }

    #[test]
    fn a_volatile_state_leaves_var_alone_unless_the_file_says_otherwise() {
        let arguments = ["quiet".to_owned(), "systemd.volatile=state".to_owned()];
        let config = |text: &str| Config::parse(text).unwrap().with_arguments(&arguments);
        assert!(!config("").binds_var());
        assert!(config("[var]\nmount = 'bind'").binds_var());
        let other = Config::default().with_arguments(&["systemd.volatile=no".to_owned()]);
        assert!(other.binds_var());
    }
}
