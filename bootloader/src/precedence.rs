//! What goes before the order of entries: patterns in `loader.conf` and in EFI variables.
//!
//! Pure. systemd-boot takes the first entry that one of these matches, in this order: the variable for one boot, then
//! what is preferred (variable, file), then the default (variable, file); else the first entry of its menu. What is
//! preferred is passed over when it has no tries left, the others are not. All of it is the administrator's, and is only
//! told of.

use cfs_core::boot::Entries;

use crate::counter::CountedName;
use crate::loader_conf;
use crate::name::OwnName;

/// Where a pattern stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// EFI variable for the next boot alone.
    Once,
    /// EFI variable, passed over when its entry is bad.
    Preferred,
    /// EFI variable.
    Default,
    /// `preferred` of loader.conf.
    PreferredLine,
    /// `default` of loader.conf.
    DefaultLine,
}

impl Place {
    /// The EFI variable's name.
    pub fn variable(self) -> Option<&'static str> {
        match self {
            Self::Once => Some("LoaderEntryOneShot"),
            Self::Preferred => Some("LoaderEntryPreferred"),
            Self::Default => Some("LoaderEntryDefault"),
            Self::PreferredLine | Self::DefaultLine => None,
        }
    }

    /// What is to be said of a pattern there, given the entries in menu order.
    pub fn warning(self, pattern: &str, entries: &Entries) -> Option<String> {
        let effect = effect(self, pattern, entries)?;
        let there = match effect {
            Effect::Unseen => " where there is such an entry",
            _ => "",
        };
        let of = self.variable().unwrap_or_default();
        let harm = "keeps a new deployment from booting and a bad one from being left";
        Some(match self {
            Self::Once => format!(
                "the next boot, and only that one, takes {pattern} (EFI variable {of}){there} before any update; undo it \
                 with: bootctl set-oneshot ''"
            ),
            Self::Preferred => format!(
                "every boot takes {pattern} (EFI variable {of}){there} as long as it has tries left, which keeps a new \
                 deployment from booting; undo it with: bootctl set-preferred ''"
            ),
            Self::Default => {
                format!(
                    "every boot takes {pattern} (EFI variable {of}){there}, which {harm}; undo it with: bootctl set-default ''"
                )
            }
            Self::PreferredLine | Self::DefaultLine => line_warning(self, pattern, effect, harm),
        })
    }
}

/// What is to be said of a line of loader.conf.
fn line_warning(place: Place, pattern: &str, effect: Effect, harm: &str) -> String {
    let key = match place {
        Place::PreferredLine => "preferred",
        _ => "default",
    };
    let does = match effect {
        Effect::Saved => "may boot an old deployment after an update",
        Effect::Foreign | Effect::Unseen => "boots an entry that is not ours",
        Effect::Fixed if place == Place::PreferredLine => "keeps a new deployment from booting",
        Effect::Fixed => harm,
    };
    format!("loader.conf: {key} {pattern} {does}; remove the line, or write: {key} cfs-*")
}

/// What a pattern leads to, where that is not simply the newest entry of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// To what was chosen last in the menu.
    Saved,
    /// To some of our entries and not to later ones.
    Fixed,
    /// To an entry of somebody else.
    Foreign,
    /// To something that is no file among the entries: another system's boot loader, a kernel image of its own.
    Unseen,
}

fn effect(place: Place, pattern: &str, entries: &Entries) -> Option<Effect> {
    let newest = entries.ours.iter().find(|entry| entry.is_complete())?;
    if loader_conf::is_special(pattern) {
        return (place != Place::Once).then_some(Effect::Saved);
    }
    let matched = |file: &str| loader_conf::matches(pattern, &CountedName::parse(file).id());
    let ours = entries.ours.iter().filter(|entry| matched(&entry.file)).count();
    let others = entries.foreign.iter().any(|entry| matched(&entry.file));
    if ours > 0 {
        let stays = match place {
            Place::Once => matched(&newest.file),
            _ => loader_conf::is_glob(pattern) && ours == entries.ours.len(),
        };
        return (!stays).then_some(Effect::Fixed);
    }
    if others {
        return Some(Effect::Foreign);
    }
    // What named an entry of ours that is gone means nothing any more; no other entry ever has its name. Other files may
    // be on the EFI system partition, where that is not $BOOT.
    let is_gone = loader_conf::is_glob(pattern)
        || OwnName::parse(pattern).is_some()
        || place.variable().is_none() && pattern.to_ascii_lowercase().ends_with(".conf");
    (!is_gone).then_some(Effect::Unseen)
}

/// What is to be said where the entry that boots by default, `next`, is not the newest one of ours. `explained`: a line of
/// loader.conf was told of.
pub fn order_warning(entries: &Entries, next: &str, explained: bool) -> Option<String> {
    let found = entries.ours.iter().find(|entry| entry.file == next);
    if let Some(problem) = found.and_then(|entry| entry.problem.as_ref()) {
        return Some(format!(
            "{next} boots by default but is broken: {problem}; make another deployment boot next, or deploy this one again"
        ));
    }
    let newest = entries.ours.iter().filter(|entry| entry.works());
    let newest = newest.max_by_key(|entry| entry.generation).filter(|_| !explained)?;
    match found {
        None => Some(format!(
            "{next}, which is not ours, boots by default; remove it or give it another sort-key"
        )),
        Some(found) => (newest.generation != found.generation).then(|| {
            format!(
                "{next} boots by default, not {}, which is newer: one of the two was edited, `cfs-update fsck` says which",
                newest.file
            )
        }),
    }
}
