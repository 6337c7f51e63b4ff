//! `switch IMAGE`.

use std::path::Path;

use anyhow::Result;
use cfs_core::Error;
use cfs_core::reference::Reference;
use cfs_core::update::{self, Wishes};

use super::updated::Updated;
use super::{Context, forecast};
use crate::args::{BootDir, Network, NewStore, SpaceArgs};
use crate::metered;
use crate::reboot::Apply;

/// Follow another image from the next boot on
#[derive(Debug, clap::Args)]
pub struct Switch {
    /// Image: quay.io/org/os:41, docker://…, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE; also with @sha256:…
    image: String,
    /// Boot into it: reboot the machine, or with --apply=soft restart user space alone
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "reboot")]
    apply: Option<Apply>,
    /// Fetch it and keep it, for `upgrade --from-downloaded`; what is followed and boots next stays what it is
    #[arg(long, conflicts_with_all = ["apply", "dry_run"])]
    download_only: bool,
    /// Take an image that is older than the present one of the same name
    #[arg(long)]
    allow_downgrade: bool,
    /// Take an image that failed here before
    #[arg(long)]
    retry: bool,
    /// Only say what would be fetched, written and changed, and what is free
    #[arg(long, conflicts_with_all = ["apply", "allow_downgrade", "retry"])]
    dry_run: bool,
    #[command(flatten)]
    space: SpaceArgs,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    store: NewStore,
    #[command(flatten)]
    boot: BootDir,
}

impl Switch {
    pub fn run(self, context: &Context) -> Result<()> {
        let reference = reference(&self.image)?;
        if self.dry_run {
            return forecast::of_update(context, &self.boot, Some(&reference));
        }
        context.check_apply(self.apply.is_some())?;
        let sysroot = context.open_with(&self.boot, self.store.algorithm(), "switch")?;
        let wishes = Wishes {
            allow_downgrade: self.allow_downgrade,
            retry: self.retry,
            download_only: self.download_only,
            automatic: false,
        };
        let work = |sysroot: &_| update::switch(sysroot, &reference, wishes, &metered::Noting::new(&context.ui));
        let outcome = context.fetching(&sysroot, self.space, work)?;
        let updated = Updated::of(outcome)?;
        if updated.is_staged() {
            context.tell_overrides(&sysroot);
        }
        let apply = self.apply.filter(|_| updated.waits(&sysroot));
        context.finish(&updated, apply, sysroot)
    }
}

/// An image as the user wrote it; folders are taken from here, since what is recorded has to be found from anywhere.
pub fn reference(text: &str) -> cfs_core::Result<Reference> {
    let here = std::path::absolute(".").map_err(|e| Error::io("find", Path::new("."), e))?;
    Ok(text.parse::<Reference>()?.absolute(&here))
}
