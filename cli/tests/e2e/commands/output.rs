//! What is printed and in which form, exit codes, progress.

use super::*;

#[test]
fn status_has_bootcs_shape_and_its_roles_follow_switch_upgrade_and_rollback() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    assert_eq!(
        cfs.status()["status"]["staged"],
        Value::Null,
        "an empty sysroot is no failure"
    );

    let reference = publish(dir.path(), 1);
    let switched = cfs.run(["switch", "--json", &reference]).expect(0).json();
    assert_eq!(switched["result"], "staged");
    let status = cfs.status();
    assert_eq!(status["apiVersion"], "org.containers.bootc/v1");
    assert_eq!(status["kind"], "BootcHost");
    assert_eq!(
        status["spec"]["image"],
        json!({"image": reference.strip_prefix("oci:").unwrap(), "transport": "oci"})
    );
    let staged = &status["status"]["staged"];
    assert_eq!(staged["image"]["imageDigest"], switched["imageDigest"]);
    assert_eq!(staged["image"]["version"], "1");
    assert_eq!(staged["composefs"]["verity"], switched["deployment"]);
    assert_eq!(staged["cfsUpdate"]["bootsNext"], true);
    assert_eq!(staged["cfsUpdate"]["triesLeft"], 3);
    assert!(
        staged["cfsUpdate"]["verifiedBy"]
            .as_str()
            .unwrap()
            .starts_with("host (")
    );

    publish(dir.path(), 2);
    let upgraded = cfs.run(["--json", "upgrade"]).expect(0).json();
    let status = cfs.status();
    assert_eq!(
        status["status"]["staged"]["cfsUpdate"]["deployment"],
        upgraded["deployment"]
    );
    assert_eq!(
        status["status"]["rollback"]["cfsUpdate"]["deployment"],
        switched["deployment"]
    );

    let back = cfs.run(["rollback", "--json"]).expect(0).json();
    assert_eq!(
        (&back["deployment"], &back["insteadOf"]),
        (&switched["deployment"], &upgraded["deployment"])
    );
    let status = cfs.status();
    assert_eq!(
        status["status"]["staged"]["cfsUpdate"]["deployment"],
        switched["deployment"]
    );
    assert_eq!(
        status["status"]["rollback"]["cfsUpdate"]["deployment"],
        upgraded["deployment"]
    );
    assert_eq!(
        cfs.run(["status", "--format-version=1", "--json"]).expect(0).json(),
        status
    );
}

#[test]
fn nothing_new_is_exit_code_77_and_a_check_changes_nothing() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    cfs.run(["upgrade"]).expect(1);
    assert!(
        list(cfs.sysroot()).is_empty(),
        "nothing is made where nothing is followed"
    );
    cfs.run(["switch", &publish(dir.path(), 1)]).expect(0);
    let check = cfs.run(["upgrade", "--check", "--json", "-q"]).expect(77);
    assert_eq!(check.json()["available"], false);
    let failure: Value = serde_json::from_str(&check.stderr).unwrap();
    assert_eq!(failure["error"]["kind"], "nothing-to-do");
    publish(dir.path(), 2);
    let check = cfs.run(["upgrade", "--check", "--json"]).expect(0).json();
    assert_eq!(check["available"], true);
    assert_eq!(cfs.deployments().len(), 1);
    cfs.run(["upgrade"]).expect(0);
    assert_eq!(
        cfs.run(["--json", "-q", "upgrade"]).expect(77).json()["result"],
        "unchanged"
    );
    cfs.run(["switch", &publish(dir.path(), 2)]).expect(0);
    assert_eq!(cfs.deployments().len(), 2);
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_of_what_was_done_all_the_same() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let switched = cfs
        .command(["switch", &publish(dir.path(), 1)])
        .stdout(full)
        .output()
        .unwrap();
    let told = String::from_utf8(switched.stderr).unwrap();
    assert_eq!(switched.status.code(), Some(1), "no lack of space in the store: {told}");
    assert!(told.contains("standard output"), "{told}");
    assert_eq!(cfs.entries().len(), 1);
}

#[test]
fn progress_can_go_to_a_descriptor_of_its_own() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let lines = dir.path().join("progress");
    let script = "exec 3>\"$1\"; exec \"$CFS_UPDATE\" --sysroot \"$2\" --progress-fd 3 switch \"$3\"";
    let mut command = cfs.wrap("sh");
    command
        .args(["-c", script, "sh"])
        .arg(&lines)
        .arg(cfs.sysroot())
        .arg(publish(dir.path(), 1));
    let output = command.output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = fs::read_to_string(&lines).unwrap();
    let types: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(types.len() > 5 && types[0]["type"] == "Start");
}

#[test]
fn progress_is_json_lines_where_asked_for_and_boot_may_be_elsewhere() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let boot = dir.path().join("esp");
    fs::create_dir(&boot).unwrap();
    let boot = boot.to_str().unwrap();
    let ran = cfs
        .run(["--boot", boot, "--progress", "json", "switch", &publish(dir.path(), 1)])
        .expect(0);
    let lines: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["type"], "Start");
    let tasks: Vec<_> = lines.iter().filter_map(|line| line["task"].as_str()).collect();
    for task in ["pulling", "importing", "staging"] {
        assert!(tasks.contains(&task), "{tasks:?}");
    }
    assert_eq!(list(&dir.path().join("esp/loader/entries")).len(), 1);
    let status = cfs.run(["status", "--boot", boot, "--json"]).expect(0).json();
    assert_eq!(status["status"]["staged"]["cfsUpdate"]["bootsNext"], true);
    assert!(!cfs.sysroot().join("boot").exists());
    cfs.run(["--boot", "/no/such/boot", "status"]).expect(1);
}
