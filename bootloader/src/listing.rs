//! Reading `$BOOT/loader/entries`: ours and those of others, in menu order, with what is wrong.
//!
//! Invariant: nothing here writes, and no single file makes listing fail; a file that cannot be read or understood is
//! listed with its problem.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cfs_core::boot::{BootEntry, Entries, ForeignEntry, KernelDigest, Tries, cmdline};
use cfs_core::error::Result;
use cfs_core::sys::fs;

use crate::bls::{self, Entry};
use crate::counter::CountedName;
use crate::loader_conf;
use crate::name::{KERNEL_FOLDER, OwnName, SORT_KEY};
use crate::precedence::{self, Place};

/// An entry is a few hundred bytes; one with a long command line some thousand.
const LIMIT: u64 = 256 * 1024;

/// `$BOOT/loader/entries`.
pub fn entries_folder(boot: &Path) -> PathBuf {
    boot.join("loader/entries")
}

/// `$BOOT/cfs-update`.
pub fn kernels_folder(boot: &Path) -> PathBuf {
    boot.join(KERNEL_FOLDER)
}

/// An entry's file.
struct File {
    name: String,
    /// `None` where it cannot be read, and why in `problem`.
    entry: Entry,
    problem: Option<String>,
}

impl File {
    fn tries(&self) -> Tries {
        CountedName::parse(&self.name).tries()
    }

    /// Whether systemd-boot shows it: it is for this machine and what it boots exists.
    fn is_shown(&self, boot: &Path) -> bool {
        let foreign_machine = self
            .entry
            .value("architecture")
            .is_some_and(|name| !name.eq_ignore_ascii_case(architecture()));
        let mut boots = bls::BOOTS.iter().filter_map(|key| self.entry.value(key));
        !foreign_machine && boots.next().is_some_and(|path| size(boot, path).is_some())
    }
}

/// All entries below `boot`, whose boot loader's settings are there, too.
pub fn entries(boot: &Path) -> Result<Entries> {
    entries_with(boot, boot)
}

/// The same with the settings of the boot loader on the EFI system partition `esp`.
pub fn entries_with(boot: &Path, esp: &Path) -> Result<Entries> {
    let files = sorted(read(boot)?);
    let mut entries = Entries::default();
    let mut shown = Vec::new();
    for file in &files {
        if file.is_shown(boot) {
            shown.push(file.name.clone());
        }
        match OwnName::parse(&file.name) {
            Some(name) => entries.ours.push(own(boot, file, &name)),
            None => entries.foreign.push(foreign(file)),
        }
    }
    let configuration = fs::read(&esp.join("loader/loader.conf"), LIMIT);
    let configuration = configuration.ok().flatten().unwrap_or_default();
    let configuration = String::from_utf8_lossy(&configuration);
    entries.next = chosen(&shown, &configuration);
    entries.overrides = overrides(&entries, &configuration);
    entries.warnings = warnings(&files);
    Ok(entries)
}

