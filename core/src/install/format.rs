//! A whole disk, made into an EFI system partition and a root: the plan, and carrying it out.
//!
//! Partitions of a file are reached through loop devices over their bytes, not through device nodes: neither the
//! kernel's partition scan nor udev has to be there. Those of a real disk are reached through their nodes.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::disk::{self, Disk};
use super::table::{FileSystem, Partition, Role, Sizes, Table, node};
use super::target::{Held, Prepared, WITHOUT_VERITY};
use super::tools::{self, Tool};
use crate::error::{Error, Result};
use crate::sys::filesystem::{MountPoint, Mounted};
use crate::sys::fs::{self, Fs, RealFs};
use crate::sys::loop_device::LoopDevice;
use crate::sys::process;

/// How long the kernel and udev may take to make a partition's node.
const NODE_WAIT: Duration = Duration::from_secs(10);
/// FAT has no permissions: only root may look.
const FAT_OPTIONS: &str = "fmask=0177,dmask=0077";

/// What is wanted of a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Of the partitions.
    pub sizes: Sizes,
    /// Of the root.
    pub file_system: FileSystem,
    /// Overwrite what is on the disk.
    pub wipe: bool,
    /// Install where the kernel has no fs-verity, too.
    pub allow_missing_verity: bool,
}

/// What will be done to a disk.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which disk.
    pub disk: Disk,
    /// Its new partitions.
    pub table: Table,
    /// Of the root.
    pub file_system: FileSystem,
    /// The root is made with fs-verity.
    pub has_verity: bool,
}

impl Plan {
    /// Looks at disk, programs and kernel; changes nothing.
    ///
    /// # Errors
    /// [`Error::Disk`] says what is missing or in the way, [`Error::Space`] what does not fit.
    pub fn new(path: &Path, wishes: &Wishes, architecture: &str) -> Result<Self> {
        let disk = Disk::open(path)?;
        tools::check(path, &programs(wishes.file_system))?;
        disk::refusal(path, &disk.uses()?, wishes.wipe)?;
        let table = Table::plan(path, disk.size, disk.sector, wishes.sizes, architecture)?;
        tools::check_kernel(path, "vfat")?;
        tools::check_kernel(path, wishes.file_system.name())?;
        let has_verity = tools::kernel_has_verity(wishes.file_system);
        if !has_verity && !wishes.allow_missing_verity {
            return Err(Error::Disk {
                path: path.into(),
                why: format!(
                    "nothing was changed: this kernel has no fs-verity on {}, without which nothing proves at boot \
                     what is read; install from a kernel that has it, or give --allow-missing-verity",
                    wishes.file_system.name()
                ),
            });
        }
        Ok(Self {
            disk,
            table,
            file_system: wishes.file_system,
            has_verity,
        })
    }

    /// Partitions, formats and mounts the disk. What was on it is gone afterwards, whether this fails or not.
    ///
    /// # Errors
    /// Names what failed; nothing stays mounted or attached then.
    pub fn execute(&self) -> Result<Prepared> {
        let mut held = Held::default();
        let arguments = [
            "--quiet",
            "--no-reread",
            "--wipe",
            "always",
            "--wipe-partitions",
            "always",
        ]
        .map(Into::into);
        let arguments: Vec<OsString> = arguments.into_iter().chain([self.disk.path.clone().into()]).collect();
        tools::run(
            &tools::SFDISK,
            &arguments,
            self.table.script().as_bytes(),
            &self.disk.path,
        )?;
        let devices = self.devices(&mut held)?;
        for (partition, device) in self.table.partitions.iter().zip(&devices) {
            let (tool, arguments) = self.formatting(partition, device);
            tools::run(&tool, &arguments, b"", device)?;
        }
        self.mount(held, &devices)
    }

