//! `image …`: the composefs tools, and container images in the shared store.

mod build;
mod container;
mod digest;
mod dump;
mod export;
pub(super) mod expose;
mod inspect;
mod lint;
pub(super) mod load;
mod ls;
mod mount;
mod objects;
mod pull;
mod scratch;
mod source;

use anyhow::Result;
use cfs_core::image::Versions;
use cfs_core::manifest::Platform;

use crate::args::Network;
use crate::cmd::Context;

/// Composefs images, and container images in the shared store
#[derive(Debug, clap::Subcommand)]
pub enum Image {
    Build(build::Build),
    Digest(digest::Digest),
    Dump(dump::Dump),
    Inspect(inspect::Inspect),
    Lint(lint::Lint),
    Pull(pull::Pull),
    Ls(ls::Ls),
    Rm(ls::Rm),
    Export(export::Export),
    Push(export::Push),
    Expose(expose::Expose),
    Mount(mount::Mount),
}

impl Image {
    /// How it uses the network.
    pub fn network(&self) -> Network {
        match self {
            Self::Pull(command) => command.network,
            Self::Export(command) => command.network,
            Self::Push(command) => command.network,
            _ => Network::default(),
        }
    }

    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Build(command) => command.run(context),
            Self::Digest(command) => command.run(context),
            Self::Dump(command) => command.run(context),
            Self::Inspect(command) => command.run(context),
            Self::Lint(command) => command.run(context),
            Self::Pull(command) => command.run(context),
            Self::Ls(command) => command.run(context),
            Self::Rm(command) => command.run(context),
            Self::Export(command) => command.run(context),
            Self::Push(command) => command.run(context),
            Self::Expose(command) => command.run(context),
            Self::Mount(command) => command.run(context),
        }
    }
}

/// Which format versions an image may have, as mkcomposefs takes them.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
struct VersionArgs {
    /// Lowest format version to write [default: 1, or 0 with --max-version]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1))]
    min_version: Option<u32>,
    /// Highest format version to write [default: 1, or 0 with --min-version]
    ///
    /// Never lower than --min-version. A version above the lowest is written only where the tree has a whiteout.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1))]
    max_version: Option<u32>,
}

impl VersionArgs {
    /// What is asked for; `None` where nothing is.
    fn given(self) -> Option<Versions> {
        if self.min_version.is_none() && self.max_version.is_none() {
            return None;
        }
        let min = self.min_version.unwrap_or(0);
        let max = self.max_version.unwrap_or(0).max(min);
        Some(Versions { min, max })
    }

    fn versions(self) -> Versions {
        self.given().unwrap_or_default()
    }
}

/// Which image of an index is taken.
#[derive(Clone, Debug, Default, clap::Args)]
struct PlatformArgs {
    /// Take the image for another machine than this one: OS/ARCH[/VARIANT], such as linux/arm64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
}

impl PlatformArgs {
    fn platform(self) -> Platform {
        self.platform.unwrap_or_else(Platform::host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giving_one_version_leaves_the_other_as_mkcomposefs_does() {
        let versions = |min_version, max_version| {
            VersionArgs {
                min_version,
                max_version,
            }
            .versions()
        };
        assert_eq!(versions(None, None), Versions { min: 1, max: 1 });
        assert_eq!(versions(Some(0), None), Versions { min: 0, max: 0 });
        assert_eq!(versions(Some(1), None), Versions { min: 1, max: 1 });
        assert_eq!(versions(None, Some(1)), Versions { min: 0, max: 1 });
        assert_eq!(versions(None, Some(0)), Versions { min: 0, max: 0 });
        assert_eq!(versions(Some(1), Some(0)), Versions { min: 1, max: 1 });
    }
}
