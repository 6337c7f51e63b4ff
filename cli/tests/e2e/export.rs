//! Images out of the store: to folders, archives and registries, and back in elsewhere.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::layout::{How, Image, Layer, base, blob_path, digest, noise};
use crate::common::registry::Registry;
use crate::common::{Cfs, list, scratch, tool};

/// Three layers in the three forms that there are; the last one is sent in several parts.
fn image() -> crate::common::layout::Finished {
    let app = Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/app", noise(5, 50_000))
        .file("usr/bin/small", "x");
    let large = Layer::default().dirs(&["usr"]).file("usr/large", noise(6, 19_000_000));
    Image::new("1")
        .layer(base("1", "kernel-1"), How::Gzip)
        .layer(app, How::None)
        .layer(large, How::Zstd)
        .finish()
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The manifest of the only image of a layout, whose blobs all are what their names say.
fn checked(dir: &Path) -> (String, Value) {
    for path in list(&dir.join("blobs/sha256")) {
        let name = crate::common::name(&path);
        assert_eq!(format!("sha256:{name}"), digest(&fs::read(&path).unwrap()), "{name}");
    }
    let index = read(dir.join("index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    let found = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let manifest = read(blob_path(dir, &found));
    (found, manifest)
}

fn pulled(cfs: &Cfs, image: &str) -> String {
    let told = cfs.run(["image", "pull", image, "--json"]).expect(0).json();
    told["digest"].as_str().unwrap().to_owned()
}

/// What a switch to an image gives: the deployment, and the digest of its manifest.
fn switched(dir: &Path, name: &str, image: &str) -> (String, String) {
    let cfs = Cfs::new(&dir.join(name));
    let told = cfs.run(["switch", image, "--json"]).expect(0).json();
    cfs.fsck();
    let text = |key: &str| told[key].as_str().unwrap().to_owned();
    (text("deployment"), text("imageDigest"))
}

#[test]
fn a_pulled_image_goes_out_with_its_own_manifest_and_gives_the_same_deployment_elsewhere() {
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let from = finished.push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    pulled(&cfs, &from);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let archive = format!("oci-archive:{}:stable", path("os.tar"));
    let told = cfs.run(["image", "export", &from, &archive, "--json"]).expect(0).json();
    assert_eq!(told["imageDigest"], finished.digest());
    assert_eq!(
        (told["original"].as_bool(), told["fetched"].as_u64()),
        (Some(true), Some(2))
    );
    let folder = format!("oci:{}", path("layout"));
    cfs.run(["image", "export", &from, &folder]).expect(0);
    let (found, manifest) = checked(&dir.path().join("layout"));
    assert_eq!(found, finished.digest());
    assert_eq!(
        fs::read(blob_path(&dir.path().join("layout"), &found)).unwrap(),
        finished.manifest
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);

    let expected = switched(dir.path(), "registry", &from);
    assert_eq!(expected.1, finished.digest());
    for (name, image) in [("archive", &archive), ("folder", &folder)] {
        assert_eq!(switched(dir.path(), name, image), expected, "{image}");
    }
    // skopeo reads both, and says the same digest.
    for image in [&archive, &folder] {
        let raw = tool("skopeo", ["inspect", "--raw", image]);
        assert_eq!(digest(raw.as_bytes()), finished.digest());
        tool(
            "skopeo",
            [
                "copy",
                "--quiet",
                "--insecure-policy",
                image,
                &format!("dir:{}", path("copy")),
            ],
        );
    }
    // Nothing is sent a second time, and a blob that was damaged there is.
    let told = cfs.run(["image", "export", &from, &folder, "--json"]).expect(0).json();
    assert_eq!(told["sent"], 0);
    let blob = digest(&finished.blobs[2]);
    fs::write(
        blob_path(&dir.path().join("layout"), &blob),
        vec![0; finished.blobs[2].len()],
    )
    .unwrap();
    let told = cfs.run(["image", "export", &from, &folder, "--json"]).expect(0).json();
    assert_eq!(told["sent"], 1);
    checked(&dir.path().join("layout"));
}

#[test]
fn without_a_registry_layers_go_uncompressed_and_the_original_manifest_is_followed_all_the_same() {
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let from = finished.push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    pulled(&cfs, &from);
    let expected = switched(dir.path(), "registry", &from);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let archive = format!("oci-archive:{}", path("os.tar"));
    let folder = format!("oci:{}:stable", path("layout"));
    let before = registry.requests().len();
    for image in [&archive, &folder] {
        let told = cfs
            .run(["image", "export", "--offline", &from, image, "--json"])
            .expect(0)
            .json();
        assert_eq!(
            (told["original"].as_bool(), told["sent"].as_u64()),
            (Some(false), Some(3))
        );
    }
    assert_eq!(registry.requests().len(), before, "nobody was asked");
    drop(registry);
    // The layers are the tars, named by their diff_ids; the config is the same, so the image id is, too.
    let (_, manifest) = checked(&dir.path().join("layout"));
    let config = read(blob_path(
        &dir.path().join("layout"),
        manifest["config"]["digest"].as_str().unwrap(),
    ));
    let layers: Vec<_> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].clone())
        .collect();
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap(), &layers);
    let original: Value = serde_json::from_slice(&finished.manifest).unwrap();
    assert_eq!(manifest["config"]["digest"], original["config"]["digest"]);
    for (name, image) in [("archive", &archive), ("folder", &folder)] {
        assert_eq!(
            switched(dir.path(), name, image),
            expected,
            "the manifest is the original one: {image}"
        );
        let copy = format!("oci:{}:stable", path(&format!("copy-{name}")));
        tool("skopeo", ["copy", "--quiet", "--insecure-policy", image, &copy]);
        assert_eq!(
            switched(dir.path(), &format!("copied-{name}"), &copy).0,
            expected.0,
            "skopeo reads it"
        );
    }
    // A registry that is gone is said, and is no failure; what comes out is the same.
    let told = cfs
        .run(["image", "export", &from, &format!("oci:{}", path("again")), "--json"])
        .expect(0);
    assert!(told.stderr.contains("out of the store instead"), "{}", told.stderr);
    assert_eq!(
        checked(&dir.path().join("again")).0,
        checked(&dir.path().join("layout")).0
    );
}

