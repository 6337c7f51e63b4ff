//! Mutated dumps and images: refused or understood, never a panic. The properties are those of the fuzz targets.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod properties;

use std::path::Path;

use cfs_core::image::{Versions, dump, writer};
use proptest::prelude::*;

fn dumps() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/mkcomposefs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut dumps: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "dump")).collect();
    dumps.sort();
    dumps.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let start = b"/ 0 40755 2 0 0 0 1.0 - - -\n";
    let (mut given, mut rest) = (0, &start[..]);
    let refusal = dump::parse_pieces(0, &mut |buffer| {
        let count = if rest.is_empty() { buffer.len() } else { rest.len() };
        match rest.is_empty() {
            true => buffer.fill(b'x'),
            false => buffer[..count].copy_from_slice(rest),
        }
        rest = b"";
        given += count;
        assert!(given <= 65 << 20, "{given}");
        Ok(count)
    });
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("line 2") && refusal.contains("64 MiB"), "{refusal}");
    let whole = [&start[..], &vec![b'x'; 64 << 20]].concat();
    assert_eq!(dump::parse(&whole).unwrap_err().to_string(), refusal);
}

/// A change of bytes: where (as a part of the length), and what.
#[derive(Clone, Debug)]
enum Change {
    Set(f64, u8),
    Flip(f64, u8),
    Word(f64, u32),
    Copy(f64, f64, u16),
    Cut(f64),
    Remove(f64, u8),
    Insert(f64, &'static str),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0.0..1.0_f64;
    let piece = prop::sample::select(vec![
        " ",
        "\n",
        "/",
        "\\x00",
        "\\",
        "=",
        "-",
        "@",
        "0",
        "4294967296",
        "-1",
        "18446744073709551616",
        "..",
        "ff",
        "120777",
        "20000",
        "trusted.overlay.",
        "user.overlay.whiteouts=",
        "\n/x 0 @100644 1 0 0 0 0.0 /x - -\n",
    ]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(a, b)| Change::Set(a, b)),
        (at(), 0..8_u8).prop_map(|(a, b)| Change::Flip(a, b)),
        (at(), prop_oneof![any::<u32>(), 0..300_u32, Just(u32::MAX)]).prop_map(|(a, w)| Change::Word(a, w)),
        (at(), at(), 1..200_u16).prop_map(|(a, b, n)| Change::Copy(a, b, n)),
        at().prop_map(Change::Cut),
        (at(), 1..20_u8).prop_map(|(a, n)| Change::Remove(a, n)),
        (at(), piece).prop_map(|(a, p)| Change::Insert(a, p)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change, keep_length: bool) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = |part: f64| (part * bytes.len() as f64) as usize;
    match change {
        _ if bytes.is_empty() => {}
        Change::Set(a, value) => {
            let a = at(*a);
            bytes[a] = *value;
        }
        Change::Flip(a, bit) => {
            let a = at(*a);
            bytes[a] ^= 1 << bit;
        }
        Change::Word(a, word) => {
            let a = at(*a) / 4 * 4;
            if let Some(there) = bytes.get_mut(a..a + 4) {
                there.copy_from_slice(&word.to_le_bytes());
            }
        }
        Change::Copy(a, b, n) => {
            let (a, b) = (at(*a), at(*b));
            let n = usize::from(*n).min(bytes.len() - a.max(b));
            bytes.copy_within(a..a + n, b);
        }
        Change::Cut(a) if !keep_length => bytes.truncate(at(*a)),
        Change::Remove(a, n) if !keep_length => {
            let a = at(*a);
            bytes.drain(a..(a + usize::from(*n)).min(bytes.len()));
        }
        Change::Insert(a, text) if !keep_length => {
            let a = at(*a);
            bytes.splice(a..a, text.bytes());
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_dump_is_refused_or_makes_an_image_that_reads_back(
        which in 0..7_usize,
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let mut text = dumps().swap_remove(which);
        for change in &changes {
            apply(&mut text, change, false);
        }
        properties::any_dump(&text);
    }

    #[test]
    fn a_changed_table_of_contents_is_refused_or_true(
        changes in prop::collection::vec(change(), 1..6),
        keep_length: bool,
    ) {
        let mut bytes = include_bytes!("../fuzz/seeds/chunked/two-files").to_vec();
        properties::any_table(&bytes);
        for change in &changes {
            apply(&mut bytes, change, keep_length);
        }
        properties::any_table(&bytes);
    }

    #[test]
    fn a_changed_image_is_refused_or_understood(
        which in 0..7_usize,
        changes in prop::collection::vec(change(), 1..8),
        keep_length: bool,
    ) {
        let tree = dump::parse(&dumps().swap_remove(which)).unwrap();
        let mut image = writer::build(&tree, Versions::V1).unwrap();
        for change in &changes {
            apply(&mut image, change, keep_length);
        }
        properties::any_image(&image);
    }
}

#[test]
fn every_image_cut_short_is_refused() {
    let tree = dump::parse(b"/ 0 40755 2 0 0 0 1.0 - - -\n/f 5 100644 1 0 0 0 0.0 - hello - user.a=b\n").unwrap();
    let image = writer::build(&tree, Versions::V1).unwrap();
    let data = image.iter().rposition(|b| *b != 0).unwrap();
    for end in 0..=data {
        assert!(
            cfs_core::image::reader::read(&image[..end]).is_err(),
            "{end} of {} bytes",
            image.len()
        );
    }
}

/// Found by the fuzz target: such an inode is long only for a size that it does not have.
#[test]
fn a_socket_of_terabytes_makes_the_same_image_again() {
    properties::any_dump(
        b"/ 0 40755 2 0 0 0 6.0 - - -\n/s 4398046511104 140604 1 0 0 0 6.0 - - -\n/p 7 10600 1 0 0 0 6.0 - - -\n",
    );
}
