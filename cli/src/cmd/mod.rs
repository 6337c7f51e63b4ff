//! One file per subcommand: its arguments, and a short `run` that calls one verb of the library and shows the result.

pub mod auto;
pub mod completions;
pub mod etc;
pub mod finalize;
pub mod fsck;
pub mod gc;
pub mod health;
pub mod image;
pub mod install;
pub mod kargs;
pub mod key;
pub mod man;
pub mod pin;
pub mod rollback;
pub mod status;
pub mod switch;
pub mod upgrade;

mod forecast;
mod sysroot;
mod updated;

use std::path::PathBuf;

use anyhow::Result;
use cfs_core::monitor::{Event, Monitor};
use cfs_core::registry::{self, Limit};
use cfs_core::sysroot::Sysroot;

use crate::args::{Args, BootDir, Command, Global};
use crate::output::{Output, Report};
use crate::reboot::Apply;
use crate::settings::{Environment, Settings};
use crate::ui::Ui;

/// What every command that does something is given.
pub struct Context {
    pub output: Output,
    pub ui: Ui,
    pub settings: Settings,
    pub environment: Environment,
    sysroot: Option<PathBuf>,
    boot: BootDir,
    /// One for the whole run, whatever it asks.
    limit: Option<Limit>,
    pub config_root: PathBuf,
}

impl Context {
    fn new(global: &Global, boot: BootDir, command: &Command, output: Output) -> Result<Self> {
        let environment = Environment::of_process();
        let config_root = global.config_root.clone().unwrap_or_else(|| "/".into());
        let (settings, problems) = match command.is_unattended() {
            true => Settings::load_anyway(&config_root),
            false => (Settings::load(&config_root)?, Vec::new()),
        };
        let ui = Ui::new(global, !environment.no_color)?;
        let directives = environment.log.clone().unwrap_or_else(|| log_directives(global));
        ui.start_log(&directives)?;
        for problem in problems {
            ui.event(Event::Warning(format!("goes on without these settings: {problem}")));
        }
        let network = command.network();
        let rate = network.limit_rate.map_or(settings.registry.limit_rate, |given| given.0);
        Ok(Self {
            output,
            ui,
            settings,
            environment,
            sysroot: global.sysroot.clone(),
            boot,
            limit: rate.map(Limit::new),
            config_root,
        })
    }

    /// Prints a result, where no progress is in its way.
    pub fn show<T: Report>(&self, report: &T) -> Result<()> {
        self.ui.finish(true);
        self.output.show(report)
    }

    /// Whether the result is text for people.
    pub fn is_human(&self) -> bool {
        self.output.is_human()
    }

    /// Prints a result that says "nothing to do": as a document, since people are told so by the failure.
    pub fn show_document<T: Report>(&self, report: &T) -> Result<()> {
        if self.is_human() { Ok(()) } else { self.show(report) }
    }

    /// Prints a result; then boots into it, if that was asked for, also where it could not be printed.
    pub fn finish<T: Report>(&self, report: &T, apply: Option<Apply>, sysroot: Sysroot) -> Result<()> {
        image::expose::refresh(self, &sysroot);
        let shown = self.show(report);
        if let Some(apply) = apply {
            apply.run(sysroot, &self.ui)?;
        }
        shown
    }

    /// Says of an entry that was just made to boot next what makes the boot loader take something else.
    pub fn tell_overrides(&self, sysroot: &Sysroot) {
        let entries = sysroot.bootloader().entries().unwrap_or_default();
        for why in entries.overrides {
            self.ui
                .event(Event::Warning(format!("the new boot entry may be passed over: {why}")));
        }
    }

    /// For registries, as settings and environment say.
    pub fn registry(&self) -> registry::Options {
        registry::Options {
            limit: self.limit.clone(),
            ..self.settings.registry_options(&self.environment)
        }
    }

    /// Layers to import at once; 0 = the library's choice.
    pub fn threads(&self) -> usize {
        self.settings.store.threads.unwrap_or(0)
    }
}

/// Runs the command of `args`.
pub fn run(args: Args, output: Output) -> Result<()> {
    let command = match args.command {
        Command::Completions(command) => return command.run(),
        Command::Man(command) => return command.run(),
        command => command,
    };
    let context = Context::new(&args.global, args.boot, &command, output)?;
    let result = with_context(command, &context);
    context.ui.finish(result.is_ok());
    result
}

fn with_context(command: Command, context: &Context) -> Result<()> {
    match command {
        Command::Completions(_) | Command::Man(_) => Ok(()),
        Command::Status(command) => command.run(context),
        Command::Switch(command) => command.run(context),
        Command::Upgrade(command) => command.run(context),
        Command::Rollback(command) => command.run(context),
        Command::Pin(command) => command.run(context),
        Command::Unpin(command) => command.run(context),
        Command::Delete(command) => command.run(context),
        Command::Image(command) => command.run(context),
        Command::Install(command) => command.run(context),
        Command::Kargs(command) => command.run(context),
        Command::Key(command) => command.run(context),
        Command::Etc(command) => command.run(context),
        Command::Health(command) => command.run(context),
        Command::Auto(command) => command.run(context),
        Command::Finalize(command) => command.run(context),
        Command::Gc(command) => command.run(context),
        Command::Fsck(command) => command.run(context),
    }
}

fn log_directives(global: &Global) -> String {
    let level = match global.verbose {
        0 if global.quiet => "error",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => return "trace".into(),
    };
    format!("warn,cfs_core={level},cfs_bootloader={level},cfs_update={level}")
}
