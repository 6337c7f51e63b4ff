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

    /// The same with further arguments.
    pub fn and(mut self, further: &[String]) -> Self {
        self.kernel_arguments.extend_from_slice(further);
        self
    }

    fn parse(text: &str) -> Result<Self, String> {
        let parsed: Self = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        for argument in &parsed.kernel_arguments {
            cmdline::check(argument).map_err(|why| format!("kernel argument {argument:?} {why}"))?;
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::RealFs;

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
