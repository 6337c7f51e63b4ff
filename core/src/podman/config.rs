//! Where podman keeps its images: containers-storage.conf(5), and the form `[DRIVER@ROOT+RUNROOT:OPTIONS]NAME`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::sys::fs;

const FILE_LIMIT: u64 = 1 << 20;

/// The places of one user. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The first that exists says where the storage is (`graphroot`), and of what kind.
    pub files: Vec<PathBuf>,
    /// Where it is if none says so.
    pub usual: Option<PathBuf>,
    /// Where what does not outlive a boot is, if none says so (`runroot`).
    pub run: Option<PathBuf>,
    /// For who is not root: the system's settings, of which the first that exists counts; its `rootless_storage_path`
    /// does where the user's own settings say nothing.
    pub system: Vec<PathBuf>,
    /// `$HOME` in a path.
    pub home: Option<PathBuf>,
    /// `$UID` in a path.
    pub uid: u32,
}

/// A storage: its folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `graphroot`
    pub root: PathBuf,
    /// `imagestore`: images' records and layers' files, where they are apart from all else.
    pub images: Option<PathBuf>,
    /// `runroot`: containers' layers of a transient storage.
    pub run: Option<PathBuf>,
    /// `driver`, if it is said.
    pub driver: Option<String>,
    /// `additionalimagestores`: storages that podman only reads.
    pub additional: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    storage: Section,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Section {
    driver: String,
    graphroot: String,
    imagestore: String,
    runroot: String,
    rootless_storage_path: String,
    options: Options,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    additionalimagestores: Vec<String>,
    imagestore: String,
}

impl Places {
    /// The storage; `None` where nobody has one.
    ///
    /// # Errors
    /// [`Error::Settings`] for a file that is no TOML.
    pub fn place(&self) -> Result<Option<Place>> {
        let found = first(&self.files)?;
        let given = |text: &str| Some(self.expanded(text)).filter(|_| !text.is_empty());
        let Section {
            driver,
            graphroot,
            imagestore,
            runroot,
            options,
            ..
        } = found.unwrap_or_default();
        let root = match given(&graphroot) {
            Some(root) => Some(root),
            None => self.of_user()?.or_else(|| self.usual.clone()),
        };
        Ok(root.map(|root| Place {
            root,
            images: given(&imagestore).or_else(|| given(&options.imagestore)),
            run: given(&runroot).or_else(|| self.run.clone()),
            driver: Some(driver).filter(|driver| !driver.is_empty()),
            additional: options.additionalimagestores.iter().filter_map(|p| given(p)).collect(),
        }))
    }

    fn of_user(&self) -> Result<Option<PathBuf>> {
        let text = first(&self.system)?.unwrap_or_default().rootless_storage_path;
        Ok(Some(self.expanded(&text)).filter(|path| path.is_absolute()))
    }

    /// As podman has it.
    fn expanded(&self, text: &str) -> PathBuf {
        let home = self.home.as_deref().unwrap_or(Path::new("")).to_string_lossy();
        let text = text.replace("$UID", &self.uid.to_string());
        text.replace("${HOME}", &home).replace("$HOME", &home).into()
    }
}

/// What the first of these that exists says.
fn first(files: &[PathBuf]) -> Result<Option<Section>> {
    for path in files {
        if let Some(text) = fs::read_text(path, FILE_LIMIT)? {
            let file = toml::from_str::<File>(&text).map_err(|e| Error::Settings {
                path: path.clone(),
                why: e.to_string().trim_end().into(),
            })?;
            return Ok(Some(file.storage));
        }
    }
    Ok(None)
}

impl From<&Path> for Place {
    fn from(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            ..Self::default()
        }
    }
}

