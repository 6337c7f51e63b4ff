//! An installation: nothing boots, or the whole system does.

use cfs_core::boot::HostArguments;
use cfs_core::manifest::Platform;
use cfs_core::{install, registry};

use super::*;

/// A root on which nothing is yet, and an image with a boot loader.
fn empty_machine() -> (Bench, String) {
    let keep = scratch();
    let base = keep.path().to_path_buf();
    let before = base.join("before");
    std::fs::create_dir_all(before.join("boot")).unwrap();
    let loader = layout::Layer::default()
        .dirs(&[
            "usr",
            "usr/lib",
            "usr/lib/systemd",
            "usr/lib/systemd/boot",
            "usr/lib/systemd/boot/efi",
        ])
        .file(
            "usr/lib/systemd/boot/efi/systemd-bootx64.efi",
            "MZ #### LoaderInfo: systemd-boot 257 ####",
        )
        .file(
            "usr/lib/systemd/boot/efi/systemd-bootaa64.efi",
            "MZ #### LoaderInfo: systemd-boot 257 ####",
        );
    let image = layout::small(1, "kernel 1", 1, 500).layer(loader, layout::How::None);
    let reference = image.finish().layout(&base.join("images"), "os");
    let bench = Bench {
        _keep: keep,
        base,
        before,
    };
    (bench, reference)
}

fn first(root: &Path, fs: Arc<dyn Fs>, reference: &str) -> Result<()> {
    let registry = registry::Registry::open(&reference.parse()?, &registry::Options::default())?;
    let request = install::Request {
        image: registry.image(&Platform::host(), &Quiet)?,
        registry: &registry,
        host: HostArguments {
            kernel_arguments: vec!["a=b".into()],
            allow_missing_verity: false,
        },
        root_keys: Some(b"ssh-ed25519 AAAA key\n".to_vec()),
    };
    let boot = root.join("boot");
    let place = install::Prepared::given(root.into(), boot.clone(), boot, "LABEL=root".into());
    install::install(&Sysroot::open(options(root, fs), "install")?, &place, request, &Quiet).map(drop)
}

#[test]
fn whenever_the_power_is_cut_during_an_installation_nothing_boots_or_the_whole_system_does() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (bench, reference) = empty_machine();
    let operations = bench.cut_everywhere(
        |root, fs| first(root, fs, &reference),
        |root, cut| {
            let sysroot = Sysroot::look(options(root, Arc::new(RealFs)));
            let entries = sysroot
                .map(|sysroot| sysroot.bootloader().entries().unwrap().ours)
                .unwrap_or_default();
            let again = first(root, Arc::new(RealFs), &reference);
            match entries.as_slice() {
                [] => again.unwrap_or_else(|e| panic!("{cut}: the same command again: {e}")),
                // The entry was the last thing to be made.
                _ => assert!(
                    again.unwrap_err().to_string().contains("installed there already"),
                    "{cut}"
                ),
            }
            fsck(root);
            let sysroot = Sysroot::look(options(root, Arc::new(RealFs))).unwrap();
            let known = sysroot.known().unwrap();
            let installed = known.iter().find(|k| k.standing.bootable).expect(cut);
            assert!(
                installed.entry.as_ref().unwrap().options.contains(&"a=b".into()),
                "{cut}"
            );
            let etc = installed.verified.as_ref().unwrap().etc();
            for path in ["app.conf", "tmpfiles.d/cfs-update-root-ssh.conf"] {
                assert!(etc.join(path).is_file(), "{cut}: {path}");
            }
            for path in [
                "boot/EFI/BOOT/BOOTX64.EFI",
                "boot/loader/random-seed",
                "boot/loader/loader.conf",
            ] {
                let path = root.join(path.replace("X64", if cfg!(target_arch = "aarch64") { "AA64" } else { "X64" }));
                assert!(
                    std::fs::metadata(&path).is_ok_and(|found| found.len() > 0),
                    "{cut}: {}",
                    path.display()
                );
            }
        },
    );
    assert!(operations > 40, "{operations} operations were cut");
}
