//! Results on standard output, failures on standard error, both in the chosen form, and the exit code.
//!
//! Invariant: standard output holds the result and nothing else: text, or exactly one JSON or YAML document. A reader
//! that goes away early (`| head`) is no failure of the command.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use cfs_core::{Error, Kind};
use clap::error::ErrorKind;
use serde::Serialize;

use crate::args::Format;

/// Something that can be shown in every form; serde makes JSON and YAML of it.
pub trait Report: Serialize {
    /// Text for people, lines ending with LF.
    fn human(&self) -> String;
}

/// Where results and failures go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether text for people is wanted.
    pub fn is_human(self) -> bool {
        self.format == Format::Human
    }

    /// Prints a result.
    pub fn show<T: Report>(self, report: &T) -> Result<()> {
        Ok(write(&self.render(report, || report.human())?)?)
    }

    /// Prints a failure and says what to exit with.
    pub fn failure(self, error: &anyhow::Error) -> ExitCode {
        let failure = Failure::of(error);
        let text = match self.format {
            // One line, since it may follow progress that is JSON lines.
            Format::Json => serde_json::to_string(&failure)
                .map(|text| text + "\n")
                .map_err(Into::into),
            _ => self
                .render(&failure, || failure.human())
                .map(|text| String::from_utf8_lossy(&text).into_owned()),
        };
        let text = text.unwrap_or_else(|_| failure.human());
        // Nowhere left to report to if this fails.
        let _ = io::stderr().write_all(text.as_bytes());
        ExitCode::from(failure.error.code)
    }

    fn render<T: Serialize>(self, value: &T, human: impl FnOnce() -> String) -> Result<Vec<u8>> {
        let mut text = match self.format {
            Format::Human => printable(&human()).into_bytes(),
            Format::Json => serde_json::to_vec_pretty(value)?,
            Format::Yaml => serde_saphyr::to_string(value)?.into_bytes(),
        };
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        Ok(text)
    }
}

/// Without what a terminal would take for commands: labels, names and messages may come from anywhere.
pub fn printable(text: &str) -> String {
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(control) {
        return text.to_owned();
    }
    let shown = text.chars().map(|c| {
        if control(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    });
    shown.collect()
}

/// Writes to standard output; a reader that has gone is success.
pub fn write(bytes: &[u8]) -> cfs_core::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(unwritten(e)),
        _ => Ok(()),
    }
}

/// A result that nobody will read. Where it goes to is full, that is no lack of space for what was to be done.
fn unwritten(error: io::Error) -> Error {
    Error::io("write to", "standard output", io::Error::other(error))
}

/// Lets `produce` write to standard output as it goes; a reader that has gone is success.
pub fn stream(produce: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match produce(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(unwritten(e).into()),
        _ => Ok(()),
    }
}

/// Shows what clap found: help and version on standard output with success, wrong usage with exit code 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    let format = format_wished(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()));
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if help || format == Format::Human {
        // A closed standard output is no failure, as in `write`.
        let _ = error.print();
        return ExitCode::from(if help { 0 } else { exit_code(Kind::Usage) });
    }
    let text = error.render().to_string();
    let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim()).to_owned();
    Output::new(format).failure(&Error::Usage(message).into())
}

/// The form that a command line asks for, before it is known to be a right one.
fn format_wished(args: impl Iterator<Item = String>) -> Format {
    let mut previous = String::new();
    for arg in args.take_while(|a| a != "--") {
        let value = arg
            .strip_prefix("--format=")
            .or((previous == "--format").then_some(arg.as_str()));
        match (arg.as_str(), value) {
            ("--json", _) | (_, Some("json")) => return Format::Json,
            (_, Some("yaml")) => return Format::Yaml,
            _ => previous = arg,
        }
    }
    Format::Human
}

/// A failure as it is shown.
#[derive(Debug, Serialize)]
struct Failure {
    error: FailureError,
}

#[derive(Debug, Serialize)]
struct FailureError {
    kind: &'static str,
    code: u8,
    message: String,
    causes: Vec<String>,
}

