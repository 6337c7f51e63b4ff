//! Archives as other tools and people make them: however they are compressed, whatever is a link in them, through a
//! pipe; and what is wrong with one is said.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod broken;
mod members;
#[path = "../support/mod.rs"]
mod support;
#[path = "../tars/mod.rs"]
mod tars;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cfs_core::export::{Compression, Destination, Export};
use cfs_core::ids::Algorithm;
use cfs_core::manifest::Platform;
use cfs_core::registry::{Options, Registry};
use cfs_core::store::Store;
use cfs_core::{Result, pull};
use serde_json::{Value, json};

use support::{Told, noise, sha256};
use tars::{Header, Tar, gzip, zstd};

fn pull(dir: &Path, reference: &str) -> Result<String> {
    let options = Options {
        temporary: dir.into(),
        ..Options::default()
    };
    let registry = Registry::open(&reference.parse().unwrap(), &options)?;
    let folder = tempfile::tempdir_in(dir).unwrap();
    let store = Store::open_or_create(&folder.path().join("composefs"), Algorithm::Sha256)?;
    let pulled = pull::pull(&store, &registry, &Platform::host(), 0, &Told::default())?;
    Ok(pulled.id.to_string())
}

fn refused(dir: &Path, reference: &str) -> String {
    pull(dir, reference).unwrap_err().to_string()
}

fn layers() -> [Vec<u8>; 2] {
    let first = Tar::new().directory("usr/").file("usr/a", &noise(90_000, 1)).finish();
    let second = Tar::new().file("usr/b", &noise(70_000, 2)).finish();
    [first, second]
}

fn config(diff_ids: &Value) -> Vec<u8> {
    let machine = Platform::host();
    let config = json!({
        "architecture": machine.architecture(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

/// What `docker save` writes: members and their bytes.
fn docker(layers: &[(&str, Vec<u8>)], diff_ids: &Value) -> Tar {
    let names: Vec<_> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["localhost/os:1"], "Layers": names}]).to_string();
    let mut tar = Tar::new()
        .file("config.json", &config(diff_ids))
        .file("manifest.json", manifest.as_bytes());
    for (name, content) in layers {
        tar = tar.file(name, content);
    }
    tar
}

/// An image of Docker's kind, in a layout: the manifest's digest.
fn layout(dir: &Path) -> String {
    let [first, second] = layers();
    let config = config(&json!([sha256(&first), sha256(&second)]));
    let described = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.docker.{kind}");
        json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
    };
    let blobs = [gzip(&first), gzip(&second)];
    let layers: Vec<_> = blobs
        .iter()
        .map(|blob| described("image.rootfs.diff.tar.gzip", blob))
        .collect();
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "config": described("container.image.v1+json", &config), "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2, "manifests": [{"mediaType": kind, "digest": sha256(&manifest), "size": manifest.len()}],
    });
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for bytes in [&config, &manifest, &blobs[0], &blobs[1]] {
        fs::write(dir.join("blobs/sha256").join(&sha256(bytes)[7..]), bytes).unwrap();
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    sha256(&manifest)
}

fn plain() -> Vec<u8> {
    let [first, second] = layers();
    let diff_ids = json!([sha256(&first), sha256(&second)]);
    docker(&[("1.tar", first), ("2.tar", second)], &diff_ids).finish()
}

fn with_tool(tool: &str, input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = Command::new(tool)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{tool}");
    output.stdout
}

