//! What is on the disk, read without any code of the program: boot entries as systemd-boot takes them, kernels,
//! records, notes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::etc::{self, Tree};

/// What a counter in a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Count {
    None,
    Left(u32, u32),
}

impl Count {
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Left(0, _))
    }
}

/// A boot entry that names an image.
#[derive(Clone, Debug)]
pub struct Entry {
    pub file: String,
    pub id: String,
    pub generation: u64,
    pub count: Count,
    /// What stands behind the root in its command line.
    pub arguments: Vec<String>,
    kernel: String,
    sort_key: String,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub manifest: String,
    pub reference: String,
    pub pinned: bool,
    pub generation: u64,
    /// Whose /etc it waits for.
    pub etc_from: Option<String>,
    pub etc: Tree,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub entries: Vec<Entry>,
    pub kernels: BTreeSet<String>,
    pub records: BTreeMap<String, Record>,
    /// By manifest: whether the administrator went back from it.
    pub failed: BTreeMap<String, bool>,
    /// Reference and manifest.
    pub downloaded: Option<(String, String)>,
    pub arguments: Vec<String>,
    /// A change of them: which deployment, the arguments of its entry before, and what the machine wanted then.
    pub trial: Option<(String, Vec<String>, Vec<String>)>,
    pub counter: u64,
    pub staged: Option<String>,
    pub var: BTreeMap<String, String>,
    pub names: BTreeSet<String>,
    pub objects: BTreeSet<String>,
}

/// `NAME+LEFT-DONE.conf`, taken apart.
fn counted(file: &str) -> Option<(&str, Count)> {
    let stem = file.strip_suffix(".conf")?;
    let Some((name, counter)) = stem.rsplit_once('+') else {
        return Some((stem, Count::None));
    };
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    Some((name, Count::Left(left.parse().ok()?, done.parse().ok()?)))
}

/// What the boot loader makes of an entry's name before it boots it.
pub fn tried(file: &str) -> String {
    let (name, count) = counted(file).unwrap();
    match count {
        Count::None => file.to_owned(),
        Count::Left(left, done) => format!("{name}+{:02}-{:02}.conf", left.saturating_sub(1), done + 1),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(list) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn entry(folder: &Path, file: &str) -> Option<Entry> {
    let text = fs::read_to_string(folder.join(file)).unwrap();
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
        lines
            .find(|(own, _)| *own == key)
            .map(|(_, value)| value.trim().to_owned())
    };
    let options = value("options")?;
    let mut words = options.split(' ');
    let id = words.find_map(|word| word.strip_prefix("composefs.digest=v1-sha256-12:"))?;
    let after = words.skip_while(|word| *word != "rw").skip(1);
    let (_, count) = counted(file)?;
    Some(Entry {
        file: file.to_owned(),
        id: id.to_owned(),
        generation: value("version")?.parse().ok()?,
        count,
        arguments: after.map(str::to_owned).collect(),
        kernel: value("linux")?.split('/').nth(2)?.to_owned(),
        sort_key: value("sort-key")?,
    })
}

fn record(folder: &Path, id: &str) -> Record {
    let text = fs::read_to_string(folder.join(format!("{id}.origin"))).unwrap();
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines
            .find(|(own, _)| own.trim() == key)
            .map(|(_, value)| value.trim().to_owned())
    };
    assert_eq!(
        fs::read_link(folder.join("var")).unwrap(),
        Path::new("../../os/default/var")
    );
    let reference = value("container-image-reference").unwrap();
    Record {
        manifest: value("manifest_digest").unwrap(),
        reference: reference.trim_start_matches("ostree-unverified-image:").to_owned(),
        pinned: value("pinned").as_deref() == Some("true"),
        generation: value("generation").unwrap().parse().unwrap(),
        etc_from: value("etc_from"),
        etc: etc::read(&folder.join("etc")),
    }
}

