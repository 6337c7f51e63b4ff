//! Carries a plan out.
//!
//! Invariant: until the last step everything is below a staging place that goes away with whatever is mounted in it; a
//! step that fails leaves SYSROOT as it was.

use std::path::{Path, PathBuf};

use cfs_core::sys::dir::Dir;
use cfs_core::sys::fs::{self, Fs, RealFs};
use cfs_core::sys::mount::{MountOptions, Verity, mount_file};
use cfs_core::sys::mount_tree::{self, Staging, Writable};
use cfs_core::{Error, Result};

use crate::args::Options;
use crate::config::Config;
use crate::image::{Image, Proof};
use crate::init;
use crate::plan::{Place, Step};
use crate::refusal::Refusal;
use crate::state::State;

/// Where systemd reads which device is under a root that has none (systemd-gpt-auto-generator, systemd-repart).
const DEVICE_NOTE: &str = "systemd/volatile-root";

/// What steps work on.
#[derive(Debug)]
pub struct Mounter<'a> {
    options: &'a Options,
    sysroot: &'a Dir,
    image: &'a Image,
    state: &'a State,
    staging: Staging,
    /// Where the image is: the new root itself, or beneath a transient one.
    image_root: PathBuf,
    root: PathBuf,
}

impl<'a> Mounter<'a> {
    /// Makes the staging place.
    pub fn new(
        options: &'a Options,
        config: &Config,
        sysroot: &'a Dir,
        image: &'a Image,
        state: &'a State,
    ) -> Result<Self, Refusal> {
        let staging = Staging::new(&options.run.join("cfs-update-root"))?;
        let root = staging.folder("root", 0o755)?;
        let image_root = match config.transient {
            true => staging.folder("image", 0o755)?,
            false => root.clone(),
        };
        Ok(Self {
            options,
            sysroot,
            image,
            state,
            staging,
            image_root,
            root,
        })
    }

    /// One step after the other; what is to take the place of another root is looked at once more before it does.
    pub fn run(&self, steps: &[Step], arguments: &[String]) -> Result<(), Refusal> {
        steps.iter().try_for_each(|step| {
            if matches!(step, Step::TakeOver | Step::PutOver) {
                init::prove(&Dir::open(&self.root)?, arguments)?;
            }
            self.step(step)
        })
    }

    fn step(&self, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::MakeWritable => mount_tree::make_writable(self.sysroot)?,
            Step::Image { proof, .. } => self.mount_image(*proof)?,
            Step::Bind(place) => {
                let source = self.source(*place)?;
                mount_tree::bind(source, &self.folder(*place)?)?;
            }
            Step::Overlay(place) => {
                let kept = self.source(*place)?.path();
                let (upper, work) = (kept.join("upper"), kept.join("work"));
                RealFs.create_dir(&upper, 0o755)?;
                RealFs.create_dir(&work, 0o700)?;
                self.overlay(step, *place, &upper, &work)?;
            }
            Step::Transient(place, _) => {
                let folder = |kind: &str| self.staging.folder(&format!("{kind}-{}", place.name()), 0o755);
                self.overlay(step, *place, &folder("upper")?, &folder("work")?)?;
            }
            Step::Sysroot => mount_tree::bind(self.sysroot, &self.in_root("sysroot")?)?,
            Step::TakeOver => mount_tree::take_over(&self.root, &self.options.target)?,
            Step::PutOver => mount_tree::put_over(&self.root, &self.options.target)?,
            Step::NoteDevice => self.note_device()?,
        }
        Ok(())
    }

    fn mount_image(&self, proof: Proof) -> Result<(), Refusal> {
        // The path that mount tables show is that of the booted system, too: the physical root stays at /sysroot.
        let objects = self.sysroot.walk(Path::new("composefs/objects"))?;
        let objects = [objects.path()];
        let name = self.image.id().to_hex();
        let options = MountOptions {
            image: self.image.path(),
            objects: &objects,
            digest: (proof == Proof::Verity).then(|| self.image.id()),
            verity: Verity::Try,
            name: Some(&name),
        };
        mount_file(self.image.file(), &options, &self.image_root).map_err(|e| {
            Refusal::new(
                "the image cannot be mounted",
                "a kernel with EROFS, and with overlayfs of Linux 6.6 or later",
                e.to_string(),
            )
            .remedy("boot another deployment; take a kernel that has these, and an initramfs with its modules")
        })
    }

    fn overlay(&self, step: &Step, place: Place, upper: &Path, work: &Path) -> Result<(), Refusal> {
        let source = step.source();
        let target = self.folder(place)?;
        // Of the image, not of an overlay over it: the kernel stacks two of them and no more.
        let lower = self.image_root.join(place.name());
        let writable = Writable {
            source: &source,
            lower: &lower,
            upper,
            work,
        };
        Ok(mount_tree::overlay(&writable, &target)?)
    }

    /// The deployment's folder.
    fn source(&self, place: Place) -> Result<&Dir, Refusal> {
        let folder = match place {
            Place::Etc => self.state.etc.as_ref(),
            Place::Var => self.state.var.as_ref(),
            Place::Root => None,
        };
        folder.ok_or_else(|| Refusal::new(format!("no state for /{} was opened", place.name()), "", ""))
    }

    /// The new root's folder.
    fn folder(&self, place: Place) -> Result<Dir, Refusal> {
        match place {
            Place::Root => Ok(Dir::open(&self.root)?),
            _ => self.in_root(place.name()),
        }
    }

    fn in_root(&self, name: &str) -> Result<Dir, Refusal> {
        Dir::open(&self.root)?.open_dir(name.as_ref()).map_err(|e| {
            let found = match &e {
                Error::Io { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            Refusal::new(
                format!("the image has no folder /{name} to mount on"),
                format!("an empty folder /{name}"),
                found,
            )
            .remedy(format!(
                "add /{name} to the image (`cfs-update image lint` tells what else is missing)"
            ))
        })
    }

    /// An overlay has no device; without this note the ESP is not found by itself in the booted system.
    fn note_device(&self) -> Result<(), Refusal> {
        let Some((major, minor)) = mount_tree::block_device(&self.options.sysroot) else {
            return Ok(());
        };
        let note = self.options.run.join(DEVICE_NOTE);
        if fs::exists(&note) {
            return Ok(());
        }
        RealFs.create_dir(fs::parent(&note)?, 0o755)?;
        RealFs.symlink(Path::new(&format!("/dev/block/{major}:{minor}")), &note)?;
        Ok(())
    }
}
