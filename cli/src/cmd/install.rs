//! `install to-disk DEVICE IMAGE` and `install to-filesystem DIR IMAGE`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cfs_core::boot::{HostArguments, cmdline};
use cfs_core::ids::Algorithm;
use cfs_core::install::table::{self, Role, parse_size};
use cfs_core::install::{self, BootFiles, FileSystem, Prepared, Request, Sizes, existing, format};
use cfs_core::manifest::Platform;
use cfs_core::monitor::{Event, Monitor, Stage};
use cfs_core::registry::{Image, Registry};
use cfs_core::sys::{filesystem, fs};
use cfs_core::sysroot::{Sysroot, repository};
use cfs_core::{Error, Result as CoreResult, preflight, reference::Reference};
use clap::Subcommand;
use indicatif::HumanBytes;
use serde::Serialize;

use super::Context;
use super::image::load;
use super::switch::reference;
use crate::args::{BootDir, Network, NewStore, SpaceArgs};
use crate::output::Report;

const KEYS_LIMIT: u64 = 1 << 20;

/// Install a system to an empty disk or file system
#[derive(Debug, Subcommand)]
pub enum Install {
    ToDisk(ToDisk),
    ToFilesystem(ToFilesystem),
}

/// Install to a whole disk, or to a file that is to be one
///
/// Makes a GPT with an EFI system partition and a root, installs systemd-boot from the image's own files, and
/// deploys the image. Refuses a disk that is in use, and one with data on it unless --wipe is given. Needs root.
#[derive(Debug, clap::Args)]
pub struct ToDisk {
    /// Disk (/dev/sda), or a regular file as large as the disk is to be
    device: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Overwrite what is on the disk
    #[arg(long)]
    wipe: bool,
    /// File system of the root
    #[arg(long, value_name = "ext4|btrfs", default_value = "ext4")]
    filesystem: FileSystem,
    /// Size of the EFI system partition: 512M, 1G [default: 1G on disks from 16G on, else 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    esp_size: Option<u64>,
    /// Put kernels and entries on an extended boot partition (XBOOTLDR) of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    xbootldr: Option<u64>,
    /// Size of the root partition [default: all that is left]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    root_size: Option<u64>,
    /// Look at everything, print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// A file is always taken through loop devices
    #[arg(long, hide = true)]
    via_loopback: bool,
}

/// Install to a root file system that is mounted and empty
///
/// What is mounted at DIR/boot is $BOOT, what is mounted at DIR/efi or DIR/boot/efi the EFI system partition; one of
/// them is both where there is no other.
#[derive(Debug, clap::Args)]
pub struct ToFilesystem {
    /// Where the root file system is mounted
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Value of root= on the kernel command line [default: the UUID of the file system]
    #[arg(long, value_name = "SPEC")]
    root_mount_spec: Option<String>,
    #[command(flatten)]
    boot: BootDir,
}

/// Of both.
#[derive(Debug, clap::Args)]
struct Common {
    /// Image: quay.io/org/os:41, docker://…, oci:DIR[:TAG], each also with @sha256:…
    #[arg(required_unless_present = "source_imgref")]
    image: Option<String>,
    /// The same, as bootc has it
    #[arg(long, value_name = "IMAGE", conflicts_with = "image")]
    source_imgref: Option<String>,
    /// Image to follow from then on, where that is another one than is installed from
    #[arg(long, value_name = "IMAGE")]
    target_imgref: Option<String>,
    /// Kernel argument of this and every later deployment; may be given several times
    #[arg(long, value_name = "ARG")]
    karg: Vec<String>,
    /// Let the holders of these keys log in as root
    #[arg(long, value_name = "FILE")]
    root_ssh_authorized_keys: Option<PathBuf>,
    /// Install where there is no fs-verity, too: nothing then proves at boot what is read
    #[arg(long)]
    allow_missing_verity: bool,
    #[command(flatten)]
    space: SpaceArgs,
    #[command(flatten)]
    network: Network,
    #[command(flatten)]
    store: NewStore,
}