fn json(path: &Path) -> Option<Value> {
    let text = fs::read_to_string(path).ok()?;
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(value["formatVersion"], 1, "{}", path.display());
    Some(value)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

fn list(value: &Value, key: &str) -> Vec<String> {
    let words = value[key].as_array().unwrap().iter();
    words.map(|word| word.as_str().unwrap().to_owned()).collect()
}

impl Seen {
    pub fn look(root: &Path) -> Self {
        let (boot, state) = (root.join("boot"), root.join("state/cfs-update"));
        let folder = boot.join("loader/entries");
        let entries = names(&folder).into_iter().filter(|name| name.starts_with("cfs-"));
        let deploy = root.join("state/deploy");
        let records = names(&deploy).into_iter().filter(|name| !name.starts_with(".#"));
        json(&state.join("health.json"));
        for line in fs::read_to_string(state.join("history.jsonl"))
            .unwrap_or_default()
            .lines()
        {
            serde_json::from_str::<Value>(line).unwrap();
        }
        let failed = json(&state.join("failed.json"));
        let failed = failed.iter().flat_map(|value| value["failed"].as_array().unwrap());
        let downloaded = json(&state.join("downloaded.json"));
        let trial = json(&state.join("kargs.json"));
        let arguments = fs::read_to_string(state.join("boot.toml")).unwrap_or_default();
        let arguments: toml::Table = arguments.parse().unwrap();
        let arguments = arguments
            .get("kernel-arguments")
            .and_then(|list| list.as_array())
            .cloned();
        let var = root.join("state/os/default/var");
        let store = root.join("composefs");
        let mut objects = BTreeSet::new();
        for first in names(&store.join("objects")) {
            objects.extend(
                names(&store.join("objects").join(&first))
                    .into_iter()
                    .map(|rest| format!("{first}{rest}")),
            );
        }
        let streams = names(&store.join("streams/refs/oci"))
            .into_iter()
            .map(|name| format!("stream {name}"));
        let images = names(&store.join("images/refs/cfs-update"))
            .into_iter()
            .map(|name| format!("image {name}"));
        Self {
            entries: entries.filter_map(|file| entry(&folder, &file)).collect(),
            kernels: names(&boot.join("cfs-update")).into_iter().collect(),
            records: records.map(|id| (id.clone(), record(&deploy.join(&id), &id))).collect(),
            failed: failed.map(|f| (text(f, "digest"), f["byAdmin"] == true)).collect(),
            downloaded: downloaded.map(|value| (text(&value, "reference"), text(&value, "manifest"))),
            arguments: arguments
                .iter()
                .flatten()
                .map(|a| a.as_str().unwrap().to_owned())
                .collect(),
            trial: trial.map(|value| {
                let former = list(&value, "former").into_iter().skip_while(|word| word != "rw");
                (text(&value, "id"), former.skip(1).collect(), list(&value, "wanted"))
            }),
            counter: json(&state.join("counters.json")).map_or(0, |value| value["highest"].as_u64().unwrap()),
            staged: json(&state.join("staged.json")).map(|value| text(&value, "id")),
            var: names(&var)
                .into_iter()
                .map(|name| (name.clone(), fs::read_to_string(var.join(name)).unwrap()))
                .collect(),
            names: streams.chain(images).collect(),
            objects,
        }
    }

    /// What systemd-boot takes of ours: those without tries come last, then the sort key decides, then the higher
    /// version, then the uncounted one of two.
    pub fn boots(&self) -> Option<&Entry> {
        let order = |e: &&Entry| (e.count.is_bad(), e.sort_key.clone(), Reverse(e.generation), e.count);
        self.entries.iter().min_by_key(order)
    }

    fn of(&self, id: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.id == id)
    }

    /// The best entry of a deployment; what runs counts, should it be in its last try.
    pub fn best(&self, id: &str, started: Option<u64>) -> Option<&Entry> {
        let counts = |e: &Entry| !e.count.is_bad() || started == Some(e.generation);
        self.of(id).max_by_key(|e| (counts(e), e.generation, Reverse(e.count)))
    }

    /// The one that booted well with other arguments, below one that has yet to.
    pub fn below(&self, entry: &Entry) -> Option<&Entry> {
        let older = |e: &&Entry| e.count == Count::None && e.generation < entry.generation;
        let former = self.of(&entry.id).filter(older).max_by_key(|e| e.generation);
        former.filter(|former| entry.count != Count::None && former.arguments != entry.arguments)
    }

    /// The generations of a deployment's entries, but of those that have no tries left beside one that has.
    pub fn counting(&self, id: &str, started: Option<u64>) -> BTreeSet<u64> {
        let counts = |e: &&Entry| !e.count.is_bad() || started == Some(e.generation);
        let all: BTreeSet<_> = self.of(id).map(|e| e.generation).collect();
        let counting: BTreeSet<_> = self.of(id).filter(counts).map(|e| e.generation).collect();
        if counting.is_empty() { all } else { counting }
    }

    /// The kernels that entries name.
    pub fn named(&self) -> BTreeSet<String> {
        self.entries.iter().map(|e| e.kernel.clone()).collect()
    }

    pub fn generation(&self) -> u64 {
        let entries = self.entries.iter().map(|e| e.generation);
        entries
            .chain(self.records.values().map(|r| r.generation))
            .max()
            .unwrap_or(0)
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// What `images/refs` and `streams/refs` are left out of: everything that a command which does nothing must not change.
pub fn state(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for folder in ["boot", "state/deploy", "state/os"] {
        files(&root.join(folder), &mut all);
    }
    all
}

fn files(folder: &Path, all: &mut Vec<(String, Vec<u8>)>) {
    for name in names(folder) {
        let path = folder.join(name);
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            files(&path, all);
        } else if found.is_file() {
            all.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}
