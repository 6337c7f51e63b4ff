use std::io::Cursor;
use std::path::Path;

use super::*;
use crate::ids::Algorithm;
use crate::manifest::{Config, Descriptor, Document};
use crate::monitor::Quiet;

/// The layer of one of the images of `testdata/zstd-chunked`.
struct Sample {
    layer: Descriptor,
    diff_id: DiffId,
    blob: Vec<u8>,
}

impl Sample {
    fn new(version: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../testdata/zstd-chunked")
            .join(version);
        let blob = |digest: &str| std::fs::read(folder.join("blobs/sha256").join(&digest["sha256:".len()..])).unwrap();
        let index = std::fs::read(folder.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let manifest = blob(index["manifests"][0]["digest"].as_str().unwrap());
        let Ok(Document::Manifest(manifest)) = Document::parse(manifest, None, "") else {
            panic!("no manifest");
        };
        let config = Config::parse(blob(&manifest.config.digest.to_string()), &manifest).unwrap();
        Self {
            layer: manifest.layers[0].clone(),
            diff_id: config.diff_ids[0],
            blob: blob(&manifest.layers[0].digest.to_string()),
        }
    }

    /// The blob as the one of a layer; `asked` counts how often its parts are asked for.
    fn source<'a>(&'a self, diff_id: DiffId, asked: &'a AtomicUsize) -> LayerSource<'a> {
        let parts = move |ranges: Vec<Range<u64>>| {
            asked.fetch_add(1, Ordering::Relaxed);
            let at = |n: u64| usize::try_from(n).unwrap();
            let bytes = ranges
                .iter()
                .flat_map(|range| &self.blob[at(range.start)..at(range.end)]);
            let bytes: Vec<u8> = bytes.copied().collect();
            Some(Box::new(Cursor::new(bytes)) as _)
        };
        LayerSource {
            diff_id,
            size: self.layer.size,
            compression: Compression::Zstd,
            open: Box::new(move || Ok(Box::new(&self.blob[..]) as _)),
            partial: Some(Partial {
                place: Place::find(&self.layer.annotations, self.layer.size).unwrap(),
                parts: Box::new(parts),
                gap: Box::new(|| 0),
                podman: None,
                origin: None,
            }),
            remote: None,
        }
    }
}

#[test]
fn a_blob_that_a_manifest_names_many_times_takes_no_more_memory_than_there_is_for_all_tables() {
    let (old, new) = (Sample::new("v1"), Sample::new("v2"));
    let (folder, asked) = (tempfile::tempdir().unwrap(), AtomicUsize::new(0));
    let store = Store::create(&folder.path().join("composefs"), Algorithm::Sha256).unwrap();
    layers(&store, vec![old.source(old.diff_id, &asked)], 1, &Quiet).unwrap();
    let plan = |limit: usize, count: u8| {
        asked.store(0, Ordering::Relaxed);
        let sources = (0..count).map(|n| new.source(DiffId::from_hash([n; 32]), &asked));
        Plan::within(limit, Some(&store), sources.collect(), 1, false, &Quiet)
    };
    let weight = |plan: &Plan<'_>| plan.jobs.iter().map(|job| job.decision.weight()).sum::<usize>();
    let one = weight(&plan(usize::MAX, 1));
    assert!(one > 1000, "{one}");
    let limit = one * 5 / 2;
    let bound = plan(limit, 9);
    assert!(weight(&bound) <= limit, "{} of {limit}", weight(&bound));
    let parts: Vec<bool> = bound.layers().map(|layer| layer.parts).collect();
    assert_eq!(parts, [[true; 2].as_slice(), &[false; 7]].concat());
    // The third showed that there is no room for it; nobody asks for the others.
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}
