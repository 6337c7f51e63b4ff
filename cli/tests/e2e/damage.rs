//! Names, links, records and entries that were lost or moved: what is not what it was is neither believed nor removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cfs_core::image::{Versions, writer};
use cfs_core::pull::{self, Variant};
use cfs_core::splitstream::{ContentType, Part, Reader, Writer};
use cfs_core::store::{IMAGE_V1, Store};

use crate::commands::{publish, updated};
use crate::common::layout::small;
use crate::common::{Cfs, kernels, list, name, scratch};

/// Found by `fsck`, mended by `fsck --repair`, and then sound.
fn found_and_mended(cfs: &Cfs, what: &str) {
    let found = cfs.run(["fsck"]).expect(1).stdout;
    assert!(found.contains(what), "{what}: {found}");
    cfs.run(["fsck", "--repair"]).expect(0);
    cfs.fsck();
}

/// The links in a folder of the repository whose names begin like this.
fn links(cfs: &Cfs, folder: &str, prefix: &str) -> Vec<PathBuf> {
    let all = list(&cfs.sysroot().join("composefs").join(folder));
    all.into_iter().filter(|path| name(path).starts_with(prefix)).collect()
}

fn swap(one: &Path, other: &Path) {
    let (a, b) = (fs::read_link(one).unwrap(), fs::read_link(other).unwrap());
    for (path, target) in [(one, b), (other, a)] {
        fs::remove_file(path).unwrap();
        symlink(target, path).unwrap();
    }
}

#[test]
fn a_damaged_kernel_does_not_come_to_the_boot_partition() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let image = publish(dir.path(), 3);
    cfs.run(["image", "pull", &image]).expect(0);
    let folders = list(&cfs.sysroot().join("composefs/objects"));
    let objects = folders.iter().flat_map(|folder| list(folder));
    let is_kernel = |path: &PathBuf| fs::read(path).unwrap().starts_with(b"kernel kernel-3");
    let kernel = objects.into_iter().find(is_kernel).unwrap();
    let content = fs::read(&kernel).unwrap();
    fs::remove_file(&kernel).unwrap();
    fs::write(&kernel, [&content[..], b"x"].concat()).unwrap();
    let entries = cfs.entries().len();
    let said = cfs.run(["switch", &image]).expect(1).stderr;
    assert!(said.contains("is damaged") && said.contains("fsck --repair"), "{said}");
    assert_eq!(cfs.entries().len(), entries);
    cfs.run(["fsck", "--repair"]).expect(0);
    cfs.run(["switch", &image]).expect(0);
    cfs.fsck();
}

#[test]
fn links_of_layers_that_were_swapped_are_found_and_not_believed() {
    let dir = scratch();
    let cfs = updated(dir.path());
    // Of each image one; the base of both versions differs.
    let layers = links(&cfs, "streams", "oci-layer-");
    assert!(layers.len() >= 4, "{layers:?}");
    swap(&layers[0], &layers[1]);
    // An image that shares its layers with version 2 and is another one: they are fetched again.
    let again = small(2, "kernel-2", 4, 3000).created("2031-01-01T00:00:00Z").finish();
    let image = again.layout(&dir.path().join("oci"), "again");
    let wanted = cfs.run(["image", "digest", "--boot", &image]).expect(0).stdout;
    swap(&layers[2], &layers[3]);
    cfs.run(["switch", &image]).expect(0);
    assert!(cfs.deployments().contains(&wanted.trim().to_owned()), "{wanted}");
    cfs.run(["fsck", "--repair"]).expect(0);
    cfs.fsck();
    swap(&layers[0], &layers[1]);
    found_and_mended(&cfs, "it leads to another layer");
}

#[test]
fn names_that_keep_a_deployment_are_missed_and_given_again() {
    let dir = scratch();
    let cfs = updated(dir.path());
    for (folder, prefix) in [
        ("streams/refs/oci", "cfs-update%2F"),
        ("images/refs/cfs-update", ""),
        ("streams", "oci-layer-"),
        ("streams", "oci-manifest-"),
    ] {
        for link in links(&cfs, folder, prefix) {
            fs::remove_file(&link).unwrap();
            found_and_mended(&cfs, "");
            assert!(link.symlink_metadata().is_ok(), "{}", link.display());
        }
    }
    let tags = links(&cfs, "streams/refs/oci", "cfs-update%2F");
    swap(&tags[0], &tags[1]);
    found_and_mended(&cfs, "leads elsewhere");
    fs::remove_file(&tags[0]).unwrap();
    symlink("/dev/zero", &tags[0]).unwrap();
    assert!(
        cfs.run(["fsck"])
            .expect(1)
            .stdout
            .contains("nothing in this repository")
    );
}

