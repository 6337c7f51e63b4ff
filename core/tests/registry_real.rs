//! A real registry (Debian's docker-registry), and OCI layouts.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cfs_core::error::{Error, Result};
use cfs_core::manifest::Platform;
use cfs_core::monitor::Quiet;
use cfs_core::reference::Reference;
use cfs_core::registry::{Image, Options, Registry, Retry};
use serde_json::json;
use support::{Served, sha256};

const MIB: usize = 1 << 20;
/// `user` with the password `se:cret`, by bcrypt.
const HTPASSWD: &str = "user:$2y$05$Ugr1G/NtQkRdeXYe62mD9OlQDqRCOG.X15CtLcjZw7yH4WciNUcYO\n";

/// Debian's docker-registry on a free port; ends with the test.
struct Real {
    dir: tempfile::TempDir,
    child: Child,
    host: String,
}

impl Real {
    fn start(password: bool, tls: bool) -> Self {
        for _ in 0..10 {
            if let Some(real) = Self::try_start(password, tls) {
                return real;
            }
        }
        panic!("docker-registry does not start");
    }

    fn try_start(password: bool, tls: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        // Free now; should somebody else take it before the registry does, another is tried.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": path("storage")}},
            "http": {"addr": host},
        });
        if password {
            fs::write(path("htpasswd"), HTPASSWD).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": path("htpasswd")}});
        }
        if tls {
            let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).unwrap();
            fs::write(path("cert.pem"), key.cert.pem()).unwrap();
            fs::write(path("key.pem"), key.signing_key.serialize_pem()).unwrap();
            config["http"]["tls"] = json!({"certificate": path("cert.pem"), "key": path("key.pem")});
        }
        // JSON is YAML.
        fs::write(path("config.yml"), config.to_string()).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("docker-registry cannot be run; `make test` installs it (Debian package docker-registry)");
        let start = Instant::now();
        while std::net::TcpStream::connect(&host).is_err() {
            if child.try_wait().unwrap().is_some() || start.elapsed() > Duration::from_secs(20) {
                eprintln!("{}", fs::read_to_string(path("log")).unwrap());
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self { dir, child, host })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn push(&self, served: &Served, name: &str) {
        let layout = self.path("layout");
        served.write_layout(&layout, &["x"]);
        let done = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--preserve-digests",
                "--dest-tls-verify=false",
            ])
            .args(["--dest-creds", "user:se:cret"])
            .arg(format!("oci:{}:x", layout.display()))
            .arg(format!("docker://{}/{name}", self.host))
            .output()
            .expect("skopeo cannot be run; `make test` installs it (Debian package skopeo)");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn open(&self, name: &str, options: &Options) -> Registry {
        Registry::open(&format!("{}/{name}", self.host).parse().unwrap(), options).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn options() -> Options {
    Options {
        retry: Retry {
            attempts: 1,
            ..Retry::default()
        },
        ..Options::default()
    }
}

fn fetch(registry: &Registry) -> Result<(Image, Vec<u8>)> {
    let image = registry.image(&Platform::host(), &Quiet)?;
    let mut bytes = Vec::new();
    let mut blob = registry.blob(&image.manifest.layers[0], &Quiet);
    match blob.read_to_end(&mut bytes) {
        Ok(_) => Ok((image, bytes)),
        Err(error) => Err(Error::from_read("layer", error)),
    }
}

#[test]
fn a_real_registry_gives_what_was_pushed() {
    let real = Real::start(false, false);
    let served = Served::new(20 * MIB);
    real.push(&served, "org/os:1");
    let registry = real.open("org/os:1", &options());
    assert_eq!(registry.resolve(&Quiet).unwrap().to_string(), served.manifest_digest());
    assert_eq!(registry.requests(), 1, "an unchanged check is one request");
    let (image, layer) = fetch(&registry).unwrap();
    assert_eq!(image.digest.to_string(), served.manifest_digest());
    assert_eq!(sha256(&layer), served.layer_digest());
    assert_eq!(registry.requests(), 4);
    let error = real
        .open("org/os:2", &options())
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(error.contains("404") && error.contains("manifest unknown"), "{error}");
}

#[test]
fn a_real_registry_with_passwords_takes_the_right_one_only() {
    let real = Real::start(true, false);
    let served = Served::new(MIB);
    real.push(&served, "org/os:1");
    let refused = real
        .open("org/os:1", &options())
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("401") && refused.contains("podman login"), "{refused}");
    let with = |password: &str| {
        use base64::Engine;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
        let path = real.path("auth.json");
        fs::write(&path, json!({"auths": {&real.host: {"auth": auth}}}).to_string()).unwrap();
        Options {
            auth_files: vec![path],
            ..options()
        }
    };
    let wrong = real
        .open("org/os:1", &with("wrong"))
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("were refused"), "{wrong}");
    let registry = real.open("org/os:1", &with("se:cret"));
    let (_, layer) = fetch(&registry).unwrap();
    assert_eq!(layer, served.layer);
}

