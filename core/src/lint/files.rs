//! Owners, permissions, and state in places that an update never reaches. One walk over the tree.

use super::{Lint, Paths};
use crate::tree::{Found, Kind};

/// Users of people, not of the system, begin here on every distribution.
const FIRST_PERSON: u32 = 1000;
/// Reserved: nobody, and ids that do not fit.
const NOBODY: u32 = 65534;

#[derive(Default)]
struct Walked {
    set_id: Paths,
    people: Paths,
    writable: Paths,
    var: Paths,
    run: Paths,
    whiteouts: Paths,
    device: Paths,
}

impl Lint<'_> {
    pub(super) fn files(&mut self) {
        self.root();
        let mut walked = Walked::default();
        for found in self.tree.walk() {
            walked.look(&found);
        }
        self.report_owners(&walked);
        self.report_state(&walked);
        let shadow = self.at("etc/shadow").map(|inode| inode.permissions());
        if let Some(mode) = shadow.filter(|mode| mode & 0o007 != 0) {
            let what = format!("/etc/shadow has mode {mode:04o}: everybody can read the passwords' hashes");
            self.error("modes", what, "chmod 0640 /etc/shadow");
        }
        let tmp = self
            .tree
            .lookup("tmp")
            .filter(|inode| inode.is_dir())
            .map(|inode| inode.permissions());
        if let Some(mode) = tmp.filter(|mode| *mode != 0o1777) {
            let what = format!("/tmp has mode {mode:04o}, and is what programs get where no tmpfs is mounted");
            self.warning("modes", what, "chmod 1777 /tmp");
        }
    }

    fn root(&mut self) {
        let root = self.tree.root();
        if (root.uid(), root.gid()) != (0, 0) {
            let what = format!("/ belongs to user {} and group {}", root.uid(), root.gid());
            let remedy = "build the image as root, or in a user namespace, so that owners are those of the packages";
            self.error("owners", what, remedy);
        }
        if root.permissions() & 0o005 != 0o005 {
            let what = format!(
                "/ has mode {:04o}: nobody but root can get anywhere",
                root.permissions()
            );
            self.error("modes", what, "chmod 0755 / in the image");
        }
    }

    fn report_owners(&mut self, walked: &Walked) {
        if !walked.set_id.is_empty() {
            let what = format!("setuid programs of users that are people's: {}", walked.set_id);
            self.error("owners", what, "chown them to root, or build the image as root");
        }
        if !walked.people.is_empty() {
            let what = format!(
                "files of the system that belong to users from {FIRST_PERSON} on: {}; the first person of a machine gets that id",
                walked.people
            );
            self.error(
                "owners",
                what,
                "build the image as root, or in a user namespace; chown what was copied in",
            );
        }
        if !walked.writable.is_empty() {
            let what = format!("everybody may write to {}", walked.writable);
            self.error("modes", what, "chmod o-w");
        }
    }

    fn report_state(&mut self, walked: &Walked) {
        if !walked.var.is_empty() {
            let what = format!(
                "{} files in /var ({}): a machine gets them with its first deployment, and never an update of them",
                walked.var.count, walked.var
            );
            let remedy =
                "move what belongs to the system to /usr, and have tmpfiles.d make the rest; nothing, if it is meant";
            self.warning("var", what, remedy);
        }
        if !walked.run.is_empty() {
            let what = format!("files in /run or /tmp: {}", walked.run);
            self.warning(
                "leftovers",
                what,
                "remove them: a running system hides them, and they cost space",
            );
        }
        if !walked.whiteouts.is_empty() {
            let what = format!(
                "character devices 0:0, which overlayfs takes for removed files: {}",
                walked.whiteouts
            );
            self.warning("leftovers", what, "remove them");
        }
        if !walked.device.is_empty() {
            let what = format!("device nodes outside /dev: {}", walked.device);
            self.warning("leftovers", what, "remove them; udev makes devices");
        }
    }
}

impl Walked {
    fn look(&mut self, found: &Found<'_>) {
        let (path, inode) = (found.path.as_slice(), found.inode);
        let below = |folder: &str| {
            path.strip_prefix(folder.as_bytes())
                .is_some_and(|rest| rest.starts_with(b"/"))
        };
        let file = matches!(inode.kind(), Kind::Regular(_));
        let person = |id: u32| (FIRST_PERSON..NOBODY).contains(&id) || id > NOBODY;
        let of_people = person(inode.uid()) || person(inode.gid());
        let mode = inode.permissions();
        let system = path != b"/"
            && !["/var", "/home", "/root", "/srv", "/tmp", "/run", "/dev"]
                .iter()
                .any(|folder| below(folder));
        if file && of_people && mode & 0o6000 != 0 {
            self.set_id.push(path);
        } else if of_people && system {
            self.people.push(path);
        }
        let open = mode & 0o002 != 0 && (file || inode.is_dir() && mode & 0o1000 == 0);
        if open && system {
            self.writable.push(path);
        }
        if below("/var") && !inode.is_dir() && !matches!(inode.kind(), Kind::Symlink(_)) {
            self.var.push(path);
        }
        if (below("/run") || below("/tmp")) && !inode.is_dir() {
            self.run.push(path);
        }
        match inode.kind() {
            Kind::CharDevice(0) => self.whiteouts.push(path),
            Kind::CharDevice(_) | Kind::BlockDevice(_) if !below("/dev") => self.device.push(path),
            _ => {}
        }
    }
}
