use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use super::*;

fn script(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

const QUICK: Limits = Limits {
    time: Duration::from_millis(700),
    attempts: 2,
    pause: Duration::from_millis(1),
};

#[test]
fn checks_of_etc_replace_and_mask_those_of_usr_and_greenboots_run_where_they_are() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for path in [
        "usr/lib/cfs-update/health.d/20-usr",
        "usr/lib/cfs-update/health.d/30-both",
        "etc/cfs-update/health.d/30-both",
        "etc/cfs-update/health.d/10-etc",
        "etc/cfs-update/health.d/.hidden",
        "etc/cfs-update/health.d/10-etc~",
        "usr/lib/cfs-update/health.d/40-masked",
        "usr/lib/cfs-update/health.d/50-masked",
        "etc/greenboot/check/required.d/a.sh",
        "usr/lib/greenboot/check/wanted.d/b.sh",
    ] {
        script(root, path, "true");
    }
    symlink("/dev/null", root.join("etc/cfs-update/health.d/40-masked")).unwrap();
    std::fs::write(root.join("etc/cfs-update/health.d/50-masked"), "").unwrap();
    let found: Vec<_> = find(root)
        .unwrap()
        .into_iter()
        .map(|c| {
            (
                c.path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(),
                c.required,
            )
        })
        .collect();
    let expected = [
        ("etc/cfs-update/health.d/10-etc", true),
        ("usr/lib/cfs-update/health.d/20-usr", true),
        ("etc/cfs-update/health.d/30-both", true),
        ("etc/greenboot/check/required.d/a.sh", true),
        ("usr/lib/greenboot/check/wanted.d/b.sh", false),
    ];
    assert_eq!(found, expected.map(|(path, required)| (path.to_owned(), required)));
    assert_eq!(find(&root.join("nothing")).unwrap(), []);
}

#[test]
fn what_a_merge_an_editor_or_a_package_manager_left_beside_a_check_is_none() {
    let root = tempfile::tempdir().unwrap();
    let ends = [
        "",
        "~",
        ".cfs-new",
        ".cfs-new-2",
        ".rpmsave",
        ".dpkg-old",
        ".ucf-dist",
        ".orig",
        ".sh",
        ".cfs-new-x",
        "bak",
    ];
    for end in ends {
        script(root.path(), &format!("etc/cfs-update/health.d/10-net{end}"), "true");
    }
    let found = find(root.path()).unwrap().into_iter();
    let found: Vec<_> = found.map(|c| c.path.file_name().unwrap().to_owned()).collect();
    assert_eq!(found, ["10-net", "10-net.cfs-new-x", "10-net.sh", "10-netbak"]);
}

#[test]
fn greenboots_scripts_go_to_bash_and_its_settings_disable_some() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let required = "etc/greenboot/check/required.d";
    script(root, &format!("{required}/01-dns.sh"), "exit 1");
    script(root, "usr/lib/greenboot/check/wanted.d/02-dog", "exit 1");
    script(root, &format!("{required}/05-program"), "exit 7");
    for (name, text) in [
        ("03-plain.sh", "exit 3"),
        ("04-bash.sh", "[[ ${BASH_SOURCE[0]} == */04-bash.sh ]]"),
        ("06-readme", "no program"),
        ("07-saved.sh.rpmnew", "exit 1"),
    ] {
        std::fs::write(root.join(required).join(name), text).unwrap();
    }
    std::fs::create_dir(root.join(required).join("08-folder.sh")).unwrap();
    symlink("nowhere", root.join(required).join("09-gone.sh")).unwrap();
    let settings = "DISABLED_HEALTHCHECKS=(\n\t\"01-dns.sh\"\n\t\"02-dog\"\n)\n";
    std::fs::write(root.join("etc/greenboot/greenboot.conf"), settings).unwrap();
    let ran = run(&find(root).unwrap(), QUICK, &mut |_| {});
    let said = |ran: &Ran| match &ran.outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed { why } if why.contains("09-gone.sh") => "gone".to_owned(),
        Outcome::Failed { why } | Outcome::Skipped { why } => why.clone(),
    };
    let name = |ran: &Ran| ran.check.rsplit_once('/').unwrap().1.to_owned();
    let told: Vec<_> = ran.iter().map(|ran| (name(ran), said(ran))).collect();
    let disabled = "DISABLED_HEALTHCHECKS in /etc/greenboot/greenboot.conf names it";
    let expected = [
        ("01-dns.sh", disabled),
        ("03-plain.sh", "exit code 3"),
        ("04-bash.sh", "passed"),
        ("05-program", "exit code 7"),
        ("09-gone.sh", "gone"),
        ("02-dog", disabled),
    ];
    assert_eq!(told, expected.map(|(name, said)| (name.to_owned(), said.to_owned())));
}

