//! The key files that ostree, bootc and this program exchange (the subset of GLib's key file format that they use).
//!
//! Pure text. Whatever is not understood is kept: sections, keys, comments, empty lines and their order. Only `#` and
//! `;` at the start of a line make a comment, so that a value may contain them.

use std::fmt;

/// A key file: lines in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ini {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// A comment or an empty line, as it stands.
    Other(String),
    Section(String),
    Value(String, String),
}

impl Ini {
    /// Reads a key file.
    ///
    /// # Errors
    /// A text with the number of the first line that is none: a key outside a section, no `=`, an empty name, a
    /// section opened twice, a key given twice in a section, a control character.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut ini = Self::default();
        let mut section: Option<String> = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.chars().any(|c| c.is_control() && c != '\t') {
                return Err(format!("line {number}: a control character"));
            }
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                ini.lines.push(Line::Other(line.into()));
            } else if let Some(inner) = trimmed.strip_prefix('[') {
                let name = inner.strip_suffix(']').map(str::trim).unwrap_or_default();
                if name.is_empty() || name.contains(['[', ']']) {
                    return Err(format!("line {number}: {trimmed:?} is no section"));
                }
                if ini.has_section(name) {
                    return Err(format!("line {number}: section {name:?} for the second time"));
                }
                ini.lines.push(Line::Section(name.into()));
                section = Some(name.into());
            } else {
                let Some(section) = &section else {
                    return Err(format!("line {number}: {trimmed:?} stands outside any section"));
                };
                let (key, value) = match trimmed.split_once('=') {
                    Some((key, value)) if !key.trim().is_empty() => (key.trim(), value.trim()),
                    _ => return Err(format!("line {number}: {trimmed:?} is no `key = value`")),
                };
                if ini.get(section, key).is_some() {
                    return Err(format!("line {number}: {key:?} for the second time"));
                }
                ini.lines.push(Line::Value(key.into(), value.into()));
            }
        }
        Ok(ini)
    }

    /// A value; `None` where section or key is missing.
    pub fn get(&self, section: &str, key: &str) -> Option<&str> {
        let lines = self.body(section)?;
        self.lines[lines].iter().find_map(|line| match line {
            Line::Value(k, value) if k == key => Some(value.as_str()),
            _ => None,
        })
    }

    /// Sets a value in place, or adds it at the end of its section, which is added where missing. Line feeds and other
    /// control characters become spaces: a value is one line.
    pub fn set(&mut self, section: &str, key: &str, value: &str) {
        let clean = value.replace(|c: char| c.is_control(), " ");
        let line = Line::Value(key.into(), clean.trim().into());
        let Some(body) = self.body(section) else {
            self.lines.push(Line::Section(section.into()));
            self.lines.push(line);
            return;
        };
        let is_key = |line: &Line| matches!(line, Line::Value(k, _) if k == key);
        if let Some(at) = self.lines[body.clone()].iter().position(is_key) {
            self.lines[body.start + at] = line;
            return;
        }
        let is_blank = |line: &Line| matches!(line, Line::Other(text) if text.trim().is_empty());
        let mut end = body.end;
        while end > body.start && is_blank(&self.lines[end - 1]) {
            end -= 1;
        }
        self.lines.insert(end, line);
    }

    /// Removes a key, if there.
    pub fn remove(&mut self, section: &str, key: &str) {
        if let Some(body) = self.body(section) {
            let is_key = |line: &Line| matches!(line, Line::Value(k, _) if k == key);
            if let Some(at) = self.lines[body.clone()].iter().position(is_key) {
                self.lines.remove(body.start + at);
            }
        }
    }

    fn has_section(&self, name: &str) -> bool {
        self.body(name).is_some()
    }

    /// The lines between a section's header and the next one.
    fn body(&self, section: &str) -> Option<std::ops::Range<usize>> {
        let is_header = |line: &Line| matches!(line, Line::Section(name) if name == section);
        let start = self.lines.iter().position(is_header)? + 1;
        let rest = self.lines[start..].iter();
        let length = rest.take_while(|line| !matches!(line, Line::Section(_))).count();
        Some(start..start + length)
    }
}

impl fmt::Display for Ini {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Other(text) => writeln!(f, "{text}")?,
                Line::Section(name) => writeln!(f, "[{name}]")?,
                Line::Value(key, value) if value.is_empty() => writeln!(f, "{key} =")?,
                Line::Value(key, value) => writeln!(f, "{key} = {value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_understood_is_kept_on_a_rewrite() {
        let text = "# made by hand\n[origin]\ncontainer-image-reference = a#b;c\n\n[theirs]\nkey with space = x=y\n";
        let mut ini = Ini::parse(text).unwrap();
        assert_eq!(ini.to_string(), text);
        assert_eq!(ini.get("origin", "container-image-reference"), Some("a#b;c"));
        ini.set("origin", "new", "1");
        ini.set("ours", "flag", "yes");
        ini.remove("ours", "absent");
        assert_eq!(
            ini.to_string(),
            "# made by hand\n[origin]\ncontainer-image-reference = a#b;c\nnew = 1\n\n[theirs]\nkey with space = \
             x=y\n[ours]\nflag = yes\n"
        );
    }

    #[test]
    fn what_is_no_key_file_is_refused_with_its_line() {
        for (text, why) in [
            ("a = b\n", "line 1"),
            ("[s]\n\nnonsense\n", "line 3"),
            ("[s]\n= x\n", "line 2"),
            ("[s\n", "line 1"),
            ("[]\n", "line 1"),
            ("[s]\n[s]\n", "line 2"),
            ("[s]\na=1\na=2\n", "line 3"),
            ("[s]\na=\u{0}\n", "line 2"),
        ] {
            let error = Ini::parse(text).unwrap_err();
            assert!(error.starts_with(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_value_cannot_bring_a_second_line() {
        let mut ini = Ini::default();
        ini.set("s", "a", "x\n[t]\nb = y");
        assert_eq!(ini.to_string(), "[s]\na = x [t] b = y\n");
    }

    proptest! {
        #[test]
        fn what_was_set_reads_back(values in prop::collection::vec(("[a-z]{1,3}", "[a-z_-]{1,3}", "\\PC*"), 0..12)) {
            let mut ini = Ini::default();
            let mut last = std::collections::BTreeMap::new();
            for (section, key, value) in values {
                ini.set(&section, &key, &value);
                last.insert((section, key), value.trim().to_owned());
            }
            let text = ini.to_string();
            let read = Ini::parse(&text).unwrap();
            prop_assert_eq!(&read, &ini);
            prop_assert_eq!(read.to_string(), text);
            for ((section, key), value) in last {
                prop_assert_eq!(read.get(&section, &key), Some(value.as_str()));
            }
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC*([\\n=\\[\\]#; ]|\\PC){0,60}") {
            if let Ok(ini) = Ini::parse(&text) {
                let again = Ini::parse(&ini.to_string()).unwrap();
                prop_assert_eq!(again.to_string(), ini.to_string());
            }
        }
    }
}