#[test]
fn an_archive_in_any_usual_compression_gives_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let plain = plain();
    let path = dir.path().join("saved");
    let reference = format!("docker-archive:{}", path.display());
    fs::write(&path, &plain).unwrap();
    let expected = pull(dir.path(), &reference).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc", &zstd(&plain)].concat();
    let (half, rest) = plain.split_at(plain.len() / 2);
    for (how, bytes) in [
        ("gzip", gzip(&plain)),
        ("gzip members", [gzip(half), gzip(rest)].concat()),
        ("gzip, padded", [gzip(&plain), vec![0; 700_000]].concat()),
        (
            "gzip members, padded",
            [gzip(half), vec![0; 512], gzip(rest), vec![0; 512]].concat(),
        ),
        ("zstd", zstd(&plain)),
        ("zstd behind a skippable frame", skippable),
        ("xz", with_tool("xz", &plain)),
        ("xz streams", [with_tool("xz", half), with_tool("xz", rest)].concat()),
        ("bzip2", with_tool("bzip2", &plain)),
        (
            "bzip2 streams",
            [with_tool("bzip2", half), with_tool("bzip2", rest)].concat(),
        ),
    ] {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(pull(dir.path(), &reference).unwrap(), expected, "{how}");
        // Padding is no part of it.
        let packed = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        fs::write(&path, &bytes[..packed / 2]).unwrap();
        let error = refused(dir.path(), &reference);
        assert!(error.contains(path.to_str().unwrap()), "{how}, cut: {error}");
    }
    fs::write(&path, [gzip(&plain), vec![0; 512], b"x".to_vec()].concat()).unwrap();
    refused(dir.path(), &reference);
}

#[test]
fn compressed_layers_of_a_docker_archive_are_those_of_the_plain_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let reference = format!("docker-archive:{}", path.display());
    fs::write(&path, plain()).unwrap();
    let expected = pull(dir.path(), &reference).unwrap();
    let [first, second] = layers();
    let diff_ids = json!([sha256(&first), sha256(&second)]);
    let (one, two) = (gzip(&first), zstd(&second));
    // As Docker saves images that it keeps in containerd.
    let names = [&one, &two].map(|blob| format!("blobs/sha256/{}", &sha256(blob)[7..]));
    for names in [["a/layer.tar", "b/layer.tar"], [names[0].as_str(), names[1].as_str()]] {
        let saved = docker(&[(names[0], one.clone()), (names[1], two.clone())], &diff_ids).finish();
        fs::write(&path, saved).unwrap();
        assert_eq!(pull(dir.path(), &reference).unwrap(), expected, "{names:?}");
    }
    // Under a name that is another's digest, and of another content.
    let other = gzip(&Tar::new().file("x", b"y").finish());
    for (name, content) in [(names[0].as_str(), other.clone()), ("a/layer.tar", other)] {
        fs::write(
            &path,
            docker(&[(name, content), ("b", two.clone())], &diff_ids).finish(),
        )
        .unwrap();
        let error = refused(dir.path(), &reference);
        assert!(error.contains("sha256:"), "{name}: {error}");
    }
    let xz = with_tool("xz", &first);
    fs::write(&path, docker(&[("a.tar", xz), ("b", two)], &diff_ids).finish()).unwrap();
    let error = refused(dir.path(), &reference);
    assert!(error.contains("a.tar") && error.contains("compression"), "{error}");
}

#[test]
fn an_image_without_layers_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    for diff_ids in [json!([]), json!(null)] {
        for layers in [json!([]), json!(null)] {
            let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": layers}]).to_string();
            let tar = Tar::new()
                .file("config.json", &config(&diff_ids))
                .file("manifest.json", manifest.as_bytes());
            fs::write(&path, tar.finish()).unwrap();
            pull(dir.path(), &format!("docker-archive:{}", path.display())).unwrap();
        }
    }
}

#[test]
fn an_archive_may_come_through_a_pipe_and_a_blob_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let whole = dir.path().join("whole");
    fs::write(&whole, gzip(&plain())).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let (from, to) = (whole.clone(), path.clone());
    let writer = std::thread::spawn(move || fs::copy(from, to).unwrap());
    let piped = pull(dir.path(), &format!("docker-archive:{}", path.display())).unwrap();
    writer.join().unwrap();
    assert_eq!(
        piped,
        pull(dir.path(), &format!("docker-archive:{}", whole.display())).unwrap()
    );
    let layout = dir.path().join("layout");
    fs::create_dir(&layout).unwrap();
    fs::rename(&path, layout.join("oci-layout")).unwrap();
    let error = refused(dir.path(), &format!("oci:{}", layout.display()));
    assert!(
        error.contains("oci-layout") && error.contains("regular file"),
        "{error}"
    );
}

