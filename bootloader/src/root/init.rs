//! Whether the first process of the new root can be read, before it takes the place of the one that runs.
//!
//! systemd in the initramfs goes on with `/bin/sh` where it cannot start the first process, or stands still: no reboot
//! follows, and no try is used up. What the kernel finds damaged (fs-verity) or gone is found here instead, while a
//! refusal still counts. The libraries need no look: where one cannot be read the process ends, which is a panic.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cfs_core::boot::cmdline;
use cfs_core::sys::dir::Dir;
use cfs_core::{Error, Result};

use crate::refusal::Refusal;

/// What systemd starts, in this order, where the kernel command line does not say otherwise.
const USUAL: [&str; 2] = ["usr/lib/systemd/systemd", "sbin/init"];
/// The interpreter's name is in the first pages.
const HEAD: usize = 64 << 10;

/// Reads it whole, and the interpreter that it names.
pub fn prove(root: &Dir, arguments: &[String]) -> std::result::Result<(), Refusal> {
    for path in first_processes(arguments) {
        let refuse = |path: &Path, e: &Error| {
            Refusal::new(
                format!("its first process cannot be started: /{}", path.display()),
                "a file whose content is that of the image",
                e.to_string(),
            )
            .remedy(
                "boot another deployment; `cfs-update fsck --repair` there fetches again what is damaged or missing",
            )
        };
        let Some(file) = root.open_inside(&path).map_err(|e| refuse(&path, &e))? else {
            continue;
        };
        let head = read(file, &path).map_err(|e| refuse(&path, &e))?;
        if let Some(path) = interpreter(&head)
            && let Some(file) = root.open_inside(&path).map_err(|e| refuse(&path, &e))?
        {
            read(file, &path).map_err(|e| refuse(&path, &e))?;
        }
        return Ok(());
    }
    // None that is known here: it is not for us to say that there is none.
    Ok(())
}

fn first_processes(arguments: &[String]) -> Vec<PathBuf> {
    match cmdline::values(arguments, "init").last() {
        Some(path) => vec![path.trim_start_matches('/').into()],
        None => USUAL.map(PathBuf::from).into(),
    }
}

/// Reads all of it, which is what checks it; gives the beginning.
fn read(mut file: File, path: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = vec![0; HEAD];
    loop {
        let read = file.read(&mut buffer).map_err(|e| Error::io("read", path, e))?;
        if read == 0 {
            return Ok(head);
        }
        let room = HEAD.saturating_sub(head.len()).min(read);
        head.extend_from_slice(&buffer[..room]);
    }
}

/// The program that the kernel starts for this one: the dynamic loader of an ELF file, the shell of a script. Below
/// the root.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let name = match head.strip_prefix(b"#!") {
        Some(script) => {
            let line = script.split(|&b| b == b'\n').next()?;
            line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty())?
        }
        None => dynamic_loader(head)?,
    };
    let name = std::str::from_utf8(name).ok()?.trim_start_matches('/');
    (!name.is_empty()).then(|| name.into())
}

/// The segment PT_INTERP of elf(5), without its zero at the end.
fn dynamic_loader(head: &[u8]) -> Option<&[u8]> {
    let (wide, little) = match (head.strip_prefix(b"\x7fELF")?.first()?, head.get(5)?) {
        (class @ (1 | 2), order @ (1 | 2)) => (*class == 2, *order == 1),
        _ => return None,
    };
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        let fold = |n: usize, b: &u8| n << 8 | usize::from(*b);
        Some(match little {
            true => bytes.iter().rev().fold(0, fold),
            false => bytes.iter().fold(0, fold),
        })
    };
    let word = if wide { 8 } else { 4 };
    // Where the table of segments is, how long an entry is, how many there are.
    let (table, entry, count) = match wide {
        true => (number(32, 8)?, number(54, 2)?, number(56, 2)?),
        false => (number(28, 4)?, number(42, 2)?, number(44, 2)?),
    };
    let at = |index: usize| table.checked_add(index.checked_mul(entry)?);
    let found = (0..count).find_map(|index| at(index).filter(|&at| number(at, 4) == Some(3)))?;
    let (offset, size) = if wide { (8, 32) } else { (4, 16) };
    let begin = number(found.checked_add(offset)?, word)?;
    let text = head.get(begin..begin.checked_add(number(found.checked_add(size)?, word)?)?)?;
    text.split(|&b| b == 0).next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_interpreter_is_that_of_the_file() {
        let shell = std::fs::read("/bin/sh").unwrap();
        let loader = interpreter(&shell).unwrap();
        assert!(
            Path::new("/").join(&loader).exists() && loader.to_str().unwrap().contains("ld"),
            "{loader:?}"
        );
        assert_eq!(interpreter(b"#! /usr/bin/env sh\n"), Some("usr/bin/env".into()));
        for other in [&b""[..], b"#!", b"#!\n", b"\x7fELF", &shell[..60], b"text"] {
            assert_eq!(interpreter(other), None);
        }
        // Whatever is in the header: nothing outside the file is looked at.
        for at in 0..64 {
            let mut hostile = shell.clone();
            hostile[at..at + 8].fill(0xff);
            interpreter(&hostile[..4096]);
        }
    }

    #[test]
    fn links_are_those_of_the_new_root_and_what_is_named_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("usr/lib/systemd")).unwrap();
        std::fs::create_dir_all(path("sbin")).unwrap();
        let prove = |line: &str| prove(&Dir::open(folder.path()).unwrap(), &cmdline::split(line));
        assert_eq!(prove("quiet"), Ok(()));
        // A folder can be opened, but not read: as what is damaged.
        symlink("/usr/lib/systemd", path("sbin/init")).unwrap();
        assert!(prove("quiet").unwrap_err().to_string().contains("/sbin/init"));
        std::fs::write(path("usr/lib/systemd/systemd"), "#!/usr/lib/systemd\n").unwrap();
        assert!(prove("quiet").unwrap_err().to_string().contains("/usr/lib/systemd"));
        std::fs::write(path("usr/lib/systemd/systemd"), "").unwrap();
        assert_eq!(prove("quiet"), Ok(()));
        assert!(prove("init=/sbin/init").is_err());
        assert_eq!(prove("init=/sbin/init init=/no/such"), Ok(()));
    }
}
