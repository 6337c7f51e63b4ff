//! Deciding the three-way merge. Pure: three listings in, a list of paths out.
//!
//! The rules, for the old image (O), the administrator's folder (A) and the new image (N):
//!
//! * A is as O: the result is N's, also where N has nothing.
//! * A differs from O: the result is A's, also where A has nothing (a deletion). Where N differs from O as well, and not
//!   in the same way, that is a conflict: listed, and N's version of a file or folder kept beside A's as `NAME.cfs-new`.
//! * What is never made of an image (devices, sockets) counts as nothing in O and N: nobody has deleted it.
//! * Folders are merged name by name. One that N removes stays as long as something of the administrator's is in it;
//!   one that A removed, or replaced by something else, takes what N puts below it along into the conflict.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::listing::{self, Listing, Node, Rules};

/// The end of the name that the image's version of a conflicting file gets.
pub const SUFFIX: &str = ".cfs-new";
/// systemd's mark that /etc was updated; without it `ConditionNeedsUpdate=` runs what an update needs.
pub(super) const UPDATED: &str = ".updated";
const NAME_MAX: usize = 255;

/// Whether a name is one that a merge gives to the image's version: `NAME.cfs-new`, or `NAME.cfs-new-2`…
pub fn is_kept_beside(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = name.rsplit_once(SUFFIX).map(|(_, end)| end);
    let is_number = |number: &str| number.bytes().all(|b| b.is_ascii_digit());
    end.is_some_and(|end| end.is_empty() || end.strip_prefix('-').is_some_and(is_number))
}

/// Where a path of the result comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The administrator's folder.
    Current,
    /// The new image.
    New,
}

/// How one path of the result is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// From which side.
    pub from: Side,
    /// From which path there: its own, except for `NAME.cfs-new`.
    pub path: PathBuf,
    /// A copy that shares no inode with other names.
    pub alone: bool,
}

/// What both sides did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// Changed or added differently on both sides; the administrator's stays.
    BothChanged,
    /// Permissions, owner or attributes of a folder changed differently on both sides; the administrator's stay.
    BothChangedFolder,
    /// Deleted here, changed in the image (or something new in a folder that was deleted here); stays deleted.
    DeletedHere,
    /// Changed here, removed from the image; stays.
    RemovedInImage,
}

/// One conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The path, relative to /etc.
    pub path: PathBuf,
    /// What happened.
    pub what: What,
    /// Where the image's version is kept.
    pub kept_as: Option<PathBuf>,
}

/// The result of a merge, before it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every path of the result, a folder before what is in it.
    pub steps: BTreeMap<PathBuf, Step>,
    /// Conflicts, by path.
    pub conflicts: Vec<Conflict>,
}

impl Plan {
    /// The new image's listing as it is: the first installation.
    pub fn fresh(new: &Listing) -> Self {
        plan(&Listing::empty(), &Listing::empty(), new, Rules::STRICT)
    }
}

/// What differs from the image in one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// Not in the image.
    Added,
    /// Differs from the image.
    Changed,
    /// Not here any more.
    Removed,
}

/// What an image has at `path`, as far as it is made here.
fn made<'l>(image: &'l Listing, path: &Path) -> Option<&'l Node> {
    image.get(path).filter(|node| node.is_made())
}

/// What the administrator changed against the image, by path.
pub fn diff(image: &Listing, current: &Listing, rules: Rules) -> Vec<(PathBuf, Change)> {
    let mut changes = BTreeMap::new();
    for (path, node) in image.iter().filter(|(_, node)| node.is_made()) {
        match current.get(path) {
            None => changes.insert(path, Change::Removed),
            Some(here) if !rules.same(node, here) => changes.insert(path, Change::Changed),
            Some(_) => None,
        };
    }
    for (path, _) in current.iter().filter(|(path, _)| made(image, path).is_none()) {
        changes.insert(path, Change::Added);
    }
    let real = changes.into_iter().filter(|(path, _)| *path != Path::new(UPDATED));
    real.map(|(path, change)| (path.to_path_buf(), change)).collect()
}

