//! What this machine wants on the kernel command line of every entry, whatever the image: `state/cfs-update/boot.toml`.
//!
//! Written by an installation and changed by the administrator; every new entry is made with it, so that it survives
//! updates. A file that cannot be understood stops an update before anything is fetched: a machine without its
//! arguments may not boot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot::cmdline;
use crate::deployment::Layout;
use crate::error::{Error, Result};
use crate::sys::fs::{self, Fs};

/// No such file is longer.
const LIMIT: u64 = 64 << 10;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HostArguments {
    /// Behind those of the image, in order; one argument an item.
    pub kernel_arguments: Vec<String>,
    /// The root may be mounted without fs-verity (`composefs.digest=?…`): its file system has none.
    pub allow_missing_verity: bool,
}

impl HostArguments {
    /// Where it is.
    pub fn path(layout: &Layout) -> PathBuf {
        layout.state().join("boot.toml")
    }

    /// What the machine wants; nothing where there is no file.
    ///
    /// # Errors
    /// [`Error::Settings`] for a text that is no such file.
    pub fn load(layout: &Layout) -> Result<Self> {
        let path = Self::path(layout);
        match fs::read_text(&path, LIMIT)? {
            Some(text) => Self::parse(&text).map_err(|why| Error::Settings { path, why }),
            None => Ok(Self::default()),
        }
    }

    /// Writes it, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, layout: &Layout) -> Result<()> {
        let path = Self::path(layout);
        let text = toml::to_string(self).map_err(|e| Error::Settings {
            path: path.clone(),
            why: e.to_string(),
        })?;
        fs::replace(fs, &path, 0o600, text.as_bytes())
    }

    /// The same with the arguments changed.
    ///
    /// # Errors
    /// [`Error::Usage`] for an argument that is none, one that only an entry can have, and one to be deleted that is
    /// not there.
    pub fn changed(&self, edit: &Edit) -> Result<Self> {
        Ok(Self {
            kernel_arguments: edit.of(&self.kernel_arguments).map_err(Error::Usage)?,
            ..self.clone()
        })
    }

    /// The same with further arguments.
    pub fn and(mut self, further: &[String]) -> Self {
        self.kernel_arguments.extend_from_slice(further);
        self
    }

    fn parse(text: &str) -> Result<Self, String> {
        let parsed: Self = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        parsed
            .kernel_arguments
            .iter()
            .try_for_each(|one| cmdline::check_wish(one))?;
        Ok(parsed)
    }
}

/// A change of the machine's arguments: what is deleted first, then what is replaced, then what is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Each at the end, unless it is there already.
    pub append: Vec<String>,
    /// Each a whole argument, or the key of one that only one argument has.
    pub delete: Vec<String>,
    /// Each instead of all arguments of its key, where the first of them was; at the end where there was none.
    pub replace: Vec<String>,
}

impl Edit {
    /// Whether it changes nothing, whatever there is.
    pub fn is_empty(&self) -> bool {
        self.append.is_empty() && self.delete.is_empty() && self.replace.is_empty()
    }

    fn of(&self, arguments: &[String]) -> Result<Vec<String>, String> {
        let mut arguments = arguments.to_vec();
        for unwanted in &self.delete {
            let at = Self::find(&arguments, unwanted)?;
            arguments.remove(at);
        }
        for new in &self.replace {
            cmdline::check_wish(new)?;
            let same = |own: &String| cmdline::same_key(own, new);
            let at = arguments.iter().position(same).unwrap_or(arguments.len());
            arguments.retain(|own| !same(own));
            arguments.insert(at, new.clone());
        }
        for new in &self.append {
            cmdline::check_wish(new)?;
            if !arguments.contains(new) {
                arguments.push(new.clone());
            }
        }
        Ok(arguments)
    }

