//! `kargs`.

use anyhow::Result;
use cfs_core::arguments::{self, Arguments};
use cfs_core::boot::cmdline;
use cfs_core::boot::host::Edit;
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::Report;
use crate::reboot::Apply;

/// Show or change the kernel arguments of this machine, which survive updates
///
/// Without options shows those of what boots next. A change holds from the next boot on and for every later deployment;
/// earlier ones keep theirs. Exit code 77 if there is nothing to change.
#[derive(Debug, clap::Args)]
pub struct Kargs {
    /// Add this argument, unless it is there; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Take this argument of the machine away: a whole one, or the key of one; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    delete: Vec<String>,
    /// Have this argument instead of all those of the machine with its key; may be given several times
    #[arg(long, value_name = "KEY=VALUE", allow_hyphen_values = true)]
    replace: Vec<String>,
    /// Reboot the machine into it
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    deployment: String,
    boot_entry: String,
    image: Vec<String>,
    machine: Vec<String>,
    command_line: Vec<String>,
    /// Whether the boot entry has what image and machine want.
    current: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
}

#[derive(Debug, Serialize)]
struct Change {
    added: Vec<String>,
    removed: Vec<String>,
}

impl Shown {
    fn new(arguments: Arguments, change: Option<Change>) -> Self {
        Self {
            deployment: arguments.id.to_string(),
            current: arguments.is_current(),
            boot_entry: arguments.entry,
            image: arguments.image,
            machine: arguments.machine,
            command_line: arguments.line,
            change,
        }
    }
}

impl Report for Shown {
    fn human(&self) -> String {
        let mut text = format!("Deployment {} boots next\n", self.deployment);
        let mut line = |name: &str, arguments: &[String]| {
            if !arguments.is_empty() {
                text.push_str(&format!("{name:>16}: {}\n", cmdline::join(arguments)));
            }
        };
        line("Image", &self.image);
        line("Machine", &self.machine);
        line("Command line", &self.command_line);
        line("Boot entry", std::slice::from_ref(&self.boot_entry));
        if let Some(change) = &self.change {
            line("Added", &change.added);
            line("Removed", &change.removed);
        }
        if !self.current {
            text.push_str("The boot entry was edited, or made before the arguments were changed; the next change or update makes it anew\n");
        }
        text
    }
}

impl Kargs {
    pub fn run(self, context: &Context) -> Result<()> {
        let edit = Edit {
            append: self.append,
            delete: self.delete,
            replace: self.replace,
        };
        if edit.is_empty() {
            let arguments = arguments::show(&context.look(&self.boot)?)?;
            return context.show(&Shown::new(arguments, None));
        }
        context.check_apply(self.apply)?;
        let sysroot = context.open(&self.boot, "kargs")?;
        let done = arguments::change(&sysroot, &edit, &context.ui)?;
        context.tell_overrides(&sysroot);
        let change = Change {
            added: done.added,
            removed: done.removed,
        };
        let report = Shown::new(done.arguments, Some(change));
        context.finish(&report, self.apply.then_some(Apply::Reboot), sysroot)
    }
}
