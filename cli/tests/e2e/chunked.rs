//! zstd:chunked images as skopeo 1.18 writes them, from a real registry: what `--dry-run` says, and what is fetched
//! then.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::layout::MANIFEST;
use crate::common::registry::Registry;
use crate::common::{Cfs, repository, scratch};

/// One of the images of `testdata/zstd-chunked`.
struct Sample {
    manifest: Vec<u8>,
    parsed: Value,
    blobs: PathBuf,
}

impl Sample {
    fn new(version: &str) -> Self {
        let folder = repository().join("testdata/zstd-chunked").join(version);
        let index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
        let blobs = folder.join("blobs/sha256");
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let manifest = fs::read(blobs.join(&digest["sha256:".len()..])).unwrap();
        Self {
            parsed: serde_json::from_slice(&manifest).unwrap(),
            manifest,
            blobs,
        }
    }

    fn layer(&self) -> &str {
        self.parsed["layers"][0]["digest"].as_str().unwrap()
    }

    fn size(&self) -> u64 {
        self.parsed["layers"][0]["size"].as_u64().unwrap()
    }

    fn push(&self, registry: &Registry, tag: &str) {
        for part in [&self.parsed["config"], &self.parsed["layers"][0]] {
            let digest = part["digest"].as_str().unwrap();
            registry.put_blob("os", &fs::read(self.blobs.join(&digest["sha256:".len()..])).unwrap());
        }
        registry.put_manifest("os", tag, MANIFEST, &self.manifest);
    }
}

#[test]
fn an_update_of_what_skopeo_wrote_fetches_what_the_dry_run_said() {
    let registry = Registry::start();
    let (v1, v2) = (Sample::new("v1"), Sample::new("v2"));
    v1.push(&registry, "1");
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = registry.reference("os:1");

    let first = cfs.run(["switch", "--dry-run", "--json", &reference]).expect(0).json();
    assert_eq!(first["bytes"].as_u64(), Some(v1.size()), "{first}");
    assert_eq!(first["layers"][0]["how"], "whole");
    assert!(
        cfs.entries().is_empty() && !cfs.sysroot().join("composefs").exists(),
        "nothing was made"
    );
    cfs.run(["switch", &reference]).expect(0);
    assert_eq!(registry.blob_answers(v1.layer()), [(200, v1.size())]);
    cfs.run(["upgrade", "--dry-run"]).expect(77);
    let here = cfs
        .run(["image", "pull", "--dry-run", "--json", &reference])
        .expect(0)
        .json();
    assert_eq!(
        (here["bytes"].as_u64(), &here["layers"][0]["how"]),
        (Some(0), &Value::from("here"))
    );

    v2.push(&registry, "1");
    let entries = cfs.entries().len();
    let ran = cfs.run(["upgrade", "--dry-run"]).expect(0);
    assert!(
        ran.stdout.contains("nothing was changed") && ran.stdout.contains("1 in parts"),
        "{}",
        ran.stdout
    );
    let planned = cfs.run(["upgrade", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(planned["bytesOfLayers"].as_u64(), Some(v2.size()));
    let bytes = planned["bytes"].as_u64().unwrap();
    assert!(bytes < v2.size() / 2, "{planned}");
    assert_eq!(cfs.entries().len(), entries);

    let before = registry.blob_answers(v2.layer()).len();
    let ran = cfs.run(["upgrade"]).expect(0);
    assert!(!ran.stderr.contains("as a whole"), "{}", ran.stderr);
    let answers = registry.blob_answers(v2.layer()).split_off(before);
    assert!(answers.iter().all(|(status, _)| *status == 206), "{answers:?}");
    let sent: u64 = answers.iter().map(|(_, bytes)| bytes).sum();
    // What is between the parts of an answer is on top.
    assert!((bytes..bytes + 2000).contains(&sent), "{sent} sent, {bytes} announced");
    cfs.fsck();
    assert!(cfs.status().to_string().contains("Test 2") || cfs.status().to_string().contains("\"2\""));
    cfs.run(["upgrade", "--dry-run"]).expect(77);
}
