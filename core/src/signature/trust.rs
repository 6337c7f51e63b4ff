//! Which keys count: trusted minus revoked, plus the machine's own.
//!
//! Folders of `*.pub` files, as ostree's `trusted.ed25519.d` and `revoked.ed25519.d`: one base64 key a line, empty
//! lines and lines that start with `#` ignored.
//!
//! Invariant: fails closed. A file of a revoked folder that cannot be read or understood is an error, since a key in
//! it would otherwise come back to life; so is one of a trusted folder, since trust would silently shrink, and so is
//! anything that everybody may write. Revoking wins over trusting, over the machine's own key, too.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::key::host;
use super::{HOST_PUBLIC_KEY, KeyId, PublicKey};
use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs};
use crate::sys::secret;

/// In [`KEYS_DIR`](super::KEYS_DIR), and in the administrator's and the vendor's folders: keys that may sign.
pub const TRUSTED_DIR: &str = "trusted.d";
/// In the same places: keys that may not sign any more.
pub const REVOKED_DIR: &str = "revoked.d";

/// Files larger than this many bytes are refused; there is room for 20,000 keys.
const FILE_LIMIT: u64 = 1 << 20;

/// A set of keys to verify with.
#[derive(Clone, Debug, Default)]
pub struct TrustStore {
    trusted: BTreeMap<KeyId, Listed>,
    revoked: BTreeMap<KeyId, Listed>,
}

/// A key, and the file that it was found in.
#[derive(Clone, Debug)]
struct Listed {
    key: PublicKey,
    path: PathBuf,
}

impl TrustStore {
    /// Trusts one key and nothing else.
    pub fn only(key: &PublicKey) -> Self {
        let mut store = Self::default();
        store.trust(key.clone());
        store
    }

    /// Reads the machine's public key in `keys` and every `trusted.d` and `revoked.d` in `keys` and in `further`
    /// (the administrator's `/etc/cfs-update/keys`, the vendor's `/usr/lib/cfs-update/keys`; missing ones are empty).
    ///
    /// # Errors
    /// [`Error::Trust`] naming the first file that is no list of keys, [`Error::Io`] for one that cannot be read.
    pub fn load(keys: &Path, further: &[PathBuf]) -> Result<Self> {
        let mut store = Self::default();
        if let Some(host) = host(keys)? {
            secret::guarded(keys)?;
            let public = keys.join(HOST_PUBLIC_KEY);
            if fs::exists(&public) {
                secret::guarded(&public)?;
            }
            let path = public;
            store.trusted.insert(host.id(), Listed { key: host, path });
        }
        for folder in further.iter().map(PathBuf::as_path).chain([keys]) {
            for listed in read_folder(&folder.join(TRUSTED_DIR))? {
                store.trusted.entry(listed.key.id()).or_insert(listed);
            }
            for listed in read_folder(&folder.join(REVOKED_DIR))? {
                store.revoked.entry(listed.key.id()).or_insert(listed);
            }
        }
        Ok(store)
    }

    /// Adds a key; the first name of a key stays.
    pub fn trust(&mut self, key: PublicKey) {
        let path = PathBuf::new();
        self.trusted.entry(key.id()).or_insert(Listed { key, path });
    }

    /// Revokes a key, trusted or not.
    pub fn revoke(&mut self, key: PublicKey) {
        let path = PathBuf::new();
        self.revoked.entry(key.id()).or_insert(Listed { key, path });
    }

    /// The key with this id.
    ///
    /// # Errors
    /// [`Error::Trust`] where it is unknown or revoked.
    pub fn key(&self, id: &KeyId) -> Result<&PublicKey> {
        let refuse = |why: String| Error::Trust {
            what: "signature".into(),
            why,
        };
        if self.revoked.contains_key(id) {
            return Err(refuse(format!("key {id} is revoked; deploy the image again")));
        }
        self.trusted.get(id).map(|listed| &listed.key).ok_or_else(|| {
            refuse(format!(
                "key {id} is not trusted; `cfs-update key list` shows the {} that are",
                self.trusted.len()
            ))
        })
    }

    /// All keys, by id, with the files that make them trusted and revoked.
    pub fn all(&self) -> Vec<(&PublicKey, Option<&Path>, Option<&Path>)> {
        let mut keys: BTreeMap<_, _> = self.revoked.iter().collect();
        keys.extend(&self.trusted);
        keys.into_iter()
            .map(|(id, listed)| {
                let trusted = self.trusted.get(id).map(|listed| listed.path.as_path());
                let revoked = self.revoked.get(id).map(|listed| listed.path.as_path());
                (&listed.key, trusted, revoked)
            })
            .collect()
    }
}

/// Adds a key to the `trusted.d` or `revoked.d` ([`TRUSTED_DIR`], [`REVOKED_DIR`]) of `keys`, durable when this
/// returns; the file is `NAME.pub`.
///
/// # Errors
/// [`Error::Usage`] for a name that is no plain file name or is taken by another key.
pub fn add(fs: &dyn Fs, keys: &Path, which: &str, key: &PublicKey, name: &str) -> Result<PathBuf> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@+".contains(&b);
    if name.is_empty() || name.starts_with('.') || name.len() > 200 || !name.bytes().all(plain) {
        return Err(Error::Usage(format!(
            "{name:?} cannot name a key: use letters, digits and . _ - @ +"
        )));
    }
    let folder = keys.join(which);
    let path = folder.join(format!("{name}.pub"));
    if let Some(there) = read(&path)? {
        if there.iter().any(|k| k.id() == key.id()) {
            return Ok(path);
        }
        return Err(Error::Usage(format!(
            "{} holds another key; choose another name",
            path.display()
        )));
    }
    fs::create_dir_all(fs, &folder, 0o755)?;
    fs.sync_dir(keys)?;
    fs::replace(fs, &path, 0o644, format!("{}\n", key.to_base64()).as_bytes())?;
    Ok(path)
}

fn read_folder(folder: &Path) -> Result<Vec<Listed>> {
    let mut keys = Vec::new();
    let names = fs::names(folder)?;
    if !names.is_empty() {
        secret::guarded(folder)?;
    }
    for name in names {
        let hidden = name.as_bytes().starts_with(b".");
        if hidden || !name.as_bytes().ends_with(b".pub") {
            continue;
        }
        let path = folder.join(&name);
        // A link without a target is not "no key": who wanted one revoked must hear of it.
        let found = read(&path)?.ok_or_else(|| Error::Trust {
            what: format!("key file {}", path.display()),
            why: "its link leads nowhere; repair or remove it".into(),
        })?;
        secret::guarded(&path)?;
        keys.extend(found.into_iter().map(|key| Listed {
            key,
            path: path.clone(),
        }));
    }
    Ok(keys)
}

/// The keys of a file, named as it is; `None` where there is none.
///
/// # Errors
/// [`Error::Trust`] with the line that is none; what reading gives.
pub fn read(path: &Path) -> Result<Option<Vec<PublicKey>>> {
    let text = fs::read_text(path, FILE_LIMIT)?;
    text.map(|text| parse(&text, path)).transpose()
}

fn parse(text: &str, path: &Path) -> Result<Vec<PublicKey>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let lines = text.lines().map(str::trim).enumerate();
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    keys.map(|(number, line)| {
        PublicKey::parse(line, &name).map_err(|e| match e {
            Error::Trust { why, .. } => Error::Trust {
                what: format!("{}, line {}", path.display(), number + 1),
                why: format!("{why}; repair or remove the file"),
            },
            other => other,
        })
    })
    .collect()
}