#[test]
fn an_image_of_dockers_kind_goes_out_as_others_read_it_and_is_itself_again_for_us() {
    let dir = tempfile::tempdir().unwrap();
    let original = layout(&dir.path().join("from"));
    let from = format!("oci:{}", dir.path().join("from").display()).parse().unwrap();
    let options = Options {
        temporary: dir.path().into(),
        ..Options::default()
    };
    let registry = Registry::open(&from, &options).unwrap();
    let store = Store::open_or_create(&dir.path().join("composefs"), Algorithm::Sha256).unwrap();
    let told = Told::default();
    let pulled = pull::pull(&store, &registry, &Platform::host(), 0, &told).unwrap();
    assert_eq!(pulled.manifest.to_string(), original);
    let to = format!("oci:{}:v1", dir.path().join("to").display()).parse().unwrap();
    let origin = || Registry::open(&from, &options);
    let export = Export {
        store: &store,
        manifest: pulled.manifest,
        origin: Some(&origin),
        compression: Compression::None,
        temporary: dir.path(),
    };
    let exported = export
        .run(Destination::open(&to, None, &options, &told).unwrap(), &told)
        .unwrap();
    assert!(!exported.original);
    let read =
        |path: &str| -> Value { serde_json::from_slice(&fs::read(dir.path().join("to").join(path)).unwrap()).unwrap() };
    let entry = &read("index.json")["manifests"][0];
    assert_eq!(entry["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let manifest = read(&format!("blobs/sha256/{}", &entry["digest"].as_str().unwrap()[7..]));
    assert_eq!(
        manifest["layers"][0]["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    let before = read(&format!("blobs/sha256/{}", &original[7..]));
    for (new, old) in manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(before["layers"].as_array().unwrap())
    {
        assert_eq!(new["digest"], old["digest"], "the very blobs");
    }
    let again = Registry::open(&to, &options)
        .unwrap()
        .image(&Platform::host(), &told)
        .unwrap();
    assert_eq!(again.digest.to_string(), original);
}

#[test]
fn an_archive_takes_the_place_of_a_file_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let open = |name: &str| {
        let to = format!("oci-archive:{}", path(name).display()).parse().unwrap();
        Destination::open(&to, None, &Options::default(), &Told::default())
    };
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    fs::create_dir(path("disk")).unwrap();
    fs::write(path("disk/old.tar"), "old").unwrap();
    std::os::unix::fs::symlink("pipe", path("to-pipe")).unwrap();
    std::os::unix::fs::symlink("disk/old.tar", path("to-old")).unwrap();
    for name in ["pipe", "to-pipe"] {
        let error = open(name).unwrap_err().to_string();
        assert!(error.contains("is a device or a pipe"), "{error}");
    }
    assert!(open("disk").unwrap_err().to_string().contains("is a folder"));
    let archive = open("to-old").unwrap();
    assert!(
        path("disk/.#old.tar").exists(),
        "beside the file that the link leads to"
    );
    drop(archive);
    assert_eq!(fs::read(path("disk/old.tar")).unwrap(), b"old");
}

#[test]
fn a_temporary_folder_that_is_full_is_named_with_what_to_do() {
    let full = std::io::Error::from_raw_os_error(28);
    let error = cfs_core::Error::io("unpack", "/x/saved.tar.gz", full);
    let error = cfs_core::Error::temporary(Path::new("/var/tmp"), error);
    assert_eq!(error.kind(), cfs_core::Kind::Space);
    let text = error.to_string();
    assert!(text.contains("/var/tmp") && text.contains("TMPDIR"), "{text}");
    let other = cfs_core::Error::io("unpack", "/x/saved.tar.gz", std::io::Error::from_raw_os_error(5));
    let text = cfs_core::Error::temporary(Path::new("/var/tmp"), other).to_string();
    assert!(text.contains("/x/saved.tar.gz") && !text.contains("TMPDIR"), "{text}");
}
