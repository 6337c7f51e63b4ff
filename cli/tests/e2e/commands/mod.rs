//! Every command on small images: what it prints, in which form, and its exit code.

mod deployments;
mod downloads;
mod image;
mod kargs;
mod machine;
mod output;
mod store;
mod sysroot;

use std::fs;

use serde_json::{Value, json};

use crate::common::layout::{self, How, Layer, small};
use crate::common::{Cfs, list, name, objects, scratch, tool};

/// Version `version` under the tag `stable` of a layout in `dir`.
pub fn publish(dir: &std::path::Path, version: u32) -> String {
    small(version, &format!("kernel-{version}"), 4, 3000)
        .finish()
        .layout(&dir.join("oci"), "stable")
}

/// A sysroot with version 1 and version 2 deployed.
pub fn updated(dir: &std::path::Path) -> Cfs {
    let cfs = Cfs::new(dir);
    cfs.run(["switch", &publish(dir, 1)]).expect(0);
    publish(dir, 2);
    cfs.run(["upgrade"]).expect(0);
    cfs
}
