//! Which machine an image is for.

use std::fmt;
use std::str::FromStr;

use oci_distribution::manifest as wire;

use crate::error::{Error, Result};

/// A machine, in the words of Go: `linux/arm64`, `linux/arm/v7`, `linux/amd64/v3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Other names of an architecture, and those that imply a variant.
const ALIASES: [(&str, &str, Option<&str>); 12] = [
    ("x86_64", "amd64", None),
    ("x86-64", "amd64", None),
    ("i386", "386", None),
    ("i686", "386", None),
    ("x86", "386", None),
    ("aarch64", "arm64", None),
    ("armhf", "arm", Some("v7")),
    ("armel", "arm", Some("v6")),
    ("powerpc64le", "ppc64le", None),
    ("ppc64el", "ppc64le", None),
    ("loongarch64", "loong64", None),
    ("riscv", "riscv64", None),
];

/// Variants of an architecture, each runs those that follow it; the last one is what no variant means.
const ARM: [&str; 4] = ["v8", "v7", "v6", "v5"];
const AMD64: [&str; 4] = ["v4", "v3", "v2", "v1"];

impl Platform {
    /// From its parts, which may be spelled as by the kernel or Debian; an empty `os` means linux.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let lower = architecture.to_lowercase();
        let alias = ALIASES.iter().find(|(name, ..)| *name == lower);
        let (architecture, implied) = alias.map_or((lower.as_str(), None), |(_, arch, variant)| (*arch, *variant));
        let variant = variant.filter(|v| !v.is_empty()).map(|v| match v.as_bytes()[0] {
            b'0'..=b'9' => format!("v{v}"),
            _ => v.to_lowercase(),
        });
        Self {
            os: if os.is_empty() {
                "linux".into()
            } else {
                os.to_lowercase()
            },
            architecture: architecture.into(),
            variant: variant.or(implied.map(String::from)),
        }
    }

    /// The machine that this program was built for. An image for a better variant of it has to be asked for by name,
    /// as with podman, since a disk may be moved to an older machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "arm" if cfg!(target_feature = "v7") => ("arm", Some("v7")),
            "arm" if cfg!(target_feature = "v6") => ("arm", Some("v6")),
            "arm" => ("arm", Some("v5")),
            "aarch64" => ("arm64", Some("v8")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "mips64" if cfg!(target_endian = "little") => ("mips64le", None),
            other => (other, None),
        };
        Self::new("linux", architecture, variant)
    }

    /// GOARCH.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `v7` and the like.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    pub(super) fn from_wire(raw: wire::Platform) -> Self {
        Self::new(
            &raw.os.to_string(),
            &raw.architecture.to_string(),
            raw.variant.as_deref(),
        )
    }

    /// How well an image for `image` suits this machine, 0 = best; `None` = it does not run here.
    ///
    /// As containers/image orders them: the machine's variant, then each lower one, then an image without a variant.
    /// A machine without a variant takes an image without one first, then any that its architecture is sure to run.
    pub(super) fn rank(&self, image: &Self) -> Option<usize> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        let order = match self.architecture.as_str() {
            "arm" => &ARM[..],
            "arm64" => &ARM[..1],
            "amd64" => &AMD64[..],
            _ => &[],
        };
        let place = |variant: &str| order.iter().position(|known| *known == variant);
        match (&self.variant, &image.variant) {
            (None, None) => Some(0),
            (Some(own), Some(its)) if own == its => Some(0),
            (Some(_), None) => Some(order.len() + 1),
            (Some(own), Some(its)) => place(its)?.checked_sub(place(own)?),
            // amd64 without a variant is v1; for arm, podman tries the best first.
            (None, Some(its)) if self.architecture == "amd64" => (its == "v1").then_some(1),
            (None, Some(its)) => Some(1 + place(its)?),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `linux/arm/v7`, `arm/v7` or `arm64`.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let known_os = |os: &str| os == "linux";
        match parts[..] {
            _ if parts.iter().any(|part| part.is_empty()) => Err(()),
            [architecture] => Ok(Self::new("", architecture, None)),
            [os, architecture] if known_os(os) => Ok(Self::new(os, architecture, None)),
            [architecture, variant] => Ok(Self::new("", architecture, Some(variant))),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(()),
        }
        .map_err(|()| {
            Error::Usage(format!(
                "{text:?} is not a platform; write one such as linux/arm64 or arm/v7"
            ))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn best(machine: &str, images: &[&str]) -> Option<String> {
        let machine: Platform = machine.parse().unwrap();
        let images = images.iter().map(|image| image.parse::<Platform>().unwrap());
        let ranked = images.filter_map(|image| Some((machine.rank(&image)?, image)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| image.to_string())
    }

    #[test]
    fn the_best_variant_that_the_machine_runs_is_chosen() {
        for (machine, images, chosen) in [
            (
                "arm/v7",
                &["arm/v5", "arm/v6", "arm/v7", "arm/v8", "arm64"][..],
                Some("linux/arm/v7"),
            ),
            ("arm/v7", &["arm/v5", "arm/v6", "arm/v8"], Some("linux/arm/v6")),
            ("arm/v6", &["arm/v7", "arm/v8"], None),
            ("arm/v6", &["arm/v7", "arm"], Some("linux/arm")),
            ("arm/v7", &["arm", "arm/v5"], Some("linux/arm/v5")),
            ("arm64/v8", &["arm64"], Some("linux/arm64")),
            ("arm64", &["arm64/v8"], Some("linux/arm64/v8")),
            ("arm64/v8", &["arm64/v9", "arm64", "arm64/v8"], Some("linux/arm64/v8")),
            ("arm64", &["arm/v7"], None),
            ("amd64", &["amd64/v2", "amd64/v3", "386"], None),
            ("amd64", &["amd64/v2", "amd64/v1"], Some("linux/amd64/v1")),
            ("amd64", &["amd64/v1", "amd64"], Some("linux/amd64")),
            ("amd64/v3", &["amd64/v4", "amd64/v2", "amd64"], Some("linux/amd64/v2")),
            ("riscv64", &["riscv64"], Some("linux/riscv64")),
            ("amd64", &["windows/amd64/v1"], None),
        ] {
            assert_eq!(best(machine, images).as_deref(), chosen, "{machine} of {images:?}");
        }
    }

    #[test]
    fn a_platform_reads_back_as_it_is_shown_whatever_the_spelling() {
        for (text, shown) in [
            ("x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("armhf", "linux/arm/v7"),
            ("arm/7", "linux/arm/v7"),
            ("linux/ARM/V7", "linux/arm/v7"),
            ("ppc64el", "linux/ppc64le"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
            assert_eq!(shown.parse::<Platform>().unwrap().to_string(), shown);
        }
        for text in ["", "/", "linux/", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn this_machine_runs_images_for_itself() {
        let host = Platform::host();
        assert_eq!(host.rank(&host), Some(0));
        assert_eq!(host.rank(&Platform::new("linux", "unknown", None)), None);
    }
}
