//! Whether bytes cost money here, as NetworkManager sees it.
//!
//! It is asked over D-Bus through `busctl`, which is where systemd is; it is never started for that. Where there is no
//! NetworkManager, or nobody who could ask it, nothing is known, and nothing is held back.

use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicBool, Ordering};

use cfs_core::monitor::{Event, Monitor};
use cfs_core::sys::process;
use serde::Serialize;

/// `Metered` of org.freedesktop.NetworkManager, as bytes on standard output: `v u 4`.
const ASK: [&str; 11] = [
    "--system",
    "--auto-start=no",
    "--timeout=3",
    "call",
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.DBus.Properties",
    "Get",
    "ss",
    "org.freedesktop.NetworkManager",
    "Metered",
];

/// The way to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// By the user's word, or by what NetworkManager guesses from the kind of it.
    Metered,
    /// The same.
    Unmetered,
    /// Nobody says.
    Unknown,
}

/// That of this machine, now.
pub fn connection() -> Connection {
    let arguments: Vec<OsString> = ASK.iter().map(Into::into).collect();
    match process::run(OsStr::new("busctl"), &arguments, b"") {
        Ok(output) if output.success() => parse(&String::from_utf8_lossy(&output.stdout)),
        Ok(output) => {
            tracing::debug!("NetworkManager was not asked: {}", output.last_line());
            Connection::Unknown
        }
        Err(error) => {
            tracing::debug!("NetworkManager was not asked: {error}");
            Connection::Unknown
        }
    }
}

/// NMMetered: 0 unknown, 1 yes, 2 no, 3 guessed yes, 4 guessed no.
fn parse(answer: &str) -> Connection {
    match answer.trim() {
        "v u 1" | "v u 3" => Connection::Metered,
        "v u 2" | "v u 4" => Connection::Unmetered,
        _ => Connection::Unknown,
    }
}

/// Passes everything on, with a note where something is to be fetched over a metered connection: whoever asked for it
/// by hand gets it.
pub struct Noting<'m> {
    monitor: &'m dyn Monitor,
    asked: AtomicBool,
}

impl<'m> Noting<'m> {
    pub fn new(monitor: &'m dyn Monitor) -> Self {
        Self {
            monitor,
            asked: AtomicBool::new(false),
        }
    }
}

impl Monitor for Noting<'_> {
    fn event(&self, event: Event) {
        let fetches = matches!(event, Event::Plan { bytes: 1.., .. });
        self.monitor.event(event);
        if fetches && !self.asked.swap(true, Ordering::Relaxed) && connection() == Connection::Metered {
            let note = "the connection is metered; it is used all the same, since this was asked for by hand";
            self.monitor.event(Event::Note(note.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_counts_and_what_is_not_understood_does_not() {
        for (answer, connection) in [
            ("v u 0\n", Connection::Unknown),
            ("v u 1\n", Connection::Metered),
            ("v u 2\n", Connection::Unmetered),
            ("v u 3\n", Connection::Metered),
            ("v u 4\n", Connection::Unmetered),
            ("v u 5\n", Connection::Unknown),
            ("v s \"1\"\n", Connection::Unknown),
            ("", Connection::Unknown),
        ] {
            assert_eq!(parse(answer), connection, "{answer:?}");
        }
    }
}
