//! What is known of what was changed after a merge.

use super::*;

#[test]
fn what_was_changed_since_a_merge_is_known_and_what_arrived_all_the_same_is_not_lacking() {
    let there = Memory::new()
        .file("a", "1")
        .file("b", "1")
        .file("c", "1")
        .dir("d")
        .file(".updated", "");
    let made = Memory::new().file("a", "image's").file("b", "1");
    let from = verity::hash(Algorithm::Sha256, b"from");
    let note = Merged::new(from, &there.listing, &made.listing);
    assert_eq!(note.since(&there.listing), []);
    assert!(note.made(&made.listing) && !note.made(&there.listing));
    let touched = made.clone().meta("a", |meta| meta.mtime.sec += 1);
    assert!(note.made(&touched.listing), "times are no change");
    let other = Merged::new(from, &made.listing, &there.listing);
    let both = note.clone().or(&other);
    assert!(both.made(&made.listing) && both.made(&there.listing));

    let mut now = Memory::new()
        .file("a", "2")
        .file("b", "1")
        .file("e", "1")
        .file("f", "1")
        .file(".updated", "x")
        .meta("b", |meta| meta.mode = 0o600);
    now.add("run.socket", Item::Socket, 0o600);
    let changes = note.since(&now.listing);
    let path = |(path, change): &(PathBuf, Change)| (path.to_str().unwrap().to_owned(), *change);
    let expected = [
        ("a", Change::Changed),
        ("b", Change::Changed),
        ("c", Change::Removed),
        ("d", Change::Removed),
        ("e", Change::Added),
        ("f", Change::Added),
        ("run.socket", Change::Added),
    ];
    let shown: Vec<_> = changes.iter().map(path).collect();
    assert_eq!(shown, expected.map(|(path, change)| (path.to_owned(), change)));
    let here = Memory::new()
        .file("a", "2")
        .file("b", "1")
        .file("c", "1")
        .file("e", "2");
    let lacking = lacking(changes, &now.listing, &here.listing, Rules::STRICT);
    let lacking: Vec<_> = lacking.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(lacking, ["b", "c", "e", "f"]);
}
