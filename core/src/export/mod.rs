//! An image of the store to somewhere else: a folder or archive in OCI image layout, or a registry.
//!
//! The store has each layer's tar byte for byte, but not the compressed blob that the registry had
//! (`docs/decisions.md`, "Export"). So the manifest that an image came with goes along unchanged where all its blobs
//! can be had: they are at the destination already, were never compressed, or are fetched once more from where the
//! image came from. Otherwise the layers go as they are in the store, with a manifest that says so, and the same
//! config: the image is the same to all who go by diff_ids, and in a layout the original manifest lies beside it, for
//! us to go on with. So does one of Docker's kind, which no other tool reads in a layout.
//!
//! Invariant: no manifest goes out before all its blobs are complete there, each checked: a rebuilt tar against its
//! diff_id, a fetched blob against its digest. A run that ends before leaves the destination's names as they were.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::{BlobDigest, DiffId, ManifestDigest};
use crate::manifest::{Config, Descriptor, Manifest};
use crate::monitor::{Event, Monitor, Stage};
use crate::reference::Reference;
use crate::registry::{self, PLAIN_LAYER, Push, Registry};
use crate::store::{Store, StoredImage};
use crate::sys::fs;

mod archive;
mod draft;
mod layout;
mod upload;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Annotations of a layer that speak of its compressed blob.
const OF_THE_BLOB: &str = "io.github.containers.zstd-chunked.";

/// How layers are compressed whose original blobs cannot be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the blob's digest is the diff_id.
    #[default]
    None,
    /// gzip, which everybody reads.
    Gzip,
    /// zstd.
    Zstd,
}

/// Opens the place that an image came from, when a blob is wanted from there.
pub type Origin<'a> = &'a dyn Fn() -> Result<Registry>;

/// What goes where.
pub struct Export<'a> {
    /// Where the image is.
    pub store: &'a Store,
    /// Its manifest.
    pub manifest: ManifestDigest,
    /// Where its compressed layers may be fetched again.
    pub origin: Option<Origin<'a>>,
    /// For layers that have to be compressed anew.
    pub compression: Compression,
    /// A folder for temporary files without names, on a disk.
    pub temporary: &'a Path,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The manifest at the destination.
    pub manifest: ManifestDigest,
    /// It is the very manifest that the image came with.
    pub original: bool,
    /// Layers that were sent; the others were there.
    pub sent: usize,
    /// Of the sent ones, how many were fetched again from where the image came from.
    pub fetched: usize,
    /// Layers in all.
    pub layers: usize,
    /// Nothing was sent: the destination named this image already.
    pub unchanged: bool,
}

/// A place that takes an image.
#[derive(Debug)]
pub struct Destination(Box<dyn Target>);

/// A manifest as it goes out.
struct Outgoing<'a> {
    bytes: &'a [u8],
    media_type: &'a str,
    digest: ManifestDigest,
    /// The manifest that the image came with, where that is another one.
    original: Option<&'a Manifest>,
}

/// Writes a blob.
type Content<'a> = &'a mut dyn FnMut(&mut dyn Write) -> Result<()>;

