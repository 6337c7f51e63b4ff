//! What a script sees of the program: exit codes, standard output, standard error.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program without any of this machine's settings.
fn run(config_root: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cfs-update"));
    command.arg("--config-root").arg(config_root).args(args);
    command.env_clear().stdin(Stdio::null()).output().unwrap()
}

fn plain(args: &[&str]) -> Output {
    run(Path::new("/nonexistent"), args)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_so_on_standard_error_only() {
    for args in [
        &["frobnicate"][..],
        &["image", "build"],
        &["--format", "toml", "image", "digest", "x"],
        &["image", "digest", "--min-version", "2", "x"],
        &["image", "digest", "./no/such/folder"],
    ] {
        let output = plain(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(
            text(&output.stderr).starts_with("error: "),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn help_and_version_succeed_on_standard_output() {
    let help = plain(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Exit codes"));
    let version = plain(&["--version"]);
    assert_eq!(
        text(&version.stdout),
        format!("cfs-update {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn with_json_a_failure_is_a_document_on_standard_error() {
    for (args, code) in [
        (&["--json", "frobnicate"][..], 2),
        (&["--json", "image", "digest", "./no/such/folder"], 2),
    ] {
        let output = plain(args);
        assert_eq!(output.status.code(), Some(code));
        let value: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(value["error"]["code"], code);
        assert_eq!(value["error"]["kind"], "usage");
    }
}

#[test]
fn a_settings_file_with_a_mistake_stops_every_command_and_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("etc/cfs-update/config.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "[boot]\ntires = 3\n").unwrap();
    let output = run(root.path(), &["image", "digest", "."]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains(file.to_str().unwrap()) && message.contains("line 2"),
        "{message}"
    );
}

#[test]
fn manual_pages_and_completions_come_out_whole() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    assert_eq!(plain(&["man", pages.to_str().unwrap()]).status.code(), Some(0));
    for page in ["cfs-update.1", "cfs-update-image.1", "cfs-update-image-digest.1"] {
        assert!(
            std::fs::read_to_string(pages.join(page)).unwrap().contains(".TH"),
            "{page}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            text(&plain(&["completions", shell]).stdout).contains("cfs-update"),
            "{shell}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cfs-update"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
