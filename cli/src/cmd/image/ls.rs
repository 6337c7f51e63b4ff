//! `image ls` and `image rm`: container images in the store, by name.

use anyhow::Result;
use cfs_core::ids::ManifestDigest;
use cfs_core::reference::Reference;
use cfs_core::store::{BOOT_IMAGE_V1, IMAGE_V1, Store, StoredImage};
use cfs_core::{Error, Result as CoreResult};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::cmd::Context;
use crate::output::Report;

/// Names of manifests that deployments keep.
pub const DEPLOYMENT: &str = "cfs-update/";

/// List the container images in the store
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// Also list the images of deployments
    #[arg(short, long)]
    all: bool,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Images(Vec<Image>);

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    name: String,
    image_digest: String,
    /// Digest of the composefs image, which can be mounted.
    digest: Option<String>,
    boot_digest: Option<String>,
    created: Option<String>,
    architecture: Option<String>,
    layers: usize,
    /// As transferred.
    bytes: u64,
    deployment: bool,
    problem: Option<String>,
}

impl Ls {
    pub fn run(self, context: &Context) -> Result<()> {
        let mut images = Vec::new();
        if context.has_repository()? {
            let store = context.store()?;
            for (name, manifest) in store.tags()? {
                let deployment = name.starts_with(DEPLOYMENT);
                if self.all || !deployment {
                    images.push(Image {
                        deployment,
                        ..image(&store, name, &manifest)
                    });
                }
            }
        }
        context.show(&Images(images))
    }
}

/// One that is broken is listed with what is wrong.
fn image(store: &Store, name: String, digest: &ManifestDigest) -> Image {
    let base = Image {
        name,
        image_digest: digest.to_string(),
        ..Image::default()
    };
    match describe(store, digest, &base) {
        Ok(image) => image,
        Err(e) => Image {
            problem: Some(e.to_string()),
            ..base
        },
    }
}

fn describe(store: &Store, digest: &ManifestDigest, base: &Image) -> CoreResult<Image> {
    let StoredImage {
        manifest,
        config,
        images,
    } = store.stored_image(digest)?;
    let shown = |name: &str| images.get(name).map(ToString::to_string);
    let (image, boot) = (shown(IMAGE_V1), shown(BOOT_IMAGE_V1));
    Ok(Image {
        name: base.name.clone(),
        image_digest: base.image_digest.clone(),
        digest: image,
        boot_digest: boot,
        created: config.created.map(|time| time.to_string()),
        architecture: Some(config.architecture),
        layers: manifest.layers.len(),
        bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
        deployment: base.deployment,
        problem: None,
    })
}

impl Report for Images {
    fn human(&self) -> String {
        let rows: Vec<[String; 5]> = self.0.iter().map(Image::row).collect();
        let head = ["NAME", "DIGEST", "COMPOSEFS", "CREATED", "SIZE"].map(String::from);
        table(&head, &rows)
    }
}

impl Image {
    fn row(&self) -> [String; 5] {
        let short = |digest: &str| {
            digest
                .trim_start_matches("sha256:")
                .chars()
                .take(12)
                .collect::<String>()
        };
        let composefs = self.digest.as_deref().or(self.boot_digest.as_deref());
        let created = self.created.as_deref().and_then(|time| time.split('T').next());
        [
            self.name.clone(),
            short(&self.image_digest),
            composefs.map(short).unwrap_or_default(),
            created.unwrap_or_default().into(),
            match &self.problem {
                Some(problem) => problem.clone(),
                None => HumanBytes(self.bytes).to_string(),
            },
        ]
    }
}

/// Columns as wide as their widest cell, two spaces between them.
fn table<const N: usize>(head: &[String; N], rows: &[[String; N]]) -> String {
    let lines = || std::iter::once(head).chain(rows);
    let mut widths = [0; N];
    for line in lines() {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let padded = |line: &[String; N]| {
        let cells: Vec<_> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines().map(padded).collect()
}

/// Let go of a container image in the store; `gc` then frees the space
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Name as in `image ls`
    #[arg(value_name = "REF", required = true)]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<String>,
}

impl Report for Removed {
    fn human(&self) -> String {
        self.removed
            .iter()
            .map(|name| format!("{name} removed; `cfs-update gc` frees the space\n"))
            .collect()
    }
}

impl Rm {
    pub fn run(self, context: &Context) -> Result<()> {
        if let (false, Some(name)) = (context.has_repository()?, self.names.first()) {
            return Err(not_there(name).into());
        }
        let sysroot = context.open_store(None, "image rm")?;
        let store = sysroot.store();
        // All are looked up before the first is removed, so that a misspelt one changes nothing.
        let names = self
            .names
            .iter()
            .map(|text| find_name(store, text))
            .collect::<CoreResult<Vec<_>>>()?;
        super::expose::refuse_removal(context, &sysroot, &names)?;
        for name in &names {
            store.untag(name)?;
        }
        super::expose::refresh(context, &sysroot);
        context.show(&Removed { removed: names })
    }
}

fn not_there(text: &str) -> Error {
    Error::Usage(format!(
        "{text:?} is not in the store; `cfs-update image ls` lists what is"
    ))
}

/// The name in the store that a user means: as it stands there, or as a reference that is called so when written out.
pub fn find_name(store: &Store, text: &str) -> CoreResult<String> {
    let tags = store.tags()?;
    let written_out = crate::cmd::switch::reference(text).map(|reference: Reference| reference.to_string());
    let candidates = [Some(text.to_owned()), written_out.ok()];
    let found = candidates.into_iter().flatten().find(|name| tags.contains_key(name));
    let name = found.ok_or_else(|| not_there(text))?;
    if name.starts_with(DEPLOYMENT) {
        return Err(Error::Usage(format!(
            "{name} belongs to a deployment; `cfs-update delete` removes it"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let image = Image {
            name: "quay.io/org/app:1".into(),
            image_digest: format!("sha256:{}", "0a".repeat(32)),
            digest: Some("cd".repeat(32)),
            created: Some("2026-11-01T12:00:00Z".into()),
            bytes: 5 << 20,
            ..Image::default()
        };
        let broken = Image {
            name: "b".into(),
            problem: Some("missing".into()),
            ..Image::default()
        };
        assert_eq!(
            Images(vec![image, broken]).human(),
            "NAME               DIGEST        COMPOSEFS     CREATED     SIZE\n\
             quay.io/org/app:1  0a0a0a0a0a0a  cdcdcdcdcdcd  2026-11-01  5.00 MiB\n\
             b                                                          missing\n"
        );
    }
}
