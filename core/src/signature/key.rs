//! ed25519 keys in ostree's text form: a secret key is the base64 of 64 bytes (seed, then public key), a public key
//! the base64 of 32 bytes, one a line.
//!
//! Invariant: a secret key never lies in a file that anybody but its owner can read: the file is made with mode 0600
//! before a byte is in it, and one that is open to others, is a link, or belongs to somebody else is refused. It is
//! replaced whole, so a power cut leaves the old key, the new one, or none.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};

use super::trust::{self, TRUSTED_DIR};
use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs};
use crate::sys::secret;

/// Below `SYSROOT/state/cfs-update/`: the machine's key and the keys it trusts.
pub const KEYS_DIR: &str = "keys";
/// In [`KEYS_DIR`]: the machine's secret key, mode 0600.
pub const HOST_KEY: &str = "host.key";
/// In [`KEYS_DIR`]: its public half, mode 0644.
pub const HOST_PUBLIC_KEY: &str = "host.pub";

/// Key files larger than this many bytes are refused.
const KEY_LIMIT: u64 = 4096;

/// The first 8 bytes of the SHA-256 of a raw public key, as 16 hex digits. A name, not a proof.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let mut id = [0; 8];
        if text.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(text, &mut id).is_err() {
            return Err(Error::BadDigest {
                text: text.chars().take(80).collect(),
                wanted: "a key id of 16 lower-case hex digits",
            });
        }
        Ok(Self(id))
    }
}

impl serde::Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A public key with the name that a person knows it by.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: ed25519_dalek::VerifyingKey,
}

impl PublicKey {
    /// From the base64 of 32 bytes; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Trust`] for another length, a point that is not on the curve, or a weak key.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let refuse = |why: String| Error::Trust {
            what: format!("public key {name}"),
            why,
        };
        let raw = BASE64
            .decode(text.trim())
            .map_err(|e| refuse(format!("not base64: {e}")))?;
        let raw: [u8; 32] = raw
            .try_into()
            .map_err(|raw: Vec<u8>| refuse(format!("{} bytes instead of 32", raw.len())))?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(&raw).map_err(|e| refuse(e.to_string()))?;
        if key.is_weak() {
            return Err(refuse("a weak key: anybody could sign for it".into()));
        }
        Ok(Self { name: name.into(), key })
    }

    /// The name: `host`, or that of the file it was found in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        let hash: [u8; 32] = Sha256::digest(self.key.as_bytes()).into();
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        KeyId(id)
    }

    /// Base64 of the raw key, without a line feed.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.key.as_bytes())
    }

    /// Checks a signature, by the strict rules (no malleable signature, no small-order point).
    ///
    /// # Errors
    /// [`Error::Trust`] where it is not this key's signature of exactly these bytes.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<()> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.key.verify_strict(message, &signature).map_err(|_| Error::Trust {
            what: "signature".into(),
            why: format!(
                "it is not one of key {} ({}): the seal was changed, or made by another key; deploy the image again",
                self.id(),
                self.name
            ),
        })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.id(), self.name)
    }
}

/// A secret key. Wiped from memory when dropped; never shown.
#[derive(Clone)]
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id())
    }
}

