//! `auto run` and `auto status`: what the timer does.

use anyhow::Result;
use cfs_core::Error;
use cfs_core::monitor::{Event, Monitor};
use cfs_core::outlook;
use cfs_core::sysroot::Sysroot;
use cfs_core::update::{self, Outcome, Wishes};
use serde::Serialize;

use super::Context;
use super::updated::Updated;
use crate::args::{BootDir, Network, SpaceArgs};
use crate::metered::{self, Connection};
use crate::output::Report;
use crate::reboot::Apply;
use crate::settings::Metered;

/// Automatic updates
#[derive(Debug, clap::Subcommand)]
pub enum Auto {
    Run(Run),
    Status(Status),
}

/// Update as the settings say; what cfs-update-auto.timer starts
///
/// Exit code 77 if there is nothing to do, also where there is something new that is not fetched over a metered
/// connection.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    network: Network,
    #[command(flatten)]
    boot: BootDir,
}

/// Show what automatic updates do here
#[derive(Debug, clap::Args)]
pub struct Status;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    enabled: bool,
    apply: bool,
    download_only: bool,
    metered: Metered,
    connection: Connection,
    /// What is new is not fetched now.
    waits: bool,
}

impl Report for Policy {
    fn human(&self) -> String {
        let what = match (self.enabled, self.download_only, self.apply) {
            (false, ..) => "do nothing; `enabled = true` in [auto] turns them on",
            (true, true, _) => "fetch what is new; `upgrade --from-downloaded` stages it",
            (true, false, false) => "stage what is new; it runs after the next reboot",
            (true, false, true) => "stage what is new and reboot into it",
        };
        let connection = match (self.waits, self.connection, self.metered) {
            (true, ..) => "The connection is metered: what is new is fetched when it is not\n",
            (false, Connection::Metered, Metered::Allow) => "The connection is metered; they fetch all the same\n",
            _ => "",
        };
        format!("Automatic updates {what}\n{connection}")
    }
}

impl Auto {
    /// How it uses the network.
    pub fn network(&self) -> Network {
        match self {
            Self::Run(command) => command.network,
            Self::Status(Status) => Network::default(),
        }
    }

    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Run(command) => command.run(context),
            Self::Status(Status) => {
                let auto = &context.settings.auto;
                let connection = metered::connection();
                context.show(&Policy {
                    enabled: auto.enabled,
                    apply: auto.applies(),
                    download_only: auto.download_only,
                    metered: auto.metered,
                    connection,
                    waits: auto.enabled && waits(auto.metered, connection),
                })
            }
        }
    }
}

impl Run {
    fn run(self, context: &Context) -> Result<()> {
        let auto = &context.settings.auto;
        if !auto.enabled {
            return Err(Error::Nothing("automatic updates are off: `enabled = false` in [auto]".into()).into());
        }
        context.check_apply(auto.applies())?;
        // Before the lock is taken: who does not answer keeps no other run from working.
        let waits = waits(auto.metered, metered::connection());
        let sysroot = context.open(&self.boot, "auto run")?;
        if waits && let Some(why) = news(&sysroot, context)? {
            if auto.applies() && has_staged(&sysroot)? {
                context.ui.event(Event::Note(why));
                return Apply::Reboot.run(sysroot, &context.ui);
            }
            return Err(Error::Nothing(why).into());
        }
        let wishes = Wishes {
            automatic: true,
            download_only: auto.download_only,
            ..Wishes::default()
        };
        let work = |sysroot: &_| update::upgrade(sysroot, wishes, &context.ui);
        let outcome = context.fetching(&sysroot, SpaceArgs::default(), work)?;
        if let Outcome::FailedBefore(failed) = &outcome {
            let why = format!("{} is left alone: {}", failed.digest, failed.why);
            return Err(Error::Nothing(why).into());
        }
        let updated = Updated::of(outcome)?;
        if updated.is_staged() {
            context.tell_overrides(&sysroot);
        }
        let apply = auto
            .applies()
            .then_some(Apply::Reboot)
            .filter(|_| updated.waits(&sysroot));
        if updated.is_new() || apply.is_some() {
            return context.finish(&updated, apply, sysroot);
        }
        context.show_document(&updated)?;
        Err(Error::Nothing(updated.human().trim_end().into()).into())
    }
}

/// Whether nothing is fetched now.
fn waits(setting: Metered, connection: Connection) -> bool {
    setting == Metered::Wait && connection == Connection::Metered
}

/// What is new and has to wait. Asking costs one request.
fn news(sysroot: &Sysroot, context: &Context) -> Result<Option<String>> {
    let news = outlook::check(sysroot, &context.ui)?;
    let why = || {
        format!(
            "{} has an update, {}, and the connection is metered: it is fetched when it is not; `cfs-update upgrade` fetches \
             it now, `metered = \"allow\"` in [auto] always",
            news.reference, news.top
        )
    };
    Ok(news.newer.then(why))
}

/// Whether an earlier update waits to be booted into.
fn has_staged(sysroot: &Sysroot) -> Result<bool> {
    let standing: Vec<_> = sysroot.known()?.into_iter().map(|known| known.standing).collect();
    Ok(sysroot.booted().is_some() && sysroot.roles(&standing).staged.is_some())
}