impl Install {
    /// How it uses the network.
    pub fn network(&self) -> Network {
        match self {
            Self::ToDisk(command) => command.common.network,
            Self::ToFilesystem(command) => command.common.network,
        }
    }

    pub fn run(self, context: &Context) -> Result<()> {
        if context.sysroot.is_some() {
            let why = "install takes the place to install to as its argument; leave --sysroot out";
            return Err(Error::Usage(why.into()).into());
        }
        match self {
            Self::ToDisk(command) => command.run(context),
            Self::ToFilesystem(command) => command.run(context),
        }
    }
}

impl ToDisk {
    fn run(self, context: &Context) -> Result<()> {
        let wishes = format::Wishes {
            sizes: Sizes {
                esp: self.esp_size,
                xbootldr: self.xbootldr,
                root: self.root_size,
            },
            file_system: self.filesystem,
            wipe: self.wipe,
            allow_missing_verity: self.common.allow_missing_verity,
        };
        let inputs = self.common.inputs()?;
        let plan = format::Plan::new(&self.device, &wishes, Platform::host().architecture())?;
        if self.dry_run {
            return context.show(&Planned::new(&plan));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Disk {
                path: self.device,
                why: "nothing was changed: partitioning and mounting need root".into(),
            }
            .into());
        }
        // Before any thread is started that is to see the mounts.
        filesystem::own_mounts()?;
        let source = inputs.source(context)?;
        if !self.common.space.ignore_space && context.settings.store.check_space {
            refuse_small_root(&plan, &source.image)?;
        }
        if let Some(files) = &source.files {
            let size = |role| plan.table.of(role).map(|partition| partition.size);
            let esp = size(Role::Esp).unwrap_or_default();
            files.check_partitions(&plan.disk.path, size(Role::Xbootldr), esp)?;
        }
        let remains =
            "the disk was overwritten and boots nothing; once the reason is gone, run the same command with --wipe";
        let note = format!(
            "{}: partitions and file systems are being made",
            plan.disk.path.display()
        );
        context.ui.event(Event::Note(note));
        let place = plan.execute().context(remains)?;
        let report = self.common.deploy(context, place, source, inputs).context(remains)?;
        context.show(&Done {
            device: Some(plan.disk.path.display().to_string()),
            ..report
        })
    }
}

impl ToFilesystem {
    fn run(self, context: &Context) -> Result<()> {
        let inputs = self.common.inputs()?;
        let boot = self.boot.boot.as_ref().or(context.boot.boot.as_ref());
        let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|e| Error::io("find", path, e));
        let wishes = existing::Wishes {
            boot: boot.map(absolute).transpose()?,
            root_argument: self.root_mount_spec.clone(),
            allow_missing_verity: self.common.allow_missing_verity,
            algorithm: self.common.algorithm(context),
        };
        let place = existing::look(&self.dir, &wishes)?;
        let source = inputs.source(context)?;
        if let Some(files) = &source.files {
            files.check_mounted(&place)?;
        }
        if !self.common.space.ignore_space && context.settings.store.check_space {
            let nothing = preflight::of_new_store(&repository(&place.root), &source.image)?;
            nothing.check()?;
        }
        let report = self.common.deploy(context, place, source, inputs)?;
        context.show(&report)
    }
}

/// What the user gave, read and understood before anything else happens.
struct Inputs {
    kernel_arguments: Vec<String>,
    root_keys: Option<Vec<u8>>,
    /// What is installed, and what is followed from then on.
    image: Reference,
    target: Option<Reference>,
}

/// An image that there is, and where its layers come from.
struct Source {
    registry: Registry,
    image: Image,
    /// What goes onto the boot partition, where looking costs no network.
    files: Option<BootFiles>,
}

