//! Damage is named, stops nothing, and is not carried on.

use cfs_core::boot::NewEntry;

use super::*;

type Damage = fn(&Path);

/// What may happen to a file.
const DAMAGE: [(&str, Damage); 4] = [
    ("deleted", |path| std::fs::remove_file(path).unwrap()),
    ("emptied", |path| std::fs::write(path, "").unwrap()),
    ("truncated", |path| {
        let content = std::fs::read(path).unwrap();
        std::fs::write(path, &content[..content.len() / 2]).unwrap();
    }),
    ("flipped", |path| {
        let mut content = std::fs::read(path).unwrap();
        content[0] ^= 1;
        std::fs::write(path, content).unwrap();
    }),
];

#[test]
fn damage_to_any_file_is_named_and_stops_nothing() {
    each(|loader| {
        for (what, damage) in DAMAGE {
            for file in ["entry", "linux", "initrd"] {
                let at = format!("{file} {what}");
                let _ = std::fs::remove_dir_all(loader.boot_dir());
                install(loader, 1, "6.1").unwrap();
                let hurt = install(loader, 2, "6.2").unwrap();
                let path = match file {
                    "entry" => entry_path(loader, &hurt.file),
                    name => loader
                        .boot_dir()
                        .join(hurt.linux.trim_start_matches('/'))
                        .with_file_name(name),
                };
                damage(&path);

                let entries = loader.entries().unwrap_or_else(|e| panic!("{at}: {e}"));
                assert!(entries.of(&id(1)).unwrap().is_complete(), "{at}");
                let text = findings(loader);
                let name = path.file_name().unwrap().to_str().unwrap();
                let folder = hurt.kernel.unwrap().to_string();
                let named = text.contains(name) || text.contains(&folder);
                let damages = text.lines().filter(|line| line.starts_with('!')).count();
                assert!(damages <= 1, "{at}: named more than once: {text}");
                assert!(named, "{at}: {text}");
                assert_eq!(
                    text.contains('!'),
                    !(file == "entry" && what == "deleted"),
                    "{at}: {text}"
                );

                // The same deployment can be staged again, and then all is well.
                let again = install(loader, 2, "6.2").unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(next(loader), again.file, "{at}");
                loader.remove(&loader.plan_cleanup().unwrap()).unwrap();
                assert_eq!(findings(loader), "", "{at}");
                assert_eq!(loader.entries().unwrap().ours.len(), 2, "{at}");
            }
        }
    });
}

#[test]
fn a_damaged_kernel_is_not_carried_into_another_entry() {
    each(|loader| {
        let entry = install(loader, 1, "6.1").unwrap();
        let path = loader.boot_dir().join(entry.initrd.trim_start_matches('/'));
        std::fs::write(path, "something else").unwrap();
        let entries = loader.entries().unwrap();
        let new = NewEntry::again(&entries.ours[0], loader.boot_dir(), 2, None).unwrap();
        let error = stage(loader, 1, &new).unwrap_err().to_string();
        assert!(
            error.contains(&entry.file) && error.contains("fsck --repair"),
            "{error}"
        );
    });
}
