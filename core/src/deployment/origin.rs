//! `<id>.origin`: what a deployment was made from, in the form that bootc reads and writes.
//!
//! Pure text. Keys of others survive a rewrite; ours are in `[cfs-update]`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::ini::Ini;
use crate::ids::{DeploymentId, ManifestDigest};

const OWN: &str = "cfs-update";
/// How ostree's container code writes a reference that it checks no signature of (ostree-ext, `OstreeImageReference`).
const UNVERIFIED: &str = "ostree-unverified-image:";

/// How the deployment boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootType {
    /// A Boot Loader Specification entry with kernel and initrd.
    Bls,
    /// A unified kernel image.
    Uki,
}

impl BootType {
    /// `bls` or `uki`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bls => "bls",
            Self::Uki => "uki",
        }
    }
}

/// Bytes of a kernel and of its initrd, `123 456` in the file: by them what was cut short is known without being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSizes {
    /// The kernel's.
    pub linux: u64,
    /// The initrd's.
    pub initrd: u64,
}

impl fmt::Display for KernelSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.linux, self.initrd)
    }
}

impl FromStr for KernelSizes {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let size = |text: &str| text.parse().map_err(|_| "expected two sizes in bytes");
        let (linux, initrd) = text.split_once(' ').unwrap_or((text, ""));
        Ok(Self {
            linux: size(linux)?,
            initrd: size(initrd)?,
        })
    }
}

/// An origin file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The followed reference, canonical: `docker://quay.io/org/os:41`, `oci:/dir:tag`.
    pub reference: String,
    /// Digest of the manifest that was deployed.
    pub manifest: ManifestDigest,
    /// How it boots.
    pub boot_type: BootType,
    /// SHA-256 of the kernel's and then the initrd's bytes, 64 hex digits; names their folder on $BOOT.
    pub boot_digest: Option<String>,
    /// Of the files that `boot_digest` is over; missing in records of earlier versions.
    pub kernel_sizes: Option<KernelSizes>,
    /// What the tag led to: the index's digest, or the manifest's where there is no index. Compared by the unchanged
    /// check.
    pub top: Option<ManifestDigest>,
    /// `org.opencontainers.image.version` of the image.
    pub version: Option<String>,
    /// When the image was made, by its config or annotation.
    pub created: Option<Timestamp>,
    /// Architecture, with variant where there is one: `amd64`, `arm/v7`.
    pub architecture: Option<String>,
    /// When it was deployed here.
    pub deployed: Option<Timestamp>,
    /// Generation of its newest boot entry; the highest boots first.
    pub generation: Option<u64>,
    /// Kept until unpinned.
    pub pinned: bool,
    /// /etc was written without the right to set owners and capabilities, so these are not compared in a merge.
    pub etc_unprivileged: bool,
    /// It never ran: the deployment that its /etc was merged from. What runs when the machine goes down is merged into
    /// it once more, whichever that is.
    pub etc_from: Option<DeploymentId>,
    /// Everything that was in the file, for a rewrite.
    ini: Ini,
}

impl Origin {
    /// A new origin that boots by a BLS entry; the other fields are empty.
    pub fn new(reference: &str, manifest: ManifestDigest) -> Self {
        Self {
            reference: reference.into(),
            manifest,
            boot_type: BootType::Bls,
            boot_digest: None,
            kernel_sizes: None,
            top: None,
            version: None,
            created: None,
            architecture: None,
            deployed: None,
            generation: None,
            pinned: false,
            etc_unprivileged: false,
            etc_from: None,
            ini: Ini::default(),
        }
    }

