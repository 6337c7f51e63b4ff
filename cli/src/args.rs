//! What can be written on the command line; one variant for each subcommand, whose own arguments are in its file.

use std::path::PathBuf;
use std::str::FromStr;

use cfs_core::ids::Algorithm;
use cfs_core::registry::Rate;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::cmd;

/// Updates an image-based Linux host from OCI container images, and goes back when an update was bad.
#[derive(Debug, Parser)]
#[command(
    name = "cfs-update",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXIT_CODES
)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(flatten)]
    pub boot: BootDir,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 bad usage, 3 refused by trust, 4 not enough space, \
5 registry or network, 6 busy (another run holds the lock), 77 nothing to do.";

/// Options that go with every command, before or after its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Physical root that holds composefs/ and state/ [default: /sysroot where there is one, else /]
    #[arg(long, global = true, value_name = "DIR")]
    pub sysroot: Option<PathBuf>,
    /// Print the result as JSON; the same as --format json
    #[arg(long, global = true)]
    pub json: bool,
    /// How to print the result
    #[arg(long, global = true, value_enum, value_name = "FORMAT", conflicts_with = "json")]
    pub format: Option<Format>,
    /// How to show progress, on standard error
    #[arg(long, global = true, value_enum, value_name = "HOW", default_value_t)]
    pub progress: Progress,
    /// Write progress as JSON lines to this open file descriptor instead
    #[arg(long, global = true, value_name = "FD", value_parser = clap::value_parser!(u32).range(3..))]
    pub progress_fd: Option<u32>,
    /// Say more; twice for debugging, three times for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors and the result
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Read settings below this folder instead of / (for tests)
    #[arg(long, global = true, hide = true, value_name = "DIR")]
    pub config_root: Option<PathBuf>,
}

impl Global {
    /// The form that results are printed in.
    pub fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            self.format.unwrap_or_default()
        }
    }
}

/// Where `$BOOT` is; accepted before and after the name of every command that uses it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BootDir {
    /// Folder of the boot partition, where it is not mounted at boot/ in the sysroot
    #[arg(long = "boot", value_name = "DIR", id = "boot_dir")]
    pub boot: Option<PathBuf>,
}

/// A digest algorithm on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AlgorithmArg {
    /// What mkcomposefs, ostree and podman use
    #[value(name = "fsverity-sha256-12", alias = "sha256")]
    Sha256,
    /// What bootc's initramfs wants
    #[value(name = "fsverity-sha512-12", alias = "sha512")]
    Sha512,
}

impl From<AlgorithmArg> for Algorithm {
    fn from(arg: AlgorithmArg) -> Self {
        match arg {
            AlgorithmArg::Sha256 => Self::Sha256,
            AlgorithmArg::Sha512 => Self::Sha512,
        }
    }
}

/// For commands that may make the repository.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct NewStore {
    /// Algorithm of the repository's digests, where it is yet to be made [default: as the settings say]
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    algorithm: Option<AlgorithmArg>,
}

impl NewStore {
    pub fn algorithm(self) -> Option<Algorithm> {
        self.algorithm.map(Algorithm::from)
    }
}

/// For commands that fetch into the store.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct SpaceArgs {
    /// Begin also where what is to be fetched cannot fit, as far as that is known beforehand
    #[arg(long)]
    pub ignore_space: bool,
}

/// For commands that fetch or send images.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Network {
    /// Bytes a second that are fetched and sent at most: 800K, 2M; none = no limit [default: as the settings say]
    #[arg(long, value_name = "RATE")]
    pub limit_rate: Option<LimitRate>,
}

/// A rate, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRate(pub Option<Rate>);

impl FromStr for LimitRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            rate => rate.parse().map(Some).map(Self),
        }
    }
}

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    #[value(alias = "humanreadable")]
    Human,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// The form of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// Bars on a terminal, lines elsewhere
    #[default]
    Auto,
    /// Bars
    Bars,
    /// Lines of text
    Plain,
    /// JSON lines, as bootc's --progress-fd writes them
    Json,
    /// Nothing; warnings still appear
    None,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Status(cmd::status::Status),
    Switch(cmd::switch::Switch),
    Upgrade(cmd::upgrade::Upgrade),
    Rollback(cmd::rollback::Rollback),
    Pin(cmd::pin::Pin),
    Unpin(cmd::pin::Unpin),
    Delete(cmd::pin::Delete),
    Kargs(cmd::kargs::Kargs),
    #[command(subcommand)]
    Install(cmd::install::Install),
    #[command(subcommand)]
    Etc(cmd::etc::Etc),
    #[command(subcommand)]
    Health(cmd::health::Health),
    #[command(subcommand)]
    Auto(cmd::auto::Auto),
    #[command(hide = true)]
    Finalize(cmd::finalize::Finalize),
    #[command(subcommand)]
    Image(cmd::image::Image),
    #[command(subcommand)]
    Key(cmd::key::Key),
    Gc(cmd::gc::Gc),
    Fsck(cmd::fsck::Fsck),
    Completions(cmd::completions::Completions),
    Man(cmd::man::Man),
}

impl Command {
    /// How this one uses the network, where it was said.
    pub fn network(&self) -> Network {
        match self {
            Self::Switch(command) => command.network,
            Self::Upgrade(command) => command.network,
            Self::Auto(command) => command.network(),
            Self::Fsck(command) => command.network,
            Self::Install(command) => command.network(),
            Self::Image(command) => command.network(),
            _ => Network::default(),
        }
    }

    /// Whether a boot or a shutdown runs it, and nobody is there to answer.
    pub fn is_unattended(&self) -> bool {
        match self {
            Self::Health(command) => command.is_check(),
            Self::Finalize(_) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_has_no_conflicting_arguments() {
        Args::command().debug_assert();
    }

    #[test]
    fn global_options_are_taken_before_and_after_the_command() {
        for line in [
            &["cfs-update", "--sysroot", "/s", "--json", "completions", "bash"][..],
            &["cfs-update", "completions", "bash", "--sysroot", "/s", "--json"],
        ] {
            let args = Args::try_parse_from(line).unwrap();
            assert_eq!(args.global.sysroot.as_deref(), Some(std::path::Path::new("/s")));
            assert_eq!(args.global.format(), Format::Json);
        }
    }

    #[test]
    fn contradicting_formats_are_refused() {
        let line = ["cfs-update", "--json", "--format", "yaml", "completions", "bash"];
        assert_eq!(Args::try_parse_from(line).unwrap_err().exit_code(), 2);
    }
}
