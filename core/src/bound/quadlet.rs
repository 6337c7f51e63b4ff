//! Quadlet files as podman's generator puts them together (podman-systemd.unit(5), version 5.4): where a name is looked
//! for, which drop-ins there are for a file, and which value of a key counts in the end.
//!
//! Invariant: nothing is passed over in silence: a drop-in that cannot be read is an error.

use std::collections::{BTreeMap, HashSet};
use std::iter;

use crate::error::{Error, Result};
use crate::pull::read_file;
use crate::store::Store;
use crate::tree::{Inode, Kind, NodeId, Tree};

/// Where podman looks for quadlet files, with the folders below them; of the same name the first one counts.
const ROOTS: [&str; 2] = ["etc/containers/systemd", "usr/share/containers/systemd"];
/// Quadlet files of users, which the system's generator leaves alone.
const OF_USERS: &[u8] = b"etc/containers/systemd/users";
/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

/// An image's quadlet files.
pub(super) struct Quadlets<'t> {
    tree: &'t Tree,
    /// The folders that podman looks into, in its order.
    folders: Vec<(Vec<u8>, NodeId)>,
}

/// A quadlet file with its drop-ins: path and text of each, in the order in which they count.
pub(super) struct Unit(Vec<(String, String)>);

impl<'t> Quadlets<'t> {
    pub(super) fn of(tree: &'t Tree) -> Self {
        let (mut folders, mut seen) = (Vec::new(), HashSet::new());
        let mut stack: Vec<Vec<u8>> = ROOTS.iter().rev().map(|root| root.as_bytes().to_vec()).collect();
        while let Some(path) = stack.pop() {
            let Some(folder) = tree.resolve(&path).filter(Inode::is_dir) else {
                continue;
            };
            // Links may lead in a circle.
            if path == OF_USERS || !seen.insert(folder.id()) {
                continue;
            }
            let below = folder.children().filter(|child| !child.name.ends_with(b".d"));
            let below: Vec<_> = below.map(|child| join(&path, child.name)).collect();
            stack.extend(below.into_iter().rev());
            folders.push((path, folder.id()));
        }
        Self { tree, folders }
    }

    /// Whether there is a file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.tree.resolve(path).is_some_and(|found| !found.is_dir())
    }

    /// Where the file of this name is that podman takes.
    pub(super) fn find(&self, name: &str) -> Option<String> {
        let folders = self.folders.iter();
        let mut paths = folders.map(|(folder, _)| shown(&join(folder, name.as_bytes())));
        paths.find(|path| self.has(path))
    }

    /// A file with its drop-ins.
    pub(super) fn read(&self, store: &Store, path: &str) -> Result<Unit> {
        let file = self.text(store, path.as_bytes())?;
        let mut unit = Unit(vec![(path.into(), file)]);
        for drop_in in self.drop_ins(path) {
            let text = self.text(store, &drop_in)?;
            unit.0.push((shown(&drop_in), text));
        }
        Ok(unit)
    }

    /// By their names; of those that are called the same, the one in the first folder.
    fn drop_ins(&self, path: &str) -> impl Iterator<Item = Vec<u8>> {
        let (beside, name) = self.known_as(path);
        let mut found = BTreeMap::new();
        for folder in beside.iter().chain(self.folders.iter().map(|(folder, _)| folder)) {
            for inside in drop_in_folders(&name) {
                let path = join(folder, &inside);
                let children = self.tree.resolve(&path).into_iter().flat_map(|inode| inode.children());
                for child in children.filter(|child| child.name.ends_with(b".conf")) {
                    let drop_in = || join(&path, child.name);
                    found.entry(child.name.to_vec()).or_insert_with(drop_in);
                }
            }
        }
        found.into_values()
    }

    /// What podman calls a file: the name that a link to it has where podman looks, else its own; with its folder,
    /// if that is none of podman's.
    fn known_as(&self, path: &str) -> (Option<Vec<u8>>, Vec<u8>) {
        let mut path = path.as_bytes().to_vec();
        for _ in 0..MOST_LINKS {
            let (folder, name) = split(&path);
            let Some(inside) = self.tree.resolve(folder) else {
                break;
            };
            if self.folders.iter().any(|(_, id)| *id == inside.id()) {
                return (None, name.to_vec());
            }
            match inside.child(name).map(|child| child.kind()) {
                Some(Kind::Symlink(target)) if target.starts_with(b"/") => path = target.to_vec(),
                Some(Kind::Symlink(target)) => path = join(folder, target),
                _ => break,
            }
        }
        let (folder, name) = split(&path);
        (Some(folder.to_vec()), name.to_vec())
    }

    fn text(&self, store: &Store, path: &[u8]) -> Result<String> {
        let fail = |why: &str| refused(&shown(path), why);
        if self.is_masked(path) {
            return Ok(String::new());
        }
        let file = self.tree.resolve(path).ok_or_else(|| fail("leads nowhere"))?;
        String::from_utf8(read_file(store, &shown(path), file)?).map_err(|_| fail("is not UTF-8"))
    }

    /// A link to `/dev/null`, which no image has, hides what is called the same.
    fn is_masked(&self, path: &[u8]) -> bool {
        let (folder, name) = split(path);
        let link = self.tree.resolve(folder).and_then(|folder| folder.child(name));
        link.is_some_and(|link| link.kind() == Kind::Symlink(b"/dev/null"))
    }
}

