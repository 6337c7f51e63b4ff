//! A sysroot with one deployment, and the program run on it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cfs_core::deployment::{Deployments, Layout, Origin};
use cfs_core::ids::{Algorithm, DeploymentId, ManifestDigest};
use cfs_core::image::{Versions, dump, writer};
use cfs_core::signature::{ImageFacts, SignedImage, SigningKey};
use cfs_core::store::Store;
use cfs_core::sys::fs::RealFs;
use cfs_core::sys::verity;
use cfs_core::testing::synced;
use jiff::Timestamp;

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not run: mounting needs root");
    }
    root
}

/// What a run left.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit {:?}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Outcome {
    /// Of the program with nothing but these arguments.
    pub fn of(arguments: &[&str]) -> Self {
        Command::new(PROGRAM).args(arguments).output().unwrap().into()
    }

    pub fn succeeded(&self) {
        assert_eq!(self.code, Some(0), "{self}");
    }

    pub fn shows(&self, text: &str) {
        assert!(self.stdout.contains(text), "no {text:?}: {self}");
    }

    /// Refused with this code, saying all of this, what was expected and what to do.
    pub fn refused(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self}");
        for text in ["not booted", "expected: ", "found: ", "to do: "].iter().chain(texts) {
            assert!(self.stderr.contains(text), "no {text:?}: {self}");
        }
    }

    pub fn is_in_the_kernel_log(&self, machine: &Machine) {
        let log = fs::read_to_string(machine.path("kmsg")).unwrap();
        for line in log.lines() {
            let text = line.strip_prefix("<27>").unwrap();
            assert!(text.starts_with("cfs-update-root: "), "{log}");
        }
        assert!(log.contains("not booted") && log.contains("found: "), "{log}");
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_cfs-update-root");

const INIT: &[u8] = b"What systemd starts first, and more than sixty-four bytes, so that it is an object of its own\n";

/// A machine with one deployment, as far as the initramfs sees it.
pub struct Machine {
    keep: tempfile::TempDir,
    pub id: String,
}

impl Machine {
    pub fn new() -> Self {
        Self::without("")
    }

    /// The image lacks one folder.
    pub fn without(missing: &str) -> Self {
        Self::made(missing, Algorithm::Sha256)
    }

    /// With digests of this kind.
    pub fn with(algorithm: Algorithm) -> Self {
        Self::made("", algorithm)
    }

    fn made(missing: &str, algorithm: Algorithm) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = keep.path().join("sysroot");
        fs::create_dir(&root).unwrap();
        let store = Store::create(&root.join("composefs"), algorithm).unwrap();
        let content = b"NAME=of the image, and more than sixty-four bytes, so that it is an object of its own\n";
        let object = store.put(content).unwrap();
        let mut text = String::from("/ 0 40755 9 0 0 0 5.0 - - -\n");
        let init = store.put(INIT).unwrap();
        for folder in ["etc", "sbin", "sysroot", "usr", "usr/lib", "var"] {
            if folder != missing {
                text += &format!("/{folder} 0 40755 2 0 0 0 5.0 - - -\n");
            }
        }
        text += "/etc/hostname 12 100644 1 0 0 0 5.0 - the\\x20image's\\n -\n";
        text += &format!(
            "/usr/lib/os-release {} 100644 1 0 0 0 5.0 {} - {object}\n",
            content.len(),
            object.object_path()
        );
        text += &format!(
            "/sbin/init {} 100755 1 0 0 0 5.0 {} - {init}\n",
            INIT.len(),
            init.object_path()
        );
        let image = writer::build(&dump::parse(text.as_bytes()).unwrap(), Versions::V1).unwrap();
        let id = store.put_image(&image).unwrap();
        store.publish().unwrap();
        deploy(&root, id);
        let machine = Self { keep, id: id.to_hex() };
        fs::write(machine.path("kmsg"), "").unwrap();
        fs::create_dir(machine.path("run")).unwrap();
        machine.cmdline(&format!("root=UUID=1 {} quiet", machine.argument("?")));
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.keep.path().join(name)
    }

    pub fn sysroot(&self) -> PathBuf {
        self.path("sysroot")
    }

    fn record(&self) -> PathBuf {
        self.sysroot().join("state/deploy").join(&self.id)
    }

    pub fn etc(&self) -> PathBuf {
        self.record().join("etc")
    }

    pub fn var(&self) -> PathBuf {
        self.sysroot().join("state/os/default/var")
    }

    pub fn seal(&self) -> PathBuf {
        self.record().join("seal.json")
    }

    pub fn object(&self) -> PathBuf {
        let (folder, name) = self.id.split_at(2);
        self.sysroot().join("composefs/objects").join(folder).join(name)
    }

    pub fn has_verity(&self) -> bool {
        let file = fs::File::open(self.object()).unwrap();
        verity::measure(&file).unwrap().is_some()
    }

    /// Where the object with the first process is.
    pub fn init(&self) -> PathBuf {
        let repository = self.sysroot().join("composefs");
        let id = Store::open(&repository).unwrap().put(INIT).unwrap();
        repository.join("objects").join(id.object_path())
    }

    /// Also where a file with fs-verity is.
    pub fn overwrite(&self, path: &Path, content: &[u8]) {
        fs::remove_file(path).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The kernel argument with this mark.
    pub fn argument(&self, mark: &str) -> String {
        let tag = match self.id.len() {
            64 => "v1-sha256-12",
            _ => "v1-sha512-12",
        };
        format!("composefs.digest={mark}{tag}:{}", self.id)
    }

    pub fn cmdline(&self, line: &str) {
        fs::write(self.path("cmdline"), format!("{line}\n")).unwrap();
    }

    /// What systemd-boot says of the entry that it counted.
    pub fn counted(&self, entry: &str) {
        let mut variable = vec![7, 0, 0, 0];
        variable.extend(entry.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        fs::create_dir_all(self.path("efivars")).unwrap();
        let name = "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
        fs::write(self.path("efivars").join(name), variable).unwrap();
    }

    pub fn config(&self, text: &str) {
        fs::write(self.path("setup-root-conf.toml"), text).unwrap();
    }

    /// Puts the key that signed into this folder of the initramfs.
    pub fn trust(&self, folder: &str) {
        let folder = self.path("keys").join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("vendor.pub"), key().public().to_base64()).unwrap();
    }

    pub fn seal_of_another_image(&self) -> Vec<u8> {
        signed("00".repeat(32).parse().unwrap()).seal().to_vec()
    }

    fn arguments(&self, sysroot: &Path, further: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        for (name, path) in [
            ("--sysroot", sysroot.to_owned()),
            ("--cmdline", self.path("cmdline")),
            ("--config", self.path("setup-root-conf.toml")),
            ("--keys", self.path("keys")),
            ("--run", self.path("run")),
            ("--kmsg", self.path("kmsg")),
            ("--efivars", self.path("efivars")),
            ("--sysctl", self.path("sysctl")),
        ] {
            arguments.extend([name.into(), path.into()]);
        }
        arguments.extend(further.iter().map(OsString::from));
        arguments
    }

    /// In this namespace: for what does not get as far as mounting.
    pub fn run_here(&self, further: &[&str]) -> Outcome {
        let arguments = self.arguments(&self.sysroot(), further);
        Command::new(PROGRAM).args(arguments).output().unwrap().into()
    }

    /// In a namespace of its own, then `script` with `$S` (the sysroot) and `$RUN`, where it succeeded.
    pub fn run(&self, further: &[&str], script: &str) -> Outcome {
        self.run_as("private", further, script)
    }

    pub fn run_as(&self, propagation: &str, further: &[&str], script: &str) -> Outcome {
        let before = format!("mount --bind $S $S; mount --make-r{propagation} /");
        self.inside(
            &self.sysroot(),
            &before,
            further,
            &format!("|| exit $?\n{script}\nexit 0"),
        )
    }

    /// The script runs whatever the program said; the program's exit code counts.
    pub fn try_run(&self, further: &[&str], script: &str) -> Outcome {
        let after = format!("\ncode=$?\n{script}\nexit $code");
        self.inside(&self.sysroot(), "mount --bind $S $S", further, &after)
    }

    /// On a file system of its own, mounted with these options.
    pub fn run_on_tmpfs(&self, options: &str, script: &str) -> Outcome {
        let place = self.path("initrd-sysroot");
        fs::create_dir_all(&place).unwrap();
        let before = format!(
            "mount -t tmpfs tmpfs $S; cp -a {}/. $S; mount -o remount,{options} $S; touch $S/x 2>/dev/null && exit 99",
            self.sysroot().display()
        );
        self.inside(&place, &before, &[], &format!("|| exit $?\n{script}\nexit 0"))
    }

    fn inside(&self, sysroot: &Path, before: &str, further: &[&str], after: &str) -> Outcome {
        let script = format!("{before}\n\"$@\" {after}");
        Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
                PROGRAM,
            ])
            .args(self.arguments(sysroot, further))
            .env("S", sysroot)
            .env("RUN", self.path("run"))
            .output()
            .unwrap()
            .into()
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32], "vendor")
}

fn signed(id: DeploymentId) -> SignedImage {
    let facts = ImageFacts {
        id,
        manifest: ManifestDigest::from_hash([1; 32]),
        reference: "docker://registry.example/os:1".into(),
        erofs_format: 1,
    };
    SignedImage::sign(synced(facts), &key(), 1, Timestamp::UNIX_EPOCH).unwrap()
}

fn deploy(root: &Path, id: DeploymentId) {
    let layout = Layout::new(root);
    layout.prepare(&RealFs).unwrap();
    let deployments = Deployments::new(layout);
    let draft = deployments.begin_var(&RealFs).unwrap().unwrap();
    fs::create_dir_all(draft.path().join("lib")).unwrap();
    fs::write(draft.path().join("lib/data"), "kept data\n").unwrap();
    deployments.commit_var(&RealFs, &draft).unwrap();
    let draft = deployments.begin(&RealFs, signed(id)).unwrap();
    fs::create_dir(draft.etc()).unwrap();
    fs::write(draft.etc().join("hostname"), "the administrator's\n").unwrap();
    let origin = Origin::new("docker://registry.example/os:1", ManifestDigest::from_hash([1; 32]));
    draft.commit(&RealFs, origin).unwrap();
}
