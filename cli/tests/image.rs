//! The composefs tools through the program.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The worked example of the format document (3.7), and its digest at mkcomposefs' default versions.
const DUMP: &str = "/ 4096 40755 2 1 2 0 5.7 - - - security.selinux=ctx\\x00 user.z=1
/a 0 40755 2 0 0 0 6.0 - - -
/a/f 5 100644 1 0 0 0 5.7 - hello -
/a/w 0 20644 1 0 0 0 6.0 - - -
/ext 100 100644 1 0 0 0 6.0 ab/cdef - 00000000000000000000000000000000000000000000000000000000000000ff user.z=1
/l 3 120777 1 0 0 0 5.7 abc - -
";
const DIGEST: &str = "6439103714616072bbdfb1a314956a124fcb7a84b70f90f9fb1e2fbc0aeb508d";

fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cfs-update"))
        .args(["--config-root", "/nonexistent", "image"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(args: &[&str], input: &str) -> String {
    let output = run(args, input);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_digest_is_printed_alone_and_is_mkcomposefs_own() {
    let versions = ["--min-version", "0", "--max-version", "1"];
    let digest = stdout(&[&["digest", "-"], &versions[..]].concat(), DUMP);
    assert_eq!(digest, format!("{DIGEST}\n"));
}

#[test]
fn a_dump_of_an_image_of_a_dump_makes_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let printed = stdout(&["build", "-", "-o", path(&image), "--print-digest"], DUMP);
    assert_eq!(
        stdout(&["digest", "-"], DUMP),
        printed,
        "build and digest have the same defaults"
    );
    let dump = stdout(&["dump", path(&image)], "");
    assert_eq!(stdout(&["digest", "-"], &dump), printed);
    assert_eq!(stdout(&["digest", path(&image)], ""), printed, "an image's own bytes");
    let old = folder.path().join("version 0");
    let version_0 = stdout(
        &[
            "build",
            path(&image),
            "-o",
            path(&old),
            "--max-version",
            "0",
            "--print-digest",
        ],
        "",
    );
    assert_ne!(version_0, printed);
    assert_eq!(stdout(&["digest", path(&old)], ""), version_0);
    assert_eq!(stdout(&["digest", "--min-version", "1", path(&old)], ""), printed);
    let summary = stdout(&["--json", "inspect", path(&image)], "");
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["digest"], printed.trim());
    assert_eq!(summary["formatVersion"], 1);
}

#[test]
fn a_folder_becomes_an_image_whose_objects_are_in_the_digest_store() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, store) = (folder.path().join("tree"), folder.path().join("store"));
    std::fs::create_dir_all(tree.join("usr/bin")).unwrap();
    std::fs::write(tree.join("usr/bin/big"), [7; 5000]).unwrap();
    std::fs::write(tree.join("small"), "hello").unwrap();
    let image = folder.path().join("image");
    let built = stdout(
        &[
            "build",
            path(&tree),
            "-o",
            path(&image),
            "--digest-store",
            path(&store),
            "--print-digest",
        ],
        "",
    );
    assert_eq!(stdout(&["digest", path(&tree)], ""), built);
    let objects = stdout(&["inspect", "--objects", path(&image)], "");
    assert_eq!(objects.lines().count(), 1, "{objects}");
    assert_eq!(std::fs::read(store.join(objects.trim())).unwrap(), [7; 5000]);
    assert_eq!(
        stdout(&["inspect", "--missing-objects", path(&store), path(&image)], ""),
        ""
    );
    std::fs::remove_file(store.join(objects.trim())).unwrap();
    assert_eq!(
        stdout(&["inspect", "--missing-objects", path(&store), path(&image)], ""),
        objects
    );
}

#[test]
fn an_image_that_fails_to_build_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let output = run(&["build", "-", "-o", path(&image)], "no dump at all\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 1"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_file_is_written_to_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, image) = (folder.path().join("pipe"), folder.path().join("image"));
    stdout(&["build", "-", "-o", path(&image)], DUMP);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    stdout(&["build", "-", "-o", path(&pipe)], DUMP);
    assert_eq!(reader.join().unwrap(), std::fs::read(&image).unwrap());
    assert_eq!(
        run(&["build", "-", "-o", "-"], DUMP).stdout,
        std::fs::read(&image).unwrap()
    );
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_dump_may_come_from_a_file_a_pipe_or_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    std::fs::write(&file, DUMP).unwrap();
    let wanted = stdout(&["digest", "-"], DUMP);
    assert_eq!(stdout(&["digest", path(&file)], ""), wanted);
    assert_eq!(stdout(&["digest", "/dev/stdin"], DUMP), wanted);
    assert_eq!(stdout(&["build", path(&file), "--print-digest-only"], ""), wanted);
}