impl Common {
    fn inputs(&self) -> CoreResult<Inputs> {
        let fit = self.karg.iter().try_for_each(|argument| cmdline::check_wish(argument));
        fit.map_err(|why| Error::Usage(format!("--karg: {why}")))?;
        let keys = self.root_ssh_authorized_keys.as_deref().map(|path| {
            let none = || Error::Usage(format!("--root-ssh-authorized-keys {}: no such file", path.display()));
            fs::read(path, KEYS_LIMIT)?.ok_or_else(none)
        });
        let image = self.image.as_ref().or(self.source_imgref.as_ref());
        let image = image.ok_or_else(|| Error::Usage("which image is to be installed?".into()))?;
        Ok(Inputs {
            kernel_arguments: self.karg.clone(),
            root_keys: keys.transpose()?,
            image: reference(image)?,
            target: self.target_imgref.as_deref().map(reference).transpose()?,
        })
    }

    fn algorithm(&self, context: &Context) -> Algorithm {
        self.store.algorithm().unwrap_or(context.settings.store.algorithm)
    }

    /// Deploys to a place that is ready for it, and puts that away.
    fn deploy(&self, context: &Context, place: Prepared, source: Source, inputs: Inputs) -> Result<Done> {
        for note in &place.notes {
            context.ui.event(Event::Warning(note.clone()));
        }
        let mut options = context.options_for(&place.root, &place.boot, Some(self.algorithm(context)))?;
        options.root_argument = Some(place.root_argument.clone());
        let sysroot = Sysroot::open(options, "install")?;
        let Source {
            registry, mut image, ..
        } = source;
        if let Some(target) = inputs.target {
            image.reference = target;
        }
        let followed = image.reference.with_transport();
        let request = Request {
            registry: &registry,
            image,
            host: HostArguments {
                kernel_arguments: [place.kernel_arguments.clone(), inputs.kernel_arguments].concat(),
                allow_missing_verity: !place.has_verity,
            },
            root_keys: inputs.root_keys,
        };
        let work = |sysroot: &_| install::install(sysroot, &place, request, &context.ui);
        let installed = context.fetching(&sysroot, self.space, work)?;
        super::image::expose::prepare(context, &sysroot);
        drop(sysroot);
        let done = Done::new(&place, installed, followed);
        place.finish()?;
        Ok(done)
    }
}

impl Inputs {
    /// Asks for the image, so that a wrong name costs nobody a disk.
    fn source(&self, context: &Context) -> CoreResult<Source> {
        let registry = Registry::open(&self.image, &context.registry())?;
        context.ui.event(Event::Stage(Stage::Resolve));
        let platform = Platform::host();
        let image = registry.image(&platform, &context.ui)?;
        image.config.check_platform(&platform, &image.reference.to_string())?;
        let files = match &self.image {
            // Known once the layers are there; fetching them twice would cost more than it saves.
            Reference::Registry(_) => None,
            _ => Some(boot_files(context, &registry, &image)?),
        };
        Ok(Source { registry, image, files })
    }
}

fn boot_files(context: &Context, registry: &Registry, image: &Image) -> CoreResult<BootFiles> {
    context
        .ui
        .event(Event::Note("looking for kernel and boot loader in the image".into()));
    let programs = cfs_bootloader::programs(cfs_bootloader::Kind::default(), &image.config.architecture);
    BootFiles::find(&load::preview(context, registry, image)?, &programs)
}

/// What is compressed does not get smaller: a root that cannot even hold that is too small.
fn refuse_small_root(plan: &format::Plan, image: &Image) -> CoreResult<()> {
    let needed = image.blobs.iter().map(|layer| layer.size).sum();
    let size = plan.table.of(Role::Root).map_or(0, |root| root.size);
    if needed < size {
        return Ok(());
    }
    Err(Error::Space {
        path: plan.disk.path.clone(),
        needed,
        free: size,
        remedy: "the root partition cannot hold the image; nothing was changed".into(),
    })
}