#[test]
fn a_folder_of_checks_may_be_a_link_to_one() {
    let root = tempfile::tempdir().unwrap();
    script(root.path(), "srv/checks/10-here", "true");
    std::fs::create_dir_all(root.path().join("etc/cfs-update")).unwrap();
    symlink("../../srv/checks", root.path().join("etc/cfs-update/health.d")).unwrap();
    let found = find(root.path()).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].path.ends_with("health.d/10-here"));
}

#[test]
fn each_check_says_how_it_ended_and_the_rest_is_run_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let folder = "etc/cfs-update/health.d";
    script(root, &format!("{folder}/1-bad"), "echo 'no\tdatabase' >&2; exit 3");
    script(root, &format!("{folder}/2-hangs"), "sleep 100");
    script(root, &format!("{folder}/3-killed"), "kill -SEGV $$");
    script(root, &format!("{folder}/4-good"), "exit 0");
    script(
        root,
        &format!("{folder}/5-flaky"),
        "[ -e $0.seen ] || { : > $0.seen; chmod 0 $0.seen; exit 1; }",
    );
    std::fs::write(root.join(folder).join("6-readme"), "not a program").unwrap();
    symlink("nowhere", root.join(folder).join("7-gone")).unwrap();
    let checks = find(root).unwrap();
    let mut heard = 0;
    let ran = run(&checks, QUICK, &mut |_| heard += 1);
    assert_eq!(heard, checks.len());
    let said = |at: usize| match &ran[at].outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed { why } | Outcome::Skipped { why } => why.clone(),
    };
    assert_eq!((said(0).as_str(), ran[0].attempts), ("exit code 3: nodatabase", 2));
    assert_eq!(said(1), "not done after 0 s");
    assert_eq!(said(2), "ended by signal 11");
    assert_eq!((said(3).as_str(), ran[3].attempts), ("passed", 1));
    assert_eq!((said(4).as_str(), ran[4].attempts), ("passed", 2), "once is no verdict");
    assert!(said(5).contains("chmod +x"));
    assert!(
        matches!(ran[6].outcome, Outcome::Failed { .. }),
        "a check that is gone has not passed"
    );
    let report = HealthReport::new(None, None, ran);
    assert!(report.failure().unwrap().contains("1-bad: exit code 3"));
}

#[test]
fn a_report_reads_back_and_a_broken_one_is_named() {
    let root = tempfile::tempdir().unwrap();
    let layout = crate::deployment::Layout::new(root.path());
    layout.prepare(&crate::sys::fs::RealFs).unwrap();
    assert_eq!(HealthReport::load(&layout).unwrap(), None);
    let report = HealthReport::new(None, Some("id".into()), Vec::new());
    report.save(&crate::sys::fs::RealFs, &layout).unwrap();
    assert_eq!(HealthReport::load(&layout).unwrap(), Some(report));
    std::fs::write(layout.state().join("health.json"), "{}").unwrap();
    let error = HealthReport::load(&layout).unwrap_err().to_string();
    assert!(error.contains("health.json") && error.contains("remove it"), "{error}");
}