/// Where blobs go.
trait Target: std::fmt::Debug {
    /// Whether the destination names this very manifest already.
    fn is_there(&mut self, manifest: &ManifestDigest, monitor: &dyn Monitor) -> Result<bool>;
    /// Whether the blob is there, whole.
    fn has(&mut self, blob: &Descriptor, monitor: &dyn Monitor) -> Result<bool>;
    /// Takes a blob of this size and digest.
    fn put(&mut self, blob: &Descriptor, content: Content<'_>, monitor: &dyn Monitor) -> Result<()>;
    /// Makes everything durable and visible.
    fn finish(&mut self, manifest: &Outgoing<'_>, monitor: &dyn Monitor) -> Result<()>;
    /// It is in OCI image layout, where other tools read no manifests of Docker's kind.
    fn is_layout(&self) -> bool {
        true
    }
    /// The folder whose file system has to have room; `None` where that is not ours to know.
    fn folder(&self) -> Option<PathBuf> {
        None
    }
}

impl Destination {
    /// `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]` or a tag of a registry. `source`: where the image came from, whose
    /// blobs a registry may have already.
    ///
    /// # Errors
    /// [`Error::Reference`] for other places; what opening gives.
    pub fn open(
        reference: &Reference,
        source: Option<&Reference>,
        options: &registry::Options,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        Ok(Self(match reference {
            Reference::Layout(layout) => Box::new(layout::Folder::open(layout, reference)?),
            Reference::OciArchive(layout) => Box::new(archive::Archive::open(layout, reference)?),
            Reference::Registry(_) => {
                let push = Push::open(reference, options, monitor)?;
                Box::new(upload::Upload::new(push, source))
            }
            Reference::DockerArchive(_) | Reference::ContainersStorage(_) => {
                let why = "images go to oci:DIR, oci-archive:FILE or a registry; skopeo copies them on from there";
                return Err(Error::Reference {
                    reference: reference.to_string(),
                    why: why.into(),
                });
            }
        }))
    }
}

impl Export<'_> {
    /// Copies the image.
    ///
    /// # Errors
    /// [`Error::Stream`], [`Error::Object`] where something of it is missing; [`Error::Space`]; what writing gives.
    pub fn run(&self, destination: Destination, monitor: &dyn Monitor) -> Result<Exported> {
        let Destination(target) = destination;
        let StoredImage { manifest, config, .. } = self.store.stored_image(&self.manifest)?;
        let mut copy = Copy {
            export: self,
            target,
            monitor,
            origin: self.origin,
            opened: None,
            sent: 0,
            fetched: 0,
        };
        monitor.event(Event::Stage(Stage::Export));
        let done = |copy: &Copy<'_>, digest, original, unchanged| Exported {
            manifest: digest,
            original,
            sent: copy.sent,
            fetched: copy.fetched,
            layers: manifest.layers.len(),
            unchanged,
        };
        if copy.target.is_there(&manifest.digest, monitor)? {
            return Ok(done(&copy, manifest.digest, true, true));
        }
        copy.check_room(&manifest, &config)?;
        let layers = copy.layers(&manifest, &config)?;
        copy.put_bytes(&manifest.config, &config.bytes)?;
        let fits = manifest.media_type == OCI_MANIFEST || !copy.target.is_layout();
        if layers == manifest.layers && fits {
            let outgoing = Outgoing {
                bytes: &manifest.bytes,
                media_type: &manifest.media_type,
                digest: manifest.digest,
                original: None,
            };
            copy.target.finish(&outgoing, monitor)?;
            return Ok(done(&copy, manifest.digest, true, false));
        }
        let bytes = rewritten(&manifest, &layers)?;
        let digest = ManifestDigest::from_hash(Sha256::digest(&bytes).into());
        let outgoing = Outgoing {
            bytes: &bytes,
            media_type: OCI_MANIFEST,
            digest,
            original: Some(&manifest),
        };
        copy.target.finish(&outgoing, monitor)?;
        Ok(done(&copy, digest, false, false))
    }
}

/// One run.
struct Copy<'a> {
    export: &'a Export<'a>,
    target: Box<dyn Target>,
    monitor: &'a dyn Monitor,
    /// `None` once it has failed.
    origin: Option<Origin<'a>>,
    opened: Option<Registry>,
    sent: usize,
    fetched: usize,
}

