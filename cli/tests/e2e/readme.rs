//! What the README and the demo show is what happens.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::layout::small;
use crate::common::{Cfs, repository, scratch};

#[test]
fn every_command_of_the_readme_works_in_the_order_shown() {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let commands: Vec<&str> = text
        .split("```console\n")
        .skip(1)
        .flat_map(|block| block.split("```").next().unwrap().lines())
        .filter_map(|line| line.strip_prefix("$ cfs-update "))
        .collect();
    assert!(commands.len() >= 15, "the README shows commands: {commands:?}");

    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let image = small(1, "a", 4, 4000).finish().layout(&layout, "os");
    fs::create_dir_all(dir.path().join("tree/etc")).unwrap();
    fs::write(dir.path().join("tree/etc/file"), "x".repeat(1000)).unwrap();
    for command in commands {
        if command.starts_with("upgrade --check") {
            small(2, "b", 4, 4000).finish().layout(&layout, "os");
        }
        let args: Vec<String> = command
            .replace("quay.io/org/os:41", &image)
            .split(' ')
            .map(str::to_owned)
            .collect();
        let ran = cfs.command(&args).current_dir(dir.path()).output().unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr),
        );
        assert!(ran.status.success(), "{command}: {out}{err}");
    }
    assert!(dir.path().join("tree.erofs").is_file());
}

#[test]
fn the_demo_runs_without_rights_and_shows_a_whole_life() {
    let dir = scratch();
    // As nobody where we are root: the program and the scripts where they can be read.
    let cfs = Cfs::unprivileged(dir.path());
    let mut command = cfs.wrap("sh");
    let demo = dir.path().join("repository/examples");
    fs::create_dir_all(&demo).unwrap();
    fs::create_dir_all(dir.path().join("repository/testdata")).unwrap();
    fs::copy(repository().join("examples/demo.sh"), demo.join("demo.sh")).unwrap();
    fs::copy(
        repository().join("testdata/oci.sh"),
        dir.path().join("repository/testdata/oci.sh"),
    )
    .unwrap();
    let ran = command.arg(demo.join("demo.sh")).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{out}{err}");
    for shown in [
        "switch",
        "upgrade",
        "rollback",
        "status",
        "exit code 77",
        "loader/entries",
        "fsck",
    ] {
        assert!(out.contains(shown), "{shown}: {out}");
    }
}

#[test]
fn the_two_commands_of_a_newcomer_are_targets_of_the_makefile() {
    let makefile = fs::read_to_string(repository().join("Makefile")).unwrap();
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    for target in ["demo", "test"] {
        assert!(makefile.contains(&format!("\n{target}:")), "{target}");
        assert!(readme.contains(&format!("make {target}")), "{target}");
    }
    let dry = Command::new("make")
        .args(["-n", "demo"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&dry.stdout).contains("examples/demo.sh"));
}
