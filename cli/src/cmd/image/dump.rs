//! `image dump SOURCE`: the composefs-dump text.

use std::path::PathBuf;

use anyhow::Result;
use cfs_core::image::dump;

use super::PlatformArgs;
use super::load::{self, Options};
use super::objects::Objects;
use super::source::Source;
use crate::cmd::Context;
use crate::output;

/// Print a composefs image as text, one line for each file
#[derive(Debug, clap::Args)]
pub struct Dump {
    /// Image file, digest of an image in the store, image reference, folder, dump, or - for standard input
    #[arg(value_name = "FILE|DIGEST|REF|-")]
    source: String,
    /// Of the boot variant: what a deployment of this tree boots
    #[arg(long)]
    boot: bool,
    /// Where the content of a dump's files is, as ab/cdef…; --boot reads SELinux' file contexts there
    #[arg(long, value_name = "DIR")]
    digest_store: Option<PathBuf>,
    #[command(flatten)]
    platform: PlatformArgs,
}

impl Dump {
    pub fn run(self, context: &Context) -> Result<()> {
        let options = Options {
            boot: self.boot,
            platform: self.platform.platform,
            objects: self.digest_store.map(Objects::open),
            ..Options::default()
        };
        let tree = load::tree(context, &Source::of(&self.source)?, &options)?;
        context.ui.finish(true);
        output::stream(|out| dump::write(&tree, out))
    }
}
