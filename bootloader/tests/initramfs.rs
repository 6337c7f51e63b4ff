//! What ends up in an initramfs: how much of the program, and which files through dracut, initramfs-tools and
//! mkinitcpio.
//!
//! dracut and initramfs-tools are run for real, in a Debian 13 that `testdata/initramfs.sh` makes. Debian has no
//! mkinitcpio: its hook runs with the functions that mkinitcpio has replaced by ones that write down how they were
//! called.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn glue() -> PathBuf {
    workspace().join("bootloader/initramfs")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

const SCRIPTS: [(&str, &str); 6] = [
    ("bash", "dracut/90cfs-update/module-setup.sh"),
    ("sh", "dracut/90cfs-update/cfs-update-root.sh"),
    ("sh", "initramfs-tools/hooks/cfs-update"),
    ("sh", "initramfs-tools/scripts/local-bottom/cfs-update"),
    ("bash", "mkinitcpio/install/cfs-update"),
    ("dash", "mkinitcpio/hooks/cfs-update"),
];

#[test]
fn the_program_has_neither_network_nor_tls_nor_an_async_runtime_in_it() {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            "cfs-bootloader",
            "--no-default-features",
        ])
        .args(["-e", "normal", "--prefix", "none", "--format", "{p}"])
        .output()
        .unwrap();
    let tree = text(&output);
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    for there in ["cfs-core", "ed25519-dalek", "rustix"] {
        assert!(crates.contains(&there), "{tree}");
    }
    for not_there in [
        "reqwest",
        "rustls",
        "tokio",
        "ring",
        "hyper",
        "oci-client",
        "openssl",
        "native-tls",
        "aws-lc-rs",
        "zstd",
        "flate2",
        "tar",
        "clap",
    ] {
        assert!(!crates.contains(&not_there), "{not_there} is in the initramfs:\n{tree}");
    }
}

#[test]
fn the_scripts_are_what_their_shells_and_shellcheck_take() {
    for (shell, script) in SCRIPTS {
        let path = glue().join(script);
        let checked = Command::new("shellcheck")
            .args(["--shell", shell, "--severity", "style"])
            .arg(&path)
            .output();
        let checked = checked.expect("shellcheck is not installed; run `make install-deps`");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let shell = if shell == "dash" { "sh" } else { shell };
        let parsed = Command::new(shell).arg("-n").arg(&path).output().unwrap();
        assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    }
}

/// Runs the `function` of a bash script; what it calls that is not there prints its name and arguments.
fn call(script: &str, before: &str, function: &str) -> String {
    let program = format!(
        "set -u; command_not_found_handle() {{ echo \"$@\"; }}; {before}\n. {}\n{function}",
        glue().join(script).display()
    );
    text(
        &Command::new("/bin/bash")
            .args(["-c", &program])
            .env("PATH", "/nonexistent")
            .output()
            .unwrap(),
    )
}

#[test]
fn mkinitcpio_takes_the_program_and_its_drivers_and_a_unit_or_a_hook() {
    let script = "mkinitcpio/install/cfs-update";
    let systemd = call(script, "HOOKS=(base systemd cfs-update)", "build");
    for line in [
        "add_module erofs",
        "add_module overlay",
        "add_module loop?",
        "add_binary /usr/lib/cfs-update/cfs-update-root /usr/lib/cfs-update/cfs-update-root",
        "add_systemd_unit cfs-update-root.service",
        "add_symlink /usr/lib/systemd/system/initrd-root-fs.target.requires/cfs-update-root.service ../cfs-update-root.service",
        "add_systemd_unit cfs-update-boot-failed.service",
        "add_systemd_unit cfs-update-root-missing.service",
        "add_symlink /usr/lib/systemd/system/initrd.target.wants/cfs-update-root-missing.timer ../cfs-update-root-missing.timer",
        "add_symlink /usr/lib/systemd/system/emergency.target.wants/cfs-update-boot-failed.service ../cfs-update-boot-failed.service",
    ] {
        assert!(systemd.lines().any(|l| l == line), "no {line:?}:\n{systemd}");
    }
    let busybox = call(script, "HOOKS=(base udev cfs-update)", "build");
    assert!(busybox.lines().any(|l| l == "add_runscript"), "{busybox}");
    assert!(!busybox.contains("systemd"), "{busybox}");
}

