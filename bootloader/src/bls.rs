//! Type #1 entries of the Boot Loader Specification as text, and the order in which a boot loader lists them.
//!
//! Pure. Reading accepts what systemd-boot accepts (tabs, CRLF, quotes around a value, unknown keys, which are kept);
//! writing is the plain form of the specification. Reading never fails: what is wrong with an entry is told by
//! [`Entry::problems`], so that one broken file hides no other.

use std::cmp::{Ordering, Reverse};
use std::fmt;

use cfs_core::boot::{Tries, version};
use sha2::{Digest, Sha256};

/// A line of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// From `#` on.
    Comment(String),
    /// Key and value; the value without white space around it, quotes as written.
    Field(String, String),
}

/// An entry, in the order of its lines; blank ones are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    lines: Vec<Line>,
}

/// The keys that say what to boot; an entry has exactly one of them.
pub const BOOTS: [&str; 4] = ["linux", "efi", "uki", "uki-url"];

/// The keys whose values are paths on `$BOOT`; `devicetree-overlay` holds several.
pub const PATHS: [&str; 7] = [
    "linux",
    "initrd",
    "efi",
    "uki",
    "devicetree",
    "devicetree-overlay",
    "extra",
];

impl Entry {
    /// Takes a text apart.
    pub fn parse(text: &str) -> Self {
        let blank = [' ', '\t'];
        let lines = text.trim_start_matches('\u{feff}').split(['\n', '\r']);
        let lines = lines
            .map(|line| line.trim_matches(blank))
            .filter(|line| !line.is_empty());
        let lines = lines.map(|line| {
            if line.starts_with('#') {
                return Line::Comment(line.to_owned());
            }
            let (key, value) = line.split_once(blank).unwrap_or((line, ""));
            Line::Field(key.to_owned(), value.trim_matches(blank).to_owned())
        });
        Self { lines: lines.collect() }
    }

    /// Adds a field at the end. `value` is one line without white space around it.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.lines.push(Line::Field(key.into(), value.into()));
        self
    }

    /// Its lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// All values of a key, in order; one pair of quotes around a value is taken off, as systemd-boot does.
    pub fn values<'a>(&'a self, key: &str) -> impl DoubleEndedIterator<Item = &'a str> + use<'a> {
        let key = key.to_owned();
        self.lines.iter().filter_map(move |line| match line {
            Line::Field(own, value) if *own == key && !value.is_empty() => Some(unquote(value)),
            _ => None,
        })
    }

    /// The value of a key that may appear once; the last one counts.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next_back()
    }

    /// The kernel command line: all `options`, joined.
    pub fn options(&self) -> String {
        self.values("options").collect::<Vec<_>>().join(" ")
    }

    /// Adds a comment with the checksum of all lines so far, so that a later change can be told.
    #[must_use]
    pub fn with_checksum(mut self) -> Self {
        let line = checksum_line(&self.to_string());
        self.lines.push(Line::Comment(line));
        self
    }

    /// Whether it ends with the checksum of the lines before. White space and line ends do not matter; it is a guard
    /// against damage and a trace of editing, not against somebody who recomputes it.
    pub fn is_as_written(&self) -> bool {
        let Some((Line::Comment(checksum), rest)) = self.lines.split_last() else {
            return false;
        };
        let rest = Self { lines: rest.to_vec() };
        *checksum == checksum_line(&rest.to_string())
    }

    /// What keeps a boot loader from booting it, as far as the text tells.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let boots: Vec<&str> = BOOTS.into_iter().filter(|key| self.value(key).is_some()).collect();
        match boots.as_slice() {
            [] if self.lines.is_empty() => problems.push("it is empty".into()),
            [] => problems.push("it has neither a linux nor an efi line".into()),
            [_] => {}
            several => problems.push(format!("it has more than one of: {}", several.join(", "))),
        }
        for key in PATHS {
            for value in self.values(key) {
                let paths = if key == "devicetree-overlay" {
                    value.split(' ').collect()
                } else {
                    vec![value]
                };
                let bad = paths.into_iter().filter(|path| relative(path).is_none());
                problems.extend(bad.map(|path| format!("its {key} path {path:?} leads out of the partition")));
            }
        }
        problems
    }

    /// The values that its place in the menu depends on; `tries` and `stem` are in its file name.
    pub fn sort_fields<'a>(&'a self, stem: &'a str, tries: Tries) -> SortFields<'a> {
        SortFields {
            tries,
            sort_key: self.value("sort-key"),
            machine_id: self.value("machine-id").unwrap_or_default(),
            version: self.value("version").unwrap_or_default(),
            stem,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Comment(text) => writeln!(f, "{text}")?,
                Line::Field(key, value) if value.is_empty() => writeln!(f, "{key}")?,
                Line::Field(key, value) => writeln!(f, "{key} {value}")?,
            }
        }
        Ok(())
    }
}