#[test]
fn what_a_deployment_was_made_of_stays_where_its_name_was_lost() {
    let dir = scratch();
    let cfs = updated(dir.path());
    for tag in links(&cfs, "streams/refs/oci", "cfs-update%2F") {
        fs::remove_file(tag).unwrap();
    }
    let layers = links(&cfs, "streams", "oci-layer-");
    cfs.run(["gc"]).expect(0);
    assert_eq!(links(&cfs, "streams", "oci-layer-"), layers);
}

#[test]
fn a_note_of_a_download_that_cannot_be_read_keeps_the_download_and_is_found() {
    let dir = scratch();
    let cfs = updated(dir.path());
    publish(dir.path(), 3);
    cfs.run(["upgrade", "--download-only"]).expect(0);
    let note = cfs.sysroot().join("state/cfs-update/downloaded.json");
    assert!(note.exists());
    let layers = links(&cfs, "streams", "oci-layer-");
    fs::write(&note, "{").unwrap();
    cfs.run(["gc"]).expect(0);
    assert_eq!(links(&cfs, "streams", "oci-layer-"), layers);
    assert!(cfs.run(["fsck"]).expect(1).stdout.contains("downloaded.json"));
}

#[test]
fn gc_removes_no_deployment_that_lost_its_boot_entry() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let deployments = cfs.deployments();
    let entries = list(&cfs.sysroot().join("boot/loader/entries"));
    fs::remove_file(&entries[0]).unwrap();
    cfs.run(["gc"]).expect(0);
    assert_eq!(cfs.deployments(), deployments);
    assert!(
        cfs.run(["fsck"])
            .expect(1)
            .stdout
            .contains("has no boot entry any more")
    );
    fs::remove_file(&entries[1]).unwrap();
    let said = cfs.run(["gc"]).expect(1).stderr;
    assert!(said.contains("has no entry of this system"), "{said}");
    assert_eq!(cfs.deployments(), deployments);
}

#[test]
fn what_boots_next_is_what_the_boot_loader_takes_though_its_seal_is_broken_and_rollback_leads_away_from_it() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let next = cfs.status()["status"]["staged"]["cfsUpdate"]["deployment"].clone();
    let next = next.as_str().unwrap();
    fs::write(cfs.sysroot().join("state/deploy").join(next).join("seal.json"), "").unwrap();
    let staged = cfs.status()["status"]["staged"]["cfsUpdate"]["deployment"].clone();
    assert_eq!(staged, next);
    cfs.run(["rollback"]).expect(0);
    let newest = cfs.entries().into_iter().max_by_key(crate::common::Entry::version);
    assert!(!newest.unwrap().digest().contains(next));
}

#[test]
fn a_damaged_meta_json_and_a_file_in_the_place_of_objects_are_named_and_mended() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let meta = cfs.sysroot().join("composefs/meta.json");
    let whole = fs::read(&meta).unwrap();
    fs::remove_file(&meta).unwrap();
    fs::write(&meta, "{").unwrap();
    for command in ["status", "fsck", "gc"] {
        let said = cfs.run([command]).expect(1).stderr;
        assert!(
            said.contains("meta.json is damaged") && said.contains("`cfs-update fsck --repair`"),
            "{command}: {said}"
        );
    }
    cfs.run(["fsck", "--repair"]).expect(0);
    assert_eq!(fs::read(&meta).unwrap(), whole);
    cfs.fsck();
    let folder = list(&cfs.sysroot().join("composefs/objects")).pop().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    for command in ["gc", "fsck"] {
        let ran = cfs.run([command]).expect(1);
        let said = ran.stdout + &ran.stderr;
        assert!(
            said.contains(&name(&folder)) && said.contains("fsck --repair"),
            "{command}: {said}"
        );
    }
    cfs.run(["fsck", "--repair"]).expect(0);
    cfs.fsck();
}

