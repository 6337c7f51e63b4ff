//! Layers into one tree: OCI whiteouts, hard links, missing folders, and hostile names.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use cfs_core::image::dump;
use cfs_core::layers::{Content, Entry, Item, Meta, Mtime};
use cfs_core::tree::{Merge, Tree};

fn entry(path: &[u8], item: Item) -> Entry {
    Entry {
        path: path.into(),
        meta: Meta {
            mode: 0o700,
            uid: 1,
            gid: 2,
            mtime: Mtime { sec: 3, nsec: 4 },
            xattrs: Vec::new(),
        },
        item,
    }
}

/// `NAME/` is a folder, `NAME=TEXT` a file, `NAME->TARGET` a symbolic and `NAME=>TARGET` a hard link, `NAME` empty.
fn parse(text: &str) -> Entry {
    let text = text.trim();
    if let Some((name, target)) = text.split_once("->") {
        return entry(name.as_bytes(), Item::Symlink(target.as_bytes().into()));
    }
    if let Some((name, target)) = text.split_once("=>") {
        return entry(name.as_bytes(), Item::Hardlink(target.as_bytes().into()));
    }
    if let Some((name, content)) = text.split_once('=') {
        return entry(
            name.as_bytes(),
            Item::Regular(Content::Inline(content.as_bytes().into())),
        );
    }
    match text.strip_suffix('/') {
        Some(_) => entry(text.as_bytes(), Item::Directory),
        None => entry(text.as_bytes(), Item::Regular(Content::Inline((*b"").into()))),
    }
}

fn merge(layers: &[&str]) -> cfs_core::Result<Tree> {
    let mut merge = Merge::new();
    for layer in layers {
        merge.layer(layer.split_whitespace().map(|text| Ok(parse(text))))?;
    }
    merge.finish()
}

/// Every path, with `/` after folders, `=content`, `->target`, in the tree's order.
fn names(layers: &[&str]) -> String {
    let tree = merge(layers).unwrap();
    let show = |found: cfs_core::tree::Found<'_>| {
        use cfs_core::tree::{Kind, Regular};
        let path = String::from_utf8_lossy(&found.path[1..]).into_owned();
        match found.inode.kind() {
            Kind::Directory => path + "/",
            Kind::Regular(Regular::Inline(b"")) => path,
            Kind::Regular(Regular::Inline(content)) => path + "=" + &String::from_utf8_lossy(content),
            Kind::Symlink(target) => path + "->" + &String::from_utf8_lossy(target),
            _ => path + "?",
        }
    };
    tree.walk().skip(1).map(show).collect::<Vec<_>>().join(" ")
}

fn refusal(path: &[u8], item: Item) -> String {
    let mut merge = Merge::new();
    merge
        .layer([Ok(entry(b"dir/", Item::Directory)), Ok(parse("file=x"))])
        .unwrap();
    merge.layer([Ok(entry(path, item))]).unwrap_err().to_string()
}

