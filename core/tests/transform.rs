//! What is not an operating system is refused by name; labels follow the policy in the tree; paths resolve inside it.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use cfs_core::Result;
use cfs_core::ids::ObjectId;
use cfs_core::image::dump;
use cfs_core::tree::{Kind, Tree};

fn tree(lines: &[&str]) -> Tree {
    let mut text = String::from("/ 0 40700 2 9 9 0 1.0 - - - user.root=1\n");
    for line in lines {
        let (path, rest) = line.split_once(' ').unwrap();
        text += &match rest.split_once(' ').map_or((rest, ""), |(kind, rest)| (kind, rest)) {
            ("dir", xattrs) => format!("{path} 0 40755 2 1 2 0 5.7 - - - {xattrs}\n"),
            ("file", content) => {
                let content = content.replace(' ', "\\x20").replace('\n', "\\n");
                let size = content.replace("\\x20", " ").replace("\\n", "\n").len();
                format!("{path} {size} 100644 1 0 0 0 3.0 - {content} -\n")
            }
            ("link", target) => format!("{path} 0 120777 1 0 0 0 3.0 {target} - -\n"),
            ("hard", target) => format!("{path} 0 @100644 1 0 0 0 3.0 {target} - -\n"),
            (mode, _) => format!("{path} 0 {mode} 1 0 0 0 3.0 - - -\n"),
        };
    }
    dump::parse(text.as_bytes()).unwrap()
}

const OS: [&str; 4] = [
    "/usr dir security.capability=c user.x=1",
    "/boot dir",
    "/sysroot dir",
    "/etc dir",
];

