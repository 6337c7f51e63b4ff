//! The only reader of configuration files and of the environment.
//!
//! Invariant: a file that cannot be understood stops the command before anything is changed, naming file and line; a
//! key that is not known is such a mistake, so that a misspelt setting is never silently without effect. What a boot
//! and a shutdown do by themselves (`health check`, `finalize`) warns and goes on without it: no update is to be given
//! up, and no change of /etc to be left behind, for a typing error.
//!
//! Order, later wins key by key: built-in defaults; `/usr/lib/cfs-update/config.toml`; `/etc/cfs-update/config.toml`;
//! then, as systemd does it, all `config.toml.d/*.toml` of `/usr/lib`, `/run` and `/etc` together, sorted by file name
//! whatever the folder. Of two drop-ins with the same name only the one in the later of these folders counts; an empty
//! one, or a link to `/dev/null`, masks the other.

mod environment;
mod file;
mod registry;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cfs_core::ids::Algorithm;
use cfs_core::registry::Rate;
use cfs_core::sys::fs;
use cfs_core::{Error, Result};

pub use environment::Environment;

/// No settings file is longer.
const LIMIT: u64 = 1 << 20;
const FOLDERS: [&str; 3] = ["usr/lib/cfs-update", "run/cfs-update", "etc/cfs-update"];

/// Everything that can be set, with the values in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub registry: Registry,
    pub store: Store,
    pub deployments: Deployments,
    pub boot: Boot,
    pub health: Health,
    pub auto: Auto,
}

/// `[registry]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// How often a failed request is repeated.
    pub retries: u32,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long nothing may arrive.
    pub read_timeout: Duration,
    /// `HOST[:PORT]` of registries that are spoken to without TLS, besides loopback.
    pub insecure: Vec<String>,
    /// The containers-policy.json(5) that counts, and has to be there; else podman's.
    pub policy: Option<PathBuf>,
    /// Bytes a second at most.
    pub limit_rate: Option<Rate>,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Of a repository that is made; an existing one keeps its own.
    pub algorithm: Algorithm,
    /// Layers imported at once; the library chooses where unset.
    pub threads: Option<usize>,
    /// Whether what is to be fetched is compared with what is free.
    pub check_space: bool,
}

/// `[deployments]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployments {
    /// How many are kept beside pinned and booted ones.
    pub keep: usize,
}

/// `[boot]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// `$BOOT` of the booted system; `None` = the sysroot's boot/.
    pub dir: Option<PathBuf>,
    /// How often a new entry is tried.
    pub tries: u32,
}

/// `[health]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// How long one run of a check may take.
    pub timeout: Duration,
    /// How often a failing check is run before it counts.
    pub attempts: u32,
    /// Between two attempts.
    pub pause: Duration,
}

/// `[auto]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auto {
    /// Whether the timer does anything.
    pub enabled: bool,
    /// Whether it reboots into what it staged.
    pub apply: bool,
    /// Whether it fetches and does not stage, nor reboot.
    pub download_only: bool,
    /// What it does on a metered connection.
    pub metered: Metered,
}

impl Auto {
    /// Whether a reboot follows what was staged.
    pub fn applies(&self) -> bool {
        self.apply && !self.download_only
    }
}

/// What automatic updates do where bytes cost money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metered {
    /// They wait for another one.
    #[default]
    Wait,
    /// They fetch all the same.
    Allow,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registry: Registry {
                retries: 5,
                connect_timeout: Duration::from_secs(10),
                read_timeout: Duration::from_secs(60),
                insecure: Vec::new(),
                policy: None,
                limit_rate: None,
            },
            store: Store {
                algorithm: Algorithm::Sha256,
                threads: None,
                check_space: true,
            },
            deployments: Deployments { keep: 2 },
            boot: Boot { dir: None, tries: 3 },
            health: Health {
                timeout: Duration::from_secs(120),
                attempts: 3,
                pause: Duration::from_secs(5),
            },
            auto: Auto {
                enabled: true,
                apply: false,
                download_only: false,
                metered: Metered::Wait,
            },
        }
    }
}

impl Settings {
    /// Reads all files below `root`, which is `/` but for tests.
    pub fn load(root: &Path) -> Result<Self> {
        let (settings, problems) = Self::load_anyway(root);
        problems.into_iter().next().map_or(Ok(settings), Err)
    }