    /// Where each partition can be read and written.
    fn devices(&self, held: &mut Held) -> Result<Vec<PathBuf>> {
        if let Some(nodes) = self.nodes()? {
            return Ok(nodes);
        }
        let fail = |e| Error::io("open", &self.disk.path, e);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.disk.path)
            .map_err(fail)?;
        let block = u32::try_from(self.table.sector).unwrap_or(512);
        for partition in &self.table.partitions {
            let device = LoopDevice::attach_part(&file, partition.start, partition.size, block)?;
            held.loops.push(device);
        }
        Ok(held.loops.iter().map(|device| device.path().to_path_buf()).collect())
    }

    /// The partitions' nodes; `None` for a file, and for a device whose partitions the kernel does not show.
    fn nodes(&self) -> Result<Option<Vec<PathBuf>>> {
        let Some(device) = &self.disk.device else {
            return Ok(None);
        };
        // Where there is udev it may still be at work; where there is none the kernel has made the nodes itself.
        let settle = ["settle".into(), "--timeout=10".into()];
        let _ = process::run("udevadm".as_ref(), &settle, b"");
        let sys = Path::new("/sys/class/block").join(device);
        let no_scan = fs::read_text(&sys.join("loop/partscan"), 64)?.is_some_and(|text| text.trim() == "0");
        if no_scan {
            return Ok(None);
        }
        let until = Instant::now() + NODE_WAIT;
        let mut nodes = Vec::new();
        for partition in &self.table.partitions {
            let name = node(device, partition.number);
            let path = Path::new("/dev").join(&name);
            while !(is_partition(&sys.join(&name), partition) && fs::exists(&path)) {
                if Instant::now() > until {
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            nodes.push(path);
        }
        Ok(Some(nodes))
    }

    /// The program that makes a partition's file system.
    fn formatting(&self, partition: &Partition, device: &Path) -> (Tool, Vec<OsString>) {
        let (id, label) = (partition.file_system, partition.role.label());
        let (tool, arguments) = match (partition.role, self.file_system) {
            (Role::Esp | Role::Xbootldr, _) => (tools::MKFS_VFAT, format!("-F 32 -n {label} -i {}", id.fat_serial())),
            (Role::Root, FileSystem::Ext4) => {
                // fs-verity wants blocks as large as the kernel's pages; small file systems would get smaller ones.
                let verity = if self.has_verity { " -O verity" } else { "" };
                (tools::MKFS_EXT4, format!("-q -F -b 4096{verity} -U {id} -L {label}"))
            }
            (Role::Root, FileSystem::Btrfs) => (tools::MKFS_BTRFS, format!("-q -f -U {id} -L {label}")),
        };
        let words = arguments.split(' ').map(OsString::from);
        (tool, words.chain([device.into()]).collect())
    }

    fn mount(&self, mut held: Held, devices: &[PathBuf]) -> Result<Prepared> {
        let device = |role| {
            let at = self
                .table
                .partitions
                .iter()
                .position(|partition| partition.role == role)?;
            devices.get(at).map(PathBuf::as_path)
        };
        let missing = |role: Role| Error::Disk {
            path: self.disk.path.clone(),
            why: format!("has no {} partition", role.name()),
        };
        let place = held.place.insert(MountPoint::new("install")?);
        let root = place.path().to_path_buf();
        let disk = device(Role::Root).ok_or_else(|| missing(Role::Root))?;
        held.mounts
            .push(Mounted::new(disk, &root, self.file_system.name(), "")?);
        let mut below = |name: &str, device: &Path| {
            let path = root.join(name);
            RealFs.create_dir(&path, 0o755)?;
            held.mounts.push(Mounted::new(device, &path, "vfat", FAT_OPTIONS)?);
            Ok::<_, Error>(path)
        };
        let esp = device(Role::Esp).ok_or_else(|| missing(Role::Esp))?;
        let (boot, esp) = match device(Role::Xbootldr) {
            Some(boot) => (below("boot", boot)?, below("efi", esp)?),
            None => {
                let boot = below("boot", esp)?;
                (boot.clone(), boot)
            }
        };
        let id = self
            .table
            .of(Role::Root)
            .ok_or_else(|| missing(Role::Root))?
            .file_system;
        Ok(Prepared {
            root,
            boot,
            esp,
            root_argument: format!("UUID={id}"),
            kernel_arguments: Vec::new(),
            has_verity: self.has_verity,
            partitions: self.table.partitions.clone(),
            notes: (!self.has_verity)
                .then(|| WITHOUT_VERITY.to_owned())
                .into_iter()
                .collect(),
            held,
        })
    }
}

fn programs(file_system: FileSystem) -> [Tool; 4] {
    let root = match file_system {
        FileSystem::Ext4 => tools::MKFS_EXT4,
        FileSystem::Btrfs => tools::MKFS_BTRFS,
    };
    [tools::SFDISK, tools::WIPEFS, tools::MKFS_VFAT, root]
}

/// Whether the kernel has this very partition there; in `/sys`, sectors are of 512 bytes.
fn is_partition(sys: &Path, partition: &Partition) -> bool {
    let sectors = |name| {
        fs::read_text(&sys.join(name), 64)
            .ok()
            .flatten()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    sectors("start") == Some(partition.start / 512) && sectors("size") == Some(partition.size / 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(file_system: FileSystem, has_verity: bool) -> Plan {
        let path = Path::new("/dev/sdx");
        let sizes = Sizes {
            xbootldr: Some(1 << 30),
            ..Sizes::default()
        };
        Plan {
            disk: Disk {
                path: path.into(),
                device: Some("sdx".into()),
                size: 64 << 30,
                sector: 512,
            },
            table: Table::plan(path, 64 << 30, 512, sizes, "x86_64").unwrap(),
            file_system,
            has_verity,
        }
    }

    fn commands(plan: &Plan) -> Vec<String> {
        let line = |partition| {
            let (tool, arguments) = plan.formatting(partition, Path::new("/dev/sdxN"));
            let words: Vec<_> = arguments
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            format!("{} {}", tool.program, words.join(" "))
        };
        plan.table.partitions.iter().map(line).collect()
    }

    #[test]
    fn each_partition_gets_the_file_system_and_the_id_that_the_plan_says() {
        let ext4 = plan(FileSystem::Ext4, true);
        let [esp, boot, root] = &ext4.table.partitions[..] else {
            panic!()
        };
        let (esp, boot, root) = (esp.file_system, boot.file_system, root.file_system);
        assert_eq!(
            commands(&ext4),
            [
                format!("mkfs.vfat -F 32 -n EFI-SYSTEM -i {} /dev/sdxN", esp.fat_serial()),
                format!("mkfs.vfat -F 32 -n XBOOTLDR -i {} /dev/sdxN", boot.fat_serial()),
                format!("mkfs.ext4 -q -F -b 4096 -O verity -U {root} -L root /dev/sdxN"),
            ]
        );
        assert!(!commands(&plan(FileSystem::Ext4, false))[2].contains("verity"));
        let btrfs = plan(FileSystem::Btrfs, true);
        let root = btrfs.table.of(Role::Root).unwrap().file_system;
        assert_eq!(
            commands(&btrfs)[2],
            format!("mkfs.btrfs -q -f -U {root} -L root /dev/sdxN")
        );
    }
}
