//! The real podman of Debian 13.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{repository, tool};

/// Runs a script with podman in it, as on a machine of its own; the folder `shared` is there under its own name. Gives
/// what it said. Root only.
#[track_caller]
pub fn run(shared: &Path, text: &str) -> String {
    let (script, root) = (repository().join("testdata/podman.sh"), root());
    let run: [&OsStr; 5] = [
        script.as_ref(),
        "run".as_ref(),
        root.as_ref(),
        shared.as_ref(),
        text.as_ref(),
    ];
    tool("sh", run)
}

/// Debian 13 with podman, made on first need.
fn root() -> PathBuf {
    static MADE: std::sync::Once = std::sync::Once::new();
    let script = repository().join("testdata/podman.sh");
    let root = repository().join("target/podman-root");
    MADE.call_once(|| drop(tool("sh", [&script, Path::new("make"), &root])));
    root
}
