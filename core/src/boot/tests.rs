use super::*;

fn id() -> DeploymentId {
    "ab".repeat(32).parse().unwrap()
}

fn new_entry() -> NewEntry {
    let bytes = |s: &str| FileSource::Bytes(s.as_bytes().to_vec());
    NewEntry {
        id: id(),
        generation: 1,
        title: "Debian GNU/Linux 13 (trixie)".into(),
        version: "2026.1".into(),
        options: vec![cmdline::digest_argument(&id(), false), "root=UUID=1".into()],
        kernel: KernelFiles::new("6.1", bytes("linux"), bytes("initrd")),
        tries: Some(3),
    }
}

fn entry(generation: u64, id: Option<DeploymentId>, problem: Option<&str>) -> BootEntry {
    BootEntry {
        id,
        short: self::id().short(),
        generation,
        tries: Tries::Good,
        title: "t".into(),
        linux: "/l".into(),
        initrd: "/i".into(),
        kernel: None,
        options: Vec::new(),
        file: format!("cfs-{generation}.conf"),
        changed: false,
        problem: problem.map(str::to_owned),
    }
}

#[test]
fn the_menu_shows_title_version_and_short_id_once() {
    let mut new = new_entry();
    assert_eq!(new.menu_title(), "Debian GNU/Linux 13 (trixie) 2026.1 (abababababab)");
    new.version = "13".into();
    assert_eq!(new.menu_title(), "Debian GNU/Linux 13 (trixie) (abababababab)");
    new.title = new.menu_title();
    assert_eq!(new.menu_title(), "Debian GNU/Linux 13 (trixie) (abababababab)");
}

#[test]
fn an_entry_that_could_not_boot_is_refused_before_anything_is_written() {
    assert!(new_entry().validate().is_ok());
    let change: [fn(&mut NewEntry); 7] = [
        |new| new.tries = Some(0),
        |new| new.tries = Some(100),
        |new| new.title = "a\nlinux /evil".into(),
        |new| new.options.push("init=/a b".into()),
        |new| new.options.push("a\nlinux /evil".into()),
        |new| drop(new.options.remove(0)),
        |new| new.options.insert(0, "\"dyndbg=file a.c +p\"".into()),
    ];
    for change in change {
        let mut new = new_entry();
        change(&mut new);
        let error = new.validate().unwrap_err();
        assert!(error.to_string().contains("abababababab"), "{error}");
    }
}

#[test]
fn a_new_generation_is_above_every_entry_and_every_earlier_one() {
    let mut entries = Entries {
        ours: vec![entry(7, Some(id()), None), entry(9, None, Some("broken"))],
        ..Entries::default()
    };
    assert_eq!(entries.next_generation(3).unwrap(), 10);
    assert_eq!(entries.next_generation(41).unwrap(), 42);
    entries.ours.push(entry(u64::MAX, None, None));
    assert!(entries.next_generation(0).is_err());
}

#[test]
fn the_best_entry_of_a_deployment_is_complete_then_has_tries_left_then_is_newest() {
    let other = "cd".repeat(32).parse().unwrap();
    let entries = Entries {
        ours: vec![
            entry(9, Some(id()), Some("no kernel")),
            entry(8, Some(other), None),
            entry(5, Some(id()), None),
            entry(2, Some(id()), None),
        ],
        ..Entries::default()
    };
    assert_eq!(entries.of(&id()).unwrap().generation, 5);
    assert_eq!(entries.of(&other).unwrap().generation, 8);
    let mut entries = entries;
    entries.ours[2].tries = Tries::Bad { done: 3 };
    assert_eq!(
        entries.of(&id()).unwrap().generation,
        2,
        "the boot loader takes this one"
    );
    entries.ours[3].tries = Tries::Bad { done: 3 };
    assert_eq!(entries.of(&id()).unwrap().generation, 5);
}

#[test]
fn a_broken_entry_is_not_the_source_of_another_one() {
    let broken = entry(1, Some(id()), Some("kernel is missing"));
    let error = NewEntry::again(&broken, Path::new("/boot"), 2, None).unwrap_err();
    assert!(error.to_string().contains("kernel is missing"), "{error}");
}

#[test]
fn an_entry_that_names_a_second_image_is_not_the_source_of_another_one() {
    let mut old = entry(1, Some(id()), None);
    old.options = new_entry().options;
    assert_eq!(NewEntry::again(&old, Path::new("/boot"), 2, None).unwrap().tries, None);
    let changed = BootEntry {
        changed: true,
        ..old.clone()
    };
    assert_eq!(
        NewEntry::again(&changed, Path::new("/boot"), 2, None).unwrap().tries,
        Some(3)
    );
    assert_eq!(
        NewEntry::again(&changed, Path::new("/boot"), 2, Some(5)).unwrap().tries,
        Some(5)
    );
    let other = "cd".repeat(32).parse().unwrap();
    old.options.insert(0, cmdline::digest_argument(&other, true));
    let error = NewEntry::again(&old, Path::new("/boot"), 2, None).unwrap_err();
    assert!(error.to_string().contains("more than one image"), "{error}");
}
