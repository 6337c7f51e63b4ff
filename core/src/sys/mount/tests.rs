use rustix::fs::CWD;
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use super::layers::{Attached, attach, erofs_from};
use super::*;
use crate::image::{Versions, dump, writer};

const CONTENT: &[u8] = b"more than sixty-four bytes of content, so that it is an object of its own......";

/// A folder with an object, an image that names it, and a place to mount on.
fn fixture(name: &str) -> (tempfile::TempDir, PathBuf, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join(name);
    let (objects, target, image) = (base.join("objects"), base.join("target"), base.join("image"));
    let id = verity::hash(crate::ids::Algorithm::Sha256, CONTENT);
    let object = objects.join(id.object_path());
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(&object, CONTENT).unwrap();
    let size = CONTENT.len();
    let text = format!(
        "/ 0 40755 2 0 0 0 5.7 - - -\n/big {size} 100640 1 7 8 0 6.5 {} - {id} user.k=v\n/small 2 104755 1 0 0 0 1.0 - hi -\n",
        id.object_path()
    );
    let bytes = writer::build(&dump::parse(text.as_bytes()).unwrap(), Versions::V1).unwrap();
    std::fs::write(&image, bytes).unwrap();
    (folder, objects, target, image)
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not checked: mounting needs root");
    }
    root
}

fn check_content(target: &Path) {
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::read(target.join("big")).unwrap(), CONTENT);
    assert_eq!(std::fs::read(target.join("small")).unwrap(), b"hi");
    let meta = std::fs::metadata(target.join("big")).unwrap();
    assert_eq!((meta.mode(), meta.uid(), meta.gid()), (0o100640, 7, 8));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (6, 5));
    assert_eq!(std::fs::metadata(target.join("small")).unwrap().mode(), 0o104755);
}

fn options<'a>(image: &'a Path, objects: &'a [&'a Path]) -> MountOptions<'a> {
    MountOptions {
        image,
        objects,
        digest: None,
        verity: Verity::Try,
        name: Some("test"),
    }
}

#[test]
fn a_mounted_image_shows_the_objects_under_the_trees_metadata() {
    if !is_root() {
        return;
    }
    let (_keep, objects, target, image) = fixture("plain");
    mount_composefs(&options(&image, &[&objects]), &target).unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|l| l.contains(target.to_str().unwrap()))
        .unwrap()
        .to_owned();
    check_content(&target);
    let refused = std::fs::write(target.join("new"), b"").unwrap_err();
    unmount(&target).unwrap();
    assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    assert!(line.starts_with("composefs:test ") && line.contains("ro,"), "{line}");
}

#[test]
fn older_interfaces_of_the_kernel_give_the_same_mount() {
    if !is_root() {
        return;
    }
    let (_keep, objects, target, image) = fixture("with,comma:and\\more");
    let file = File::open(&image).unwrap();
    let device = crate::sys::loop_device::LoopDevice::attach(&file).unwrap();
    let erofs = erofs_from(device.path(), false).unwrap();
    let paths: &[&Path] = &[&objects];
    let overlay = Overlay {
        source: "composefs:old".into(),
        objects: paths,
        check: Verity::Off,
    };
    let place = Attached::new(&erofs).unwrap();
    let by_path = overlay
        .context(|c| fsconfig_set_string(c, "lowerdir+", place.path()))
        .unwrap();
    attach(&by_path, &target).unwrap();
    drop(by_path);
    check_content(&target);
    unmount(&target).unwrap();
    overlay.mount_old(place.path(), &target).unwrap();
    check_content(&target);
    unmount(&target).unwrap();
}

