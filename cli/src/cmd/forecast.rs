//! What `--dry-run` of `switch`, `upgrade` and `image pull` says.

use cfs_core::forecast::{Forecast, Way};
use cfs_core::manifest::Platform;
use cfs_core::reference::Reference;
use cfs_core::registry::Registry;
use cfs_core::{Error, Result, update};
use indicatif::HumanBytes;
use serde::Serialize;

use super::Context;
use crate::args::BootDir;
use crate::output::Report;

/// What would be fetched.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    image: String,
    image_digest: String,
    /// Bytes that would be fetched.
    bytes: u64,
    /// Bytes that would be fetched layer by layer.
    bytes_of_layers: u64,
    layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    diff_id: String,
    size: u64,
    fetch: u64,
    /// `here`, `parts` or `whole`.
    how: &'static str,
}

fn how(way: Way) -> &'static str {
    match way {
        Way::Here => "here",
        Way::Parts => "parts",
        Way::Whole => "whole",
    }
}

impl From<&Forecast> for Planned {
    fn from(forecast: &Forecast) -> Self {
        let layers = forecast.layers.iter().map(|layer| Layer {
            diff_id: layer.diff_id.to_string(),
            size: layer.size,
            fetch: layer.fetch,
            how: how(layer.way),
        });
        Self {
            image: forecast.reference.clone(),
            image_digest: forecast.manifest.to_string(),
            bytes: forecast.bytes(),
            bytes_of_layers: forecast.bytes_of_layers(),
            layers: layers.collect(),
        }
    }
}

impl Report for Planned {
    fn human(&self) -> String {
        let count = |how: &str| self.layers.iter().filter(|layer| layer.how == how).count();
        let mut text = format!("Would fetch {}; nothing was changed\n", self.image);
        let mut line = |label: &str, value: &str| text.push_str(&format!("{label:>16}: {value}\n"));
        line("Digest", &self.image_digest);
        let (here, parts, whole) = (count("here"), count("parts"), count("whole"));
        line(
            "Layers",
            &format!(
                "{}: {here} here, {parts} in parts, {whole} as a whole",
                self.layers.len()
            ),
        );
        let (bytes, of) = (HumanBytes(self.bytes), HumanBytes(self.bytes_of_layers));
        line("To fetch", &format!("{bytes}, where the layers have {of}"));
        text
    }
}

/// Of an update: what following `reference`, or else the followed image, would fetch.
pub fn of_update(context: &Context, boot: &BootDir, reference: Option<&Reference>) -> anyhow::Result<()> {
    if let (Some(reference), false) = (reference, context.has_repository()?) {
        return of_pull(context, reference, None);
    }
    match update::forecast(&context.look_anyway(boot)?, reference, &context.ui)? {
        Some(forecast) => context.show(&Planned::from(&forecast)),
        None => Err(Error::Nothing("nothing would be fetched: what it leads to boots next already".into()).into()),
    }
}

/// Of an image for the store, or for one that is yet to be made.
pub fn of_pull(context: &Context, reference: &Reference, platform: Option<Platform>) -> anyhow::Result<()> {
    let platform = platform.unwrap_or_else(Platform::host);
    context.show(&planned(context, reference, &platform)?)
}

fn planned(context: &Context, reference: &Reference, platform: &Platform) -> Result<Planned> {
    let registry = Registry::open(reference, &context.registry())?;
    let image = registry.image(platform, &context.ui)?;
    let store = context.existing_store()?;
    let forecast = Forecast::new(store.as_ref(), &registry, &image, &context.ui)?;
    Ok(Planned::from(&forecast))
}
