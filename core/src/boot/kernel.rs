//! Which kernel of an image is booted.
//!
//! Pure: it gets the paths of a tree and gives back two of them. Among several versions the newest one that
//! has both kernel and initrd is chosen, and what was passed over is said, because that is what a person asks first
//! when another kernel boots than expected.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::boot::version;
use crate::error::{Error, Result};

/// What stands at a path of the tree, as far as finding a kernel needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A regular file of this many bytes.
    File(u64),
    /// A symbolic link to this target.
    Link(PathBuf),
}

/// The kernel of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As in `uname -r`.
    pub version: String,
    /// Path of the kernel, relative to the root, links followed.
    pub linux: PathBuf,
    /// Path of the initrd, relative to the root, links followed.
    pub initrd: PathBuf,
    /// The other versions and why each was passed over, newest first.
    pub others: Vec<(String, String)>,
}

impl Found {
    /// A line for the user, where there was a choice.
    pub fn note(&self) -> Option<String> {
        if self.others.is_empty() {
            return None;
        }
        let others: Vec<String> = self
            .others
            .iter()
            .map(|(version, why)| format!("{version} ({why})"))
            .collect();
        Some(format!("kernel {} is booted, not {}", self.version, others.join(", ")))
    }
}

/// Whether [`find`] has to see this path (relative to the root, no `./`): callers that walk a big tree can leave the
/// others out.
pub fn is_relevant(path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    matches!(parts.as_slice(), [_] | ["boot", _] | ["usr", "lib", "modules", _, _])
}

/// Finds kernel and initrd among the regular files and symbolic links of a tree; paths are relative to its root.
///
/// `usr/lib/modules/VERSION/{vmlinuz,initramfs.img}`, or `boot/vmlinuz-VERSION` and `boot/initrd.img-VERSION`.
///
/// # Errors
/// [`Error::Tree`] when no version has both, saying what is missing.
pub fn find<P: AsRef<Path>>(nodes: impl IntoIterator<Item = (P, Node)>) -> Result<Found> {
    let mut chosen = None;
    let mut others = Vec::new();
    for (own, pair) in versions(nodes) {
        match (&chosen, pair) {
            (None, Ok((linux, initrd))) => chosen = Some((own, linux, initrd)),
            (Some(_), Ok(_)) => others.push((own, "older".to_owned())),
            (_, Err(missing)) => others.push((own, missing)),
        }
    }
    let Some((version, linux, initrd)) = chosen else {
        return Err(none(others));
    };
    Ok(Found {
        version,
        linux,
        initrd,
        others,
    })
}

/// Version, kernel and initrd of all versions that have both, newest first.
pub fn pairs<P: AsRef<Path>>(nodes: impl IntoIterator<Item = (P, Node)>) -> Vec<(String, PathBuf, PathBuf)> {
    let whole = |(version, pair): (String, Pair)| pair.ok().map(|(linux, initrd)| (version, linux, initrd));
    versions(nodes).into_iter().filter_map(whole).collect()
}

/// Kernel and initrd, or what is wrong with them.
type Pair = Result<(PathBuf, PathBuf), String>;

/// All versions, newest first.
fn versions<P: AsRef<Path>>(nodes: impl IntoIterator<Item = (P, Node)>) -> Vec<(String, Pair)> {
    let nodes: BTreeMap<PathBuf, Node> = nodes
        .into_iter()
        .map(|(path, node)| (normalize(Path::new(""), path.as_ref()), node))
        .filter_map(|(path, node)| Some((path?, node)))
        .filter(|(path, _)| is_relevant(path))
        .collect();
    let versions: BTreeSet<String> = nodes.keys().filter_map(|path| version_of(path)).collect();
    let mut versions: Vec<_> = versions.into_iter().collect();
    versions.sort_by(|a, b| version::compare(b, a).then_with(|| b.cmp(a)));
    let of_version = |version: String| {
        let pair = pair(&nodes, &version);
        (version, pair)
    };
    versions.into_iter().map(of_version).collect()
}

