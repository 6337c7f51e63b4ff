//! What a boot entry needs to know of an image: its kernel, its name, its kernel arguments.
//!
//! Read from the merged tree before it is transformed, because the boot image has an empty /boot. Nothing is written.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::boot::kernel::{self, Node};
use crate::boot::{FileSource, KernelFiles};
use crate::boot::{HostArguments, cmdline, kargs};
use crate::error::{Error, Result};
use crate::ids::DeploymentId;
use crate::image::reader;
use crate::initrd::{self, Listing};
use crate::pull::{IMAGE_LIMIT, read_file};
use crate::store::Store;
use crate::tree::{Inode, Kind, Regular, Tree};

/// Characters of a title or a version.
const TEXT_LIMIT: usize = 128;

/// What was found.
#[derive(Clone, Debug)]
pub struct Bootable {
    /// Kernel and initrd, as objects of the store.
    pub kernel: KernelFiles,
    /// Where there was a choice: which kernel it is, for the user.
    pub note: Option<String>,
    /// `PRETTY_NAME` of os-release, or `NAME`, or `Linux`.
    pub title: String,
    /// `VERSION_ID`, `IMAGE_VERSION` first.
    pub version: Option<String>,
    /// The image's own kernel arguments.
    pub arguments: Vec<String>,
    /// Folders that the deployment's are mounted on and that are not there.
    missing: Vec<&'static str>,
}

/// Looks at a tree for `architecture` (as the config says it: `amd64`).
///
/// # Errors
/// [`Error::Tree`] where there is no kernel or no initrd, [`Error::Settings`] for kernel arguments that cannot be
/// understood.
pub fn look(store: &Store, tree: &Tree, architecture: &str) -> Result<Bootable> {
    let found = kernel::find(kernel_nodes(tree))?;
    let source = |path: &Path| file_source(store, tree, path);
    let kernel = KernelFiles::new(&found.version, source(&found.linux)?, source(&found.initrd)?);
    let release = os_release(store, tree)?;
    let field = |key: &str| release_field(&release, key);
    Ok(Bootable {
        kernel,
        note: found.note(),
        title: field("PRETTY_NAME")
            .or_else(|| field("NAME"))
            .unwrap_or_else(|| "Linux".into()),
        version: field("IMAGE_VERSION").or_else(|| field("VERSION_ID")),
        arguments: arguments(store, tree, architecture)?,
        missing: missing_folders(tree),
    })
}

/// Every kernel of a tree that has its initrd, the one that [`look`] takes first.
pub(crate) fn kernels(store: &Store, tree: &Tree) -> Result<Vec<KernelFiles>> {
    let pairs = kernel::pairs(kernel_nodes(tree)).into_iter();
    let source = |path: &Path| file_source(store, tree, path);
    pairs
        .map(|(version, linux, initrd)| Ok(KernelFiles::new(version, source(&linux)?, source(&initrd)?)))
        .collect()
}

/// The image's own kernel arguments, from the merged tree or from that of its image.
///
/// # Errors
/// [`Error::Settings`] for a file that cannot be understood.
pub fn arguments(store: &Store, tree: &Tree, architecture: &str) -> Result<Vec<String>> {
    kargs::collect(settings_files(store, tree, &kargs::FOLDERS)?, architecture)
}

/// The same of an image of the store.
///
/// # Errors
/// As [`arguments`], and for an image that cannot be read.
pub(crate) fn arguments_of(store: &Store, image: &DeploymentId, architecture: &str) -> Result<Vec<String>> {
    let tree = reader::read_part(&store.read_object(image, IMAGE_LIMIT)?, b"usr")?;
    arguments(store, &tree, architecture)
}

/// Bytes of the kernel and the initrd that [`look`] would find; reads no file.
pub fn kernel_sizes(tree: &Tree) -> Result<[u64; 2]> {
    let found = kernel::find(kernel_nodes(tree))?;
    let size = |path: &Path| {
        tree.resolve(path.as_os_str().as_bytes())
            .map_or(0, |inode| inode.size())
    };
    Ok([size(&found.linux), size(&found.initrd)])
}