fn line(tree: &Tree, path: &str) -> String {
    let mut out = Vec::new();
    dump::write(tree, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    text.lines()
        .find(|line| line.starts_with(&format!("{path} ")))
        .unwrap()
        .to_owned()
}

#[test]
fn a_later_layer_wins_and_folders_keep_what_is_in_them() {
    assert_eq!(
        names(&["a/ a/x=1 a/y=2 b=3", "a/ a/y=4 b/ b/z=5"]),
        "a/ a/x=1 a/y=4 b/ b/z=5"
    );
    assert_eq!(names(&["a/ a/x=1", "a=2", "a/ a/z=3"]), "a/ a/z=3");
    assert_eq!(names(&["a/ a/x=1 a=2"]), "a=2", "in one layer, too");
    let tree = merge(&["a/", "a/"]).unwrap();
    assert!(line(&tree, "/a").contains(" 40700 2 1 2 0 3.4 "));
}

#[test]
fn whiteouts_hide_earlier_layers_only_wherever_they_stand() {
    assert_eq!(names(&["a/ a/x=1 a/y=2", "a/.wh.x"]), "a/ a/y=2");
    for layer in ["a/.wh.x a/x=new", "a/x=new a/.wh.x"] {
        assert_eq!(names(&["a/ a/x=old", layer]), "a/ a/x=new", "{layer}");
    }
    for layer in [
        ".wh.a a/ a/new=2",
        "a/ a/new=2 .wh.a",
        "a/new=2 a/ .wh.a",
        "a/ .wh.a a/new=2",
    ] {
        assert_eq!(
            names(&["a/ a/old=1 a/sub/ a/sub/old=1", layer]),
            "a/ a/new=2",
            "{layer}"
        );
    }
    assert_eq!(names(&["a/ a/x=1", ".wh.a", "a/ a/y=2"]), "a/ a/y=2");
}

#[test]
fn a_name_of_255_bytes_can_be_hidden_though_its_whiteout_is_longer() {
    let long = "n".repeat(255);
    assert_eq!(
        names(&[&format!("a/ a/{long}=1 a/x"), &format!("a/.wh.{long}")]),
        "a/ a/x"
    );
    let error = refusal(
        format!("dir/.wh.{long}n").as_bytes(),
        Item::Regular(Content::Inline((*b"").into())),
    );
    assert!(error.contains("255 bytes"), "{error}");
}

#[test]
fn a_name_in_a_message_makes_no_line_of_its_own() {
    let error = refusal(b"dir/../x\nerror: all is well\x1b[31m", Item::Directory);
    assert!(
        error.contains("x\\nerror: all is well\\u{1b}[31m") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn an_opaque_folder_hides_earlier_layers_only_at_any_depth_wherever_its_mark_stands() {
    let lower = "a/ a/x=1 a/sub/ a/sub/deep=1 a/sub/deeper/ a/sub/deeper/z=1 b=1";
    for layer in [
        "a/.wh..wh..opq a/new=2 a/sub/ a/sub/fresh=3",
        "a/new=2 a/sub/ a/sub/fresh=3 a/.wh..wh..opq",
        "a/ a/sub/ a/.wh..wh..opq a/sub/fresh=3 a/new=2",
        "a/sub/fresh=3 a/.wh..wh..opq a/new=2",
    ] {
        assert_eq!(names(&[lower, layer]), "a/ a/new=2 a/sub/ a/sub/fresh=3 b=1", "{layer}");
    }
    assert_eq!(
        names(&["a/ a/x=1 a/.wh..wh..opq"]),
        "a/ a/x=1",
        "a layer's own mark hides nothing of it"
    );
    assert_eq!(names(&[lower, ".wh..wh..opq c=4"]), "c=4", "of the root");
}

#[test]
fn a_folder_that_only_its_entries_imply_is_new_where_its_own_is_hidden() {
    let tree = merge(&["a/ a/old=1", "a/new=2 .wh.a"]).unwrap();
    assert!(
        line(&tree, "/a").contains(" 40755 2 0 0 0 0.0 "),
        "{}",
        line(&tree, "/a")
    );
    assert!(tree.lookup("a/old").is_none() && tree.lookup("a/new").is_some());
}

#[test]
fn whiteouts_of_what_is_not_there_do_nothing() {
    assert_eq!(names(&[".wh.x no/.wh.x no/where/.wh..wh..opq a=1 a/.wh.x"]), "a=1");
    assert_eq!(
        names(&["a=1", ".wh..wh.plnk .wh..wh.aufs=1"]),
        "a=1",
        "AUFS bookkeeping is skipped"
    );
}

#[test]
fn missing_folders_are_made_and_given_ones_keep_their_metadata() {
    let tree = merge(&["a/", "a/b/c=1"]).unwrap();
    assert!(
        line(&tree, "/a").contains(" 40700 3 1 2 0 3.4 "),
        "{}",
        line(&tree, "/a")
    );
    assert!(
        line(&tree, "/a/b").contains(" 40755 2 0 0 0 0.0 "),
        "{}",
        line(&tree, "/a/b")
    );
    let tree = merge(&["a/b/c=1 a/b/"]).unwrap();
    assert!(
        line(&tree, "/a/b").contains(" 40700 2 1 2 0 3.4 "),
        "described after what is in it"
    );
}

#[test]
fn hard_links_share_an_inode_in_and_across_layers() {
    let tree = merge(&["d/ d/f=x g=>d/f", "h=>/g", ".wh.g"]).unwrap();
    let inode = tree.lookup("d/f").unwrap();
    assert_eq!(tree.lookup("h").unwrap().id(), inode.id());
    assert_eq!((tree.lookup("g").is_none(), inode.nlink()), (true, 2));
    assert_eq!(
        names(&["s->gone t=>s"]),
        "s->gone t->gone",
        "a link to a symbolic link is that link"
    );
    assert_eq!(
        names(&["f=x g=>f", "f=y"]),
        "f=y g=x",
        "what replaces one name leaves the other"
    );
    assert_eq!(names(&["f=x f=>f"]), "f=x");
}

#[test]
fn nothing_is_reached_through_a_link() {
    let error = merge(&["l->/etc l/passwd=root"]).unwrap_err().to_string();
    assert!(
        error.contains("l/passwd") && error.contains("links are not followed"),
        "{error}"
    );
    assert_eq!(
        names(&["etc/ l->etc", "l/passwd=root"]),
        "etc/ l/ l/passwd=root",
        "overlayfs hides an earlier link"
    );
    assert!(merge(&["etc/ etc/f=1 l->etc", "g=>l/f"]).is_err());
}

#[test]
fn hostile_names_are_refused_or_confined_and_named() {
    let file = || Item::Regular(Content::Inline((*b"x").into()));
    for path in [
        &b"../x"[..],
        b"a/../../b",
        b"dir/..",
        b"nul\0",
        &[b'n'; 256],
        b"file/.wh.x/y/../z",
    ] {
        let error = refusal(path, file());
        assert!(
            error.contains(&*String::from_utf8_lossy(&path[..path.len().min(3)])),
            "{error}"
        );
    }
    for (path, why) in [
        (&b".wh."[..], "whiteout"),
        (b".wh..", "whiteout"),
        (b".wh...", "whiteout"),
        (b".wh.x/y", "whiteout"),
    ] {
        assert!(refusal(path, file()).contains(why));
    }
    assert!(refusal(b"", file()).contains("root"));
    for target in [
        &b"dir"[..],
        b"missing",
        b"",
        b"file/x",
        b"../file",
        b"/dir/../file",
        b"nul\0",
    ] {
        assert!(
            refusal(b"a", Item::Hardlink(target.into())).contains("a hard link to"),
            "{target:?}"
        );
    }
    assert!(refusal(b"a", Item::Symlink((*b"").into())).contains("target"));
    assert!(refusal(b"a", Item::Symlink([b't'; 4096].into())).contains("4095"));
    assert_eq!(
        names(&["//a//b/./c=1 ./a/./d/"]),
        "a/ a/b/ a/b/c=1 a/d/",
        "absolute names are names below the root"
    );
}

#[test]
fn a_name_may_be_anything_else() {
    let odd: [&[u8]; 5] = [b"new\nline", b"\xff\xfe", b"-", b"...", &[b'x'; 255]];
    let mut merge = Merge::new();
    let entries = odd.iter().map(|name| Ok(entry(name, Item::Fifo)));
    merge.layer(entries).unwrap();
    let tree = merge.finish().unwrap();
    assert!(odd.iter().all(|name| tree.lookup(name).is_some()));
}

#[test]
fn many_replacements_and_marks_stay_cheap() {
    let layer: String = (0..20_000)
        .map(|at| format!("d/f{at}=x d/.wh..wh..opq f=1 f/ "))
        .collect();
    let started = std::time::Instant::now();
    merge(&[&layer, &layer]).unwrap();
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
