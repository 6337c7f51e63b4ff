//! `image build SOURCE -o FILE`: what mkcomposefs does.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cfs_core::Error;
use cfs_core::ids::Algorithm;
use cfs_core::image::{self, writer};
use cfs_core::sys::fs::{self, RealFs};
use cfs_core::tree::ScanOptions;
use serde::Serialize;

use super::load::{self, Options};
use super::objects::Objects;
use super::source::Source;
use super::{PlatformArgs, VersionArgs};
use crate::args::AlgorithmArg;
use crate::cmd::Context;
use crate::output::{self, Report};

/// Make a composefs image of a folder, a dump or a container image
#[derive(Debug, clap::Args)]
pub struct Build {
    /// Folder, dump, image reference, or - for a dump on standard input
    #[arg(value_name = "DIR|DUMP|REF|-")]
    source: String,
    /// Write the image here; - for standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "print_digest_only")]
    output: Option<PathBuf>,
    /// Keep the content of files of more than 64 bytes here, as ab/cdef…
    #[arg(long, value_name = "DIR")]
    digest_store: Option<PathBuf>,
    #[command(flatten)]
    versions: VersionArgs,
    /// Algorithm of the digests
    #[arg(long, value_enum, default_value = "fsverity-sha256-12")]
    algorithm: AlgorithmArg,
    /// Make the boot variant: what a deployment of this tree boots
    #[arg(long, alias = "bootable")]
    boot: bool,
    #[command(flatten)]
    platform: PlatformArgs,
    /// Print the image's digest
    #[arg(long)]
    print_digest: bool,
    /// Print the image's digest and write no image
    #[arg(long)]
    print_digest_only: bool,
    #[command(flatten)]
    scan: ScanArgs,
}

/// What is taken over from a folder.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Folders")]
pub struct ScanArgs {
    /// Set all modification times to 0
    #[arg(long)]
    use_epoch: bool,
    /// Take no extended attributes
    #[arg(long)]
    skip_xattrs: bool,
    /// Take only extended attributes that begin with user.
    #[arg(long)]
    user_xattrs: bool,
    /// Leave out character and block devices
    #[arg(long)]
    skip_devices: bool,
    /// Keep several names of one file as hard links
    #[arg(long)]
    hard_links: bool,
    /// SOURCE is a dump, as mkcomposefs wants it said; it is known without
    #[arg(long, hide = true)]
    from_file: bool,
}

impl ScanArgs {
    pub fn options(self) -> ScanOptions {
        ScanOptions {
            use_epoch: self.use_epoch,
            skip_xattrs: self.skip_xattrs,
            user_xattrs: self.user_xattrs,
            skip_devices: self.skip_devices,
            hard_links: self.hard_links,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Built {
    digest: String,
    algorithm: &'static str,
    bytes: usize,
    output: Option<PathBuf>,
    #[serde(skip)]
    show: bool,
}

impl Report for Built {
    fn human(&self) -> String {
        if self.show {
            format!("{}\n", self.digest)
        } else {
            String::new()
        }
    }
}

impl Build {
    pub fn run(self, context: &Context) -> Result<()> {
        let algorithm = Algorithm::from(self.algorithm);
        let objects = self.digest_store.map(Objects::create).transpose()?;
        let options = Options {
            algorithm: Some(algorithm),
            scan: self.scan.options(),
            boot: self.boot,
            platform: self.platform.platform,
            objects,
        };
        let tree = load::tree(context, &Source::of(&self.source)?, &options)?;
        let image = writer::build(&tree, self.versions.versions())?;
        if let Some(objects) = &options.objects {
            objects.sync()?;
        }
        let output = self.output.filter(|_| !self.print_digest_only);
        if output.as_deref() == Some(Path::new("-")) {
            context.ui.finish(true);
            return output::write(&image);
        }
        let digest = std::thread::scope(|scope| -> Result<_> {
            let digest = scope.spawn(|| image::digest(&image, algorithm));
            if let Some(path) = &output {
                fs::replace_unsynced(&RealFs, &absolute(path)?, 0o644, &image)?;
            }
            digest
                .join()
                .map_err(|_| anyhow::anyhow!("the digest's thread panicked"))
        })?;
        context.show(&Built {
            digest: digest.to_string(),
            algorithm: algorithm.name(),
            bytes: image.len(),
            output,
            show: self.print_digest || self.print_digest_only,
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(path).map_err(|e| Error::io("find", path, e))?)
}
