//! Content that is not what it says, or is not there.

use super::*;
use crate::common::layout::{Layer, blob_path, compress};
use crate::common::registry::Registry;

/// Switches to what is broken, then to what is sound under the same name.
#[track_caller]
fn refused_then_mended(broken: Image, sound: Image, words: &[&str]) {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let reference = broken.finish().layout(&layout, "os");
    let ran = cfs.run(["switch", &reference]);
    assert_ne!(ran.code, 0, "{ran:?}");
    says(&ran, words);
    nothing_half_done(&cfs);
    let reference = sound.finish().layout(&layout, "os");
    cfs.run(["switch", &reference]).expect(0);
    assert_eq!(cfs.deployments().len(), 1);
    cfs.fsck();
}

fn app() -> Layer {
    Layer::default()
        .dirs(&["usr", "usr/bin"])
        .file("usr/bin/app", noise(7, 300_000))
}

#[test]
fn a_truncated_gzip_layer_is_refused_by_name() {
    let whole = compress(&app().finish(), How::Gzip);
    let cut = whole[..whole.len() / 2].to_vec();
    let named = digest(&app().finish());
    let broken = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .raw_layer(cut, How::Gzip, digest(&app().finish()));
    refused_then_mended(broken, small(1, "a", 3, 10_000), &[&named[7..19]]);
}

#[test]
fn a_truncated_zstd_layer_is_refused_by_name() {
    let whole = compress(&app().finish(), How::Zstd);
    let cut = whole[..whole.len() / 2].to_vec();
    let named = digest(&app().finish());
    let broken = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .raw_layer(cut, How::Zstd, digest(&app().finish()));
    refused_then_mended(broken, small(1, "a", 3, 10_000), &[&named[7..19]]);
}

#[test]
fn a_layer_that_is_not_its_diff_id_is_refused_by_name() {
    let claimed = digest(b"something else");
    let blob = compress(&app().finish(), How::Zstd);
    let broken = Image::new("1")
        .layer(base("1", "a"), How::Gzip)
        .raw_layer(blob, How::Zstd, claimed.clone());
    refused_then_mended(broken, small(1, "a", 3, 10_000), &[&claimed[7..19]]);
}

#[test]
fn hostile_names_are_refused_or_confined() {
    for name in [&b"../../outside"[..], b"usr/../../outside", b"/../outside", b".."] {
        let dir = scratch();
        let cfs = Cfs::new(dir.path());
        let layer = Layer::default().dirs(&["usr"]).raw_name(name, b"outside");
        let image = Image::new("1").layer(base("1", "a"), How::Gzip).layer(layer, How::None);
        let reference = image.finish().layout(&dir.path().join("oci"), "os");
        let ran = cfs.run(["switch", &reference]);
        assert_eq!(ran.code, 1, "{}: {ran:?}", String::from_utf8_lossy(name));
        nothing_half_done(&cfs);
        for place in [dir.path(), dir.path().parent().unwrap(), Path::new("/")] {
            assert!(!place.join("outside").exists(), "{}", place.display());
        }
    }
}

#[test]
fn a_file_below_a_symbolic_link_writes_nowhere() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let layer = Layer::default()
        .dirs(&["usr"])
        .symlink("usr/link", victim.to_str().unwrap())
        .file("usr/link/planted", "planted by the layer");
    let image = Image::new("1").layer(base("1", "a"), How::Gzip).layer(layer, How::Gzip);
    let reference = image.finish().layout(&dir.path().join("oci"), "os");
    let _ = cfs.run(["switch", &reference]);
    assert!(list(&victim).is_empty(), "nothing is written outside the store");
}

#[test]
fn a_blob_that_the_registry_garbled_is_refused_and_fetched_anew() {
    let registry = Registry::start();
    let image = small(1, "a", 5, 100_000).finish();
    let reference = image.push(&registry, "os", "1");
    let layer = digest(&image.blobs[1]);
    let file = registry.blob_file(&layer);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["switch", &reference]);
    assert!([1, 5].contains(&ran.code), "{ran:?}");
    says(&ran, &[&layer[7..19]]);
    nothing_half_done(&cfs);
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    cfs.run(["switch", &reference]).expect(0);
    cfs.fsck();
}

#[test]
fn a_manifest_that_is_not_its_digest_is_refused() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layout = dir.path().join("oci");
    let image = small(1, "a", 1, 1000).finish();
    let reference = image.layout(&layout, "os");
    let path = blob_path(&layout, &image.digest());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("schemaVersion\":2", "schemaVersion\":3")).unwrap();
    let ran = cfs.run(["switch", &reference]);
    assert_ne!(ran.code, 0);
    says(&ran, &[&image.digest()[7..19]]);
    nothing_half_done(&cfs);
}

#[test]
fn an_image_without_a_kernel_is_refused_and_says_where_one_was_looked_for() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let layer = Layer::default()
        .dirs(&["boot", "etc", "sysroot", "usr", "usr/lib"])
        .file("usr/lib/os-release", "ID=x\n");
    let reference = Image::new("1")
        .layer(layer, How::Gzip)
        .finish()
        .layout(&dir.path().join("oci"), "os");
    let ran = cfs.run(["switch", &reference]).expect(1);
    says(&ran, &["usr/lib/modules"]);
    assert!(cfs.entries().is_empty());
}

#[test]
fn an_image_without_a_folder_for_etc_or_var_is_taken_with_a_warning() {
    for missing in ["etc", "var"] {
        let dir = scratch();
        let cfs = Cfs::new(dir.path());
        let reference = Image::new("1")
            .layer(base("1", "kernel"), How::Gzip)
            .layer(Layer::default().file(&format!(".wh.{missing}"), ""), How::Gzip)
            .finish()
            .layout(&dir.path().join("oci"), "os");
        let ran = cfs.run(["switch", &reference]).expect(0);
        says(
            &ran,
            &[&format!("no folder /{missing}"), "to do without; make the folder"],
        );
    }
}

#[test]
fn what_is_not_there_is_a_network_error_or_a_plain_one() {
    let registry = Registry::start();
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let ran = cfs.run(["switch", &registry.reference("nothing:here")]).expect(5);
    says(&ran, &["nothing"]);
    let layout = format!("oci:{}:os", dir.path().join("no-layout").display());
    let ran = cfs.run(["switch", &layout]).expect(1);
    says(&ran, &["no-layout"]);
    // Nobody listens there any more.
    let gone = registry.reference("os:1");
    drop(registry);
    let ran = cfs.run(["switch", &gone]).expect(5);
    says(&ran, &["127.0.0.1"]);
    cfs.run(["switch", "no reference at all"]).expect(2);
}
