//! `image lint DIR|REF`: what an image lacks to be installed and booted.

use anyhow::Result;
use cfs_core::Error;
use cfs_core::lint::{self, Finding, Severity, UNREAD};
use serde::Serialize;

use super::PlatformArgs;
use super::load;
use super::source::Source;
use crate::cmd::Context;
use crate::output::Report;

/// Say what an image lacks to be installed, booted and updated
///
/// Kernel, initrd and the program in it, os-release, folders to mount on, owners, state in /var. Each finding comes
/// with what to do. Exit code 1 if one of them is an error.
#[derive(Debug, clap::Args)]
pub struct Lint {
    /// Root folder of an image, or image reference
    #[arg(value_name = "DIR|REF")]
    source: String,
    #[command(flatten)]
    platform: PlatformArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linted {
    image: String,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<Finding>,
}

impl Lint {
    pub fn run(self, context: &Context) -> Result<()> {
        let source = Source::of(&self.source)?;
        let mut unread = Vec::new();
        let seen = load::look(
            context,
            &source,
            self.platform.platform,
            lint::is_read,
            |tree, read, architecture| {
                let findings = lint::lint(tree, read, architecture);
                if findings.iter().any(|finding| finding.check == UNREAD) {
                    unread = findings;
                    return None;
                }
                Some(findings)
            },
        )?;
        let findings = seen.unwrap_or(unread);
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let linted = Linted {
            image: self.source,
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            notes: count(Severity::Note),
            findings,
        };
        context.show(&linted)?;
        match linted.errors {
            0 => Ok(()),
            count => Err(Error::Lint { count }.into()),
        }
    }
}

impl Report for Linted {
    fn human(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let Finding {
                severity,
                check,
                what,
                remedy,
            } = finding;
            text += &format!("{severity}: {what} [{check}]\n  {remedy}\n");
        }
        let Self {
            image,
            errors,
            warnings,
            notes,
            ..
        } = self;
        text + &format!("{image}: {errors} errors, {warnings} warnings, {notes} notes\n")
    }
}
