//! Several layers: what they share is stored once, and side by side they fail together.

use std::sync::Mutex;

use cfs_core::monitor::{Event, Monitor};

use super::*;

/// Sums what it hears.
#[derive(Default)]
struct Counts(Mutex<(u64, u64, u64, Vec<DiffId>)>);

impl Monitor for Counts {
    fn event(&self, event: Event) {
        let mut counts = self.0.lock().unwrap();
        match event {
            Event::Objects { stored, shared } => (counts.0, counts.1) = (counts.0 + stored, counts.1 + shared),
            Event::LayerBytes { bytes, .. } => counts.2 += bytes,
            Event::LayerDone { diff_id } => counts.3.push(diff_id),
            _ => {}
        }
    }
}

#[test]
fn files_that_are_here_are_not_written_again_and_events_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let first = Tar::new()
        .file("a", &[1; 100])
        .file("b", &[1; 100])
        .file("c", &vec![2; 2 << 20])
        .finish();
    let second = Tar::new().file("x", &vec![2; 2 << 20]).file("y", &[3; 100]).finish();
    let blobs = [gzip(&first), gzip(&second)];
    let counts = Counts::default();
    for (tar, blob) in [&first, &second].into_iter().zip(&blobs) {
        import::layers(
            &store,
            vec![source(diff_id(tar), Compression::Gzip, blob.clone())],
            0,
            &counts,
        )
        .unwrap();
    }
    let (stored, shared, bytes, done) = counts.0.into_inner().unwrap();
    assert_eq!((stored, shared), (3, 2));
    assert_eq!(bytes, (blobs[0].len() + blobs[1].len()) as u64);
    assert_eq!(done, [diff_id(&first), diff_id(&second)]);
}

#[test]
fn many_layers_side_by_side_and_one_broken_one_fails_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Algorithm::Sha256);
    let tars: Vec<_> = (0..40_u8)
        .map(|n| Tar::new().file("own", &[n; 5000]).file("all", &[9; 5000]).finish())
        .collect();
    let sources = |broken: Option<usize>| -> Vec<_> {
        let all = tars.iter().enumerate();
        all.map(|(n, tar)| {
            let blob = if broken == Some(n) {
                gzip(tar)[..90].to_vec()
            } else {
                gzip(tar)
            };
            source(diff_id(tar), Compression::Gzip, blob)
        })
        .collect()
    };
    for threads in [1, 3, 0] {
        let refused = import::layers(&store, sources(Some(17)), threads, &Quiet)
            .unwrap_err()
            .to_string();
        assert!(refused.contains(&diff_id(&tars[17]).to_string()), "{refused}");
    }
    import::layers(&store, sources(None), 0, &Quiet).unwrap();
    store.publish().unwrap();
    assert!(tars.iter().all(|tar| rebuilt(&store, &diff_id(tar)) == *tar));
    assert_eq!(findings(&store), []);
}