#[test]
fn what_is_mounted_on_is_a_folder_or_leads_to_one() {
    let keep = tempfile::tempdir().unwrap();
    let at = |name: &str| keep.path().canonicalize().unwrap().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("file"), b"").unwrap();
    for (link, to) in [("link", "folder"), ("to-file", "file"), ("dangling", "nothing")] {
        std::os::unix::fs::symlink(at(to), at(link)).unwrap();
    }
    for good in ["folder", "link"] {
        assert_eq!(folder(&at(good)).unwrap(), at("folder"), "{good}");
    }
    for bad in ["file", "to-file", "dangling", "nothing"] {
        let refusal = folder(&at(bad)).unwrap_err();
        assert_eq!(refusal.kind(), crate::Kind::Usage, "{refusal}");
        assert!(refusal.to_string().contains(at(bad).to_str().unwrap()), "{refusal}");
    }
}

#[test]
fn a_pipe_in_the_place_of_an_image_is_none() {
    let (_keep, objects, target, image) = fixture("pipe");
    std::fs::remove_file(&image).unwrap();
    rustix::fs::mkfifoat(CWD, &image, rustix::fs::Mode::RUSR).unwrap();
    let refusal = mount_composefs(&options(&image, &[&objects]), &target).unwrap_err();
    assert!(refusal.to_string().contains("is no composefs image"), "{refusal}");
}

#[test]
fn an_image_without_fs_verity_is_not_mounted_where_it_is_required() {
    let (_keep, objects, target, image) = fixture("unproven");
    let sealed = File::open(&image).unwrap();
    if verity::enable(&sealed, crate::ids::Algorithm::Sha256).unwrap() {
        println!("not checked: this file system has fs-verity");
        return;
    }
    let paths: &[&Path] = &[&objects];
    let required = MountOptions {
        verity: Verity::Require,
        ..options(&image, paths)
    };
    let refusal = mount_composefs(&required, &target).unwrap_err();
    assert_eq!(refusal.kind(), crate::Kind::Trust, "{refusal}");
}

#[test]
fn what_a_kernel_lacks_is_named() {
    let refused = |errno| Refused {
        errno,
        log: "overlay: Unknown parameter 'verity'".into(),
    };
    let erofs = |errno| explain_erofs(&refused(errno));
    assert!(erofs(Errno::NODEV).contains("no EROFS") && erofs(Errno::NODEV).contains("erofs"));
    assert!(erofs(Errno::NOENT).contains("no loop device") && erofs(Errno::NOENT).contains("Linux 6.12"));
    assert!(!erofs(Errno::IO).contains("this kernel"));
    let overlay = |errno, check| explain_overlay(Path::new("/t"), check, &refused(errno));
    assert!(overlay(Errno::NODEV, Verity::Off).contains("no overlayfs"));
    let old = overlay(Errno::INVAL, Verity::Require);
    for text in [
        "verity=require",
        "Linux 6.6",
        "data-only layers",
        "Unknown parameter 'verity'",
    ] {
        assert!(old.contains(text), "{old}");
    }
    assert!(!overlay(Errno::INVAL, Verity::Off).contains("Linux 6.6"));
}

#[test]
fn what_the_kernel_says_of_a_mount_is_kept() {
    if !is_root() {
        return;
    }
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let refused = with_log(&context, fsconfig_set_string(&context, "no-such-option", "1")).unwrap_err();
    assert!(refused.to_string().contains("no-such-option"), "{refused}");
}

#[test]
fn an_image_without_the_demanded_digest_is_not_mounted() {
    if !is_root() {
        return;
    }
    let (_keep, objects, target, image) = fixture("digest");
    let paths: &[&Path] = &[&objects];
    let demanded = MountOptions {
        digest: Some(verity::hash(crate::ids::Algorithm::Sha256, b"another")),
        ..options(&image, paths)
    };
    let refusal = mount_composefs(&demanded, &target).unwrap_err();
    assert_eq!(refusal.kind(), crate::Kind::Trust, "{refusal}");
    assert!(!target.join("big").exists());
    let no_image = mount_composefs(&options(&image.with_file_name("target"), paths), &target);
    assert!(no_image.unwrap_err().to_string().contains("is no composefs image"));
}
