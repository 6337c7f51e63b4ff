//! Exposed images as what podman builds and commits on, and as what it knows by several manifests.

use super::*;

/// Of three layers; the config says how they were made.
fn base(dir: &Path, version: &str, how: How) -> Finished {
    let program = Layer::default()
        .dirs(&["usr", "usr/bin", "etc"])
        .program_of("usr/bin/hello", &program(dir, version))
        .file("etc/gone", "x");
    let above = Layer::default().dirs(&["etc"]).file("etc/.wh.gone", "");
    let top = Layer::default().dirs(&["etc"]).file("etc/version", version);
    let image = Image::new(version).with_history();
    image.layer(program, how).layer(above, how).layer(top, how).finish()
}

const BUILD: &str = "podman build --quiet --isolation chroot --ulimit nofile=1000:1000 --ulimit nproc=1000:1000";

/// What the layers' records say.
fn records(machine: &Machine, name: &str) -> Vec<serde_json::Value> {
    let shelf = machine.dir.join("sysroot/state/cfs-update/podman");
    serde_json::from_slice(&fs::read(shelf.join(name)).unwrap()).unwrap()
}

#[test]
fn an_exposed_image_has_its_history_and_podman_builds_and_commits_on_it() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let machine = Machine::new(dir.path());
    let from = base(dir.path(), "1", How::Gzip).layout(&dir.path().join("app"), "1.0");
    machine.cfs(["image", "pull", &from], 0);
    machine.expose(0);
    assert_eq!(machine.layers(), 3, "a record for each");
    let name = "localhost/app:1.0";
    let steps = machine.podman(&format!("podman history --format '{{{{.CreatedBy}}}}' {name}"));
    assert_eq!(
        steps.lines().collect::<Vec<_>>(),
        ["settings", "step 2", "step 1", "step 0"]
    );

    fs::write(dir.path().join("file"), "built").unwrap();
    let recipe = format!("FROM {name}\nRUN [\"/usr/bin/hello\"]\nCOPY file /etc/file\n");
    fs::write(dir.path().join("Recipe"), recipe).unwrap();
    let shared = dir.path().display();
    for (tag, options) in [
        ("built", "--layers"),
        ("plain", "--layers=false"),
        ("squash", "--squash"),
    ] {
        machine.podman(&format!(
            "{BUILD} {options} --tag {tag}:1 --file {shared}/Recipe {shared}"
        ));
    }
    machine.podman(&format!(
        "podman create --name kept {name} /usr/bin/hello >/dev/null\n\
         echo committed >$(podman mount kept)/etc/file; podman umount kept\n\
         podman commit --quiet kept committed:1; podman rm kept"
    ));
    for (tag, content) in [
        ("built", "built"),
        ("plain", "built"),
        ("squash", "built"),
        ("committed", "committed\n"),
    ] {
        let out = machine.podman(&format!(
            "{RUN} {tag}:1 /usr/bin/hello; podman create --name look {tag}:1 /x >/dev/null\n\
             cd $(podman mount look)/etc; ls | grep gone || cat version file; cd /; podman rm look >/dev/null"
        ));
        assert_eq!(out, format!("hello 1\n1{content}"), "{tag}");
    }
    let layers = machine.podman("podman image inspect --format '{{len .RootFS.Layers}}' built:1 committed:1");
    assert_eq!(layers, "5\n4\n", "nothing of the base is in podman's own storage twice");

    // What they stand on stays, also when it is listed anew, and goes with them.
    let told = machine.cfs(["image", "rm", &from], 6);
    assert!(told.stderr.contains("podman rmi"), "{}", told.stderr);
    let next = base(dir.path(), "22", How::Gzip).layout(&dir.path().join("app"), "1.0");
    machine.cfs(["image", "pull", &next], 0);
    machine.cfs(["gc"], 0);
    assert_eq!(machine.layers(), 6);
    assert_eq!(machine.podman(&format!("{RUN} built:1 /usr/bin/hello")), "hello 1\n");
    assert!(machine.podman("podman history built:1").contains("step 0"));
    machine.podman("podman rmi built:1 plain:1 squash:1 committed:1; podman image prune --force");
    machine.cfs(["gc"], 0);
    assert_eq!(machine.layers(), 3);
    machine.cfs.fsck();
}