/// Makes of a pulled image what an earlier cfs-update made where a file was the first chunk of a larger one: a file of
/// the layer is an object that has more than the file, and an image was made of that.
fn lead_to_a_larger_file(cfs: &Cfs, reference: &str) {
    let store = Store::open(&cfs.sysroot().join("composefs")).unwrap();
    let manifest = store.tags().unwrap()[reference];
    let (stored, config) = (
        store.manifest(&manifest).unwrap().unwrap(),
        store.config_of(&manifest).unwrap().unwrap(),
    );
    let layers: Vec<_> = config.layers.iter().copied().collect();
    let link = store.path().join(format!("streams/oci-layer-{}", layers[0]));
    let opened = fs::File::open(&link).unwrap();
    let mut reader = Reader::new(opened, store.algorithm()).unwrap();
    let larger = store.put(&[7; 50_000]).unwrap();
    let content = std::io::Cursor::new(Vec::new());
    let mut stream = Writer::new(content, store.algorithm(), ContentType::LAYER).unwrap();
    let mut replaced = false;
    while let Some(part) = reader.part().unwrap() {
        match part {
            Part::Literal(bytes) => stream.literal(bytes).unwrap(),
            Part::Object(id) => {
                let size = fs::metadata(store.object_path(&id)).unwrap().len();
                let id = if std::mem::replace(&mut replaced, true) {
                    id
                } else {
                    larger
                };
                stream.object(&id, size).unwrap();
            }
        }
    }
    assert!(replaced);
    let stream = store.put(&stream.finish().unwrap().into_inner()).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(format!("../objects/{}", stream.object_path()), &link).unwrap();
    let mut tree = pull::merge(&store, &layers).unwrap();
    pull::transform(&store, &mut tree, Variant::Container).unwrap();
    let image = store
        .put_image_pieces(|sink| writer::write(&tree, Versions::V1, sink))
        .unwrap();
    let images = [(IMAGE_V1.to_owned(), image)].into();
    let config = store.put_config(&config.bytes, &layers, &images).unwrap();
    store.put_manifest(&stored.bytes, &config, &layers).unwrap();
    store.publish().unwrap();
}

#[test]
fn a_file_that_is_another_larger_object_is_named_and_fsck_repair_fetches_its_layer_again() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let reference = publish(dir.path(), 1);
    cfs.run(["image", "pull", &reference]).expect(0);
    let dump = || cfs.run(["image", "dump", &reference]).expect(0).stdout;
    let right = dump();
    lead_to_a_larger_file(&cfs, &reference);
    assert_ne!(dump(), right);
    let found = cfs.run(["fsck"]).expect(1).stdout;
    assert!(
        found.contains("which it leads to, has others") && found.contains("fsck --repair"),
        "{found}"
    );
    assert!(found.contains("a file of the image is another one"), "{found}");
    let repaired = cfs.run(["fsck", "--repair"]).expect(0);
    assert!(repaired.stdout.contains("Mended oci:"), "{repaired:?}");
    assert_eq!(dump(), right);
    cfs.fsck();
}

/// A deployment that was made of a wrong layer, which is right again: with its image's reference, the id that it
/// should have, and its own.
fn deployed_wrong(dir: &Path) -> (Cfs, String, String, String) {
    let cfs = Cfs::new(dir);
    let reference = publish(dir, 1);
    let right = cfs.run(["image", "digest", "--boot", &reference]).expect(0).stdout;
    let right = right.trim().to_owned();
    cfs.run(["image", "pull", &reference]).expect(0);
    lead_to_a_larger_file(&cfs, &reference);
    cfs.run(["switch", &reference]).expect(0);
    cfs.run(["image", "rm", &reference]).expect(0);
    let wrong = cfs.deployments().remove(0);
    assert_ne!(wrong, right);
    let said = cfs.run(["fsck", "--repair"]).expect(1);
    for said in [said.stdout, said.stderr] {
        assert!(
            said.contains(&wrong[..12]) && said.contains(&right[..12]) && said.contains("`cfs-update upgrade`"),
            "{said}"
        );
    }
    (cfs, reference, right, wrong)
}

