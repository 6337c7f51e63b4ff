//! systemd-boot's `loader/loader.conf`, as far as it decides what boots by default.
//!
//! Pure, and read only: the file belongs to the administrator. A `default` that names one entry defeats counting and
//! fallback, since systemd-boot takes the first entry that the pattern matches, bad or not.

/// The pattern of the `default` line that counts, which is the last one.
pub fn default_pattern(text: &str) -> Option<&str> {
    last(text, "default")
}

/// The same of `preferred`, which goes before it unless its entry has no tries left.
pub fn preferred_pattern(text: &str) -> Option<&str> {
    last(text, "preferred")
}

fn last<'t>(text: &'t str, wanted: &str) -> Option<&'t str> {
    let blank = [' ', '\t'];
    let lines = text.split(['\n', '\r']).map(|line| line.trim_matches(blank));
    let fields = lines
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(blank));
    let values = fields
        .filter(|(key, _)| *key == wanted)
        .map(|(_, value)| value.trim_matches(blank));
    let mut values = values.map(|value| value.trim_matches('"'));
    values.rfind(|value| !value.is_empty())
}

/// Whether the pattern stands for what was chosen last in the menu (`@saved`), not for a name.
pub fn is_special(pattern: &str) -> bool {
    pattern.starts_with('@')
}

/// Whether a pattern can match more than one name.
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Whether `pattern` matches an entry's id (its file name without counter); case does not matter. `*`, `?` and `[a-z]`
/// as in a shell, `\` takes the next character as it is.
pub fn matches(pattern: &str, id: &str) -> bool {
    let lower = |s: &str| s.to_lowercase().chars().collect::<Vec<char>>();
    matches_from(&lower(pattern), &lower(id))
}

fn matches_from(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when a `*` has to take one character more.
    let mut again: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            again = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        match one(&pattern[p..], text[t]) {
            Some(used) => (p, t) = (p + used, t + 1),
            None => match &mut again {
                Some((after_star, from)) => {
                    *from += 1;
                    (p, t) = (*after_star, *from);
                }
                None => return false,
            },
        }
    }
}

/// How many characters of the pattern match this one character.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['[', rest @ ..] => {
            let end = rest.iter().skip(1).position(|own| *own == ']')? + 1;
            in_set(&rest[..end], c).then_some(end + 2)
        }
        [own, ..] => (*own == c).then_some(1),
        [] => None,
    }
}

fn in_set(set: &[char], c: char) -> bool {
    match set {
        [] => false,
        [from, '-', to, rest @ ..] => (*from..=*to).contains(&c) || in_set(rest, c),
        [own, rest @ ..] => *own == c || in_set(rest, c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_default_line_counts() {
        let text = "# default no\r\ntimeout 3\r\ndefault a.conf\r\ndefault\tcfs-*\r\nconsole-mode max\r\n";
        assert_eq!(default_pattern(text), Some("cfs-*"));
        assert_eq!(default_pattern("timeout 3\ndefault\n"), None);
        assert_eq!(preferred_pattern(text), None);
        assert_eq!(preferred_pattern("preferred \"a-*\"\ndefault b\n"), Some("a-*"));
        assert!(is_special("@saved"));
        assert!(is_glob("cfs-*") && !is_glob("cfs-000001-0123456789ab.conf"));
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let id = "cfs-000042-0123456789ab.conf";
        for pattern in [
            "cfs-*",
            "*",
            "CFS-*.conf",
            id,
            "cfs-0000[0-9]2-*",
            "cfs-??????-*ab.conf",
            "*-*-*",
            "cfs\\-*",
            "**ab*",
        ] {
            assert!(matches(pattern, id), "{pattern}");
        }
        for pattern in [
            "cfs-",
            "cfs-*.efi",
            "?",
            "",
            "cfs-0000[0-3]2-*.con",
            "[cfs",
            "cfs-0000[]42*",
            "*x*",
            "cfs\\",
        ] {
            assert!(!matches(pattern, id), "{pattern}");
        }
        assert!(matches("[]]", "]"));
        assert!(matches("*", ""));
        assert!(matches("a*b*c", "aXbYbZc"));
        assert!(!matches(&"*a".repeat(40), &"b".repeat(4000)));
    }
}
