//! The tar parser: what Go's reader takes is taken, with the same meaning; what it refuses is refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod properties;
mod tars;

use cfs_core::layers::{Fault, Head, Kind, Mtime};
use proptest::prelude::*;

use properties::tar_heads;
use tars::{Header, Tar};

fn heads(tar: &[u8]) -> Vec<Head> {
    tar_heads(tar, usize::MAX).unwrap()
}

fn one(tar: Tar) -> Head {
    let [head] = heads(&tar.finish()).try_into().unwrap();
    head
}

fn refusal(tar: &[u8]) -> Fault {
    tar_heads(tar, usize::MAX).unwrap_err()
}

#[test]
fn pax_wins_over_gnu_and_gnu_over_the_header() {
    let long = "l".repeat(300);
    let gnu = one(Tar::new()
        .long_name(b'L', &long)
        .long_name(b'K', "target")
        .link("short", b'2', "other"));
    assert_eq!(
        (&*gnu.path, gnu.kind),
        (long.as_bytes(), Kind::Symlink(b"target"[..].into()))
    );
    let pax: &[(&str, &[u8])] = &[
        ("path", b"from-pax"),
        ("linkpath", b"pax-target"),
        ("uid", b"4294967297"),
        ("gid", b"3000000000"),
        ("mtime", b"-1.5"),
        ("SCHILY.xattr.security.capability", b"\x01\0\n="),
    ];
    let head = one(Tar::new().long_name(b'L', &long).pax(pax).link("short", b'1', "other"));
    assert_eq!(
        (&*head.path, head.kind),
        (&b"from-pax"[..], Kind::Hardlink(b"pax-target"[..].into()))
    );
    assert_eq!((head.meta.uid, head.meta.gid), (1, 3_000_000_000));
    assert_eq!(
        head.meta.mtime,
        Mtime {
            sec: -2,
            nsec: 500_000_000
        }
    );
    assert_eq!(&*head.meta.xattrs[0].0, b"security.capability");
    assert_eq!(&*head.meta.xattrs[0].1, b"\x01\0\n=");
}

#[test]
fn extended_headers_are_for_one_entry_and_global_ones_for_none() {
    let tar = Tar::new()
        .header(Header::new("pax_global_header", b'g', 19))
        .content(b"19 path=everything\n")
        .pax(&[("path", b"first")])
        .file("x", b"1")
        .file("second", b"2")
        .finish();
    let paths: Vec<_> = heads(&tar).into_iter().map(|h| h.path).collect();
    assert_eq!(paths, [b"first"[..].into(), Box::from(&b"second"[..])]);
}

#[test]
fn a_pax_size_counts_and_entries_without_content_have_none() {
    let tar = Tar::new()
        .pax(&[("size", b"600")])
        .header(Header::new("file", b'0', 3))
        .content(&[1; 600])
        .header(Header::new("link", b'1', 600))
        .header(Header::new("folder", b'5', 600))
        .file("last", b"x")
        .finish();
    let sizes: Vec<_> = heads(&tar).iter().map(Head::size).collect();
    assert_eq!(sizes, [600, 0, 0, 1]);
}

#[test]
fn old_headers_are_read() {
    let mut v7 = Header::new("folder/", 0, 0);
    v7.0[257..].fill(0);
    assert_eq!(one(Tar::new().header(v7)).kind, Kind::Directory);
    let mut v7 = Header::new("file", 0, 1);
    v7.0[257..].fill(b'x');
    assert_eq!(&*one(Tar::new().header(v7).content(b"x")).path, b"file");
    let mut star = Header::new("name", b'0', 0);
    star.put(345, b"prefix")
        .put(476, b"12345670123 12345670123 ")
        .put(508, b"tar\0");
    assert_eq!(&*one(Tar::new().header(star)).path, b"prefix/name");
    let mut gnu = Header::new("name", b'7', 0);
    gnu.put(345, b"14520000000\0");
    assert_eq!(&*one(Tar::new().header(gnu.gnu())).path, b"name");
    let mut signed = Header::new("n\u{e4}me", b'0', 0).finish();
    signed[148..156].fill(b' ');
    let sum: i32 = signed.iter().map(|b| i32::from(b.cast_signed())).sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(&*one(Tar::new().raw(&signed)).path, "näme".as_bytes());
}

#[test]
fn devices_have_the_kernels_numbers() {
    let mut device = Header::new("sda1", b'4', 0);
    device.put(329, b"0000010\0").put(337, b"0000001\0");
    assert_eq!(one(Tar::new().header(device)).kind, Kind::BlockDevice(0x801));
    assert_eq!(
        one(Tar::new().header(Header::new("whiteout", b'3', 0))).kind,
        Kind::CharDevice(0)
    );
    assert_eq!(one(Tar::new().header(Header::new("pipe", b'6', 0))).kind, Kind::Fifo);
}

