//! Everything between firmware and a mounted root.
//!
//! One file for each boot loader; this one holds the only match on which it is. Formats (`bls`, `counter`, `name`,
//! `loader_conf`, `precedence`) are pure; `publish` and the loaders write, through [`cfs_core::sys::fs::Fs`] only, so that tests can
//! cut the power after each operation.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and break files as they like")
)]

pub mod bls;
pub mod counter;
pub mod name;
pub mod loader_conf;
mod precedence;
pub mod esp;
pub mod variables;
mod publish;
mod install;
mod listing;
mod upkeep;
pub mod sdboot;

use std::str::FromStr;
use std::sync::Arc;

use cfs_core::boot::Bootloader;
use cfs_core::error::{Error, Result};
use cfs_core::sys::fs::Fs;

pub use cfs_core::boot::cmdline;

use esp::BootDir;
use sdboot::SdBoot;

/// Which boot loader reads our entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// systemd-boot, or another one that reads Boot Loader Specification entries and counts tries in file names.
    #[default]
    SystemdBoot,
}

impl FromStr for Kind {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "systemd-boot" | "systemd" | "sd-boot" => Ok(Self::SystemdBoot),
            _ => Err(Error::Usage(format!(
                "{s:?} is no boot loader known here; write systemd-boot"
            ))),
        }
    }
}

/// The boot loader of this kind whose `$BOOT` is here.
pub fn open(kind: Kind, boot: BootDir, fs: Arc<dyn Fs>) -> Box<dyn Bootloader> {
    match kind {
        Kind::SystemdBoot => Box::new(SdBoot::new(boot, fs)),
    }
}

/// Where an image for this architecture keeps the boot loader of this kind, best first.
pub fn programs(kind: Kind, architecture: &str) -> Vec<String> {
    match kind {
        Kind::SystemdBoot => install::programs(architecture),
    }
}
