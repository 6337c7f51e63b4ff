//! What is the machine's and not an image's: its key, its settings, its health checks.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn the_machines_key_is_made_once() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let key = cfs.run(["key", "generate", "--json"]).expect(0).json();
    cfs.run(["key", "generate"]).expect(2);
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    let signer = &cfs.status()["status"]["staged"]["cfsUpdate"]["verifiedBy"];
    assert!(
        signer.as_str().unwrap().contains(key["id"].as_str().unwrap()),
        "{signer}"
    );
}

#[test]
fn settings_decide_tries_algorithm_and_how_many_stay() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let config = dir.path().join("config/etc/cfs-update/config.toml.d");
    fs::create_dir_all(&config).unwrap();
    let text = "[boot]\ntries = 7\n[store]\nalgorithm = \"fsverity-sha512-12\"\n[deployments]\nkeep = 3\n";
    fs::write(config.join("10-test.toml"), text).unwrap();
    let config = dir.path().join("config");
    let run = |args: &[&str]| {
        cfs.run([&["--config-root", config.to_str().unwrap()], args].concat())
            .expect(0)
    };
    run(&["switch", &publish(dir.path(), 1)]);
    for version in 2..5 {
        publish(dir.path(), version);
        run(&["upgrade"]);
    }
    assert_eq!(cfs.deployments().len(), 3);
    assert!(cfs.deployments().iter().all(|id| id.len() == 128));
    assert!(cfs.entries()[0].path.to_str().unwrap().ends_with("+07-00.conf"));
}

#[test]
fn without_a_running_deployment_health_and_finalize_have_nothing_to_mark() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let failing = dir.path().join("config/etc/cfs-update/health.d/10-bad");
    fs::create_dir_all(failing.parent().unwrap()).unwrap();
    fs::write(&failing, "#!/bin/sh\necho no database\nexit 4\n").unwrap();
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = dir.path().join("config/etc/cfs-update/config.toml");
    fs::write(settings, "[health]\nattempts = 2\npause = 1\n[auto]\nenabled = false\n").unwrap();
    let root = dir.path().join("config");
    let with = |args: &[&str]| {
        let mut all = vec!["--config-root", root.to_str().unwrap()];
        all.extend(args);
        cfs.run(all)
    };
    let entries = cfs.entries().len();
    let told = with(&["health", "check"]).expect(1).stderr;
    assert!(told.contains("10-bad: exit code 4: no database"), "{told}");
    let bad = with(&["health", "check", "--json"]).expect(1).json();
    assert_eq!(
        (&bad["result"], &bad["checks"][0]["attempts"]),
        (&json!("bad"), &json!(2))
    );
    fs::remove_file(&failing).unwrap();
    let good = with(&["health", "check", "--json"]).expect(0).json();
    assert_eq!(good["result"], "good");
    for command in [&["health", "good"][..], &["health", "bad"]] {
        let told = with(command).expect(1).stderr;
        assert!(told.contains("no deployment of this sysroot runs"), "{told}");
    }
    with(&["health", "check", "--apply"]).expect(2);
    assert!(with(&["auto", "run"]).expect(77).stderr.contains("enabled = false"));
    assert_eq!(with(&["auto", "status", "--json"]).expect(0).json()["enabled"], false);
    assert_eq!(cfs.run(["auto", "run"]).expect(77).stdout, "");
    let merged = cfs.run(["finalize", "--json"]).expect(0).json();
    assert!(merged["deployment"].is_string(), "an update waits: {merged}");
    assert_eq!(cfs.entries().len(), entries);
    let status = cfs.status();
    assert_eq!(status["status"]["cfsUpdate"]["health"]["result"], "good");
    cfs.fsck();
}
