//! What a disk is, who uses it, and what is on it.
//!
//! Looking only; [`refusal`] is pure. A disk that somebody uses is refused whatever is asked for: overwriting what is
//! mounted destroys more than the disk.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{mountinfo, tools};
use crate::error::{Error, Result};
use crate::sys::fs;

const SYS: &str = "/sys/class/block";
const LIMIT: u64 = 1 << 20;

/// A whole disk, or a regular file that is to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Without links.
    pub path: PathBuf,
    /// The kernel's name of a block device: `sda`.
    pub device: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub sector: u64,
}

/// Everything that speaks against writing to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// It is a partition.
    pub is_partition: bool,
    /// It cannot be written.
    pub is_read_only: bool,
    /// Where it, or a partition of it, is mounted.
    pub mounted: Vec<PathBuf>,
    /// It, or a partition of it, is swapped to.
    pub swap: Vec<String>,
    /// Devices that are made of it: LVM, RAID, encryption, loop devices.
    pub holders: Vec<String>,
    /// The kernel says that somebody has it for himself.
    pub is_claimed: bool,
    /// Partition tables and file systems that are on it.
    pub signatures: Vec<String>,
}

/// Decides whether it may be overwritten.
///
/// # Errors
/// [`Error::Disk`] says who uses it, or what is on it and how to overwrite that.
pub fn refusal(path: &Path, uses: &Uses, wipe: bool) -> Result<()> {
    let list = |paths: &[PathBuf]| {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        shown.join(", ")
    };
    let why = if uses.is_partition {
        "it is a partition; give the whole disk, or make a file system on it, mount that, and use `install to-filesystem`"
            .to_owned()
    } else if uses.is_read_only {
        "it cannot be written (read-only)".to_owned()
    } else if !uses.mounted.is_empty() {
        format!(
            "it is in use: mounted at {}; unmount it first (umount)",
            list(&uses.mounted)
        )
    } else if !uses.swap.is_empty() {
        format!(
            "it is in use: swap space on {}; turn that off first (swapoff)",
            uses.swap.join(", ")
        )
    } else if !uses.holders.is_empty() {
        format!(
            "it is in use: part of {}; take that apart first (vgchange -an, mdadm --stop, cryptsetup close, losetup -d)",
            uses.holders.join(", ")
        )
    } else if uses.is_claimed {
        "it is in use by another process or by the kernel".to_owned()
    } else if !uses.signatures.is_empty() && !wipe {
        format!(
            "there is data on it ({}); --wipe overwrites the whole disk with all that is on it",
            uses.signatures.join(", ")
        )
    } else {
        return Ok(());
    };
    Err(Error::Disk {
        path: path.into(),
        why: format!("nothing was changed: {why}"),
    })
}

impl Disk {
    /// Looks at what `path` leads to.
    ///
    /// # Errors
    /// [`Error::Disk`] for what is neither a block device nor a regular file with content.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e| Error::io("open", path, e);
        let real = path.canonicalize().map_err(fail)?;
        // Before it is opened: a pipe would be waited for, and some devices act when they are.
        let kind = std::fs::metadata(&real).map_err(fail)?.file_type();
        let refuse = |why: &str| Error::Disk {
            path: path.into(),
            why: why.into(),
        };
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refuse("it is neither a block device nor a regular file"));
        }
        let mut file = File::open(&real).map_err(fail)?;
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if size == 0 {
            return Err(refuse(
                "it has no size; make a file as large as the disk is to be with `truncate -s 10G FILE`",
            ));
        }
        let device = match kind.is_block_device() {
            true => Some(device_name(&real)?),
            false => None,
        };
        let attribute = |name: &str| device.as_ref().and_then(|device| number(&sys(device).join(name)));
        Ok(Self {
            sector: attribute("queue/logical_block_size")
                .filter(|size| *size >= 512)
                .unwrap_or(512),
            path: real,
            device,
            size,
        })
    }

    /// Who uses it, and what is on it.
    pub fn uses(&self) -> Result<Uses> {
        let signatures = signatures(&self.path)?;
        let Some(device) = &self.device else {
            return Ok(Uses {
                holders: loops_over(&[&self.path])?,
                swap: swaps(&[&self.path])?,
                is_read_only: File::options().write(true).open(&self.path).is_err(),
                signatures,
                ..Uses::default()
            });
        };
        let family = family(device)?;
        let nodes: Vec<PathBuf> = family.iter().map(|name| Path::new("/dev").join(name)).collect();
        let nodes: Vec<&Path> = nodes.iter().map(PathBuf::as_path).collect();
        let mut holders = loops_over(&nodes)?;
        for name in &family {
            let found = fs::names(&sys(name).join("holders"))?;
            holders.extend(found.iter().map(|name| name.to_string_lossy().into_owned()));
        }
        Ok(Uses {
            is_partition: fs::exists(&sys(device).join("partition")),
            is_read_only: number(&sys(device).join("ro")) == Some(1),
            mounted: mounted(&family, &nodes)?,
            swap: swaps(&nodes)?,
            holders,
            is_claimed: nodes.iter().any(|node| is_claimed(node)),
            signatures,
        })
    }
}

