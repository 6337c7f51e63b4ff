//! Saying things where they are seen: standard error (the journal, and the console with it) and the kernel log.

use std::io::Write;
use std::path::PathBuf;

use cfs_core::sys::kernel_log;

const NAME: &str = "cfs-update-root";

/// Where to.
#[derive(Debug, Default)]
pub struct Console {
    kernel: Option<PathBuf>,
}

impl Console {
    /// With a kernel log.
    pub fn new(kernel: PathBuf) -> Self {
        Self { kernel: Some(kernel) }
    }

    /// For the journal.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{NAME}: {text}");
    }

    /// For everybody.
    pub fn problem(&self, text: &str) {
        self.note(text);
        for line in text.lines() {
            if let Some(path) = &self.kernel {
                // Where there is none, standard error has said it.
                let _ = kernel_log::write(path, &format!("{NAME}: {line}"));
            }
        }
    }
}

/// What was asked for, on standard output.
pub fn answer(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
