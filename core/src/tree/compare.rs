//! What differs between two trees, by path.

use std::cmp::Ordering;

use super::{Inode, Tree};

/// How many paths two trees do not share, folders included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Only in the second.
    pub added: u64,
    /// Only in the first.
    pub removed: u64,
    /// In both, with another type, content, target, owner, mode or other extended attributes. Times are not compared:
    /// what is built anew has new ones.
    pub changed: u64,
}

/// Compares two trees; what is in a folder that only one of them has counts, too.
pub fn compare(old: &Tree, new: &Tree) -> Differences {
    let mut found = Differences::default();
    let mut folders = vec![(old.root(), new.root())];
    while let Some((old, new)) = folders.pop() {
        let (mut olds, mut news) = (old.children().peekable(), new.children().peekable());
        loop {
            let order = match (olds.peek(), news.peek()) {
                (Some(a), Some(b)) => a.name.cmp(b.name),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let a = (order != Ordering::Greater).then(|| olds.next()).flatten();
            let b = (order != Ordering::Less).then(|| news.next()).flatten();
            match (a.map(|child| child.inode), b.map(|child| child.inode)) {
                (Some(a), Some(b)) => {
                    found.changed += u64::from(!alike(a, b));
                    match a.is_dir() && b.is_dir() {
                        true => folders.push((a, b)),
                        false => {
                            found.removed += below(a);
                            found.added += below(b);
                        }
                    }
                }
                (Some(a), None) => found.removed += 1 + below(a),
                (None, Some(b)) => found.added += 1 + below(b),
                (None, None) => break,
            }
        }
    }
    found
}

fn alike(a: Inode<'_>, b: Inode<'_>) -> bool {
    let of = |inode: Inode<'_>| (inode.mode(), inode.uid(), inode.gid());
    of(a) == of(b) && a.kind() == b.kind() && a.xattrs().eq(b.xattrs())
}

/// How many paths are in a folder, at any depth.
fn below(top: Inode<'_>) -> u64 {
    let (mut count, mut folders) = (0, vec![top]);
    while let Some(folder) = folders.pop() {
        for child in folder.children() {
            count += 1;
            if child.inode.is_dir() {
                folders.push(child.inode);
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::dump;

    fn tree(lines: &str) -> Tree {
        dump::parse(format!("/ 4096 40755 3 0 0 0 0.0 - - -\n{lines}").as_bytes()).unwrap()
    }

    #[test]
    fn paths_are_counted_by_what_became_of_them_whatever_is_below() {
        let old = tree(
            "/a 4096 40755 2 0 0 0 1.0 - - -\n/a/gone 4096 40755 2 0 0 0 1.0 - - -\n/a/gone/f 2 100644 1 0 0 0 1.0 - hi -\n\
             /a/later 2 100644 1 0 0 0 1.0 - hi -\n/a/mode 2 100644 1 0 0 0 1.0 - hi -\n/a/text 2 100644 1 0 0 0 1.0 - hi -\n\
             /b 4096 40755 2 0 0 0 1.0 - - -\n/b/in 2 100644 1 0 0 0 1.0 - hi -\n/x 2 100644 1 0 0 0 1.0 - hi - user.a=1\n",
        );
        let new = tree(
            "/a 4096 40755 2 0 0 0 1.0 - - -\n/a/later 2 100644 1 0 0 0 2.0 - hi -\n/a/mode 2 100600 1 0 0 0 1.0 - hi -\n\
             /a/text 2 100644 1 0 0 0 1.0 - ho -\n/b 2 100644 1 0 0 0 1.0 - hi -\n/c 4096 40755 2 0 0 0 1.0 - - -\n\
             /c/new 1 120777 1 0 0 0 1.0 a - -\n/x 2 100644 1 0 0 0 1.0 - hi - user.a=2\n",
        );
        // The folder gone and its file, what was in b; c and its link; mode, text, b, x.
        let found = Differences {
            added: 2,
            removed: 3,
            changed: 4,
        };
        assert_eq!(compare(&old, &new), found);
        assert_eq!(compare(&old, &old), Differences::default());
    }
}