/// What was installed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    result: &'static str,
    device: Option<String>,
    /// Where the root was mounted; with `device` only while it was installed to.
    root: String,
    partitions: Vec<Partition>,
    root_argument: String,
    kernel_arguments: Vec<String>,
    fs_verity: bool,
    image: String,
    image_digest: String,
    version: Option<String>,
    deployment: String,
    boot_entry: String,
    boot_loader: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Partition {
    role: &'static str,
    number: u32,
    start: u64,
    size: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    part_uuid: String,
    uuid: String,
}

impl From<&table::Partition> for Partition {
    fn from(partition: &table::Partition) -> Self {
        Self {
            role: partition.role.name(),
            number: partition.number,
            start: partition.start,
            size: partition.size,
            kind: partition.kind,
            part_uuid: partition.id.to_string(),
            uuid: match partition.role {
                Role::Root => partition.file_system.to_string(),
                Role::Esp | Role::Xbootldr => partition.file_system.fat_uuid(),
            },
        }
    }
}

impl Partition {
    fn line(&self) -> String {
        let (number, role, size) = (self.number, self.role, HumanBytes(self.size));
        format!(
            "{:>16}: {role}, {size}, UUID {}\n",
            format!("Partition {number}"),
            self.uuid
        )
    }
}

impl Done {
    fn new(place: &Prepared, installed: install::Installed, image: String) -> Self {
        let install::Installed { done, loader, host } = installed;
        Self {
            result: "installed",
            device: None,
            root: place.root.display().to_string(),
            partitions: place.partitions.iter().map(Partition::from).collect(),
            root_argument: place.root_argument.clone(),
            kernel_arguments: host.kernel_arguments,
            fs_verity: place.has_verity,
            image,
            image_digest: done.manifest.to_string(),
            version: done.version,
            deployment: done.id.to_string(),
            boot_entry: done.entry,
            boot_loader: loader,
        }
    }
}

impl Report for Done {
    fn human(&self) -> String {
        let place = self.device.as_deref().unwrap_or(&self.root);
        let version = self
            .version
            .as_deref()
            .map(|v| format!(" (version {v})"))
            .unwrap_or_default();
        let mut text = format!("Installed {}{version} to {place}\n", self.image);
        for partition in &self.partitions {
            text.push_str(&partition.line());
        }
        let arguments = self.kernel_arguments.join(" ");
        for (label, value) in [
            ("Image digest", &self.image_digest),
            ("Deployment", &self.deployment),
            ("Boot entry", &self.boot_entry),
            ("Boot loader", &self.boot_loader),
            ("Root", &self.root_argument),
            ("Kernel args", &arguments),
        ] {
            if !value.is_empty() {
                text.push_str(&format!("{label:>16}: {value}\n"));
            }
        }
        text
    }
}

/// What `--dry-run` says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Planned {
    result: &'static str,
    device: String,
    size: u64,
    partitions: Vec<Partition>,
    filesystem: &'static str,
    fs_verity: bool,
    /// What sfdisk would be given.
    script: String,
}

impl Planned {
    fn new(plan: &format::Plan) -> Self {
        Self {
            result: "planned",
            device: plan.disk.path.display().to_string(),
            size: plan.disk.size,
            partitions: plan.table.partitions.iter().map(Partition::from).collect(),
            filesystem: plan.file_system.name(),
            fs_verity: plan.has_verity,
            script: plan.table.script(),
        }
    }
}

impl Report for Planned {
    fn human(&self) -> String {
        let verity = if self.fs_verity { "with" } else { "without" };
        let mut text = format!(
            "{} ({}) would be overwritten; root in {} {verity} fs-verity\n",
            self.device,
            HumanBytes(self.size),
            self.filesystem
        );
        for partition in &self.partitions {
            text.push_str(&partition.line());
        }
        text + "Nothing was changed\n"
    }
}