impl Unit {
    /// The last value of a key in a section, and the file that says so; `None` where there is none, or an empty one.
    pub(super) fn value(&self, section: &str, key: &str) -> Option<(&str, String)> {
        let files = self.0.iter().rev();
        let mut said = files.filter_map(|(path, text)| Some((path.as_str(), last_value(text, section, key)?)));
        said.next().filter(|(_, value)| !value.is_empty())
    }
}

/// A mistake in a file of the image.
pub(super) fn refused(path: &str, why: &str) -> Error {
    Error::Settings {
        path: path.into(),
        why: format!("{why}; it is in the image that this has to be mended"),
    }
}

/// Folders of drop-ins for a file of this name, those for it alone first.
fn drop_in_folders(name: &[u8]) -> Vec<Vec<u8>> {
    let dot = name.iter().rposition(|b| *b == b'.').unwrap_or(name.len());
    let (stem, extension) = name.split_at(dot);
    let ending = [extension, b".d"].concat();
    let of = |stem: &[u8]| [stem, &ending].concat();
    let mut folders = vec![of(stem)];
    // Of an instance, those of its template.
    let (base, sign) = match stem.iter().position(|b| *b == b'@') {
        Some(at) => (&stem[..at], &b"@"[..]),
        None => (stem, &b""[..]),
    };
    folders.push(of(&[base, sign].concat()));
    for (dash, _) in base.iter().enumerate().rev().filter(|(_, b)| **b == b'-') {
        let beginning = &base[..=dash];
        folders.push(of(&[beginning, sign].concat()));
        folders.push(of(beginning));
    }
    folders.push(ending.strip_prefix(b".").unwrap_or(&ending).to_vec());
    folders
}