fn text(tree: &Tree) -> String {
    let mut text = Vec::new();
    dump::write(tree, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn nothing(id: &ObjectId) -> Result<Vec<u8>> {
    panic!("{id} was read")
}

fn with_policy(file_contexts: &str, more: &[&str]) -> Result<Tree> {
    let mut lines: Vec<String> = OS.iter().map(|l| (*l).to_owned()).collect();
    lines.push("/etc/selinux dir".into());
    lines.push("/etc/selinux/config file SELINUXTYPE=p".into());
    for folder in ["p", "p/contexts", "p/contexts/files"] {
        lines.push(format!("/etc/selinux/{folder} dir"));
    }
    lines.push(format!(
        "/etc/selinux/p/contexts/files/file_contexts file {file_contexts}"
    ));
    lines.extend(more.iter().map(|l| (*l).to_owned()));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut tree = tree(&lines);
    tree.transform_for_oci()?;
    tree.transform_for_boot(&nothing)?;
    Ok(tree)
}

fn label(tree: &Tree, path: &str) -> Option<String> {
    let label = tree.lookup(path).unwrap().xattr(b"security.selinux")?;
    Some(String::from_utf8(label.to_vec()).unwrap())
}

#[test]
fn the_root_takes_the_metadata_of_usr_and_run_is_emptied() {
    let mut tree = tree(&[OS[0], "/run dir user.y=1", "/run/left file x", "/a 100644"]);
    tree.transform_for_oci().unwrap();
    let (root, run) = (tree.root(), tree.lookup("run").unwrap());
    assert_eq!(
        (root.mode(), root.uid(), root.gid(), root.mtime().nsec),
        (0o40755, 1, 2, 7)
    );
    let keys: Vec<&[u8]> = root.xattrs().map(|(key, _)| key).collect();
    assert_eq!(keys, [b"security.capability"]);
    assert_eq!(
        (run.children().count(), run.mtime().sec, run.xattrs().count()),
        (0, 5, 0)
    );
}

#[test]
fn a_container_without_usr_keeps_its_root_and_what_is_no_folder() {
    let mut alone = tree(&["/program 100755", "/run dir", "/run/left file x", "/b dir user.y=1"]);
    alone.transform_for_container();
    let (root, run) = (alone.root(), alone.lookup("run").unwrap());
    assert_eq!((root.mode(), root.uid(), root.mtime().sec), (0o40700, 9, 1));
    assert_eq!(
        (root.xattrs().count(), run.children().count(), run.mtime().sec),
        (0, 0, 1)
    );
    assert_eq!(alone.lookup("b").unwrap().xattrs().count(), 0);
    let mut linked = tree(&[OS[0], "/run link etc"]);
    linked.transform_for_container();
    assert_eq!(
        text(&linked).lines().filter(|line| line.starts_with("/run ")).count(),
        1
    );

    let mut whole = tree(&OS);
    whole.transform_for_container();
    let mut strict = tree(&OS);
    strict.transform_for_oci().unwrap();
    assert_eq!(text(&whole), text(&strict));
}

#[test]
fn what_is_no_operating_system_is_refused_with_the_folder_that_is_missing() {
    let refusal = |lines: &[&str]| {
        let mut tree = tree(lines);
        let refused = tree
            .transform_for_oci()
            .and_then(|()| tree.transform_for_boot(&nothing));
        refused.unwrap_err().to_string()
    };
    assert!(refusal(&["/etc dir"]).starts_with("/usr: "));
    assert!(refusal(&["/usr link etc", "/etc dir"]).starts_with("/usr: "));
    assert!(refusal(&[OS[0], "/run file x"]).starts_with("/run: "));
    assert!(refusal(&[OS[0], "/sysroot dir"]).starts_with("/boot: "));
    assert!(refusal(&[OS[0], "/boot dir"]).starts_with("/sysroot: "));
    assert!(refusal(&[OS[0], OS[1], OS[2], "/etc dir", "/etc/selinux file x"]).contains("/etc/selinux"));
}

#[test]
fn the_last_expression_that_matches_wins_whatever_kind_it_is() {
    let contexts =
        "/.* any\n/usr/b -- literal\n/usr/[abc] -- class\n/usr/c -- later\n/usr/(?=d).* ahead\n/usr/d -d folder";
    let more = [
        "/usr/a file 1",
        "/usr/b file 1",
        "/usr/c file 1",
        "/usr/d file 1",
        "/usr/e file 1",
        "/usr/link link a",
    ];
    let tree = with_policy(contexts, &more).unwrap();
    let labels: Vec<_> = ["usr/a", "usr/b", "usr/c", "usr/d", "usr/e", "usr/link"]
        .map(|p| label(&tree, p).unwrap())
        .into();
    assert_eq!(labels, ["class", "class", "later", "ahead", "any", "any"]);
    assert_eq!(label(&tree, "").as_deref(), Some("any"));
}

#[test]
fn a_hard_link_whose_names_want_different_labels_becomes_two_files() {
    let more = ["/usr/a file 1", "/usr/b hard /usr/a", "/usr/c hard /usr/a"];
    let tree = with_policy("/.* one\n/usr/b two", &more).unwrap();
    let [a, b, c] = ["usr/a", "usr/b", "usr/c"].map(|path| tree.lookup(path).unwrap());
    assert_eq!((a.id(), a.nlink(), b.nlink()), (c.id(), 2, 1));
    assert_eq!(
        (label(&tree, "usr/a").unwrap(), label(&tree, "usr/b").unwrap()),
        ("one".into(), "two".into())
    );
}

#[test]
fn a_broken_policy_is_refused_with_file_and_line() {
    for (contexts, why) in [
        ("/a b\n\n/usr/[ x", "line 3"),
        ("/usr", "line 1"),
        ("/usr -x y", "file type"),
        ("/usr -- y z", "more than"),
        ("/(unclosed x", "line 1"),
    ] {
        let error = with_policy(contexts, &[]).unwrap_err().to_string();
        assert!(
            error.contains("/etc/selinux/p/contexts/files/file_contexts") && error.contains(why),
            "{error}"
        );
    }
}

#[test]
fn without_a_policy_there_are_no_labels() {
    let mut tree = tree(&[OS[0], OS[1], OS[2], "/a dir security.selinux=old"]);
    tree.transform_for_boot(&nothing).unwrap();
    assert_eq!(label(&tree, "a"), None);
}

#[test]
fn links_resolve_inside_the_tree_and_circles_lead_nowhere() {
    let tree = tree(&[
        "/usr dir",
        "/usr/lib dir",
        "/usr/lib/file file x",
        "/lib link usr/lib",
        "/abs link /lib/../lib/file",
        "/up link ../../../usr",
        "/a link b",
        "/b link a",
        "/gone link nowhere",
    ]);
    let file = tree.lookup("usr/lib/file").unwrap().id();
    for path in ["lib/file", "/abs", "up/lib/file", "./lib//file"] {
        assert_eq!(tree.resolve(path).map(|i| i.id()), Some(file), "{path}");
    }
    assert!(
        ["a", "gone", "lib/none", "abs/x"]
            .iter()
            .all(|path| tree.resolve(path).is_none())
    );
    assert!(tree.lookup("lib/file").is_none() && matches!(tree.lookup("lib").unwrap().kind(), Kind::Symlink(_)));
}
