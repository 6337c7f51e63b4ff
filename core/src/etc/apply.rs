//! Writing the result of a merge into a new folder.
//!
//! Invariant: the folder is new, every name in it is made relative to its open parent and follows no link, and nothing
//! outside it is touched. It is not durable before the caller synced the file system. Content is never left out, except
//! for that of the administrator's files which have gone since they were listed: they are left out altogether. Owners,
//! attributes and devices are set as far as this user may, and what could not be set is reported.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::listing::{Item, Listing, Node, readable_mode};
use super::plan::{Plan, Side, Step};
use super::source::{Source, is_gone};
use crate::error::{Error, Result};
use crate::layers::Meta;
use crate::sys::dir::{self, Dir, Handle};

/// Attributes of overlayfs, without their prefix, that lead to an inode or count its names.
const OF_INODES: [&[u8]; 4] = [b"origin", b"upper", b"uuid", b"nlink"];

/// What was written, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Paths that were made.
    pub written: usize,
    /// Paths whose owner could not be set.
    pub owners_skipped: usize,
    /// Extended attributes that could not be set.
    pub attributes_skipped: usize,
    /// Devices and sockets that were not made.
    pub nodes_skipped: Vec<PathBuf>,
}

impl Report {
    /// Whether owners and attributes are what the image says: what
    /// [`Rules::ownership`](super::Rules::ownership) of a later merge has to be, and the contrary of
    /// [`Origin::etc_unprivileged`](crate::deployment::Origin::etc_unprivileged).
    pub fn complete(&self) -> bool {
        self.owners_skipped == 0 && self.attributes_skipped == 0
    }

    /// One line for each thing that could not be done.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.owners_skipped > 0 {
            notes.push(format!(
                "{} of {} files and folders keep this user as owner: setting another one needs root",
                self.owners_skipped, self.written
            ));
        }
        if self.attributes_skipped > 0 {
            notes.push(format!(
                "{} extended attributes could not be set: that needs root, or another file system",
                self.attributes_skipped
            ));
        }
        for path in &self.nodes_skipped {
            notes.push(format!("{}: devices and sockets are not made here", path.display()));
        }
        notes
    }
}

/// Writes a whole listing into the new folder `to`.
///
/// # Errors
/// As [`apply`].
pub fn write(source: &dyn Source, to: &Path) -> Result<Report> {
    apply(&Plan::fresh(source.listing()), &Nothing(Listing::empty()), source, to)
}

/// Writes the result of a merge into the new folder `to`, whose parent exists.
///
/// # Errors
/// [`Error::Io`] where something cannot be read or made, also where `to` exists; [`Error::Tree`] for a step whose path
/// its side does not have.
pub fn apply(plan: &Plan, current: &dyn Source, new: &dyn Source, to: &Path) -> Result<Report> {
    let mut writer = Writer {
        plan,
        current,
        new,
        privileged: dir::is_privileged(),
        links: HashMap::new(),
        open: Vec::new(),
        report: Report::default(),
    };
    let mut steps = plan.steps.iter();
    if plan.steps.contains_key(Path::new("")) {
        steps.next();
    }
    writer.open.push((PathBuf::new(), Dir::create(to)?));
    writer.report.written += 1;
    for (path, step) in steps {
        writer.step(path, step)?;
    }
    while !writer.open.is_empty() {
        writer.close()?;
    }
    Ok(writer.report)
}

/// A source without anything.
struct Nothing(Listing);

impl Source for Nothing {
    fn listing(&self) -> &Listing {
        &self.0
    }

    fn open(&self, path: &Path) -> Result<Box<dyn io::Read + '_>> {
        Err(missing(path))
    }
}

fn missing(path: &Path) -> Error {
    Error::Tree {
        path: path.to_path_buf(),
        why: "the merge names it, but it is not there".into(),
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    current: &'a dyn Source,
    new: &'a dyn Source,
    privileged: bool,
    /// The first name that was written of each file with several.
    links: HashMap<(Side, u64), PathBuf>,
    /// The folders from the top to the one that is being filled.
    open: Vec<(PathBuf, Dir)>,
    report: Report,
}

impl<'a> Writer<'a> {
    fn source(&self, side: Side) -> &'a dyn Source {
        match side {
            Side::Current => self.current,
            Side::New => self.new,
        }
    }

    fn node(&self, step: &Step) -> Result<&'a Node> {
        let listing = self.source(step.from).listing();
        listing.get(&step.path).ok_or_else(|| missing(&step.path))
    }

    /// The bytes of a file; none of anything else.
    fn content(&self, node: &Node, step: &Step) -> Result<Box<dyn io::Read + 'a>> {
        match node.item {
            Item::Regular(_) => self.source(step.from).open(&step.path),
            _ => Ok(Box::new(io::empty())),
        }
    }

    fn step(&mut self, path: &Path, step: &Step) -> Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        while self.open.last().is_some_and(|(at, _)| at != parent) {
            self.close()?;
        }
        let (Some((_, folder)), Some(name)) = (self.open.last(), path.file_name()) else {
            return Err(missing(parent));
        };
        let node = self.node(step)?;
        if node.is_dir() {
            let made = folder.make_dir(name)?;
            self.report.written += 1;
            self.open.push((path.to_path_buf(), made));
            return Ok(());
        }
        let group = node.group.filter(|_| !step.alone).map(|group| (step.from, group));
        if let Some(first) = group.and_then(|group| self.links.get(&group)) {
            let (_, top) = self.open.first().ok_or_else(|| missing(parent))?;
            let home = top.walk(first.parent().unwrap_or(Path::new("")))?;
            folder.make_link(name, &home, first.file_name().unwrap_or_default())?;
            self.report.written += 1;
            return Ok(());
        }
        let mut content = match self.content(node, step) {
            Err(error) if step.from == Side::Current && is_gone(&error) => return Ok(()),
            content => content?,
        };
        let made = leaf(
            folder,
            name,
            node,
            step.from,
            &mut content,
            self.privileged,
            &mut self.report,
        )?;
        if !made {
            self.report.nodes_skipped.push(path.to_path_buf());
            return Ok(());
        }
        self.report.written += 1;
        if let Some(group) = group {
            self.links.insert(group, path.to_path_buf());
        }
        Ok(())
    }

    /// Leaves the innermost folder: its own metadata last, since filling it needs permissions and changes its time.
    fn close(&mut self) -> Result<()> {
        let Some((path, folder)) = self.open.pop() else {
            return Ok(());
        };
        let Some(step) = self.plan.steps.get(&path) else {
            return folder.handle().set_mode(0o755);
        };
        let node = self.node(step)?;
        dress(&folder.handle(), node, step.from, self.privileged, &mut self.report)
    }
}

