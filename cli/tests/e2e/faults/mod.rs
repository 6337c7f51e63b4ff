//! What goes wrong on the way: content that is not what it says, no space, no network, a kill in the middle, a second
//! run. Each time: a clear error with its exit code, nothing half-done visible, and the same command succeeds
//! afterwards.

mod content;
mod health;
mod killed;
mod sysroot;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::layout::{How, Image, base, digest, noise, small};
use crate::common::registry::Silent;
use crate::common::{Cfs, Ran, list, name, scratch};

/// Nothing that a user, a boot loader or another tool would take for a deployment or an image.
#[track_caller]
fn nothing_half_done(cfs: &Cfs) {
    let root = cfs.sysroot();
    assert_eq!(
        list(&root.join("boot/loader/entries")),
        Vec::<PathBuf>::new(),
        "no boot entry"
    );
    assert_eq!(list(&root.join("state/deploy")), Vec::<PathBuf>::new(), "no deployment");
    // A layer that arrived whole may stay; what would make an image of it may not.
    let named = |dir: &str| {
        list(&root.join(dir))
            .iter()
            .map(|p| name(p))
            .filter(|n| n != "refs")
            .collect::<Vec<_>>()
    };
    assert_eq!(named("composefs/images"), Vec::<String>::new());
    let streams = named("composefs/streams");
    assert!(
        !streams
            .iter()
            .any(|n| n.starts_with("oci-manifest") || n.starts_with("oci-config")),
        "{streams:?}"
    );
}

#[track_caller]
fn says(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(ran.stderr.contains(word), "'{word}' is not in: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
}
