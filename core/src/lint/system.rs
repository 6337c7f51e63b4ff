//! What a running system needs of an image: its name, its folders, its first process, its updater.

use super::Lint;
use crate::bootable::release_field;
use crate::tree::Kind;

/// Folders that are mounted on, before anything could make them: / is read-only.
const MOUNT_POINTS: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "var"];
/// The same, and a deployment is refused without them.
const OURS: [&str; 3] = ["boot", "etc", "sysroot"];
/// Folders that people write in.
const OF_PEOPLE: [(&str, &str); 2] = [("home", "var/home"), ("root", "var/roothome")];

impl Lint<'_> {
    pub(super) fn system(&mut self) {
        self.os_release();
        self.folders();
        self.init();
        self.identity();
        self.updater();
    }

    fn os_release(&mut self) {
        let path = ["etc/os-release", "usr/lib/os-release"]
            .into_iter()
            .find(|path| self.is_file(path));
        let Some(path) = path else {
            return self.error(
                "os-release",
                "neither /etc/os-release nor /usr/lib/os-release: systemd refuses to make this its root",
                "install the distribution's base package, or write the file with NAME, ID and VERSION_ID (os-release(5))",
            );
        };
        let Some(text) = self.text(path) else { return };
        if release_field(&text, "PRETTY_NAME")
            .or(release_field(&text, "NAME"))
            .is_none()
        {
            let what = format!("/{path} has no PRETTY_NAME and no NAME: the boot menu says Linux");
            self.warning("os-release", what, "add PRETTY_NAME");
        }
        if release_field(&text, "IMAGE_VERSION")
            .or(release_field(&text, "VERSION_ID"))
            .is_none()
        {
            let what = format!(
                "/{path} has neither IMAGE_VERSION nor VERSION_ID: versions cannot be told apart in the boot menu"
            );
            let remedy = "add IMAGE_VERSION, or give the image the label org.opencontainers.image.version";
            self.note("os-release", what, remedy);
        }
    }

    fn folders(&mut self) {
        for name in OURS.iter().chain(&MOUNT_POINTS) {
            let severe = match self.tree.lookup(name).map(|inode| inode.kind()) {
                Some(Kind::Directory) => continue,
                Some(Kind::Symlink(_)) => format!("/{name} is a symbolic link; something is mounted on it"),
                Some(_) => format!("/{name} is no folder; something is mounted on it"),
                None => format!("no folder /{name}; something is mounted on it, and / is read-only"),
            };
            self.error("folders", severe, format!("make /{name} an empty folder of the image"));
        }
        for (name, elsewhere) in OF_PEOPLE {
            if self.tree.lookup(name).is_some_and(|inode| inode.is_dir()) {
                let what = format!("/{name} is a folder of the image: nobody can write in it on a machine");
                self.warning(
                    "folders",
                    what,
                    format!("make it a link to {elsewhere}, and have tmpfiles.d make that"),
                );
            }
        }
    }

    fn init(&mut self) {
        let init = ["sbin/init", "usr/lib/systemd/systemd", "etc/init", "bin/init"];
        let runs = |path: &&str| {
            self.at(path)
                .is_some_and(|i| matches!(i.kind(), Kind::Regular(_)) && i.mode() & 0o111 != 0)
        };
        if !init.iter().any(runs) {
            self.error(
                "init",
                "no /sbin/init: there is nothing to boot into",
                "install systemd (Debian: systemd-sysv) in the image",
            );
        }
    }

    /// What must differ between machines.
    fn identity(&mut self) {
        let id = self.text("etc/machine-id").unwrap_or_default();
        if !matches!(id.trim(), "" | "uninitialized") {
            let what = "/etc/machine-id is set: every machine installed from this image has the same";
            self.warning("identity", what, "truncate it, or write `uninitialized` into it");
        }
        let ssh = self.at("etc/ssh");
        let keys: Vec<String> = ssh
            .into_iter()
            .flat_map(|folder| folder.children())
            .map(|child| String::from_utf8_lossy(child.name).into_owned())
            .filter(|name| name.starts_with("ssh_host_") && name.ends_with("_key"))
            .collect();
        if !keys.is_empty() {
            let what = format!(
                "secret keys of a host in /etc/ssh ({}): whoever has the image can be any of its machines",
                keys.join(", ")
            );
            self.error(
                "identity",
                what,
                "remove them; sshd-keygen makes new ones on each machine's first boot",
            );
        }
        let fstab = self.text("etc/fstab").unwrap_or_default();
        let fields = fstab.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let roots = fields
            .filter(|f| f.len() > 1 && !f[0].starts_with('#') && f[1] == "/")
            .count();
        if roots > 0 {
            let what =
                "/etc/fstab has an entry for /: systemd tries to remount the deployment with its options, and fails";
            self.warning(
                "fstab",
                what,
                "remove the entry; root= of the boot entry names the file system",
            );
        }
    }

    fn updater(&mut self) {
        if self.is_file("usr/bin/cfs-update")
            || self.is_file("usr/sbin/cfs-update")
            || self.is_file("usr/local/bin/cfs-update")
        {
            for unit in ["cfs-update-health.service", "cfs-update-finalize.service"] {
                if !self.is_file(&format!("usr/lib/systemd/system/{unit}")) {
                    let what =
                        format!("no {unit}: updates are neither judged after they booted nor finished at shutdown");
                    self.warning(
                        "updater",
                        what,
                        "install it with the program (make install DESTDIR=...)",
                    );
                }
            }
            return;
        }
        let what = "no cfs-update in the image: a machine that boots it cannot update itself";
        self.warning(
            "updater",
            what,
            "make install DESTDIR=..., unless another tool does the updates",
        );
    }
}