    /// For what a boot or a shutdown does, which has nobody to correct a file: without those that cannot be
    /// understood, and what is wrong with them.
    pub fn load_anyway(root: &Path) -> (Self, Vec<Error>) {
        let (mut settings, mut problems) = (Self::default(), Vec::new());
        let files = files(root).unwrap_or_else(|e| {
            problems.push(e);
            Vec::new()
        });
        for path in files {
            let mut with = settings.clone();
            let applied = fs::read_text(&path, LIMIT).and_then(|text| {
                let read = file::parse(&text.unwrap_or_default()).and_then(|file| file.apply(&mut with));
                read.map_err(|why| Error::Settings { path, why })
            });
            match applied {
                Ok(()) => settings = with,
                Err(problem) => problems.push(problem),
            }
        }
        (settings, problems)
    }
}

/// The files that may exist, in the order in which they are applied.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut drop_ins: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for folder in FOLDERS {
        let folder = root.join(folder).join("config.toml.d");
        for name in fs::names(&folder)? {
            if Path::new(&name).extension().is_some_and(|e| e == "toml") {
                drop_ins.insert(name.clone(), folder.join(name));
            }
        }
    }
    let main = [FOLDERS[0], FOLDERS[2]].map(|folder| root.join(folder).join("config.toml"));
    Ok(main.into_iter().chain(drop_ins.into_values()).collect())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn with(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(root)
        }
        fn load(&self) -> Result<Settings> {
            Settings::load(self.0.path())
        }
    }

    #[test]
    fn without_files_the_defaults_are_in_force() {
        assert_eq!(Root::with(&[]).load().unwrap(), Settings::default());
    }

    #[test]
    fn the_admin_wins_over_the_vendor_key_by_key() {
        let root = Root::with(&[
            (
                "usr/lib/cfs-update/config.toml",
                "[boot]\ntries = 7\n[deployments]\nkeep = 4\n",
            ),
            ("etc/cfs-update/config.toml", "[boot]\ntries = 5\n"),
        ]);
        let settings = root.load().unwrap();
        assert_eq!((settings.boot.tries, settings.deployments.keep), (5, 4));
    }

    #[test]
    fn where_nobody_can_correct_a_file_the_others_count_and_the_mistake_is_named() {
        let root = Root::with(&[
            ("etc/cfs-update/config.toml", "[boot]\ntries = 7\n"),
            (
                "etc/cfs-update/config.toml.d/10-typo.toml",
                "[boot]\ntries = 9\nattemps = 1\n",
            ),
            ("etc/cfs-update/config.toml.d/20-more.toml", "[deployments]\nkeep = 4\n"),
        ]);
        assert!(root.load().is_err());
        let (settings, problems) = Settings::load_anyway(root.0.path());
        assert_eq!((settings.boot.tries, settings.deployments.keep), (7, 4));
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains("10-typo.toml"), "{told:?}");
    }

    #[test]
    fn drop_ins_win_over_both_in_the_order_of_their_names() {
        let root = Root::with(&[
            ("etc/cfs-update/config.toml", "[boot]\ntries = 5\n"),
            ("etc/cfs-update/config.toml.d/10-a.toml", "[boot]\ntries = 6\n"),
            ("usr/lib/cfs-update/config.toml.d/20-b.toml", "[boot]\ntries = 7\n"),
            ("etc/cfs-update/config.toml.d/99-c.conf", "not read"),
        ]);
        assert_eq!(root.load().unwrap().boot.tries, 7);
    }

    #[test]
    fn an_admins_drop_in_replaces_and_masks_the_vendors_of_the_same_name() {
        let vendor = (
            "usr/lib/cfs-update/config.toml.d/10.toml",
            "[boot]\ntries = 7\n[deployments]\nkeep = 4\n",
        );
        let root = Root::with(&[vendor, ("etc/cfs-update/config.toml.d/10.toml", "[boot]\ntries = 8\n")]);
        let settings = root.load().unwrap();
        assert_eq!((settings.boot.tries, settings.deployments.keep), (8, 2));

        let root = Root::with(&[vendor]);
        let folder = root.0.path().join("etc/cfs-update/config.toml.d");
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.join("10.toml")).unwrap();
        assert_eq!(root.load().unwrap(), Settings::default());
    }

    #[test]
    fn a_mistake_names_file_and_line() {
        let path = "etc/cfs-update/config.toml.d/10.toml";
        let root = Root::with(&[(path, "[boot]\ntries = 3\ntrys = 4\n")]);
        let text = root.load().unwrap_err().to_string();
        assert!(
            text.contains(path) && text.contains("line 3") && text.contains("trys"),
            "{text}"
        );
    }
}