/// `[DRIVER@ROOT+RUNROOT:OPTIONS]NAME`: the storage, if one is given, and the name.
pub(crate) fn split(text: &str) -> Result<(Option<Place>, &str), String> {
    let Some(rest) = text.strip_prefix('[') else {
        return Ok((None, text));
    };
    let (place, name) = rest.split_once(']').ok_or("has no ] behind its [")?;
    let (driver, place) = place
        .split_once('@')
        .map_or((None, place), |(driver, place)| (Some(driver), place));
    let (place, options) = place.split_once(':').unwrap_or((place, ""));
    let (root, run) = place
        .split_once('+')
        .map_or((place, None), |(root, run)| (root, Some(run)));
    match (root.starts_with('/'), name.is_empty()) {
        (_, true) => return Err("names no image behind the ]".into()),
        (false, false) => return Err("names no absolute folder between [ and ]".into()),
        (true, false) => {}
    }
    let option = |wanted: &str| {
        let wanted = wanted.to_owned();
        options
            .split(',')
            .filter_map(|option| option.split_once('='))
            .filter(move |(key, _)| key.rsplit('.').next() == Some(&wanted))
            .map(|(_, value)| PathBuf::from(value))
    };
    let place = Place {
        root: root.into(),
        images: option("imagestore").next(),
        run: run.map(PathBuf::from),
        driver: driver.filter(|driver| !driver.is_empty()).map(String::from),
        additional: option("additionalimagestore").collect(),
    };
    Ok((Some(place), name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_read_as_podman_writes_it() {
        let place = |text| split(text).unwrap();
        assert_eq!(place("localhost/os:1"), (None, "localhost/os:1"));
        let (full, name) =
            place("[vfs@/var/lib/x+/run/x:vfs.imagestore=/srv/i,.additionalimagestore=/srv/a]localhost/os:1");
        let expected = Place {
            root: "/var/lib/x".into(),
            images: Some("/srv/i".into()),
            run: Some("/run/x".into()),
            driver: Some("vfs".into()),
            additional: vec!["/srv/a".into()],
        };
        assert_eq!((full, name), (Some(expected), "localhost/os:1"));
        assert_eq!(place("[/srv/c]os"), (Some(Path::new("/srv/c").into()), "os"));
        for bad in ["[/srv/c", "[/srv/c]", "[overlay]os", "[]os"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_first_file_says_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("storage.conf");
        let places = Places {
            files: vec![dir.path().join("gone"), file.clone()],
            usual: Some("/usual".into()),
            run: Some("/run/usual".into()),
            ..Places::default()
        };
        let place = || places.place().unwrap().unwrap();
        assert_eq!(place().root, Path::new("/usual"));
        std::fs::write(&file, "[storage]\ndriver = \"overlay\"\n").unwrap();
        assert_eq!(
            (place().root, place().driver.as_deref()),
            ("/usual".into(), Some("overlay"))
        );
        let text = "[storage]\ngraphroot = \"/srv/c\"\nimagestore = \"/srv/i\"\nrunroot = \"\"\n\
                    [storage.options]\nadditionalimagestores = [\"/a\", \"/b\"]\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(
            place(),
            Place {
                root: "/srv/c".into(),
                images: Some("/srv/i".into()),
                run: Some("/run/usual".into()),
                driver: None,
                additional: vec!["/a".into(), "/b".into()],
            }
        );
        std::fs::write(&file, "nonsense").unwrap();
        assert!(places.place().is_err());
    }

    #[test]
    fn the_system_says_where_users_storage_is_unless_they_do() {
        let dir = tempfile::tempdir().unwrap();
        let [system, own] = ["system.conf", "own.conf"].map(|name| dir.path().join(name));
        let places = Places {
            files: vec![own.clone()],
            usual: Some("/home/u/.local/share/containers/storage".into()),
            run: None,
            system: vec![system.clone()],
            home: Some("/home/u".into()),
            uid: 1000,
        };
        let root = || places.place().unwrap().unwrap().root;
        assert!(root().starts_with("/home/u/.local"));
        std::fs::write(&system, "[storage]\nrootless_storage_path = \"/data/$UID$HOME/c\"\n").unwrap();
        assert_eq!(root(), Path::new("/data/1000/home/u/c"));
        std::fs::write(&own, "[storage]\ngraphroot = \"${HOME}/$UID/mine\"\n").unwrap();
        assert_eq!(root(), Path::new("/home/u/1000/mine"));
    }
}
