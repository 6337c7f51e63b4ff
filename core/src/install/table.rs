//! The partition table of a new disk: sizes and types in, the text that sfdisk reads out.
//!
//! Pure. Types are those of the Discoverable Partitions Specification, so that firmware, systemd-boot and
//! systemd-gpt-auto-generator find each partition by what it is. Everything begins and ends at a whole MiB, and every
//! number is explicit: what the plan says is what is on the disk.

use std::str::FromStr;

use super::uuid::Uuid;
use crate::error::{Error, Result};

/// One MiB.
pub const MIB: u64 = 1 << 20;
/// Before the first and behind the last partition: GPT and its copy.
const MARGIN: u64 = MIB;
/// From this size on a disk gets the larger EFI system partition.
const LARGE_DISK: u64 = 16 << 30;
/// A root that is smaller holds no system.
const LEAST_ROOT: u64 = 256 * MIB;
/// FAT32 needs 65,525 clusters; one is at least a sector.
const LEAST_FAT: [(u64, u64); 2] = [(512, 36 * MIB), (4096, 260 * MIB)];

const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const XBOOTLDR_TYPE: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
/// `GPT_FLAG_GROWFS`: what mounts the file system by the specification may let it grow to its partition.
const GROW_FILE_SYSTEM: &str = "GUID:59";

/// The file system of the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileSystem {
    /// With the feature `verity`.
    #[default]
    Ext4,
    /// fs-verity is part of it.
    Btrfs,
}

impl FileSystem {
    /// As `mount -t` and `/proc/filesystems` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
        }
    }
}

/// What is wanted, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// EFI system partition; `None` = 1 GiB on disks from 16 GiB on, else 512 MiB.
    pub esp: Option<u64>,
    /// Extended boot partition; `None` = none.
    pub xbootldr: Option<u64>,
    /// Root; `None` = all that is left.
    pub root: Option<u64>,
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// EFI system partition.
    Esp,
    /// Extended boot partition (XBOOTLDR).
    Xbootldr,
    /// Root.
    Root,
}

impl Role {
    /// For people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::Xbootldr => "xbootldr",
            Self::Root => "root",
        }
    }

    /// Name of the partition, and label of its file system.
    pub fn label(self) -> &'static str {
        match self {
            Self::Esp => "EFI-SYSTEM",
            Self::Xbootldr => "XBOOTLDR",
            Self::Root => "root",
        }
    }
}

/// A partition to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What for.
    pub role: Role,
    /// Counted from 1.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Its type.
    pub kind: &'static str,
    /// Its own id (PARTUUID).
    pub id: Uuid,
    /// That of its file system; FAT has only the first 32 bits.
    pub file_system: Uuid,
}

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Bytes of a logical sector.
    pub sector: u64,
    /// The disk's own id.
    pub id: Uuid,
    /// In the order of the disk.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// Lays the partitions out on a disk of `size` bytes.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes that make no sense, [`Error::Disk`] for an architecture without a type of its own,
    /// [`Error::Space`] where the disk is too small, each without the disk's name (`path`).
    pub fn plan(path: &std::path::Path, size: u64, sector: u64, wanted: Sizes, architecture: &str) -> Result<Self> {
        let kind = root_type(architecture).ok_or_else(|| Error::Disk {
            path: path.into(),
            why: format!("no partition type is known for the root of a machine with architecture {architecture}"),
        })?;
        let default_esp = if size >= LARGE_DISK { 1024 * MIB } else { 512 * MIB };
        let esp = wanted.esp.unwrap_or(default_esp);
        let least_fat = LEAST_FAT
            .iter()
            .find(|(own, _)| *own == sector)
            .map_or(0, |(_, least)| *least);
        for (option, value, least) in [
            ("--esp-size", Some(esp), least_fat),
            ("--xbootldr", wanted.xbootldr, least_fat),
            ("--root-size", wanted.root, LEAST_ROOT),
        ] {
            check_size(option, value, least, sector)?;
        }
        let mut table = Self {
            sector,
            id: Uuid::random()?,
            partitions: Vec::new(),
        };
        let mut at = table.add(Role::Esp, MARGIN, esp, ESP_TYPE)?;
        if let Some(boot) = wanted.xbootldr {
            at = table.add(Role::Xbootldr, at, boot, XBOOTLDR_TYPE)?;
        }
        let end = (size / MIB * MIB).saturating_sub(MARGIN);
        let root = wanted.root.unwrap_or_else(|| end.saturating_sub(at).max(LEAST_ROOT));
        if at.saturating_add(root) > end {
            return Err(Error::Space {
                path: path.into(),
                needed: at.saturating_add(root).saturating_add(MARGIN),
                free: size,
                remedy: "nothing was changed; take a larger disk, or smaller partitions (--esp-size, --xbootldr, \
                         --root-size)"
                    .into(),
            });
        }
        table.add(Role::Root, at, root, kind)?;
        Ok(table)
    }

    fn add(&mut self, role: Role, start: u64, size: u64, kind: &'static str) -> Result<u64> {
        let number = self.partitions.last().map_or(1, |last| last.number + 1);
        self.partitions.push(Partition {
            role,
            number,
            start,
            size,
            kind,
            id: Uuid::random()?,
            file_system: Uuid::random()?,
        });
        Ok(start.saturating_add(size))
    }

    /// The partition of a role.
    pub fn of(&self, role: Role) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.role == role)
    }

    /// What sfdisk is given.
    pub fn script(&self) -> String {
        let mut text = format!("label: gpt\nlabel-id: {}\nunit: sectors\n\n", self.id);
        for partition in &self.partitions {
            let attributes = match partition.role {
                Role::Root => format!(", attrs=\"{GROW_FILE_SYSTEM}\""),
                Role::Esp | Role::Xbootldr => String::new(),
            };
            text.push_str(&format!(
                "{} : start={}, size={}, type={}, uuid={}, name=\"{}\"{attributes}\n",
                partition.number,
                partition.start / self.sector,
                partition.size / self.sector,
                partition.kind,
                partition.id,
                partition.role.label(),
            ));
        }
        text
    }
}

