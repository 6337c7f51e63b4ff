//! `image build SOURCE -o FILE`: what mkcomposefs does.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cfs_core::Error;
use cfs_core::ids::Algorithm;
use cfs_core::image::writer;
use cfs_core::sys::fs;
use cfs_core::sys::verity::Hasher;
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
    digest: Option<String>,
    algorithm: &'static str,
    bytes: u64,
    output: Option<PathBuf>,
    #[serde(skip)]
    show: bool,
}

impl Report for Built {
    fn human(&self) -> String {
        match &self.digest {
            Some(digest) if self.show => format!("{digest}\n"),
            _ => String::new(),
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
        if let Some(objects) = &options.objects {
            objects.sync()?;
        }
        let show = self.print_digest || self.print_digest_only;
        let output = self.output.filter(|_| !self.print_digest_only);
        let to_stdout = output.as_deref() == Some(Path::new("-"));
        let mut image = Measured {
            hasher: (!to_stdout && (show || !context.is_human())).then(|| Hasher::new(algorithm)),
            bytes: 0,
        };
        let versions = self.versions.versions();
        match &output {
            _ if to_stdout => {
                context.ui.finish(true);
                writer::write(&tree, versions, &mut |piece| output::write(piece))?;
            }
            Some(path) => fs::replace_by_pieces(&absolute(path)?, 0o644, |sink| {
                writer::write(&tree, versions, &mut |piece| {
                    image.see(piece);
                    sink(piece)
                })
            })?,
            None => writer::write(&tree, versions, &mut |piece| {
                image.see(piece);
                Ok(())
            })?,
        }
        if to_stdout {
            return Ok(());
        }
        context.show(&Built {
            digest: image.hasher.map(|mut hasher| hasher.finish().to_string()),
            algorithm: algorithm.name(),
            bytes: image.bytes,
            output,
            show,
        })
    }
}

/// What an image measures, as its pieces go by.
struct Measured {
    /// Where somebody wants to know the digest.
    hasher: Option<Hasher>,
    bytes: u64,
}

impl Measured {
    fn see(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(path).map_err(|e| Error::io("find", path, e))?)
}