/// The last value of a key in a section, which may be empty. A line that ends with a backslash goes on in the next one.
fn last_value(text: &str, wanted: &str, wanted_key: &str) -> Option<String> {
    let mut section = String::new();
    let mut found = None;
    let mut begun = String::new();
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    for line in lines.filter(|line| !line.starts_with(['#', ';'])).chain(iter::once("")) {
        if let Some(line) = line.strip_suffix('\\') {
            begun.push_str(line);
            begun.push(' ');
            continue;
        }
        let line = std::mem::take(&mut begun) + line;
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.into();
        } else if let Some((key, value)) = line.split_once('=')
            && section == wanted
            && key.trim() == wanted_key
        {
            found = Some(value.trim().trim_matches('"').to_owned());
        }
    }
    found
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    [folder, b"/", name].concat()
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|b| *b == b'/');
    slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]))
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::image::dump;

    /// A tree of these empty files and links (`PATH -> TARGET`).
    fn tree(entries: &[&str]) -> Tree {
        let mut lines = BTreeMap::new();
        let of = |mode: &str, target: &str| format!("0 {mode} 1 0 0 0 0.0 {target} - -");
        lines.insert("/".to_owned(), of("40755", "-"));
        for entry in entries {
            let (path, line) = match entry.split_once(" -> ") {
                Some((path, target)) => (path, of("120777", target).replacen('0', &target.len().to_string(), 1)),
                None => (*entry, of("100644", "-")),
            };
            for (at, _) in path.match_indices('/') {
                lines.insert(format!("/{}", &path[..at]), of("40755", "-"));
            }
            lines.insert(format!("/{path}"), line);
        }
        let text: String = lines.iter().map(|(path, line)| format!("{path} {line}\n")).collect();
        dump::parse(text.as_bytes()).unwrap()
    }

    fn drop_ins(tree: &Tree, path: &str) -> Vec<String> {
        Quadlets::of(tree).drop_ins(path).map(|path| shown(&path)).collect()
    }

    #[test]
    fn the_image_of_a_quadlet_file_is_the_last_one_of_its_section() {
        let text = "[Unit]\nImage=no\n[Container]\n# Image=no\nImage=quay.io/a/b:1\nImage = \"quay.io/a/b:2\"\n[Install]\nImage=no\n";
        let image_of = |text, section| last_value(text, section, "Image");
        assert_eq!(image_of(text, "Container").as_deref(), Some("quay.io/a/b:2"));
        assert_eq!(image_of(text, "Image"), None);
        assert_eq!(image_of("[Image]\nImage=\n", "Image").as_deref(), Some(""));
        assert_eq!(
            image_of("\u{feff}[Image]\nImage=quay.io/a:1\n", "Image").as_deref(),
            Some("quay.io/a:1")
        );
        let continued =
            "[Container]\r\nImage=\\\r\n# not this\r\n  quay.io/a/b:3\r\nExec=a \\\r\nImage=no\r\n[Image]\\\n";
        assert_eq!(image_of(continued, "Container").as_deref(), Some("quay.io/a/b:3"));
        assert_eq!(
            image_of("[Image]\nImage=quay.io/a:1\\", "Image").as_deref(),
            Some("quay.io/a:1")
        );
    }

    #[test]
    fn the_last_file_that_gives_a_key_has_the_say_and_an_empty_value_takes_it_back() {
        let unit = |texts: &[&str]| {
            let named = |(n, text): (usize, &&str)| (n.to_string(), format!("[Container]\n{text}\n"));
            Unit(texts.iter().enumerate().map(named).collect())
        };
        let image = |texts: &[&str]| {
            let unit = unit(texts);
            unit.value("Container", "Image")
                .map(|(path, value)| format!("{path} {value}"))
        };
        assert_eq!(image(&["Image=a", "Image=b", "Exec=c"]).as_deref(), Some("1 b"));
        assert_eq!(image(&["Image=a", "Image="]), None);
        assert_eq!(image(&["Image=a", "Image=", "Image=c"]).as_deref(), Some("2 c"));
        // A section ends with its file.
        assert_eq!(image(&["Image=a", "[Image]"]).as_deref(), Some("0 a"));
    }

    #[test]
    fn folders_of_drop_ins_are_those_that_quadlet_knows() {
        let folders = |name: &str| {
            let mut folders: Vec<_> = drop_in_folders(name.as_bytes()).iter().map(|f| shown(f)).collect();
            folders.dedup();
            folders
        };
        assert_eq!(folders("x.image"), ["x.image.d", "image.d"]);
        assert_eq!(
            folders("foo-bar-baz.container"),
            [
                "foo-bar-baz.container.d",
                "foo-bar-.container.d",
                "foo-.container.d",
                "container.d"
            ]
        );
        assert_eq!(
            folders("-x.container"),
            ["-x.container.d", "-.container.d", "container.d"]
        );
        assert_eq!(
            folders("foo-b@x-y.container"),
            [
                "foo-b@x-y.container.d",
                "foo-b@.container.d",
                "foo-@.container.d",
                "foo-.container.d",
                "container.d"
            ]
        );
    }

    #[test]
    fn drop_ins_count_by_their_names_and_the_first_of_the_same_name_hides_the_others() {
        let share = "usr/share/containers/systemd";
        let tree = tree(&[
            "etc/containers/systemd/container.d/10.conf",
            "usr/share/containers/systemd/a-b.container",
            "usr/share/containers/systemd/a-b.container.d/10.conf",
            "usr/share/containers/systemd/a-b.container.d/20.conf",
            "usr/share/containers/systemd/a-b.container.d/20.txt",
            "usr/share/containers/systemd/a-.container.d/20.conf",
            "usr/share/containers/systemd/a-.container.d/05.conf",
            "usr/share/containers/systemd/sub/a-b.container.d/30.conf",
            "usr/share/containers/systemd/some.d/a-b.container.d/40.conf",
            "usr/share/containers/systemd/b.container.d/50.conf",
            "etc/containers/systemd/users/a-b.container.d/60.conf",
        ]);
        let found = drop_ins(&tree, &format!("{share}/a-b.container"));
        assert_eq!(
            found,
            [
                format!("{share}/a-.container.d/05.conf"),
                "etc/containers/systemd/container.d/10.conf".into(),
                format!("{share}/a-b.container.d/20.conf"),
                format!("{share}/sub/a-b.container.d/30.conf"),
            ]
        );
    }

    #[test]
    fn a_file_has_the_name_that_podman_finds_it_by() {
        let tree = tree(&[
            "opt/real.container",
            "opt/real.container.d/1.conf",
            "opt/nick.container.d/2.conf",
            "usr/share/containers/systemd/nick.container -> ../../../../opt/real.container",
            "usr/share/containers/systemd/nick.container.d/3.conf",
            "usr/share/containers/systemd/real.container.d/4.conf",
            "bound/a.container -> /usr/share/containers/systemd/nick.container",
            "bound/b.container -> ../opt/real.container",
            "bound/c.container -> c.container",
            "bound/d.container -> /nowhere/d.container",
        ]);
        let share = "usr/share/containers/systemd";
        assert_eq!(
            drop_ins(&tree, "bound/a.container"),
            [format!("{share}/nick.container.d/3.conf")]
        );
        assert_eq!(
            drop_ins(&tree, "bound/b.container"),
            [
                "bound/../opt/real.container.d/1.conf".to_owned(),
                format!("{share}/real.container.d/4.conf")
            ]
        );
        for none in ["bound/c.container", "bound/d.container"] {
            assert!(drop_ins(&tree, none).is_empty(), "{none}");
        }
    }

    #[test]
    fn a_name_is_looked_for_where_podman_looks_folders_below_and_links_to_folders_too() {
        let tree = tree(&[
            "etc/containers/systemd/users/e.image",
            "opt/l/d.image",
            "usr/share/containers/systemd/a/b.image",
            "usr/share/containers/systemd/a/c/f.image",
            "usr/share/containers/systemd/a-c/f.image",
            "usr/share/containers/systemd/x.d/e.image",
            "usr/share/containers/systemd/lnk -> /opt/l",
            "usr/share/containers/systemd/round -> ..",
            "usr/share/containers/systemd/z/b.image",
        ]);
        let quadlets = Quadlets::of(&tree);
        let find = |name: &str| quadlets.find(name);
        let share = |path: &str| Some(format!("usr/share/containers/systemd/{path}"));
        assert_eq!(find("b.image"), share("a/b.image"));
        assert_eq!(find("f.image"), share("a/c/f.image"));
        assert_eq!(find("d.image"), share("lnk/d.image"));
        assert_eq!(find("e.image"), None);
        assert_eq!(find("a"), None);
    }
}