impl SigningKey {
    /// From 32 random bytes (of the system's generator, or of a test).
    pub fn from_seed(seed: &[u8; 32], name: &str) -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = PublicKey {
            name: name.into(),
            key: key.verifying_key(),
        };
        Self { key, public }
    }

    /// From the base64 of 64 bytes.
    ///
    /// # Errors
    /// [`Error::Trust`] for another length or halves that do not belong together. The text is never repeated.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let refuse = |why: String| Error::Trust {
            what: format!("secret key {name}"),
            why,
        };
        let raw = BASE64
            .decode(text.trim())
            .map_err(|_| refuse("not base64 of 64 bytes".into()))?;
        let raw: [u8; 64] = raw
            .try_into()
            .map_err(|raw: Vec<u8>| refuse(format!("{} bytes instead of 64", raw.len())))?;
        let key = ed25519_dalek::SigningKey::from_keypair_bytes(&raw)
            .map_err(|_| refuse("its two halves do not belong together".into()))?;
        let public = PublicKey {
            name: name.into(),
            key: key.verifying_key(),
        };
        Ok(Self { key, public })
    }

    /// Makes a key pair in `dir` ([`HOST_KEY`], [`HOST_PUBLIC_KEY`]), durable when this returns. `dir` is made (0700)
    /// where missing; its parent exists. The public half of a former pair whose secret is gone stays trusted, as
    /// `trusted.d/host-ID.pub`: what it sealed must still boot. Who moved a key away because it leaked revokes it.
    ///
    /// # Errors
    /// [`Error::Usage`] where there is a key already: it is never overwritten.
    pub fn generate(fs: &dyn Fs, dir: &Path) -> Result<Self> {
        let path = dir.join(HOST_KEY);
        if fs::exists(&path) {
            return Err(Error::Usage(format!(
                "{} exists; a key is never overwritten, move it away first",
                path.display()
            )));
        }
        fs.create_dir(dir, 0o700)?;
        if let Ok(parent) = fs::parent(dir) {
            fs.sync_dir(parent)?;
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| Error::Trust {
            what: format!("secret key {}", path.display()),
            why: format!("the system gives no random bytes: {e}"),
        })?;
        let key = Self::from_seed(&seed, "host");
        seed.fill(0);
        if let Ok(Some(former)) = load_public(dir) {
            trust::add(fs, dir, TRUSTED_DIR, &former, &format!("host-{}", former.id()))?;
        }
        let mut text = BASE64.encode(key.key.to_keypair_bytes());
        text.push('\n');
        fs::replace(fs, &path, 0o600, text.as_bytes())?;
        key.publish(fs, dir)?;
        Ok(key)
    }

    /// Reads the key pair in `dir`; a missing public file (a power cut in between) is written again.
    ///
    /// # Errors
    /// [`Error::Trust`] where the secret file can be read by others, is a link or no key, or where the public file
    /// holds another key.
    pub fn load(fs: &dyn Fs, dir: &Path) -> Result<Self> {
        let path = dir.join(HOST_KEY);
        if fs::exists(dir) && !fs::is_dir(dir) {
            return Err(Error::Trust {
                what: format!("key folder {}", dir.display()),
                why: "it is a link or a file; put the folder itself there".into(),
            });
        }
        let text = secret::read(&path, KEY_LIMIT)?.ok_or_else(|| Error::Trust {
            what: format!("secret key {}", path.display()),
            why: "there is none; make one with `cfs-update key generate`".into(),
        })?;
        let mut key = Self::parse(&text, &path.display().to_string())?;
        key.public.name = "host".into();
        match load_public(dir)? {
            None => key.publish(fs, dir)?,
            Some(public) if public.key == key.public.key => {}
            Some(_) => {
                return Err(Error::Trust {
                    what: format!("public key {}", dir.join(HOST_PUBLIC_KEY).display()),
                    why: format!("it is not that of {HOST_KEY}; remove it, it is then written again"),
                });
            }
        }
        Ok(key)
    }

    /// The key pair in `dir`, made on first need.
    ///
    /// # Errors
    /// As [`SigningKey::load`] and [`SigningKey::generate`].
    pub fn load_or_generate(fs: &dyn Fs, dir: &Path) -> Result<Self> {
        if fs::exists(&dir.join(HOST_KEY)) {
            Self::load(fs, dir)
        } else {
            Self::generate(fs, dir)
        }
    }

    /// The machine's public key in `dir`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Trust`] where there is something else in its place.
    pub fn own(dir: &Path) -> Result<Option<PublicKey>> {
        host(dir)
    }

    /// Removes the key pair in `dir`, the secret half first, durable when this returns; a missing one is success. What
    /// it sealed is trusted no longer, unless its public half is trusted elsewhere.
    pub fn forget(fs: &dyn Fs, dir: &Path) -> Result<()> {
        for name in [HOST_KEY, HOST_PUBLIC_KEY] {
            if fs::exists(&dir.join(name)) {
                fs.remove_file(&dir.join(name))?;
                fs.sync_dir(dir)?;
            }
        }
        Ok(())
    }

    fn publish(&self, fs: &dyn Fs, dir: &Path) -> Result<()> {
        let mut text = self.public.to_base64();
        text.push('\n');
        fs::replace(fs, &dir.join(HOST_PUBLIC_KEY), 0o644, text.as_bytes())
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs bytes (ed25519, RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

/// The machine's public key, from the secret one where only that is there; `None` where there is neither.
pub(super) fn host(dir: &Path) -> Result<Option<PublicKey>> {
    if let Some(public) = load_public(dir)? {
        return Ok(Some(public));
    }
    let path = dir.join(HOST_KEY);
    let Some(text) = secret::read(&path, KEY_LIMIT)? else {
        return Ok(None);
    };
    let mut public = SigningKey::parse(&text, &path.display().to_string())?.public;
    public.name = "host".into();
    Ok(Some(public))
}

/// The machine's public key; `None` where there is none.
fn load_public(dir: &Path) -> Result<Option<PublicKey>> {
    let path = dir.join(HOST_PUBLIC_KEY);
    let Some(text) = fs::read_text(&path, KEY_LIMIT)? else {
        return Ok(None);
    };
    match PublicKey::parse(&text, &path.display().to_string()) {
        Ok(mut key) => {
            key.name = "host".into();
            Ok(Some(key))
        }
        Err(Error::Trust { what, why }) => Err(Error::Trust {
            what,
            why: format!("{why}; remove it, it is then written again from {HOST_KEY}"),
        }),
        Err(other) => Err(other),
    }
}
