//! `health check`, `health good`, `health bad`: what a boot shows of a deployment.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cfs_bootloader::variables;
use cfs_core::Error;
use cfs_core::error::one_line;
use cfs_core::finalize::{self, Missed};
use cfs_core::health::{self, HealthReport, Limits, Outcome, Ran, Verdict};
use cfs_core::ids::DeploymentId;
use cfs_core::monitor::{Event, Monitor};
use cfs_core::sys::fs::{self, Fs, RealFs};
use cfs_core::sysroot::Sysroot;
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::journal;
use crate::output::Report;
use crate::reboot::{self, RUN};

/// systemd's own program for marking entries, and the EFI variable by which systemd-boot says that it counts this
/// entry.
const BLESS_BOOT: &str = "usr/lib/systemd/systemd-bless-boot";
const COUNTED: &str = "LoaderBootCountPath";

/// In /run, for the units that reboot where no health check comes to an end (docs/boot.md): the checks have begun, and
/// each has a time limit.
const BEGUN: &str = "health-begun";
/// They have ended, and what follows from them was done.
const JUDGED: &str = "health-judged";

/// So many paths are named in a note; there may be as many as /etc has.
const NAMED: usize = 200;

/// Whether this boot is good
#[derive(Debug, clap::Subcommand)]
pub enum Health {
    Check(Check),
    Good(Good),
    Bad(Bad),
}

/// Run the health checks and mark the running deployment as they say
///
/// Exit code 1 if a required check fails.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Reboot where that leads to the last good deployment
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    boot: BootDir,
}

/// Mark the running deployment as good: its tries are counted no longer
#[derive(Debug, clap::Args)]
pub struct Good {
    #[command(flatten)]
    boot: BootDir,
}

/// Mark the running deployment as bad: another one boots next, and its image is not installed again by itself
#[derive(Debug, clap::Args)]
pub struct Bad {
    /// Why, for `status`
    #[arg(long, value_name = "TEXT", default_value = "marked as bad by the administrator")]
    reason: String,
    /// Reboot into the other one
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    boot: BootDir,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    /// `good`, `bad` or `unknown`, where no deployment of ours runs.
    result: &'static str,
    verdict: String,
    checks: Vec<Ran>,
    notes: Vec<String>,
}

impl Report for Checked {
    fn human(&self) -> String {
        let notes = self.notes.iter().map(|note| format!("Note: {note}\n"));
        notes.collect::<String>() + &format!("This boot is {}: {}\n", self.result, self.verdict)
    }
}

impl Health {
    /// Whether it is the one that each boot runs.
    pub fn is_check(&self) -> bool {
        matches!(self, Self::Check(_))
    }

    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Check(command) => command.run(context),
            Self::Good(command) => command.run(context),
            Self::Bad(command) => command.run(context),
        }
    }
}

impl Check {
    fn run(self, context: &Context) -> Result<()> {
        context.check_apply(self.apply)?;
        let set = &context.settings.health;
        let limits = Limits {
            time: set.timeout,
            attempts: set.attempts,
            pause: set.pause,
        };
        self.note(BEGUN);
        let checks = health::find(&context.config_root)?;
        let ran = health::run(&checks, limits, &mut |ran| context.ui.event(event(ran)));
        if !context.has_repository()? {
            return conclude(context, &HealthReport::new(None, None, ran), &Verdict::NotOurs);
        }
        let mut report = HealthReport::new(None, boot_id()?, ran);
        let by_systemd = marks_itself(&context.config_root);
        let verdict = match self.judge(context, &mut report, by_systemd) {
            // The checks have the last word, not what is wrong with the store or with notes about them.
            Err(e) if by_systemd && report.is_good() => {
                self.note(JUDGED);
                return context.show(&unnoted(&report, &e));
            }
            verdict => verdict?,
        };
        let shown = conclude(context, &report, &verdict);
        if self.apply && matches!(verdict, Verdict::GoBack { .. }) {
            reboot::restart(false)?;
        }
        self.note(JUDGED);
        shown
    }

