//! Tables and tar-splits that lie: bytes are lost by them, and nothing else.

use super::*;

#[test]
fn tables_that_lie_cost_bytes_and_nothing_else() {
    let original = files(&[]);
    let v2 = files(&[5]);
    let swap = |table: &mut serde_json::Value| {
        // Two files of the old version say that they are each other.
        let entries = table["entries"].as_array_mut().unwrap();
        let (a, b) = (entries[3]["digest"].clone(), entries[7]["digest"].clone());
        (entries[3]["digest"], entries[7]["digest"]) = (b, a);
    };
    let other_digest = |table: &mut serde_json::Value| table["entries"][3]["digest"] = json!(support::sha256(b"x"));
    let overlap = |table: &mut serde_json::Value| table["entries"][4]["offset"] = json!(1);
    let huge = |table: &mut serde_json::Value| table["entries"][3]["size"] = json!(u64::MAX);
    let negative = |table: &mut serde_json::Value| table["entries"][3]["offset"] = json!(-1);
    let bomb = |table: &mut serde_json::Value| table["entries"][3]["size"] = json!(1u64 << 50);
    let fewer = |table: &mut serde_json::Value| drop(table["entries"].as_array_mut().unwrap().pop());
    type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
    let tables: [(&str, Change<'_>); 7] = [
        ("swapped", &swap),
        ("other digest", &other_digest),
        ("overlap", &overlap),
        ("huge", &huge),
        ("negative", &negative),
        ("bomb", &bomb),
        ("fewer", &fewer),
    ];
    for (what, table) in tables {
        for first in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let lying = Recipe { table, ..FAIR };
            let old = layer_of(if first { &lying } else { &FAIR }, &original);
            let new = layer_of(if first { &FAIR } else { &lying }, &v2);
            let registry = Registry::start(&[&old]);
            pull(&store, &registry).unwrap();
            registry.serve(&[&new], Ranges::Several);
            pull(&store, &registry).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(rebuilt(&store, &old) && rebuilt(&store, &new), "{what}, {first}");
            // The next update is right again, and a small one.
            let third = layer_of(&FAIR, &files(&[5, 9]));
            registry.serve(&[&third], Ranges::Several);
            pull(&store, &registry).unwrap();
            assert!(rebuilt(&store, &third), "{what}, {first}");
        }
    }
}

#[test]
fn a_table_or_tar_split_with_another_digest_or_size_is_not_believed() {
    let v1 = version(&[]);
    type Change<'a> = &'a dyn Fn(&mut std::collections::BTreeMap<String, String>);
    let set = |key: &'static str, value: String| {
        move |annotations: &mut std::collections::BTreeMap<String, String>| {
            annotations.insert(format!("io.github.containers.zstd-chunked.{key}"), value.clone());
        }
    };
    let wrong = set("manifest-checksum", support::sha256(b"no"));
    let short = |annotations: &mut std::collections::BTreeMap<String, String>| {
        let position = annotations
            .get_mut("io.github.containers.zstd-chunked.manifest-position")
            .unwrap();
        let parts: Vec<&str> = position.split(':').collect();
        *position = format!("{}:{}:100:1", parts[0], parts[1]);
    };
    let elsewhere = set("tarsplit-position", "100:200:3000".into());
    let raw = |split: &mut Vec<serde_json::Value>| split[0]["payload"] = json!("AAAA");
    let longer = |split: &mut Vec<serde_json::Value>| split.push(json!({"type": 1, "size": 5}));
    let none = |_: &mut Vec<serde_json::Value>| {};
    let keep = |_: &mut std::collections::BTreeMap<String, String>| {};
    type Split<'a> = &'a dyn Fn(&mut Vec<serde_json::Value>);
    let cases: [(&str, Change<'_>, Split<'_>); 5] = [
        ("checksum", &wrong, &none),
        ("bomb", &short, &none),
        ("elsewhere", &elsewhere, &none),
        ("other header", &keep, &raw),
        ("more files", &keep, &longer),
    ];
    for (what, annotations, tar_split) in cases {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let registry = Registry::start(&[&v1]);
        pull(&store, &registry).unwrap();
        let recipe = Recipe {
            annotations,
            tar_split,
            ..FAIR
        };
        let v2 = layer_of(&recipe, &files(&[8]));
        registry.serve(&[&v2], Ranges::Several);
        let told = pull(&store, &registry).unwrap();
        assert!(fell_back(&told), "{what}: {told:?}");
        assert!(rebuilt(&store, &v2), "{what}");
    }
}