/// Merges three listings; `rules` say how `current` compares with the image it was written from.
pub fn plan(old: &Listing, current: &Listing, new: &Listing, rules: Rules) -> Plan {
    let mut merge = Merge {
        old,
        current,
        new,
        rules,
        plan: Plan::default(),
    };
    merge.folder(Path::new(""), true);
    merge.keep_beside();
    merge.plan
}

struct Merge<'a> {
    old: &'a Listing,
    current: &'a Listing,
    new: &'a Listing,
    rules: Rules,
    plan: Plan,
}

impl Merge<'_> {
    /// Whether `current` at `path` is what the old image had there.
    fn untouched(&self, path: &Path) -> bool {
        self.alike(self.rules, made(self.old, path), self.current.get(path))
    }

    /// Whether the new image has at `path` what the old one had.
    fn image_unchanged(&self, path: &Path) -> bool {
        self.alike(Rules::STRICT, made(self.old, path), made(self.new, path))
    }

    fn alike(&self, rules: Rules, a: Option<&Node>, b: Option<&Node>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => rules.same(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    fn take(&mut self, from: Side, path: &Path) {
        let step = Step {
            from,
            path: path.to_path_buf(),
            alone: false,
        };
        self.plan.steps.insert(path.to_path_buf(), step);
    }

    /// Takes `path` and everything below it from the new image.
    fn take_new(&mut self, path: &Path) {
        let paths: Vec<PathBuf> = self.new.subtree(path).map(|(at, _)| at.to_path_buf()).collect();
        for at in paths.iter().filter(|at| *at != Path::new(UPDATED)) {
            self.take(Side::New, at);
        }
    }

    fn conflict(&mut self, path: &Path, what: What) {
        self.plan.conflicts.push(Conflict {
            path: path.to_path_buf(),
            what,
            kept_as: None,
        });
    }

    /// A path that is a folder here; `also_new` where it is one in the new image, too. Taken even when empty; the
    /// caller removes it then, if nothing keeps it.
    fn folder(&mut self, path: &Path, also_new: bool) {
        let mine = !self.untouched(path);
        let from = if mine || !also_new { Side::Current } else { Side::New };
        if also_new && mine && !self.image_unchanged(path) {
            let same = self.alike(self.rules, self.current.get(path), self.new.get(path));
            let was_folder = self.old.get(path).is_some_and(Node::is_dir);
            if !same && was_folder {
                self.conflict(path, What::BothChangedFolder);
            }
        }
        self.take(from, path);
        let mut names = BTreeSet::new();
        for listing in [self.old, self.current, self.new] {
            listing.names(path, &mut names);
        }
        for name in names {
            let at = path.join(name);
            if at != Path::new(UPDATED) {
                self.path(&at);
            }
        }
    }

    fn path(&mut self, path: &Path) {
        let is_dir = |node: Option<&Node>| node.is_some_and(Node::is_dir);
        let (current, new) = (self.current.get(path), self.new.get(path));
        match (is_dir(current), is_dir(new)) {
            (true, true) => self.folder(path, true),
            (true, false) => self.only_here_a_folder(path),
            (false, _) => self.here_no_folder(path),
        }
    }

    /// A folder here; a file or nothing in the new image.
    fn only_here_a_folder(&mut self, path: &Path) {
        let mut here = self.current.subtree(path);
        if here.all(|(at, _)| self.untouched(at)) {
            self.take_new(path);
            return;
        }
        let mine = !self.untouched(path);
        self.folder(path, false);
        let mut below = listing::from(&self.plan.steps, path).skip(1);
        if !mine && !below.next().is_some_and(|(at, _)| at.starts_with(path)) {
            // Only deletions of the administrator's were in it.
            self.plan.steps.remove(path);
            self.take_new(path);
        } else if self.image_unchanged(path) {
            // A file was made a folder here, and that is all.
        } else if made(self.new, path).is_some() {
            self.conflict(path, What::BothChanged);
        } else if mine && made(self.old, path).is_some() {
            self.conflict(path, What::RemovedInImage);
        }
    }

    /// A file or nothing here; anything in the new image.
    fn here_no_folder(&mut self, path: &Path) {
        if self.untouched(path) {
            self.take_new(path);
            return;
        }
        let current = self.current.get(path);
        if current.is_some() {
            self.take(Side::Current, path);
        }
        let new = made(self.new, path);
        let image_same = self.image_unchanged(path) && self.new.subtree(path).all(|(at, _)| self.image_unchanged(at));
        if image_same || self.alike(self.rules, current, new) {
            return;
        }
        let what = match (current, new) {
            (None, _) => What::DeletedHere,
            (Some(_), Some(_)) => What::BothChanged,
            (Some(_), None) => What::RemovedInImage,
        };
        self.conflict(path, what);
    }

    /// Finds a name for the image's version of each conflict, when all other names are known.
    fn keep_beside(&mut self) {
        let mut conflicts = std::mem::take(&mut self.plan.conflicts);
        for conflict in conflicts
            .iter_mut()
            .filter(|conflict| conflict.what == What::BothChanged)
        {
            let name = self.free_name(&conflict.path);
            self.drop_subtree(&name);
            for (at, _) in self.new.subtree(&conflict.path) {
                let below = at.strip_prefix(&conflict.path).unwrap_or(Path::new(""));
                let step = Step {
                    from: Side::New,
                    path: at.to_path_buf(),
                    alone: true,
                };
                let to = if below.as_os_str().is_empty() {
                    name.clone()
                } else {
                    name.join(below)
                };
                self.plan.steps.insert(to, step);
            }
            conflict.kept_as = Some(name);
        }
        self.plan.conflicts = conflicts;
    }

    fn drop_subtree(&mut self, path: &Path) {
        let range = listing::from(&self.plan.steps, path);
        let gone: Vec<PathBuf> = range
            .map(|(at, _)| at.clone())
            .take_while(|at| at.starts_with(path))
            .collect();
        for at in gone {
            self.plan.steps.remove(&at);
        }
    }

    /// `NAME.cfs-new`, or the first `NAME.cfs-new-2`… that nothing has. What an earlier merge kept there and nobody
    /// touched since may be replaced.
    fn free_name(&self, path: &Path) -> PathBuf {
        let mut suffix = SUFFIX.to_owned();
        let mut number = 1_u32;
        loop {
            let name = path.with_file_name(with_suffix(path.file_name().unwrap_or_default(), &suffix));
            let in_image = self.new.get(&name).is_some() || self.old.get(&name).is_some();
            let taken = self.plan.steps.contains_key(&name);
            if !in_image && (!taken || self.is_leftover(&name, path)) {
                return name;
            }
            number += 1;
            suffix = format!("{SUFFIX}-{number}");
        }
    }

    /// Whether `name` is exactly the old or the new image's version of `path`.
    fn is_leftover(&self, name: &Path, path: &Path) -> bool {
        let equals = |image: &Listing| {
            let here: BTreeMap<_, _> = relative(self.current, name);
            let there = relative(image, path);
            let pairs = here.iter().zip(&there);
            here.len() == there.len() && pairs.into_iter().all(|(a, b)| a.0 == b.0 && self.rules.same(a.1, b.1))
        };
        equals(self.old) || equals(self.new)
    }
}

fn relative<'a>(listing: &'a Listing, path: &'a Path) -> BTreeMap<&'a Path, &'a Node> {
    let below = |(at, node): (&'a Path, &'a Node)| Some((at.strip_prefix(path).ok()?, node));
    listing.subtree(path).filter_map(below).collect()
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let room = NAME_MAX - suffix.len();
    let mut bytes = name.as_bytes()[..name.len().min(room)].to_vec();
    bytes.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(bytes)
}
