//! Small images made by hand, with everything that an image may have.

use super::*;

fn assert_same(layers: &[Vec<u8>]) {
    for boot in [false, true] {
        let wanted = theirs::<Sha256HashValue>(layers, boot).unwrap();
        assert_eq!(
            ours(layers, Algorithm::Sha256, boot).unwrap(),
            wanted,
            "SHA-256, boot: {boot}"
        );
        let wanted = theirs::<Sha512HashValue>(layers, boot).unwrap();
        assert_eq!(
            ours(layers, Algorithm::Sha512, boot).unwrap(),
            wanted,
            "SHA-512, boot: {boot}"
        );
    }
}

#[test]
fn a_small_os_image_has_the_digest_that_composefs_rs_computes() {
    let a = Attributes::default();
    let capability = Attributes {
        mode: 0o4755,
        xattrs: vec![
            ("security.capability", vec![1, 0, 0, 2, 0, 32, 0, 0]),
            ("user.dropped", b"x".to_vec()),
            ("security.selinux", b"system_u:object_r:container_t:s0\0".to_vec()),
        ],
        mtime: (1_700_000_001, 123_456_789),
        ..Attributes::default()
    };
    for with_policy in [false, true] {
        let mut one = base(with_policy);
        one = add(one, "bin", b'2', "usr/bin", b"", &a);
        one = add(one, "usr/bin/ping", b'0', "", &[7; 1000], &capability);
        one = add(one, "usr/bin/ping6", b'1', "usr/bin/ping", b"", &a);
        one = add(one, "usr/bin/a.b", b'0', "", b"small", &capability);
        one = add(one, "etc/shadow", b'0', "", &[b'x'; 64], &a);
        one = add(one, "etc/shbdow", b'1', "./etc/shadow", b"", &a);
        one = add(one, "var/log/one", b'1', "/etc/shadow", b"", &a);
        one = add(one, "dev/null", b'3', "", b"", &a);
        one = add(one, "dev/sda", b'4', "", b"", &a);
        one = add(one, "run/left", b'0', "", b"behind", &a);
        one = add(one, "boot/vmlinuz", b'0', "", &[1; 5000], &a);
        one = add(one, "usr/lib/old", b'5', "", b"", &a);
        one = add(one, "usr/lib/old/file", b'0', "", &[2; 65], &a);
        let mut two = Tar::new();
        two = add(two, "usr/lib/.wh.old", b'0', "", b"", &a);
        two = add(two, "var/log/.wh..wh..opq", b'0', "", b"", &a);
        two = add(two, "var/log/new", b'1', "usr/bin/ping", b"", &a);
        two = add(two, "etc", b'5', "", b"", &capability);
        two = add(two, "dev/sda", b'6', "", b"", &a);
        two = add(two, &format!("usr/lib/{}", "n".repeat(200)), b'0', "", b"", &a);
        assert_same(&[one.finish(), two.finish()]);
    }
}

/// Format 2 has no nanoseconds, so the layers have none.
#[test]
fn images_of_composefs_rs_in_all_its_formats_read_back_as_the_tree_of_the_layers() {
    let a = Attributes::default();
    let special = Attributes {
        mode: 0o4755,
        owner: 100_000,
        mtime: (5, 0),
        xattrs: vec![("security.capability", vec![1, 2, 3])],
    };
    let mut tar = Tar::new();
    for name in ["usr/", "boot/", "sysroot/", "usr/many/"] {
        tar = add(tar, name, b'5', "", b"", &a);
    }
    for at in 0..300_u32 {
        let attributes = if at % 7 == 0 { &special } else { &a };
        tar = add(
            tar,
            &format!("usr/many/file-{at}"),
            b'0',
            "",
            &vec![b'x'; at as usize],
            attributes,
        );
    }
    tar = add(tar, "usr/hard", b'1', "usr/many/file-299", b"", &a);
    tar = add(tar, "link", b'2', "usr/many", b"", &a);
    tar = add(tar, "null", b'3', "", b"", &special);
    tar = add(tar, "pipe", b'6', "", b"", &a);
    let layers = [policy(add(tar, "etc/", b'5', "", b"", &a)).finish()];
    let wanted = ours(&layers, Algorithm::Sha512, true).unwrap();
    for version in [FormatVersion::V1, FormatVersion::V2] {
        let (image, _) = their_image::<Sha512HashValue>(&layers, true, version).unwrap();
        let tree = image::reader::read(&image).unwrap();
        let again = writer::build(&tree, Versions::V1).unwrap();
        assert_eq!(image::digest(&again, Algorithm::Sha512).to_hex(), wanted, "{version:?}");
    }
}
