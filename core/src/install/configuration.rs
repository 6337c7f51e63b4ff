//! What an image says of its installation: bootc's `install/*.toml`, of which the kernel arguments count here.
//!
//! Text in, values out. A file that cannot be understood is an error and not left out: the system may need what it
//! says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::boot::kargs;
use crate::error::{Error, Result};

/// Where images have them; of two files with one name that of the later folder counts.
pub const FOLDERS: [&str; 2] = ["usr/lib/bootc/install", "etc/bootc/install"];

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    install: Section,
}

/// What else may be there is for other installers.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Section {
    #[serde(default)]
    kargs: Vec<String>,
    match_architectures: Option<Vec<String>>,
}

/// The kernel arguments that the machine is to have from its installation on, in the order of the file names.
///
/// # Errors
/// [`Error::Settings`] for a file that is none.
pub fn kernel_arguments(files: Vec<(PathBuf, String)>, architecture: &str) -> Result<Vec<String>> {
    let named = |(path, text): (PathBuf, String)| Some((path.file_name()?.to_owned(), (path, text)));
    let files: BTreeMap<_, _> = files.into_iter().filter_map(named).collect();
    let mut arguments = Vec::new();
    for (path, text) in files.into_values() {
        let fail = |why: String| Error::Settings {
            path: Path::new("/").join(&path),
            why,
        };
        let File { install } = toml::from_str(&text).map_err(|e| fail(e.to_string().trim_end().to_owned()))?;
        if kargs::is_for(install.match_architectures.as_deref(), architecture) {
            arguments.extend(kargs::arguments(&install.kargs).map_err(fail)?);
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let files = files.iter().map(|(path, text)| (path.into(), (*text).to_owned()));
        kernel_arguments(files.collect(), "amd64")
    }

    #[test]
    fn arguments_come_in_the_order_of_file_names_and_the_later_folder_hides_the_earlier() {
        let fedora = "[install.filesystem.root]\ntype = \"xfs\"\n";
        let console = "[install]\nroot-fs-type = \"ext4\"\nkargs = [\"console=ttyS0,115200 quiet\"]\n";
        let files = [
            ("usr/lib/bootc/install/50-console.toml", console),
            ("usr/lib/bootc/install/00-fedora.toml", fedora),
            ("usr/lib/bootc/install/20-a.toml", "[install]\nkargs = [\"hidden\"]\n"),
            ("etc/bootc/install/20-a.toml", "[install]\nkargs = [\"a\"]\n"),
            (
                "usr/lib/bootc/install/60-arm.toml",
                "[install]\nkargs = [\"arm\"]\nmatch-architectures = [\"aarch64\"]\n",
            ),
        ];
        assert_eq!(of(&files).unwrap(), ["a", "console=ttyS0,115200", "quiet"]);
        assert_eq!(of(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn a_file_that_is_not_understood_is_named() {
        for text in [
            "[install",
            "[install]\nkargs = \"a\"",
            "[install]\nkargs = [\"composefs=00\"]",
        ] {
            let error = of(&[("usr/lib/bootc/install/a.toml", text)]).unwrap_err();
            assert!(
                error.to_string().starts_with("/usr/lib/bootc/install/a.toml: "),
                "{error}"
            );
        }
    }
}