fn checksum_line(text: &str) -> String {
    format!(
        "# sha256 of the lines above: {}",
        hex::encode(Sha256::digest(text.as_bytes()))
    )
}

fn unquote(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.unwrap_or(value)
}

/// A path of an entry, relative to `$BOOT`: with or without a leading `/`, `\` taken for `/`, `.` and empty parts left
/// out. `None` for one with `..`, and for nothing at all.
pub fn relative(path: &str) -> Option<String> {
    let path = path.replace('\\', "/");
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Whether a file name follows the rules for entries: 1 to 255 characters of `A-Z a-z 0-9 + - _ .`, with `.conf`
/// behind at least one of them.
pub fn is_valid_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-_.".contains(&b);
    let stem = name.strip_suffix(".conf").unwrap_or_default();
    !stem.is_empty() && name.len() <= 255 && name.bytes().all(allowed)
}

/// What decides about an entry's place in the menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SortFields<'a> {
    /// From the counter in its name.
    pub tries: Tries,
    /// `sort-key`.
    pub sort_key: Option<&'a str>,
    /// `machine-id`, or empty.
    pub machine_id: &'a str,
    /// `version`, or empty.
    pub version: &'a str,
    /// File name without counter and suffix.
    pub stem: &'a str,
}

/// The order of the menu, first comes first: section "Sorting" of the specification, and the tries at last, as in
/// systemd-boot.
pub fn menu_order(a: &SortFields<'_>, b: &SortFields<'_>) -> Ordering {
    let bad = |fields: &SortFields<'_>| matches!(fields.tries, Tries::Bad { .. });
    let by_keys = match (a.sort_key, b.sort_key) {
        (Some(left), Some(right)) => left
            .cmp(right)
            .then_with(|| a.machine_id.cmp(b.machine_id))
            .then_with(|| version::compare(b.version, a.version)),
        (left, right) => left.is_none().cmp(&right.is_none()),
    };
    let lower = |stem: &str| stem.to_ascii_lowercase();
    (bad(a).cmp(&bad(b)))
        .then(by_keys)
        .then_with(|| version::compare(&lower(b.stem), &lower(a.stem)))
        .then_with(|| by_tries(a.tries, b.tries))
}

