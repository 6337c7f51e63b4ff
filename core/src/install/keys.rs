//! Who may log in as root of a system that was just installed: a drop-in of tmpfiles.d in its /etc.
//!
//! As bootc does it, because root's home is in /var, which the first boot fills. In /etc it is a change by the
//! administrator like any other: updates keep it. Written before there is an entry that boots the deployment.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};
use crate::sys::dir::{Dir, Handle};
use crate::sys::fs::{Fs, RealFs};
use crate::tree::{Kind, Tree};

const FOLDER: &str = "tmpfiles.d";
const FILE: &str = "cfs-update-root-ssh.conf";
const LABEL: &[u8] = b"security.selinux";

/// Writes the drop-in into `etc`, the new deployment's. What is worth a warning comes back.
///
/// # Errors
/// [`Error::Usage`] for keys that are empty or no text.
pub fn add(etc: &Path, tree: &Tree, keys: &[u8]) -> Result<Option<String>> {
    let home = home(tree);
    let text = drop_in(&home, keys)?;
    let folder = Dir::open(etc)?;
    let name = OsStr::new(FOLDER);
    let folder = match folder.stat(name)? {
        Some(_) => folder.open_dir(name)?,
        None => {
            let made = folder.make_dir(name)?;
            made.handle().set_mode(0o755)?;
            like(&made.handle(), &folder)?;
            made
        }
    };
    let path = folder.path().join(FILE);
    // Of an attempt that failed later.
    RealFs.remove_file(&path)?;
    let mut file = folder.make_file(OsStr::new(FILE))?;
    file.write_all(text.as_bytes())
        .map_err(|e| Error::io("write", &path, e))?;
    let handle = Handle { fd: &file, path: &path };
    handle.set_mode(0o644)?;
    like(&handle, &folder)?;
    RealFs.sync_all(etc)?;
    let writable = ["var", "etc", "run"].iter().any(|top| home.starts_with(top));
    let warning = format!(
        "/{} is in the image's root, which is read-only: the keys can be put there only where the root is transient; \
         make /root a link to var/roothome in the image",
        home.display()
    );
    Ok((!writable).then_some(warning))
}

/// Labelled as the folder it is in, where that has a label: both are configuration.
fn like<F: std::os::fd::AsFd>(handle: &Handle<'_, F>, folder: &Dir) -> Result<()> {
    match folder.own_xattrs()?.iter().find(|(key, _)| **key == *LABEL) {
        Some((key, label)) => handle.set_xattr(key, label),
        None => Ok(()),
    }
}

fn drop_in(home: &Path, keys: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(keys).map_err(|_| Error::Usage("the authorized keys are no text".into()))?;
    if !text
        .lines()
        .any(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        return Err(Error::Usage("there is no key in the file of authorized keys".into()));
    }
    let home = home.display();
    Ok(format!(
        "# Written by cfs-update install (--root-ssh-authorized-keys).\n\
         d /{home}/.ssh 0700 root root -\n\
         f~ /{home}/.ssh/authorized_keys 0600 root root - {}\n",
        STANDARD.encode(text)
    ))
}

/// Root's home, relative to the root of the tree: where the link `/root` points, if it is one.
fn home(tree: &Tree) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let link = tree.lookup("root").and_then(|inode| match inode.kind() {
        Kind::Symlink(target) => Some(Path::new(OsStr::from_bytes(target)).to_path_buf()),
        _ => None,
    });
    let plain = |path: PathBuf| {
        let mut home = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => home.push(name),
                Component::ParentDir => drop(home.pop()),
                _ => {}
            }
        }
        home
    };
    link.map(plain)
        .filter(|home| !home.as_os_str().is_empty())
        .unwrap_or_else(|| "root".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::image::dump;

    const KEY: &[u8] = b"ssh-ed25519 AAAA example@demo\n";

    fn tree(root: &str) -> Tree {
        dump::parse(format!("/ 0 40755 3 0 0 0 0.0 - - -\n{root}\n").as_bytes()).unwrap()
    }

    #[test]
    fn the_keys_go_where_the_link_root_points() {
        for (target, home) in [
            ("var/roothome", "var/roothome"),
            ("/var/roothome", "var/roothome"),
            ("../var/./r", "var/r"),
        ] {
            let tree = tree(&format!("/root {} 120777 1 0 0 0 0.0 {target} - -", target.len()));
            let etc = tempfile::tempdir().unwrap();
            assert_eq!(add(etc.path(), &tree, KEY).unwrap(), None);
            let path = etc.path().join("tmpfiles.d/cfs-update-root-ssh.conf");
            let text = std::fs::read_to_string(&path).unwrap();
            let wanted = format!(
                "d /{home}/.ssh 0700 root root -\nf~ /{home}/.ssh/authorized_keys 0600 root root - {}\n",
                STANDARD.encode(KEY)
            );
            assert!(text.ends_with(&wanted), "{text}");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        }
    }

    #[test]
    fn a_home_in_the_read_only_root_is_warned_of() {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir(etc.path().join("tmpfiles.d")).unwrap();
        let warning = add(etc.path(), &tree("/root 0 40700 2 0 0 0 0.0 - - -"), KEY)
            .unwrap()
            .unwrap();
        assert!(warning.contains("make /root a link to var/roothome"), "{warning}");
    }

    #[test]
    fn nothing_is_written_through_a_link_and_no_keys_are_a_mistake() {
        let etc = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), etc.path().join("tmpfiles.d")).unwrap();
        let tree = tree("/root 12 120777 1 0 0 0 0.0 var/roothome - -");
        assert!(add(etc.path(), &tree, KEY).is_err());
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        for keys in [&b""[..], b"# only a comment\n\n", b"\xff\xfe"] {
            assert!(matches!(add(etc.path(), &tree, keys), Err(Error::Usage(_))));
        }
    }
}
