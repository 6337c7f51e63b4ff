//! One file per subcommand: its arguments, and a short `run` that calls one verb of the library and shows the result.

pub mod completions;
pub mod man;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::args::{Args, BootDir, Command, Global};
use crate::output::Output;
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
}

impl Context {
    fn new(global: &Global, boot: BootDir, output: Output) -> Result<Self> {
        let environment = Environment::of_process();
        let settings = Settings::load(global.config_root.as_deref().unwrap_or(Path::new("/")))?;
        let ui = Ui::new(global, !environment.no_color)?;
        let directives = environment.log.clone().unwrap_or_else(|| log_directives(global));
        ui.start_log(&directives)?;
        Ok(Self {
            output,
            ui,
            settings,
            environment,
            sysroot: global.sysroot.clone(),
            boot,
        })
    }
}

/// Runs the command of `args`.
pub fn run(args: Args, output: Output) -> Result<()> {
    match args.command {
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
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