#[test]
fn a_store_of_one_layer_for_each_image_is_replaced_and_containers_on_it_go_on() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let machine = Machine::new(dir.path());
    let from = base(dir.path(), "1", How::Gzip).layout(&dir.path().join("app"), "1.0");
    machine.cfs(["image", "pull", &from], 0);
    machine.expose(0);
    // As an earlier version has made it.
    let shelf = machine.dir.join("sysroot/state/cfs-update/podman");
    let mut layers = records(&machine, "overlay-layers/layers.json");
    let mut images = records(&machine, "overlay-images/images.json");
    layers.retain(|layer| layer["cfs-update-image"] != "");
    let digest = layers[0]["diff-digest"].as_str().unwrap()[7..].to_owned();
    let made = layers[0]["id"].as_str().unwrap().to_owned();
    layers[0]["id"] = digest.clone().into();
    layers[0].as_object_mut().unwrap().remove("parent");
    images[0]["layer"] = digest.clone().into();
    let (old, link) = (shelf.join("overlay").join(&digest), digest[..26].to_uppercase());
    fs::rename(shelf.join("overlay").join(&made), &old).unwrap();
    fs::write(old.join("link"), &link).unwrap();
    std::os::unix::fs::symlink(format!("../{digest}/diff"), shelf.join("overlay/l").join(link)).unwrap();
    for (name, records) in [("layers", &layers), ("images", &images)] {
        let file = shelf.join(format!("overlay-{name}/{name}.json"));
        fs::write(file, serde_json::to_vec(records).unwrap()).unwrap();
    }
    // Started it is not: the machine's locks for that are those of all tests.
    machine.podman("podman create --name kept localhost/app:1.0 /usr/bin/hello");
    let look = "cat $(podman mount kept)/etc/version; podman umount kept >/dev/null";
    assert_eq!(machine.podman(look), "1");

    machine.expose(0);
    assert_eq!(machine.layers(), 3 + 1, "that of the container, and those of the image");
    assert_eq!(machine.podman(look), "1");
    assert_eq!(
        machine.podman(&format!("{RUN} localhost/app:1.0 /usr/bin/hello")),
        "hello 1\n"
    );
    machine.cfs(["image", "rm", &from], 6);
    machine.podman("podman rm kept");
    machine.cfs(["gc"], 0);
    assert_eq!(machine.layers(), 3);
    machine.cfs(["image", "rm", &from], 0);
    assert_eq!(machine.layers(), 0);
    machine.cfs.fsck();
}

#[test]
fn an_image_of_two_manifests_is_found_by_the_digest_of_each() {
    if !is_root("podman") {
        return;
    }
    let dir = scratch();
    let registry = Registry::start();
    let machine = Machine::new(dir.path());
    let images = [("gzip", How::Gzip), ("zstd", How::Zstd)].map(|(tag, how)| {
        let image = base(dir.path(), "1", how);
        let from = image.push(&registry, "app", tag);
        machine.cfs(["image", "pull", &from], 0);
        (from, image.digest())
    });
    machine.expose(0);
    for (from, digest) in &images {
        let (name, _) = from.rsplit_once(':').unwrap();
        for name in [from.clone(), format!("{name}@{digest}")] {
            assert_eq!(
                machine.podman(&format!("{RUN} {name} /usr/bin/hello")),
                "hello 1\n",
                "{name}"
            );
        }
        let told = machine.podman(&format!("podman image inspect --format '{{{{.RepoDigests}}}}' {from}"));
        assert!(images.iter().all(|(_, digest)| told.contains(digest)), "{told}");
    }
    // When one goes the other stays.
    machine.cfs(["image", "rm", &images[0].0], 0);
    let (from, digest) = &images[1];
    let told = machine.podman(&format!("podman image inspect --format '{{{{.RepoDigests}}}}' {from}"));
    assert!(told.contains(digest) && !told.contains(&images[0].1), "{told}");
    let shown = records(&machine, "overlay-images/images.json");
    let folder = format!(
        "sysroot/state/cfs-update/podman/overlay-images/{}",
        shown[0]["id"].as_str().unwrap()
    );
    let files = list(&machine.dir.join(folder));
    assert_eq!(
        files.len(),
        3,
        "the config, and the manifest under both of its names: {files:?}"
    );
}
