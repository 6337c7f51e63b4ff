//! containers-policy.json(5): images that podman has signed, and who may not be followed.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::layout::small;
use crate::common::registry::Registry;
use crate::common::{Cfs, is_root, podman, repository, scratch};

/// Pushes `image` as each of `names`, signed by the key of the test data.
fn push_signed(dir: &Path, registry: &Registry, image: &str, names: &[&str]) {
    let data = repository().join("testdata/sigstore");
    for file in ["test.key", "passphrase"] {
        fs::copy(data.join(file), dir.join(file)).unwrap();
    }
    let here = dir.display();
    let host = registry.host();
    fs::write(
        dir.join("storage.conf"),
        "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers\"\ngraphroot = \"/var/lib/containers/storage\"\n",
    )
    .unwrap();
    let places = dir.join(".config/containers/registries.d");
    fs::create_dir_all(&places).unwrap();
    let attached = format!("docker:\n  {host}:\n    use-sigstore-attachments: true\n");
    fs::write(places.join("test.yaml"), attached).unwrap();
    let mut script =
        format!("export HOME={here} CONTAINERS_STORAGE_CONF={here}/storage.conf\npodman pull --quiet {image}\n");
    for name in names {
        script += &format!(
            "podman push --quiet --tls-verify=false --sign-by-sigstore-private-key {here}/test.key \\\n\
             --sign-passphrase-file {here}/passphrase $(podman images -q | head -n 1) docker://{host}/{name}\n"
        );
    }
    podman::run(dir, &script);
}

/// A machine with this policy in the place where podman looks for one.
fn machine(dir: &Path, name: &str, policy: &Value) -> Cfs {
    let cfs = Cfs::new(&dir.join(name));
    set(&cfs, policy);
    cfs
}

fn set(cfs: &Cfs, policy: &Value) {
    let folder = cfs.home.join(".config/containers");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("policy.json"), policy.to_string()).unwrap();
}

fn demand(key: &Path, identity: &str) -> Value {
    json!([{"type": "sigstoreSigned", "keyPath": key, "signedIdentity": {"type": identity}}])
}

#[test]
fn an_image_that_podman_has_signed_is_followed_and_another_refused() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let layout = small(1, "a", 2, 2000)
        .finish()
        .layout(&dir.path().join("oci"), "stable");
    push_signed(dir.path(), &registry, &layout, &["org/os:1"]);
    let unsigned = small(2, "b", 2, 2000).finish().push(&registry, "org/os", "2");
    let signed = registry.reference("org/os:1");
    let key = repository().join("testdata/sigstore/test.pub");

    let cfs = machine(
        dir.path(),
        "a",
        &json!({"default": demand(&key, "matchRepoDigestOrExact")}),
    );
    let ran = cfs.run(["switch", &signed]).expect(0);
    assert!(
        ran.stderr.contains("is signed: ") && ran.stderr.contains("test.pub"),
        "{}",
        ran.stderr
    );
    cfs.run(["upgrade"]).expect(77);
    let followed = cfs.run(["status", "--json"]).expect(0).json()["spec"]["image"].clone();
    assert_eq!(followed["signature"], "containerPolicy");
    assert!(
        cfs.run(["status"])
            .expect(0)
            .stdout
            .contains("os:1, with a signature\n")
    );
    let before = cfs.run(["status", "--json"]).expect(0).stdout;
    for args in [
        &["switch", &unsigned][..],
        &["image", "pull", &unsigned],
        &["switch", &layout],
    ] {
        let refused = cfs.run(args).expect(3);
        assert!(refused.stderr.contains("demands a signature"), "{}", refused.stderr);
    }
    assert_eq!(cfs.run(["status", "--json"]).expect(0).stdout, before);
    cfs.fsck();

    // The same image by another tag: its signature is for the first one.
    registry.retag("org/os", "1", "3");
    let copied = registry.reference("org/os:3");
    cfs.run(["switch", &copied]).expect(3);
    set(&cfs, &json!({"default": demand(&key, "matchRepository")}));
    cfs.run(["switch", &copied]).expect(0);

    // The tag moves to what nobody signed: it is not taken.
    registry.retag("org/os", "2", "3");
    let refused = cfs.run(["upgrade"]).expect(3);
    assert!(refused.stderr.contains("there is none"), "{}", refused.stderr);
    cfs.fsck();
}

#[test]
fn a_machine_that_rejects_all_but_one_repository_follows_that_one() {
    let dir = scratch();
    let registry = Registry::start();
    let os = small(1, "a", 2, 2000).finish().push(&registry, "org/os", "1");
    let other = small(2, "b", 2, 2000).finish().push(&registry, "else/os", "1");
    let scope = format!("{}/org", registry.host());
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {scope: accept}}});
    let cfs = machine(dir.path(), "a", &policy);
    cfs.run(["switch", &os]).expect(0);
    let refused = cfs.run(["switch", &other]).expect(3);
    assert!(refused.stderr.contains("rejects it"), "{}", refused.stderr);
    // A policy that is not understood lets nothing in, and the machine boots what it has.
    fs::write(cfs.home.join(".config/containers/policy.json"), "{").unwrap();
    cfs.run(["upgrade"]).expect(3);
    let status = cfs.run(["status"]).expect(0).stdout;
    assert!(
        status.contains("Problem: policy ") && status.contains("no image is taken"),
        "{status}"
    );
    // One that the settings name counts instead.
    let own = dir.path().join("own.json");
    fs::write(&own, json!({"default": accept}).to_string()).unwrap();
    let settings = dir.path().join("config/etc/cfs-update");
    fs::create_dir_all(&settings).unwrap();
    let text = format!("[registry]\npolicy = \"{}\"\n", own.display());
    fs::write(settings.join("config.toml"), text).unwrap();
    let root = dir.path().join("config");
    let with = |args: &[&str]| cfs.run([&["--config-root", root.to_str().unwrap()], args].concat());
    with(&["switch", &other]).expect(0);
    fs::remove_file(&own).unwrap();
    let refused = with(&["upgrade"]).expect(3);
    assert!(refused.stderr.contains("is not there"), "{}", refused.stderr);
}
