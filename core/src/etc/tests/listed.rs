//! What is read from a folder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::sys::dir::Dir;

#[test]
fn a_folder_is_listed_without_following_links() {
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path().join("etc");
    std::fs::create_dir_all(etc.join("d")).unwrap();
    std::fs::write(etc.join("d/f"), "content").unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    symlink("../secret", etc.join("out")).unwrap();
    symlink("d", etc.join("loop")).unwrap();
    let odd = etc.join(OsStr::from_bytes(b"\xff\n"));
    std::fs::write(&odd, "").unwrap();
    std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o640)).unwrap();
    let source = FolderSource::scan(&etc, Algorithm::Sha512).unwrap();
    let kinds: BTreeMap<_, _> = source
        .listing()
        .iter()
        .map(|(path, node)| (path.to_path_buf(), node.item.clone()))
        .collect();
    let expected = [
        (PathBuf::new(), Item::Directory),
        ("d".into(), Item::Directory),
        ("d/f".into(), Item::Regular(verity::hash(Algorithm::Sha512, b"content"))),
        ("loop".into(), Item::Symlink(b"d"[..].into())),
        ("out".into(), Item::Symlink(b"../secret"[..].into())),
        (
            OsStr::from_bytes(b"\xff\n").into(),
            Item::Regular(verity::hash(Algorithm::Sha512, b"")),
        ),
    ];
    assert_eq!(kinds, BTreeMap::from(expected));
    assert!(source.open(Path::new("loop/f")).is_err());
    assert!(source.open(Path::new("out")).is_err());
    let mut text = String::new();
    source
        .open(Path::new("d/f"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "content");
}

#[test]
fn folders_nested_too_deeply_are_refused_instead_of_exhausting_the_stack() {
    let folder = tempfile::tempdir().unwrap();
    let top = Dir::create(&folder.path().join("etc")).unwrap();
    let mut at = top.walk(Path::new("")).unwrap();
    for _ in 0..MAX_DEPTH {
        at = at.make_dir(OsStr::new("d")).unwrap();
    }
    let error = FolderSource::scan(&folder.path().join("etc"), Algorithm::Sha256).unwrap_err();
    assert!(error.to_string().contains("nested too deeply"), "{error}");
}
