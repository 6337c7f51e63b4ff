//! Where podman keeps its images: containers-storage.conf(5), and the form `[DRIVER@ROOT+RUNROOT:OPTIONS]NAME`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::sys::fs;

const FILE_LIMIT: u64 = 1 << 20;

/// The places of one user. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The first that exists says where the storage is (`graphroot`).
    pub files: Vec<PathBuf>,
    /// Where it is if none says so.
    pub usual: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    storage: Section,
}

#[derive(Default, Deserialize)]
struct Section {
    #[serde(default)]
    graphroot: String,
}

impl Places {
    /// The storage's folder; `None` where nobody has one.
    ///
    /// # Errors
    /// [`Error::Settings`] for a file that is no TOML.
    pub fn root(&self) -> Result<Option<PathBuf>> {
        for path in &self.files {
            let Some(text) = fs::read_text(path, FILE_LIMIT)? else {
                continue;
            };
            let file: File = toml::from_str(&text).map_err(|e| Error::Settings {
                path: path.clone(),
                why: e.to_string().trim_end().into(),
            })?;
            if !file.storage.graphroot.is_empty() {
                return Ok(Some(file.storage.graphroot.into()));
            }
            break;
        }
        Ok(self.usual.clone())
    }
}

/// `[DRIVER@ROOT+RUNROOT:OPTIONS]NAME`: the root, if one is given, and the name.
pub(crate) fn split(text: &str) -> Result<(Option<&Path>, &str), String> {
    let Some(rest) = text.strip_prefix('[') else {
        return Ok((None, text));
    };
    let (place, name) = rest.split_once(']').ok_or("has no ] behind its [")?;
    let place = place.split_once('@').map_or(place, |(_, place)| place);
    let root = place.split(['+', ':']).next().unwrap_or_default();
    match (root.starts_with('/'), name.is_empty()) {
        (_, true) => Err("names no image behind the ]".into()),
        (true, false) => Ok((Some(Path::new(root)), name)),
        (false, false) => Err("names no absolute folder between [ and ]".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_read_as_podman_writes_it() {
        let root = |text| split(text).map(|(root, name)| (root.map(|r| r.to_str().unwrap()), name));
        assert_eq!(root("localhost/os:1"), Ok((None, "localhost/os:1")));
        assert_eq!(
            root("[overlay@/var/lib/x+/run/x:overlay.y=z]localhost/os:1"),
            Ok((Some("/var/lib/x"), "localhost/os:1"))
        );
        assert_eq!(root("[/srv/c]os"), Ok((Some("/srv/c"), "os")));
        for bad in ["[/srv/c", "[/srv/c]", "[overlay]os", "[]os"] {
            assert!(root(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn graphroot_of_the_first_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("storage.conf");
        let places = Places {
            files: vec![dir.path().join("gone"), file.clone()],
            usual: Some("/usual".into()),
        };
        assert_eq!(places.root().unwrap(), Some("/usual".into()));
        std::fs::write(&file, "[storage]\ndriver = \"overlay\"\n").unwrap();
        assert_eq!(places.root().unwrap(), Some("/usual".into()));
        std::fs::write(&file, "[storage]\ngraphroot = \"/srv/c\"\n").unwrap();
        assert_eq!(places.root().unwrap(), Some("/srv/c".into()));
        std::fs::write(&file, "nonsense").unwrap();
        assert!(places.root().is_err());
    }
}
