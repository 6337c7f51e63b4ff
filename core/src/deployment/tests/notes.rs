//! The notes beside the records: what is staged, what happened, what failed; and every file of the format.

use super::*;
use crate::boot::HostArguments;
use crate::error::Kind;

#[test]
fn the_staged_note_is_written_read_and_cleared() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    assert_eq!(Staged::load(layout).unwrap(), None);
    let mut staged = Staged::new(id(1), Timestamp::UNIX_EPOCH);
    staged.boot_id = Some("b".into());
    staged.merge_from = Some(id(2));
    staged.save(&RealFs, layout).unwrap();
    assert_eq!(Staged::load(layout).unwrap(), Some(staged));
    let path = layout.state().join("staged.json");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    for bad in [
        "",
        "{}",
        "{\"formatVersion\":2,\"id\":\"00\",\"since\":\"1970-01-01T00:00:00Z\"}",
    ] {
        std::fs::write(&path, bad).unwrap();
        assert!(Staged::load(layout).unwrap_err().to_string().contains("staged.json"));
    }
    Staged::clear(&RealFs, layout).unwrap();
    Staged::clear(&RealFs, layout).unwrap();
    assert_eq!(Staged::load(layout).unwrap(), None);
}

#[test]
fn history_keeps_its_newest_events_and_skips_what_it_cannot_read() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    let event = |n: i64| Event {
        event: "upgrade".into(),
        time: Timestamp::from_second(n).unwrap(),
        id: Some(id(1)),
        digest: None,
        reference: None,
        result: "done".into(),
    };
    let path = layout.state().join("history.jsonl");
    let mut lines: Vec<u8> = Vec::new();
    for n in 0..history::HISTORY_LINES as i64 {
        lines.extend(serde_json::to_vec(&event(n)).unwrap());
        lines.push(b'\n');
    }
    lines.extend(b"{\"torn");
    std::fs::write(&path, lines).unwrap();
    History::append(&RealFs, layout, &event(5000)).unwrap();
    let history = History::load(layout).unwrap();
    assert_eq!(
        (history.events.len(), history.unreadable),
        (history::HISTORY_LINES - 1, 1)
    );
    assert_eq!(history.events[0], event(2));
    assert_eq!(history.events.last(), Some(&event(5000)));
    for _ in 0..2 {
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("not a file")).unwrap();
        assert!(History::load(layout).is_err());
        History::append(&RealFs, layout, &event(6000)).unwrap();
        assert_eq!(History::load(layout).unwrap().events, [event(6000)]);
    }
}

#[test]
fn a_failed_image_is_remembered_until_the_admin_wants_it() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    let digest = ManifestDigest::from_hash([1; 32]);
    let failed = |why: &str| Failed {
        digest,
        id: None,
        time: Timestamp::UNIX_EPOCH,
        why: why.into(),
        top: None,
        by_admin: false,
    };
    let mut list = FailedDigests::load(layout).unwrap();
    list.add(failed("first"));
    list.add(failed("second"));
    list.save(&RealFs, layout).unwrap();
    let mut list = FailedDigests::load(layout).unwrap();
    assert_eq!(list.iter().count(), 1);
    assert_eq!(list.get(&digest).unwrap().why, "second");
    assert!(list.remove(&digest) && !list.remove(&digest));
    std::fs::write(layout.state().join("failed.json"), "{").unwrap();
    let error = FailedDigests::load(layout).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
}

/// Frozen: what version 1 wrote is read, and written again byte for byte.
#[test]
fn every_file_of_state_format_1_is_read_and_written_as_ever() {
    let sandbox = sandbox();
    let layout = sandbox.deployments.layout();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/state-v1");
    let sample = |name: &str| std::fs::read_to_string(samples.join(name)).unwrap();
    let put = |name: &str| std::fs::write(layout.state().join(name), sample(name)).unwrap();
    let now = |name: &str| std::fs::read_to_string(layout.state().join(name)).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&samples)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "boot.toml",
            "counters.json",
            "deployment.origin",
            "downloaded.json",
            "etc-merged.json",
            "failed.json",
            "history.jsonl",
            "kargs.json",
            "running.json",
            "staged.json"
        ]
    );
    // Those of a record: `etc::merged` tests the other one.
    let of_record = ["deployment.origin", "etc-merged.json"];
    names
        .iter()
        .filter(|name| !of_record.iter().any(|own| name == own))
        .for_each(|name| put(name.to_str().unwrap()));

    let origin = Origin::parse(&sample("deployment.origin")).unwrap();
    assert_eq!(origin.to_string(), sample("deployment.origin"));
    assert!(origin.pinned && origin.etc_unprivileged && origin.generation == Some(7));

    let staged = Staged::load(layout).unwrap().unwrap();
    assert!(staged.merge_from == Some(id(0xab)) && staged.boot_id.is_some());
    staged.save(&RealFs, layout).unwrap();
    assert_eq!(now("staged.json"), sample("staged.json"));

    let running = Running::load(layout).unwrap().unwrap();
    assert_eq!(running, Running::new(id(0xab)));
    running.save(&RealFs, layout).unwrap();
    assert_eq!(now("running.json"), sample("running.json"));

    let downloaded = Downloaded::load(layout).unwrap().unwrap();
    assert!(downloaded.id == id(0xab) && downloaded.manifest != downloaded.top);
    downloaded.save(&RealFs, layout).unwrap();
    assert_eq!(now("downloaded.json"), sample("downloaded.json"));

    let failed = FailedDigests::load(layout).unwrap();
    assert_eq!(failed.iter().next().unwrap().why, "health checks");
    failed.save(&RealFs, layout).unwrap();
    assert_eq!(now("failed.json"), sample("failed.json"));

    let trial = Trial::load(layout).unwrap();
    assert_eq!(
        (trial.line.len(), trial.former.len(), trial.wanted.as_slice()),
        (5, 4, &["quiet".to_owned()][..])
    );
    trial.save(&RealFs, layout).unwrap();
    assert_eq!(now("kargs.json"), sample("kargs.json"));

    let history = History::load(layout).unwrap();
    assert_eq!((history.events.len(), history.unreadable), (2, 0));
    History::append(&RealFs, layout, &history.events[1]).unwrap();
    let last = sample("history.jsonl").lines().last().unwrap().to_owned() + "\n";
    assert_eq!(now("history.jsonl"), sample("history.jsonl") + &last);

    let host = HostArguments::load(layout).unwrap();
    assert_eq!(
        host.kernel_arguments,
        ["console=ttyS0,115200", "dyndbg=\"file a.c +p\""]
    );
    assert!(host.allow_missing_verity);
    host.save(&RealFs, layout).unwrap();
    assert_eq!(now("boot.toml"), sample("boot.toml"));

    let next = crate::signature::next_counter(&RealFs, &layout.state(), []).unwrap();
    assert_eq!((next.counter, next.warning), (42, None));
    assert_eq!(now("counters.json"), sample("counters.json").replace("41", "42"));
}
