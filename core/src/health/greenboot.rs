//! greenboot's checks, run where they are and as greenboot runs them, so that what was written for it works unchanged.
//!
//! They are in `{usr/lib,etc}/greenboot/check/{required,wanted}.d`: every `*.sh` goes to bash, executable or not, and
//! (since greenboot 0.16) every other program is run itself. What `DISABLED_HEALTHCHECKS` of
//! `etc/greenboot/greenboot.conf` names is skipped.

use std::path::Path;

use super::checks::{Check, Means, is_leftover, names};
use crate::error::Result;
use crate::sys::fs;

const SETTINGS: &str = "etc/greenboot/greenboot.conf";
/// The settings are a dozen lines.
const LIMIT: u64 = 1 << 20;

/// The checks of the system whose root is `root`, required ones first.
///
/// # Errors
/// A folder that is there and cannot be read.
pub(super) fn find(root: &Path) -> Result<Vec<Check>> {
    let disabled = disabled(&root.join(SETTINGS));
    let mut checks = Vec::new();
    for (kind, required) in [("required.d", true), ("wanted.d", false)] {
        for top in ["usr/lib", "etc"] {
            let folder = root.join(top).join("greenboot/check").join(kind);
            for name in names(&folder)? {
                let path = folder.join(&name);
                let means = means(&path, &name).map(|means| match disabled.contains(&name) {
                    true => Means::Disabled,
                    false => means,
                });
                checks.extend(means.map(|means| Check { path, required, means }));
            }
        }
    }
    for name in &disabled {
        if !checks.iter().any(|check| check.path.ends_with(name)) {
            tracing::warn!("DISABLED_HEALTHCHECKS in /{SETTINGS} names {name}, which is no check here");
        }
    }
    Ok(checks)
}

/// How the file is run; `None` for what is no check. What is gone, a link to nowhere, stays one: it has not passed.
fn means(path: &Path, name: &str) -> Option<Means> {
    match std::fs::metadata(path).map(|found| found.is_file()) {
        Ok(false) => None,
        _ if name.ends_with(".sh") => Some(Means::Bash),
        _ if name.starts_with('.') || is_leftover(name) => None,
        _ => fs::is_executable(path).unwrap_or(true).then_some(Means::Itself),
    }
}

/// What the settings disable. Where they cannot be understood, nothing: a check too many says more than one too few.
fn disabled(settings: &Path) -> Vec<String> {
    let text = match fs::read_text(settings, LIMIT) {
        Ok(text) => text.unwrap_or_default(),
        Err(e) => {
            tracing::warn!("no check is disabled: {e}");
            return Vec::new();
        }
    };
    parse(&text).unwrap_or_else(|| {
        let settings = settings.display();
        tracing::warn!(
            "no check is disabled: DISABLED_HEALTHCHECKS in {settings} has no end; close its `(` and quotes"
        );
        Vec::new()
    })
}

/// The names in `DISABLED_HEALTHCHECKS=("a.sh" "b.sh")` of a file of shell assignments; the last one counts, `+=`
/// adds. `None` where an array or a quote has no end.
fn parse(text: &str) -> Option<Vec<String>> {
    let mut disabled = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some((adds, value)) = assignment(rest) {
            let (found, after) = values(value)?;
            if !adds {
                disabled.clear();
            }
            disabled.extend(found);
            rest = after;
        }
        rest = rest.split_once('\n').map_or("", |(_, next)| next);
    }
    disabled.retain(|name| !name.is_empty());
    Some(disabled)
}

/// Whether the line that `text` begins with adds to the variable, and what it assigns; `None` for any other line.
fn assignment(text: &str) -> Option<(bool, &str)> {
    let line = text.trim_start_matches([' ', '\t']);
    let words = ["export ", "readonly ", "declare -a ", "declare -r "];
    let bare = words.iter().find_map(|word| line.strip_prefix(word)).unwrap_or(line);
    let value = bare.trim_start_matches(' ').strip_prefix("DISABLED_HEALTHCHECKS")?;
    match value.strip_prefix("+=") {
        Some(value) => Some((true, value)),
        None => value.strip_prefix('=').map(|value| (false, value)),
    }
}

/// The words of an array, or the one word that stands there, and what follows.
fn values(text: &str) -> Option<(Vec<String>, &str)> {
    let Some(mut rest) = text.strip_prefix('(') else {
        return word(text).map(|(word, rest)| (vec![word], rest));
    };
    let mut words = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(')') {
            return Some((words, after));
        }
        if rest.starts_with('#') {
            rest = rest.split_once('\n')?.1;
            continue;
        }
        let (word, after) = word(rest)?;
        if after.len() == rest.len() {
            return None;
        }
        words.push(word);
        rest = after;
    }
}

/// One word of shell without its quotes, and what follows it; `None` where a quote has no end.
fn word(text: &str) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some('\''), c) => word.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (_, '\\') => word.extend(chars.next().map(|(_, c)| c).filter(|c| *c != '\n')),
            (None, c) if c.is_whitespace() || matches!(c, ')' | ';') => return Some((word, &text[at..])),
            (_, c) => word.push(c),
        }
    }
    quote.is_none().then_some((word, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_disabled_is_read_as_a_shell_reads_it() {
        let disabled = |text: &str| parse(text).map(|names| names.join("|"));
        for (text, names) in [
            ("", ""),
            ("DISABLED_HEALTHCHECKS=()\n", ""),
            (
                "DISABLED_HEALTHCHECKS=(\"01_dns.sh\" '02 dog.sh' 3.sh)",
                "01_dns.sh|02 dog.sh|3.sh",
            ),
            (
                "### DISABLED_HEALTHCHECKS=(\n### \t\"x.sh\"\n### )\nDISABLED_HEALTHCHECKS=(\n\t\"a.sh\" # why\n\tb.sh\n)\n",
                "a.sh|b.sh",
            ),
            (
                "DISABLED_HEALTHCHECKS=(a.sh); MORE=1\nDISABLED_HEALTHCHECKS=(b.sh)",
                "b.sh",
            ),
            (
                "DISABLED_HEALTHCHECKS=(a.sh)\n  DISABLED_HEALTHCHECKS+=(b\\ c.sh)",
                "a.sh|b c.sh",
            ),
            ("export DISABLED_HEALTHCHECKS=a.sh # one", "a.sh"),
            ("DISABLED_HEALTHCHECKS=\nX=(b.sh)", ""),
            ("DISABLED_HEALTHCHECKS_OLD=(a.sh)\nNOT_DISABLED_HEALTHCHECKS=(b.sh)", ""),
        ] {
            assert_eq!(disabled(text).as_deref(), Some(names), "{text}");
        }
        for text in ["(", "(a.sh", "(\"a.sh)", "(a.sh # )", "(a;b)", "'a"] {
            assert_eq!(disabled(&format!("DISABLED_HEALTHCHECKS={text}")), None, "{text}");
        }
    }
}
