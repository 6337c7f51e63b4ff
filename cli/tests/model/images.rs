//! The images that there are, tiny, and what the model has to know of each.

use std::path::Path;

use super::common::layout::{Finished, How, Image, Layer, base};
use super::etc::{Node, Tree};

/// How many tags there are to follow.
pub const CHANNELS: usize = 2;
/// How many images there are.
pub const IMAGES: usize = 8;

/// One of them.
pub struct Spec {
    /// Those with the same one have the same deployment id.
    pub content: usize,
    /// When it was made, as the config says it.
    pub created: u32,
    /// `None`: it has no kernel.
    pub kernel: Option<&'static str>,
    /// Its own kernel arguments.
    pub arguments: &'static [&'static str],
    /// What its /etc has beside what all have.
    etc: &'static [(&'static str, &'static str)],
}

/// There with two manifests.
const SECOND: Spec = spec(
    1,
    2,
    Some("one"),
    &[],
    &[
        ("conf.d/", ""),
        ("conf.d/a", "2"),
        ("conf.d/c", "2"),
        ("x/", ""),
        ("x/y", "2"),
    ],
);

const SPECS: [Spec; IMAGES] = [
    spec(
        0,
        1,
        Some("one"),
        &[],
        &[("conf.d/", ""), ("conf.d/a", "1"), ("conf.d/b", "1"), ("x", "1")],
    ),
    SECOND,
    spec(
        2,
        3,
        Some("two"),
        &[],
        &[("x", "-> app.conf"), ("new/", ""), ("new/n", "3")],
    ),
    spec(
        3,
        4,
        Some("one"),
        &["audit=0"],
        &[("conf.d", "4"), ("x", "1"), ("new/", ""), ("new/n", "4")],
    ),
    // The same as 1, with another manifest.
    SECOND,
    spec(5, 5, None, &[], &[("x", "5")]),
    // Older than all others.
    spec(
        6,
        0,
        Some("two"),
        &[],
        &[("conf.d/", ""), ("conf.d/a", "1"), ("conf.d/b", "1")],
    ),
    spec(
        7,
        5,
        Some("three"),
        &[],
        &[("conf.d/", ""), ("conf.d/a", "7"), ("conf.d/b", "1"), ("new", "7")],
    ),
];

const fn spec(
    content: usize,
    created: u32,
    kernel: Option<&'static str>,
    arguments: &'static [&'static str],
    etc: &'static [(&'static str, &'static str)],
) -> Spec {
    Spec {
        content,
        created,
        kernel,
        arguments,
        etc,
    }
}

pub fn get(image: usize) -> &'static Spec {
    &SPECS[image]
}

impl Spec {
    /// Its /etc.
    pub fn etc(&self) -> Tree {
        let mut tree = Tree::default();
        tree.insert("hostname".into(), Node::File(0o644, "test\n".into()));
        tree.insert("os-release".into(), Node::Link("../usr/lib/os-release".into()));
        tree.insert("app.conf".into(), Node::File(0o644, self.app()));
        for (path, what) in self.etc {
            let node = match (path.strip_suffix('/'), what.strip_prefix("-> ")) {
                (Some(_), _) => Node::Folder(0o755),
                (None, Some(target)) => Node::Link(target.into()),
                (None, None) => Node::File(0o644, (*what).into()),
            };
            tree.insert(path.trim_end_matches('/').into(), node);
        }
        tree
    }

    fn app(&self) -> String {
        // The same in two of them, so that the image does not always change it.
        format!("version = {}\n", self.content / 2)
    }

    /// What the name of its kernel's folder is the SHA-256 of.
    pub fn kernel_bytes(&self) -> Option<Vec<u8>> {
        let kernel = self.kernel?;
        let bytes = format!(
            "kernel {kernel} {}initrd {kernel} {}",
            "k".repeat(5000),
            "i".repeat(9000)
        );
        Some(bytes.into_bytes())
    }

    fn finish(&self, image: usize) -> Finished {
        let mut layer = Layer::default()
            .dirs(&["etc", "usr/bin"])
            .file("etc/app.conf", self.app());
        for (path, what) in self.etc {
            let path = format!("etc/{path}");
            layer = match (path.strip_suffix('/'), what.strip_prefix("-> ")) {
                (Some(path), _) => layer.dirs(&[path]),
                (None, Some(target)) => layer.symlink(&path, target),
                (None, None) => layer.file(&path, what),
            };
        }
        for argument in self.arguments {
            layer = layer.dirs(&["usr/lib/cfs-update", "usr/lib/cfs-update/kargs.d"]).file(
                "usr/lib/cfs-update/kargs.d/10.toml",
                format!("kargs = [\"{argument}\"]\n"),
            );
        }
        layer = layer.file(
            "usr/bin/app",
            super::common::layout::noise(self.content as u64 + 1, 3000),
        );
        // A label is in the manifest's digest and not in the deployment's.
        let mut whole = Image::new(&image.to_string()).created(&format!("2026-01-0{}T00:00:00Z", self.created + 1));
        let below = match self.kernel {
            Some(kernel) => base(&self.content.to_string(), kernel),
            None => Layer::default()
                .dirs(&[
                    "boot", "dev", "etc", "proc", "run", "sys", "sysroot", "tmp", "usr", "usr/lib", "var",
                ])
                .file("usr/lib/os-release", "NAME=Test\nID=test\n")
                .symlink("etc/os-release", "../usr/lib/os-release")
                .file("etc/hostname", "test\n"),
        };
        whole = whole.layer(below, How::Gzip).layer(layer, How::Zstd);
        whole.finish()
    }
}

/// Moves the tag of this channel; the reference, and the manifest's digest.
pub fn release(folder: &Path, channel: usize, image: usize) -> (String, String) {
    let finished = SPECS[image].finish(image);
    let reference = finished.layout(&folder.join(format!("channel-{channel}")), "os");
    (reference, finished.digest())
}