/// What keeps kernel folders: the digests that any file among the entries mentions, in lower case. `None` when a file
/// could not be read, so that nothing can be said.
pub fn referenced(boot: &Path, except: &BTreeSet<&str>) -> Result<Option<BTreeSet<String>>> {
    let folder = entries_folder(boot);
    let mut found = BTreeSet::new();
    for name in fs::names(&folder)? {
        let skip = name
            .to_str()
            .is_some_and(|name| except.contains(name) || is_own_temporary(name));
        if skip {
            continue;
        }
        match fs::read(&folder.join(&name), LIMIT) {
            Ok(content) => found.extend(mentioned(&content.unwrap_or_default())),
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// A file that an interrupted run of ours left among the entries.
pub fn is_own_temporary(name: &str) -> bool {
    name.strip_prefix(crate::publish::TEMPORARY)
        .is_some_and(|name| OwnName::parse(name).is_some())
}

/// Size of the non-empty file that an entry's path leads to.
pub fn size(boot: &Path, path: &str) -> Option<u64> {
    let found = std::fs::metadata(boot.join(bls::relative(path)?)).ok()?;
    (found.is_file() && found.len() > 0).then_some(found.len())
}

/// Kernel folders named in a text, wherever and however written.
fn mentioned(content: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(content).to_lowercase().replace('\\', "/");
    let marker = format!("{KERNEL_FOLDER}/");
    let after = text.match_indices(&marker).map(|(at, _)| &text[at + marker.len()..]);
    let digests = after
        .filter_map(|rest| rest.get(..64))
        .filter(|digest| digest.parse::<KernelDigest>().is_ok());
    digests.map(str::to_owned).collect()
}

fn read(boot: &Path) -> Result<Vec<File>> {
    let folder = entries_folder(boot);
    let mut files = Vec::new();
    for name in fs::names(&folder)? {
        let path = folder.join(&name);
        let name = name.to_string_lossy().into_owned();
        if name.starts_with('.') || !name.to_ascii_lowercase().ends_with(".conf") {
            continue;
        }
        let (text, problem) = match fs::read(&path, LIMIT) {
            Ok(Some(content)) => match String::from_utf8(content) {
                Ok(text) => (text, None),
                Err(e) => (
                    String::from_utf8_lossy(e.as_bytes()).into_owned(),
                    Some("it is not UTF-8".to_owned()),
                ),
            },
            Ok(None) => continue,
            Err(e) => (String::new(), Some(e.to_string())),
        };
        files.push(File {
            name,
            entry: Entry::parse(&text),
            problem,
        });
    }
    Ok(files)
}

/// Into menu order.
fn sorted(mut files: Vec<File>) -> Vec<File> {
    let stems: BTreeMap<String, CountedName> = files
        .iter()
        .map(|file| (file.name.clone(), CountedName::parse(&file.name)))
        .collect();
    let stem = |file: &File| stems.get(&file.name).map_or("", CountedName::stem);
    files.sort_by(|a, b| {
        let (left, right) = (
            a.entry.sort_fields(stem(a), a.tries()),
            b.entry.sort_fields(stem(b), b.tries()),
        );
        bls::menu_order(&left, &right).then_with(|| a.name.cmp(&b.name))
    });
    files
}

fn own(boot: &Path, file: &File, name: &OwnName) -> BootEntry {
    let path = |key| file.entry.value(key).map(str::to_owned).unwrap_or_default();
    let (linux, initrd) = (path("linux"), path("initrd"));
    let options = cmdline::split(&file.entry.options());
    let named = cmdline::digests(&options);
    let id = named
        .iter()
        .map(|digest| digest.id)
        .find(|id| id.short() == name.short());
    let problem = file.problem.clone().or_else(|| {
        let text = file.entry.problems().into_iter().next();
        text.or_else(|| missing(boot, file))
            .or_else(|| match (id, named.first()) {
                (Some(_), _) => None,
                (None, None) => Some("its options name no image (composefs.digest=)".to_owned()),
                (None, Some(other)) => Some(format!("its name is that of another image than {}", other.id.short())),
            })
    });
    BootEntry {
        id,
        short: name.short().to_owned(),
        generation: name.generation(),
        tries: name.tries(),
        title: file.entry.value("title").unwrap_or_default().to_owned(),
        kernel: kernel_digest(&linux),
        linux,
        initrd,
        options,
        file: file.name.clone(),
        changed: change(file, name).is_some(),
        problem,
    }
}

/// The first file that an entry of ours needs and that is not there.
fn missing(boot: &Path, file: &File) -> Option<String> {
    for key in ["linux", "initrd"] {
        let mut paths = file.entry.values(key).peekable();
        if paths.peek().is_none() {
            return Some(format!("it has no {key} line"));
        }
        if let Some(path) = paths.find(|path| size(boot, path).is_none()) {
            return Some(format!("its {key}, {path}, is missing or empty"));
        }
    }
    None
}

/// The digest in `/cfs-update/<digest>/linux`.
fn kernel_digest(linux: &str) -> Option<KernelDigest> {
    let path = bls::relative(linux)?;
    let rest = path.strip_prefix(KERNEL_FOLDER)?.strip_prefix('/')?;
    rest.split('/').next()?.parse().ok()
}

fn foreign(file: &File) -> ForeignEntry {
    let look_alike = OwnName::is_look_alike(&file.name);
    let look_alike = look_alike.then(|| "its name looks like one of ours but is none, so it is left alone".to_owned());
    let problem = file
        .problem
        .clone()
        .or(look_alike)
        .or_else(|| file.entry.problems().into_iter().next());
    ForeignEntry {
        title: file.entry.value("title").unwrap_or_default().to_owned(),
        file: file.name.clone(),
        problem,
    }
}

/// What systemd-boot takes when nobody chooses and no EFI variable says otherwise: the first that a pattern matches,
/// otherwise the first.
fn chosen(shown: &[String], configuration: &str) -> Option<String> {
    let matched = |pattern: Option<&str>, even_bad: bool| {
        let pattern = pattern.filter(|pattern| !loader_conf::is_special(pattern))?;
        let is_bad = |name: &str| matches!(CountedName::parse(name).tries(), Tries::Bad { .. });
        let mut fit = shown.iter().filter(|name| matches(pattern, name));
        fit.find(|name| even_bad || !is_bad(name))
    };
    matched(loader_conf::preferred_pattern(configuration), false)
        .or_else(|| matched(loader_conf::default_pattern(configuration), true))
        .or(shown.first())
        .cloned()
}

fn matches(pattern: &str, name: &str) -> bool {
    loader_conf::matches(pattern, &CountedName::parse(name).id())
}

/// What files say that goes before the newest entry of ours.
fn overrides(entries: &Entries, configuration: &str) -> Vec<String> {
    let lines = [
        (Place::PreferredLine, loader_conf::preferred_pattern(configuration)),
        (Place::DefaultLine, loader_conf::default_pattern(configuration)),
    ];
    let told = lines
        .into_iter()
        .filter_map(|(place, pattern)| place.warning(pattern?, entries));
    let mut told: Vec<_> = told.collect();
    if let Some(next) = &entries.next {
        told.extend(precedence::order_warning(entries, next, !told.is_empty()));
    }
    told
}

fn warnings(files: &[File]) -> Vec<String> {
    let mut warnings = Vec::new();
    for file in files {
        let Some(name) = OwnName::parse(&file.name) else {
            continue;
        };
        let twin =
            |other: &&File| other.name != file.name && OwnName::parse(&other.name).is_some_and(|o| same(&o, &name));
        if name.tries() != Tries::Good && files.iter().any(|other| twin(&other)) {
            warnings.push(format!(
                "{} is there with another counter, too; gc removes one of them",
                file.name
            ));
        }
        if let Some(change) = change(file, &name).filter(|_| file.problem.is_none()) {
            warnings.push(format!("{} was changed since it was written: {change}", file.name));
        }
    }
    warnings
}

/// How an entry of ours differs from what is written: by hand or by damage, it may boot something else or not at all.
fn change(file: &File, name: &OwnName) -> Option<&'static str> {
    let entry = &file.entry;
    let images = cmdline::digests(&cmdline::split(&entry.options())).len();
    if images > 1 {
        return Some("it names more than one image");
    }
    if entry.value("sort-key") != Some(SORT_KEY) {
        return Some("its sort-key is another one, so it may boot out of turn");
    }
    if entry.value("version").and_then(|version| version.parse().ok()) != Some(name.generation()) {
        return Some("its version is not its generation, so it may boot out of turn");
    }
    (!entry.is_as_written()).then_some("its text does not fit its checksum")
}

/// Whether two names differ in the counter only.
fn same(a: &OwnName, b: &OwnName) -> bool {
    a.generation() == b.generation() && a.short() == b.short()
}

/// This machine's name in the specification (that of the EFI specification).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64",
        "x86" => "ia32",
        "aarch64" => "aa64",
        other => other,
    }
}