/// The version that a kernel or initrd path belongs to.
fn version_of(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
    let version = match parts.as_slice() {
        ["usr", "lib", "modules", version, "vmlinuz" | "initramfs.img"] => version,
        ["boot", name] => name
            .strip_prefix("vmlinuz-")
            .or_else(|| name.strip_prefix("initrd.img-"))?,
        _ => return None,
    };
    let leftovers = [
        ".old",
        ".bak",
        ".tmp",
        ".new",
        "~",
        ".dpkg-bak",
        ".dpkg-new",
        ".dpkg-old",
        ".dpkg-tmp",
    ];
    let usable = !version.is_empty() && !leftovers.iter().any(|end| version.ends_with(end));
    usable.then(|| version.to_owned())
}

/// Kernel and initrd of a version, or what is wrong with it.
fn pair(nodes: &BTreeMap<PathBuf, Node>, version: &str) -> Pair {
    let modules = Path::new("usr/lib/modules").join(version);
    let linux = [
        modules.join("vmlinuz"),
        PathBuf::from(format!("boot/vmlinuz-{version}")),
    ];
    let initrd = [
        modules.join("initramfs.img"),
        PathBuf::from(format!("boot/initrd.img-{version}")),
    ];
    match (first(nodes, &linux), first(nodes, &initrd)) {
        (Ok(linux), Ok(initrd)) => Ok((linux, initrd)),
        (Err(why), Ok(_)) => Err(why.unwrap_or_else(|| "no kernel".into())),
        (Ok(_), Err(why)) => Err(why.unwrap_or_else(|| "no initrd".into())),
        (Err(why), Err(_)) => Err(why.unwrap_or_else(|| "neither kernel nor initrd".into())),
    }
}

/// The first of the paths that leads to a file with something in it; otherwise why none does, if there is anything.
fn first(nodes: &BTreeMap<PathBuf, Node>, paths: &[PathBuf]) -> Result<PathBuf, Option<String>> {
    let mut why = None;
    for path in paths {
        match resolve(nodes, path) {
            Some((_, 0)) => why = why.or(Some(format!("/{} is empty", path.display()))),
            Some((file, _)) => return Ok(file),
            None if nodes.contains_key(path) => why = why.or(Some(format!("/{} leads nowhere", path.display()))),
            None => {}
        }
    }
    Err(why)
}

/// Follows links that stay among the relevant paths.
fn resolve(nodes: &BTreeMap<PathBuf, Node>, path: &Path) -> Option<(PathBuf, u64)> {
    let mut path = path.to_path_buf();
    for _ in 0..40 {
        match nodes.get(&path)? {
            Node::File(size) => return Some((path, *size)),
            Node::Link(target) => path = normalize(path.parent()?, target)?,
        }
    }
    None
}

