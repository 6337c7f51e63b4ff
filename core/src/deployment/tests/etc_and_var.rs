//! /etc that is merged again, and /var that is filled once.

use super::*;

#[test]
fn a_merged_etc_takes_the_place_of_the_old_one_whole() {
    let sandbox = sandbox();
    sandbox.make(&RealFs, 1).unwrap();
    let etc = sandbox.path(1).join("etc");
    let draft = sandbox.deployments.begin_etc(&RealFs, &id(1)).unwrap();
    std::fs::create_dir(draft.path()).unwrap();
    std::fs::write(draft.path().join("hostname"), "merged\n").unwrap();
    assert_eq!(std::fs::read(etc.join("hostname")).unwrap(), b"box\n");
    draft.commit_etc(&RealFs).unwrap();
    assert_eq!(std::fs::read(etc.join("hostname")).unwrap(), b"merged\n");
    assert_eq!(sandbox.deployments.leftovers().unwrap(), Vec::<PathBuf>::new());
    let draft = sandbox.deployments.begin_etc(&RealFs, &id(1)).unwrap();
    std::fs::create_dir(draft.path()).unwrap();
    draft.abandon(&RealFs).unwrap();
    assert_eq!(std::fs::read(etc.join("hostname")).unwrap(), b"merged\n");
}

#[test]
fn a_power_cut_while_etc_is_merged_again_leaves_the_old_one_or_the_new_one_whole() {
    cut_everywhere(
        |sandbox| drop(sandbox.make(&RealFs, 1).unwrap()),
        |sandbox, fs| {
            let draft = sandbox.deployments.begin_etc(fs, &id(1))?;
            fs.create_dir(draft.path(), 0o755)?;
            for name in ["hostname", "new"] {
                fs.create(&draft.path().join(name), 0o644, &mut &b"merged\n"[..])?;
            }
            draft.commit_etc(fs)
        },
        |sandbox, done, context| {
            let etc = sandbox.path(1).join("etc");
            let read = |name| std::fs::read_to_string(etc.join(name)).ok();
            let found = [read("hostname"), read("new")];
            let merged = Some("merged\n".to_owned());
            let old = [Some("box\n".to_owned()), None];
            assert!(
                found == [merged.clone(), merged] || (!done && found == old),
                "{found:?} {context}"
            );
            assert_eq!(sandbox.standing(), (vec![id(1)], vec![]), "{context}");
        },
    );
}

/// A second one, where a test calls its first `sandbox`.
fn another() -> Sandbox {
    sandbox()
}

#[test]
fn var_is_filled_once_and_never_again() {
    let sandbox = sandbox();
    let var = sandbox.root.join("state/os/default/var");
    let fill = |text: &str| {
        let draft = sandbox.deployments.begin_var(&RealFs).unwrap()?;
        std::fs::create_dir(draft.path()).unwrap();
        std::fs::write(draft.path().join("lib"), text).unwrap();
        sandbox.deployments.commit_var(&RealFs, &draft).unwrap();
        Some(())
    };
    assert!(fill("first").is_some());
    assert!(fill("second").is_none());
    assert_eq!(std::fs::read(var.join("lib")).unwrap(), b"first");
    std::fs::remove_file(var.join("lib")).unwrap();
    assert!(fill("third").is_none(), "an admin who empties /var wants it empty");
    std::fs::remove_dir(&var).unwrap();
    assert!(fill("reset").is_some(), "who removes it wants it anew");

    // bootc made it, empty or filled.
    let other = another();
    let var = other.root.join("state/os/default/var");
    std::fs::create_dir(&var).unwrap();
    assert!(other.deployments.begin_var(&RealFs).unwrap().is_some());
    std::fs::write(var.join("mine"), "").unwrap();
    assert!(other.deployments.begin_var(&RealFs).unwrap().is_none());
    std::fs::remove_file(var.join("mine")).unwrap();
    assert!(other.deployments.begin_var(&RealFs).unwrap().is_none());
}

#[test]
fn a_power_cut_leaves_a_whole_var_or_none() {
    cut_everywhere(
        |_| {},
        |sandbox, fs| {
            let draft = sandbox.deployments.begin_var(fs)?.unwrap();
            fs.create_dir(draft.path(), 0o755)?;
            fs.create(&draft.path().join("lib"), 0o644, &mut &b"x"[..])?;
            sandbox.deployments.commit_var(fs, &draft)
        },
        |sandbox, done, context| {
            let lib = sandbox.root.join("state/os/default/var/lib");
            let content = std::fs::read(&lib).ok();
            assert!(
                content.as_deref() == Some(b"x") || (!done && content.is_none()),
                "{content:?} {context}"
            );
            assert!(
                content.is_some() || !sandbox.root.join("state/os/default/.var-populated").exists(),
                "{context}"
            );
        },
    );
}