impl Bootable {
    /// What keeps it from booting: no folder to mount the deployment's on, or an initrd that lists its files, with no
    /// program that mounts a deployment among them. Warnings and no refusals, since there may be programs that are not
    /// known here, or settings that mount nothing there; the entry's tries lead back.
    ///
    /// # Errors
    /// What opening the initrd gives.
    pub fn warnings(&self) -> Result<Vec<String>> {
        let missing = self.missing.iter().map(|name| {
            format!(
                "the image has no folder /{name} to mount the deployment's on: it will not boot unless it is made to do \
                 without; make the folder when the image is built"
            )
        });
        let mut warnings: Vec<_> = missing.collect();
        if let Listing::Names(names) = initrd::list(self.kernel.initrd.open()?)
            && !initrd::boots_deployments(&names)
        {
            warnings.push(format!(
                "the initrd of kernel {} has neither /{} nor another program that mounts a deployment: this image will not \
                 boot, and the machine will come back to the deployment before it; `image lint` says what to do",
                self.kernel.version,
                initrd::PROGRAM
            ));
        }
        Ok(warnings)
    }
}

fn missing_folders(tree: &Tree) -> Vec<&'static str> {
    let is_there = |name: &&str| tree.root().child(name.as_bytes()).is_some_and(|folder| folder.is_dir());
    ["etc", "var"].into_iter().filter(|name| !is_there(name)).collect()
}

/// The whole kernel command line of an entry: the image, the root, the image's own arguments, then the host's. Unless
/// these say `ro` or `rw`, it is `rw`: /etc and /var are on that root, and systemd tries to remount / otherwise, which
/// is an overlay that cannot be written to.
pub fn command_line(id: &DeploymentId, root: &str, image: &[String], host: &HostArguments) -> Vec<String> {
    let mut options = vec![cmdline::digest_argument(id, host.allow_missing_verity)];
    let own_root = |a: &&String| a.starts_with("root=");
    let host = &host.kernel_arguments;
    if !image.iter().chain(host).any(|a| own_root(&a)) {
        options.push(format!("root={root}"));
    }
    if !image.iter().chain(host).any(|a| a == "ro" || a == "rw") {
        options.push("rw".into());
    }
    options.extend(image.iter().chain(host).cloned());
    options
}

/// The `root=` of a list of arguments; the last one counts, as for the kernel.
pub fn root_of(options: &[String]) -> Option<&str> {
    options.iter().rev().find_map(|option| option.strip_prefix("root="))
}

/// What may be a kernel or initrd, for [`kernel::find`].
pub(crate) fn kernel_nodes(tree: &Tree) -> Vec<(PathBuf, Node)> {
    let mut nodes = Vec::new();
    for (path, inode) in relative_walk(tree) {
        if !kernel::is_relevant(&path) {
            continue;
        }
        match inode.kind() {
            Kind::Regular(_) => nodes.push((path, Node::File(inode.size()))),
            Kind::Symlink(target) => nodes.push((path, Node::Link(as_path(target).to_path_buf()))),
            _ => {}
        }
    }
    nodes
}

/// Only what can hold a kernel: /boot and the module folders. Walking all of /usr would cost more than it finds.
fn relative_walk(tree: &Tree) -> Vec<(PathBuf, Inode<'_>)> {
    let mut found = Vec::new();
    for (folder, depth) in [("boot", 1), ("usr/lib/modules", 2)] {
        if let Some(inode) = tree.lookup(folder) {
            descend(Path::new(folder), inode, depth, &mut found);
        }
    }
    found.extend(
        tree.root()
            .children()
            .map(|child| (as_path(child.name).to_path_buf(), child.inode)),
    );
    found
}

fn descend<'t>(folder: &Path, inode: Inode<'t>, depth: usize, found: &mut Vec<(PathBuf, Inode<'t>)>) {
    for child in inode.children() {
        let path = folder.join(as_path(child.name));
        if child.inode.is_dir() && depth > 1 {
            descend(&path, child.inode, depth - 1, found);
        } else {
            found.push((path, child.inode));
        }
    }
}

fn as_path(name: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name))
}