/// Makes one file, link or node; false where it is of a kind that is not made.
fn leaf(
    folder: &Dir,
    name: &OsStr,
    node: &Node,
    from: Side,
    content: &mut dyn io::Read,
    privileged: bool,
    report: &mut Report,
) -> Result<bool> {
    match &node.item {
        Item::Directory => return Ok(false),
        Item::Regular(_) => {
            let path = folder.path().join(name);
            let mut file = folder.make_file(name)?;
            io::copy(content, &mut file).map_err(|e| Error::io("write", &path, e))?;
            let handle = Handle::<File> { fd: &file, path: &path };
            dress(&handle, node, from, privileged, report)?;
            return Ok(true);
        }
        Item::Symlink(target) => folder.make_symlink(name, target)?,
        Item::Fifo => folder.make_node(name, FileType::Fifo, 0)?,
        Item::CharDevice(number) if from == Side::Current => {
            if folder.make_node(name, FileType::CharacterDevice, *number).is_err() {
                return Ok(false);
            }
        }
        Item::BlockDevice(number) if from == Side::Current => {
            if folder.make_node(name, FileType::BlockDevice, *number).is_err() {
                return Ok(false);
            }
        }
        Item::CharDevice(_) | Item::BlockDevice(_) | Item::Socket => return Ok(false),
    }
    let Meta { uid, gid, .. } = node.meta;
    let owned = folder
        .stat(name)?
        .is_some_and(|stat| (stat.uid, stat.gid) == (uid, gid));
    if !owned {
        report.owners_skipped += usize::from(!tolerate(folder.set_owner(name, uid, gid))?);
    }
    for (key, value) in wanted(&node.meta, from) {
        report.attributes_skipped += usize::from(!tolerate(folder.set_xattr(name, key, value))?);
    }
    if !matches!(node.item, Item::Symlink(_)) {
        folder.set_node_mode(name, node.meta.mode)?;
    }
    folder.set_mtime(name, (node.meta.mtime.sec, node.meta.mtime.nsec))?;
    Ok(true)
}

/// Owner first (it clears setuid bits and capabilities), permissions after the attributes, time last.
fn dress<F: std::os::fd::AsFd>(
    handle: &Handle<'_, F>,
    node: &Node,
    from: Side,
    privileged: bool,
    report: &mut Report,
) -> Result<()> {
    let Meta { uid, gid, mtime, .. } = node.meta;
    if handle.owner()? != (uid, gid) {
        report.owners_skipped += usize::from(!tolerate(handle.set_owner(uid, gid))?);
    }
    for (key, value) in wanted(&node.meta, from) {
        report.attributes_skipped += usize::from(!tolerate(handle.set_xattr(key, value))?);
    }
    let mode = if privileged {
        node.meta.mode
    } else {
        readable_mode(node)
    };
    handle.set_mode(mode)?;
    handle.set_mtime((mtime.sec, mtime.nsec))
}

/// The attributes that belong on a file system. overlayfs' own mean something in the image only, or where /etc is the
/// upper layer of one and they say what the administrator replaced; those that lead to an inode have no meaning for its
/// copy.
pub(super) fn wanted(meta: &Meta, from: Side) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = meta.xattrs.iter().map(|(key, value)| (&**key, &**value));
    all.filter(move |(key, _)| match key.strip_prefix(b"trusted.overlay.") {
        None => true,
        Some(own) => from == Side::Current && !OF_INODES.contains(&own),
    })
}

/// True for done, false for what this user, or this file system, may not do; other failures stay failures.
fn tolerate(result: Result<()>) -> Result<bool> {
    use rustix::io::Errno;
    let forgiven = [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP, Errno::INVAL];
    match result {
        Ok(()) => Ok(true),
        Err(Error::Io { source, .. }) if forgiven.iter().any(|e| source.raw_os_error() == Some(e.raw_os_error())) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}