#[test]
fn dracut_gets_a_unit_with_systemd_and_a_hook_without() {
    let script = "dracut/90cfs-update/module-setup.sh";
    let before =
        "moddir=/m; initdir=/i; systemdsystemunitdir=/u; SYSTEMCTL=systemctl; dracut_module_included() { return $no; }";
    let systemd = call(script, &format!("no=0; {before}"), "install");
    for line in [
        "inst_binary /usr/lib/cfs-update/cfs-update-root",
        "inst_simple /u/cfs-update-root.service",
        "systemctl -q --root /i add-requires initrd-root-fs.target cfs-update-root.service",
        "inst_simple /u/cfs-update-boot-failed.service",
        "systemctl -q --root /i add-wants emergency.target cfs-update-boot-failed.service",
        "systemctl -q --root /i add-wants dracut-emergency.service cfs-update-boot-failed.service",
        "inst_simple /u/cfs-update-root-missing.service",
        "systemctl -q --root /i add-wants initrd.target cfs-update-root-missing.timer",
    ] {
        assert!(systemd.lines().any(|l| l == line), "no {line:?}:\n{systemd}");
    }
    let without = call(script, &format!("no=1; {before}"), "install");
    assert!(
        without
            .lines()
            .any(|l| l == "inst_hook pre-pivot 05 /m/cfs-update-root.sh"),
        "{without}"
    );
    assert!(!without.contains("cfs-update-root.service"), "{without}");
}

/// Runs a hook of a shell with a program that exits with `code`.
fn hook(script: &str, code: u8, around: &str) -> String {
    let source = std::fs::read_to_string(glue().join(script)).unwrap();
    let program = source
        .replace("/usr/lib/cfs-update/cfs-update-root", &format!("program {code}"))
        .replace(". /scripts/functions", ":");
    let functions = "program() { echo \"ran $*\"; return $1; }
         panic() { echo \"panic $*\"; }; die() { echo \"die $*\"; }; err() { echo \"err $*\"; }
         launch_interactive_shell() { echo \"shell $*\"; }";
    let program = format!("{functions}\n{program}\n{around}");
    text(
        &Command::new("sh")
            .args(["-e", "-c", &program])
            .env("rootmnt", "/root")
            .env("NEWROOT", "/sysroot")
            .output()
            .unwrap(),
    )
}

#[test]
fn a_refusal_ends_the_boot_and_another_kind_of_boot_goes_on() {
    for (script, around, sysroot, end) in [
        ("dracut/90cfs-update/cfs-update-root.sh", "", "/sysroot", "die "),
        ("initramfs-tools/scripts/local-bottom/cfs-update", "", "/root", "panic "),
        (
            "mkinitcpio/hooks/cfs-update",
            "run_latehook",
            "/new_root",
            "shell --exec",
        ),
    ] {
        for (code, ends) in [(0, false), (77, false), (1, true), (3, true)] {
            let said = hook(script, code, around);
            assert!(
                said.contains(&format!("--sysroot {sysroot} --on-failure reboot")),
                "{script}: {said}"
            );
            assert_eq!(said.contains(end), ends, "{script} {code}: {said}");
        }
    }
}

#[test]
fn dracut_and_initramfs_tools_of_debian_13_take_everything_along() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: a root folder for dracut needs root");
        return;
    }
    let script = workspace().join("testdata/initramfs.sh");
    let output = Command::new("sh")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_cfs-update-root"))
        .arg(workspace().join("target/initramfs"))
        .output()
        .unwrap();
    let listing = text(&output);
    let (dracut, tools) = listing.split_once("=== initramfs-tools\n").unwrap();
    for (name, list) in [("dracut", dracut), ("initramfs-tools", tools)] {
        let has = |end: &str| list.lines().any(|line| line.ends_with(end));
        for file in [
            "usr/lib/cfs-update/cfs-update-root",
            "usr/lib/composefs/setup-root-conf.toml",
            "etc/cfs-update/keys/trusted.d/vendor.pub",
            "etc/cfs-update/keys/revoked.d/old.pub",
            "libc.so.6",
            "libgcc_s.so.1",
        ] {
            assert!(has(file), "{name} left out {file}:\n{list}");
        }
        for module in ["erofs", "overlay", "loop"] {
            let there = list.lines().any(|line| line.contains(&format!("/{module}.ko")));
            assert!(there, "{name} left out the module {module}:\n{list}");
        }
    }
    let unit = "usr/lib/systemd/system/cfs-update-root.service";
    let wanted = "initrd-root-fs.target.requires/cfs-update-root.service";
    assert!(dracut.contains(unit) && dracut.contains(wanted), "{dracut}");
    let after_a_failure = "emergency.target.wants/cfs-update-boot-failed.service";
    let root_missing = "initrd.target.wants/cfs-update-root-missing.timer";
    assert!(
        dracut.contains(after_a_failure) && dracut.contains(root_missing),
        "{dracut}"
    );
    assert!(tools.contains("scripts/local-bottom/cfs-update"), "{tools}");
    let order = tools.split("=== order\n").nth(1).unwrap();
    assert!(order.contains("/scripts/local-bottom/cfs-update"), "{order}");
}