/// `path` as seen from `folder`, without `.` and `..`; as in the kernel, `..` of the root is the root.
fn normalize(folder: &Path, path: &Path) -> Option<PathBuf> {
    let mut result = folder.to_path_buf();
    for part in path.components() {
        match part {
            Component::RootDir => result = PathBuf::new(),
            Component::ParentDir => drop(result.pop()),
            Component::Normal(name) => result.push(name),
            Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(result)
}

fn none(others: Vec<(String, String)>) -> Error {
    let (path, why) = if others.is_empty() {
        (
            "/usr/lib/modules",
            "no kernel: expected /usr/lib/modules/VERSION/vmlinuz or /boot/vmlinuz-VERSION".to_owned(),
        )
    } else {
        let each: Vec<String> = others
            .iter()
            .map(|(version, why)| format!("{version}: {why}"))
            .collect();
        ("/boot", format!("no kernel with its initrd ({})", each.join("; ")))
    };
    Error::Tree {
        path: path.into(),
        why: format!(
            "{why}; install a kernel package in the image and make its initrd (update-initramfs or dracut), as \
             /usr/lib/modules/VERSION/initramfs.img or /boot/initrd.img-VERSION"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> (PathBuf, Node) {
        (path.into(), Node::File(1000))
    }

    fn link(path: &str, target: &str) -> (PathBuf, Node) {
        (path.into(), Node::Link(target.into()))
    }

    #[test]
    fn debian_and_modules_layouts_are_found() {
        let debian = [
            link("vmlinuz", "boot/vmlinuz-6.12.48+deb13-amd64"),
            link("initrd.img", "boot/initrd.img-6.12.48+deb13-amd64"),
            file("boot/vmlinuz-6.12.48+deb13-amd64"),
            file("boot/initrd.img-6.12.48+deb13-amd64"),
            file("boot/config-6.12.48+deb13-amd64"),
            file("usr/lib/modules/6.12.48+deb13-amd64/modules.dep"),
            file("etc/passwd"),
        ];
        let found = find(debian).unwrap();
        assert_eq!(found.version, "6.12.48+deb13-amd64");
        assert_eq!(found.linux, Path::new("boot/vmlinuz-6.12.48+deb13-amd64"));
        assert_eq!(found.initrd, Path::new("boot/initrd.img-6.12.48+deb13-amd64"));
        assert_eq!(found.note(), None);

        let fedora = ["vmlinuz", "initramfs.img"].map(|name| file(&format!("usr/lib/modules/6.9.1-200.fc40/{name}")));
        let found = find(fedora).unwrap();
        assert_eq!(found.version, "6.9.1-200.fc40");
        assert_eq!(found.initrd, Path::new("usr/lib/modules/6.9.1-200.fc40/initramfs.img"));
    }

    #[test]
    fn the_newest_complete_version_is_chosen_and_the_others_are_named() {
        let nodes = [
            file("boot/vmlinuz-6.1.0-9-amd64"),
            file("boot/initrd.img-6.1.0-9-amd64"),
            file("boot/vmlinuz-6.1.0-25-amd64"),
            file("boot/initrd.img-6.1.0-25-amd64"),
            file("boot/vmlinuz-6.1.0-30-amd64"),
            file("boot/initrd.img-6.1.0-7-amd64"),
        ];
        let versions: Vec<_> = pairs(nodes.clone()).into_iter().map(|(version, ..)| version).collect();
        assert_eq!(versions, ["6.1.0-25-amd64", "6.1.0-9-amd64"]);
        let found = find(nodes).unwrap();
        assert_eq!(found.version, "6.1.0-25-amd64");
        let note = found.note().unwrap();
        assert_eq!(
            note,
            "kernel 6.1.0-25-amd64 is booted, not 6.1.0-30-amd64 (no initrd), 6.1.0-9-amd64 (older), 6.1.0-7-amd64 (no \
             kernel)"
        );
    }

    #[test]
    fn a_kernel_in_one_place_and_its_initrd_in_the_other_belong_together() {
        let found = find([file("usr/lib/modules/6.1/vmlinuz"), file("boot/initrd.img-6.1")]).unwrap();
        assert_eq!(found.linux, Path::new("usr/lib/modules/6.1/vmlinuz"));
        assert_eq!(found.initrd, Path::new("boot/initrd.img-6.1"));
    }

    #[test]
    fn links_are_followed_to_the_file() {
        let found = find([
            link("usr/lib/modules/6.1/vmlinuz", "../../../../boot/vmlinuz-6.1"),
            link("boot/vmlinuz-6.1", "/boot/./kernel"),
            file("boot/kernel"),
            file("usr/lib/modules/6.1/initramfs.img"),
        ])
        .unwrap();
        assert_eq!(found.linux, Path::new("boot/kernel"));
    }

    #[test]
    fn links_in_a_circle_and_empty_files_are_no_kernel() {
        let error = find([
            link("boot/vmlinuz-6.1", "vmlinuz-6.1"),
            file("boot/initrd.img-6.1"),
            file("boot/vmlinuz-6.2"),
            ("boot/initrd.img-6.2".into(), Node::File(0)),
            link("boot/vmlinuz-6.0", "../../outside"),
        ])
        .unwrap_err()
        .to_string();
        for part in [
            "/boot/vmlinuz-6.1 leads nowhere",
            "/boot/initrd.img-6.2 is empty",
            "update-initramfs",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn an_image_without_a_kernel_is_refused_with_what_to_do() {
        let error = find([file("etc/os-release"), file("boot/grub.cfg")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no kernel: expected /usr/lib/modules/VERSION/vmlinuz"),
            "{error}"
        );
        assert!(error.contains("install a kernel package"), "{error}");
    }

    #[test]
    fn backups_of_package_managers_are_no_versions() {
        let error = find([file("boot/vmlinuz-6.1.old"), file("boot/initrd.img-6.1.old")]).unwrap_err();
        assert!(error.to_string().contains("no kernel"), "{error}");
        let found = find([
            file("boot/vmlinuz-6.1"),
            file("boot/initrd.img-6.1"),
            file("boot/vmlinuz-6.1.dpkg-bak"),
            file("boot/initrd.img-6.1.dpkg-bak"),
        ]);
        assert_eq!(found.unwrap().version, "6.1");
    }
}
