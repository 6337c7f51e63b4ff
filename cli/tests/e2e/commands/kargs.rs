//! Kernel arguments: those of the machine, those of the image, those of an entry that was edited.

use super::*;
use crate::common::Entry;

#[test]
fn kargs_shows_where_arguments_are_from_and_changes_those_of_the_machine() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let shown = cfs.run(["kargs", "--json"]).expect(0).json();
    assert_eq!(shown["machine"], json!([]));
    assert_eq!((&shown["current"], &shown["change"]), (&json!(true), &Value::Null));
    let next = &cfs.status()["status"]["staged"]["cfsUpdate"]["deployment"];
    assert_eq!(&shown["deployment"], next);

    let arguments = ["kargs", "--append", "console=tty0", "--append=console=ttyS0", "--json"];
    let changed = cfs.run(arguments).expect(0).json();
    let both = json!(["console=tty0", "console=ttyS0"]);
    assert_eq!(changed["change"], json!({"added": both, "removed": []}));
    cfs.run(arguments).expect(77);
    let human = cfs.run(["kargs"]).expect(0).stdout;
    assert!(human.contains("Machine: console=tty0 console=ttyS0\n"), "{human}");
    let newest = cfs.entries().into_iter().max_by_key(Entry::version).unwrap();
    assert!(newest.get("options").unwrap().ends_with(" console=tty0 console=ttyS0"));

    let replaced = cfs
        .run(["kargs", "--replace", "console=hvc0", "--json"])
        .expect(0)
        .json();
    assert_eq!(replaced["change"], json!({"added": ["console=hvc0"], "removed": both}));
    let refused = cfs.run(["kargs", "--delete", "quiet"]).expect(2).stderr;
    assert!(
        refused.contains("\"quiet\"") && refused.contains("console=hvc0"),
        "{refused}"
    );
    cfs.run(["kargs", "--append", "composefs=x"]).expect(2);
    cfs.run(["kargs", "--append", "a b"]).expect(2);
    cfs.run(["kargs", "--delete", "console"]).expect(0);
    assert_eq!(
        cfs.run(["kargs", "--json"]).expect(0).json()["commandLine"],
        shown["commandLine"]
    );
    cfs.fsck();
}

#[test]
fn kargs_says_that_an_entry_was_edited_and_makes_it_anew() {
    let dir = scratch();
    let cfs = updated(dir.path());
    let newest = cfs.entries().into_iter().max_by_key(Entry::version).unwrap();
    fs::write(&newest.path, newest.text.replace(" rw", " rw by-hand=1")).unwrap();
    let shown = cfs.run(["kargs", "--json"]).expect(0).json();
    assert_eq!(shown["current"], false);
    let human = cfs.run(["kargs"]).expect(0).stdout;
    assert!(human.contains("by-hand=1") && human.contains("was edited"), "{human}");
    let changed = cfs.run(["kargs", "--append", "debug", "--json"]).expect(0).json();
    assert_eq!(changed["change"], json!({"added": ["debug"], "removed": ["by-hand=1"]}));
    assert_eq!(changed["current"], true);
}

#[test]
fn a_root_that_an_image_wished_goes_with_it() {
    let dir = scratch();
    let cfs = Cfs::new(dir.path());
    let switch = |version: u32, arguments: &str| {
        let folders = ["usr/lib/bootc", "usr/lib/bootc/kargs.d"];
        let file = format!("kargs = [\"{arguments}\"]\n");
        let wishes = Layer::default()
            .dirs(&folders)
            .file("usr/lib/bootc/kargs.d/10.toml", file);
        let image = small(version, "kernel", 2, 3000).layer(wishes, How::Gzip).finish();
        cfs.run(["switch", &image.layout(&dir.path().join("oci"), "stable")])
            .expect(0);
        cfs.entries()[0].get("options").unwrap().to_owned()
    };
    assert!(switch(1, "root=LABEL=image quiet").ends_with(" rw root=LABEL=image quiet"));
    let own = switch(2, "quiet");
    assert!(
        own.contains(" root=") && own.ends_with(" rw quiet") && !own.contains("LABEL=image"),
        "{own}"
    );
    let (_, root) = own.split_once(" root=").unwrap();
    assert!(switch(3, "root=LABEL=image").ends_with(" rw root=LABEL=image"));
    assert!(
        switch(4, "quiet").ends_with(&format!(" root={root}")),
        "that of the entry before"
    );
}
