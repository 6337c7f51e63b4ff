//! `meta.json`: which version and features a repository has (composefs-rs, since 0.7).
//!
//! Invariant: a repository with a feature that we do not know is written to only where the feature says that this is
//! safe, and opened at all only where it says that reading is. Only what is no such file at all, after damage, is ever
//! written anew: one that is not understood may be of a later version.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::store::Store;
use crate::store::fsck::is_lost;
use crate::sys::fs::{self, Fs};
use crate::sys::verity;

/// It is smaller than this in every version.
const LIMIT: u64 = 1 << 20;

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

/// The text of a repository's file, or what is wrong with it, and what to do; `None` where there is no file.
///
/// # Errors
/// A file that cannot be read, though it is not lost.
pub(super) fn read(path: &Path) -> Result<Option<Result<String, String>>> {
    match fs::read(path, LIMIT) {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => Ok(Some(String::from_utf8(bytes).map_err(|_| garbled("it is no text")))),
        Err(error) if is_lost(&error) => Ok(Some(Err(garbled(&error.to_string())))),
        Err(error) => Err(error),
    }
}

fn garbled(why: &str) -> String {
    format!("meta.json is damaged ({why}); `cfs-update fsck --repair` writes it anew")
}

/// What every version's file is, as JSON.
fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(garbled("it is no JSON object")),
        Err(error) => Err(garbled(&error.to_string())),
    }
}

impl Store {
    /// Writes the `meta.json` of the repository at `path` anew where it is damaged: of the algorithm that the objects'
    /// names are of (`otherwise` where there are none), and sealed if any of them is.
    ///
    /// # Errors
    /// [`Error::Repository`] where objects have names of both algorithms; what writing gives.
    pub fn mend_meta(fs: &dyn Fs, path: &Path, otherwise: Algorithm) -> Result<()> {
        let meta_path = path.join("meta.json");
        match read(&meta_path)?.map(|text| text.and_then(|text| object(&text))) {
            None | Some(Ok(_)) => return Ok(()),
            Some(Err(why)) => tracing::warn!("repository {}: {why}", path.display()),
        }
        let (algorithm, sealed) = of_objects(path)?.unwrap_or((otherwise, false));
        let temporary = path.join(".#meta.json");
        fs.remove_file(&temporary)?;
        fs.create(&temporary, 0o644, &mut new(algorithm).as_bytes())?;
        fs.sync_file(&temporary)?;
        if sealed {
            verity::enable(&fs::open(&temporary)?, algorithm)?;
        }
        fs.rename(&temporary, &meta_path)?;
        fs.sync_dir(path)
    }
}

/// The algorithm of the objects' names, and whether one of them has fs-verity; `None` without objects.
fn of_objects(repository: &Path) -> Result<Option<(Algorithm, bool)>> {
    let (mut algorithm, mut sealed) = (None, false);
    for folder in 0..=255_u8 {
        let folder = format!("{folder:02x}");
        let path = repository.join("objects").join(&folder);
        for name in fs::names(&path).unwrap_or_default() {
            let id = format!("{folder}{}", name.to_string_lossy()).parse::<ObjectId>();
            let Ok(found) = id.map(|id| id.algorithm()) else {
                continue;
            };
            if *algorithm.get_or_insert(found) != found {
                return Err(Error::Repository {
                    path: repository.into(),
                    why: "it has objects of both algorithms; put back its meta.json from a backup".into(),
                });
            }
            let measured = || verity::measure(&fs::open_own_file(&path.join(&name))?);
            sealed = sealed || matches!(measured(), Ok(Some(_)));
        }
    }
    Ok(algorithm.map(|algorithm| (algorithm, sealed)))
}

/// Reads the text of a repository; the error says what to do.
pub(super) fn parse(text: &str) -> Result<Access, String> {
    let meta = serde_json::from_value::<Meta>(object(text)?);
    let meta = meta.map_err(|e| format!("meta.json cannot be understood: {e}; update cfs-update to use it"))?;
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
