//! The kernel mounts our image of the real Debian, and every file is as the layers have it.

use std::path::{Path, PathBuf};

use crate::common::{Cfs, OsImage, is_root, reference, scratch, tool, walk};

/// Unmounts when dropped, whatever happened.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

fn mount(cfs: &Cfs, what: &str, at: &Path, more: &[&str]) -> Mounted {
    std::fs::create_dir_all(at).unwrap();
    let mut args = vec!["image", "mount", what, at.to_str().unwrap()];
    args.extend(more);
    cfs.run(args).expect(0);
    Mounted(at.to_path_buf())
}

#[test]
fn a_mounted_deployment_is_what_the_layers_hold() {
    if !is_root("mounting") {
        return;
    }
    let os = OsImage::get();
    for (version, tag) in [(1, "1-gzip"), (2, "2-zstd")] {
        let dir = scratch();
        let cfs = Cfs::new(dir.path());
        cfs.run(["switch", &os.layout(tag)]).expect(0);
        let extracted = dir.path().join("extracted");
        std::fs::create_dir(&extracted).unwrap();
        reference::extract(&os.layers(version), &extracted);
        let expected = walk::walk(&extracted);

        let id = cfs.entries()[0].digest().to_owned();
        let at = dir.path().join("mnt");
        let mounted = mount(&cfs, &id, &at, &["--verity", "off"]);
        let found = walk::walk(&at);
        assert!(found.len() > 5000);
        let differences = walk::differences(&found, &reference::transform(&expected, true));
        assert!(
            differences.is_empty(),
            "{} of version {version}:\n{}",
            differences.len(),
            differences[..differences.len().min(20)].join("\n")
        );
        assert!(tool("findmnt", ["--noheadings", "--output", "OPTIONS", at.to_str().unwrap()]).contains("ro"));
        drop(mounted);
    }
}

#[test]
fn a_mounted_container_image_keeps_boot() {
    if !is_root("mounting") {
        return;
    }
    let os = OsImage::get();
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = os.layout("2-gzip");
    cfs.run(["image", "pull", &layout]).expect(0);
    let extracted = dir.path().join("extracted");
    std::fs::create_dir(&extracted).unwrap();
    reference::extract(&os.layers(2), &extracted);
    let at = dir.path().join("mnt");
    let mounted = mount(&cfs, &layout, &at, &["--verity", "try"]);
    let differences = walk::differences(&walk::walk(&at), &reference::transform(&walk::walk(&extracted), false));
    assert!(
        differences.is_empty(),
        "{}:\n{}",
        differences.len(),
        differences[..differences.len().min(20)].join("\n")
    );
    drop(mounted);
}

#[test]
fn a_digest_that_does_not_fit_is_not_mounted() {
    if !is_root("mounting") {
        return;
    }
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["switch", &OsImage::get().layout("1-gzip")]).expect(0);
    let id = cfs.entries()[0].digest().to_owned();
    let at = dir.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let wrong = "0".repeat(64);
    let ran = cfs.run([
        "image",
        "mount",
        &id,
        at.to_str().unwrap(),
        "--digest",
        &wrong,
        "--verity",
        "off",
    ]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(std::fs::read_dir(&at).unwrap().next().is_none(), "nothing is mounted");
}

#[test]
fn an_image_file_wants_its_objects_and_a_folder_to_be_mounted_on_or_a_link_to_one() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (tree, image, objects, folder, link) = (at("tree"), at("image"), at("objects"), at("folder"), at("link"));
    for folder in [&tree, &folder] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(dir.path().join("tree/file"), "content\n".repeat(20)).unwrap();
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    let cfs = Cfs::new(dir.path());
    cfs.run(["image", "build", &tree, "-o", &image, "--digest-store", &objects])
        .expect(0);
    let refused = |args: &[&str], says: [&str; 2]| {
        let ran = cfs.run([&["image", "mount"], args].concat()).expect(2);
        assert!(says.iter().all(|text| ran.stderr.contains(text)), "{ran:?}");
    };
    refused(&[&image, &folder], [&image, "--digest-store"]);
    refused(&[&image, &image, "--digest-store", &objects], [&image, "no folder"]);
    let gone = at("gone");
    refused(&[&image, &gone, "--digest-store", &objects], [&gone, "no folder"]);
    if is_root("mounting") {
        cfs.run(["image", "mount", &image, &link, "--digest-store", &objects])
            .expect(0);
        let _mounted = Mounted(folder.clone().into());
        let content = std::fs::read_to_string(Path::new(&folder).join("file")).unwrap();
        assert_eq!(content, "content\n".repeat(20));
    }
}