impl Copy<'_> {
    /// Too little room is seen before the first byte is written.
    fn check_room(&self, manifest: &Manifest, config: &Config) -> Result<()> {
        let Some(folder) = self.target.folder() else {
            return Ok(());
        };
        let mut needed = 0;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            needed += match self.origin {
                Some(_) => layer.size,
                None => self.export.store.tar_size(diff_id)?,
            };
        }
        let (free, _) = fs::free(&folder)?;
        match needed <= free {
            true => Ok(()),
            false => Err(Error::Space {
                path: folder,
                needed,
                free,
                remedy: "make room there, or give another place".into(),
            }),
        }
    }

    fn layers(&mut self, manifest: &Manifest, config: &Config) -> Result<Vec<Descriptor>> {
        self.monitor.event(Event::Plan {
            layers: manifest.layers.len(),
            cached: 0,
            bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
        });
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            let diff_id = *diff_id;
            let size = layer.size;
            self.monitor.event(Event::LayerStarted { diff_id, size });
            layers.push(self.layer(layer, &diff_id)?);
            self.monitor.event(Event::LayerBytes { diff_id, bytes: size });
            self.monitor.event(Event::LayerDone { diff_id });
        }
        Ok(layers)
    }

    /// Sends one layer, as it was where that is possible; says what it is there.
    fn layer(&mut self, layer: &Descriptor, diff_id: &DiffId) -> Result<Descriptor> {
        if self.target.has(layer, self.monitor)? {
            return Ok(layer.clone());
        }
        if layer.digest.as_bytes() == diff_id.as_bytes() {
            self.put_tar(layer, diff_id)?;
            return Ok(layer.clone());
        }
        if let Some(mut file) = self.fetch(layer)? {
            self.put_file(layer, &mut file)?;
            self.fetched += 1;
            return Ok(layer.clone());
        }
        let plain = Descriptor {
            media_type: PLAIN_LAYER.into(),
            digest: BlobDigest::from_hash(*diff_id.as_bytes()),
            size: self.export.store.tar_size(diff_id)?,
            annotations: layer
                .annotations
                .iter()
                .filter(|(key, _)| !key.starts_with(OF_THE_BLOB))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        if self.export.compression != Compression::None {
            let made = self.compressed(&plain, diff_id);
            let (compressed, mut file) = made.map_err(|e| Error::temporary(self.export.temporary, e))?;
            if !self.target.has(&compressed, self.monitor)? {
                self.put_file(&compressed, &mut file)?;
            }
            return Ok(compressed);
        }
        if !self.target.has(&plain, self.monitor)? {
            self.put_tar(&plain, diff_id)?;
        }
        Ok(plain)
    }

    /// The blob that the registry had, from there. Where that fails, it is asked for nothing more.
    fn fetch(&mut self, layer: &Descriptor) -> Result<Option<File>> {
        let Some(origin) = self.origin else {
            return Ok(None);
        };
        let mut file = fs::unnamed(self.export.temporary)?;
        let what = format!("layer {}", layer.digest);
        let registry = match &self.opened {
            Some(registry) => Ok(registry.clone()),
            None => origin(),
        };
        let fetched = registry.and_then(|registry| {
            self.opened = Some(registry.clone());
            let mut blob = registry.blob(layer, self.monitor);
            io::copy(&mut blob, &mut file).map_err(|e| Error::from_read(&what, e))
        });
        match fetched {
            Ok(_) => {
                file.rewind().map_err(|e| Error::io("read", &what, e))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == crate::Kind::Space => Err(Error::temporary(self.export.temporary, error)),
            Err(error) => {
                let why = format!("{error}; layers go out of the store instead, with a new manifest");
                self.monitor.event(Event::Warning(why));
                self.origin = None;
                Ok(None)
            }
        }
    }

    fn put_tar(&mut self, blob: &Descriptor, diff_id: &DiffId) -> Result<()> {
        let store = self.export.store;
        let mut content = |out: &mut dyn Write| store.rebuild(diff_id, out);
        self.target.put(blob, &mut content, self.monitor)?;
        self.sent += 1;
        Ok(())
    }

    fn put_file(&mut self, blob: &Descriptor, file: &mut File) -> Result<()> {
        let mut content = |out: &mut dyn Write| {
            file.rewind().map_err(|e| Error::io("read", "the blob", e))?;
            let mut reader = io::BufReader::with_capacity(COPY, &mut *file);
            copy_all(&mut reader, out)
        };
        self.target.put(blob, &mut content, self.monitor)?;
        self.sent += 1;
        Ok(())
    }

    fn put_bytes(&mut self, blob: &Descriptor, bytes: &[u8]) -> Result<()> {
        if self.target.has(blob, self.monitor)? {
            return Ok(());
        }
        let mut content = |out: &mut dyn Write| copy_all(&mut &*bytes, out);
        self.target.put(blob, &mut content, self.monitor)
    }

    /// The layer compressed anew, in a file without a name.
    fn compressed(&self, plain: &Descriptor, diff_id: &DiffId) -> Result<(Descriptor, File)> {
        let file = fs::unnamed(self.export.temporary)?;
        let mut out = Hashed {
            file,
            hash: Sha256::new(),
            size: 0,
        };
        let fail = |e| Error::io("compress", diff_id.to_string(), e);
        let store = self.export.store;
        let suffix = match self.export.compression {
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(&mut out, 3).map_err(fail)?;
                store.rebuild(diff_id, &mut encoder)?;
                encoder.finish().map_err(fail)?;
                "zstd"
            }
            Compression::Gzip | Compression::None => {
                let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::new(6));
                store.rebuild(diff_id, &mut encoder)?;
                encoder.finish().map_err(fail)?;
                "gzip"
            }
        };
        out.file.rewind().map_err(fail)?;
        let descriptor = Descriptor {
            media_type: format!("{PLAIN_LAYER}+{suffix}"),
            digest: BlobDigest::from_hash(out.hash.finalize().into()),
            size: out.size,
            annotations: plain.annotations.clone(),
        };
        Ok((descriptor, out.file))
    }
}

const COPY: usize = 256 << 10;

/// Errors of `out` keep what they carry.
fn copy_all(from: &mut dyn Read, out: &mut dyn Write) -> Result<()> {
    io::copy(from, out)
        .map(|_| ())
        .map_err(|e| Error::from_read("the blob", e))
}

/// Counts and hashes what is written to a file.
struct Hashed {
    file: File,
    hash: Sha256,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The manifest with other layers: an OCI one, whatever it was, since Docker's has no such layers. Always the same for
/// the same layers.
fn rewritten(manifest: &Manifest, layers: &[Descriptor]) -> Result<Vec<u8>> {
    let broken = |e: serde_json::Error| Error::Manifest {
        reference: manifest.digest.to_string(),
        why: format!("cannot be read: {e}"),
    };
    let mut value: Value = serde_json::from_slice(&manifest.bytes).map_err(broken)?;
    value["mediaType"] = OCI_MANIFEST.into();
    value["config"]["mediaType"] = OCI_CONFIG.into();
    value["layers"] = layers.iter().map(described).collect();
    serde_json::to_vec(&value).map_err(broken)
}

fn described(blob: &Descriptor) -> Value {
    let media_type = match blob.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar" => PLAIN_LAYER.into(),
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{PLAIN_LAYER}+gzip"),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => format!("{PLAIN_LAYER}+zstd"),
        other => other.to_owned(),
    };
    let mut value = json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size});
    if !blob.annotations.is_empty() {
        value["annotations"] = json!(blob.annotations);
    }
    value
}