fn check_size(option: &str, value: Option<u64>, least: u64, sector: u64) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    if value % MIB != 0 {
        return Err(Error::Usage(format!(
            "{option}: {value} bytes are no whole number of MiB"
        )));
    }
    if value < least {
        return Err(Error::Usage(format!(
            "{option}: {} MiB are too few; on a disk with sectors of {sector} bytes it takes at least {} MiB",
            value / MIB,
            least / MIB
        )));
    }
    Ok(())
}

/// The partition type of the root, by architecture (as `uname -m` or an image's config names it).
pub fn root_type(architecture: &str) -> Option<&'static str> {
    Some(match architecture {
        "amd64" | "x86_64" => "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
        "386" | "x86" => "44479540-F297-41B2-9AF7-D131D5F0458A",
        "arm64" | "aarch64" => "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
        "arm" => "69DAD710-2CE4-4E3C-B16C-21A1D49ABED3",
        "riscv64" => "72EC70A6-CF74-40E6-BD49-4BDA08E8F224",
        "loong64" | "loongarch64" => "77055800-792C-4F94-B39A-98C91B762BB6",
        _ => return None,
    })
}

/// The device node of a partition of `disk`: a `p` between where the disk's name ends with a digit.
pub fn node(disk: &str, number: u32) -> String {
    let between = if disk.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{between}{number}")
}

/// A size on the command line, in bytes: a number with K, M, G or T (powers of 1024; `MiB` and `MB` mean the same);
/// MiB where nothing is said.
///
/// # Errors
/// Says what to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write 512M or 1G");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = text[digits..].to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