/// Between entries that are otherwise equal: uncounted first (systemd-boot leaves that open), then more tries left,
/// then fewer done.
fn by_tries(a: Tries, b: Tries) -> Ordering {
    let rank = |tries| match tries {
        Tries::Good => (0, Reverse(0), 0),
        Tries::Left { left, done } => (1, Reverse(left), done),
        Tries::Bad { done } => (1, Reverse(0), done),
    };
    rank(a).cmp(&rank(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_specifications_example_is_understood() {
        let text = "# /boot/loader/entries/6a9857a393724b7a981ebb5b8495b9ea-3.8.0-2.fc19.x86_64.conf\n\
                    title        Fedora 19 (Rawhide)\n\
                    sort-key     fedora\n\
                    machine-id   6a9857a393724b7a981ebb5b8495b9ea\n\
                    version      3.8.0-2.fc19.x86_64\n\
                    options      root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2 quiet\n\
                    architecture x64\n\
                    linux        /6a9857a393724b7a981ebb5b8495b9ea/3.8.0-2.fc19.x86_64/linux\n\
                    initrd       /6a9857a393724b7a981ebb5b8495b9ea/3.8.0-2.fc19.x86_64/initrd\n";
        let entry = Entry::parse(text);
        assert_eq!(entry.value("title"), Some("Fedora 19 (Rawhide)"));
        assert_eq!(entry.options(), "root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2 quiet");
        assert_eq!(entry.problems(), [""; 0]);
        assert_eq!(entry.lines().len(), 9);
    }

    #[test]
    fn crlf_tabs_quotes_and_unknown_keys_are_accepted() {
        let entry = Entry::parse(
            "\u{feff}title\t\"A B\"\r\n\r\n  linux  /l \r\noptions a\r\noptions b=\"c d\"\r\nx-own 1\r\nalone\r\n",
        );
        assert_eq!(entry.value("title"), Some("A B"));
        assert_eq!(entry.value("linux"), Some("/l"));
        assert_eq!(entry.options(), "a b=\"c d\"");
        assert_eq!(entry.value("alone"), None);
        assert_eq!(
            entry.to_string(),
            "title \"A B\"\nlinux /l\noptions a\noptions b=\"c d\"\nx-own 1\nalone\n"
        );
    }

    #[test]
    fn what_cannot_boot_is_named() {
        let problems = |text: &str| Entry::parse(text).problems().join("; ");
        assert_eq!(problems(""), "it is empty");
        assert_eq!(problems("title x\n"), "it has neither a linux nor an efi line");
        assert_eq!(problems("linux /a\nefi /b\n"), "it has more than one of: linux, efi");
        assert_eq!(
            problems("linux /a/../../b\n"),
            "its linux path \"/a/../../b\" leads out of the partition"
        );
        assert_eq!(problems("uki-url http://h/x/../y\n"), "");
        assert_eq!(problems("efi \\EFI\\x.efi\n"), "");
    }

    #[test]
    fn names_follow_the_specifications_rules() {
        for good in [
            "a.conf",
            "cfs-000001-0123456789ab+03-00.conf",
            &format!("{}.conf", "a".repeat(250)),
        ] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in [
            "",
            ".conf",
            "a",
            "a.efi",
            "ä.conf",
            "a b.conf",
            "a/b.conf",
            &format!("{}.conf", "a".repeat(251)),
        ] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }

    fn fields<'a>(sort_key: Option<&'a str>, version: &'a str, stem: &'a str) -> SortFields<'a> {
        SortFields {
            tries: Tries::Good,
            sort_key,
            machine_id: "",
            version,
            stem,
        }
    }

    #[test]
    fn the_menu_is_in_the_specifications_order() {
        let counted = |fields: SortFields<'static>, left, done| SortFields {
            tries: if left == 0 {
                Tries::Bad { done }
            } else {
                Tries::Left { left, done }
            },
            ..fields
        };
        let machine = |fields: SortFields<'static>, machine_id| SortFields { machine_id, ..fields };
        let expected = [
            fields(Some("arch"), "1", "z"),
            fields(Some("cfs-update"), "10", "a"),
            counted(fields(Some("cfs-update"), "9", "a"), 3, 0),
            fields(Some("cfs-update"), "9~rc1", "a"),
            machine(fields(Some("cfs-update"), "99", "a"), "0a"),
            fields(Some("debian"), "", "a"),
            fields(None, "7", "b-2"),
            fields(None, "8", "b-1"),
            counted(fields(None, "8", "a"), 2, 1),
            counted(fields(None, "8", "a"), 1, 1),
            counted(fields(None, "8", "a"), 1, 2),
            counted(fields(Some("arch"), "1000", "z"), 0, 3),
            counted(fields(Some("cfs-update"), "1000", "z"), 0, 3),
        ];
        let mut sorted = expected;
        sorted.reverse();
        sorted.sort_by(menu_order);
        assert_eq!(sorted, expected);
    }

    #[test]
    fn any_change_but_that_of_white_space_is_told_by_the_checksum() {
        let entry = Entry::default()
            .with("title", "A  B")
            .with("linux", "/l")
            .with_checksum();
        let text = entry.to_string();
        assert!(Entry::parse(&text).is_as_written());
        assert!(Entry::parse(&text.replace('\n', "\r\n\r\n").replace("title ", "title\t ")).is_as_written());
        for i in 0..text.len() {
            for mask in [1, 2, 0x40] {
                let mut bytes = text.clone().into_bytes();
                bytes[i] ^= mask;
                let changed = String::from_utf8(bytes).unwrap();
                assert!(
                    Entry::parse(&changed) == entry || !Entry::parse(&changed).is_as_written(),
                    "{changed:?}"
                );
            }
            assert!(
                i + 1 == text.len() || !Entry::parse(&text[..i]).is_as_written(),
                "cut at {i}"
            );
        }
        assert!(!Entry::default().is_as_written());
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let comment = "#[ -~äß]{0,20}".prop_map(|text| Line::Comment(text.trim_end().to_owned()));
        let key = prop_oneof![
            Just("title"),
            Just("options"),
            Just("linux"),
            Just("initrd"),
            Just("x-unknown")
        ];
        let field = (key, "[ -~äß\t]{0,30}")
            .prop_map(|(key, value)| Line::Field(key.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        prop::collection::vec(prop_oneof![comment, field], 0..8).prop_map(|lines| Entry { lines })
    }

    proptest! {
        #[test]
        fn an_entry_reads_back_as_it_was_written(entry in entry()) {
            prop_assert_eq!(Entry::parse(&entry.to_string()), entry.clone());
            prop_assert_eq!(Entry::parse(&entry.to_string().replace('\n', "\r\n")), entry);
        }

        #[test]
        fn any_text_is_read_and_writing_it_again_changes_nothing_more(text in any::<String>()) {
            let entry = Entry::parse(&text);
            prop_assert_eq!(Entry::parse(&entry.to_string()), entry);
        }

        #[test]
        fn a_path_below_boot_never_leaves_it(path in "[a./\\\\]{0,12}") {
            if let Some(relative) = relative(&path) {
                prop_assert!(!relative.starts_with('/'));
                prop_assert!(relative.split('/').all(|part| !part.is_empty() && part != ".." && part != "."));
            }
        }
    }
}