    /// The verdict on what was found; what could not be written down is among the notes.
    fn judge(&self, context: &Context, report: &mut HealthReport, by_systemd: bool) -> Result<Verdict> {
        let sysroot = context.open_to_mark(&self.boot, "health check")?;
        report.id = sysroot.booted();
        let mut lost = Vec::new();
        match arrived(&sysroot) {
            Ok(notes) => report.notes = notes,
            Err(e) => report.notes.push(format!("the last merge of /etc: {e:#}")),
        }
        let verdict = health::judge_anyway(&sysroot, report, by_systemd, &mut lost);
        report
            .notes
            .extend(lost.iter().map(|e| format!("could not be written down: {e}")));
        // Names mean the images of the system that runs now.
        super::image::expose::refresh(context, &sysroot);
        if let Ok(Verdict::GoBack { to, why }) = &verdict {
            journal::rolled_back(&sysroot, to, why);
        }
        Ok(verdict?)
    }

    /// For other units of the running system.
    fn note(&self, name: &str) {
        if !self.apply {
            return;
        }
        let written = RealFs
            .create_dir(Path::new(RUN), 0o755)
            .and_then(|()| fs::replace(&RealFs, &Path::new(RUN).join(name), 0o644, b""));
        if let Err(e) = written {
            tracing::warn!("{e}");
        }
    }
}

impl Good {
    fn run(self, context: &Context) -> Result<()> {
        let sysroot = context.open_to_mark(&self.boot, "health good")?;
        let verdict = health::approve(&sysroot)?;
        if verdict == Verdict::NotOurs {
            return Err(nothing_runs().into());
        }
        let report = HealthReport::new(sysroot.booted(), boot_id()?, Vec::new());
        conclude(context, &report, &verdict)
    }
}

impl Bad {
    fn run(self, context: &Context) -> Result<()> {
        context.check_apply(self.apply)?;
        let sysroot = context.open_to_mark(&self.boot, "health bad")?;
        let known = sysroot.known()?;
        let id = sysroot.booted().ok_or_else(nothing_runs)?;
        let mut lost = Vec::new();
        let verdict = health::condemn(&sysroot, &known, id, &self.reason, &mut lost)?;
        for error in lost {
            let what = Event::Warning(format!("could not be written down: {error}"));
            context.ui.event(what);
        }
        if let Verdict::GoBack { to, .. } = &verdict {
            journal::rolled_back(&sysroot, to, &self.reason);
        }
        drop(sysroot);
        let Verdict::GoBack { to, .. } = &verdict else {
            let why = "no other deployment could boot, so it stays as it is";
            let id = id.short();
            return Err(Error::Deployment { id, why: why.into() }.into());
        };
        let shown = context.show(&Checked {
            result: "bad",
            verdict: leads_to(*to, Some(id)),
            checks: Vec::new(),
            notes: Vec::new(),
        });
        if self.apply {
            reboot::restart(true)?;
        }
        shown
    }
}

/// A good boot that systemd-bless-boot marks, though nothing could be noted of it.
fn unnoted(report: &HealthReport, error: &anyhow::Error) -> Checked {
    Checked {
        result: "good",
        verdict: "every required check passed, and systemd-bless-boot marks its entry".into(),
        checks: report.checks.clone(),
        notes: vec![format!("nothing else could be done: {error:#}")],
    }
}

fn nothing_runs() -> Error {
    Error::Deployment {
        id: "booted".into(),
        why: "no deployment of this sysroot runs, so there is none to be marked".into(),
    }
}

/// One line for the journal.
fn event(ran: &Ran) -> Event {
    let name = &ran.check;
    let kind = if ran.required { "" } else { " (wanted)" };
    match &ran.outcome {
        Outcome::Passed => Event::Note(format!("check {name}{kind}: passed")),
        Outcome::Failed { why } => {
            let attempts = ran.attempts;
            Event::Warning(format!("check {name}{kind}: failed, {attempts} times: {why}"))
        }
        Outcome::Skipped { why } => Event::Warning(format!("check {name}{kind}: not run: {why}")),
    }
}

/// The update has arrived: what is to be said of the way, once; the staged note has done its work.
fn arrived(sysroot: &Sysroot) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if let Some(missed) = finalize::missed(sysroot)? {
        let there = sysroot.deployments().layout().etc(&missed.from);
        notes.push(not_merged(&there, missed));
    }
    finalize::told(sysroot)?;
    Ok(notes)
}

