//! What an update would find and do, asked without doing it: `upgrade --check` and `--dry-run`.
//!
//! Invariant: nothing is written.

use crate::changes::{self, Changes};
use crate::deployment::{Failed, Origin};
use crate::error::Result;
use crate::expected;
use crate::forecast::{Forecast, Way};
use crate::health;
use crate::ids::ManifestDigest;
use crate::monitor::{Event, Monitor};
use crate::reference::Reference;
use crate::registry::Registry;
use crate::sysroot::{Known, Sysroot};
use crate::update::{Wishes, followed};

/// What there is to follow.
#[derive(Clone, Debug)]
pub struct News {
    /// The followed reference.
    pub reference: String,
    /// What it leads to now.
    pub top: ManifestDigest,
    /// Whether that differs from what boots next, or that does not boot or holds other files.
    pub newer: bool,
    /// It failed here before, so that an update refuses it.
    pub failed: Option<Failed>,
}

/// What an update would do.
#[derive(Debug)]
pub struct Outlook {
    /// What would be fetched and written.
    pub forecast: Forecast,
    /// What would be changed; `None` where that is not known before the layers are here.
    pub changes: Option<Changes>,
    /// The image failed here before, so that the update would refuse it.
    pub failed: Option<Failed>,
}

/// Asks whether there is something new, and changes nothing.
pub fn check(sysroot: &Sysroot, monitor: &dyn Monitor) -> Result<News> {
    let known = sysroot.known()?;
    let (followed, reference) = followed(&known)?;
    let registry = Registry::open(&reference, &sysroot.options.registry)?;
    let top = registry.resolve(monitor)?;
    let is_it = |o: &Origin| o.top.unwrap_or(o.manifest) == top && sysroot.is_sound(followed);
    let newer = !followed.origin().is_some_and(is_it);
    Ok(News {
        reference: reference.to_string(),
        failed: failed(sysroot, &known, &top)?.filter(|_| newer),
        top,
        newer,
    })
}

/// The failure that keeps an image away.
fn failed(sysroot: &Sysroot, known: &[Known], digest: &ManifestDigest) -> Result<Option<Failed>> {
    let failures = health::failed(sysroot, known)?;
    Ok(failures.of(digest).filter(|f| Wishes::default().heed(f)).cloned())
}

/// What following `reference`, or else the newest of the followed image, would do; `None` where that boots next
/// already. `line`: what the kernel that runs was booted with. Changes nothing.
pub fn forecast(
    sysroot: &Sysroot,
    reference: Option<&Reference>,
    line: &[String],
    monitor: &dyn Monitor,
) -> Result<Option<Outlook>> {
    let known = sysroot.known()?;
    let reference = match reference {
        Some(reference) => reference.clone(),
        None => followed(&known)?.1,
    };
    let registry = Registry::open(&reference, &sysroot.options.registry)?;
    let image = registry.image(&sysroot.options.platform, monitor)?;
    if Sysroot::next(&known).is_some_and(|k| sysroot.is_sound(k) && k.is_of(&reference, &image.digest)) {
        return Ok(None);
    }
    let bound = expected::bound(sysroot, &known, monitor)?;
    let store = &sysroot.store;
    let mut forecast = Forecast::new(Some(store), store.path(), (&registry, &image), &bound, monitor)?;
    let here = forecast.image.layers.iter().all(|layer| layer.way == Way::Here);
    let changes = here.then(|| changes::of(sysroot, &known, &image, line)).transpose();
    let changes = changes.unwrap_or_else(|error| {
        monitor.event(Event::Warning(format!("what would be changed cannot be said: {error}")));
        None
    });
    forecast.boot = match &changes {
        Some(changes) => Some(changes.boot.clone()),
        None => expected::boot(sysroot, &known)?,
    };
    Ok(Some(Outlook {
        failed: failed(sysroot, &known, &image.digest)?,
        forecast,
        changes,
    }))
}
