//! `key …`: the machine's own key, and whose signatures count beside it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cfs_core::keys::{Keys, Listed};
use cfs_core::signature::{PublicKey, SigningKey};
use cfs_core::sys::fs::RealFs;
use cfs_core::sysroot::Known;
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::Report;

/// The keys that deployments are signed and verified with
#[derive(Debug, clap::Subcommand)]
pub enum Key {
    Generate(Generate),
    List(List),
    Trust(Trust),
    Revoke(Revoke),
}

impl Key {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Generate(command) => command.run(context),
            Self::List(command) => command.run(context),
            Self::Trust(command) => command.run(context),
            Self::Revoke(command) => command.run(context),
        }
    }
}

/// Make the machine's key; the first deployment does so, too
///
/// An existing key is never overwritten.
#[derive(Debug, clap::Args)]
pub struct Generate {}

/// Show the keys that count, and those that are revoked
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    boot: BootDir,
}

/// Trust a key: what it sealed counts here
#[derive(Debug, clap::Args)]
pub struct Trust {
    /// A file of public keys, or a key in base64
    key: String,
    /// What it is to be called [default: as its file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Revoke a key: what it sealed counts no longer, whoever trusts it
#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// Its id in `key list`, a file of public keys, or a key in base64
    key: String,
    /// What its file is to be called [default: as it is called now]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Also one that sealed what runs or boots next
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Generated {
    id: String,
    public_key: String,
    folder: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    name: String,
    public_key: String,
    /// The machine's own, which seals deployments.
    own: bool,
    trusted_by: Option<String>,
    revoked_by: Option<String>,
    sealed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Keyring {
    keys: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Changed {
    result: &'static str,
    keys: Vec<String>,
    /// What is to be done now.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'static str>,
}

impl Generate {
    fn run(self, context: &Context) -> Result<()> {
        let (layout, _lock) = context.lock("key generate")?;
        let key = SigningKey::generate(&RealFs, &layout.keys())?;
        context.show(&Generated {
            id: key.public().id().to_string(),
            public_key: key.public().to_base64(),
            folder: layout.keys().display().to_string(),
        })
    }
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        let known = known(context, &self.boot)?;
        let folder = context.layout()?.keys();
        let listed = with(context, &folder, &known, |keys| keys.list())?;
        let own = SigningKey::own(&folder)?.map(|key| key.id());
        let path = |path: Option<&PathBuf>| path.map(|path| path.display().to_string());
        let shown = |listed: &Listed| Shown {
            id: listed.id.to_string(),
            name: listed.name.clone(),
            public_key: listed.public_key.clone(),
            own: own == Some(listed.id),
            trusted_by: path(listed.trusted_by.as_ref()),
            revoked_by: path(listed.revoked_by.as_ref()),
            sealed: listed.sealed.iter().map(ToString::to_string).collect(),
        };
        context.show(&Keyring {
            keys: listed.iter().map(shown).collect(),
        })
    }
}

impl Trust {
    fn run(self, context: &Context) -> Result<()> {
        let (layout, _lock) = context.lock("key trust")?;
        let new = with(context, &layout.keys(), &[], |keys| {
            keys.trust(&self.key, self.name.as_deref())
        })?;
        context.show(&Changed::new("trusted", &new, None))
    }
}

impl Revoke {
    fn run(self, context: &Context) -> Result<()> {
        let (layout, _lock) = context.lock("key revoke")?;
        let known = known(context, &self.boot)?;
        let folder = layout.keys();
        let own = SigningKey::own(&folder)?.map(|key| key.id());
        let new = with(context, &folder, &known, |keys| {
            keys.revoke(&self.key, self.name.as_deref(), self.force)
        })?;
        let was_own = own.is_some() && SigningKey::own(&folder)?.is_none();
        let next =
            was_own.then_some("the next deployment makes a key: `cfs-update upgrade` seals what boots next with it");
        context.show(&Changed::new("revoked", &new, next))
    }
}

/// The deployments, where there are any.
fn known(context: &Context, boot: &BootDir) -> Result<Vec<Known>> {
    Ok(match context.has_repository()? {
        true => context.look_anyway(boot)?.known()?,
        false => Vec::new(),
    })
}

fn with<T>(
    context: &Context,
    folder: &Path,
    known: &[Known],
    what: impl FnOnce(&Keys<'_>) -> cfs_core::Result<T>,
) -> Result<T> {
    let further = context.key_folders();
    Ok(what(&Keys {
        fs: &RealFs,
        folder,
        further: &further,
        known,
    })?)
}

impl Changed {
    fn new(result: &'static str, keys: &[PublicKey], next: Option<&'static str>) -> Self {
        let keys = keys.iter().map(|key| key.id().to_string()).collect();
        Self { result, keys, next }
    }
}

impl Report for Generated {
    fn human(&self) -> String {
        let Self { id, public_key, folder } = self;
        format!("Key {id} made in {folder}\n{:>16}: {public_key}\n", "Public half")
    }
}

impl Report for Keyring {
    fn human(&self) -> String {
        if self.keys.is_empty() {
            return "No key; the first deployment makes the machine's own\n".into();
        }
        self.keys.iter().map(Shown::human).collect()
    }
}

impl Shown {
    fn human(&self) -> String {
        let state = match (&self.revoked_by, self.own) {
            (Some(path), _) => format!("revoked by {path}"),
            (None, true) => "this machine's own".into(),
            (None, false) => format!("trusted by {}", self.trusted_by.as_deref().unwrap_or_default()),
        };
        let sealed = match self.sealed.as_slice() {
            [] => String::new(),
            list => format!(
                "; sealed {}",
                list.iter().filter_map(|id| id.get(..12)).collect::<Vec<_>>().join(", ")
            ),
        };
        format!("{}  {} ({state}{sealed})\n", self.id, self.public_key)
    }
}

impl Report for Changed {
    fn human(&self) -> String {
        let mut text: String = self
            .keys
            .iter()
            .map(|id| format!("Key {id} is {}\n", self.result))
            .collect();
        if let Some(next) = self.next {
            text.push_str(&format!("Next: {next}\n"));
        }
        text
    }
}
