//! `image inspect REF`: manifest and config of a container image, wherever it is.

use std::collections::BTreeMap;

use anyhow::Result;
use cfs_core::manifest::Descriptor;
use cfs_core::monitor::{Event, Monitor, Stage};
use cfs_core::reference::Reference;
use cfs_core::registry::{self, Registry};
use cfs_core::store::{BOOT_IMAGE_V1, IMAGE_V1};
use indicatif::HumanBytes;
use serde::Serialize;

use super::PlatformArgs;
use crate::cmd::Context;
use crate::output::Report;

/// A container image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    transport: &'static str,
    /// What the tag leads to: an index, or the manifest.
    top_digest: String,
    image_digest: String,
    config_digest: String,
    media_type: String,
    architecture: String,
    variant: Option<String>,
    os: String,
    created: Option<String>,
    version: Option<String>,
    layers: Vec<Layer>,
    /// Of all layers, as transferred.
    bytes: u64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// Composefs images of it that are in the store.
    digest: Option<String>,
    boot_digest: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    digest: String,
    diff_id: String,
    media_type: String,
    bytes: u64,
}

/// Fetches manifest and config and shows them.
pub fn inspect(context: &Context, reference: &Reference, platform: PlatformArgs) -> Result<()> {
    let registry = Registry::open(reference, &context.registry())?;
    context.ui.event(Event::Stage(Stage::Resolve));
    let image = registry.image(&platform.platform(), &context.ui)?;
    let stored = context
        .store()
        .ok()
        .and_then(|store| store.config(&image.manifest.config.digest).ok().flatten());
    let images = stored.map(|config| config.images).unwrap_or_default();
    let made = |name: &str| images.get(name).map(ToString::to_string);
    context.show(&Container {
        digest: made(IMAGE_V1),
        boot_digest: made(BOOT_IMAGE_V1),
        ..Container::of(image)
    })
}

impl Container {
    fn of(image: registry::Image) -> Self {
        let registry::Image {
            reference,
            top,
            digest,
            manifest,
            config,
            blobs: _,
        } = image;
        let layers = manifest.layers.iter().zip(&config.diff_ids);
        Self {
            name: reference.to_string(),
            transport: reference.transport(),
            top_digest: top.to_string(),
            image_digest: digest.to_string(),
            config_digest: manifest.config.digest.to_string(),
            media_type: manifest.media_type.clone(),
            version: config.labels.get("org.opencontainers.image.version").cloned(),
            created: config.created.map(|time| time.to_string()),
            layers: layers
                .map(|(layer, diff_id)| Layer::of(layer, diff_id.to_string()))
                .collect(),
            bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
            architecture: config.architecture,
            variant: config.variant,
            os: config.os,
            labels: config.labels,
            annotations: manifest.annotations,
            digest: None,
            boot_digest: None,
        }
    }
}

impl Layer {
    fn of(layer: &Descriptor, diff_id: String) -> Self {
        Self {
            digest: layer.digest.to_string(),
            diff_id,
            media_type: layer.media_type.clone(),
            bytes: layer.size,
        }
    }
}

impl Report for Container {
    fn human(&self) -> String {
        let mut text = format!("{}\n", self.name);
        let mut line = |label: &str, value: &str| text.push_str(&format!("{label:>16}: {value}\n"));
        line("Digest", &self.image_digest);
        if self.top_digest != self.image_digest {
            line("Index", &self.top_digest);
        }
        line("Config", &self.config_digest);
        let variant = self.variant.as_deref().map(|v| format!("/{v}")).unwrap_or_default();
        line("Platform", &format!("{}/{}{variant}", self.os, self.architecture));
        let optional = [
            ("Version", &self.version),
            ("Created", &self.created),
            ("Composefs", &self.digest),
            ("Composefs boot", &self.boot_digest),
        ];
        for (label, value) in optional {
            if let Some(value) = value {
                line(label, value);
            }
        }
        line(
            "Size",
            &format!("{} in {} layers", HumanBytes(self.bytes), self.layers.len()),
        );
        for layer in &self.layers {
            line("Layer", &format!("{} {}", layer.digest, HumanBytes(layer.bytes)));
        }
        for (key, value) in &self.labels {
            line("Label", &format!("{key}={value}"));
        }
        text
    }
}
