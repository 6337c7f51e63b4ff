//! A record is whole or not there, whenever the power is cut while it is made, sealed anew or removed.

use super::*;

#[test]
fn a_power_cut_leaves_a_whole_new_deployment_or_none_and_the_others_as_they_were() {
    cut_everywhere(
        |sandbox| drop(sandbox.make(&RealFs, 1).unwrap()),
        |sandbox, fs| sandbox.make(fs, 2).map(drop),
        |sandbox, done, context| {
            let (good, bad) = sandbox.standing();
            assert!(bad.is_empty(), "{bad:?} {context}");
            assert!(
                good == [id(1), id(2)] || (!done && good == [id(1)]),
                "{good:?} {context}"
            );
            let whole = |byte| std::fs::read(sandbox.path(byte).join("etc/hostname")).unwrap() == b"box\n";
            assert!(good.iter().all(|id| whole(id.as_bytes()[0])), "{context}");
        },
    );
}

#[test]
fn a_power_cut_leaves_a_removed_deployment_whole_or_gone() {
    cut_everywhere(
        |sandbox| {
            sandbox.make(&RealFs, 1).unwrap();
            sandbox.make(&RealFs, 2).unwrap();
        },
        |sandbox, fs| sandbox.deployments.remove(fs, &id(2)),
        |sandbox, done, context| {
            let (good, bad) = sandbox.standing();
            assert!(bad.is_empty(), "{bad:?} {context}");
            assert!(
                good == [id(1)] || (!done && good == [id(1), id(2)]),
                "{good:?} {context}"
            );
        },
    );
}

#[test]
fn a_power_cut_while_an_image_gets_another_name_leaves_one_that_is_sealed() {
    cut_everywhere(
        |sandbox| drop(sandbox.make(&RealFs, 1).unwrap()),
        |sandbox, fs| {
            let origin = sandbox.deployments.load(&id(1))?.origin().clone();
            sandbox.deployments.relabel(fs, signed(1, "2"), origin).map(drop)
        },
        |sandbox, done, context| {
            let read = sandbox.deployments.load(&id(1)).unwrap().verify(&trust()).unwrap();
            let reference = read.origin().reference.as_str();
            assert!(
                reference == "docker://h/os:2" || (!done && reference == "docker://h/os:1"),
                "{context}"
            );
            assert_eq!(read.signed().facts().reference, reference);
            assert!(!done || !read.path().join(NEXT_SEAL).exists(), "{context}");
        },
    );
}

#[test]
fn a_second_power_cut_while_an_image_gets_a_third_name_leaves_one_that_is_sealed() {
    cut_everywhere(
        |sandbox| {
            let origin = sandbox.make(&RealFs, 1).unwrap().origin().clone();
            sandbox.deployments.relabel(&RealFs, signed(1, "2"), origin).unwrap();
            // As the first cut left it: the origin is new, the seal has not got its place.
            let path = sandbox.path(1);
            std::fs::rename(path.join(SEAL), path.join(NEXT_SEAL)).unwrap();
            std::fs::write(path.join(SEAL), signed(1, "1").seal()).unwrap();
        },
        |sandbox, fs| {
            let origin = sandbox.deployments.load(&id(1))?.origin().clone();
            sandbox.deployments.relabel(fs, signed(1, "3"), origin).map(drop)
        },
        |sandbox, done, context| {
            let read = sandbox.deployments.load(&id(1)).unwrap().verify(&trust());
            let reference = read
                .unwrap_or_else(|e| panic!("{e} {context}"))
                .origin()
                .reference
                .clone();
            assert!(
                reference == "docker://h/os:3" || (!done && reference == "docker://h/os:2"),
                "{context}"
            );
        },
    );
}
