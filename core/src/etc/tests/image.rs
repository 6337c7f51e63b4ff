//! The /etc of an image, as its tree has it.

use std::os::unix::fs::MetadataExt;

use super::*;

/// `etc` with inline and external content, a hard link, an attribute and a device.
const DUMP: &str = "/ 0 40755 2 0 0 0 1.0 - - -\n\
    /etc 0 40750 2 0 0 0 5.000000007 - - -\n\
    /etc/hostname 5 100644 2 0 0 0 2.0 - box\\nx -\n\
    /etc/hosts 5 100600 1 0 0 0 2.0 - hello - user.note=y\n\
    /etc/name 0 @120000 - - - - 0.0 /etc/hostname - -\n\
    /etc/null 0 20666 1 0 0 259 2.0 - - -\n\
    /etc/os-release 21 120777 1 0 0 0 3.0 ../usr/lib/os-release - -\n\
    /etc/services SIZE 100644 1 0 0 0 4.0 PATH - DIGEST\n\
    /usr 0 40755 2 0 0 0 1.0 - - -\n\
    /var 0 100644 1 0 0 0 1.0 - - -\n";

fn image_tree(content: &[u8]) -> crate::tree::Tree {
    let id = verity::hash(Algorithm::Sha256, content);
    let dump = DUMP.replace("SIZE", &content.len().to_string());
    let dump = dump.replace("PATH", &id.object_path()).replace("DIGEST", &id.to_hex());
    crate::image::dump::parse(dump.as_bytes()).unwrap()
}

#[test]
fn the_etc_of_an_image_is_written_and_compares_equal_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let content = b"ssh 22/tcp\n".repeat(1000);
    let tree = image_tree(&content);
    let open =
        |_: &crate::ids::ObjectId| -> Result<Box<dyn Read>> { Ok(Box::new(std::io::Cursor::new(content.clone()))) };
    let image = TreeSource::new(&tree, "etc", Algorithm::Sha256, &open).unwrap();
    let to = folder.path().join("etc");
    let report = write(&image, &to).unwrap();
    assert_eq!(report.nodes_skipped, [PathBuf::from("null")]);
    assert_eq!(std::fs::read(to.join("services")).unwrap(), content);
    assert_eq!(std::fs::read(to.join("hostname")).unwrap(), b"box\nx");
    assert_eq!(
        to.join("name").metadata().unwrap().ino(),
        to.join("hostname").metadata().unwrap().ino()
    );
    let top = to.metadata().unwrap();
    assert_eq!((top.mode() & 0o7777, top.mtime(), top.mtime_nsec()), (0o750, 5, 7));
    let written = FolderSource::scan(&to, Algorithm::Sha256).unwrap();
    let rules = Rules {
        ownership: report.complete(),
    };
    let changes = diff(image.listing(), written.listing(), rules);
    assert_eq!(changes, [], "what is never made was not removed by anybody");

    let missing = TreeSource::new(&tree, "opt", Algorithm::Sha256, &open).unwrap();
    assert_eq!(missing.listing(), &Listing::empty());
    let error = TreeSource::new(&tree, "var", Algorithm::Sha256, &open).unwrap_err();
    assert_eq!(error.to_string(), "var: it is not a folder");
}

#[test]
fn a_damaged_object_never_becomes_a_file_of_etc() {
    let folder = tempfile::tempdir().unwrap();
    let content = b"root:x:0:0\n".repeat(1000);
    let tree = image_tree(&content);
    for damage in ["flip", "truncate", "extend"] {
        let mut damaged = content.clone();
        match damage {
            "flip" => damaged[7000] ^= 1,
            "truncate" => damaged.truncate(10_000),
            _ => damaged.push(b'\n'),
        }
        let open =
            |_: &crate::ids::ObjectId| -> Result<Box<dyn Read>> { Ok(Box::new(std::io::Cursor::new(damaged.clone()))) };
        let image = TreeSource::new(&tree, "etc", Algorithm::Sha256, &open).unwrap();
        let error = write(&image, &folder.path().join(damage)).unwrap_err().to_string();
        assert!(error.contains("services") && error.contains("is damaged"), "{error}");
    }
}
