//! Small images, made in an OCI layout: what a test wants to be in them, and what it wants to be wrong with them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{registry::Registry, sha256_reader};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    None,
    Gzip,
    Zstd,
}

/// Builds the tar stream of a layer; root owns what is in it, unless said otherwise.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_767_225_600);
        header.set_size(size);
        header
    }

    pub fn dirs(mut self, paths: &[&str]) -> Self {
        for path in paths {
            let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
            self.0.append_data(&mut header, path, &[][..]).unwrap();
        }
        self
    }

    pub fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        let mut header = Self::header(tar::EntryType::Regular, 0o644, content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn program(mut self, path: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, 0o755, 4);
        self.0.append_data(&mut header, path, &b"#!/x"[..]).unwrap();
        self
    }

    /// A program with this content.
    pub fn program_of(mut self, path: &str, content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, 0o755, content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    /// An extended attribute of the next entry.
    pub fn attribute(mut self, key: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{key}");
        self.0.append_pax_extensions([(key.as_str(), value)]).unwrap();
        self
    }

    /// An entry whose name is written as it is, whatever it is.
    pub fn raw_name(mut self, name: &[u8], content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, 0o644, content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The folders, release file, kernel and initrd that make an image bootable.
pub fn base(version: &str, kernel: &str) -> Layer {
    Layer::default()
        .dirs(&[
            "boot",
            "dev",
            "etc",
            "proc",
            "run",
            "sys",
            "sysroot",
            "tmp",
            "usr",
            "usr/lib",
            "usr/lib/modules",
            "var",
        ])
        .file(
            "usr/lib/os-release",
            format!("NAME=Test\nID=test\nVERSION_ID={version}\nPRETTY_NAME=\"Test {version}\"\n"),
        )
        .symlink("etc/os-release", "../usr/lib/os-release")
        .file("etc/hostname", "test\n")
        .dirs(&["usr/lib/modules/6.1.0"])
        .file(
            "usr/lib/modules/6.1.0/vmlinuz",
            format!("kernel {kernel} {}", "k".repeat(5000)),
        )
        .file(
            "usr/lib/modules/6.1.0/initramfs.img",
            format!("initrd {kernel} {}", "i".repeat(9000)),
        )
}

pub fn compress(tar: &[u8], how: How) -> Vec<u8> {
    match how {
        How::None => tar.to_vec(),
        How::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        How::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

/// An image in the making.
pub struct Image {
    pub layers: Vec<(Vec<u8>, How, String)>,
    pub version: String,
    created: String,
    history: bool,
}

/// A finished one: its blobs, and the bytes of its manifest.
pub struct Finished {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
}

impl Image {
    pub fn new(version: &str) -> Self {
        Self {
            layers: Vec::new(),
            version: version.to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            history: false,
        }
    }

    /// When the config says that it was made.
    pub fn created(mut self, time: &str) -> Self {
        self.created = time.to_owned();
        self
    }

    /// Its config says how each layer was made, and of a step that made none.
    pub fn with_history(mut self) -> Self {
        self.history = true;
        self
    }

    pub fn layer(mut self, layer: Layer, how: How) -> Self {
        let tar = layer.finish();
        let diff_id = digest(&tar);
        self.layers.push((compress(&tar, how), how, diff_id));
        self
    }

    /// A layer whose blob and diff_id are what the test says.
    pub fn raw_layer(mut self, blob: Vec<u8>, how: How, diff_id: String) -> Self {
        self.layers.push((blob, how, diff_id));
        self
    }

    pub fn finish(self) -> Finished {
        let suffix = |how: &How| match how {
            How::None => "",
            How::Gzip => "+gzip",
            How::Zstd => "+zstd",
        };
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut config = json!({
            "created": self.created, "architecture": architecture, "os": "linux",
            "config": {"Labels": {"containers.bootc": "1", "org.opencontainers.image.version": self.version}},
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|l| l.2.clone()).collect::<Vec<_>>()},
        });
        if self.history {
            let mut steps: Vec<Value> = (0..self.layers.len())
                .map(|at| json!({"created": self.created, "created_by": format!("step {at}")}))
                .collect();
            steps.push(json!({"created": self.created, "created_by": "settings", "empty_layer": true}));
            config["history"] = steps.into();
        }
        let config = config.to_string().into_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(blob, how, _)| {
                let kind = format!("application/vnd.oci.image.layer.v1.tar{}", suffix(how));
                json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let mut blobs: Vec<Vec<u8>> = self.layers.into_iter().map(|l| l.0).collect();
        blobs.push(config);
        Finished { blobs, manifest }
    }
}

impl Finished {
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Puts it into an OCI layout under a tag, which moves where it was there; returns `oci:DIR:TAG`.
    pub fn layout(&self, dir: &Path, tag: &str) -> String {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for blob in self.blobs.iter().chain([&self.manifest]) {
            fs::write(blob_path(dir, &digest(blob)), blob).unwrap();
        }
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": MANIFEST, "digest": self.digest(), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag}}]});
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        format!("oci:{}:{tag}", dir.display())
    }

    /// Pushes it.
    pub fn push(&self, registry: &Registry, name: &str, tag: &str) -> String {
        for blob in &self.blobs {
            registry.put_blob(name, blob);
        }
        registry.put_manifest(name, tag, MANIFEST, &self.manifest);
        registry.reference(&format!("{name}:{tag}"))
    }
}

/// Where an OCI layout keeps a blob.
pub fn blob_path(dir: &Path, digest: &str) -> PathBuf {
    dir.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}

/// `sha256:<hex>` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256_reader(&mut &bytes[..]))
}

/// Bytes that do not compress and do not repeat, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A whole small image: base layer and one application layer with `files` files of `size` bytes each, seeded by
/// version.
pub fn small(version: u32, kernel: &str, files: usize, size: usize) -> Image {
    let mut app = Layer::default()
        .dirs(&["usr", "usr/bin", "etc"])
        .file("etc/app.conf", format!("version = {version}\n"));
    for i in 0..files {
        app = app.file(
            &format!("usr/bin/app-{i}"),
            noise(u64::from(version) << 32 | i as u64, size),
        );
    }
    Image::new(&version.to_string())
        .layer(base(&version.to_string(), kernel), How::Gzip)
        .layer(app, How::Zstd)
}