fn file_source(store: &Store, tree: &Tree, path: &Path) -> Result<FileSource> {
    let missing = || Error::Tree {
        path: path.to_path_buf(),
        why: "is not a regular file with content".into(),
    };
    match tree.resolve(path.as_os_str().as_bytes()).ok_or_else(missing)?.kind() {
        Kind::Regular(Regular::Inline(content)) => Ok(FileSource::Bytes(content.to_vec())),
        Kind::Regular(Regular::External { id: Some(id), .. }) => Ok(FileSource::Object {
            path: store.object_path(&id),
            id,
        }),
        _ => Err(missing()),
    }
}

fn os_release(store: &Store, tree: &Tree) -> Result<String> {
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(inode) = tree.resolve(path) {
            let text = read_file(store, path, inode)?;
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(String::new())
}

/// A value of os-release(5), as it is [`shown`]: shell-like, quotes taken off; the last one counts.
pub(crate) fn release_field(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    let quoted = |q: char| value.strip_prefix(q).and_then(|v| v.strip_suffix(q));
    let plain = match (quoted('"'), quoted('\'')) {
        (Some(inner), _) => unescape(inner),
        (None, Some(inner)) => inner.into(),
        (None, None) => unescape(value),
    };
    shown(&plain)
}

/// A text of an image as menus and records show it: one line, cut where it is too long; nothing where it is empty.
pub(crate) fn shown(text: &str) -> Option<String> {
    let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = clean.take(TEXT_LIMIT).collect();
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

/// The `*.toml` of these folders of an image, with their text; folder by folder.
pub(crate) fn settings_files(store: &Store, tree: &Tree, folders: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for folder in folders {
        let Some(inode) = tree.resolve(folder) else {
            continue;
        };
        for child in inode.children() {
            let name = String::from_utf8_lossy(child.name).into_owned();
            if !kargs::is_name(&name) {
                continue;
            }
            let path = format!("{folder}/{name}");
            let file = tree.resolve(&path).ok_or_else(|| Error::Tree {
                path: path.clone().into(),
                why: "leads nowhere".into(),
            })?;
            let text = String::from_utf8(read_file(store, &path, file)?).map_err(|_| Error::Settings {
                path: path.clone().into(),
                why: "is not UTF-8".into(),
            })?;
            files.push((path.into(), text));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes_and_nothing_else() {
        let text = "NAME=Debian\nPRETTY_NAME=\"Debian \\\"13\\\" \\$x\"\nVERSION_ID='13'\nEMPTY=\"\"\nNAMEX=no\n";
        let field = |key| release_field(text, key);
        assert_eq!(field("PRETTY_NAME").unwrap(), "Debian \"13\" $x");
        assert_eq!(field("NAME").unwrap(), "Debian");
        assert_eq!(field("VERSION_ID").unwrap(), "13");
        assert_eq!(field("EMPTY"), None);
        assert_eq!(field("MISSING"), None);
    }

    #[test]
    fn texts_of_an_image_are_one_line_of_sensible_length() {
        assert_eq!(shown(" 1\n2\u{1b}[m\u{9b} ").unwrap(), "1 2 [m");
        assert_eq!(shown("\n \u{1}"), None);
        assert_eq!(shown(&"ü".repeat(300_000)).unwrap(), "ü".repeat(128));
    }

    #[test]
    fn an_images_own_root_argument_wins_over_the_hosts_device() {
        let id: DeploymentId = "ab".repeat(32).parse().unwrap();
        let line = |image: &[&str]| {
            let image: Vec<_> = image.iter().map(|s| (*s).to_owned()).collect();
            command_line(&id, "UUID=1", &image, &HostArguments::default())
        };
        assert_eq!(line(&["quiet"])[1..], ["root=UUID=1", "rw", "quiet"]);
        assert_eq!(line(&["root=LABEL=r"])[1..], ["rw", "root=LABEL=r"]);
        assert_eq!(line(&["quiet", "ro"])[1..], ["root=UUID=1", "quiet", "ro"]);
        assert_eq!(line(&["rw"])[1..], ["root=UUID=1", "rw"]);
        assert!(line(&[])[0].starts_with("composefs.digest=v1-sha256-12:abab"));
        assert_eq!(root_of(&line(&["root=a", "root=b"])), Some("b"));
    }
}