    /// Reads an origin file of this program or of bootc.
    ///
    /// # Errors
    /// What is missing or cannot be understood, as a text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let ini = Ini::parse(text)?;
        let get = |section, key| {
            ini.get(section, key)
                .ok_or_else(|| format!("`{key}` is missing in section [{section}]"))
        };
        let reference = plain_reference(get("origin", "container-image-reference")?)?;
        let manifest = read("manifest_digest", get("image", "manifest_digest")?)?;
        let boot_type = match get("boot", "boot_type")? {
            "bls" => BootType::Bls,
            "uki" => BootType::Uki,
            other => return Err(format!("boot_type {other:?} is neither bls nor uki")),
        };
        let boot_digest = ini.get("boot", "digest").map(str::to_owned);
        if let Some(digest) = &boot_digest {
            let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if digest.len() != 64 || !digest.bytes().all(is_hex) {
                return Err(format!("boot digest {digest:?} is not 64 lower-case hex digits"));
            }
        }
        let own = |key| ini.get(OWN, key);
        Ok(Self {
            reference,
            manifest,
            boot_type,
            boot_digest,
            kernel_sizes: optional("kernel_sizes", own("kernel_sizes"))?,
            top: optional("top_digest", own("top_digest"))?,
            version: own("version").map(str::to_owned),
            created: optional("created", own("created"))?,
            architecture: own("architecture").map(str::to_owned),
            deployed: optional("deployed", own("deployed"))?,
            generation: optional("generation", own("generation"))?,
            pinned: flag("pinned", own("pinned"))?,
            etc_unprivileged: flag("etc_unprivileged", own("etc_unprivileged"))?,
            etc_from: optional("etc_from", own("etc_from"))?,
            ini,
        })
    }

    fn to_ini(&self) -> Ini {
        let mut ini = self.ini.clone();
        let same = |raw: &str| plain_reference(raw).is_ok_and(|reference| reference == self.reference);
        if !ini.get("origin", "container-image-reference").is_some_and(same) {
            let raw = format!("{UNVERIFIED}{}", self.reference);
            ini.set("origin", "container-image-reference", &raw);
        }
        ini.set("boot", "boot_type", self.boot_type.name());
        put(&mut ini, "boot", "digest", self.boot_digest.clone());
        ini.set("image", "manifest_digest", &self.manifest.to_string());
        put(
            &mut ini,
            OWN,
            "kernel_sizes",
            self.kernel_sizes.map(|sizes| sizes.to_string()),
        );
        put(&mut ini, OWN, "top_digest", self.top.map(|d| d.to_string()));
        put(&mut ini, OWN, "version", self.version.clone());
        put(&mut ini, OWN, "created", self.created.map(|t| t.to_string()));
        put(&mut ini, OWN, "architecture", self.architecture.clone());
        put(&mut ini, OWN, "deployed", self.deployed.map(|t| t.to_string()));
        put(&mut ini, OWN, "generation", self.generation.map(|n| n.to_string()));
        put(&mut ini, OWN, "pinned", self.pinned.then(|| "true".into()));
        put(
            &mut ini,
            OWN,
            "etc_unprivileged",
            self.etc_unprivileged.then(|| "true".into()),
        );
        put(&mut ini, OWN, "etc_from", self.etc_from.map(|id| id.to_hex()));
        ini
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ini().fmt(f)
    }
}

/// The reference without ostree's word on signatures (ostree-ext: `ostree-unverified-image:`, its short form for
/// registries `ostree-unverified-registry:`, and `ostree-image-signed:`).
fn plain_reference(raw: &str) -> Result<String, String> {
    let reference = if let Some(name) = raw.strip_prefix("ostree-unverified-registry:") {
        format!("docker://{name}")
    } else {
        let rest = raw
            .strip_prefix(UNVERIFIED)
            .or_else(|| raw.strip_prefix("ostree-image-signed:"));
        let rest = rest.unwrap_or(raw);
        match rest.strip_prefix("registry:") {
            Some(name) => format!("docker://{name}"),
            None => rest.to_owned(),
        }
    };
    if reference.is_empty() || reference.starts_with("ostree-") {
        return Err(format!("container-image-reference {raw:?} is not understood"));
    }
    Ok(reference)
}

fn read<T: FromStr<Err: fmt::Display>>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|e| format!("{key} {value:?}: {e}"))
}

fn optional<T: FromStr<Err: fmt::Display>>(key: &str, value: Option<&str>) -> Result<Option<T>, String> {
    value.map(|value| read(key, value)).transpose()
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    Ok(optional(key, value)?.unwrap_or(false))
}