#[test]
fn what_is_pushed_is_sent_once_and_pulled_by_anybody() {
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let from = finished.push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    let expected = pulled(&cfs, &from);
    let bodies = |requests: &[String]| {
        requests
            .iter()
            .filter(|r| r.starts_with("PATCH") || r.starts_with("PUT /v2/copy/blobs"))
            .count()
    };

    // Within one registry no layer is sent at all.
    let to = format!("docker://{}", registry.reference("copy/os:1"));
    let told = cfs.run(["image", "push", &from, &to, "--json"]).expect(0).json();
    assert_eq!((&told["original"], &told["sent"]), (&true.into(), &0.into()));
    assert_eq!(bodies(&registry.requests()), 0, "{:?}", registry.requests());
    let raw = tool("skopeo", ["inspect", "--raw", "--tls-verify=false", &to]);
    assert_eq!(digest(raw.as_bytes()), finished.digest());
    let before = registry.requests().len();
    let told = cfs.run(["image", "push", &from, &to, "--json"]).expect(0).json();
    assert_eq!(told["unchanged"], true);
    assert!(registry.requests().len() - before <= 2, "{:?}", registry.requests());

    // To another registry: as they were, and out of the store alone.
    let other = Registry::start();
    let to = |tag: &str| format!("docker://{}", other.reference(&format!("app:{tag}")));
    let told = cfs.run(["image", "push", &from, &to("1"), "--json"]).expect(0).json();
    assert_eq!(
        (&told["imageDigest"], &told["fetched"]),
        (&finished.digest().into(), &2.into())
    );
    let empty = Registry::start();
    for (how, tag) in [("zstd", "z"), ("gzip", "g"), ("none", "n")] {
        let to = format!("docker://{}", empty.reference(&format!("app-{how}:{tag}")));
        let told = cfs
            .run(["image", "push", "--offline", "--compression", how, &from, &to, "--json"])
            .expect(0)
            .json();
        assert_eq!(told["original"], false);
        let copy = format!("oci:{}", dir.path().join(how).display());
        tool(
            "skopeo",
            [
                "copy",
                "--quiet",
                "--insecure-policy",
                "--src-tls-verify=false",
                &to,
                &copy,
            ],
        );
        assert_eq!(
            pulled(&Cfs::new(&dir.path().join(format!("back-{how}"))), &to),
            expected,
            "{how}"
        );
        let told = cfs
            .run(["image", "push", "--offline", "--compression", how, &from, &to, "--json"])
            .expect(0)
            .json();
        assert_eq!(told["sent"], 0, "the same layers compress to the same blobs");
    }
}

