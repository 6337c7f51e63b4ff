//! /etc as the model sees it: a tree, what an administrator may do to it, and what a merge of three has to give.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::actions::Random;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Folder(u32),
    File(u32, String),
    Link(String),
}

/// By path; the root is not in it.
pub type Tree = BTreeMap<String, Node>;

/// What is below `folder` on disk.
pub fn read(folder: &Path) -> Tree {
    fn below(folder: &Path, prefix: &str, tree: &mut Tree) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}/{name}")
            };
            let found = fs::symlink_metadata(entry.path()).unwrap();
            let mode = found.permissions().mode() & 0o7777;
            if found.is_dir() {
                tree.insert(path.clone(), Node::Folder(mode));
                below(&entry.path(), &path, tree);
            } else if found.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                tree.insert(path, Node::Link(target.to_str().unwrap().into()));
            } else {
                tree.insert(path, Node::File(mode, fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    let mut tree = Tree::new();
    below(folder, "", &mut tree);
    tree
}

const PATHS: [&str; 11] = [
    "app.conf",
    "hostname",
    "mine",
    "x",
    "x/y",
    "conf.d",
    "conf.d/a",
    "conf.d/b",
    "conf.d/mine",
    "new",
    "new/n",
];

/// What an administrator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit {
    path: usize,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Write(usize),
    Remove,
    Folder,
    Link,
    Mode,
}

impl Edit {
    pub fn any(random: &mut Random) -> Self {
        Self {
            path: random.below(PATHS.len()),
            what: match random.below(10) {
                0..=4 => What::Write(random.below(1000)),
                5..=6 => What::Remove,
                7 => What::Folder,
                8 => What::Link,
                _ => What::Mode,
            },
        }
    }

    /// Does it in this /etc.
    pub fn apply(self, etc: &Path) {
        let path = etc.join(PATHS[self.path]);
        if !matches!(self.what, What::Mode | What::Remove) {
            let above = path.parent().unwrap();
            if above != etc && !is_folder(above) {
                remove(above);
                fs::create_dir(above).unwrap();
            }
        }
        match self.what {
            What::Write(number) => {
                if is_folder(&path) || path.is_symlink() {
                    remove(&path);
                }
                fs::write(&path, format!("mine {number}")).unwrap();
            }
            What::Remove => remove(&path),
            What::Folder => {
                if !is_folder(&path) {
                    remove(&path);
                    fs::create_dir(&path).unwrap();
                }
            }
            What::Link => {
                remove(&path);
                symlink("somewhere", &path).unwrap();
            }
            What::Mode => {
                if let Ok(found) = fs::symlink_metadata(&path).map(|found| found.file_type())
                    && !found.is_symlink()
                {
                    let mode = if found.is_dir() { 0o700 } else { 0o600 };
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
    }
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn remove(path: &Path) {
    if is_folder(path) {
        fs::remove_dir_all(path).unwrap();
    } else if path.parent().is_some_and(is_folder) {
        let _ = fs::remove_file(path);
    }
}

fn is_dir(node: Option<&Node>) -> bool {
    matches!(node, Some(Node::Folder(_)))
}

fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn below<'t>(tree: &'t Tree, path: &'t str) -> impl Iterator<Item = (&'t String, &'t Node)> {
    tree.iter()
        .filter(move |(at, _)| at.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
}

/// The administrator's changes of `there`, against its image, that are not so `here`. What a merge kept beside a file is
/// the merge's.
pub fn lacking(image: &Tree, there: &Tree, here: &Tree) -> BTreeSet<PathBuf> {
    let own = |path: &&String| !path.contains(".cfs-new") && image.get(*path) != there.get(*path);
    let changed = image.keys().chain(there.keys()).filter(own);
    let lacking = changed.filter(|path| there.get(*path) != here.get(*path));
    lacking.map(PathBuf::from).collect()
}

/// Whether `result` is what the documentation says of a merge: what the administrator changed is there as he left it,
/// and what he deleted is not; everything else is the new image's.
pub fn merged(old: &Tree, here: &Tree, new: &Tree, result: &Tree) -> Result<(), String> {
    let kept = |path: &str| path.contains(".cfs-new");
    let changed = |path: &str| old.get(path) != here.get(path);
    let hold = |right: bool, path: &str, why: &str| match right {
        true => Ok(()),
        false => Err(format!(
            "/etc/{path}: {why}: image before {:?}, here {:?}, new image {:?}, result {:?}",
            old.get(path),
            here.get(path),
            new.get(path),
            result.get(path)
        )),
    };
    for (path, node) in here.iter().filter(|(path, _)| !kept(path)) {
        let found = result.get(path);
        if changed(path) {
            hold(found == Some(node), path, "the administrator's is lost")?;
            continue;
        }
        let mine_below = below(here, path).any(|(at, _)| changed(at));
        match (node, new.get(path)) {
            (Node::Folder(_), None) => hold(found.is_none() || mine_below, path, "the image has it no more")?,
            (Node::Folder(_), Some(Node::Folder(_))) => hold(found == new.get(path), path, "the image's folder")?,
            (Node::Folder(_), theirs) if mine_below => {
                hold(is_dir(found), path, "something of the administrator's is in it")?;
                let beside = result
                    .iter()
                    .any(|(at, node)| at.starts_with(&format!("{path}.cfs-new")) && Some(node) == theirs);
                hold(beside, path, "the image's version is not kept beside")?;
            }
            (_, theirs) => hold(found == theirs, path, "what nobody changed is the image's")?,
        }
    }
    for path in old.keys().filter(|path| !here.contains_key(*path)) {
        hold(!result.contains_key(path), path, "the administrator deleted it")?;
    }
    for (path, node) in new
        .iter()
        .filter(|(path, _)| !old.contains_key(*path) && !here.contains_key(*path))
    {
        let gone = above(path).any(|at| changed(at) && !is_dir(here.get(at)));
        let aside = above(path).any(|at| !is_dir(result.get(at)));
        hold(gone || result.get(path) == Some(node), path, "the new image brings it")?;
        hold(
            !gone || aside || result.get(path).is_none(),
            path,
            "it is below what the administrator removed",
        )?;
    }
    for (path, node) in result {
        let known = kept(path) || here.get(path) == Some(node) || new.get(path) == Some(node);
        hold(known, path, "nobody has it like that")?;
    }
    Ok(())
}