/// A file of 10000 bytes with data at 0..5 and 4096..4106, in each way that it is written.
fn sparse_files() -> Vec<(&'static str, Tar)> {
    let data = b"hello0123456789";
    let octal = |n: u64| format!("{n:011o}\0").into_bytes();
    let pairs = |pairs: &[(u64, u64)]| {
        pairs
            .iter()
            .flat_map(|(o, l)| [octal(*o), octal(*l)].concat())
            .collect::<Vec<_>>()
    };
    let mut gnu = Header::new("sparse", b'S', 15).gnu();
    gnu.put(386, &pairs(&[(0, 5), (4096, 10), (10000, 0)]))
        .put(483, &octal(10000));
    let mut extended = Header::new("sparse", b'S', 15).gnu();
    extended
        .put(386, &pairs(&[(0, 1), (1, 1), (2, 1), (3, 1)]))
        .put(482, &[1])
        .put(483, &octal(10000));
    let mut more = pairs(&[(4, 1), (4096, 10)]);
    more.resize(512, 0);
    let map_1_0 = b"2\n0\n5\n4096\n10\n";
    let mut body_1_0 = map_1_0.to_vec();
    body_1_0.resize(512, 0);
    body_1_0.extend_from_slice(data);
    vec![
        ("gnu", Tar::new().header(gnu).content(data)),
        (
            "gnu with an extension",
            Tar::new().header(extended).raw(&more).content(data),
        ),
        (
            "pax 0.0",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"10000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"0"),
                    ("GNU.sparse.numbytes", b"5"),
                    ("GNU.sparse.offset", b"4096"),
                    ("GNU.sparse.numbytes", b"10"),
                ])
                .file("sparse", data),
        ),
        (
            "pax 0.1",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.size", b"10000"),
                    ("GNU.sparse.map", b"0,5,4096,10"),
                ])
                .file("GNUSparseFile.1/sparse", data),
        ),
        (
            "pax 1.0",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.realsize", b"10000"),
                ])
                .file("GNUSparseFile.1/sparse", &body_1_0),
        ),
    ]
}

#[test]
fn sparse_files_of_every_kind_are_understood() {
    for (kind, tar) in sparse_files() {
        let tar = tar.file("after", b"x").finish();
        for piece in [1, 511, 512, 1 << 20] {
            let heads = tar_heads(&tar, piece).unwrap();
            assert_eq!(heads.len(), 2, "{kind}");
            assert_eq!(
                (&*heads[0].path, heads[0].size(), heads[0].stored),
                (&b"sparse"[..], 10000, 15),
                "{kind}"
            );
            let segments = heads[0].sparse.as_ref().unwrap().segments();
            let bytes: Vec<u64> = segments
                .iter()
                .flat_map(|(offset, length)| *offset..offset + length)
                .collect();
            assert_eq!(bytes, (0..5).chain(4096..4106).collect::<Vec<_>>(), "{kind}");
            assert_eq!(&*heads[1].path, b"after", "{kind}");
        }
    }
}

#[test]
fn what_go_refuses_is_refused_and_the_entry_is_named() {
    let good = Tar::new().file("first", b"x");
    let mut broken = Header::new("second", b'0', 0).finish();
    broken[0] ^= 1;
    let mut size = Header::new("second", b'0', 0);
    size.put(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    let mut device = Header::new("second", b'3', 0);
    device.put(329, b"7777777\0");
    for (what, tar, word) in [
        ("checksum", good.clone().raw(&broken), "checksum"),
        ("negative size", good.clone().header(size), "size"),
        (
            "unknown type",
            good.clone().header(Header::new("second", b'Z', 0)),
            "unknown type",
        ),
        (
            "socket",
            good.clone().header(Header::new("second", b's', 0)),
            "unknown type",
        ),
        ("device", good.clone().header(device), "device"),
        ("empty link", good.clone().link("second", b'2', ""), "target"),
        (
            "malformed pax",
            good.clone().header(Header::new("x", b'x', 3)).content(b"3 x"),
            "PAX",
        ),
        (
            "NUL in a name",
            good.clone().pax(&[("path", b"a\0b")]).file("x", b""),
            "PAX",
        ),
        (
            "large pax",
            good.clone().header(Header::new("x", b'x', 1 << 21)),
            "more than",
        ),
        (
            "huge name",
            good.clone().header(Header::new("x", b'L', 1 << 33)),
            "more than",
        ),
        (
            "pax without an entry",
            good.clone().pax(&[("path", b"a")]),
            "without an entry",
        ),
        (
            "one zero block",
            good.clone().raw(&[0; 512]).file("third", b""),
            "zero block",
        ),
        (
            "sparse without size",
            good.clone().pax(&[("GNU.sparse.map", b"0,1")]).file("second", b"x"),
            "size",
        ),
        (
            "sparse too short",
            good.clone()
                .pax(&[("GNU.sparse.map", b"0,2"), ("GNU.sparse.size", b"5")])
                .file("second", b"x"),
            "stands for",
        ),
        (
            "sparse 2.0",
            good.clone()
                .pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"5")])
                .file("second", b"x"),
            "version",
        ),
    ] {
        let fault = refusal(&tar.finish());
        assert!(fault.why.contains(word), "{what}: {fault:?}");
        assert!(
            fault.entry.contains("first") || fault.entry.contains("second"),
            "{what}: {fault:?}"
        );
    }
}

