//! Images are bit for bit those of C mkcomposefs 1.0.8: golden digests for three version settings.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::io::Read;
use std::path::{Path, PathBuf};

use cfs_core::Error;
use cfs_core::ids::Algorithm;
use cfs_core::image::{self, Versions, dump, reader, writer};
use cfs_core::tree::Tree;

const SETTINGS: [Versions; 3] = [
    Versions { min: 0, max: 1 },
    Versions { min: 0, max: 0 },
    Versions { min: 1, max: 1 },
];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Checks every row of a table: dump, digest or `FAIL` for each setting, what it covers. Returns how many.
fn check_table(folder: &Path, table: &str) -> usize {
    let table = std::fs::read_to_string(folder.join(table)).unwrap();
    let mut rows = 0;
    for row in table.lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let text = read(&folder.join(columns[0]));
        let tree = dump::parse(&text);
        check_read_in_pieces(&text, &tree, columns[0]);
        for (versions, wanted) in SETTINGS.into_iter().zip(&columns[1..4]) {
            let got = match &tree {
                Err(_) => "FAIL".to_owned(),
                Ok(tree) => {
                    let image = writer::build(tree, versions).unwrap();
                    check_reader(tree, &image, versions, columns[0]);
                    check_pieces(tree, &image, versions, columns[0]);
                    if versions == Versions::V1 {
                        check_part(&image, columns[0]);
                    }
                    image::digest(&image, Algorithm::Sha256).to_hex()
                }
            };
            assert_eq!(got, *wanted, "{} with {versions:?}", columns[0]);
        }
        rows += 1;
    }
    rows
}

fn text(tree: &Tree) -> String {
    let mut out = Vec::new();
    dump::write(tree, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// A dump that comes in pieces of any size is the same tree, or refused at the same line for the same reason.
fn check_read_in_pieces(whole: &[u8], tree: &cfs_core::Result<Tree>, name: &str) {
    for size in [1 + whole.len() / 3, 4096, 7] {
        let mut rest = whole;
        let got = dump::parse_pieces(0, &mut |buffer| {
            let count = size.min(buffer.len()).min(rest.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            Ok(count)
        });
        match (got, tree) {
            (Ok(got), Ok(tree)) => assert_eq!(text(&got), text(tree), "{name} in pieces of {size}"),
            (Err(got), Err(wanted)) => assert_eq!(got.to_string(), wanted.to_string(), "{name} in pieces of {size}"),
            _ => panic!("{name} in pieces of {size}"),
        }
    }
}

/// What is read back from an image is the tree that it was made of, and makes the same image again.
fn check_reader(tree: &Tree, image: &[u8], versions: Versions, name: &str) {
    let again = reader::read(image).unwrap();
    assert_eq!(
        writer::build(&again, versions).unwrap(),
        image,
        "{name} read back with {versions:?}"
    );
    // What an image does not keep: the size that a dump says of devices and whiteouts.
    let without_size = |text: String| -> Vec<String> {
        text.lines()
            .map(|line| {
                let mut fields: Vec<&str> = line.split(' ').collect();
                if fields[2].trim_start_matches('@').starts_with('2') && fields[2].trim_start_matches('@').len() == 5 {
                    fields[1] = "0";
                }
                fields.join(" ")
            })
            .collect()
    };
    for (got, wanted) in without_size(text(&again)).iter().zip(without_size(text(tree))) {
        assert_eq!(*got, wanted, "{name} read back with {versions:?}");
    }
    let parsed = dump::parse(text(&again).as_bytes()).unwrap();
    assert_eq!(text(&parsed), text(&again), "{name}: what is printed reads back");
}

/// What is given to a sink in pieces is the same image; a sink that fails gets nothing more.
fn check_pieces(tree: &Tree, image: &[u8], versions: Versions, name: &str) {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut keep = |piece: &[u8]| {
        pieces.push(piece.to_vec());
        Ok(())
    };
    writer::write(tree, versions, &mut keep).unwrap();
    assert!(pieces.concat() == image, "{name} in pieces with {versions:?}");
    assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= 1 << 20));
    let mut asked = 0;
    let mut refuse = |_: &[u8]| {
        asked += 1;
        Err(Error::Usage("no more".into()))
    };
    assert!(writer::write(tree, versions, &mut refuse).is_err());
    assert_eq!(asked, 1);
}

/// The part of an image below a folder is what the whole has there.
fn check_part(image: &[u8], name: &str) {
    let whole = reader::read(image).unwrap();
    for child in whole.root().children() {
        let part = reader::read_part(image, child.name).unwrap();
        let names: Vec<_> = part.root().children().map(|c| c.name.to_vec()).collect();
        assert_eq!(names, [child.name], "{name}");
        let lines = |tree: &Tree| -> Vec<String> {
            let below = [b"/", child.name].concat();
            let found = tree
                .walk()
                .filter(|found| found.path == below || found.path.starts_with(&[&below[..], b"/"].concat()));
            found
                .map(|found| format!("{:?} {:?} {}", found.path, found.inode.kind(), found.inode.mode()))
                .collect()
        };
        assert_eq!(lines(&part), lines(&whole), "{name}");
    }
}

fn read(path: &Path) -> Vec<u8> {
    let mut content = std::fs::read(path).unwrap();
    if path.extension().is_some_and(|e| e == "gz") {
        let packed = std::mem::take(&mut content);
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut content)
            .unwrap();
    }
    content
}

#[test]
fn images_of_our_own_dumps_have_the_digests_of_mkcomposefs() {
    assert_eq!(check_table(&project().join("testdata/mkcomposefs"), "digests.tsv"), 10);
}

/// The C project's own dumps are not copied here; they are where `CFS_VECTORS` or `../shared/vectors` has them.
#[test]
fn images_of_the_peers_dumps_have_the_digests_of_mkcomposefs_where_these_are_here() {
    let folder = std::env::var_os("CFS_VECTORS").map_or_else(|| project().join("../shared/vectors"), PathBuf::from);
    let folder = [folder, project().join("../../shared/vectors")];
    let folder = folder.into_iter().find(|f| f.join("mkcomposefs.tsv").exists());
    match folder {
        Some(folder) => assert!(check_table(&folder, "mkcomposefs.tsv") > 7),
        None => println!("not run: no peer vectors; set CFS_VECTORS to their folder"),
    }
}
