//! Images in archives, as skopeo and podman write them: the same deployments as from a folder.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common::layout::{self, How, Image, Layer, base, noise};
use crate::common::{Cfs, scratch, tool};

fn published(dir: &Path) -> String {
    // docker-archive: knows no zstd.
    let mut layer = Layer::default().dirs(&["usr", "usr/bin"]);
    for n in 0..4 {
        layer = layer.file(&format!("usr/bin/app-{n}"), noise(n, 200_000));
    }
    let image = Image::new("1")
        .layer(base("1", "kernel-1"), How::Gzip)
        .layer(layer, How::Gzip);
    image.finish().layout(&dir.join("oci"), "stable")
}

fn deployed(dir: &Path, name: &str, image: &str) -> String {
    let cfs = Cfs::new(&dir.join(name));
    let told = cfs.run(["switch", image, "--json"]).expect(0).json();
    cfs.fsck();
    assert_eq!(cfs.run(["upgrade"]).expect(77).stdout, "", "it is followed: {image}");
    told["deployment"].as_str().unwrap().to_owned()
}

#[test]
fn an_archive_plain_or_compressed_deploys_what_the_folder_does() {
    let dir = scratch();
    let oci = published(dir.path());
    let expected = deployed(dir.path(), "folder", &oci);
    let path = |name: &str| dir.path().join(name).display().to_string();
    tool(
        "skopeo",
        [
            "copy",
            "--quiet",
            &oci,
            &format!("oci-archive:{}:stable", path("oci.tar")),
        ],
    );
    tool(
        "skopeo",
        [
            "copy",
            "--quiet",
            &oci,
            &format!("docker-archive:{}:example.org/os:1", path("docker.tar")),
        ],
    );
    for (tar, transport, names) in [
        ("oci.tar", "oci-archive", ["", ":stable", ":@0"]),
        ("docker.tar", "docker-archive", ["", ":example.org/os:1", ":@0"]),
    ] {
        tool("gzip", ["-kf", &path(tar)]);
        tool("zstd", ["-qf", &path(tar), "-o", &path(&format!("{tar}.zst"))]);
        for (number, name) in names.iter().enumerate() {
            let image = format!("{transport}:{}{name}", path(tar));
            assert_eq!(
                deployed(dir.path(), &format!("{tar}-{number}"), &image),
                expected,
                "{image}"
            );
        }
        for end in ["gz", "zst"] {
            let image = format!("{transport}:{}", path(&format!("{tar}.{end}")));
            assert_eq!(
                deployed(dir.path(), &format!("{tar}-{end}"), &image),
                expected,
                "{image}"
            );
        }
    }
}

#[test]
fn what_is_wrong_with_an_archive_is_said_and_leaves_no_deployment() {
    let dir = scratch();
    let oci = published(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    tool(
        "skopeo",
        ["copy", "--quiet", &oci, &format!("oci-archive:{}", path("oci.tar"))],
    );
    tool(
        "skopeo",
        [
            "copy",
            "--quiet",
            &oci,
            &format!("docker-archive:{}:example.org/os:1", path("docker.tar")),
        ],
    );
    fs::write(path("text"), "no archive at all\n").unwrap();
    let whole = fs::read(path("oci.tar")).unwrap();
    fs::write(path("cut.tar"), &whole[..whole.len() / 2]).unwrap();
    let mut flipped = fs::read(path("docker.tar")).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(path("flipped.tar"), flipped).unwrap();
    let cfs = Cfs::new(dir.path());
    for (image, code, why) in [
        (format!("oci-archive:{}", path("gone.tar")), 1, "gone.tar"),
        (format!("oci-archive:{}", path("text")), 1, "text"),
        (format!("oci-archive:{}", path("cut.tar")), 1, "cut.tar"),
        (format!("docker-archive:{}", path("flipped.tar")), 1, "expected sha256:"),
        (
            format!("oci-archive:{}", path("docker.tar")),
            1,
            "is not an OCI image layout",
        ),
        (format!("docker-archive:{}", path("oci.tar")), 1, "no manifest.json"),
        (
            format!("docker-archive:{}:other:2", path("docker.tar")),
            5,
            "it has: example.org/os:1",
        ),
        (format!("docker-archive:{}:@3", path("docker.tar")), 5, "there is no @3"),
        (
            format!("oci-archive:{}@sha256:{}", path("oci.tar"), "0".repeat(64)),
            5,
            "has no image sha256:",
        ),
    ] {
        let told = cfs.run(["switch", &image]).expect(code);
        assert!(told.stderr.contains(why), "{image}: {}", told.stderr);
    }
    assert!(cfs.deployments().is_empty() && cfs.entries().is_empty());
    cfs.run(["switch", &format!("docker-archive:{}", path("docker.tar"))])
        .expect(0);
}

#[test]
fn names_in_an_archive_lead_nowhere_else() {
    let dir = scratch();
    let secret = dir.path().join("secret");
    fs::write(&secret, "{}").unwrap();
    let folder = dir.path().join("archive");
    fs::create_dir(&folder).unwrap();
    let config = json!({"rootfs": {"diff_ids": [layout::digest(b"x")]}}).to_string();
    fs::write(folder.join("config.json"), config).unwrap();
    std::os::unix::fs::symlink(&secret, folder.join("layer.tar")).unwrap();
    std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
    for layer in ["layer.tar", "../secret", "loop", secret.to_str().unwrap()] {
        let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": [layer]}]).to_string();
        fs::write(folder.join("manifest.json"), manifest).unwrap();
        let tar = dir.path().join("bad.tar");
        tool(
            "tar",
            ["-C", folder.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."],
        );
        let image = format!("docker-archive:{}", tar.display());
        let told = Cfs::new(dir.path()).run(["switch", &image]).expect(1);
        assert!(
            told.stderr.contains("is missing: the image is incomplete"),
            "{layer}: {}",
            told.stderr
        );
    }
}