impl FromStr for FileSystem {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "btrfs" => Ok(Self::Btrfs),
            _ => Err(Error::Usage(format!(
                "{text:?} is no file system for a root; write ext4 or btrfs"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::Kind;

    fn plan(size: u64, sector: u64, sizes: Sizes) -> Result<Table> {
        Table::plan(Path::new("/dev/sdx"), size, sector, sizes, "amd64")
    }

    /// Role, start and size in MiB.
    fn layout(table: &Table) -> Vec<(Role, u64, u64)> {
        let mib = |p: &Partition| (p.role, p.start / MIB, p.size / MIB);
        table.partitions.iter().map(mib).collect()
    }

    #[test]
    fn the_root_takes_what_is_left_and_the_last_mib_stays_free_for_the_copy_of_the_table() {
        let table = plan(8 * 1024 * MIB, 512, Sizes::default()).unwrap();
        assert_eq!(layout(&table), [(Role::Esp, 1, 512), (Role::Root, 513, 8192 - 513 - 1)]);
        let table = plan((16 << 30) + 12345, 512, Sizes::default()).unwrap();
        assert_eq!(
            layout(&table),
            [(Role::Esp, 1, 1024), (Role::Root, 1025, 16384 - 1025 - 1)]
        );
        let sizes = Sizes {
            esp: Some(300 * MIB),
            xbootldr: Some(700 * MIB),
            root: Some(2048 * MIB),
        };
        assert_eq!(
            layout(&plan(8 << 30, 4096, sizes).unwrap()),
            [
                (Role::Esp, 1, 300),
                (Role::Xbootldr, 301, 700),
                (Role::Root, 1001, 2048)
            ]
        );
    }

    #[test]
    fn the_script_names_every_number_in_the_disks_own_sectors() {
        let sizes = Sizes {
            esp: Some(512 * MIB),
            xbootldr: Some(300 * MIB),
            root: None,
        };
        for sector in [512, 4096] {
            let table = plan(4 << 30, sector, sizes).unwrap();
            let [esp, boot, root] = &table.partitions[..] else {
                panic!()
            };
            let lines: Vec<_> = table.script().lines().map(str::to_owned).collect();
            let of = |mib: u64| mib * MIB / sector;
            assert_eq!(
                lines[..4],
                [
                    "label: gpt".into(),
                    format!("label-id: {}", table.id),
                    "unit: sectors".into(),
                    String::new()
                ]
            );
            assert_eq!(
                lines[4..],
                [
                    format!(
                        "1 : start={}, size={}, type={ESP_TYPE}, uuid={}, name=\"EFI-SYSTEM\"",
                        of(1),
                        of(512),
                        esp.id
                    ),
                    format!(
                        "2 : start={}, size={}, type={XBOOTLDR_TYPE}, uuid={}, name=\"XBOOTLDR\"",
                        of(513),
                        of(300),
                        boot.id
                    ),
                    format!(
                        "3 : start={}, size={}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid={}, name=\"root\", attrs=\"GUID:59\"",
                        of(813),
                        of(4096 - 813 - 1),
                        root.id
                    ),
                ]
            );
        }
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_numbers_and_one_byte_more_is_enough() {
        let needed = (1 + 512 + 256 + 1) * MIB;
        let error = plan(needed - 1, 512, Sizes::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Space);
        assert!(
            error
                .to_string()
                .contains(&format!("/dev/sdx: {needed} bytes needed, {} free", needed - 1)),
            "{error}"
        );
        assert!(plan(needed, 512, Sizes::default()).is_ok());
        assert!(plan(0, 512, Sizes::default()).is_err());
        let huge = Sizes {
            esp: Some(u64::MAX / MIB * MIB),
            ..Sizes::default()
        };
        assert_eq!(plan(1 << 40, 512, huge).unwrap_err().kind(), Kind::Space);
    }

    #[test]
    fn sizes_that_no_file_system_can_have_are_refused() {
        let refused = |sector, sizes| {
            let error = plan(64 << 30, sector, sizes).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            error.to_string()
        };
        let esp = |mib| Sizes {
            esp: Some(mib * MIB),
            ..Sizes::default()
        };
        assert!(
            refused(512, esp(35))
                .contains("--esp-size: 35 MiB are too few; on a disk with sectors of 512 bytes it takes at least 36")
        );
        assert!(refused(4096, esp(259)).contains("at least 260"));
        let odd = Sizes {
            xbootldr: Some(300 * MIB + 1),
            ..Sizes::default()
        };
        assert!(refused(512, odd).contains("--xbootldr"));
        let root = Sizes {
            root: Some(MIB),
            ..Sizes::default()
        };
        assert!(refused(512, root).contains("--root-size"));
    }

    #[test]
    fn an_architecture_without_a_type_is_named() {
        let error = Table::plan(Path::new("/dev/sdx"), 8 << 30, 512, Sizes::default(), "vax").unwrap_err();
        assert!(error.to_string().contains("vax"), "{error}");
        assert_eq!(root_type("arm64"), root_type("aarch64"));
    }

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        for (disk, first) in [
            ("/dev/sda", "/dev/sda1"),
            ("/dev/vdb", "/dev/vdb1"),
            ("/dev/nvme0n1", "/dev/nvme0n1p1"),
            ("/dev/mmcblk0", "/dev/mmcblk0p1"),
            ("/dev/loop7", "/dev/loop7p1"),
        ] {
            assert_eq!(node(disk, 1), first);
        }
    }

    #[test]
    fn sizes_are_read_as_mib_unless_a_unit_is_named() {
        for (text, bytes) in [
            ("512", 512 * MIB),
            ("512M", 512 * MIB),
            ("512MiB", 512 * MIB),
            ("1g", 1 << 30),
            ("1GB", 1 << 30),
            ("2T", 2 << 40),
            ("1024K", MIB),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "99999999999999T", "1 G", "512MM"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
