//! The programs that an installation calls, and what the kernel must be able to do.
//!
//! Invariant: all that will be needed is looked for before anything is changed, and what is missing is named together,
//! with the Debian packages that have it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use super::table::FileSystem;
use crate::error::{Error, Result};
use crate::sys::fs;
use crate::sys::process::{self, Output};

/// A program and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
}

/// Writes partition tables.
pub const SFDISK: Tool = Tool {
    program: "sfdisk",
    package: "fdisk",
};
/// Finds file systems and partition tables.
pub const WIPEFS: Tool = Tool {
    program: "wipefs",
    package: "util-linux",
};
/// Tells the UUID of a file system.
pub const BLKID: Tool = Tool {
    program: "blkid",
    package: "util-linux",
};
/// Makes FAT.
pub const MKFS_VFAT: Tool = Tool {
    program: "mkfs.vfat",
    package: "dosfstools",
};
/// Makes ext4.
pub const MKFS_EXT4: Tool = Tool {
    program: "mkfs.ext4",
    package: "e2fsprogs",
};
/// Makes btrfs.
pub const MKFS_BTRFS: Tool = Tool {
    program: "mkfs.btrfs",
    package: "btrfs-progs",
};

/// Where programs of the administrator are, should `PATH` not have them.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Fails unless all of them are there.
///
/// # Errors
/// [`Error::Disk`] of `path` names all that are missing, and their packages.
pub fn check(path: &Path, tools: &[Tool]) -> Result<()> {
    let there = |tool: &Tool| start(tool, &["--help".into()], b"").map(|output| output.is_some());
    let mut missing = Vec::new();
    for tool in tools {
        if !there(tool)? {
            missing.push(*tool);
        }
    }
    match explain(&missing) {
        Some(why) => Err(Error::Disk { path: path.into(), why }),
        None => Ok(()),
    }
}

fn explain(missing: &[Tool]) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    let programs: Vec<_> = missing.iter().map(|tool| tool.program).collect();
    let mut packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    Some(format!(
        "nothing was changed: {} not found; on Debian: apt-get install {}",
        programs.join(" and "),
        packages.join(" ")
    ))
}

/// Runs one on `path`.
///
/// # Errors
/// [`Error::Disk`] with what the program said, where it fails or is not there.
pub fn run(tool: &Tool, arguments: &[OsString], input: &[u8], path: &Path) -> Result<Output> {
    let refuse = |why: String| Error::Disk { path: path.into(), why };
    let output = start(tool, arguments, input)?.ok_or_else(|| refuse(explain(&[*tool]).unwrap_or_default()))?;
    if output.success() {
        return Ok(output);
    }
    Err(refuse(format!("{} failed: {}", tool.program, output.last_line())))
}

/// `None` where there is no such program.
fn start(tool: &Tool, arguments: &[OsString], input: &[u8]) -> Result<Option<Output>> {
    let elsewhere = FOLDERS.map(|folder| Path::new(folder).join(tool.program).into_os_string());
    for program in std::iter::once(OsString::from(tool.program)).chain(elsewhere) {
        match process::run(&program, arguments, input) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => return done.map(Some),
        }
    }
    Ok(None)
}

/// Fails unless the kernel can mount the file system, after an attempt to load its module.
///
/// # Errors
/// [`Error::Disk`] of `path`.
pub fn check_kernel(path: &Path, kind: &str) -> Result<()> {
    if knows(kind)? {
        return Ok(());
    }
    // Missing modules, or a missing program, are seen by what is known afterwards.
    let _ = process::run(OsStr::new("modprobe"), &[kind.into()], b"");
    if knows(kind)? {
        return Ok(());
    }
    Err(Error::Disk {
        path: path.into(),
        why: format!("nothing was changed: this kernel cannot mount {kind} (module {kind})"),
    })
}

fn knows(kind: &str) -> Result<bool> {
    let list = fs::read_text(Path::new("/proc/filesystems"), 1 << 20)?.unwrap_or_default();
    Ok(list.lines().any(|line| line.split('\t').next_back() == Some(kind)))
}

/// Whether the kernel has fs-verity on this file system, which it knows.
pub fn kernel_has_verity(kind: FileSystem) -> bool {
    fs::exists(&Path::new("/sys/fs").join(kind.name()).join("features/verity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_together_with_its_packages() {
        assert!(check(Path::new("/dev/sdx"), &[WIPEFS, BLKID]).is_ok());
        let none = |program| Tool {
            program,
            package: "fdisk",
        };
        let error = check(Path::new("/dev/sdx"), &[none("no-such-a"), WIPEFS, none("no-such-b")]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("/dev/sdx: nothing was changed: no-such-a and no-such-b not found"),
            "{text}"
        );
        assert!(text.ends_with("apt-get install fdisk"), "{text}");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = run(&WIPEFS, &["/no/such/file".into()], b"", Path::new("/d"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/d: wipefs failed: ") && error.contains("/no/such/file"),
            "{error}"
        );
    }

    #[test]
    fn a_kernel_without_the_file_system_is_told_from_one_with_it() {
        assert!(check_kernel(Path::new("/d"), "tmpfs").is_ok());
        let error = check_kernel(Path::new("/d"), "nosuchfs").unwrap_err().to_string();
        assert!(
            error.contains("nothing was changed: this kernel cannot mount nosuchfs"),
            "{error}"
        );
    }
}
