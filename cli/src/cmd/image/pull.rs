//! `image pull REF`.

use anyhow::Result;
use cfs_core::pull;
use cfs_core::registry::Registry;
use cfs_core::sysroot::Sysroot;
use serde::Serialize;

use super::PlatformArgs;
use crate::args::{Network, NewStore, SpaceArgs};
use crate::cmd::switch::reference;
use crate::cmd::{Context, forecast};
use crate::output::Report;

/// Fetch a container image into the store and keep it there
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// Image: quay.io/org/app:1, docker://…, oci:DIR[:TAG]
    #[arg(value_name = "REF")]
    image: String,
    /// Only say what would be fetched and written, and what is free
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    platform: PlatformArgs,
    #[command(flatten)]
    space: SpaceArgs,
    #[command(flatten)]
    store: NewStore,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    name: String,
    image_digest: String,
    digest: String,
    unchanged: bool,
}

impl Report for Pulled {
    fn human(&self) -> String {
        let done = if self.unchanged { "is here already" } else { "pulled" };
        let Self {
            name,
            image_digest,
            digest,
            ..
        } = self;
        format!(
            "{name} {done}\n{:>16}: {image_digest}\n{:>16}: {digest}\n",
            "Digest", "Composefs"
        )
    }
}

impl Pull {
    pub fn run(self, context: &Context) -> Result<()> {
        let image = reference(&self.image)?;
        pull::name_of(&image)?;
        if self.dry_run {
            return forecast::of_pull(context, &image, Some(self.platform.platform()));
        }
        let registry = Registry::open(&image, &context.registry())?;
        let sysroot = context.open_store(self.store.algorithm(), "image pull")?;
        let platform = self.platform.platform();
        let work =
            |sysroot: &Sysroot| pull::pull(sysroot.store(), &registry, &platform, context.threads(), &context.ui);
        let pulled = context.fetching(&sysroot, self.space, work)?;
        super::expose::refresh(context, &sysroot);
        context.show(&Pulled {
            name: pulled.name,
            image_digest: pulled.manifest.to_string(),
            digest: pulled.id.to_string(),
            unchanged: pulled.unchanged,
        })
    }
}
