//! What the journal is told apart from the lines that a unit prints: messages that others look for by their id.

use std::path::Path;

use cfs_core::ids::DeploymentId;
use cfs_core::sys::journal;
use cfs_core::sysroot::Sysroot;

/// "The previous deployment boots next": bootc's, which monitoring knows (`journalctl MESSAGE_ID=…`).
const ROLLBACK: &str = "26f3b1eb24464d12aa5e7b544a6b5468";

/// The running system goes back to `to`. Without a journal nobody is told, and nothing else is different.
pub fn rolled_back(sysroot: &Sysroot, to: &DeploymentId, why: &str) {
    let Some(running) = sysroot.booted() else { return };
    let message = format!("Rolling back to deployment {to}: {why}");
    let fields = [
        ("MESSAGE_ID", ROLLBACK),
        ("MESSAGE", message.as_str()),
        ("PRIORITY", "5"),
        ("SYSLOG_IDENTIFIER", "cfs-update"),
        ("CFS_UPDATE_DEPLOYMENT", &to.to_hex()),
        ("CFS_UPDATE_RUNNING", &running.to_hex()),
    ];
    if let Err(error) = journal::send(Path::new(journal::SOCKET), &fields) {
        tracing::debug!("not in the journal: {error}");
    }
}