#[test]
fn a_real_registry_with_tls_is_asked_only_with_a_certificate_that_is_trusted() {
    let real = Real::start(false, true);
    let served = Served::new(3 * MIB);
    real.push(&served, "org/os:1");

    let error = real
        .open("org/os:1", &options())
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(error.contains("certificate") && error.contains("certs.d"), "{error}");

    let folder = real.path("certs.d").join(&real.host);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(real.path("cert.pem"), folder.join("ca.crt")).unwrap();
    let trusting = Options {
        certs_d: vec![real.path("certs.d")],
        ..options()
    };
    assert_eq!(fetch(&real.open("org/os:1", &trusting)).unwrap().1, served.layer);

    let insecure = Options {
        insecure: vec![real.host.clone()],
        ..options()
    };
    assert_eq!(fetch(&real.open("org/os:1", &insecure)).unwrap().1, served.layer);
}

/// A port that leads to `host` for those who speak TLS, and hangs up on others without a word, as many servers do.
fn without_a_word(host: &str) -> String {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (here, host) = (listener.local_addr().unwrap().to_string(), host.to_owned());
    let pump = |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.flush();
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    };
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut first = [0];
            // 22 begins a handshake. Closing with the rest unread resets the connection.
            if client.peek(&mut first).is_ok_and(|n| n == 1) && first[0] == 22 {
                let server = TcpStream::connect(&host).unwrap();
                pump(client.try_clone().unwrap(), server.try_clone().unwrap());
                pump(server, client);
            }
        }
    });
    here
}

#[test]
fn a_port_with_tls_that_hangs_up_on_others_is_asked_with_tls() {
    let real = Real::start(false, true);
    let served = Served::new(3 * MIB);
    real.push(&served, "org/os:1");
    let host = without_a_word(&real.host);
    let reference: Reference = format!("{host}/org/os:1").parse().unwrap();
    let error = Registry::open(&reference, &options())
        .unwrap()
        .resolve(&Quiet)
        .unwrap_err();
    let error = error.to_string();
    assert!(error.contains("certificate") && error.contains("certs.d"), "{error}");
    let insecure = Options {
        insecure: vec![host],
        ..options()
    };
    let registry = Registry::open(&reference, &insecure).unwrap();
    assert_eq!(fetch(&registry).unwrap().1, served.layer);
}

fn layout(served: &Served, names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    served.write_layout(dir.path(), names);
    dir
}

fn open_layout(dir: &Path, which: &str) -> Result<Registry> {
    let reference: Reference = format!("oci:{}{which}", dir.display()).parse().unwrap();
    Registry::open(&reference, &options())
}

#[test]
fn a_layout_gives_its_image_by_name_place_and_digest_or_because_there_is_one_only() {
    let served = Served::new(3 * MIB);
    let dir = layout(&served, &["quay.io/org/os:41"]);
    let digest = served.manifest_digest();
    for which in ["", ":quay.io/org/os:41", ":@0", &format!("@{digest}")] {
        let registry = open_layout(dir.path(), which).unwrap();
        assert_eq!(registry.resolve(&Quiet).unwrap().to_string(), digest);
        let (image, layer) = fetch(&registry).unwrap();
        assert_eq!(image.top.to_string(), digest);
        assert_eq!(layer, served.layer);
    }
    let twice = layout(&served, &["1", "2"]);
    assert!(
        fetch(&open_layout(twice.path(), "").unwrap()).is_ok(),
        "two names of one image"
    );
}

#[test]
fn a_layout_with_several_images_wants_to_know_which() {
    let served = Served::new(10);
    let dir = layout(&served, &["41", "42"]);
    let index = fs::read_to_string(dir.path().join("index.json")).unwrap();
    let other = index.replacen(&served.manifest_digest(), &sha256(b"other"), 1);
    fs::write(dir.path().join("index.json"), other).unwrap();
    let says = |which: &str| {
        let registry = open_layout(dir.path(), which).unwrap();
        registry.image(&Platform::host(), &Quiet).unwrap_err().to_string()
    };
    assert!(says("").contains("41, 42"), "{}", says(""));
    assert!(says(":43").contains("41, 42"), "{}", says(":43"));
    assert!(says(":@7").contains("no @7"), "{}", says(":@7"));
    assert!(says(":41").contains("is missing"), "{}", says(":41"));
    assert!(fetch(&open_layout(dir.path(), ":42").unwrap()).is_ok());
}

#[test]
fn a_folder_that_is_no_layout_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let says = |which: &str| open_layout(dir.path(), which).unwrap_err().to_string();
    assert!(says("").contains("no file oci-layout"), "{}", says(""));
    assert!(says(":b/c").contains("first `:`"), "{}", says(":b/c"));
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(says("").contains("version 2.0.0"), "{}", says(""));
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let error = open_layout(dir.path(), "")
        .unwrap()
        .resolve(&Quiet)
        .unwrap_err()
        .to_string();
    assert!(error.contains("index.json"), "{error}");
}

#[test]
fn a_damaged_layout_is_found_out() {
    let served = Served::new(MIB);
    let damage = |blob: &str, how: &dyn Fn(&Path)| {
        let dir = layout(&served, &["1"]);
        how(&dir.path().join("blobs/sha256").join(&blob["sha256:".len()..]));
        fetch(&open_layout(dir.path(), "").unwrap()).unwrap_err().to_string()
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let truncate = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    for blob in served.blobs.keys().chain([&served.manifest_digest()]) {
        let hex = &blob["sha256:".len()..];
        let texts = [
            damage(blob, &flip),
            damage(blob, &truncate),
            damage(blob, &|path| fs::remove_file(path).unwrap()),
        ];
        for text in texts {
            assert!(text.contains(hex), "{text}");
        }
    }
}