    fn find(arguments: &[String], unwanted: &str) -> Result<usize, String> {
        if let Some(at) = arguments.iter().position(|own| own == unwanted) {
            return Ok(at);
        }
        let of_key = |(_, own): &(usize, &String)| !unwanted.contains('=') && cmdline::same_key(own, unwanted);
        let found: Vec<_> = arguments.iter().enumerate().filter(of_key).collect();
        match found[..] {
            [(at, _)] => Ok(at),
            [] => Err(format!(
                "{unwanted:?} is not among the kernel arguments of this machine ({}); nothing was changed",
                if arguments.is_empty() {
                    "none".into()
                } else {
                    cmdline::join(arguments)
                }
            )),
            _ => Err(format!(
                "{unwanted:?} fits {}; say which one, with its value; nothing was changed",
                cmdline::join(&found.iter().map(|(_, own)| own).collect::<Vec<_>>())
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::RealFs;

    fn words(line: &str) -> Vec<String> {
        cmdline::split(line)
    }

    fn edit(append: &str, delete: &str, replace: &str) -> Edit {
        let [append, delete, replace] = [append, delete, replace].map(words);
        Edit {
            append,
            delete,
            replace,
        }
    }

    #[test]
    fn arguments_are_deleted_replaced_in_place_and_appended_once() {
        let had = words("console=tty0 console=ttyS0 quiet mitigations=off");
        let line =
            |append: &str, delete: &str, replace: &str| edit(append, delete, replace).of(&had).map(|a| a.join(" "));
        assert_eq!(
            line("debug quiet", "mitigations", "").unwrap(),
            "console=tty0 console=ttyS0 quiet debug"
        );
        assert_eq!(
            line("", "console=tty0 quiet", "").unwrap(),
            "console=ttyS0 mitigations=off"
        );
        assert_eq!(
            line("", "", "console=hvc0 new=1").unwrap(),
            "console=hvc0 quiet mitigations=off new=1"
        );
        assert_eq!(
            line("quiet=1", "quiet", "").unwrap(),
            "console=tty0 console=ttyS0 mitigations=off quiet=1"
        );
        assert_eq!(edit("a-b=1", "", "").of(&words("a_b=2")).unwrap(), ["a_b=2", "a-b=1"]);
        assert_eq!(
            edit("", "", "a-b=1").of(&words("a_b=2 c")).unwrap(),
            ["a-b=1", "c"],
            "- and _ in keys are the same"
        );
    }

    #[test]
    fn what_is_not_there_or_not_clear_is_refused_with_what_there_is() {
        let had = words("console=tty0 console=ttyS0");
        let why = |delete: &str| edit("", delete, "").of(&had).unwrap_err();
        assert!(why("quiet").contains("console=tty0 console=ttyS0"));
        assert!(why("console=ttyS1").contains("not among"));
        assert!(why("console").contains("fits console=tty0 console=ttyS0"));
        for argument in [
            "",
            "a b",
            "\"",
            "a\nb",
            "composefs.digest=x",
            "composefs=x",
            "composefs-digest",
        ] {
            let refused = |edit: Edit| edit.of(&had).is_err();
            let list = || vec![argument.to_owned()];
            let fine = argument == "composefs-digest";
            assert_eq!(
                refused(Edit {
                    append: list(),
                    ..Edit::default()
                }),
                !fine,
                "{argument:?}"
            );
            assert_eq!(
                refused(Edit {
                    replace: list(),
                    ..Edit::default()
                }),
                !fine,
                "{argument:?}"
            );
        }
    }

    #[test]
    fn what_was_saved_is_what_is_loaded_and_no_file_is_no_wish() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare(&RealFs).unwrap();
        assert_eq!(HostArguments::load(&layout).unwrap(), HostArguments::default());
        let host = HostArguments {
            kernel_arguments: vec!["console=ttyS0".into(), "dyndbg=\"file a.c +p\"".into()],
            allow_missing_verity: true,
        };
        host.save(&RealFs, &layout).unwrap();
        assert_eq!(HostArguments::load(&layout).unwrap(), host);
        let more = host.and(&["quiet".into()]);
        assert_eq!(more.kernel_arguments.last().unwrap(), "quiet");
    }

    #[test]
    fn a_file_that_is_not_understood_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare(&RealFs).unwrap();
        for text in [
            "kernel-arguments = [\"a b\"]",
            "kernel-arguments = [\"\"]",
            "kernel-arguments = [\"composefs.digest=x\"]",
            "kargs = []",
            "allow-missing-verity = 1",
            "[",
        ] {
            std::fs::write(HostArguments::path(&layout), text).unwrap();
            let error = HostArguments::load(&layout).unwrap_err().to_string();
            assert!(error.contains("state/cfs-update/boot.toml"), "{text}: {error}");
        }
    }
}
