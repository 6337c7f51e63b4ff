//! The systemd units: well formed, as little exposed as the documentation says, and running commands that exist.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn units() -> Vec<PathBuf> {
    let folder = repository().join("cli/systemd");
    let mut units: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    units.sort();
    units
}

fn analyze(arguments: &[&str], unit: &Path) -> String {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[test]
fn systemd_understands_every_line_of_every_unit() {
    for unit in units().iter().filter(|unit| !unit.ends_with("90-cfs-update.preset")) {
        let said = analyze(&["verify"], unit);
        // What is not installed here is no fault of the unit.
        let ours = |line: &&str| {
            line.contains("cfs-update") && !line.contains("is not executable") && !line.contains("Command 'man ")
        };
        let complaints: Vec<_> = said.lines().filter(ours).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}

#[test]
fn no_service_is_more_exposed_than_the_documentation_says() {
    let documented = fs::read_to_string(repository().join("docs/commands.md")).unwrap();
    for (service, line) in [
        ("cfs-update-health.service", "| `cfs-update-health.service` |"),
        ("cfs-update-boot-failed.service", "| `cfs-update-boot-failed.service` |"),
        (
            "cfs-update-boot-hangs.service",
            "| `cfs-update-boot-hangs.timer`, `.service` |",
        ),
        ("cfs-update-finalize.service", "| `cfs-update-finalize.service` |"),
        ("cfs-update-auto.service", "| `cfs-update-auto.timer`, `.service` |"),
    ] {
        let row = documented.lines().find(|l| l.starts_with(line)).unwrap();
        let said = row.rsplit("| ").next().unwrap();
        let figure = |text: &str| -> f64 {
            let digits = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.');
            digits.collect::<String>().parse().unwrap()
        };
        let measured = analyze(
            &["security", "--offline=true"],
            &repository().join("cli/systemd").join(service),
        );
        let found = measured
            .split("exposure level for ")
            .nth(1)
            .and_then(|rest| rest.split(": ").nth(1));
        let found = figure(found.unwrap_or_else(|| panic!("{measured}")));
        assert!(found <= figure(said), "{service}: {found}, said {said}");
    }
}

#[test]
fn every_command_of_a_unit_is_one_of_the_program() {
    for unit in units() {
        let text = fs::read_to_string(&unit).unwrap();
        for line in text.lines().filter(|line| line.contains("/usr/bin/cfs-update ")) {
            let words = line.split("/usr/bin/cfs-update ").nth(1).unwrap().split(' ');
            let help = Command::new(env!("CARGO_BIN_EXE_cfs-update"))
                .args(words)
                .arg("--help")
                .output()
                .unwrap();
            assert!(help.status.success(), "{}: {line}", unit.display());
        }
    }
}

#[test]
fn the_presets_enable_what_is_to_be_enabled_and_is_there() {
    let text = fs::read_to_string(repository().join("cli/systemd/90-cfs-update.preset")).unwrap();
    for line in text.lines() {
        let name = line.strip_prefix("enable ").unwrap();
        let unit = fs::read_to_string(repository().join("cli/systemd").join(name)).unwrap();
        assert!(unit.contains("[Install]"), "{name}");
    }
}

/// Paths and modes of everything below a folder.
fn listing(folder: &Path) -> Vec<String> {
    let output = Command::new("find")
        .args([".", "-printf", "%P %m\\n"])
        .current_dir(folder)
        .output()
        .unwrap();
    let mut lines: Vec<_> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_debian_package_has_what_make_install_installs_and_enables_the_units_in_a_chroot() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("built")).unwrap();
    for program in ["cfs-update", "cfs-update-root"] {
        // Any program that is linked with the C library: ours take a minute to compress.
        fs::copy("/bin/true", at("built").join(program)).unwrap();
    }
    let mut make = Command::new("make");
    make.args(["-s", "install"])
        .arg(format!("BUILT={}", at("built").display()));
    make.arg(format!("DESTDIR={}", at("installed").display()));
    succeeds(make.current_dir(repository()));
    let mut build = Command::new("sh");
    build
        .arg(repository().join("cli/debian/build.sh"))
        .args([at("built"), at("out")]);
    let package = succeeds(&mut build);
    succeeds(Command::new("dpkg-deb").args(["-x", &package]).arg(at("unpacked")));
    assert_eq!(listing(&at("unpacked")), listing(&at("installed")));
    for (target, unit) in [
        ("emergency.target", "cfs-update-boot-failed.service"),
        ("timers.target", "cfs-update-boot-hangs.timer"),
    ] {
        let wanted = at("installed").join(format!("usr/lib/systemd/system/{target}.wants/{unit}"));
        assert!(fs::metadata(&wanted).is_ok(), "{} leads nowhere", wanted.display());
    }
    let depends = succeeds(Command::new("dpkg-deb").args(["-f", &package, "Depends"]));
    assert!(depends.contains("libc6 (>= "), "{depends}");

    // What the scripts do, without being root: systemctl acts on files below a root.
    let script = fs::read_to_string(repository().join("cli/debian/postinst")).unwrap();
    let root = format!("systemctl --root={}", at("unpacked").display());
    let script = script
        .replace("systemctl --no-reload", &root)
        .replace("/run/systemd/system", "/no/systemd/here");
    succeeds(Command::new("sh").args(["-c", &script, "postinst", "configure", ""]));
    let wants = listing(&at("unpacked/etc/systemd/system"));
    for unit in [
        "cfs-update-health.service",
        "cfs-update-finalize.service",
        "cfs-update-auto.timer",
    ] {
        assert!(
            wants.iter().any(|line| line.contains(&format!("/{unit} "))),
            "{unit}: {wants:?}"
        );
    }
}
