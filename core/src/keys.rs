//! Whose signatures count on this machine, and changing that: `key list`, `key trust`, `key revoke`.
//!
//! Invariant: revoking is durable before anything else is done, and wins over trusting wherever a key is trusted. The
//! machine's own key, once revoked, signs nothing more: its files go, and the next deployment makes a new one. After a
//! power cut between the two the same command finishes it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::signature::{self, KeyId, PublicKey, REVOKED_DIR, SigningKey, TRUSTED_DIR, TrustStore};
use crate::sys::fs::{self, Fs};
use crate::sysroot::{Known, Sysroot};

/// A key that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: KeyId,
    /// Base64 of its 32 bytes.
    pub public_key: String,
    /// The name that it is trusted by, or revoked by: `host` is the machine's own.
    pub name: String,
    /// The file that makes it trusted.
    pub trusted_by: Option<PathBuf>,
    /// The file that makes it revoked, which wins.
    pub revoked_by: Option<PathBuf>,
    /// The deployments whose seals it made, as long as it counts.
    pub sealed: Vec<DeploymentId>,
}

/// Where keys are, and what is known of deployments.
#[derive(Debug)]
pub struct Keys<'a> {
    /// Makes the changes.
    pub fs: &'a dyn Fs,
    /// The machine's own folder of keys; the holder of the sysroot's lock changes it.
    pub folder: &'a Path,
    /// The administrator's and the vendor's.
    pub further: &'a [PathBuf],
    /// The deployments, as [`Sysroot::known`] gives them; empty where there is none yet.
    pub known: &'a [Known],
}

impl Keys<'_> {
    /// Every key that is trusted or revoked here, by id.
    ///
    /// # Errors
    /// [`Error::Trust`] where a file of keys cannot be understood.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let store = TrustStore::load(self.folder, self.further)?;
        let of = |(key, trusted, revoked): (&PublicKey, Option<&Path>, Option<&Path>)| Listed {
            id: key.id(),
            public_key: key.to_base64(),
            name: key.name().into(),
            trusted_by: trusted.map(Path::to_path_buf),
            revoked_by: revoked.map(Path::to_path_buf),
            sealed: self.sealed_by(&key.id()).map(|k| k.id).collect(),
        };
        Ok(store.all().into_iter().map(of).collect())
    }

    /// Trusts the keys of a file, or one in base64; gives those that were not trusted before. `name`: of the file in
    /// `trusted.d`; that of the file where there is none.
    ///
    /// # Errors
    /// [`Error::Trust`] for one that is revoked, [`Error::Nothing`] where all of them are trusted already.
    pub fn trust(&self, key: &str, name: Option<&str>) -> Result<Vec<PublicKey>> {
        let listed = self.list()?;
        let mut new = read(key)?;
        for key in &new {
            let revoked = listed
                .iter()
                .find(|l| l.id == key.id())
                .and_then(|l| l.revoked_by.as_ref());
            if let Some(path) = revoked {
                return Err(Error::Trust {
                    what: format!("key {}", key.id()),
                    why: format!("is revoked by {}; remove it there first", path.display()),
                });
            }
        }
        new.retain(|key| !listed.iter().any(|l| l.id == key.id()));
        if new.is_empty() {
            return Err(Error::Nothing(format!("{key} is trusted already")));
        }
        self.write(TRUSTED_DIR, &new, name)?;
        Ok(new)
    }

    /// Revokes the keys of a file, one in base64, or one that is known here by its id; gives them. `force`: also where
    /// what runs or boots next was sealed by one, so that it is trusted no longer.
    ///
    /// # Errors
    /// [`Error::Deployment`] where that would be so without `force`; [`Error::Nothing`] where all of them are revoked
    /// already.
    pub fn revoke(&self, key: &str, name: Option<&str>, force: bool) -> Result<Vec<PublicKey>> {
        let listed = self.list()?;
        let by_id = listed.iter().find(|l| l.id.to_string() == key);
        let mut new = match by_id {
            Some(listed) => vec![PublicKey::parse(&listed.public_key, &listed.name)?],
            None => read(key)?,
        };
        let revoked = |key: &PublicKey| listed.iter().any(|l| l.id == key.id() && l.revoked_by.is_some());
        let unfinished = SigningKey::own(self.folder)?.filter(|own| new.iter().any(|key| key.id() == own.id()));
        new.retain(|key| !revoked(key));
        if !force {
            new.iter().try_for_each(|key| self.refuse_needed(key))?;
        }
        if new.is_empty() && unfinished.is_none() {
            return Err(Error::Nothing(format!("{key} is revoked already")));
        }
        self.write(REVOKED_DIR, &new, name)?;
        if unfinished.is_some() {
            SigningKey::forget(self.fs, self.folder)?;
        }
        Ok(new)
    }

    fn refuse_needed(&self, key: &PublicKey) -> Result<()> {
        let next = Sysroot::next(self.known).map(|k| k.id);
        let needed = |k: &&Known| k.standing.booted || Some(k.id) == next;
        match self.sealed_by(&key.id()).find(needed) {
            None => Ok(()),
            Some(needed) => Err(Error::Deployment {
                id: needed.id.short(),
                why: format!(
                    "is sealed by key {}, and would be trusted no longer; nothing was changed. With --force it is \
                     revoked all the same; then `cfs-update upgrade` seals anew",
                    key.id()
                ),
            }),
        }
    }

    /// The deployments whose seal this key made.
    fn sealed_by<'k>(&'k self, id: &KeyId) -> impl Iterator<Item = &'k Known> {
        let id = *id;
        let by = move |k: &&Known| {
            k.verified
                .as_ref()
                .is_ok_and(|d| d.signed().verified().key().id() == id)
        };
        self.known.iter().filter(by)
    }

    /// Each in a file of its own.
    fn write(&self, which: &str, keys: &[PublicKey], name: Option<&str>) -> Result<()> {
        self.fs.create_dir(self.folder, 0o700)?;
        self.fs.sync_dir(fs::parent(self.folder)?)?;
        for key in keys {
            let id = key.id();
            let name = match (name.unwrap_or(key.name()), keys.len()) {
                ("", _) => format!("key-{id}"),
                ("host", _) => format!("host-{id}"),
                (name, 1) => name.into(),
                (name, _) => format!("{name}-{id}"),
            };
            signature::add_key(self.fs, self.folder, which, key, &name)?;
        }
        Ok(())
    }
}

/// The keys of a file, named as it is, or one in base64.
fn read(text: &str) -> Result<Vec<PublicKey>> {
    let path = Path::new(text);
    let in_file = match signature::read_keys(path) {
        // A key may be too long for the name of a file.
        Err(_) if !fs::exists(path) => None,
        read => read?,
    };
    if let Some(keys) = in_file {
        return match keys.is_empty() {
            true => Err(Error::Usage(format!(
                "{text} has no key; it holds one in base64 in each line"
            ))),
            false => Ok(keys),
        };
    }
    let key = PublicKey::parse(text, "").map_err(|_| {
        Error::Usage(format!(
            "{text:?} is no file, no id that `cfs-update key list` shows, and no ed25519 key in base64"
        ))
    })?;
    Ok(vec![key])
}
