//! `upgrade`.

use anyhow::Result;
use cfs_core::Error;
use cfs_core::outlook::{self, News};
use cfs_core::update::{self, Wishes};
use serde::Serialize;

use super::updated::{Updated, did_not_stay};
use super::{Context, forecast};
use crate::args::{BootDir, Network, SpaceArgs};
use crate::metered;
use crate::output::Report;
use crate::reboot::Apply;

/// Take the newest version of the followed image from the next boot on
///
/// Exit code 77 if there is nothing new.
#[derive(Debug, clap::Args)]
pub struct Upgrade {
    /// Only ask whether there is a newer one: exit code 0 = there is, 77 = there is none
    #[arg(long, conflicts_with_all = ["apply", "allow_downgrade", "retry"])]
    check: bool,
    /// Boot into it: reboot the machine, or with --apply=soft restart user space alone
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "reboot")]
    apply: Option<Apply>,
    /// Fetch it and keep it; what boots next stays what it is. Exit code 77 if it is here already
    #[arg(long, conflicts_with_all = ["check", "apply", "dry_run"])]
    download_only: bool,
    /// Take what --download-only fetched, and ask no registry
    #[arg(long, conflicts_with_all = ["check", "dry_run", "download_only"])]
    from_downloaded: bool,
    /// Take an image that is older than the present one
    #[arg(long)]
    allow_downgrade: bool,
    /// Take an image that failed here before
    #[arg(long)]
    retry: bool,
    /// Only say what would be fetched, written and changed, and what is free. Exit code 77 if nothing
    #[arg(long, conflicts_with_all = ["check", "apply", "allow_downgrade", "retry"])]
    dry_run: bool,
    #[command(flatten)]
    space: SpaceArgs,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    available: bool,
    image: String,
    digest: String,
    /// Why `upgrade` refuses it without `--retry`.
    failed: Option<String>,
}

impl Report for Check {
    fn human(&self) -> String {
        let text = format!("Update available: {}\n{:>16}: {}\n", self.image, "Digest", self.digest);
        match &self.failed {
            Some(why) => format!("{text}{:>16}: {why}\n", "Failed"),
            None => text,
        }
    }
}

impl Upgrade {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.check {
            return self.check(context);
        }
        if self.dry_run {
            return forecast::of_update(context, &self.boot, None);
        }
        context.check_apply(self.apply.is_some())?;
        let sysroot = context.open(&self.boot, "upgrade")?;
        let wishes = Wishes {
            allow_downgrade: self.allow_downgrade,
            retry: self.retry,
            download_only: self.download_only,
            automatic: false,
        };
        let work = |sysroot: &_| match self.from_downloaded {
            true => update::from_downloaded(sysroot, wishes, &context.ui),
            false => update::upgrade(sysroot, wishes, &metered::Noting::new(&context.ui)),
        };
        let updated = Updated::of(context.fetching(&sysroot, self.space, work)?)?;
        if updated.is_staged() {
            context.tell_overrides(&sysroot);
        }
        let apply = self.apply.filter(|_| updated.waits(&sysroot));
        if updated.is_new() || apply.is_some() {
            return context.finish(&updated, apply, sysroot);
        }
        context.show_document(&updated)?;
        Err(Error::Nothing(updated.human().trim_end().into()).into())
    }

    fn check(self, context: &Context) -> Result<()> {
        let News {
            reference,
            top,
            newer,
            failed,
        } = outlook::check(&context.look_anyway(&self.boot)?, &context.ui)?;
        let check = Check {
            available: newer,
            image: reference.clone(),
            digest: top.to_string(),
            failed: failed.as_ref().map(did_not_stay),
        };
        if newer {
            return context.show(&check);
        }
        context.show_document(&check)?;
        Err(Error::Nothing(format!("no update: {reference} is {top} still")).into())
    }
}
