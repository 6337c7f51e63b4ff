//! Digests as distinct types.
//!
//! Invariant: a value of one of these types has the right length and was parsed, computed or measured as what its
//! name says. A diff_id cannot be passed where a manifest digest is wanted, and an object cannot be named by a
//! content digest. None of them is ever a path component before it went through here, so a digest taken from a
//! hostile manifest cannot walk out of a folder.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The hash of a repository's fs-verity digests; always with 4096-byte blocks and no salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, `fsverity-sha256-12`: what mkcomposefs, ostree and podman use.
    Sha256,
    /// SHA-512, `fsverity-sha512-12`: what bootc's initramfs wants.
    Sha512,
}

impl Algorithm {
    /// Digest length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a digest is never empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The kernel's number of the algorithm (`FS_VERITY_HASH_ALG_*`, linux/fsverity.h).
    pub const fn number(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// `fsverity-sha256-12` or `fsverity-sha512-12`: the name in `meta.json`, annotations and statements.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "fsverity-sha256-12",
            Self::Sha512 => "fsverity-sha512-12",
        }
    }

    /// `v1-sha256-12` or `v1-sha512-12`: the prefix of the `composefs.digest=` kernel argument for format 1.
    pub const fn karg_tag(self) -> &'static str {
        match self {
            Self::Sha256 => "v1-sha256-12",
            Self::Sha512 => "v1-sha512-12",
        }
    }
}

impl FromStr for Algorithm {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "fsverity-sha256-12" => Ok(Self::Sha256),
            "fsverity-sha512-12" => Ok(Self::Sha512),
            _ => Err(Error::BadDigest {
                text: s.into(),
                wanted: "fsverity-sha256-12 or fsverity-sha512-12",
            }),
        }
    }
}

/// An fs-verity digest: the name of an object, or of an image (which is an object, too).
///
/// 32 or 64 bytes, as the algorithm says. `Display` and `FromStr` are lower-case hex without a prefix; the length
/// tells the algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

impl ObjectId {
    /// From the raw digest; `None` unless its length is the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        if raw.len() != algorithm.len() {
            return None;
        }
        let mut bytes = [0; 64];
        bytes[..raw.len()].copy_from_slice(raw);
        Some(Self { algorithm, bytes })
    }

    /// The algorithm it was computed with.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw digest, 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.len()]
    }

    /// Lower-case hex, 64 or 128 digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// `ab/cdef…`: the path below `objects/`.
    pub fn object_path(&self) -> String {
        let hex = self.to_hex();
        format!("{}/{}", &hex[..2], &hex[2..])
    }

    /// The first 12 hex digits: enough for a person, used in entry names.
    pub fn short(&self) -> String {
        hex::encode(&self.bytes[..6])
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

impl FromStr for ObjectId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        let bad = || Error::BadDigest {
            text: s.into(),
            wanted: "64 or 128 lower-case hex digits",
        };
        let algorithm = match s.len() {
            64 => Algorithm::Sha256,
            128 => Algorithm::Sha512,
            _ => return Err(bad()),
        };
        if s.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let raw = hex::decode(s).map_err(|_| bad())?;
        Self::from_bytes(algorithm, &raw).ok_or_else(bad)
    }
}

/// The id of a deployment: the digest of its boot image.
pub type DeploymentId = ObjectId;

macro_rules! content_digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// SHA-256 of bytes; `Display` and `FromStr` are `sha256:` and 64 lower-case hex digits.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// From a computed hash.
            pub const fn from_hash(hash: [u8; 32]) -> Self {
                Self(hash)
            }
            /// The raw hash.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// 64 hex digits without the prefix.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self, Error> {
                parse_sha256(s).map(Self).ok_or_else(|| Error::BadDigest {
                    text: s.into(),
                    wanted: "sha256: and 64 lower-case hex digits",
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

content_digest!(
    /// The digest of a manifest or image index, over the bytes that the registry sent.
    ManifestDigest
);
content_digest!(
    /// The digest of a blob as stored by a registry: a compressed layer or a config.
    BlobDigest
);
content_digest!(
    /// The digest of a layer's tar stream, uncompressed (OCI image specification, config, `rootfs.diff_ids`).
    DiffId
);

fn parse_sha256(s: &str) -> Option<[u8; 32]> {
    let digits = s.strip_prefix("sha256:")?;
    if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    hex::decode(digits).ok()?.try_into().ok()
}

impl serde::Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ObjectId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_as_it_is_shown() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<DiffId>().unwrap().to_string(), text);
        let object = "fe".repeat(64);
        assert_eq!(object.parse::<ObjectId>().unwrap().to_string(), object);
        assert_eq!(object.parse::<ObjectId>().unwrap().algorithm(), Algorithm::Sha512);
    }

    #[test]
    fn what_could_walk_out_of_a_folder_is_no_digest() {
        for text in [
            "sha256:../../etc/passwd",
            "sha256:",
            "sha512:00",
            "../x",
            "",
            &"A".repeat(64),
            &"0A".repeat(32),
        ] {
            assert!(text.parse::<BlobDigest>().is_err(), "{text}");
            assert!(text.parse::<ObjectId>().is_err(), "{text}");
        }
    }
}
