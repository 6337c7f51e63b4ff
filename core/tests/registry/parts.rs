//! Parts of a blob: who is asked for them, and how often.

use std::ops::Range;

use cfs_core::monitor::Monitor;

use super::*;

/// Parts of the layer.
fn parts(registry: &Registry, ranges: &[Range<u64>], monitor: &dyn Monitor) -> Result<Vec<u8>, Error> {
    let image = image(registry)?;
    let mut bytes = Vec::new();
    let mut parts = registry.parts(&image.manifest.layers[0], ranges.to_vec(), monitor);
    match parts.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Error::from_read("parts", error)),
    }
}

const TWO: [Range<u64>; 2] = [10..20, 500_000..500_010];

#[test]
fn parts_of_a_busy_registry_that_asks_for_no_wait_are_given_up_after_the_attempts() {
    let served = Served::new(MIB);
    for status in [429, 503] {
        let server = faulty(&served, move |seen, before| {
            let busy = seen.header("range").is_some() && before < 100;
            busy.then(|| Reply::new(status).with("Retry-After", "0"))
        });
        let error = parts(&open(&server), &TWO, &Quiet).unwrap_err();
        assert!(error.to_string().contains("4 attempts"), "{error}");
        assert_eq!(server.count(&served.layer_digest()), 4);
    }
}
