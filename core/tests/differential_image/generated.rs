//! Generated layers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// One step of a generated layer; numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Folder(u8, u8, Attributes),
    File(u8, u8, u16, Attributes),
    Symlink(u8, u8, u16, Attributes),
    Special(u8, u8, u8, Attributes),
    Hardlink(u8, u8, u16),
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let xattr = prop_oneof![
        (0..4_u8).prop_map(|v| ("security.capability", vec![v; 20])),
        (0..3_u8).prop_map(|v| ("user.x", vec![v])),
        Just(("trusted.overlay.opaque", b"y".to_vec())),
        Just(("system.posix_acl_access", vec![2, 0, 0, 0])),
    ];
    let nsec = prop_oneof![3 => Just(0), 1 => Just(1_u32), 1 => 0..1_000_000_000_u32];
    (
        0..0o10000_u32,
        prop_oneof![Just(0), Just(65_536), 0..2_000_000_u32],
        (1..5_u32, nsec),
        prop::collection::vec(xattr, 0..3),
    )
        .prop_map(|(mode, owner, mtime, xattrs)| Attributes {
            mode,
            owner,
            mtime,
            xattrs,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (any::<u8>(), 0..7_u8);
    prop_oneof![
        3 => (place(), attributes()).prop_map(|((f, n), a)| Step::Folder(f, n, a)),
        4 => (place(), 0..300_u16, attributes()).prop_map(|((f, n), s, a)| Step::File(f, n, s, a)),
        1 => (place(), 1..100_u16, attributes()).prop_map(|((f, n), s, a)| Step::Symlink(f, n, s, a)),
        1 => (place(), 0..3_u8, attributes()).prop_map(|((f, n), k, a)| Step::Special(f, n, k, a)),
        2 => (place(), any::<u16>()).prop_map(|((f, n), t)| Step::Hardlink(f, n, t)),
    ]
}

type Layer = (Vec<u16>, Vec<u16>, Vec<Step>);

fn layer() -> impl Strategy<Value = Layer> {
    (
        prop::collection::vec(any::<u16>(), 0..4),
        prop::collection::vec(any::<u16>(), 0..2),
        prop::collection::vec(step(), 1..25),
    )
}

/// Makes tars of generated layers: whiteouts come first and parents are there, where both programs must agree.
fn tars_of(layers: &[Layer], with_policy: bool) -> Vec<Vec<u8>> {
    let mut there: BTreeMap<String, bool> = BTreeMap::new();
    for name in ["", "etc/private/", "usr/bin/", "usr/lib/"] {
        there.insert(name.into(), true);
    }
    let mut base = base(with_policy);
    base = add(base, "etc/private/", b'5', "", b"", &Attributes::default());
    for at in 0..6 {
        base = add(base, &format!("d{at}/"), b'5', "", b"", &Attributes::default());
        there.insert(format!("d{at}/"), true);
    }
    let mut out = vec![base.finish()];
    for (whiteouts, opaque, steps) in layers {
        let mut tar = Tar::new();
        for number in whiteouts {
            let Some(path) = there
                .keys()
                .filter(|p| p.starts_with('d'))
                .nth(usize::from(*number) % there.len())
                .cloned()
            else {
                continue;
            };
            let (folder, name) = split(&path);
            tar = add(
                tar,
                &format!("{folder}.wh.{name}"),
                b'0',
                "",
                b"",
                &Attributes::default(),
            );
            there.retain(|p, _| !is_below(p, &path));
        }
        for number in opaque {
            let folders: Vec<String> = there
                .iter()
                .filter(|(p, d)| **d && p.starts_with('d'))
                .map(|(p, _)| p.clone())
                .collect();
            let Some(path) = folders.get(usize::from(*number) % folders.len().max(1)) else {
                continue;
            };
            tar = add(
                tar,
                &format!("{path}.wh..wh..opq"),
                b'0',
                "",
                b"",
                &Attributes::default(),
            );
            there.retain(|p, _| p == path || !is_below(p, path));
        }
        for step in steps {
            tar = apply(tar, step, &mut there);
        }
        out.push(tar.finish());
    }
    out
}

fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    path.rfind('/').map_or(("", path), |at| path.split_at(at + 1))
}

fn is_below(path: &str, above: &str) -> bool {
    path == above || (above.ends_with('/') && path.starts_with(above))
}

fn apply(tar: Tar, step: &Step, there: &mut BTreeMap<String, bool>) -> Tar {
    let (folder, name) = match step {
        Step::Folder(f, n, _)
        | Step::File(f, n, ..)
        | Step::Symlink(f, n, ..)
        | Step::Special(f, n, ..)
        | Step::Hardlink(f, n, _) => (*f, *n),
    };
    let folders: Vec<&String> = there
        .iter()
        .filter(|(p, is_dir)| **is_dir && !p.is_empty())
        .map(|(p, _)| p)
        .collect();
    let Some(folder) = folders.get(usize::from(folder) % folders.len().max(1)) else {
        return tar;
    };
    let names = ["d0", "f1", "f2", "a.b", "x", "lib.so", "\u{e4}\u{f6}"];
    let path = format!("{folder}{}", names[usize::from(name)]);
    let forget =
        |there: &mut BTreeMap<String, bool>| there.retain(|p, _| *p != path && !is_below(p, &format!("{path}/")));
    match step {
        Step::Folder(_, _, a) => {
            if there.remove(&path).is_some() {
                forget(there);
            }
            there.insert(format!("{path}/"), true);
            add(tar, &format!("{path}/"), b'5', "", b"", a)
        }
        Step::Hardlink(_, _, target) => {
            let files: Vec<String> = there
                .iter()
                .filter(|(p, d)| !**d && **p != path)
                .map(|(p, _)| p.clone())
                .collect();
            let Some(target) = files.get(usize::from(*target) % files.len().max(1)) else {
                return tar;
            };
            if target.len() > 99 || is_below(target, &format!("{path}/")) {
                return tar;
            }
            forget(there);
            there.insert(path.clone(), false);
            add(tar, &path, b'1', target, b"", &Attributes::default())
        }
        Step::File(_, _, size, a) => {
            forget(there);
            there.insert(path.clone(), false);
            let content: Vec<u8> = (0..*size).map(|at| (at % 251) as u8).collect();
            add(tar, &path, b'0', "", &content, a)
        }
        Step::Symlink(_, _, len, a) => {
            forget(there);
            there.insert(path.clone(), false);
            let mut target = String::new();
            (0..*len).for_each(|at| write!(target, "{}", at % 10).unwrap());
            add(tar, &path, b'2', &target[..usize::from(*len).min(99)], b"", a)
        }
        Step::Special(_, _, kind, a) => {
            forget(there);
            there.insert(path.clone(), false);
            add(tar, &path, b"346"[usize::from(*kind)], "", b"", a)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn generated_layers_have_the_digests_that_composefs_rs_computes(
        layers in prop::collection::vec(layer(), 1..4),
        with_policy: bool,
        long: bool,
    ) {
        let tars = tars_of(&layers, with_policy);
        let boot = with_policy || long;
        if long {
            let wanted = theirs::<Sha512HashValue>(&tars, boot).unwrap();
            prop_assert_eq!(ours(&tars, Algorithm::Sha512, boot).unwrap(), wanted);
        } else {
            let wanted = theirs::<Sha256HashValue>(&tars, boot).unwrap();
            prop_assert_eq!(ours(&tars, Algorithm::Sha256, boot).unwrap(), wanted);
        }
    }
}
