//! `meta.json`: which version and features a repository has (composefs-rs, since 0.7).
//!
//! Invariant: a repository with a feature that we do not know is written to only where the feature says that this is
//! safe, and opened at all only where it says that reading is.

use serde::{Deserialize, Serialize};

use crate::ids::Algorithm;

/// The flag of repositories whose images are of EROFS format 1.
const V1_EROFS: &str = "v1_erofs";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    version: u32,
    algorithm: String,
    #[serde(default)]
    features: Features,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erofs_formats: Option<Formats>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Features {
    #[serde(default)]
    compatible: Vec<String>,
    #[serde(default)]
    read_only_compatible: Vec<String>,
    #[serde(default)]
    incompatible: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Formats {
    default: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    extra: Vec<u32>,
}

/// What a repository allows us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) algorithm: Algorithm,
    /// Why nothing may be written, where that is so.
    pub(super) read_only: Option<String>,
}

/// The text for a new repository.
pub(super) fn new(algorithm: Algorithm) -> String {
    let meta = Meta {
        version: 1,
        algorithm: algorithm.name().into(),
        features: Features {
            read_only_compatible: vec![V1_EROFS.into()],
            ..Features::default()
        },
        erofs_formats: Some(Formats {
            default: 1,
            extra: Vec::new(),
        }),
    };
    let mut text = serde_json::to_string_pretty(&meta).unwrap_or_default();
    text.push('\n');
    text
}

/// Reads the text of a repository; the error says what to do.
pub(super) fn parse(text: &str) -> Result<Access, String> {
    let meta: Meta = serde_json::from_str(text).map_err(|e| format!("meta.json cannot be understood: {e}"))?;
    if meta.version != 1 {
        return Err(format!("format version {}; update cfs-update to use it", meta.version));
    }
    if !meta.features.incompatible.is_empty() {
        let features = meta.features.incompatible.join(", ");
        return Err(format!(
            "it needs {features}, which this version does not know; update cfs-update"
        ));
    }
    let algorithm = meta.algorithm.parse();
    let algorithm = algorithm.map_err(|_| format!("its digest algorithm {:?} is not supported", meta.algorithm))?;
    let unknown: Vec<_> = meta
        .features
        .read_only_compatible
        .iter()
        .filter(|f| *f != V1_EROFS)
        .cloned()
        .collect();
    let read_only = (!unknown.is_empty()).then(|| {
        format!(
            "it may only be read by this version, which does not know {}",
            unknown.join(", ")
        )
    });
    Ok(Access { algorithm, read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_composefs_rs_writes() {
        for (ours, theirs) in [
            (Algorithm::Sha256, composefs::fsverity::Algorithm::SHA256),
            (Algorithm::Sha512, composefs::fsverity::Algorithm::SHA512),
        ] {
            let meta = composefs::repository::RepoMetadata::new(theirs);
            assert_eq!(new(ours).as_bytes(), meta.to_json().unwrap());
            assert_eq!(
                parse(&new(ours)).unwrap(),
                Access {
                    algorithm: ours,
                    read_only: None
                }
            );
        }
    }

    #[test]
    fn unknown_features_limit_the_use() {
        let with = |features: &str| {
            parse(&format!(
                r#"{{"version":1,"algorithm":"fsverity-sha256-12","features":{{{features}}},"more":1}}"#
            ))
        };
        assert_eq!(with(r#""compatible":["x"]"#).unwrap().read_only, None);
        assert!(
            with(r#""read-only-compatible":["v1_erofs","x"]"#)
                .unwrap()
                .read_only
                .unwrap()
                .contains('x')
        );
        assert!(with(r#""incompatible":["y"]"#).unwrap_err().contains('y'));
        assert!(parse(r#"{"version":2,"algorithm":"fsverity-sha256-12"}"#).is_err());
        assert!(parse(r#"{"version":1,"algorithm":"fsverity-sha256-16"}"#).is_err());
        assert!(parse("").is_err());
    }
}
