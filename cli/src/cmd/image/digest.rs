//! `image digest SOURCE`: the digest that an image of it would have.

use std::path::PathBuf;

use anyhow::Result;
use cfs_core::ids::Algorithm;
use cfs_core::image;
use serde::Serialize;

use super::build::ScanArgs;
use super::load::{self, Options};
use super::objects::Objects;
use super::source::Source;
use super::{PlatformArgs, VersionArgs};
use crate::args::AlgorithmArg;
use crate::cmd::Context;
use crate::output::Report;

/// Print the digest of the composefs image of a folder, a dump or a container image
///
/// Of an image, it is that of its own bytes, unless its boot variant or certain versions are asked for.
#[derive(Debug, clap::Args)]
pub struct Digest {
    /// Folder, dump, image reference, or - for a dump on standard input
    #[arg(value_name = "DIR|DUMP|REF|-")]
    source: String,
    /// Of the boot variant: what a deployment of this tree boots, and its id
    #[arg(long)]
    boot: bool,
    #[command(flatten)]
    versions: VersionArgs,
    /// Algorithm of the digests
    #[arg(long, value_enum, default_value = "fsverity-sha256-12")]
    algorithm: AlgorithmArg,
    /// Where the content of a dump's files is, as ab/cdef…; --boot reads SELinux' file contexts there
    #[arg(long, value_name = "DIR")]
    digest_store: Option<PathBuf>,
    #[command(flatten)]
    platform: PlatformArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

#[derive(Debug, Serialize)]
struct Digested {
    digest: String,
    algorithm: &'static str,
    bytes: usize,
}

impl Report for Digested {
    fn human(&self) -> String {
        format!("{}\n", self.digest)
    }
}

impl Digest {
    pub fn run(self, context: &Context) -> Result<()> {
        let algorithm = Algorithm::from(self.algorithm);
        let options = Options {
            algorithm: Some(algorithm),
            scan: self.scan.options(),
            boot: self.boot,
            platform: self.platform.platform,
            objects: self.digest_store.map(Objects::open),
        };
        let (image, _) = load::image(context, &Source::of(&self.source)?, &options, self.versions.given())?;
        context.show(&Digested {
            digest: image::digest(&image, algorithm).to_string(),
            algorithm: algorithm.name(),
            bytes: image.len(),
        })
    }
}
