//! `image export` and `image push`: an image of the store to somewhere else.

use anyhow::Result;
use cfs_core::export::{Compression, Destination, Export as Copy, Exported};
use cfs_core::ids::ManifestDigest;
use cfs_core::reference::Reference;
use cfs_core::registry::Registry;
use cfs_core::store::Store;
use cfs_core::{Error, Result as CoreResult};
use serde::Serialize;

use super::ls::find_name;
use crate::args::{BootDir, Network};
use crate::cmd::Context;
use crate::cmd::switch::reference;
use crate::output::Report;

/// Copy an image of the store to a folder or file in OCI layout, such as for another machine
///
/// The manifest that the image came with goes along unchanged where all its layers can be had as they were: each that
/// the store does not have in its compressed form is fetched again from where the image came from. With --offline, or
/// where that fails, layers go uncompressed with a manifest that says so, and the original manifest beside it.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Image as in `image ls`, or a deployment as in `status`: booted, its index, id or image
    #[arg(value_name = "REF")]
    image: String,
    /// oci:DIR[:NAME] or oci-archive:FILE[:NAME]; a folder may hold other images already
    #[arg(value_name = "DESTINATION")]
    to: String,
    /// Ask no registry: take layers from the store alone
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    pub network: Network,
}

/// Copy an image of the store to a registry
///
/// Layers that are there already are not sent. The others go as they were where they can be had, as with `image
/// export`, else compressed anew, with a manifest that says so.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// Image as in `image ls`, or a deployment as in `status`: booted, its index, id or image
    #[arg(value_name = "REF")]
    image: String,
    /// docker://quay.io/org/os:41
    #[arg(value_name = "DESTINATION")]
    to: String,
    /// Fetch nothing from where the image came from: take layers from the store alone
    #[arg(long)]
    offline: bool,
    /// How layers are compressed that cannot be had as they were
    #[arg(long, value_enum, default_value_t = How::Zstd)]
    compression: How,
    #[command(flatten)]
    pub network: Network,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum How {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    destination: String,
    image_digest: String,
    /// The manifest is the one that the image came with.
    original: bool,
    layers: usize,
    sent: usize,
    fetched: usize,
    unchanged: bool,
}

impl Report for Copied {
    fn human(&self) -> String {
        let Self {
            destination,
            image_digest,
            layers,
            sent,
            ..
        } = self;
        let manifest = match self.original {
            true => "the manifest that the image came with",
            false => {
                "a manifest of its own: its layers are compressed in another way, or the original is of Docker's kind"
            }
        };
        match self.unchanged {
            true => format!(
                "{destination} is this image already\n{:>16}: {image_digest}\n",
                "Digest"
            ),
            false => format!(
                "{destination} written, {sent} of {layers} layers sent\n{:>16}: {image_digest}, {manifest}\n",
                "Digest"
            ),
        }
    }
}

impl Export {
    pub fn run(self, context: &Context) -> Result<()> {
        let to = reference(&self.to)?;
        if let Reference::Registry(_) = to {
            let why = format!(
                "{:?} is in a registry; `cfs-update image push` copies images there",
                self.to
            );
            return Err(Error::Usage(why).into());
        }
        copy(context, &self.image, &to, self.offline, Compression::None)
    }
}

impl Push {
    pub fn run(self, context: &Context) -> Result<()> {
        let to = reference(&self.to)?;
        if !matches!(to, Reference::Registry(_)) {
            let why = format!(
                "{:?} is not in a registry; `cfs-update image export` copies images there",
                self.to
            );
            return Err(Error::Usage(why).into());
        }
        let compression = match self.compression {
            How::None => Compression::None,
            How::Gzip => Compression::Gzip,
            How::Zstd => Compression::Zstd,
        };
        copy(context, &self.image, &to, self.offline, compression)
    }
}

fn copy(context: &Context, image: &str, to: &Reference, offline: bool, compression: Compression) -> Result<()> {
    let store = context.store()?;
    let (manifest, source) = find(context, &store, image)?;
    let options = context.registry();
    let destination = Destination::open(to, source.as_ref(), &options, &context.ui)?;
    // The very image, wherever its tag has gone since.
    let pinned = source.as_ref().map(|source| source.pinned(manifest));
    let open = || match &pinned {
        Some(pinned) => Registry::open(pinned, &options),
        None => Err(Error::Usage("it is not known where the image came from".into())),
    };
    let export = Copy {
        store: &store,
        manifest,
        origin: (!offline && source.is_some()).then_some(&open),
        compression,
        temporary: &options.temporary,
    };
    let Exported {
        manifest,
        original,
        sent,
        fetched,
        layers,
        unchanged,
    } = export.run(destination, &context.ui)?;
    context.show(&Copied {
        destination: to.to_string(),
        image_digest: manifest.to_string(),
        original,
        layers,
        sent,
        fetched,
        unchanged,
    })
}

/// A pulled image or a deployment, and where it came from.
fn find(context: &Context, store: &Store, text: &str) -> CoreResult<(ManifestDigest, Option<Reference>)> {
    let unknown = match find_name(store, text) {
        Ok(name) => {
            let manifest = store.tags()?.get(&name).copied();
            let gone = || Error::Usage(format!("{name} is not in the store any more"));
            return Ok((manifest.ok_or_else(gone)?, name.parse().ok()));
        }
        Err(error) => error,
    };
    let sysroot = context.look_anyway(&BootDir::default())?;
    let text = text.strip_prefix("cfs-update/").unwrap_or(text);
    let Ok((id, known)) = sysroot.find(text) else {
        return Err(unknown);
    };
    let origin = known
        .iter()
        .find(|known| known.id == id)
        .and_then(|known| known.origin());
    let origin = origin.ok_or(unknown)?;
    Ok((origin.manifest, origin.reference.parse().ok()))
}
