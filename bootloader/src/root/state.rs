//! The deployment's own /etc and the shared /var, opened before anything is mounted.
//!
//! Invariant: no component below SYSROOT is followed as a link, but for `var`, whose text must be one that leads to
//! `state/os/NAME/var`.

use std::path::{Path, PathBuf};

use cfs_core::deployment::Layout;
use cfs_core::ids::ObjectId;
use cfs_core::sys::dir::Dir;

use crate::config::{Config, Etc};
use crate::refusal::Refusal;

/// What the configuration wants of `state/deploy/<id>`.
#[derive(Debug, Default)]
pub struct State {
    pub etc: Option<Dir>,
    pub var: Option<Dir>,
}

/// Opens what is wanted.
pub fn open(sysroot: &Dir, id: &ObjectId, config: &Config) -> Result<State, Refusal> {
    if !config.uses_state() {
        return Ok(State::default());
    }
    let layout = Layout::new(sysroot.path());
    let missing = |what: &str, expected: &Path, found: String| {
        Refusal::new(
            format!("deployment {} has no {what}", id.short()),
            format!("the folder {}", expected.display()),
            found,
        )
        .remedy("boot another deployment and deploy this image again; `cfs-update fsck` says what else is missing")
    };
    let below = |path: &Path| path.strip_prefix(sysroot.path()).unwrap_or(path).to_owned();
    let record = layout.record(id);
    let folder = sysroot
        .walk(&below(&record))
        .map_err(|e| missing("state", &record, e.to_string()))?;
    let mut state = State::default();
    if matches!(config.etc, Etc::Bind | Etc::Overlay) {
        let etc = folder.open_dir("etc".as_ref());
        state.etc = Some(etc.map_err(|e| missing("/etc", &layout.etc(id), e.to_string()))?);
    }
    if config.binds_var() {
        let place = var(&folder)?;
        let path = place
            .as_ref()
            .map_or_else(|| record.join("var"), |place| sysroot.path().join(place));
        let var = match place {
            Some(place) => sysroot.walk(&place),
            None => folder.open_dir("var".as_ref()),
        };
        state.var = Some(var.map_err(|e| missing("/var", &path, e.to_string()))?);
    }
    Ok(state)
}

/// Where the record's `var` leads, below SYSROOT; `None` for a folder of its own.
fn var(record: &Dir) -> Result<Option<PathBuf>, Refusal> {
    let Ok(target) = record.read_link("var".as_ref()) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&target).into_owned();
    let name = text
        .strip_prefix("../../os/")
        .and_then(|rest| rest.strip_suffix("/var"));
    match name {
        Some(name) if !name.is_empty() && !name.contains('/') && name != "." && name != ".." => {
            Ok(Some(Path::new("state/os").join(name).join("var")))
        }
        _ => Err(Refusal::new(
            format!("{} leads elsewhere", record.path().join("var").display()),
            "a link to ../../os/default/var",
            format!("a link to {text}"),
        )
        .by_trust()
        .remedy("boot another deployment and put the link right")),
    }
}