#[test]
fn a_deployment_is_exported_by_what_status_calls_it() {
    let dir = scratch();
    let registry = Registry::start();
    let finished = image();
    let from = finished.push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &from]).expect(0);
    for name in ["staged", "0", &from] {
        let folder = dir.path().join(format!("layout-{}", name.len()));
        cfs.run(["image", "export", name, &format!("oci:{}", folder.display())])
            .expect(0);
        assert_eq!(checked(&folder).0, finished.digest(), "{name}");
    }
}

#[test]
fn what_cannot_go_out_is_said_and_leaves_the_destination_as_it_was() {
    let dir = scratch();
    let registry = Registry::start();
    let from = image().push(&registry, "os", "1");
    let cfs = Cfs::new(dir.path());
    pulled(&cfs, &from);
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("folder/letter"), "dear").unwrap();
    for (command, to, why) in [
        ("export", format!("oci:{}", path("folder")), "something else in it"),
        ("export", format!("oci-archive:{}", path("folder")), "is a folder"),
        ("export", format!("oci:{}:@0", path("new")), "no place or digest"),
        ("export", format!("docker-archive:{}", path("x.tar")), "images go to"),
        ("export", registry.reference("os:2"), "image push"),
        ("push", format!("oci:{}", path("new")), "image export"),
        (
            "push",
            format!("{}@sha256:{}", registry.reference("os"), "0".repeat(64)),
            "write a tag",
        ),
    ] {
        let told = cfs.run(["image", command, &from, &to]).expect(2);
        assert!(told.stderr.contains(why), "{to}: {}", told.stderr);
    }
    cfs.run([
        "image",
        "export",
        "quay.io/none/there:1",
        &format!("oci:{}", path("new")),
    ])
    .expect(2);
    assert!(!Path::new(&path("new")).exists());
    // An object that is not what its name says.
    let whole = format!("oci-archive:{}", path("whole.tar"));
    cfs.run(["image", "export", "--offline", &from, &whole]).expect(0);
    let before = fs::read(path("whole.tar")).unwrap();
    let objects = cfs.sysroot().join("composefs/objects");
    let large = list(&objects)
        .iter()
        .flat_map(|folder| list(folder))
        .max_by_key(|p| fs::metadata(p).unwrap().len());
    let large = large.unwrap();
    let mut bytes = fs::read(&large).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&large).unwrap();
    fs::write(&large, bytes).unwrap();
    let told = cfs.run(["image", "export", "--offline", &from, &whole]).expect(1);
    assert!(
        told.stderr.contains("rebuilt layer: expected sha256:"),
        "{}",
        told.stderr
    );
    assert_eq!(
        fs::read(path("whole.tar")).unwrap(),
        before,
        "the archive is the old one"
    );
    let folder = path("layout");
    cfs.run(["image", "export", "--offline", &from, &format!("oci:{folder}")])
        .expect(1);
    assert!(!Path::new(&folder).join("index.json").exists());
    let told = cfs
        .run([
            "image",
            "push",
            "--offline",
            &from,
            &Registry::start().reference("os:2"),
        ])
        .expect(1);
    assert!(told.stderr.contains("rebuilt layer"), "{}", told.stderr);
    assert!(
        list(dir.path())
            .iter()
            .all(|p| !crate::common::name(p).starts_with(".#")),
        "no leftover"
    );
}

#[test]
fn exports_into_one_folder_at_the_same_time_lose_nothing_that_they_say_is_there() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let oci = image().layout(&dir.path().join("oci"), "os");
    pulled(&cfs, &oci);
    let to = dir.path().join("to");
    let names = ["one", "two", "three", "four"];
    let running = names.map(|name| cfs.spawn(["image", "export", &oci, &format!("oci:{}:{name}", to.display())]));
    let mut there = Vec::new();
    for (name, child) in names.into_iter().zip(running) {
        let ended = child.wait_with_output().unwrap();
        match ended.status.code() {
            Some(0) => there.push(name),
            code => assert_eq!(code, Some(6), "{}", String::from_utf8_lossy(&ended.stderr)),
        }
    }
    assert!(!there.is_empty());
    let index = read(to.join("index.json"));
    let listed = index["manifests"].as_array().unwrap().iter();
    let mut listed: Vec<_> = listed
        .map(|entry| {
            entry["annotations"]["org.opencontainers.image.ref.name"]
                .as_str()
                .unwrap()
        })
        .collect();
    listed.sort_by_key(|name| names.iter().position(|other| other == name));
    assert_eq!(listed, there);
    for name in there {
        switched(dir.path(), name, &format!("oci:{}:{name}", to.display()));
    }
}