#[test]
fn a_deployment_that_holds_other_files_than_its_image_is_deployed_anew_by_upgrade_once_its_layer_is_right() {
    let dir = scratch();
    let (cfs, _, right, wrong) = deployed_wrong(dir.path());
    cfs.run(["gc"]).expect(0);
    let problems = cfs.status()["status"]["staged"]["cfsUpdate"]["problems"].clone();
    let problems = problems.as_array().unwrap();
    assert!(
        problems.len() == 1 && problems[0].as_str().unwrap().contains(&right[..12]),
        "{problems:?}"
    );
    cfs.run(["upgrade", "--check"]).expect(0);
    let planned = cfs.run(["upgrade", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(planned["changes"]["deployment"], right);
    let upgraded = cfs.run(["upgrade", "--json"]).expect(0).json();
    assert_eq!(upgraded["deployment"], right);
    assert_eq!(cfs.entries()[0].digest(), right);
    for nothing in [&["upgrade"][..], &["upgrade", "--check"], &["upgrade", "--dry-run"]] {
        cfs.run(nothing).expect(77);
    }

    assert!(cfs.run(["fsck"]).expect(1).stdout.contains(&wrong[..12]));
    cfs.run(["delete", &wrong]).expect(0);
    cfs.fsck();
}

#[test]
fn a_deployment_that_holds_other_files_than_its_image_is_deployed_anew_by_switch_to_the_same_image() {
    let dir = scratch();
    let (cfs, reference, right, _) = deployed_wrong(dir.path());
    cfs.run(["switch", &reference]).expect(0);
    assert_eq!(cfs.entries()[0].digest(), right);
}

#[test]
fn what_was_downloaded_with_other_files_than_its_image_is_downloaded_anew_once_its_layer_is_right() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let reference = publish(dir.path(), 3);
    let right = cfs.run(["image", "digest", "--boot", &reference]).expect(0).stdout;
    cfs.run(["image", "pull", &reference]).expect(0);
    lead_to_a_larger_file(&cfs, &reference);
    cfs.run(["upgrade", "--download-only"]).expect(0);
    let said = cfs.run(["fsck", "--repair"]).expect(1).stderr;
    assert!(said.contains("`cfs-update upgrade`"), "{said}");
    cfs.run(["upgrade", "--download-only"]).expect(0);
    cfs.fsck();
    let taken = cfs.run(["upgrade", "--from-downloaded", "--json"]).expect(0).json();
    assert_eq!(taken["deployment"], right.trim());
}

#[test]
fn a_kernel_that_was_cut_short_is_shown_without_reading_it_and_upgrade_writes_it_anew() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let next = cfs.entries()[0].digest().to_owned();
    let [linux, initrd] = kernels::files_of(cfs.sysroot(), &next);
    let problems = || cfs.status()["status"]["staged"]["cfsUpdate"]["problems"].to_string();
    let cut = |file: &Path| {
        let size = fs::metadata(file).unwrap().len();
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_len(size - 1).unwrap();
        format!("has {} bytes and not {size}", size - 1)
    };
    for file in [&linux, &initrd] {
        cfs.run(["upgrade"]).expect(77);
        assert_eq!(problems(), "[]");
        let (told, said) = (cut(file), problems());
        assert!(said.contains(&told) && said.contains("fsck --repair"), "{said}");
        cfs.run(["upgrade", "--check"]).expect(0);
        cfs.run(["upgrade"]).expect(0);
        assert_eq!(cfs.entries()[0].digest(), next);
        cfs.fsck();
    }

    // A record of an earlier version says no sizes.
    let origin = cfs.sysroot().join(format!("state/deploy/{next}/{next}.origin"));
    let text = fs::read_to_string(&origin).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("kernel_sizes")).collect();
    assert_eq!(lines.len() + 1, text.lines().count());
    fs::write(&origin, lines.join("\n") + "\n").unwrap();
    cut(&linux);
    assert_eq!(problems(), "[]");
    assert!(cfs.run(["fsck"]).expect(1).stdout.contains("not what it was"));
    cfs.run(["fsck", "--repair"]).expect(0);
    cfs.fsck();
}
