//! `image expose`: images of the store in podman, without copying them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cfs_core::error::Kind as ErrorKind;
use cfs_core::expose::{self, Change, Shelf, Shown, Wanted};
use cfs_core::monitor::{Event, Monitor};
use cfs_core::podman::Places;
use cfs_core::sys::fs::{self, Fs, RealFs};
use cfs_core::sysroot::Sysroot;
use cfs_core::{Error, Result as CoreResult};
use serde::Serialize;

use super::ls::DEPLOYMENT;
use crate::cmd::Context;
use crate::output::Report;

const CONF: &str = "/etc/containers/storage.conf";
/// podman reads it where the other is not there.
const VENDOR: &str = "/usr/share/containers/storage.conf";
/// Where a system that runs has its objects.
const INSTALLED: &str = "/sysroot/composefs/objects";
const CONF_LIMIT: u64 = 1 << 20;

/// Show the store's images and the running system to podman, without copying them
///
/// Makes a read-only additional image store whose files are the store's own objects, and enters it in podman's
/// storage.conf. `image pull`, `image rm` and `gc` keep it up to date from then on.
#[derive(Debug, clap::Args)]
pub struct Expose {
    /// podman's settings; /etc/containers/storage.conf unless --sysroot is that of another system
    #[arg(long, value_name = "FILE")]
    storage_conf: Option<PathBuf>,
    /// Change no settings of podman
    #[arg(long, conflicts_with = "storage_conf")]
    no_storage_conf: bool,
    /// Show them no longer
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Exposed {
    store: String,
    images: Vec<Image>,
    /// The file of podman's settings that names the store.
    storage_conf: Option<String>,
    /// It was changed.
    changed: bool,
    removed: bool,
    /// The line for it, where it was not changed.
    by_hand: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    id: String,
    image_digest: String,
    names: Vec<String>,
}

impl Report for Exposed {
    fn human(&self) -> String {
        let mut text = match self.removed {
            true => format!("{} removed\n", self.store),
            false => format!("{} shows podman\n", self.store),
        };
        for image in &self.images {
            let names = match image.names.is_empty() {
                true => "<none>".into(),
                false => image.names.join(", "),
            };
            text.push_str(&format!("  {} {names}\n", &image.id[..12]));
        }
        match (&self.storage_conf, self.changed, &self.by_hand) {
            (Some(file), true, _) => text.push_str(&format!("{file} changed\n")),
            (_, _, Some(line)) => text.push_str(&format!("in podman's storage.conf, [storage.options]: {line}\n")),
            _ => {}
        }
        text
    }
}

impl Expose {
    pub fn run(self, context: &Context) -> Result<()> {
        let sysroot = context.open_store(None, "image expose")?;
        let podman = context.registry().podman;
        let root = root(&sysroot);
        let shelf = Shelf::new(&RealFs, sysroot.store(), &root, &podman);
        let shown = match self.remove {
            true => Vec::new(),
            false => shelf.show(&wanted(&sysroot, &shelf, context)?)?,
        };
        let store = root.display().to_string();
        let conf = self.conf(context);
        let (mut changed, mut by_hand) = (false, None);
        match &conf {
            Some(path) => changed = self.change(context, path, &store)?,
            None => by_hand = (!self.remove).then(|| format!("additionalimagestores = [{store:?}]")),
        }
        if self.remove && shelf.is_there() {
            shelf.remove()?;
        }
        if self.remove {
            warn_of_settings(context, &podman, &store);
        }
        context.show(&Exposed {
            store,
            images: shown.into_iter().map(Image::of).collect(),
            storage_conf: conf.map(|path| path.display().to_string()),
            changed,
            removed: self.remove,
            by_hand,
        })
    }

    fn conf(&self, context: &Context) -> Option<PathBuf> {
        match &self.storage_conf {
            _ if self.no_storage_conf => None,
            Some(file) => Some(file.clone()),
            None if !context.is_host() => None,
            // What podman reads, too.
            None => Some(context.environment.registry.storage_conf.clone().unwrap_or(CONF.into())),
        }
    }

    /// What in podman's settings keeps it from showing the images, or from working at all.
    fn doubts(&self, text: &str, store: &str) -> Vec<String> {
        let gone = |other: &String| other != store && !fs::leads_to_dir(Path::new(other));
        let gone = expose::named(text).into_iter().filter(gone);
        let gone = gone.map(|other| format!("the store {other} is not there: podman fails until it is named no more"));
        match self.remove {
            true => gone.collect(),
            false => expose::doubts(text).into_iter().chain(gone).collect(),
        }
    }

