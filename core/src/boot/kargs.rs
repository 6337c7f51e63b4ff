//! Kernel arguments that an image brings along: `kargs.d`.
//!
//! The files are bootc's: TOML with `kargs`, a list of strings that may hold several arguments each, and optionally
//! `match-architectures`. They are read from two folders, one that bootc reads, too, and one of our own; a file that
//! cannot be understood is an error and never left out, because an image without its arguments may not boot.
//! Parsing only: reading is the caller's.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::boot::cmdline;
use crate::error::{Error, Result};

/// Where images keep them, relative to the image's root. For files of the same name, the later folder comes later.
pub const FOLDERS: [&str; 2] = ["usr/lib/bootc/kargs.d", "usr/lib/cfs-update/kargs.d"];

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    kargs: Vec<String>,
    match_architectures: Option<Vec<String>>,
}

/// Whether a file name in one of [`FOLDERS`] counts.
pub fn is_name(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.')
}

/// The arguments of one file, in order; none when it is for other architectures.
///
/// `architecture` in any of the usual spellings: that of Rust and `uname -m` (`x86_64`) or that of OCI and Debian
/// (`amd64`).
///
/// # Errors
/// [`Error::Settings`] with `path`, for a text that is no such file.
pub fn parse(path: &Path, text: &str, architecture: &str) -> Result<Vec<String>> {
    let fail = |why: String| Error::Settings {
        path: path.to_path_buf(),
        why,
    };
    let file: File = toml::from_str(text).map_err(|e| fail(e.to_string().trim_end().to_owned()))?;
    if !is_for(file.match_architectures.as_deref(), architecture) {
        return Ok(Vec::new());
    }
    arguments(&file.kargs).map_err(fail)
}

/// Whether a `match-architectures` names this one; none at all names every one.
pub(crate) fn is_for(list: Option<&[String]>, architecture: &str) -> bool {
    let wanted = canonical(architecture);
    list.is_none_or(|list| list.iter().any(|own| canonical(own) == wanted))
}

/// The arguments of a list of strings that may hold several each; on failure says which is none.
pub(crate) fn arguments(list: &[String]) -> Result<Vec<String>, String> {
    let arguments = cmdline::split(&cmdline::join(list));
    arguments.iter().try_for_each(|one| cmdline::check_wish(one))?;
    Ok(arguments)
}

/// The arguments of all files of an image: sorted by file name, later ones after.
///
/// Each item is a path, relative to the image's root, in one of [`FOLDERS`] and its text; others are ignored.
pub fn collect(files: impl IntoIterator<Item = (PathBuf, String)>, architecture: &str) -> Result<Vec<String>> {
    let mut sorted = Vec::new();
    for (path, text) in files {
        let folder = path
            .parent()
            .and_then(|folder| FOLDERS.iter().position(|own| folder == Path::new(own)));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        if let Some(folder) = folder.filter(|_| is_name(&name)) {
            sorted.push((name, folder, path, text));
        }
    }
    sorted.sort();
    let mut arguments = Vec::new();
    for (_, _, path, text) in sorted {
        arguments.extend(parse(&Path::new("/").join(path), &text, architecture)?);
    }
    Ok(arguments)
}

/// One spelling for each architecture.
fn canonical(name: &str) -> &str {
    match name {
        "amd64" | "x64" => "x86_64",
        "arm64" | "aa64" => "aarch64",
        "386" | "i386" | "i586" | "i686" => "x86",
        "ppc64le" | "ppc64el" | "ppc64" => "powerpc64",
        "armhf" | "armel" => "arm",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<String>> {
        parse(Path::new("/usr/lib/bootc/kargs.d/10-a.toml"), text, "x86_64")
    }

    #[test]
    fn a_string_may_hold_several_arguments() {
        let text = "# serial\nkargs = [\"console=tty0 console=ttyS0,115200n8\", 'dyndbg=\"file a.c +p\"']\n";
        assert_eq!(
            parse_text(text).unwrap(),
            ["console=tty0", "console=ttyS0,115200n8", "dyndbg=\"file a.c +p\""]
        );
        assert_eq!(parse_text("kargs = []").unwrap(), [""; 0]);
    }

    #[test]
    fn files_for_other_architectures_add_nothing() {
        let of = |list: &str| parse_text(&format!("kargs = [\"a\"]\nmatch-architectures = [{list}]"));
        assert_eq!(of("\"aarch64\"").unwrap(), [""; 0]);
        assert_eq!(of("").unwrap(), [""; 0]);
        assert_eq!(of("\"aarch64\", \"x86_64\"").unwrap(), ["a"]);
        assert_eq!(of("\"amd64\"").unwrap(), ["a"]);
    }

    #[test]
    fn a_file_that_is_not_understood_or_names_an_image_is_an_error_that_names_it() {
        let image = format!("kargs = [\"quiet composefs.digest=v1-sha256-12:{}\"]", "ab".repeat(32));
        for text in [
            &image,
            "kargs = [\"composefs=x\"]",
            "",
            "kargs = \"a\"",
            "karg = []",
            "kargs = [\"a\"]\nfoo = 1",
            "kargs = [\"x=\\\"y\"]",
            "kargs = [",
        ] {
            let error = parse_text(text).unwrap_err().to_string();
            assert!(error.contains("/usr/lib/bootc/kargs.d/10-a.toml"), "{text:?}: {error}");
        }
        assert!(parse_text("kargs = [\"a\\u0000b\"]").is_err());
    }

    #[test]
    fn both_folders_are_sorted_together_by_file_name() {
        let file = |path: &str, karg: &str| (PathBuf::from(path), format!("kargs = [\"{karg}\"]"));
        let files = [
            file("usr/lib/cfs-update/kargs.d/20-b.toml", "d"),
            file("usr/lib/bootc/kargs.d/30-a.toml", "e"),
            file("usr/lib/bootc/kargs.d/20-b.toml", "c"),
            file("usr/lib/cfs-update/kargs.d/10-z.toml", "b"),
            file("usr/lib/bootc/kargs.d/05.toml", "a"),
            file("usr/lib/bootc/kargs.d/README", "no"),
            file("usr/lib/bootc/kargs.d/.hidden.toml", "no"),
            file("usr/lib/other/kargs.d/00.toml", "no"),
            file("usr/lib/bootc/kargs.d/sub/00.toml", "no"),
        ];
        assert_eq!(collect(files, "x86_64").unwrap(), ["a", "b", "c", "d", "e"]);
    }
}