/// `there`: the /etc that was not merged again.
fn not_merged(there: &Path, missed: Missed) -> String {
    let list = |paths: &[PathBuf]| {
        let shown = paths.iter().take(NAMED);
        let shown = shown.map(|path| Path::new("/etc").join(path).display().to_string());
        let more = match paths.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        one_line(&shown.collect::<Vec<_>>().join(", ")) + &more
    };
    let mut note = "/etc was not merged again when the machine went down".to_owned();
    if let Some(why) = missed.why {
        note += &format!(" ({why})");
    }
    note += &match (missed.files.is_empty(), missed.removed.is_empty()) {
        (true, true) => format!("; look at what changed in {}", there.display()),
        (true, false) => String::new(),
        (false, _) => format!("; look at {} in {}", list(&missed.files), there.display()),
    };
    if !missed.removed.is_empty() {
        note += &format!("; removed there, and still here: {}", list(&missed.removed));
    }
    note
}

/// Shows what was found; a bad boot is a failure.
fn conclude(context: &Context, report: &HealthReport, verdict: &Verdict) -> Result<()> {
    let (result, text) = match verdict {
        Verdict::NotOurs => match report.failure() {
            None => (
                "good",
                "no deployment of this sysroot runs, so there was none to be marked".into(),
            ),
            Some(why) => ("bad", why),
        },
        Verdict::StillGood => ("good", "as it was before".into()),
        Verdict::Good { entry, by_systemd } => match by_systemd {
            true => ("good", format!("systemd-bless-boot marks {entry}")),
            false => ("good", format!("its entry is {entry} now")),
        },
        Verdict::GoBack { to, why } => ("bad", format!("{why}; {}", leads_to(*to, report.id))),
        Verdict::Alone { why } => ("bad", format!("{why}; no other deployment could boot, so it stays")),
        Verdict::NoLongerGood { why } => ("bad", format!("{why}; it was good before, so it stays")),
    };
    let checked = Checked {
        result,
        verdict: text,
        checks: report.checks.clone(),
        notes: report.notes.clone(),
    };
    if result == "good" {
        return context.show(&checked);
    }
    if context.is_human() {
        for note in checked.notes.iter().cloned() {
            context.ui.event(Event::Warning(note));
        }
    }
    context.show_document(&checked)?;
    let id = report.id.map_or_else(|| "this boot".into(), |id| id.short());
    let why = checked.verdict;
    Err(Error::Deployment { id, why }.into())
}

/// Where a bad boot leads.
fn leads_to(to: DeploymentId, running: Option<DeploymentId>) -> String {
    match running == Some(to) {
        true => "it boots next with the kernel arguments that it booted well with before".into(),
        false => format!("deployment {to} boots next"),
    }
}

/// Whether systemd-bless-boot will mark the entry, once all that have a say are heard: not after a soft reboot, when
/// the entry that the boot loader counted is another one.
fn marks_itself(root: &Path) -> bool {
    let counted = variables::path(&root.join(variables::FOLDER), COUNTED);
    fs::exists(&root.join(BLESS_BOOT)) && fs::exists(&counted) && !reboot::was_soft()
}

pub fn boot_id() -> Result<Option<String>> {
    let text = fs::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 100)?;
    Ok(text.map(|text| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_merged_is_named_on_one_line_of_some_length() {
        let from = "0".repeat(64).parse().unwrap();
        let note = |files: &[&str], removed: &[&str], why: Option<&str>| {
            let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
            let missed = Missed {
                from,
                files: paths(files),
                removed: paths(removed),
                why: why.map(str::to_owned),
            };
            let note = not_merged(Path::new("/there/etc"), missed);
            note.strip_prefix("/etc was not merged again when the machine went down")
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            note(&["a", "b\nc"], &["d"], None),
            "; look at /etc/a, /etc/b\\nc in /there/etc; removed there, and still here: /etc/d"
        );
        assert_eq!(note(&[], &["d"], None), "; removed there, and still here: /etc/d");
        assert_eq!(
            note(&[], &[], Some("why")),
            " (why); look at what changed in /there/etc"
        );
        let many = vec!["x"; NAMED + 3];
        assert!(note(&many, &[], None).ends_with("/etc/x and 3 more in /there/etc"));
        assert_eq!(note(&many, &[], None).matches("/etc/x").count(), NAMED);
    }
}