    /// Whether the file was changed.
    fn change(&self, context: &Context, path: &Path, store: &str) -> CoreResult<bool> {
        let text = fs::read_text(path, CONF_LIMIT)?;
        let vendor = match path == Path::new(CONF) {
            true => fs::read_text(Path::new(VENDOR), CONF_LIMIT)?,
            false => None,
        };
        let change = match self.remove {
            true => expose::remove(text.as_deref(), vendor.as_deref(), store),
            false => expose::add(text.as_deref(), vendor.as_deref(), store),
        };
        let written = match &change {
            Change::Text(text) => Some(text),
            _ => text.as_ref(),
        };
        for doubt in written.into_iter().flat_map(|text| self.doubts(text, store)) {
            let doubt = format!("{}: {doubt}", path.display());
            context.ui.event(Event::Warning(doubt));
        }
        let by_hand = |why: String| Error::Settings {
            path: path.to_path_buf(),
            why: format!(
                "{why}; change `additionalimagestores` in [storage.options] by hand: it {} {store:?}",
                if self.remove { "has" } else { "needs" }
            ),
        };
        let done = match change {
            Change::Nothing => return Ok(false),
            Change::ByHand(why) => return Err(by_hand(why)),
            Change::Gone => remove(path),
            Change::Text(text) => write(path, &text),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::Failed => Err(by_hand(error.to_string())),
            done => done.map(|()| true),
        }
    }
}

impl Image {
    fn of(shown: Shown) -> Self {
        Self {
            id: shown.id,
            image_digest: shown.digest,
            names: shown.names,
        }
    }
}

fn remove(path: &Path) -> CoreResult<()> {
    RealFs.remove_file(path)?;
    RealFs.sync_dir(fs::parent(path)?)
}

/// podman does not work at all with settings that name a store that is not there.
fn warn_of_settings(context: &Context, podman: &Places, store: &str) {
    let text = |path: &&PathBuf| fs::read_text(path, CONF_LIMIT).ok().flatten();
    let found = podman.files.iter().find_map(|path| Some((path, text(&path)?)));
    if let Some((path, text)) = found
        && expose::remove(Some(&text), None, store) != Change::Nothing
        && text.contains(store)
    {
        let why = format!("{} still names {store}; podman fails until it does not", path.display());
        context.ui.event(Event::Warning(why));
    }
}

/// Through a link to the file that it means, with the permissions that it has.
fn write(path: &Path, text: &str) -> CoreResult<()> {
    let found = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mode = fs::metadata(&found).map_or(0o644, |file| file.mode() & 0o7777);
    fs::create_dir_all(&RealFs, fs::parent(&found)?, 0o755)?;
    fs::replace(&RealFs, &found, mode, text.as_bytes())
}

fn root(sysroot: &Sysroot) -> PathBuf {
    sysroot.layout().state().join("podman")
}

/// All pulled images, and the system that runs (or runs next), and what is bound: of two that have one name, the one
/// that keeps it comes first.
fn wanted(sysroot: &Sysroot, shelf: &Shelf<'_>, context: &Context) -> CoreResult<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (name, manifest) in sysroot.store().tags()? {
        if !name.starts_with(DEPLOYMENT) {
            wanted.push(Wanted {
                name: expose::name_for_podman(&name),
                manifest,
            });
        }
    }
    let known = sysroot.known()?;
    if let Some(origin) = sysroot.current(&known).and_then(|known| known.origin()) {
        let reference = origin.reference.parse::<cfs_core::reference::Reference>();
        wanted.push(Wanted {
            name: reference
                .ok()
                .and_then(|text| expose::name_for_podman(&text.to_string())),
            manifest: origin.manifest,
        });
    }
    // The same name may mean another image in the next system: it means the running one's until that runs.
    let current = sysroot.current(&known).map(|known| known.id.short());
    let mut bound = Vec::new();
    for (tag, manifest) in sysroot.store().tags()? {
        if let Some((of, reference)) = cfs_core::bound::name(&tag) {
            bound.push((current.as_deref() != Some(of), reference.to_owned(), manifest));
        }
    }
    bound.sort();
    for (_, reference, manifest) in bound {
        let name = expose::name_for_podman(&reference);
        wanted.push(Wanted { name, manifest });
    }
    // One that is broken, or that another tool has put there, is no reason to hide the others.
    wanted.retain(|wanted| match shelf.make(&wanted.manifest) {
        Ok(()) => true,
        Err(error) => {
            context
                .ui
                .event(Event::Warning(format!("not shown to podman: {error}")));
            false
        }
    });
    Ok(wanted)
}

/// Brings podman's view up to date, where there is one or a deployment binds images. It is derived: that it cannot be
/// is a warning.
pub fn refresh(context: &Context, sysroot: &Sysroot) {
    let podman = context.registry().podman;
    let root = root(sysroot);
    refresh_shelf(context, sysroot, &Shelf::new(&RealFs, sysroot.store(), &root, &podman));
}

/// The same for a system that was installed: what it binds is needed at its first boot. No podman uses anything there
/// yet.
pub fn prepare(context: &Context, sysroot: &Sysroot) {
    let (podman, root) = (Places::default(), root(sysroot));
    let shelf = Shelf::new(&RealFs, sysroot.store(), &root, &podman);
    refresh_shelf(context, sysroot, &shelf.with_objects(INSTALLED.into()));
}

fn refresh_shelf(context: &Context, sysroot: &Sysroot, shelf: &Shelf<'_>) {
    let binds = || {
        let tags = sysroot.store().tags().unwrap_or_default();
        tags.keys().any(|tag| cfs_core::bound::name(tag).is_some())
    };
    if !shelf.is_there() && !binds() {
        return;
    }
    let shown = wanted(sysroot, shelf, context).and_then(|wanted| shelf.show(&wanted));
    if let Err(error) = shown {
        let why = format!("podman still sees the images of before: {error}; `cfs-update image expose` tries again");
        context.ui.event(Event::Warning(why));
    }
}

/// Refuses to let an image go that a container of podman's stands on.
pub fn refuse_removal(context: &Context, sysroot: &Sysroot, names: &[String]) -> CoreResult<()> {
    let podman = context.registry().podman;
    let root = root(sysroot);
    let shelf = Shelf::new(&RealFs, sysroot.store(), &root, &podman);
    if !shelf.is_there() {
        return Ok(());
    }
    let tags = sysroot.store().tags()?;
    for manifest in names.iter().filter_map(|name| tags.get(name)) {
        let stays = tags
            .iter()
            .any(|(name, other)| other == manifest && !names.contains(name));
        if !stays {
            shelf.refuse_removal(manifest)?;
        }
    }
    Ok(())
}