#[test]
fn a_stream_may_end_where_go_lets_it_end_and_nowhere_else() {
    let tar = Tar::new()
        .file("first", b"content")
        .pax(&[("path", b"second")])
        .file("x", &[1; 700])
        .finish();
    let whole = heads(&tar);
    for end in 0..tar.len() {
        let cut = tar_heads(&tar[..end], usize::MAX);
        match end {
            0 => assert!(cut.unwrap().is_empty()),
            // From the end of the first content over its padding.
            519..=1024 => assert_eq!(cut.unwrap(), whole[..1], "{end}"),
            _ if end >= tar.len() - 1024 - 324 && end <= tar.len() - 1024 => assert_eq!(cut.unwrap(), whole, "{end}"),
            _ if end == tar.len() - 512 => assert_eq!(cut.unwrap(), whole),
            _ => {
                let fault = cut.unwrap_err();
                assert!(fault.why.contains("truncated"), "{end}: {fault:?}");
            }
        }
    }
}

/// Some of everything, to be damaged.
fn sample() -> Vec<u8> {
    let mut tar = Tar::new()
        .directory("d/")
        .file("d/f", b"content")
        .long_name(b'L', &"n".repeat(200))
        .file("x", b"");
    for (_, sparse) in sparse_files() {
        tar = tar.raw(&sparse.0);
    }
    tar.pax(&[("path", b"p"), ("SCHILY.xattr.user.a", b"b")])
        .link("l", b'2', "t")
        .finish()
}

proptest! {
    #[test]
    fn damaged_archives_never_panic_and_parse_alike_however_they_are_cut(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
        end in any::<proptest::sample::Index>(),
        piece in 1_usize..2000,
        fix in any::<bool>(),
    ) {
        let mut tar = sample();
        for (at, byte) in flips {
            let at = at.index(tar.len());
            tar[at] = byte;
            let block = at / 512 * 512;
            if fix && tar[block + 257..block + 262] == *b"ustar" {
                let header: [u8; 512] = tar[block..block + 512].try_into().unwrap();
                tar[block..block + 512].copy_from_slice(&Header(header).finish());
            }
        }
        tar.truncate(tar.len() - end.index(tar.len()) / 8);
        prop_assert_eq!(tar_heads(&tar, usize::MAX), tar_heads(&tar, piece));
    }
}

#[test]
fn archives_of_gnu_tar_in_every_format_are_understood() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/tar");
    let time = Mtime {
        sec: 1_700_000_000,
        nsec: 0,
    };
    for (name, paths) in [
        ("gnu-sparse.tar", &["f", "l", "d/", "d/g", "sp"][..]),
        ("pax-sparse-0.0.tar", &["sp"]),
        ("pax-sparse-0.1.tar", &["sp"]),
        ("pax-sparse-1.0.tar", &["sp", "f"]),
        ("pax-xattrs.tar", &["f"]),
        ("ustar.tar", &["f", "l", "d/", "d/g"]),
        ("v7.tar", &["f", "d/", "d/g"]),
    ] {
        let heads = heads(&std::fs::read(seeds.join(name)).unwrap());
        let found: Vec<_> = heads.iter().map(|head| String::from_utf8_lossy(&head.path)).collect();
        assert_eq!(found, paths, "{name}");
        for head in heads {
            assert_eq!((head.meta.uid, head.meta.gid, head.meta.mtime), (0, 0, time), "{name}");
            let (kind, size) = match &*head.path {
                b"f" => (Kind::Regular, 3),
                b"d/g" => (Kind::Regular, 1),
                b"sp" => (Kind::Regular, 20000),
                b"l" => (Kind::Symlink(b"f"[..].into()), 0),
                _ => (Kind::Directory, 0),
            };
            assert_eq!((&head.kind, head.size()), (&kind, size), "{name}");
            assert_eq!(head.sparse.is_some(), &*head.path == b"sp", "{name}");
            let xattrs = if name == "pax-xattrs.tar" { 1 } else { 0 };
            assert_eq!(head.meta.xattrs.len(), xattrs, "{name}");
        }
    }
}
