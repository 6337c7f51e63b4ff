//! The measure that the mount tests compare with, checked by itself: what GNU tar makes of the real Debian layers.

use std::path::Path;

use crate::common::{OsImage, is_root, reference, scratch, walk};

#[test]
fn the_real_layers_hold_what_the_tests_rely_on() {
    if !is_root("extracting a real image with its owners") {
        return;
    }
    let os = OsImage::get();
    let dir = scratch();
    let (one, two) = (dir.path().join("1"), dir.path().join("2"));
    for (root, version) in [(&one, 1), (&two, 2)] {
        std::fs::create_dir(root).unwrap();
        reference::extract(&os.layers(version), root);
    }
    let (one, two) = (walk::walk(&one), walk::walk(&two));
    assert!(one.len() > 5000, "a real system, not {} files", one.len());
    let has = |tree: &walk::Tree, path: &str| tree.contains_key(Path::new(path));
    assert!(has(&one, "usr/lib/systemd/systemd"));
    assert!(has(&one, "etc/removed-in-v2.conf") && !has(&two, "etc/removed-in-v2.conf"));
    assert!(has(&one, "etc/site.d/b") && !has(&two, "etc/site.d/b") && has(&two, "etc/site.d/c"));
    assert!(has(&one, "usr/share/site/hard-b") && !has(&two, "usr/share/site/hard-b"));
    assert_eq!(one[Path::new("usr/share/site/sub/hard-c")].nlink, 3);
    assert_eq!(two[Path::new("usr/share/site/sub/hard-c")].nlink, 2);
    assert_eq!(
        two[Path::new("usr/share/site/across-layers")].same_as,
        Path::new("usr/bin/true")
    );
    assert_eq!(one[Path::new("usr/share/site/becomes-file")].kind, 'd');
    assert_eq!(two[Path::new("usr/share/site/becomes-file")].kind, 'f');
    assert_eq!(
        one[Path::new("usr/share/site/subsecond")].mtime,
        (981_173_106, 789_012_345)
    );
    assert!(
        one[Path::new("usr/lib/site/ping")]
            .xattrs
            .contains_key("security.capability")
    );
    assert!(one[Path::new("usr/share/site/xattr")].xattrs.contains_key("user.note"));
    assert_eq!(walk::differences(&one, &one), Vec::<String>::new());
    let booted = reference::transform(&two, true);
    assert!(!booted.keys().any(|p| p.starts_with("boot") && p != Path::new("boot")));
    assert!(!walk::differences(&two, &booted).is_empty());
}
