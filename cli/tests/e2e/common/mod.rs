//! What the end-to-end tests share: the built program, a real registry, the real Debian image and small images.

pub mod disk;
pub mod kernels;
pub mod layout;
pub mod peer;
pub mod podman;
pub mod reference;
pub mod registry;
pub mod walk;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The id of the user `nobody` on Debian, whom root becomes to show what works without rights.
pub const NOBODY: u32 = 65534;

/// The repository's folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Whether this process may do what root may. A test that needs it says so where not.
pub fn is_root(needed_for: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("NOT RUN: {needed_for} needs root");
    }
    root
}

/// A folder of its own for a test, gone with it; every user may enter it.
pub fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("cfs-e2e-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The program and how a test runs it: on one sysroot, with settings and credentials of its own.
#[derive(Clone, Debug)]
pub struct Cfs {
    program: PathBuf,
    sysroot: PathBuf,
    pub home: PathBuf,
    user: Option<u32>,
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output
                .status
                .code()
                .unwrap_or_else(|| -output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Fails the test unless the run ended with this exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON: {e}\n{}", self.stdout))
    }
}

impl Cfs {
    /// On `dir/sysroot`, as the user that runs the tests.
    pub fn new(dir: &Path) -> Self {
        let (home, sysroot) = (dir.join("home"), dir.join("sysroot"));
        for path in [&home, &sysroot] {
            fs::create_dir_all(path).unwrap();
        }
        Self {
            program: PathBuf::from(env!("CARGO_BIN_EXE_cfs-update")),
            sysroot,
            home,
            user: None,
        }
    }

    /// As a user without rights: `nobody`, where the tests run as root; otherwise nothing changes. `dir` becomes
    /// theirs, and the program is copied to where they can run it.
    pub fn unprivileged(dir: &Path) -> Self {
        let mut cfs = Self::new(dir);
        if rustix::process::geteuid().is_root() {
            for path in [dir, &cfs.home, &cfs.sysroot] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let copy = dir.join("cfs-update");
            // Not by ourselves: a child that another test starts meanwhile would hold the copy open for writing, and
            // nothing that is can be run.
            tool("cp", [&cfs.program, &copy]);
            cfs.program = copy;
            cfs.user = Some(NOBODY);
        }
        cfs
    }

    /// The same program and user on another sysroot.
    pub fn on(&self, sysroot: &Path) -> Self {
        fs::create_dir_all(sysroot).unwrap();
        Self {
            sysroot: sysroot.to_path_buf(),
            ..self.clone()
        }
    }

    pub fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--sysroot")
            .arg(&self.sysroot)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", self.home.join("run"))
            .env("RUST_BACKTRACE", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = self.user {
            // Drops root's supplementary groups as well.
            command.uid(user).gid(user);
        }
        command
    }

    /// Another program as the same user, which finds ours in `CFS_UPDATE`.
    pub fn wrap(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("CFS_UPDATE", &self.program)
            .current_dir("/");
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs to the end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    pub fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.run(["status", "--json"]).expect(0).json()
    }

    /// `fsck` finds nothing.
    #[track_caller]
    pub fn fsck(&self) {
        self.run(["fsck"]).expect(0);
    }

    /// The boot entries, newest first (as every boot loader that follows the specification sorts them), by content.
    /// What a killed run left half-written is hidden by its name, from boot loaders as from here.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = list(&self.sysroot.join("boot/loader/entries"))
            .into_iter()
            .filter(|path| !name(path).starts_with('.'))
            .map(|path| Entry {
                text: fs::read_to_string(&path).unwrap(),
                path,
            })
            .collect();
        entries.sort_by_key(|e| std::cmp::Reverse(e.version()));
        entries
    }

    /// The ids of the deployments: the folders of `state/deploy`.
    pub fn deployments(&self) -> Vec<String> {
        list(&self.sysroot.join("state/deploy"))
            .iter()
            .map(|p| name(p))
            .collect()
    }
}

/// One file of `loader/entries`.
#[derive(Debug)]
pub struct Entry {
    pub path: PathBuf,
    pub text: String,
}

impl Entry {
    /// The value of a key, such as `linux`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix([' ', '\t']))
            .map(str::trim)
    }

    #[track_caller]
    pub fn version(&self) -> u64 {
        self.get("version")
            .and_then(|v| v.parse().ok())
            .unwrap_or_else(|| panic!("no generation in {self:?}"))
    }

    /// The digest of `composefs.digest=v1-sha256-12:<hex>`.
    #[track_caller]
    pub fn digest(&self) -> &str {
        let options = self.get("options").unwrap_or_default();
        options
            .split(' ')
            .find_map(|o| o.strip_prefix("composefs.digest=v1-sha256-12:"))
            .unwrap_or_else(|| panic!("no digest in {self:?}"))
    }
}

/// The paths in a folder, sorted; none where it does not exist.
pub fn list(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    paths
}

/// The objects of a sysroot's repository, sorted.
pub fn objects(cfs: &Cfs) -> Vec<PathBuf> {
    list(&cfs.sysroot().join("composefs/objects"))
        .iter()
        .flat_map(|folder| list(folder))
        .collect()
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Runs a tool of the machine, which has to succeed.
#[track_caller]
pub fn tool<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> String {
    let args: Vec<OsString> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
    let output = Command::new(program)
        .args(&args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| {
            panic!("{program}: {e}; 'make install-deps' installs what the tests need");
        });
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The real Debian image, made on first need: what `testdata/os-image.sh` leaves in its folder.
pub struct OsImage {
    pub dir: PathBuf,
}

impl OsImage {
    pub fn get() -> &'static Self {
        static IMAGE: OnceLock<OsImage> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let dir = repository().join("target/os-image");
            let script = repository().join("testdata/os-image.sh");
            let ran = Command::new("sh")
                .arg(&script)
                .arg(&dir)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(
                ran.status.success(),
                "{}: {}",
                script.display(),
                String::from_utf8_lossy(&ran.stderr)
            );
            OsImage { dir }
        })
    }

    /// `oci:DIR:TAG` of a version in a compression.
    pub fn layout(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.join("oci").display())
    }

    /// The layers of a version as tar files, lowest first.
    pub fn layers(&self, version: u32) -> Vec<PathBuf> {
        let names = fs::read_to_string(self.dir.join(format!("versions/{version}"))).unwrap();
        names
            .split_whitespace()
            .map(|n| self.dir.join(format!("layers/{n}.tar")))
            .collect()
    }
}

/// The sha256 of a file, in hex.
pub fn sha256_file(path: &Path) -> String {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    sha256_reader(&mut file)
}

pub fn sha256_reader(reader: &mut dyn Read) -> String {
    use sha2::Digest;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut buffer).unwrap();
        if n == 0 {
            return hex(&hasher.finalize());
        }
        hasher.update(&buffer[..n]);
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