fn sys(device: &str) -> PathBuf {
    Path::new(SYS).join(device)
}

/// The kernel's name, which its node may not have.
fn device_name(node: &Path) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    let number = std::fs::metadata(node)
        .map_err(|e| Error::io("look at", node, e))?
        .rdev();
    let link = format!(
        "/sys/dev/block/{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    );
    let target = fs::read_link(Path::new(&link))?;
    let name = target
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    name.ok_or_else(|| Error::Disk {
        path: node.into(),
        why: format!("the kernel has no such device ({link})"),
    })
}

/// The disk and its partitions, by the kernel's names.
fn family(device: &str) -> Result<Vec<String>> {
    let mut family = vec![device.to_owned()];
    for name in fs::names(&sys(device))? {
        if fs::exists(&sys(device).join(&name).join("partition")) {
            family.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(family)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_text(path, LIMIT).ok()??.trim().parse().ok()
}

/// By device number, and by node for btrfs, whose mounts have numbers of their own.
fn mounted(family: &[String], nodes: &[&Path]) -> Result<Vec<PathBuf>> {
    let number = |name: &String| Some(fs::read_text(&sys(name).join("dev"), LIMIT).ok()??.trim().to_owned());
    let numbers: Vec<String> = family.iter().filter_map(number).collect();
    let of_this = |mount: &mountinfo::Mount| {
        let source = mount
            .source
            .is_absolute()
            .then(|| mount.source.canonicalize().ok())
            .flatten();
        numbers.contains(&mount.device) || source.is_some_and(|source| nodes.contains(&source.as_path()))
    };
    let mounts = mountinfo::read()?.into_iter().filter(of_this);
    Ok(mounts.map(|mount| mount.path).collect())
}

fn swaps(nodes: &[&Path]) -> Result<Vec<String>> {
    let text = fs::read_text(Path::new("/proc/swaps"), LIMIT)?.unwrap_or_default();
    let used = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let ours = used.filter(|path| {
        Path::new(path)
            .canonicalize()
            .is_ok_and(|path| nodes.contains(&path.as_path()))
    });
    Ok(ours.map(str::to_owned).collect())
}

/// Loop devices whose content one of these files is.
fn loops_over(paths: &[&Path]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in fs::names(Path::new("/sys/block"))? {
        let file = Path::new("/sys/block").join(&name).join("loop/backing_file");
        let backing = fs::read_text(&file, LIMIT).ok().flatten().unwrap_or_default();
        if paths.contains(&Path::new(backing.trim_end_matches('\n'))) {
            found.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// File systems, RAID and LVM take their devices for themselves.
fn is_claimed(node: &Path) -> bool {
    let exclusively = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(exclusively).open(node);
    opened.is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()))
}

/// What wipefs finds: kinds of file systems, RAID members and partition tables.
fn signatures(path: &Path) -> Result<Vec<String>> {
    let arguments = ["--no-act", "--parsable"].map(Into::into);
    let arguments: Vec<_> = arguments.into_iter().chain([path.into()]).collect();
    let output = tools::run(&tools::WIPEFS, &arguments, b"", path)?;
    Ok(kinds(&String::from_utf8_lossy(&output.stdout)))
}

/// The last column of wipefs' parsable output, each kind once.
fn kinds(text: &str) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(kind) = line.rsplit(',').next().filter(|kind| !kind.is_empty())
            && !kinds.iter().any(|known| known == kind)
        {
            kinds.push(kind.to_owned());
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(uses: Uses, wipe: bool) -> Option<String> {
        refusal(Path::new("/dev/sdx"), &uses, wipe).err().map(|e| e.to_string())
    }

    #[test]
    fn an_empty_disk_that_nobody_uses_is_taken() {
        assert_eq!(refused(Uses::default(), false), None);
    }

    #[test]
    fn data_is_overwritten_only_when_that_was_asked_for() {
        let uses = Uses {
            signatures: vec!["gpt".into(), "PMBR".into()],
            ..Uses::default()
        };
        let text = refused(uses.clone(), false).unwrap();
        assert!(
            text.contains("/dev/sdx: nothing was changed: there is data on it (gpt, PMBR); --wipe"),
            "{text}"
        );
        assert_eq!(refused(uses, true), None);
    }

    #[test]
    fn what_is_in_use_is_refused_even_with_wipe() {
        let base = Uses::default();
        let cases = [
            (
                Uses {
                    is_partition: true,
                    ..base.clone()
                },
                "it is a partition",
            ),
            (
                Uses {
                    is_read_only: true,
                    ..base.clone()
                },
                "read-only",
            ),
            (
                Uses {
                    mounted: vec!["/a".into(), "/b".into()],
                    ..base.clone()
                },
                "mounted at /a, /b",
            ),
            (
                Uses {
                    swap: vec!["/dev/sdx2".into()],
                    ..base.clone()
                },
                "swap space on /dev/sdx2",
            ),
            (
                Uses {
                    holders: vec!["dm-0".into(), "md0".into()],
                    ..base.clone()
                },
                "part of dm-0, md0",
            ),
            (
                Uses {
                    is_claimed: true,
                    ..base
                },
                "in use by another process",
            ),
        ];
        for (uses, why) in cases {
            for wipe in [false, true] {
                let text = refused(uses.clone(), wipe).unwrap();
                assert!(text.contains("nothing was changed") && text.contains(why), "{text}");
            }
        }
    }

    #[test]
    fn signatures_are_the_last_column_each_once() {
        let text = "# offset,uuid,label,type\n0x438,9f-2,ro,ot,ext4\n0x200,,,gpt\n0x7ffffe00,,,gpt\n0x1fe,,,PMBR\n";
        assert_eq!(kinds(text), ["ext4", "gpt", "PMBR"]);
        assert_eq!(kinds(""), [""; 0]);
    }

    #[test]
    fn a_file_is_a_disk_and_a_folder_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, []).unwrap();
        assert!(Disk::open(&path).unwrap_err().to_string().contains("truncate -s"));
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let disk = Disk::open(&path).unwrap();
        assert_eq!((disk.size, disk.sector, &disk.device), (1 << 20, 512, &None));
        assert_eq!(disk.uses().unwrap(), Uses::default());
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for other in [folder.path(), &pipe, Path::new("/dev/null")] {
            let refusal = Disk::open(other).unwrap_err().to_string();
            assert!(refusal.contains("neither a block device"), "{refusal}");
        }
        assert!(Disk::open(&path.join("x")).is_err());
    }

    #[test]
    fn the_disk_of_the_running_system_is_in_use() {
        let mounts = mountinfo::read().unwrap();
        let root = mountinfo::at(&mounts, Path::new("/")).unwrap();
        let Ok(disk) = Disk::open(&root.source) else {
            println!("not checked: the root is on no block device that this user may open");
            return;
        };
        let Ok(uses) = disk.uses() else { return };
        assert!(uses.mounted.contains(&"/".into()) || uses.is_partition, "{uses:?}");
        assert!(refusal(&disk.path, &uses, true).is_err());
    }
}