fn put(ini: &mut Ini, section: &str, key: &str, value: Option<String>) {
    match value {
        Some(value) => ini.set(section, key, &value),
        None => ini.remove(section, key),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(byte: u8) -> ManifestDigest {
        ManifestDigest::from_hash([byte; 32])
    }

    #[test]
    fn a_new_origin_is_spelled_as_bootc_spells_it() {
        let mut origin = Origin::new("docker://quay.io/org/os:41", manifest(1));
        origin.boot_digest = Some("ab".repeat(32));
        origin.generation = Some(7);
        let expected = format!(
            "[origin]\ncontainer-image-reference = ostree-unverified-image:docker://quay.io/org/os:41\n[boot]\nboot_type \
             = bls\ndigest = {}\n[image]\nmanifest_digest = sha256:{}\n[cfs-update]\ngeneration = 7\n",
            "ab".repeat(32),
            "01".repeat(32)
        );
        assert_eq!(origin.to_string(), expected);
    }

    #[test]
    fn a_record_of_bootc_is_read_and_its_keys_survive_a_rewrite() {
        let text = format!(
            "[origin]\ncontainer-image-reference=ostree-unverified-registry:quay.io/org/os:41\n[boot]\nboot_type=uki\n\
             digest={}\n[image]\nmanifest_digest=sha256:{}\n[theirs]\nx=1\n",
            "00".repeat(32),
            "0a".repeat(32)
        );
        let mut origin = Origin::parse(&text).unwrap();
        assert_eq!(origin.reference, "docker://quay.io/org/os:41");
        assert_eq!(origin.boot_type, BootType::Uki);
        origin.pinned = true;
        let rewritten = origin.to_string();
        assert!(
            rewritten.contains("ostree-unverified-registry:quay.io/org/os:41"),
            "{rewritten}"
        );
        assert!(rewritten.contains("[theirs]\nx = 1\n"), "{rewritten}");
        assert!(Origin::parse(&rewritten).unwrap().pinned);
        origin.reference = "oci:/srv/os:2".into();
        assert!(origin.to_string().contains("= ostree-unverified-image:oci:/srv/os:2\n"));
    }

    #[test]
    fn what_is_broken_is_named() {
        let good = Origin::new("docker://h/n:1", manifest(2)).to_string();
        for (from, to, why) in [
            ("boot_type = bls", "boot_type = dos", "neither bls nor uki"),
            ("boot_type = bls\n", "", "`boot_type` is missing in section [boot]"),
            ("sha256:0202", "sha256:02", "manifest_digest"),
            ("[image]", "[imag]", "`manifest_digest` is missing"),
            ("[boot]", "[boot]\ndigest = ../../x", "not 64 lower-case hex digits"),
            (
                "ostree-unverified-image:docker://h/n:1",
                "ostree-unverified-image:",
                "is not understood",
            ),
            ("[image]", "[cfs-update]\npinned = maybe\n[image]", "pinned"),
            ("[image]", "[cfs-update]\nkernel_sizes = 12\n[image]", "kernel_sizes"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good);
            let error = Origin::parse(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn an_origin_reads_back_as_it_was_written(
            name in "[a-z0-9.]{1,12}(/[a-z0-9;#=]{1,8}){1,3}",
            version in prop::option::of("[!-~]([ -~]{0,20}[!-~])?"),
            seconds in prop::option::of(-9_000_000_000i64..9_000_000_000),
            generation in prop::option::of(any::<u64>()),
            flags in any::<(bool, bool, bool)>(),
            bytes in any::<(u8, u8)>(),
        ) {
            let mut origin = Origin::new(&format!("docker://{name}:1"), manifest(bytes.0));
            origin.top = Some(manifest(bytes.1));
            origin.version = version;
            origin.kernel_sizes = generation.map(|linux| KernelSizes { linux, initrd: u64::from(bytes.0) });
            origin.created = seconds.map(|s| Timestamp::from_second(s).unwrap());
            origin.deployed = origin.created;
            origin.generation = generation;
            origin.pinned = flags.0;
            origin.etc_unprivileged = flags.1;
            origin.architecture = flags.2.then(|| "arm/v7".into());
            let text = origin.to_string();
            let read = Origin::parse(&text).unwrap();
            prop_assert_eq!(read.to_string(), text);
            origin.ini = read.ini.clone();
            prop_assert_eq!(read, origin);
        }
    }
}