impl Failure {
    fn of(error: &anyhow::Error) -> Self {
        let kind = error
            .chain()
            .find_map(|e| e.downcast_ref::<Error>())
            .map_or(Kind::Failed, Error::kind);
        let mut texts: Vec<String> = Vec::new();
        for cause in error.chain().map(ToString::to_string) {
            // Most variants of the library end with their cause already.
            if !texts.iter().any(|t| t.contains(&cause)) {
                texts.push(cause);
            }
        }
        let message = if texts.is_empty() {
            String::new()
        } else {
            texts.remove(0)
        };
        Self {
            error: FailureError {
                kind: kind_name(kind),
                code: exit_code(kind),
                message,
                causes: texts,
            },
        }
    }

    fn human(&self) -> String {
        let FailureError {
            kind, message, causes, ..
        } = &self.error;
        let label = if *kind == kind_name(Kind::Nothing) {
            ""
        } else {
            "error: "
        };
        let mut text = format!("{label}{message}\n");
        for cause in causes {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        text
    }
}

/// The exit code of a kind of failure (`docs/commands.md`, "Exit codes").
fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::Trust => 3,
        Kind::Space => 4,
        Kind::Network => 5,
        Kind::Busy => 6,
        Kind::Nothing => 77,
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Failed => "failed",
        Kind::Usage => "usage",
        Kind::Trust => "trust",
        Kind::Space => "space",
        Kind::Network => "network",
        Kind::Busy => "busy",
        Kind::Nothing => "nothing-to-do",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(error: Error) -> (String, u8) {
        let failure = Failure::of(&error.into());
        (failure.human(), failure.error.code)
    }

    #[test]
    fn a_cause_that_the_message_ends_with_is_not_said_again() {
        let error = Error::io("open", "/no/such", io::Error::from_raw_os_error(2));
        assert_eq!(
            shown(error),
            (
                "error: cannot open /no/such: No such file or directory (os error 2)\n".into(),
                1
            )
        );
    }

    #[test]
    fn context_and_cause_are_said_once_each() {
        let error = anyhow::Error::from(Error::Usage("inner".into())).context("outer");
        assert_eq!(Failure::of(&error).human(), "error: outer\n  caused by: inner\n");
        assert_eq!(Failure::of(&error).error.code, 2);
    }

    #[test]
    fn exit_codes_are_those_of_the_design() {
        let busy = Error::Busy {
            path: "/s".into(),
            holder: "process 1 (upgrade)".into(),
        };
        let network = Error::Network {
            url: "u".into(),
            why: "w".into(),
        };
        let trust = Error::Trust {
            what: "w".into(),
            why: "y".into(),
        };
        let space = Error::io("write", "/s", io::Error::from_raw_os_error(28));
        let codes = [busy, network, trust, space].map(|e| shown(e).1);
        assert_eq!(codes, [6, 5, 3, 4]);
    }

    #[test]
    fn nothing_to_do_is_no_error_but_has_a_code() {
        assert_eq!(shown(Error::Nothing("no update".into())), ("no update\n".into(), 77));
    }

    #[test]
    fn failures_are_documents_where_documents_are_asked_for() {
        let failure = Failure::of(&Error::Usage("bad".into()).into());
        let json = Output::new(Format::Json).render(&failure, String::new).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["error"]["kind"], "usage");
        assert_eq!(value["error"]["code"], 2);
        let yaml = Output::new(Format::Yaml).render(&failure, String::new).unwrap();
        assert!(String::from_utf8(yaml).unwrap().starts_with("error:\n"));
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_sent() {
        assert_eq!(printable("a\u{1b}[2Jb\tc\nü\u{9b}"), "a\\u{1b}[2Jb\tc\nü\\u{9b}");
    }

    #[test]
    fn the_wished_form_is_known_even_from_a_wrong_command_line() {
        let wish = |line: &str| format_wished(line.split(' ').map(Into::into));
        assert_eq!(wish("frob --json"), Format::Json);
        assert_eq!(wish("frob --format yaml"), Format::Yaml);
        assert_eq!(wish("--format=json frob"), Format::Json);
        assert_eq!(wish("frob -- --json"), Format::Human);
    }
}
